"""The figures of GAN training: curves, images of one noise as training goes on, and random samples beside real ROIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from lesionaug.augment.sheet import banner, drawing_style
from lesionaug.experiment.figures import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Images = npt.NDArray[Any]


def curves_figure(metrics: Mapping[str, Sequence[Mapping[str, float]]], *, kind: str, note: str) -> Figure:
    """Losses, and what the discriminator makes of real and synthetic images, of each GAN.

    Args:
        metrics: Name of a GAN -> its blocks of steps, see `GanRun.metrics`.
        kind: Kind of the data, for the banner.
        note: What departs from the paper, in small print.
    """
    with drawing_style():
        figure = Figure(figsize=(7.4, 0.7 + 2.3 * len(metrics)))
        for row, (name, blocks) in zip(figure.subplots(len(metrics), 2, squeeze=False), metrics.items(), strict=True):
            steps = [block["step"] for block in blocks]
            shown = {key for block in blocks for key in block}
            _lines(row[0], steps, blocks, {"loss_d": ("discriminator", BLUE), "loss_g": ("generator", ORANGE)})
            _lines(row[1], steps, blocks, {"d_real": ("D(x)", BLUE), "d_fake": ("D(G(z))", ORANGE)})
            classes = {"class_real": ("class of x right", GREY), "class_fake": ("class of G(z) right", "black")}
            _lines(
                row[1],
                steps,
                blocks,
                {key: value for key, value in classes.items() if key in shown},
                "--",
            )
            row[0].set(ylabel="loss", xlabel="step")
            row[1].set(ylabel="mean over the images", xlabel="step", ylim=(-0.02, 1.02))
            row[1].axhline(0.5, color="#DDDDDD", linewidth=0.8, zorder=0)
            row[0].set_title(name, fontsize=9, loc="left", weight="bold")
            for axis in row:
                axis.legend(fontsize=7.5)
        _say(figure, kind, note)
    return figure


def _lines(
    axis: Axes,
    steps: Sequence[float],
    blocks: Sequence[Mapping[str, float]],
    lines: Mapping[str, tuple[str, str]],
    style: str = "-",
) -> None:
    for key, (label, colour) in lines.items():
        axis.plot(steps, [block.get(key, np.nan) for block in blocks], style, color=colour, linewidth=1.1, label=label)


def strip_figure(strips: Mapping[str, tuple[Images, int]], *, kind: str, note: str) -> Figure:
    """Images of one fixed noise as training went on, of each class: downwards in time.

    Args:
        strips: Class -> uint8 [moments, columns, S, S], and the optimiser steps of its whole training.
        kind: Kind of the data, for the banner.
        note: What departs from the paper, in small print.
    """
    shapes = [images.shape for images, _ in strips.values()]
    width = sum(0.75 + 0.5 * shape[1] for shape in shapes)
    with drawing_style():
        figure = Figure(figsize=(width, 0.8 + 0.5 * max(shape[0] for shape in shapes)))
        axes = figure.subplots(1, len(strips), squeeze=False)[0]
        for axis, (name, (images, steps)) in zip(axes, strips.items(), strict=True):
            _mosaic(axis, images)
            axis.set_title(name, fontsize=9)
            moments, size = len(images), images.shape[-1]
            places = [(row + 0.5) * size for row in range(moments)]
            axis.set_yticks(places, [f"{steps * (row + 1) // moments:,}" for row in range(moments)], fontsize=7)
        axes[0].set_ylabel("step")
        _say(figure, kind, note)
    return figure


def samples_figure(
    synthetic: Mapping[str, Images], real: Mapping[str, Images], *, columns: int = 8, kind: str, note: str
) -> Figure:
    """Synthetic ROIs beside real ones, class by class (Fig. 6); the first of a random sample, none picked.

    Args:
        synthetic: Class -> [N, S, S] in (0, 1).
        real: Class -> [M, S, S] in (0, 1), training lesions.
        columns: Images per row; two rows of each.
        kind: Kind of the data, for the banner.
        note: What departs from the paper, in small print.
    """
    with drawing_style():
        figure = Figure(figsize=(0.4 + 1.0 * columns, 0.8 + 1.35 * len(synthetic)))
        axes = figure.subplots(len(synthetic), 2, squeeze=False)
        for row, (name, made) in zip(axes, synthetic.items(), strict=True):
            for axis, images, what in ((row[0], made, "synthetic"), (row[1], real[name], "training lesions")):
                chosen = images[: 2 * columns]
                if len(chosen) < 2 * columns:  # blank where there are no more
                    blank = np.ones((2 * columns - len(chosen), *chosen.shape[1:]), dtype=chosen.dtype)
                    chosen = np.concatenate([chosen, blank])
                _mosaic(axis, chosen.reshape(2, columns, *chosen.shape[1:]) * 255)
                axis.set_title(f"{name}: {what}", fontsize=9)
        _say(figure, kind, note)
    return figure


def gallery_figure(
    pairs: Mapping[str, Sequence[tuple[Images, Images, Images, float, float]]], *, kind: str, note: str
) -> Figure:
    """The synthetic images nearest to a training lesion, with that lesion and the nearest held-out one below.

    Args:
        pairs: Class -> (image, training lesion, held-out lesion, their distances), see gan_evaluation.py.
        kind: Kind of the data, for the banner.
        note: What departs from the paper, in small print.
    """
    columns = max(len(row) for row in pairs.values())
    with drawing_style():
        figure = Figure(figsize=(1.8 + 1.15 * columns, 0.6 + 3.9 * len(pairs)))
        axes = figure.subplots(len(pairs), 1, squeeze=False)[:, 0]
        for axis, (name, row) in zip(axes, pairs.items(), strict=True):
            size = row[0][0].shape[-1]
            down, right = round(1.22 * size), round(1.06 * size)
            page = np.ones((3 * down, columns * right))  # one picture: a hundred axes take seconds to draw
            for column, (*pictures, to_trained, to_held) in enumerate(row):
                x = column * right
                for line, picture in enumerate(pictures):
                    page[line * down : line * down + size, x : x + size] = picture
                for line, distance in ((1, to_trained), (2, to_held)):
                    text = f"1 \N{MINUS SIGN} r = {distance:.2f}"
                    axis.text(x + size / 2, line * down + size, text, ha="center", va="top", fontsize=7.5)
            axis.imshow(page, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            labels = (f"{name}\nsynthetic", "nearest\ntraining", "nearest\nheld-out")
            axis.set_xticks([])
            axis.set_yticks([line * down + size / 2 for line in range(3)], labels, fontsize=8)
            axis.tick_params(length=0)
            for spine in axis.spines.values():
                spine.set_visible(False)
        _say(figure, kind, note)
    return figure


def _mosaic(axis: Axes, images: Images) -> None:
    """[rows, columns, S, S] with values in 0 .. 255, black to white, edge to edge."""
    rows, columns, height, width = images.shape
    picture = images.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _say(figure: Figure, kind: str, note: str) -> None:
    text = banner(kind)
    figure.supxlabel(f"{text}\n{note}" if note else text, fontsize=8, weight="bold")
