"""The report's figures: drawn from its numbers and the run's files, and written as PNG, SVG and PDF."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

import numpy as np

from lesionaug.augment.sheet import show_window
from lesionaug.data.files import write_bytes_atomic
from lesionaug.data.own_files import parse_json
from lesionaug.experiment import paper
from lesionaug.experiment.counts import Models, key_part
from lesionaug.experiment.figures import (
    ConfusionPanel,
    LearningCurve,
    confusion_figure,
    figure_png,
    figure_svg,
    learning_figure,
)
from lesionaug.experiment.gan_figures import curves_figure
from lesionaug.experiment.numbers import Method, ReportNumbers
from lesionaug.experiment.pictures import GAN_NAMES, REDUCED_GANS, file_name, read_pictures, reduced_gans
from lesionaug.experiment.protocol import gan_names, map_name, memorisation_name
from lesionaug.experiment.protocol_figures import (
    EmbeddingPanel,
    ForestRow,
    GroupAccuracy,
    PaperCurve,
    embedding_figure,
    figure_pdf,
    forest_figure,
    protocol_figure,
)
from lesionaug.experiment.results import RunResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

PAPER_CLASSIC = "paper, Fig. 8, classic (private CT data)"
PAPER_SYNTHETIC = "paper, Fig. 8, synthetic (private CT data)"


@dataclass(frozen=True)
class Figure:
    """A figure of the page: its image as a data URI, the text that replaces it, and its caption."""

    name: str
    uri: str
    alt: str
    caption: str


def write_figures(
    results: RunResults, numbers: ReportNumbers, folder: Path, *, share: bool = False
) -> dict[str, Figure]:
    """Draw every figure and write it into a folder.

    Args:
        results: The run.
        numbers: What was counted of it.
        folder: Where PNG, SVG and PDF go.
        share: Leave out every image of a patient, and the synthetic ones, which may be copies of patients.

    Returns:
        The figures by name, in the order of the page.
    """
    writer = _Writer(results, numbers, folder)
    if not share:
        writer.pictures()
    if numbers.shown():
        writer.accuracy()
    if numbers.methods:
        writer.confusion()
        writer.forest()
    writer.maps()
    if not share:
        writer.galleries()
    writer.learning()
    writer.gan_learning()
    return writer.figures


class _Writer:
    def __init__(self, results: RunResults, numbers: ReportNumbers, folder: Path) -> None:
        self.results, self.numbers, self.folder = results, numbers, folder
        self.kind = results.kind
        self.figures: dict[str, Figure] = {}
        self.gan_note = f" {REDUCED_GANS}" if reduced_gans(results) else ""
        self.incomplete = " This run is not complete." if numbers.missing else ""
        self.seen = "Groups that were chosen see the test folds."
        if results.config.choice == "nested":
            self.seen = "The classic group in use sees no test fold"
            self.seen += "; the chosen number of synthetic images does." if results.config.gans else "."

    def add(self, name: str, drawing: Drawing, alt: str, caption: str) -> None:
        """Write a drawing in every format, and take the SVG for the page."""
        svg = figure_svg(drawing).encode()
        write_bytes_atomic(self.folder / f"{name}.svg", svg)
        write_bytes_atomic(self.folder / f"{name}.png", figure_png(drawing, dpi=200))
        write_bytes_atomic(self.folder / f"{name}.pdf", figure_pdf(drawing))
        self.figures[name] = Figure(name, _data_uri("image/svg+xml", svg), alt, caption)

    def pictures(self) -> None:
        """ROIs, the augmentation sheet and the synthetic grid of RUN/pictures."""
        pictures = read_pictures(self.results)
        if pictures is None:
            return
        low, high = pictures.info["window_hu"]
        window, seed = show_window((low, high)), pictures.info["seed"]
        texts = {
            "rois": (
                f"Regions of interest with the lesions' margins, one row per class: {', '.join(self.results.classes)}.",
                f"Regions of interest of the run's own store, drawn at random (seed {seed}), never picked; one grey "
                f"window for all ({window}).",
            ),
            "sheet": (
                "Augmentations of one lesion per class: rows of rotated, flipped, translated and scaled patches.",
                f"Augmentations of one lesion per class as the network gets them, drawn at random (seed {seed}); one "
                f"grey window for all ({window}). The first tile of a row is what the others were made from. "
                "Angles in degrees, shifts in source pixels along the patch's axes, margins per side in diameters d.",
            ),
            "synthetic": (
                "For every class a row of real regions of interest and below it a row of synthetic ones of each GAN.",
                f"Real training lesions of split 0, drawn at random (seed {seed}), and the first synthetic images of "
                "the GANs of that split: the noise is random, so the first are a random sample, never picked. One "
                f"grey window for all ({window}).{self.gan_note}",
            ),
        }
        for name in pictures.names:
            for ending in ("png", "svg", "pdf"):
                write_bytes_atomic(self.folder / f"{file_name(name)}.{ending}", pictures.files[name, ending])
            uri = _data_uri("image/png", pictures.files[name, "png"])
            self.figures[name] = Figure(file_name(name), uri, *texts[name])

    def accuracy(self) -> None:
        """Fig. 8, both curves."""
        numbers, choices = self.numbers, self.numbers.choices
        classic = choices.get("classic")
        in_use = list(classic.in_use.values()) if classic else []
        base = median_low(in_use) if in_use else None
        arms = {GAN_NAMES[kind]: numbers.shown(kind) for kind in self.results.config.gans if numbers.shown(kind)}
        if base is None:
            arms = {}
        if classic is not None and classic.rule == "nested":
            note = "The classic group is chosen inside the training folds of each split"
            note += f" ({', '.join(f'+{size:,}' for size in in_use)})" if len(set(in_use)) > 1 else ""
            note += "; the number of synthetic images on the test folds shown, as in the paper." if arms else "."
            if len(set(in_use)) > 1 and numbers.method("cnn-aug"):
                pooled = _pct(numbers, "method.cnn-aug.accuracy")
                note += f" The arms are drawn at +{base:,}; CNN-AUG, pooled from these groups, is at {pooled} %."
        else:
            note = "What is chosen was chosen on the test folds shown, as in the paper."
        note += self.incomplete + (self.gan_note if arms else "")
        curves = [
            PaperCurve(sizes, tuple(correct / paper.NUM_LESIONS for correct in counts), label)
            for sizes, counts, label in (
                (paper.CLASSIC_GROUP_SIZES, paper.FIGURE_8_CLASSIC_CORRECT, PAPER_CLASSIC),
                (
                    tuple(paper.CLASSIC_OPTIMUM + size for size in paper.SYNTHETIC_GROUP_SIZES),
                    paper.FIGURE_8_SYNTHETIC_CORRECT,
                    PAPER_SYNTHETIC,
                ),
            )
        ]
        drawing = protocol_figure(
            [_group_accuracy(group, numbers, group.size) for group in numbers.shown()],
            {name: [_group_accuracy(group, numbers, group.size) for group in groups] for name, groups in arms.items()},
            kind=self.kind,
            optimum=base if base is not None else numbers.optimum,
            start=base,
            chosen={GAN_NAMES[arm]: choice.paper for arm, choice in choices.items() if arm in GAN_NAMES},
            paper_classic=curves[0],
            paper_synthetic=curves[1] if arms else None,
            note=note,
        )
        points = "; ".join(
            f"{name} +{group.size:,}: {_pct(numbers, f'{group.key}.accuracy')} %"
            for name, groups in (("classic", numbers.shown()), *arms.items())
            for group in groups
        )
        several = " and seeds" if len(numbers.seeds) > 1 else ""
        self.add(
            "accuracy",
            drawing,
            f"Test accuracy against augmented samples per fold. {points}. The paper's curves, on other data, are grey "
            "references.",
            f"Accuracy pooled over the test folds with its Wilson 95 % interval, single folds{several} beside it. "
            "Folds share training lesions, so their spread is no confidence interval. "
            + ("Below, the part of the synthetic samples enlarged. " if arms else "")
            + "Grey curves are the paper's, measured on its private CT data: compare shapes, not levels."
            + (self.gan_note if arms else ""),
        )

    def confusion(self) -> None:
        """Tables I and II, and all methods."""
        numbers = self.numbers
        wanted = ("none", "cnn-aug", "cnn-aug-gan")
        panels = [_panel(method, numbers) for method in numbers.methods if method.id in wanted]
        references = [paper.CNN_AUG]
        if numbers.method("cnn-aug-gan"):
            references.append(paper.CNN_AUG_GAN)
        grey = [_paper_panel(result, numbers.classes) for result in references]
        note = self.gan_note if numbers.method("cnn-aug-gan") else ""
        if panels:
            self.add(
                "confusion",
                confusion_figure([*panels, *grey], kind=self.kind, note=note.strip()),
                f"Confusion matrices: {', '.join(_one_line(panel.title) for panel in panels)}; the numbers are in the "
                "tables below. In grey the paper's, on other data.",
                "Confusion matrices pooled over the test folds: counts and share of the row; rows true, columns "
                f"predicted. {self.seen} In grey the paper's Tables I and II, on its private CT data.{note}",
            )
        others = [method for method in numbers.methods if method.id not in wanted]
        if others:
            note = self.gan_note if any("gan" in method.id or "synthetic" in method.id for method in others) else ""
            self.add(
                "confusion_all",
                confusion_figure(
                    [_panel(method, numbers) for method in others], kind=self.kind, note=note.strip()
                ),
                "Confusion matrices of the other methods and of the controls; the numbers are in "
                "tables/confusion.csv.",
                f"Confusion matrices of the other methods and of the controls, as above.{note}",
            )  # fmt: skip

    def forest(self) -> None:
        """Every method beside the others."""
        numbers = self.numbers
        rows = [
            ForestRow(
                label=method.name + (f" ({method.size_text})" if method.sized else ""),
                value=_value(numbers, f"{method.key}.accuracy"),
                low=_value(numbers, f"{method.key}.accuracy.low"),
                high=_value(numbers, f"{method.key}.accuracy.high"),
                seeds=tuple(_value(numbers, f"{method.key}.seed.{seed}.accuracy") for seed in method.seeds),
                group="controls" if method.control else "methods of the paper",
            )
            for method in numbers.methods
        ]
        base = numbers.method("cnn-aug")
        gans = any("gan" in method.id for method in numbers.methods)
        note = self.seen + self.incomplete + (self.gan_note if gans else "")
        self.add(
            "forest",
            forest_figure(
                rows,
                kind=self.kind,
                reference=_value(numbers, f"{base.key}.accuracy") if base else None,
                note=note,
            ),
            "Accuracy of every method with its interval: "
            + "; ".join(
                f"{row.label} {100 * row.value:.1f} % ({100 * row.low:.1f} to {100 * row.high:.1f})" for row in rows
            )
            + ".",
            "Accuracy of every method and control, pooled over the test folds, with Wilson 95 % intervals. Intervals "
            "of two methods may overlap although they differ on the same lesions: see the paired tests."
            + (self.gan_note if gans else ""),
        )

    def maps(self) -> None:
        """Fig. 9: a row for each split."""
        results, rows, gans = self.results, [], False
        for split in self.numbers.splits:
            panels = []
            for model, name in (("aug", "CNN-AUG"), ("aug-gan", "CNN-AUG-GAN")):
                step = map_name(model, split)
                if step in results.done:
                    size = results.task_info(step).get("group_size", 0)
                    panels.append(_embedding(results, step, f"{name} (+{size:,})"))
                    gans |= model == "aug-gan"
            if panels:
                rows.append((f"split {split}", panels))
        if not rows:
            return
        note = "Test lesions of each split; distances between and sizes of clusters mean nothing."
        note += self.gan_note if gans else ""
        self.add(
            "maps",
            embedding_figure(rows, kind=self.kind, note=note),
            "Maps of the last hidden layer's features, one row for each split, one column for each model; points are "
            "test lesions and their augmentations, marked by class.",
            "t-SNE of the dense layer of each split's own model, for its test lesions and their classic augmentations "
            "(first seed). Models of different splits have different features, so they are never pooled. A t-SNE map "
            "shows neighbourhoods only: distances between clusters, their sizes and directions mean nothing."
            + (self.gan_note if gans else ""),
        )

    def galleries(self) -> None:
        """The synthetic images nearest to a training lesion, of every GAN and split, as the run drew them."""
        for (kind, split), name in self.memorisation_steps():
            path = self.results.path / "memorisation" / name / "gallery.png"
            if not path.exists():
                continue
            png = path.read_bytes()
            write_bytes_atomic(self.folder / f"{name}.png", png)
            self.figures[name] = Figure(
                name,
                _data_uri("image/png", png),
                f"Synthetic images of {GAN_NAMES[kind]}, split {split}, each above the nearest training lesion and the "
                "nearest held-out lesion.",
                f"{GAN_NAMES[kind]}, split {split}: of each class the synthetic images nearest to any training lesion, "
                "with that lesion and the nearest held-out one below; 1 - r is the distance, 0 where they are equal up "
                f"to brightness and contrast.{self.gan_note}",
            )

    def memorisation_steps(self) -> list[tuple[tuple[str, int], str]]:
        """(kind, split) and name of every comparison that is there."""
        found = [
            ((str(kind), split), memorisation_name(kind, split))
            for kind in self.results.config.gans
            for split in self.numbers.splits
        ]
        return [(key, name) for key, name in found if name in self.results.done]

    def learning(self) -> None:
        """Loss and training accuracy of the classic groups."""
        curves, unit = _learning_curves(self.results)
        if curves:
            self.add(
                "learning",
                learning_figure(curves, kind=self.kind, unit=unit),
                f"Training loss and training accuracy against {unit}s for the classic groups "
                + ", ".join(f"+{size:,}" for size in sorted(curves)),
                f"Training loss and accuracy of every epoch of the classic groups, against {unit}s: mean over a "
                "group's models, band from the lowest to the highest. Running values with dropout active; not test "
                "values.",
            )

    def gan_learning(self) -> None:
        """Losses of the GANs of the first split."""
        results, metrics = self.results, {}
        for kind in results.config.gans:
            for name in gan_names(kind, 0, results.seeds[0], len(results.classes)):
                if name not in results.done:
                    continue
                try:
                    text = (results.path / "gans" / name / "metrics.jsonl").read_text(encoding="utf-8")
                    blocks = [parse_json(line) for line in text.splitlines() if line]
                except (OSError, ValueError):
                    continue  # a picture only: no number of the report depends on it
                label = results.step(name).settings.get("class")
                which = "" if label is None else f", {results.classes[label]}"
                if blocks:
                    metrics[f"{GAN_NAMES[kind]}{which}"] = blocks
        if metrics:
            self.add(
                "gan_learning",
                curves_figure(metrics, kind=self.kind, note=f"Split 0, first seed.{self.gan_note}"),
                f"Losses and answers of the discriminators during the training of {', '.join(metrics)}.",
                "Left the losses of both networks, right what the discriminator says of real images, D(x), and of "
                "synthetic ones, D(G(z)): 0.5 for both where it cannot tell them apart, near 1 and 0 where it always "
                f"can. GANs of split 0, first seed.{self.gan_note}",
            )


def _data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def _value(numbers: ReportNumbers, key: str) -> float:
    found = numbers.values[key]
    return float("nan") if found is None else float(found)


def _pct(numbers: ReportNumbers, key: str) -> str:
    return f"{100 * _value(numbers, key):.1f}"


def _group_accuracy(models: Models, numbers: ReportNumbers, size: int) -> GroupAccuracy:
    def value(key: str) -> float:
        return _value(numbers, f"{models.key}.{key}")

    return GroupAccuracy(
        size=size,
        accuracy=value("accuracy"),
        interval=(value("accuracy.low"), value("accuracy.high")),
        seeds=tuple(value(f"seed.{seed}.accuracy") for seed in models.seeds),
        folds=tuple(
            tuple(value(f"seed.{seed}.fold.{split}.accuracy") for split in numbers.splits) for seed in models.seeds
        ),
    )


def _panel(method: Method, numbers: ReportNumbers) -> ConfusionPanel:
    values = numbers.values
    counts = [
        [values[f"{method.key}.confusion.{key_part(true)}.{key_part(guess)}"] for guess in numbers.classes]
        for true in numbers.classes
    ]
    correct = float(values[f"{method.key}.correct"] or 0)
    shown = f"{correct:.0f}" if abs(correct - round(correct)) < 1e-9 else f"{correct:.1f}"
    size = f"{method.size_text}, " if method.sized else ""
    title = f"{method.name}\n{size}{shown}/{values[f'{method.key}.total']} correct"
    return ConfusionPanel(title, np.array(counts, dtype=np.float64), numbers.classes)


def _one_line(title: str) -> str:
    return title.replace("\n", ", ")


def _paper_panel(result: paper.PrintedResult, classes: Sequence[str]) -> ConfusionPanel:
    """A table of the paper, in the order of this run's classes where they are the same ones."""
    order = [paper.CLASSES.index(name) for name in classes] if set(classes) == set(paper.CLASSES) else [0, 1, 2]
    counts = np.array(result.confusion)[np.ix_(order, order)]
    names = tuple(paper.CLASSES[i] for i in order)
    title = f"paper, {result.name}, {result.where.split(' and ')[0].replace('Tables', 'Table')}\n(private CT data)"
    return ConfusionPanel(title, counts, names, reference=True)


