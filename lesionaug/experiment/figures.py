"""Figures of the report: confusion matrices, ROIs, learning curves.

Every function takes plain numbers and returns a matplotlib figure; equal numbers give equal bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lesionaug.augment.sheet import RING_COLOUR, banner, drawing_style, figure_png, random_lesions, show_window
from lesionaug.data.margins import mask_edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lesionaug.data.rois import RoiBatch

__all__ = [
    "ConfusionPanel",
    "LearningCurve",
    "confusion_figure",
    "figure_png",
    "figure_svg",
    "learning_figure",
    "roi_figure",
]

# Okabe and Ito's colours: told apart with every kind of colour vision; each has its own marker for print in grey.
BLUE, ORANGE, GREEN, VERMILION, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C", "#222222"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


@dataclass(frozen=True)
class ConfusionPanel:
    """One confusion matrix: counts [C, C] (rows true, columns predicted), its title; `reference` marks the paper's."""

    title: str
    counts: npt.NDArray[Any]
    classes: tuple[str, ...]
    reference: bool = False


@dataclass(frozen=True)
class LearningCurve:
    """Training history of one model: x (epochs or steps), mean loss and training accuracy (fractions) at each."""

    x: Sequence[float]
    loss: Sequence[float]
    accuracy: Sequence[float]


def figure_svg(figure: Figure) -> str:
    """The figure as SVG text with glyphs as paths, without date and creator."""
    stream = io.StringIO()
    with drawing_style():
        FigureCanvasAgg(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return stream.getvalue()


def confusion_figure(
    panels: Sequence[ConfusionPanel],
    *,
    kind: str,
    note: str = "",
    columns: int | None = None,
    predicted: str = "predicted",
) -> Figure:
    """Confusion matrices side by side: counts and row percentages, rows true, columns predicted.

    Args:
        panels: The matrices; those of the paper are drawn in grey.
        kind: Kind of the data, for the banner.
        note: A line below.
        columns: Matrices in a row; None chooses.
        predicted: What the columns are.
    """
    with drawing_style():
        if columns is None:
            columns = 2 if len(panels) == 4 else min(3, max(1, len(panels)))
        rows = max(1, math.ceil(len(panels) / columns))
        cells = max((len(panel.classes) for panel in panels), default=3)
        side = max(2.9, 0.75 * cells + 0.9)
        figure = Figure(figsize=(columns * side, rows * (side + 0.35) + 0.3))
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for panel, axis in zip(panels, axes, strict=False):
            _draw_confusion(axis, panel, predicted)
        figure.supxlabel(banner(kind) + (f"\n{note}" if note else ""), fontsize=8, weight="bold")
    return figure


def _draw_confusion(axis: Axes, panel: ConfusionPanel, predicted: str) -> None:
    counts = np.asarray(panel.counts, dtype=np.float64)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    colours = matplotlib.colormaps["Greys" if panel.reference else "Blues"](share / 1.25)
    axis.imshow(colours)
    for i, j in np.ndindex(*counts.shape):
        axis.text(
            j, i, f"{_count(float(counts[i, j]))}\n{100 * share[i, j]:.1f} %", ha="center", va="center", fontsize=8.5,
            color=_readable(colours[i, j]),
        )  # fmt: skip
    n = len(panel.classes)
    short = [_short(name) for name in panel.classes]
    axis.set_xticks(range(n), short, rotation=0 if n <= 3 else 45, fontsize=8)
    axis.set_yticks(range(n), short, rotation=90, va="center", fontsize=8)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="minor", length=0)
    axis.set(xlabel=predicted, ylabel="true")
    axis.set_title(panel.title, fontsize=9, color="#555555" if panel.reference else "black")


