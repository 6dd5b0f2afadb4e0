"""`lesionaug report`: a run as one self-contained HTML page, its figures, tables and numbers as files beside it."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from lesionaug import __version__
from lesionaug.augment.sheet import banner, show_window
from lesionaug.data.files import write_bytes_atomic, write_json_atomic, write_text_atomic
from lesionaug.experiment import paper
from lesionaug.experiment.figures import (
    ConfusionPanel,
    GroupAccuracy,
    LearningCurve,
    PaperCurve,
    accuracy_figure,
    confusion_figure,
    figure_png,
    figure_svg,
    learning_figure,
)
from lesionaug.experiment.numbers import Group, Number, ReportNumbers, collect_numbers, key_part
from lesionaug.experiment.pictures import read_pictures, write_pictures
from lesionaug.experiment.readings import readings, show_value
from lesionaug.experiment.results import RunResults, load_run

__all__ = ["write_pictures", "write_report"]

Progress = Callable[[int, int, str], None]
PAPER_LABEL = "paper, Fig. 8 (private CT data)"
NO_PICTURES = (
    "Pictures are made from the ROI store, whose place a run does not keep. "
    "Add them with `lesionaug report RUN --rois STORE`."
)
_STAGES = ("reading the run", "pictures", "counting", "figures", "page")


@dataclass(frozen=True)
class Figure:
    """A figure of the page: its image as a data URI, the text that replaces it, and its caption."""

    name: str
    uri: str
    alt: str
    caption: str


def write_report(
    run_dir: str | os.PathLike[str],
    store_path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write RUN/report.html and RUN/report/{numbers.json, figures, tables}.

    The page depends on the run directory alone: the same run gives the same bytes. An incomplete run gives a page that
    says what is missing.

    Args:
        run_dir: A run of `lesionaug run`, complete or not.
        store_path: The run's ROI store, for the pictures of ROIs and augmentations; without it, those of an earlier
            `write_pictures` are used.
        progress: Called as (done, total, text).

    Returns:
        The path of report.html.

    Raises:
        DataError: Not a run, damaged files, or another store than the run's.
    """
    run = Path(run_dir)

    def step(stage: int) -> None:
        if progress is not None:
            progress(stage, len(_STAGES), _STAGES[min(stage, len(_STAGES) - 1)])

    step(0)
    results = load_run(run)
    step(1)
    if store_path is not None:
        write_pictures(run, store_path)
    step(2)
    numbers = collect_numbers(results)
    step(3)
    folder = run / "report"
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    figures = _write_figures(results, numbers, folder / "figures")
    _write_tables(numbers, folder / "tables", results.kind)
    write_json_atomic(folder / "numbers.json", {"schema": 1, "kind": results.kind, "numbers": numbers.values})
    step(4)
    write_text_atomic(run / "report.html", render(results, numbers, figures))
    step(5)
    return run / "report.html"


def format_number(value: Number, style: str) -> str:
    """A number as the page shows it.

    Args:
        value: The number; None is "n/a".
        style: "int" (with thousands), "count" (a whole count, or a mean with one decimal), "pct" (a fraction in
            percent, one decimal), "points" (the same with its sign), "p" (a p-value), "seconds" (one decimal).
    """
    if value is None:
        return "n/a"
    if style == "points":
        return f"{100 * value:+.1f}"
    if style == "p":
        return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.2f}"
    if style == "pct":
        return f"{100 * value:.1f}"
    if style == "seconds":
        return f"{value:,.1f}"
    if style == "count" and abs(value - round(value)) > 1e-9:
        return f"{value:,.1f}"
    return f"{round(value):,}"


