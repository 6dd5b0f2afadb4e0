"""Figures of an analysed reader study, drawn from its numbers alone; equal numbers give equal bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lesionaug.augment.sheet import banner, drawing_style
from lesionaug.data.files import write_bytes_atomic
from lesionaug.experiment.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    VERMILION,
    ConfusionPanel,
    confusion_figure,
    figure_png,
    figure_svg,
)
from lesionaug.experiment.protocol_figures import PURPLE, SKY, figure_pdf

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Analysis = Mapping[str, Any]
READER_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
REAL_COLOUR, SYNTHETIC_COLOUR = BLUE, ORANGE


def write_figures(analysis: Analysis, folder: Path) -> None:
    """Draw every figure that the answers allow and write it as SVG, PNG and PDF."""
    drawings: list[tuple[str, Callable[[Analysis], Figure | None]]] = [
        ("study_forest", forest_figure),
        ("study_ratings", ratings_figure),
        ("study_confusion", class_figure),
        ("study_kappa", kappa_figure),
        ("study_times", times_figure),
    ]
    for name, draw in drawings:
        figure = draw(analysis)
        if figure is None:
            continue
        write_bytes_atomic(folder / f"{name}.svg", figure_svg(figure).encode())
        write_bytes_atomic(folder / f"{name}.png", figure_png(figure, dpi=200))
        write_bytes_atomic(folder / f"{name}.pdf", figure_pdf(figure))


def forest_figure(analysis: Analysis) -> Figure | None:
    """Accuracy beside its baseline, balanced accuracy and area under the curve of every reader and their mean."""
    origin = {n: reader["origin"] for n, reader in _answered(analysis, "origin").items()}
    if not origin:
        return None
    labels = [f"reader {n}" for n in origin]
    pooled = analysis["pooled"]["origin"]
    mean = pooled if pooled["num_readers"] > 1 else None
    if mean is not None:
        labels.append(f"mean of {mean['num_readers']}")
    columns: list[tuple[str, str, float, float | None]] = [
        ("accuracy", "accuracy (%), dashed:\nalways “real”", 100.0, None),
        ("balanced_accuracy", "balanced accuracy (%)", 100.0, 50.0),
        ("auc", "area under the ROC curve", 1.0, 0.5),
    ]
    with drawing_style():
        figure = Figure(figsize=(7.4, 1.5 + 0.36 * len(labels)))
        axes = figure.subplots(1, 3, sharey=True)
        for axis, (name, title, scale, chance) in zip(axes, columns, strict=True):
            rows = [one[name] for one in origin.values()] + ([mean.get(name)] if mean is not None else [])
            for y, row in enumerate(rows):
                is_mean = mean is not None and y == len(rows) - 1
                _interval(axis, y, row, scale, INK if is_mean else BLUE, "D" if is_mean else "o")
            if chance is None:
                for y, one in enumerate(origin.values()):
                    x = scale * one["always_real"]
                    axis.plot([x, x], [y - 0.4, y + 0.4], color=VERMILION, linestyle="--", linewidth=1.6, zorder=4)
            else:
                axis.axvline(chance, color=VERMILION, linestyle="--", linewidth=1.4, zorder=1)
                axis.update_datalim([(chance, 0.0)])
            axis.margins(x=0.08)
            axis.set_xlim(*axis.get_xlim())
            axis.set_xlabel(title)
            axis.grid(axis="x", color="#E4E4E4", linewidth=0.6)
            axis.set_axisbelow(True)
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
        axes[0].set_yticks(range(len(labels)), labels)
        axes[0].set_ylim(len(labels) - 0.4, -0.6)
        handles = [
            Line2D([], [], color=BLUE, marker="o", linewidth=1.6),
            Line2D([], [], color=VERMILION, linestyle="--", linewidth=1.4),
        ]
        figure.legend(
            handles, ["with 95 % interval", "baseline: the same answer to every image"], loc="outside upper left",
            ncols=2, fontsize=8,
        )  # fmt: skip
        _say(figure, analysis)
    return figure


def _interval(axis: Axes, y: int, row: Mapping[str, Any] | None, scale: float, colour: str, marker: str) -> None:
    if row is None or row["value"] is None:
        return
    if row["low"] is not None:
        axis.plot(
            [scale * row["low"], scale * row["high"]], [y, y], color=colour, linewidth=1.6, marker="|", markersize=7
        )
    axis.plot([scale * row["value"]], [y], color=colour, marker=marker, markersize=6, linestyle="none", zorder=3)


def ratings_figure(analysis: Analysis) -> Figure | None:
    """ROC curves of all readers, and each one's ratings of real and of synthetic images."""
    origin = {
        n: reader["origin"]
        for n, reader in _answered(analysis, "origin").items()
        if sum(reader["origin"]["ratings_real"]) and sum(reader["origin"]["ratings_synthetic"])
    }
    if not origin:
        return None
    two_keys = analysis["design"]["scale"] == "two-key"
    levels = ["synthetic", "real"] if two_keys else ["1", "2", "3", "4", "5", "6"]
    columns = min(4, len(origin))
    rows = math.ceil(len(origin) / columns)
    with drawing_style():
        figure = Figure(figsize=(7.4, 4.6 + 2.1 * rows))
        above, below = figure.subfigures(2, 1, height_ratios=[4.0, 0.35 + 2.1 * rows], squeeze=False)[:, 0]
        curve = above.subplots()
        curve.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.0)
        for number, (name, one) in enumerate(origin.items()):
            false, true = (_falling(one[side]) for side in ("ratings_synthetic", "ratings_real"))
            colour, marker = READER_COLOURS[number % len(READER_COLOURS)], MARKERS[number % len(MARKERS)]
            area = "no curve" if one["auc"] is None else f"area {one['auc']['value']:.2f}"
            curve.plot(
                false, true, color=colour, marker=marker, markersize=5, linewidth=1.5, label=f"reader {name}: {area}"
            )
            turn = len(levels) // 2  # ratings from here on mean "real"
            curve.plot(
                [false[turn]], [true[turn]], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=colour,
                linestyle="none",
            )  # fmt: skip
        curve.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        curve.set_box_aspect(1)
        curve.set_xlabel("synthetic images called real (1 - specificity)")
        curve.set_ylabel("real images called real (sensitivity)")
        curve.legend(loc="center left", bbox_to_anchor=(1.03, 0.5), fontsize=8, title="ring: the answer turns to real")
        curve.grid(color="#E4E4E4", linewidth=0.6)
        axes = below.subplots(rows, columns, squeeze=False, sharey=True)
        for axis in axes.ravel()[len(origin) :]:
            axis.set_axis_off()
        for (name, one), axis in zip(origin.items(), axes.ravel(), strict=False):
            for shift, side, colour, hatch in (
                (-0.2, "ratings_real", REAL_COLOUR, ""),
                (0.2, "ratings_synthetic", SYNTHETIC_COLOUR, "///"),
            ):
                counts = np.array(one[side], dtype=np.float64)
                axis.bar(
                    np.arange(len(levels)) + shift, 100 * counts / counts.sum(), 0.4, color=colour, hatch=hatch,
                    edgecolor="white", linewidth=0.4,
                )  # fmt: skip
            axis.set_xticks(range(len(levels)), levels)
            axis.set_title(f"reader {name}", fontsize=9)
        for line in axes:
            line[0].set_ylabel("share of images (%)")
        if not two_keys:
            below.supxlabel("rating: 1 surely synthetic ... 6 surely real", fontsize=9)
        below.legend(
            [Patch(facecolor=REAL_COLOUR), Patch(facecolor=SYNTHETIC_COLOUR, hatch="///", edgecolor="white")],
            ["real images", "synthetic images"], loc="outside upper left", ncols=2, fontsize=8,
        )  # fmt: skip
        _say(figure, analysis)
    return figure


