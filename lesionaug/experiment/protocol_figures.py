"""The figures of the whole protocol: Fig. 8 with both curves, Fig. 9, Fig. 6, and every method beside the others.

Every function takes plain numbers and returns a matplotlib figure; equal numbers give equal bytes.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, Transform

from lesionaug.augment.sheet import banner, drawing_style
from lesionaug.experiment.figures import BLUE, GREEN, GREY, INK, MARKERS, ORANGE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "EmbeddingPanel",
    "ForestRow",
    "GroupAccuracy",
    "PaperCurve",
    "embedding_figure",
    "figure_pdf",
    "forest_figure",
    "protocol_figure",
    "synthetic_grid_figure",
]

Images = npt.NDArray[Any]
PURPLE, SKY = "#CC79A7", "#56B4E9"
ARM_COLOURS, ARM_MARKERS = (VERMILION, GREEN, PURPLE, ORANGE, SKY), ("s", "^", "D", "v", "P")
CLASS_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy of one augmentation group, as fractions.

    Attributes:
        size: Augmented samples per fold that were asked for.
        accuracy: Pooled over the test folds, mean over the seeds.
        interval: Wilson 95 % interval of it.
        seeds: Pooled accuracy of each seed.
        folds: Accuracy of each test fold, one tuple per seed.
    """

    size: int
    accuracy: float
    interval: tuple[float, float]
    seeds: tuple[float, ...]
    folds: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class PaperCurve:
    """The paper's curve: group sizes and accuracies (fractions), and the text that says whose data these are."""

    sizes: tuple[int, ...]
    accuracies: tuple[float, ...]
    label: str


@dataclass(frozen=True)
class EmbeddingPanel:
    """One t-SNE map.

    Attributes:
        title: The model whose features these are.
        points: float [N, 2].
        labels: int [N], indices into `classes`.
        view: int [N]: 0 the lesion itself, above 0 an augmentation of it.
        classes: Names of the classes.
    """

    title: str
    points: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    view: npt.NDArray[Any]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ForestRow:
    """One line of the comparison; accuracies are fractions, NaN where there is none.

    Attributes:
        label: The method, arm or control.
        value: Accuracy pooled over the test folds, mean over the seeds.
        low: Lower end of its Wilson 95 % interval.
        high: Upper end.
        seeds: Pooled accuracy of each seed.
        group: Rows of one group stand together, below its name.
    """

    label: str
    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    group: str