def render(results: RunResults, numbers: ReportNumbers, figures: dict[str, Figure]) -> str:
    """The page as HTML text.

    Args:
        results: The run.
        numbers: What `collect_numbers` counted.
        figures: Figures by name ("rois", "sheet", "accuracy", "confusion", "confusion_all", "learning"); any may be
            absent.
    """

    def num(key: str, style: str) -> Markup:
        if key.startswith("paper.") and key not in numbers.values:
            return Markup("not in the paper")  # a class that the paper does not have
        text = format_number(numbers.values[key], style)
        return Markup('<span data-key="{}">{}</span>').format(key, text)

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["part"] = key_part
    template = environment.from_string(
        resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    several = len(numbers.seeds) > 1
    return template.render(
        num=num,
        show=show_value,
        title=lambda group: _title(group, numbers),
        values=numbers.values,
        banner=banner(results.kind),
        version=__version__,
        config=results.config,
        config_json=json.dumps(results.config.model_dump(mode="json"), indent=1, sort_keys=True),
        kind=results.kind,
        store_hash=str(results.info["store"]["manifest_sha256"])[:12],
        reductions=results.config.reductions,
        missing=numbers.missing,
        groups=numbers.groups,
        shown=numbers.shown_groups,
        headline=_headline(numbers),
        first=min((group.size for group in numbers.shown_groups), default=None),
        optimum=numbers.optimum,
        classes=numbers.classes,
        splits=numbers.splits,
        seeds=numbers.seeds,
        tasks=numbers.tasks,
        counting="Counts are means over the seeds; an interval counts each lesion once, at the nearest whole count."
        if several
        else "",
        figures={
            name: figures.get(name) for name in ("rois", "sheet", "accuracy", "confusion", "confusion_all", "learning")
        },
        no_pictures=_code(NO_PICTURES),
        paper_results=(paper.CNN_AUG, paper.CNN_AUG_GAN, paper.BOVW_MI, *paper.TABLE_IV),
        readings=list(readings(results.config)),
        facts=_facts(results),
    )


def _code(text: str) -> Markup:
    """Text with `code` in backquotes, as HTML."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def _headline(numbers: ReportNumbers) -> list[Group]:
    """The groups shown in full: the smallest one and the optimum."""
    shown = numbers.shown_groups
    return [group for i, group in enumerate(shown) if i == 0 or group.size == numbers.optimum]


def _title(group: Group, numbers: ReportNumbers) -> str:
    name = "Without augmentation (+0)" if group.size == 0 else f"+{group.size:,} per fold"
    return f"{name}, optimum by the paper's rule" if group.size == numbers.optimum else name


def _facts(results: RunResults) -> list[tuple[str, str]]:
    """Seeds, machine and versions as rows of a table."""
    config, info = results.config, results.info
    facts = [
        ("seeds of the training", ", ".join(str(seed) for seed in config.seeds)),
        ("seed of the folds", str(config.folds.seed)),
        ("seed of the augmentations", str(config.plan.seed)),
        ("threads per model", str(config.threads_per_task)),
        ("command", f"lesionaug {info.get('command', '')}".strip()),
    ]
    facts += [(f"machine: {name}", str(value)) for name, value in sorted(info.get("machine", {}).items())]
    versions: dict[str, set[str]] = {name: {str(value)} for name, value in info.get("versions", {}).items()}
    for task in results.tasks:  # a run that was resumed elsewhere shows it
        for name, value in task.info.get("versions", {}).items():
            versions.setdefault(name, set()).add(str(value))
    facts += [(f"version: {name}", ", ".join(sorted(found))) for name, found in sorted(versions.items())]
    return facts


def _write_figures(results: RunResults, numbers: ReportNumbers, folder: Path) -> dict[str, Figure]:
    """Draw the figures, write them as SVG and PNG, and hand them over for the page."""
    kind, shown = results.kind, numbers.shown_groups
    figures: dict[str, Figure] = {}

    def add(name: str, drawing: Any, alt: str, caption: str) -> None:
        svg = figure_svg(drawing)
        write_text_atomic(folder / f"{name}.svg", svg)
        write_bytes_atomic(folder / f"{name}.png", figure_png(drawing, dpi=200))
        figures[name] = Figure(name, _data_uri("image/svg+xml", svg.encode()), alt, caption)

    pictures = read_pictures(results.path, str(results.info["store"]["manifest_sha256"]))
    if pictures is not None:
        low, high = pictures.info["window_hu"]
        window, seed = show_window((low, high)), pictures.info["seed"]
        texts = {
            "rois": (
                f"Regions of interest with the lesions' margins, one row per class: {', '.join(results.classes)}.",
                f"Regions of interest of the run's own store, drawn at random (seed {seed}), never picked; one grey "
                f"window for all ({window}).",
            ),
            "sheet": (
                "Augmentations of one lesion per class: rows of rotated, flipped, translated and scaled patches.",
                f"Augmentations of one lesion per class as the network gets them, drawn at random (seed {seed}); one "
                f"grey window for all ({window}). The first tile of a row is what the others were made from. "
                "Angles in degrees, shifts in source pixels along the patch's axes, margins per side in diameters d.",
            ),
        }
        for name, png in pictures.png.items():
            write_bytes_atomic(folder / f"{name}.png", png)
            figures[name] = Figure(name, _data_uri("image/png", png), *texts[name])

    if shown:
        curve = PaperCurve(
            paper.CLASSIC_GROUP_SIZES,
            tuple(correct / paper.NUM_LESIONS for correct in paper.FIGURE_8_CLASSIC_CORRECT),
            PAPER_LABEL,
        )
        note = "The optimum was chosen on the test folds shown, as in the paper."
        if numbers.missing:
            note += " This run is not complete."
        points = "; ".join(
            f"+{group.size:,}: {format_number(numbers.values[f'{group.key}.accuracy'], 'pct')} %" for group in shown
        )
        add(
            "accuracy",
            accuracy_figure(
                [_group_accuracy(group, numbers) for group in shown],
                kind=kind,
                optimum=numbers.optimum,
                paper=curve,
                note=note,
            ),
            f"Test accuracy against augmented samples per fold. {points}. The paper's curve, on other data, is a grey "
            "reference.",
            "Accuracy pooled over the test folds with its Wilson 95 % interval, single folds"
            + (" and seeds" if len(numbers.seeds) > 1 else "")
            + " beside it. Folds share training lesions, so their spread is no confidence interval. The grey curve is "
            "the paper's, measured on its private CT data: compare shapes, not levels.",
        )
        panels = [_panel(group, numbers) for group in _headline(numbers)]
        reference = _paper_panel(numbers.classes)
        add(
            "confusion",
            confusion_figure([*panels, reference], kind=kind),
            "Confusion matrices: "
            + ", ".join(panel.title for panel in panels)
            + "; the numbers are in the tables below. "
            "In grey the paper's, on other data.",
            "Confusion matrices pooled over the test folds: counts and share of the row; rows true, columns predicted. "
            "The optimum sees the test folds. In grey the paper's Table I, on its private CT data.",
        )
        if len(shown) > 2:
            add(
                "confusion_all",
                confusion_figure([_panel(group, numbers) for group in shown], kind=kind),
                "Confusion matrices of every group; the numbers are in report/tables/confusion.csv.",
                "Confusion matrices of every group, as above.",
            )
    curves, unit = _learning_curves(results)
    if curves:
        add(
            "learning",
            learning_figure(curves, kind=kind, unit=unit),
            f"Training loss and training accuracy against {unit}s for groups "
            + ", ".join(f"+{size:,}" for size in sorted(curves)),
            f"Training loss and accuracy of every epoch, against {unit}s: mean over a group's models, band from the "
            "lowest to the highest. Running values with dropout active; not test values.",
        )
    return figures


def _data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def _group_accuracy(group: Group, numbers: ReportNumbers) -> GroupAccuracy:
    def value(key: str) -> float:
        found = numbers.values[f"{group.key}.{key}"]
        return float("nan") if found is None else float(found)

    return GroupAccuracy(
        size=group.size,
        accuracy=value("accuracy"),
        interval=(value("accuracy.low"), value("accuracy.high")),
        seeds=tuple(value(f"seed.{seed}.accuracy") for seed in group.seeds),
        folds=tuple(
            tuple(value(f"seed.{seed}.fold.{split}.accuracy") for split in numbers.splits) for seed in group.seeds
        ),
    )


def _panel(group: Group, numbers: ReportNumbers) -> ConfusionPanel:
    values = numbers.values
    counts = [
        [values[f"{group.key}.confusion.{key_part(true)}.{key_part(guess)}"] for guess in numbers.classes]
        for true in numbers.classes
    ]
    share = (
        f"{format_number(values[f'{group.key}.correct'], 'count')}/{format_number(values[f'{group.key}.total'], 'int')}"
    )
    name = "without augmentation (+0)" if group.size == 0 else f"+{group.size:,} per fold"
    mark = "optimum, " if group.size == numbers.optimum else ""
    return ConfusionPanel(f"{name}\n{mark}{share} correct", np.array(counts, dtype=np.float64), numbers.classes)


def _paper_panel(classes: tuple[str, ...]) -> ConfusionPanel:
    """The paper's Table I, in the order of this run's classes where they are the same ones."""
    order = [paper.CLASSES.index(name) for name in classes] if set(classes) == set(paper.CLASSES) else [0, 1, 2]
    counts = np.array(paper.TABLE_I_CONFUSION)[np.ix_(order, order)]
    names = tuple(paper.CLASSES[i] for i in order)
    return ConfusionPanel("paper, CNN-AUG, Table I\n(private CT data)", counts, names, reference=True)


def _learning_curves(results: RunResults) -> tuple[dict[int, list[LearningCurve]], str]:
    """Histories by group; against steps where every model takes equally many of them, against epochs otherwise."""
    by_steps = results.config.classifier.steps is not None
    curves: dict[int, list[LearningCurve]] = {}
    for task in results.tasks:
        try:
            text = (results.path / "models" / task.name / "history.csv").read_text(encoding="utf-8")
            rows = [
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


def _write_tables(numbers: ReportNumbers, folder: Path, kind: str) -> None:
    """The report's tables as CSV: fractions as fractions, every digit; each row says what data it is of."""
    values = numbers.values

    def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        _write_csv(path, [*header, "data"], ([*row, banner(kind)] for row in rows))

    group_names = (
        "correct", "total", "accuracy", "accuracy.low", "accuracy.high",
        "weighted_sensitivity", "weighted_specificity", "macro_sensitivity", "macro_specificity",
    )  # fmt: skip
    spans = ("added_per_fold", "per_lesion", "train_images", "steps", "epochs")
    rows: list[list[Any]] = []
    for group in numbers.groups:
        paper_correct = values.get(f"paper.classic.{group.size}.correct")
        rows.append(
            [
                group.size, len(group.tasks), group.expected, group.size == numbers.optimum,
                *(values.get(f"{group.key}.{name}.{end}") for name in spans for end in ("min", "max")),
                *(values.get(f"{group.key}.{name}") for name in group_names),
                paper_correct, None if paper_correct is None else paper.NUM_LESIONS,
            ]
        )  # fmt: skip
    header = [
        "group_size", "models", "models_expected", "optimum_on_test_folds",
        *(f"{name}_{end}" for name in spans for end in ("min", "max")),
        *(name.replace(".", "_") for name in group_names), "paper_correct_private_data", "paper_total",
    ]  # fmt: skip
    write(folder / "groups.csv", header, rows)
    shown = numbers.shown_groups
    write(
        folder / "folds.csv",
        ["group_size", "seed", "fold", "correct", "total", "accuracy"],
        (
            [task.group_size, task.seed, task.split]
            + [
                values[f"{group.key}.seed.{task.seed}.fold.{task.split}.{name}"]
                for name in ("correct", "total", "accuracy")
            ]
            for group in numbers.groups
            for task in group.tasks
        ),
    )
    write(
        folder / "confusion.csv",
        ["group_size", "true", "predicted", "count_mean_over_seeds", "share_of_true"],
        (
            [group.size, true, guess]
            + [
                values[f"{group.key}.{name}.{key_part(true)}.{key_part(guess)}"]
                for name in ("confusion", "confusion_share")
            ]
            for group in shown
            for true in numbers.classes
            for guess in numbers.classes
        ),
    )
    write(
        folder / "measures.csv",
        ["group_size", "class", "measure", "value", "wilson_low", "wilson_high"],
        (
            [group.size, name, measure]
            + [values[f"{group.key}.{measure}.{key_part(name)}{end}"] for end in ("", ".low", ".high")]
            for group in shown
            for name in numbers.classes
            for measure in ("sensitivity", "specificity")
        ),
    )
    task_names = ("num_train_lesions", "num_train_images", "epochs", "steps", "seconds", "correct", "total")
    write(
        folder / "models.csv",
        ["model", "group_size", "split", "seed", *task_names],
        (
            [
                task.name,
                task.group_size,
                task.split,
                task.seed,
                *(values[f"task.{task.name}.{name}"] for name in task_names),
            ]
            for task in numbers.tasks
        ),
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    write_text_atomic(path, stream.getvalue())