def _falling(counts: Sequence[int]) -> list[float]:
    """Share of images rated at least as high as each level, from "all" to "none"."""
    values = np.array(counts, dtype=np.float64)
    at_least = values[::-1].cumsum()[::-1] / values.sum()
    return [*at_least.tolist(), 0.0]


def class_figure(analysis: Analysis) -> Figure | None:
    """A row for each reader: class confusion on real images, and on synthetic ones."""
    panels = []
    for n, reader in _answered(analysis, "class").items():
        for name in ("real", "synthetic"):
            one = reader["class"]
            right = f"{one[name]['count']}/{one[name]['total']} right"
            title = f"reader {n}, {name} images\n{right}"
            panels.append(
                ConfusionPanel(title, np.array(one[f"confusion_{name}"]), tuple(analysis["design"]["classes"]))
            )
    if not panels:
        return None
    columns = 2 if len(panels) <= 6 else 4
    note = "A synthetic image's true class is that which its GAN was asked for."
    return confusion_figure(panels, kind=analysis["kind"], note=note, columns=columns, predicted="class that was said")


def kappa_figure(analysis: Analysis) -> Figure | None:
    """Kappa of every pair of readers, and of each reader's repeats on the diagonal; a panel for each task."""
    numbers = list(analysis["readers"])
    tasks = analysis["design"]["tasks"]
    titles = {"class": "class of the lesion", "origin": "real or synthetic"}
    if not numbers:
        return None
    with drawing_style():
        side = max(2.6, 0.85 * len(numbers) + 1.0)
        figure = Figure(figsize=(max(5.0, len(tasks) * side + 0.4), side + 0.7))
        axes = figure.subplots(1, len(tasks), squeeze=False)[0]
        for axis, task in zip(axes, tasks, strict=True):
            colours = matplotlib.colormaps["Blues"]
            shown = np.full((len(numbers), len(numbers), 4), 0.93)
            for i, one in enumerate(numbers):
                for j, other in enumerate(numbers[: i + 1]):
                    cell = (
                        analysis["readers"][one][task]["repeats"]
                        if i == j
                        else analysis["pairs"][f"{other}-{one}"][task]
                    )
                    kappa, total = cell["kappa"], cell["agreed"]["total"]
                    text, ink = f"n/a\nn = {total}", INK
                    if kappa is not None:
                        depth = max(0.0, kappa["value"])
                        shown[i, j] = colours(depth / 1.25)
                        ink = "white" if depth > 0.75 else INK
                        between = "" if kappa["low"] is None else f"{kappa['low']:.2f} to {kappa['high']:.2f}\n"
                        text = f"{kappa['value']:.2f}\n{between}n = {total}"
                    axis.text(j, i, text, ha="center", va="center", fontsize=7.5, color=ink)
                shown[i, i + 1 :] = 1.0
            axis.imshow(shown)
            for edge in range(1, len(numbers)):
                axis.axhline(edge - 0.5, color="white", linewidth=1.5)
                axis.axvline(edge - 0.5, color="white", linewidth=1.5)
            names = [f"reader {n}" for n in numbers]
            axis.set_xticks(range(len(names)), names, fontsize=8, rotation=0 if len(names) < 5 else 45)
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.tick_params(length=0)
            axis.spines[:].set(visible=False)
            axis.set_title(titles[task], fontsize=9)
        figure.suptitle("Cohen's kappa: with each other; on the diagonal with oneself", fontsize=9)
        _say(figure, analysis)
    return figure