def _readable(background: npt.NDArray[np.float64]) -> str:
    """White or ink, whichever has the higher contrast on an RGB(A) background (WCAG's relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background[:3].tolist()]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.066 else INK


def _count(value: float) -> str:
    """A count, or the mean count over seeds with one decimal."""
    return f"{value:.0f}" if abs(value - round(value)) < 1e-9 else f"{value:.1f}"


def _short(name: str) -> str:
    return name if len(name) <= 13 else name[:12] + "…"


def learning_figure(curves: Mapping[int, Sequence[LearningCurve]], *, kind: str, unit: str = "epoch") -> Figure:
    """Training loss and training accuracy: a line per group (mean over models), a band from lowest to highest.

    Args:
        curves: Group size -> one curve per trained model.
        kind: Kind of the data, for the banner.
        unit: What x counts: "epoch", or "optimiser step" where every model takes equally many.
    """
    with drawing_style():
        figure = Figure(figsize=(7.4, 3.6))
        loss_axis, accuracy_axis = figure.subplots(1, 2)
        colours = matplotlib.colormaps["cividis"](np.linspace(0.0, 0.92, max(1, len(curves))))
        for order, (size, models) in enumerate(sorted(curves.items())):
            length = min(len(model.x) for model in models)
            x = np.array([model.x[:length] for model in models], dtype=np.float64).mean(axis=0)
            for axis, tables in (
                (loss_axis, [model.loss[:length] for model in models]),
                (accuracy_axis, [[100 * value for value in model.accuracy[:length]] for model in models]),
            ):
                table = np.array(tables, dtype=np.float64)
                axis.fill_between(
                    x, table.min(axis=0), table.max(axis=0), color=colours[order], alpha=0.18, linewidth=0
                )
                axis.plot(
                    x, table.mean(axis=0), color=colours[order], linewidth=1.3, marker=MARKERS[order % len(MARKERS)],
                    markersize=4, markevery=max(1, length // 8), label=f"+{size:,}",
                )  # fmt: skip
        loss_axis.set(xlabel=unit, ylabel="training loss (cross entropy)", ylim=(0, None))
        accuracy_axis.set(xlabel=unit, ylabel="training accuracy (%)", ylim=(None, 102))
        for axis in (loss_axis, accuracy_axis):
            axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
            axis.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = loss_axis.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=9, fontsize=8, columnspacing=1.2, handlelength=1.8,
            title="augmented samples per fold", title_fontsize=8,
        )  # fmt: skip
        figure.supxlabel(banner(kind), fontsize=8, weight="bold")
    return figure


def roi_figure(
    rois: RoiBatch, *, window: tuple[float, float], per_class: int = 8, seed: int = 0, margin: bool = True
) -> Figure:
    """Random ROIs of every class as they stand in the slice: side 1.4 d, the margin drawn, one grey window for all.

    Args:
        rois: The ROIs.
        window: (low, high) HU, black and white of every tile.
        per_class: Tiles per class.
        seed: Seed of the draw.
        margin: Draw the margin (or, without masks, the circle of diameter d).
    """
    drawn = random_lesions(rois, per_class, seed)
    columns = max(6, *(len(chosen) for _, chosen in drawn))
    with drawing_style():
        figure = Figure(figsize=(0.5 + 1.12 * columns, 0.85 + 1.3 * len(drawn)))
        axes = figure.subplots(len(drawn), columns, squeeze=False)
        for (name, chosen), line in zip(drawn, axes, strict=True):
            line[0].set_ylabel(_short(name), fontsize=9)
            for axis in line[len(chosen) :]:
                axis.set_axis_off()
            for lesion, axis in zip(chosen, line, strict=False):
                _draw_roi(axis, rois, lesion, window, margin)
        outline = "" if not margin else "; line: the margin" if rois.masks is not None else "; ring: lesion diameter"
        bar = "bar: 10 mm" if rois.spacing_mm is not None else "bar: 10 pixels (spacing unknown)"
        figure.suptitle(
            f"ROIs drawn at random (seed {seed}), not picked; window {show_window(window)} in every tile"
            f"\nEach tile is 1.4 diameters wide{outline}; {bar}",
            fontsize=8.5,
        )
        figure.supxlabel(banner(rois.kind), fontsize=9, weight="bold")
    return figure


def _draw_roi(axis: Axes, rois: RoiBatch, lesion: int, window: tuple[float, float], margin: bool) -> None:
    image = rois.images[lesion].to("cpu").float().numpy()
    height, width = image.shape
    centre_x, centre_y = rois.centers[lesion].tolist()
    diameter = float(rois.diameters[lesion])
    spacing = (1.0, 1.0) if rois.spacing_mm is None else tuple(float(s) for s in rois.spacing_mm[lesion])
    unit = min(spacing)  # the size of a pixel that diameters are counted in
    half_x, half_y = 0.7 * diameter * unit / spacing[0], 0.7 * diameter * unit / spacing[1]
    axis.imshow(
        image, cmap="gray", vmin=window[0], vmax=window[1], interpolation="nearest", extent=(0, width, height, 0)
    )
    axis.set_aspect(spacing[1] / spacing[0])
    if margin and rois.masks is not None:
        from matplotlib.collections import LineCollection

        edges = mask_edges(rois.masks[lesion].to("cpu").numpy())
        axis.add_collection(LineCollection(edges, colors=RING_COLOUR, linewidths=0.9, capstyle="projecting"))
    elif margin:
        from matplotlib.patches import Ellipse

        size = (diameter * unit / spacing[0], diameter * unit / spacing[1])
        axis.add_patch(Ellipse((centre_x, centre_y), *size, fill=False, edgecolor=RING_COLOUR, linewidth=0.9))
    axis.set(
        xticks=[], yticks=[], xlim=(centre_x - half_x, centre_x + half_x), ylim=(centre_y + half_y, centre_y - half_y)
    )
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_facecolor("#777777")  # beyond the stored slice
    length = 10.0 / spacing[0] if rois.spacing_mm is not None else 10.0
    left, low = centre_x - 0.92 * half_x, centre_y + 0.88 * half_y
    axis.plot([left, left + length], [low, low], color="black", linewidth=3.6, solid_capstyle="butt")
    axis.plot([left, left + length], [low, low], color="white", linewidth=2.0, solid_capstyle="butt")
    text = f"{diameter * unit:.0f} mm" if rois.spacing_mm is not None else f"{diameter:.0f} px"
    axis.set_xlabel(f"d = {text}", fontsize=7.5, labelpad=2)