def _embedding(results: RunResults, step: str, title: str) -> EmbeddingPanel:
    """A committed map; lesions' names stay behind."""
    text = (results.path / results.step(step).folder / "points.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    return EmbeddingPanel(
        title=title,
        points=np.array([[float(row["x"]), float(row["y"])] for row in rows]),
        labels=np.array([results.classes.index(row["label"]) for row in rows]),
        view=np.array([int(row["view"]) for row in rows]),
        classes=results.classes,
    )


def _learning_curves(results: RunResults) -> tuple[dict[int, list[LearningCurve]], str]:
    """Histories by classic group; against steps where every model takes equally many of them, else against epochs."""
    by_steps = results.config.classifier.steps is not None
    curves: dict[int, list[LearningCurve]] = {}
    for task in results.tasks:
        if task.arm != "classic":
            continue
        try:
            text = (results.path / "models" / task.name / "history.csv").read_text(encoding="utf-8")
            rows: list[Any] = [
                (float(row["epoch"]), float(row["loss"]), float(row["train_accuracy"]))
                for row in csv.DictReader(io.StringIO(text))
            ]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a history is a picture only: no number of the report depends on it
        if not rows:
            continue
        last, steps, batch = rows[-1][0], float(task.info["steps"]), results.config.classifier.batch_size
        per_epoch = -(-int(task.info["num_train_images"]) // batch)
        x = [min(row[0] * per_epoch, steps) if by_steps else row[0] for row in rows]
        if last >= 1:
            curves.setdefault(task.group_size, []).append(
                LearningCurve(x, [row[1] for row in rows], [row[2] for row in rows])
            )
    return curves, "optimiser step" if by_steps else "epoch"