def figure_pdf(figure: Figure) -> bytes:
    """The figure as PDF bytes: no dates, creator or producer, so that equal figures give equal bytes."""
    stream = io.BytesIO()
    with drawing_style():
        FigureCanvasPdf(figure)
        figure.savefig(stream, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return stream.getvalue()


def protocol_figure(
    classic: Sequence[GroupAccuracy],
    synthetic: Mapping[str, Sequence[GroupAccuracy]],
    *,
    kind: str,
    optimum: int | None,
    start: Mapping[str, int] | int | None,
    chosen: Mapping[str, int],
    paper_classic: PaperCurve | None,
    paper_synthetic: PaperCurve | None,
    note: str = "",
) -> Figure:
    """Accuracy against all augmented samples per fold: classic alone, then synthetic on top of the optimum (Fig. 8).

    Args:
        classic: The classic groups.
        synthetic: Arm -> its groups; `size` counts the synthetic samples alone.
        kind: Kind of the data, for the banner.
        optimum: The classic optimum, ringed; without one no arm is drawn.
        start: The classic group that the arms stand on: one for all, or arm -> group; None: the optimum.
        chosen: Arm -> the chosen number of synthetic samples, ringed.
        paper_classic: The paper's classic curve, or None.
        paper_synthetic: The paper's synthetic curve, or None. Its sizes are totals, as the axis counts.
        note: A line below the axes: what the choices saw, what is missing.

    Raises:
        ValueError: `start` is a mapping and does not name an arm that has groups.
    """
    lines = _series(classic, synthetic, optimum, start, chosen)
    papers = [(curve, style) for curve, style in ((paper_classic, "--"), (paper_synthetic, "-.")) if curve]
    ticks = {x for line in lines for x in line.x} | {size for curve, _ in papers for size in curve.sizes}
    threshold = min((tick for tick in ticks if tick > 0), default=1)
    arms = lines[1:]
    with drawing_style():
        figure = Figure(figsize=(7.4, 8.4 if arms else 4.8))
        axes: list[Axes] = figure.subplots(2 if arms else 1, 1, squeeze=False)[:, 0].tolist()
        for axis in axes:
            axis.set_xscale("symlog", linthresh=threshold, linscale=0.6)
            axis.set_ylabel("test accuracy (%)")
            axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
            axis.set_axisbelow(True)
        axes[0].set_xlabel("augmented samples per fold (linear up to the first tick after 0, logarithmic beyond)")
        _ticks(axes[0], sorted(ticks) or [0], {group.size for group in classic})
        if arms:
            axes[0].axvspan(*_enlarge(axes[1], arms), color="#F0F0F0", linewidth=0, zorder=0)
        for axis in axes:
            low, high = axis.get_xlim()
            for curve, style in papers:
                if any(low <= size <= high for size in curve.sizes):
                    axis.plot(
                        curve.sizes, _percent(curve.accuracies), color=GREY, linestyle=style, linewidth=1.2,
                        marker="x" if style == "--" else "+", markersize=5, label=curve.label, zorder=1,
                    )  # fmt: skip
            for line in lines:
                _draw_line(axis, line, enlarged=axis is not axes[0])
            _fit_height(axis, lines, [curve for curve, _ in papers])
        _protocol_legend(figure, axes, lines)
        _say(figure, kind, note)
    return figure


@dataclass(frozen=True)
class _Series:
    """A line of Fig. 8: the classic groups, or those of an arm that stands on `base` classic samples."""

    name: str
    base: int
    groups: tuple[GroupAccuracy, ...]
    ringed: int | None
    stem: GroupAccuracy | None  # the classic group that an arm begins at
    colour: str
    marker: str
    shift_pt: float  # in the enlarged part: beside the true place, so that two arms at one size stay apart

    @property
    def x(self) -> list[int]:
        return [self.base + group.size for group in self.groups]


def _series(
    classic: Sequence[GroupAccuracy],
    synthetic: Mapping[str, Sequence[GroupAccuracy]],
    optimum: int | None,
    start: Mapping[str, int] | int | None,
    chosen: Mapping[str, int],
) -> list[_Series]:
    """The classic line, then the arms that have groups; none of these without an optimum."""
    by_size = {group.size: group for group in sorted(classic, key=lambda group: group.size)}
    found = [_Series("classic", 0, tuple(by_size.values()), optimum, None, BLUE, "o", 0.0)]
    bases = start if isinstance(start, Mapping) else dict.fromkeys(synthetic, optimum if start is None else start)
    for name, groups in synthetic.items():
        if optimum is None or not groups:
            continue
        base = bases.get(name)
        if base is None:
            raise ValueError(f"start does not say which classic group {name} stands on")
        number = len(found) - 1
        ordered = tuple(sorted(groups, key=lambda group: group.size))
        look = ARM_COLOURS[number % len(ARM_COLOURS)], ARM_MARKERS[number % len(ARM_MARKERS)]
        shift = (4.0 + 15.0 * (number // 2)) * (1 if number % 2 else -1)
        found.append(_Series(name, base, ordered, chosen.get(name), by_size.get(base), *look, shift))
    return found


def _draw_line(axis: Axes, line: _Series, *, enlarged: bool) -> None:
    """One line: the classic one with its single values in the overview, an arm with its own where it is enlarged."""
    full = enlarged == (line.shift_pt != 0)
    shift = line.shift_pt if enlarged else 0.0
    place = _shifted(axis, shift)
    points = _percent(group.accuracy for group in line.groups)
    if line.stem and line.groups:
        axis.plot(
            [line.base, line.x[0]], [100 * line.stem.accuracy, points[0]], color=line.colour, linestyle=(0, (3, 2)),
            linewidth=1.2, transform=place, label=f"_join {line.name}", zorder=2,
        )  # fmt: skip
    spread = [  # a bound may miss 100 % by a rounding
        [100 * max(0.0, group.accuracy - group.interval[0]) for group in line.groups],
        [100 * max(0.0, group.interval[1] - group.accuracy) for group in line.groups],
    ]
    axis.errorbar(
        line.x, points, yerr=spread if full or enlarged else None, color=line.colour, marker=line.marker,
        markersize=6 if full else 4.5, linewidth=1.6, capsize=3, elinewidth=1.1, transform=place, label=line.name,
        zorder=3,
    )  # fmt: skip
    if full:
        _draw_singles(axis, line, shift)
    for group in line.groups:
        if group.size == line.ringed:
            axis.plot(
                [line.base + group.size], [100 * group.accuracy], marker="o", markersize=14, markerfacecolor="none",
                markeredgecolor=INK, markeredgewidth=1.4, linestyle="none", transform=place, zorder=4,
                label=f"_chosen {line.name}",
            )  # fmt: skip


def _draw_singles(axis: Axes, line: _Series, shift_pt: float) -> None:
    """Single folds (open) and single seeds (filled) beside the pooled points, away from the other arm."""
    folds = max((len(fold) for group in line.groups for fold in group.folds), default=0)
    if shift_pt:
        outwards = 1 if shift_pt > 0 else -1
        columns, beside = [shift_pt + 8.5 * outwards] * folds, shift_pt + 4.5 * outwards
    else:
        columns, beside = [5.0 + 3.6 * fold for fold in range(folds)], -6.0
    for fold, column in enumerate(columns):  # the classic folds side by side, so that equal folds stay apart
        values = [(x, f[fold]) for x, g in zip(line.x, line.groups, strict=True) for f in g.folds if fold < len(f)]
        _dots(axis, values, column, line.colour, "o", f"_folds {line.name}")
    values = [(x, v) for x, g in zip(line.x, line.groups, strict=True) if len(g.seeds) > 1 for v in g.seeds]
    if values:
        _dots(axis, values, beside, line.colour, "D", f"_seeds {line.name}")


def _dots(
    axis: Axes, values: Sequence[tuple[int, float]], shift_pt: float, colour: str, marker: str, label: str
) -> None:
    axis.plot(
        [x for x, _ in values], _percent(value for _, value in values), marker=marker, linestyle="none",
        markersize=3.2 if marker == "o" else 2.8, color=colour, markerfacecolor="white" if marker == "o" else colour,
        markeredgewidth=0.7, transform=_shifted(axis, shift_pt), label=label, zorder=2,
    )  # fmt: skip


def _shifted(axis: Axes, points: float) -> Transform:
    """Data coordinates, shifted on the page, so that a logarithmic axis shifts all alike."""
    return axis.transData + ScaledTranslation(points / 72, 0, axis.figure.dpi_scale_trans)


def _enlarge(axis: Axes, arms: Sequence[_Series]) -> tuple[float, float]:
    """Limits and ticks of the part where the arms are: all samples, and below them the synthetic ones alone."""
    bases = {arm.base for arm in arms}
    ticks = sorted(bases | {x for arm in arms for x in arm.x})
    scale = axis.transScale
    place = [float(scale.transform((tick, 0))[0]) for tick in ticks]
    pad = 0.05 * (place[-1] - place[0]) or 1.0
    low, high = (float(scale.inverted().transform((x, 0))[0]) for x in (place[0] - pad, place[-1] + pad))
    axis.set_xlim(low, high)
    width_pt = 460 / (place[-1] - place[0] + 2 * pad)
    labels, last = [], -math.inf
    for tick, x in zip(ticks, place, strict=True):
        text = _thousands(tick)
        if len(bases) == 1 and tick not in bases:
            text += f"\n+{_thousands(tick - min(bases))}"
        half = 2.9 * max(len(part) for part in text.split("\n")) + 0.7
        fits = x * width_pt - half >= last
        labels.append(text if fits else "")
        last = x * width_pt + half if fits else last
    axis.set_xticks(ticks, labels)
    axis.minorticks_off()
    below = "; +: the synthetic ones" if len(bases) == 1 else ""
    axis.set_xlabel(f"the shaded part enlarged: augmented samples per fold{below}")
    return low, high


def _fit_height(axis: Axes, lines: Sequence[_Series], papers: Sequence[PaperCurve]) -> None:
    """Limits that hold every value of this axis."""
    low, high = axis.get_xlim()
    points = [(x, v) for curve in papers for x, v in zip(curve.sizes, curve.accuracies, strict=True)]
    for line in lines:
        for x, group in zip(line.x, line.groups, strict=True):
            points += [(x, v) for v in (group.accuracy, *group.interval, *group.seeds, *itertools.chain(*group.folds))]
    _limits(axis.set_ylim, [100 * value for x, value in points if low <= x <= high])


def _limits(set_limits: Callable[[float, float], object], values: Iterable[float]) -> None:
    """Limits in percent around the finite values, at multiples of five within 0 and 102."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 100.0]
    set_limits(max(0, math.floor((min(finite) - 2) / 5) * 5), min(102, math.ceil((max(finite) + 2) / 5) * 5))


def _protocol_legend(figure: Figure, axes: Sequence[Axes], lines: Sequence[_Series]) -> None:
    names = {line.name: f"{line.name} on top of +{line.base:,} classic" for line in lines[1:]}
    names["classic"] = "classic alone (bars: Wilson 95 % intervals)"
    found: dict[str, Any] = {}
    for axis in axes:  # the arms as they are where they are enlarged
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    ours = [line.name for line in lines if line.name in found]
    entries: list[tuple[Any, str]] = [(found[name], names[name]) for name in ours]
    ringed = [line for line in lines if any(group.size == line.ringed for group in line.groups)]
    if ringed:
        ring = Line2D([], [], marker="o", markersize=12, markerfacecolor="none", markeredgecolor=INK, linestyle="none")
        entries.append(
            (ring, "chosen: " + ", ".join(f"+{line.ringed:,}\N{NO-BREAK SPACE}{line.name}" for line in ringed))
        )
    if any(group.folds for line in lines for group in line.groups):
        entries.append((_proxy("o", "white", INK, 3.6), "single test folds"))
    if any(len(group.seeds) > 1 for line in lines for group in line.groups):
        entries.append((_proxy("D", INK, INK, 3.2), "single seeds"))
    entries += [(handle, label) for label, handle in found.items() if label not in ours]
    figure.legend(
        [handle for handle, _ in entries], [_wrap(label, 3.2, 8) for _, label in entries], loc="outside upper left",
        ncols=2, fontsize=8,
    )  # fmt: skip


def _proxy(marker: str, face: str, edge: str, size: float) -> Line2D:
    return Line2D(
        [], [], marker=marker, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=0.7, markersize=size,
        linestyle="none",
    )  # fmt: skip


def _wrap(text: str, inches: float, size_pt: float) -> str:
    """The text in lines that fit a width, each line of the text by itself."""
    width = max(8, int(inches * 72 / (0.61 * size_pt)))
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


def _say(figure: Figure, kind: str, note: str) -> None:
    text = banner(kind) + (f"\n{note}" if note else "")
    figure.supxlabel(_wrap(text, figure.get_figwidth() - 0.3, 8), fontsize=8, weight="bold")


def _percent(fractions: Any) -> list[float]:
    return [100.0 * float(fraction) for fraction in fractions]


def _ticks(axis: Axes, ticks: Sequence[int], ours: set[int]) -> None:
    """A tick at every group; labels where they fit, our groups first."""
    axis.set_xlim(-0.12 * min((t for t in ticks if t > 0), default=1), max(ticks, default=1) * 1.18 or 1)
    transform = axis.transScale
    place = {t: transform.transform((t, 0))[0] for t in ticks}
    width = max(place.values(), default=1.0) - min(place.values(), default=0.0) or 1.0
    labelled: list[int] = []
    for tick in sorted(ticks, key=lambda t: (t not in ours, t)):
        if all(abs(place[tick] - place[other]) / width > 0.05 for other in labelled):
            labelled.append(tick)
    axis.set_xticks(ticks, [_thousands(t) if t in labelled else "" for t in ticks])
    axis.minorticks_off()


def _thousands(size: int) -> str:
    """500, 1k, 7.5k, 15k: short enough for a logarithmic axis."""
    return f"{size / 1000:g}k" if size >= 1000 and size % 100 == 0 else str(size)


def embedding_figure(rows: Sequence[tuple[str, Sequence[EmbeddingPanel]]], *, kind: str, note: str = "") -> Figure:
    """Maps of the classifiers' features (Fig. 9): a row per split, a column per model.

    A t-SNE map has no unit and no direction: every panel is a square around its own points, without ticks.

    Args:
        rows: (name of the split, its panels), the panels in the same order of models in each.
        kind: Kind of the data, for the banner.
        note: A line below: which lesions these are, what distances mean.
    """
    columns = max((len(panels) for _, panels in rows), default=0) or 1
    names = list(dict.fromkeys(name for _, panels in rows for panel in panels for name in panel.classes))
    with drawing_style():
        figure = Figure(figsize=(max(4.2, 0.4 + 3.3 * columns), 4.2))
        axes = figure.subplots(max(1, len(rows)), columns, squeeze=False)
        for axis in axes.ravel():
            axis.set(xticks=[], yticks=[])
            axis.set_box_aspect(1)
            axis.spines[:].set(visible=False)
        for (split, panels), line in zip(rows, axes, strict=False):
            line[0].set_ylabel(_wrap(split, 2.8, 9), weight="bold")
            for panel, axis in zip(panels, line, strict=False):
                _draw_embedding(axis, panel, names)
        handles = [_proxy(*_class_look(number), INK, 6.0) for number in range(len(names))]
        if any(np.any(np.asarray(panel.view) > 0) for _, panels in rows for panel in panels):
            handles += [_proxy("o", "white", INK, 6.0), _proxy("o", "#BBBBBB", "none", 3.2)]
            names = [*names, "dark edge: the lesion itself", "small and pale: augmentations of it"]
        width = figure.get_figwidth()
        texts = [_wrap(name, width - 0.8, 8) for name in names]
        longest = max((len(part) for text in texts for part in text.split("\n")), default=1)
        columns = max(1, min(len(texts), int(72 * width / (4.9 * longest + 32))))
        figure.legend(handles, texts, loc="outside upper center", ncols=columns, fontsize=8, columnspacing=1.2)
        _say(figure, kind, note)
        beside = sum(text.count("\n") + 1 for text in texts) / columns + figure.get_supxlabel().count("\n")
        figure.set_figheight(0.9 + 0.16 * beside + 3.3 * max(1, len(rows)))
    return figure


def _class_look(number: int) -> tuple[str, str]:
    return MARKERS[number % len(MARKERS)], CLASS_COLOURS[number % len(CLASS_COLOURS)]


def _draw_embedding(axis: Axes, panel: EmbeddingPanel, names: Sequence[str]) -> None:
    """Augmentations first, so that no lesion lies below them."""
    points = np.asarray(panel.points, dtype=np.float64).reshape(-1, 2)
    labels, view = np.asarray(panel.labels), np.asarray(panel.view)
    for original in (False, True):
        for label, name in enumerate(panel.classes):
            drawn = points[(labels == label) & ((view == 0) == original)]
            marker, colour = _class_look(names.index(name))
            if original:
                look: dict[str, Any] = {"s": 34, "edgecolors": INK, "linewidths": 0.8, "zorder": 3}
            else:  # thousands of them: smaller and paler, and one picture inside an SVG or PDF
                few = min(1.0, 1500 / max(1, len(points)))
                look = {"s": 3 + 6 * few, "linewidths": 0, "alpha": 0.35 * few**0.5, "zorder": 2}
                look["rasterized"] = len(points) > 1500
            axis.scatter(drawn[:, 0], drawn[:, 1], color=colour, marker=marker, label=f"{name}, {original=}", **look)
    if len(points):
        centre = (points.min(axis=0) + points.max(axis=0)) / 2
        half = 1.06 * float(np.max(points.max(axis=0) - centre)) or 1.0
        axis.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half))
    axis.set_title(_wrap(panel.title, 2.9, 9), fontsize=9)
    axis.spines[:].set(visible=True, color="#BBBBBB")


def forest_figure(
    rows: Sequence[ForestRow],
    *,
    kind: str,
    reference: float | None = None,
    reference_label: str = "CNN-AUG",
    note: str = "",
) -> Figure:
    """The accuracy of every arm, method and control below each other, with its interval and its seeds.

    Args:
        rows: The rows from top to bottom; those of a group stand below its name.
        kind: Kind of the data, for the banner.
        reference: Accuracy that the others are compared with, a dashed line; None draws none.
        reference_label: Its name.
        note: A line below.
    """
    groups = list(dict.fromkeys(row.group for row in rows))
    with drawing_style():
        figure = Figure(figsize=(7.4, 1.0))
        axis = figure.subplots()
        y, places, labels, heads = 0.0, list[float](), list[str](), set[int]()
        for number, row in enumerate(rows):
            if number == 0 or row.group != rows[number - 1].group:
                if number:
                    axis.axhline(y - 0.45, color="#CCCCCC", linewidth=0.7, zorder=0)
                if row.group:
                    labels.append(_wrap(row.group, 2.3, 9))
                    extra = 0.25 * labels[-1].count("\n")
                    heads.add(len(places))
                    places.append(y + extra)
                    y += 0.95 + 2 * extra
            text = _wrap(row.label, 2.3, 9)
            extra = 0.25 * text.count("\n")  # half of what the lines beyond the first need
            places.append(y + extra)
            labels.append(text)
            _draw_forest_row(axis, row, y + extra, groups.index(row.group))
            y += 1.0 + 2 * extra
        axis.set_ylim(y - 0.4, -0.6)
        axis.set_yticks(places, labels)
        for position, label in enumerate(axis.get_yticklabels()):
            label.set_fontweight("bold" if position in heads else "normal")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        known = [value for row in rows for value in (row.value, row.low, row.high, *row.seeds)]
        _limits(axis.set_xlim, [100 * value for value in (*known, *(() if reference is None else (reference,)))])
        axis.grid(axis="x", color="#E4E4E4", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_xlabel("test accuracy (%)")
        axis.text(1.02, 1.01, "%, with interval", transform=axis.transAxes, fontsize=8, va="bottom")
        handles: list[Any] = [Line2D([], [], color=INK, marker="o", markersize=6, linewidth=1.4)]
        texts = ["pooled over test folds, with Wilson 95 % interval"]
        if any(len(row.seeds) > 1 for row in rows):
            handles.append(_proxy("D", "white", INK, 3.2))
            texts.append("single seeds")
        if reference is not None:
            handles.append(
                axis.axvline(100 * reference, color=INK, linestyle="--", linewidth=1.0, zorder=1, label="reference")
            )
            texts.append(_wrap(f"{reference_label}: {100 * reference:.1f} %", 3.0, 8))
        figure.legend(handles, texts, loc="outside upper left", ncols=3, fontsize=8, columnspacing=1.2)
        _say(figure, kind, note)
        figure.set_figheight(1.4 + 0.32 * max(2.0, y) + 0.15 * figure.get_supxlabel().count("\n"))
    return figure


def _draw_forest_row(axis: Axes, row: ForestRow, y: float, group: int) -> None:
    marker, colour = _class_look(group)
    beside: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "fontsize": 8, "va": "center"}
    if not math.isfinite(row.value):
        axis.text(1.02, y, "no result", color="#555555", **beside)
        return
    low, value, high = _percent((row.low, row.value, row.high))
    axis.plot([low, high], [y, y], color=colour, linewidth=1.6, marker="|", markersize=7, zorder=2)
    axis.plot([value], [y], color=colour, marker=marker, markersize=6.5, linestyle="none", zorder=4, label=row.label)
    if len(row.seeds) > 1:
        axis.plot(
            _percent(row.seeds), [y + 0.3] * len(row.seeds), color=colour, marker="D", markersize=3.2,
            markerfacecolor="white", markeredgewidth=0.7, linestyle="none", zorder=3, label=f"_seeds {row.label}",
        )  # fmt: skip
    axis.text(1.02, y, f"{value:.1f} ({low:.1f} to {high:.1f})", **beside)


def synthetic_grid_figure(
    real: Mapping[str, Images], synthetic: Mapping[str, Mapping[str, Images]], *, columns: int = 8, kind: str, note: str
) -> Figure:
    """Real ROIs and those of every GAN below each other, class by class (Fig. 6); the first of those handed over.

    Args:
        real: Class -> [N, S, S] in (0, 1).
        synthetic: GAN -> class -> [N, S, S] in (0, 1). A class it does not have is said to be missing.
        columns: Images per row.
        kind: Kind of the data, for the banner.
        note: How the images were drawn.

    Raises:
        ValueError: A GAN has a class that `real` does not have.
    """
    for arm, found in synthetic.items():
        if unknown := set(found) - set(real):
            raise ValueError(f"{arm} has classes that the real images do not have: {', '.join(sorted(unknown))}")
    rows = 1 + len(synthetic)
    with drawing_style():
        figure = Figure(figsize=(1.1 + 0.92 * columns, 0.7 + max(1, len(real)) * (0.3 + 0.97 * rows)))
        axes = figure.subplots(max(1, len(real)) * rows, 1, squeeze=False)[:, 0]
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for band, (name, images) in enumerate(real.items()):
            lines = axes[band * rows : (band + 1) * rows]
            lines[0].set_title(_wrap(name, figure.get_figwidth() - 1.2, 9), fontsize=9, loc="left", weight="bold")
            _draw_row(lines[0], images, columns, "phantom\nlesions" if kind == "phantom" else "real", INK)
            for number, (axis, (arm, found)) in enumerate(zip(lines[1:], synthetic.items(), strict=True)):
                colour = ARM_COLOURS[number % len(ARM_COLOURS)]
                _draw_row(axis, found.get(name), columns, f"synthetic:\n{_wrap(arm, 0.9, 8)}", colour)
        _say(figure, kind, note)
    return figure


def _draw_row(axis: Axes, images: Images | None, columns: int, label: str, colour: str) -> None:
    """Images edge to edge with white between them, white where there are no more; 0 black, 1 white."""
    axis.set_anchor("W")  # at the left of its place, where the layout has made room for the label
    axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8, color=colour, weight="bold")
    drawn = np.zeros((0, 64, 64)) if images is None else np.asarray(images, dtype=np.float64)[:columns]
    count, height, width = drawn.shape
    gap = max(1, width // 16)
    picture = np.ones((height, columns * (width + gap) - gap))
    for column, image in enumerate(drawn):
        picture[:, column * (width + gap) : column * (width + gap) + width] = image
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if not count:
        axis.text(0.01, 0.5, "none of this class", transform=axis.transAxes, va="center", fontsize=8, color="#555555")
