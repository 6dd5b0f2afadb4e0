"""The report's figures: same numbers, same bytes; what they show is where the numbers say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lesionaug.data.rois import RoiBatch
from lesionaug.experiment import figures
from lesionaug.experiment.figures import (
    ConfusionPanel,
    LearningCurve,
    confusion_figure,
    figure_png,
    figure_svg,
    learning_figure,
    roi_figure,
)


def draw(name: str):
    if name == "confusion":
        panel = ConfusionPanel("t", np.array([[3, 1], [0, 5]]), ("a", "b"))
        return confusion_figure([panel, panel, panel, panel], kind="phantom")
    if name == "learning":
        curve = LearningCurve([1, 2, 3], [1.0, 0.5, 0.2], [0.3, 0.5, 0.9])
        return learning_figure({0: [curve, curve], 30: [curve]}, kind="phantom")
    return roi_figure(make_rois(), window=(-160.0, 240.0), per_class=3)


def make_rois(n: int = 7, *, spacing=(0.5, 1.0), masks: bool = True) -> RoiBatch:
    noise = np.random.default_rng(0)
    images = [noise.integers(-100, 200, (40, 60)).astype(np.int16) for _ in range(n)]
    mask = np.zeros((40, 60), dtype=bool)
    mask[12:28, 14:46] = True
    return RoiBatch.from_images(
        images,
        [(30.0, 20.0)] * n,
        [32.0] * n,
        labels=[("cyst", "metastasis")[i % 2] for i in range(n)],
        spacing_mm=spacing,
        masks=[mask] * n if masks else None,
        kind="phantom",
    )


@pytest.mark.parametrize("name", ["confusion", "learning", "rois"])
def test_equal_numbers_give_equal_bytes_without_dates(name: str) -> None:
    one, two = draw(name), draw(name)
    assert figure_png(one, dpi=60) == figure_png(two, dpi=60)
    svg = figure_svg(draw(name))
    assert svg == figure_svg(draw(name))
    assert not re.search(r"<dc:date>|20\d\d-\d\d-\d\d|matplotlib\.org", svg.lower())
    assert "Software" not in figure_png(one, dpi=60).decode("latin1")


@pytest.mark.parametrize("name", ["confusion", "learning", "rois"])
@pytest.mark.parametrize("kind", ["phantom", "imported", "user"])
def test_every_figure_names_its_data(name: str, kind: str) -> None:
    figure = draw(name)
    text = figure.get_supxlabel()
    assert text.startswith("Phantom data: synthetic, not patients")
    assert figures.banner(kind) != figures.banner("other")


def test_confusion_figure_prints_counts_and_row_percentages() -> None:
    panel = ConfusionPanel("mean of two seeds", np.array([[3.5, 0.5], [0.0, 0.0]]), ("a", "b"))
    figure = confusion_figure([panel], kind="phantom")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["3.5\n87.5 %", "0.5\n12.5 %", "0\n0.0 %", "0\n0.0 %"]
    assert figure.axes[0].get_ylabel() == "true"
    assert figure.axes[0].get_xlabel() == "predicted"
    many = ConfusionPanel("seven", np.eye(7, dtype=int), tuple(f"a rather long class {i}" for i in range(7)))
    figure_png(confusion_figure([many, many], kind="phantom"), dpi=50)


def test_confusion_text_is_readable_on_every_shade() -> None:
    """Contrast of at least 4 to 1 between the text and its cell, by an own computation."""
    counts = np.array([[i, 100 - i] for i in range(0, 101, 5)])
    square = np.zeros((len(counts), len(counts)), dtype=int)
    square[:, :2] = counts

    def luminance(rgb) -> float:
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    from matplotlib.colors import to_rgb

    for reference in (False, True):
        panel = ConfusionPanel("t", square, tuple(str(i) for i in range(len(counts))), reference=reference)
        axis = confusion_figure([panel], kind="phantom").axes[0]
        cells = axis.images[0].get_array()
        for text in axis.texts:
            x, y = (int(v) for v in text.get_position())
            pair = sorted([luminance(to_rgb(text.get_color())), luminance(cells[y, x, :3])])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4


def test_learning_figure_draws_mean_and_band() -> None:
    one, two = LearningCurve([1, 2], [1.0, 0.6], [0.2, 0.4]), LearningCurve([1, 2, 3], [2.0, 0.8, 0.1], [0.4, 0.8, 1.0])
    figure = learning_figure({0: [one, two]}, kind="phantom", unit="optimiser step")
    loss, accuracy = figure.axes
    assert np.allclose(loss.lines[0].get_ydata(), [1.5, 0.7])
    assert np.allclose(accuracy.lines[0].get_ydata(), [30, 60])
    assert loss.get_xlabel() == "optimiser step"


def test_rois_share_one_window_and_show_their_margin_to_scale() -> None:
    rois = make_rois()
    figure = roi_figure(rois, window=(-160.0, 240.0), per_class=3, seed=4)
    tiles = [axis for axis in figure.axes if axis.images]
    assert len(tiles) == 6
    for axis in tiles:
        assert axis.images[0].get_clim() == (-160.0, 240.0)
        # spacing (0.5, 1.0) mm: d = 32 px of 0.5 mm, so the tile is 1.4 d = 44.8 pixels wide and 22.4 high
        assert np.allclose(axis.get_xlim(), (30 - 22.4, 30 + 22.4))
        assert np.allclose(axis.get_ylim(), (20 + 11.2, 20 - 11.2))
        assert axis.get_aspect() == 2.0
        assert "16 mm" in axis.get_xlabel()
        bar = axis.lines[0].get_xdata()
        assert np.isclose(bar[1] - bar[0], 20)  # 10 mm
        (edges,) = axis.collections
        points = np.concatenate(edges.get_segments())
        assert (points.min(axis=0) == (14, 12)).all()  # the mask's corners, corner convention
        assert (points.max(axis=0) == (46, 28)).all()
    again = roi_figure(rois, window=(-160.0, 240.0), per_class=3, seed=4)
    assert figure_png(again, dpi=50) == figure_png(figure, dpi=50)
    without = roi_figure(make_rois(masks=False, spacing=None), window=(-160.0, 240.0), per_class=3)
    assert "32 px" in without.axes[0].get_xlabel()
    assert len(without.axes[0].patches) >= 1


def test_the_draw_of_rois_depends_on_seed_and_ids_only() -> None:
    rois = make_rois(40)
    reverse = rois[list(reversed(range(40)))]

    def drawn(batch: RoiBatch, seed: int) -> dict[str, list[str]]:
        return {name: [batch.lesion_ids[i] for i in chosen] for name, chosen in figures.random_lesions(batch, 5, seed)}

    assert drawn(rois, 1) == drawn(reverse, 1)
    assert drawn(rois, 1) != drawn(rois, 2)
    assert all(len(set(chosen)) == 5 for chosen in drawn(rois, 1).values())