def times_figure(analysis: Analysis) -> Figure | None:
    """Median and quartiles of the response times by answer, a panel for each task."""
    design = analysis["design"]
    tasks = [task for task in design["tasks"] if _answered(analysis, task)]
    if not tasks:
        return None
    origin = (
        ["synthetic", "real"] if design["scale"] == "two-key" else ["1 (synthetic)", "2", "3", "4", "5", "6 (real)"]
    )
    answers = {"class": [_short(name) for name in design["classes"]], "origin": origin}
    numbers = list(analysis["readers"])
    with drawing_style():
        longest = max(len(answers[task]) for task in tasks)
        figure = Figure(figsize=(7.4, 1.6 + 0.12 * longest * (1 + len(numbers))))
        axes = figure.subplots(1, len(tasks), squeeze=False)[0]
        for axis, task in zip(axes, tasks, strict=True):
            for number, n in enumerate(numbers):
                colour, marker = READER_COLOURS[number % len(READER_COLOURS)], MARKERS[number % len(MARKERS)]
                for y, one in enumerate(analysis["readers"][n]["times"][task]["by_answer"]):
                    if one["median"] is None:
                        continue
                    place = y + (number - (len(numbers) - 1) / 2) * 0.8 / len(numbers)
                    axis.plot(
                        [one["lower_quartile"], one["upper_quartile"]], [place, place], color=colour, linewidth=1.4
                    )
                    axis.plot([one["median"]], [place], color=colour, marker=marker, markersize=5, linestyle="none")
            axis.set_yticks(range(len(answers[task])), answers[task])
            axis.set_ylim(len(answers[task]) - 0.5, -0.5)
            axis.set_xlim(left=0)
            axis.set_xlabel("seconds, pauses taken out")
            axis.set_title({"class": "class that was said", "origin": "real or synthetic"}[task], fontsize=9)
            axis.grid(axis="x", color="#E4E4E4", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
        figure.legend(
            [
                Line2D([], [], color=READER_COLOURS[k % len(READER_COLOURS)], marker=MARKERS[k % len(MARKERS)])
                for k in range(len(numbers))
            ],
            [f"reader {n}" for n in numbers], loc="outside upper left", ncols=6, fontsize=8,
            title="median and quartiles", title_fontsize=8,
        )  # fmt: skip
        _say(figure, analysis)
    return figure


def _answered(analysis: Analysis, task: str) -> dict[str, Any]:
    """Readers with answers to a task that count."""
    return {n: reader for n, reader in analysis["readers"].items() if task in reader and reader[task]["items"]}


def _short(name: str) -> str:
    """A class name that fits an axis, as text and never as a formula."""
    short = name if len(name) <= 16 else name[:15] + "…"
    return short.replace("$", r"\$")


def _say(figure: Figure, analysis: Analysis) -> None:
    open_trials = any(reader["trials"]["count"] < reader["trials"]["total"] for reader in analysis["readers"].values())
    text = banner(analysis["kind"]) + ("\nNot every reader has finished." if open_trials else "")
    figure.supxlabel(text, fontsize=8, weight="bold")
