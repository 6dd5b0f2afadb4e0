"""The figures of the whole protocol: same numbers, same bytes; what they show is where the numbers say."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lesionaug.experiment import paper
from lesionaug.experiment.figures import figure_png, figure_svg
from lesionaug.experiment.protocol_figures import (
    EmbeddingPanel,
    ForestRow,
    GroupAccuracy,
    PaperCurve,
    embedding_figure,
    figure_pdf,
    forest_figure,
    protocol_figure,
    synthetic_grid_figure,
)

CLASSIC = PaperCurve(
    paper.CLASSIC_GROUP_SIZES, tuple(c / 182 for c in paper.FIGURE_8_CLASSIC_CORRECT), "paper, classic (private CT)"
)
SYNTHETIC = PaperCurve(
    tuple(5000 + size for size in paper.SYNTHETIC_GROUP_SIZES),
    tuple(c / 182 for c in paper.FIGURE_8_SYNTHETIC_CORRECT),
    "paper, synthetic (private CT)",
)
LONG = (
    "focal nodular hyperplasia of the liver",
    "intrahepatic cholangiocarcinoma, mass forming, of the peripheral type with satellite nodules in both lobes",
    "cyst",
    "hepatocellular carcinoma",
    "metastasis of a colorectal carcinoma",
)
NOTE = "A note that is longer than the figure is wide, " * 5
NAMES = ("protocol", "protocol-small", "embedding", "embedding-5", "forest", "forest-one", "grid", "grid-5")


def group(size: int, accuracy: float, seeds: int = 1) -> GroupAccuracy:
    folds = tuple((accuracy - 0.1, accuracy, accuracy + 0.1 + 0.001 * seed) for seed in range(seeds))
    values = tuple(accuracy + 0.01 * seed for seed in range(seeds))
    return GroupAccuracy(size, accuracy, (accuracy - 0.07, accuracy + 0.06), values, folds)


def paper_sized(seeds: int = 2, **options) -> Figure:
    arms = {
        "DCGAN": [group(size, 0.76 + 0.01 * i, seeds) for i, size in enumerate(paper.SYNTHETIC_GROUP_SIZES)],
        "ACGAN": [group(size, 0.75 - 0.01 * i, seeds) for i, size in enumerate(paper.SYNTHETIC_GROUP_SIZES)],
    }
    settings = {
        "kind": "phantom",
        "optimum": 5000,
        "start": None,
        "chosen": {"DCGAN": 3000, "ACGAN": 300},
        "paper_classic": CLASSIC,
        "paper_synthetic": SYNTHETIC,
        **options,
    }
    return protocol_figure([group(s, 0.6 + s / 1e5, seeds) for s in paper.CLASSIC_GROUP_SIZES], arms, **settings)


def small(classic=None, arms=None, **options) -> Figure:
    classic = [group(120, 0.7), group(0, 0.5), group(30, 0.6)] if classic is None else classic
    arms = {"DCGAN": [group(90, 0.8), group(30, 0.72)], "ACGAN": [group(30, 0.71)]} if arms is None else arms
    settings = {
        "kind": "phantom",
        "optimum": 120,
        "start": None,
        "chosen": {"DCGAN": 90},
        "paper_classic": None,
        "paper_synthetic": None,
        **options,
    }
    return protocol_figure(classic, arms, **settings)


def panel(title: str, classes: tuple[str, ...], lesions: int = 12, views: int = 3, seed: int = 0) -> EmbeddingPanel:
    noise = np.random.default_rng(seed)
    points = noise.normal(size=(lesions * (views + 1), 2)) * (10, 3) + (100, -40)
    labels = np.tile(np.arange(lesions) % len(classes), views + 1)
    return EmbeddingPanel(title, points, labels, np.repeat(np.arange(views + 1), lesions), classes)


def row(label: str, value: float, group: str, seeds: int = 1) -> ForestRow:
    return ForestRow(label, value, value - 0.07, value + 0.06, tuple(value + 0.01 * i for i in range(seeds)), group)


def comparison() -> list[ForestRow]:
    nothing = float("nan")
    return [
        row("CNN, no augmentation", 0.57, "classifier", 3),
        row("CNN-AUG", 0.786, "classifier", 3),
        row("CNN-AUG-GAN (DCGAN)", 0.857, "synthetic arms", 3),
        row("BoVW-MI, one seed", 0.78, "a group with a rather long name that needs more than one line"),
        row("a control with a name that is longer than the room beside the axis, and longer still", 0.6, "controls", 2),
        ForestRow("never run", nothing, nothing, nothing, (), "controls"),
    ]


def images(count: int, level: float, size: int = 8) -> np.ndarray:
    return level + np.arange(count, dtype=np.float32)[:, None, None] / 100 + np.zeros((count, size, size), np.float32)


def draw(name: str) -> Figure:
    if name == "protocol":
        return paper_sized(3, note=NOTE)
    if name == "protocol-small":
        return small(note=NOTE)
    if name == "embedding":
        panels = [panel("CNN-AUG", paper.CLASSES), panel("CNN-AUG-GAN", paper.CLASSES, seed=1)]
        return embedding_figure([("split 0", panels), ("split 1", panels)], kind="phantom", note=NOTE)
    if name == "embedding-5":
        one = panel("a model with a title that does not fit the width of its panel at all", LONG, 20, 300)
        return embedding_figure([("split 0", [one, one])], kind="phantom", note=NOTE)
    if name == "forest":
        return forest_figure(comparison(), kind="phantom", reference=0.786, note=NOTE)
    if name == "forest-one":
        return forest_figure([row("CNN-AUG", 0.5, "")], kind="phantom")
    if name == "grid":
        real = {label: images(9, 0.2) for label in paper.CLASSES}
        arms = {arm: {label: images(9, 0.5) for label in paper.CLASSES} for arm in ("DCGAN", "ACGAN")}
        return synthetic_grid_figure(real, arms, kind="phantom", note=NOTE)
    real = {label: images(2, 0.2) for label in LONG}
    arms = {"a GAN of some name": {}, "DCGAN": {LONG[1]: images(1, 0.5)}}
    return synthetic_grid_figure(real, arms, columns=3, kind="phantom", note=NOTE)


def texts_of(figure: Figure) -> list[Text]:
    """Every text that is drawn, placed."""
    figure_png(figure, dpi=100)
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def by_label(axis) -> dict[str, list]:
    found: dict[str, list] = {}
    for line in axis.lines:
        found.setdefault(line.get_label(), []).append(line)
    return found


def points(line) -> list[tuple[float, float]]:
    return [(float(x), round(float(y), 6)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


# --- every figure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_equal_numbers_give_equal_bytes_without_dates(name: str) -> None:
    assert figure_png(draw(name), dpi=60) == figure_png(draw(name), dpi=60)
    assert figure_svg(draw(name)) == figure_svg(draw(name))
    pdf = figure_pdf(draw(name))
    assert pdf == figure_pdf(draw(name))
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    assert not re.search(rb"CreationDate|ModDate|/Creator|/Producer|matplotlib\.org|D:20\d\d", pdf)


def test_pdf_follows_the_numbers() -> None:
    assert figure_pdf(small()) != figure_pdf(small(chosen={"DCGAN": 30}))


def test_bytes_do_not_depend_on_the_process() -> None:
    script = (
        "import hashlib; from tests.test_protocol_figures import draw, figure_pdf, figure_png; "
        "made = [make(draw(name)) for name in ('protocol', 'embedding-5') for make in (figure_pdf, figure_png)]; "
        "print(hashlib.sha256(b''.join(made)).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "1"},  # another than here
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    here = b"".join(make(draw(name)) for name in ("protocol", "embedding-5") for make in (figure_pdf, figure_png))
    assert there.stdout.strip() == hashlib.sha256(here).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_names_its_data_and_its_note(name: str) -> None:
    text = draw(name).get_supxlabel()
    assert text.startswith("Phantom data: synthetic, not patients")
    if name != "forest-one":
        assert " ".join(text.split()).endswith(NOTE.strip())


@pytest.mark.parametrize("name", NAMES)
def test_texts_lie_inside_the_figure_and_apart(name: str) -> None:
    figure = draw(name)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    assert len(boxes) > 3
    for text, box in boxes:
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= figure.bbox.x1 + 0.5, text
        assert box.y1 <= figure.bbox.y1 + 0.5, text
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 1 or along < 1, (one, two)


# --- Fig. 8 -----------------------------------------------------------------------------------------------------------


def test_arms_stand_at_the_total_and_begin_at_the_optimum() -> None:
    figure = small()
    overview, enlarged = figure.axes
    for axis in (overview, enlarged):
        lines = by_label(axis)
        assert points(lines["_join DCGAN"][0]) == [(120, 70), (150, 72)]
        assert points(lines["_join ACGAN"][0]) == [(120, 70), (150, 71)]
        bars = {container.get_label(): container for container in axis.containers}
        assert points(bars["classic"].lines[0]) == [(0, 50), (30, 60), (120, 70)]  # by size, whatever the order
        assert points(bars["DCGAN"].lines[0]) == [(150, 72), (210, 80)]
        assert points(bars["ACGAN"].lines[0]) == [(150, 71)]
        assert len({container.lines[0].get_color() for container in bars.values()}) == 3
        assert len({container.lines[0].get_marker() for container in bars.values()}) == 3
    low, high = {container.get_label(): container for container in enlarged.containers}["DCGAN"].lines[1]
    assert points(low) == [(150, 65), (210, 73)]
    assert points(high) == [(150, 78), (210, 86)]


def test_the_optimum_and_each_choice_are_ringed() -> None:
    for axis in paper_sized().axes:
        rings = {label: points(line) for label, (line, *_) in by_label(axis).items() if label.startswith("_chosen")}
        assert rings == {
            "_chosen classic": [(5000, 65)],
            "_chosen DCGAN": [(8000, 78)],
            "_chosen ACGAN": [(5300, 75)],
        }
        for name in ("DCGAN", "ACGAN"):  # the ring lies where its point is drawn, shifted alike
            bar = next(c for c in axis.containers if c.get_label() == name).lines[0]
            ring = by_label(axis)[f"_chosen {name}"][0]
            assert np.allclose(ring.get_transform().transform((1, 1)), bar.get_transform().transform((1, 1)))
    (legend,) = paper_sized().legends
    texts = [" ".join(text.get_text().split()) for text in legend.get_texts()]
    assert "chosen: +5,000 classic, +3,000 DCGAN, +300 ACGAN" in texts


def test_two_arms_at_one_size_stay_apart_on_the_page() -> None:
    figure = paper_sized()
    figure_png(figure, dpi=72)
    enlarged = figure.axes[1]
    bars = {container.get_label(): container.lines[0] for container in enlarged.containers}
    assert len(bars) == 3
    place = {name: line.get_transform().transform((8000, 80))[0] for name, line in bars.items()}
    assert place["DCGAN"] + 6 <= place["ACGAN"]  # points, as 72 dots are an inch
    assert abs(place["classic"] - (place["DCGAN"] + place["ACGAN"]) / 2) < 0.01
    four = small(arms={name: [group(30, 0.7)] for name in "abcd"}, chosen={})
    figure_png(four, dpi=72)
    places = sorted(c.lines[0].get_transform().transform((150, 70))[0] for c in four.axes[1].containers)
    assert len(places) == 5
    assert all(right - left > 3.5 for left, right in itertools.pairwise(places))


@pytest.mark.parametrize("seeds", [1, 3])
def test_single_folds_and_seeds_are_shown(seeds: int) -> None:
    arm = [group(30, 0.72, seeds), group(90, 0.6, seeds)]
    figure = small([group(120, 0.7, seeds)], {"DCGAN": arm})
    overview, enlarged = (by_label(axis) for axis in figure.axes)
    for lines, name, base, groups in (
        (overview, "classic", 0, [group(120, 0.7, seeds)]),
        (enlarged, "DCGAN", 120, arm),
    ):
        shown = sorted(point for line in lines[f"_folds {name}"] for point in points(line))
        assert shown == sorted((base + g.size, round(100 * v, 6)) for g in groups for f in g.folds for v in f)
        seen = sorted(point for line in lines.get(f"_seeds {name}", []) for point in points(line))
        wanted = sorted((base + g.size, round(100 * v, 6)) for g in groups for v in g.seeds)
        assert seen == (wanted if seeds > 1 else [])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "single test folds" in texts
    assert ("single seeds" in texts) == (seeds > 1)


def test_everything_lies_within_the_axes() -> None:
    wild = GroupAccuracy(30, 1.0, (0.93, 0.9999999999), (1.0, 1.0), ((1.0, 1.0), (0.2, 1.0)))
    for figure in (paper_sized(), small(arms={"DCGAN": [wild]})):
        for axis in figure.axes:
            low, high = axis.get_xlim()
            bottom, top = axis.get_ylim()
            for line in axis.lines:
                for x, y in points(line):
                    assert bottom < y < top or not low <= x <= high
    assert small(arms={"DCGAN": [wild]}).axes[1].get_ylim()[0] <= 18


def test_the_shaded_part_is_the_enlarged_one() -> None:
    for figure in (paper_sized(), small()):
        overview, enlarged = figure.axes
        (band,) = overview.patches
        assert np.allclose([band.get_x(), band.get_x() + band.get_width()], enlarged.get_xlim())
    labels = [label.get_text() for label in paper_sized().axes[1].get_xticklabels()]
    assert labels == ["5k", "5.3k\n+300", "6.5k\n+1.5k", "8k\n+3k", "11k\n+6k", "14k\n+9k", "17k\n+12k"]


def test_the_papers_curves_are_grey_and_told_apart() -> None:
    overview, enlarged = paper_sized().axes
    for axis in (overview, enlarged):
        lines = by_label(axis)
        classic, synthetic = lines[CLASSIC.label][0], lines[SYNTHETIC.label][0]
        assert np.allclose(classic.get_ydata(), [100 * c / 182 for c in paper.FIGURE_8_CLASSIC_CORRECT])
        assert points(synthetic)[2] == (8000, round(100 * 156 / 182, 6))
        assert classic.get_color() == synthetic.get_color() == "#8C8C8C"
        assert (classic.get_linestyle(), synthetic.get_linestyle()) == ("--", "-.")
    far = small(paper_classic=CLASSIC, paper_synthetic=SYNTHETIC)  # the enlarged part has none of their groups
    assert CLASSIC.label in by_label(far.axes[0])
    assert not {CLASSIC.label, SYNTHETIC.label} & set(by_label(far.axes[1]))
    texts = [text.get_text() for text in far.legends[0].get_texts()]
    assert texts[-2:] == [CLASSIC.label, SYNTHETIC.label]


def test_without_an_optimum_no_arm_is_drawn() -> None:
    figure = small(optimum=None, paper_synthetic=SYNTHETIC)
    (axis,) = figure.axes
    assert [container.get_label() for container in axis.containers] == ["classic"]
    assert not [label for label in by_label(axis) if label.startswith(("_chosen", "_join"))]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert not [text for text in texts if "DCGAN" in text or "chosen" in text]
    assert SYNTHETIC.label in texts


def test_missing_parts_are_left_out() -> None:
    assert len(small(arms={}).axes) == 1
    assert len(small(arms={"DCGAN": []}).axes) == 1
    figure_png(small([], {}, optimum=None), dpi=40)
    figure_png(small([], optimum=0, chosen={}, paper_classic=CLASSIC), dpi=40)
    without = small([group(0, 0.5)], chosen={"DCGAN": 77, "other": 30})  # neither the optimum nor the choice was run
    for axis in without.axes:
        assert not [label for label in by_label(axis) if label.startswith(("_chosen", "_join"))]
    nothing = float("nan")
    figure_png(small(arms={"DCGAN": [GroupAccuracy(30, nothing, (nothing, nothing), (), ())]}), dpi=40)
    at_zero = small(optimum=0, arms={"DCGAN": [group(0, 0.5)]}, chosen={"DCGAN": 0})
    figure_png(at_zero, dpi=40)
    assert points(by_label(at_zero.axes[1])["_chosen DCGAN"][0]) == [(0, 50)]


@pytest.mark.parametrize("start", [30, {"DCGAN": 30, "ACGAN": 120}])
def test_arms_may_stand_on_another_group_than_the_optimum(start) -> None:
    lines = by_label(small(start=start).axes[1])
    assert points(lines["_join DCGAN"][0]) == [(30, 60), (60, 72)]
    assert points(lines["_chosen DCGAN"][0]) == [(120, 80)]
    join = points(lines["_join ACGAN"][0])
    assert join == ([(30, 60), (60, 71)] if start == 30 else [(120, 70), (150, 71)])
    names = [text.get_text() for text in small(start=start).legends[0].get_texts()]
    assert "DCGAN on top of +30 classic" in names
    assert f"ACGAN on top of +{30 if start == 30 else 120} classic" in names


def test_a_start_that_is_not_by_arm_is_refused() -> None:
    with pytest.raises(ValueError, match="which classic group DCGAN stands on"):
        small(start={"0": 120, "1": 30})  # by split
    small(start={"0": 120}, arms={"DCGAN": []})


def test_crowded_groups_keep_their_ticks_and_lose_labels() -> None:
    arm = [group(size, 0.6) for size in (10, 20, 30, 60, 300, 310, 320, 3000)]
    figure = small(arms={"DCGAN": arm}, chosen={})
    figure_png(figure, dpi=100)
    axis = figure.axes[1]
    assert [int(x) for x in axis.get_xticks()] == [120, *(120 + g.size for g in arm)]
    labels = [label for label in axis.get_xticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert 4 <= len(labels) < 9
    assert labels[0].get_text() == "120"
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


# --- Fig. 9 -----------------------------------------------------------------------------------------------------------


def test_embedding_shows_every_point_in_the_look_of_its_class() -> None:
    one = panel("CNN-AUG", ("a", "b", "c"))
    axis = embedding_figure([("split 0", [one])], kind="phantom").axes[0]
    drawn = {scatter.get_label(): scatter for scatter in axis.collections}
    assert len(drawn) == 6
    for label, name in enumerate(one.classes):
        for original in (True, False):
            chosen = (one.labels == label) & ((one.view == 0) == original)
            assert np.array_equal(drawn[f"{name}, {original=}"].get_offsets(), one.points[chosen])
        lesion, other = drawn[f"{name}, original=True"], drawn[f"{name}, original=False"]
        assert lesion.get_sizes()[0] > 2 * other.get_sizes()[0]
        assert lesion.get_zorder() > other.get_zorder()
        assert other.get_alpha() < 0.5
        assert not other.get_rasterized()
        assert np.array_equal(lesion.get_facecolor()[0, :3], other.get_facecolor()[0, :3])
    lesions = [drawn[f"{name}, original=True"] for name in one.classes]
    assert len({tuple(scatter.get_facecolor()[0]) for scatter in lesions}) == 3
    assert len({scatter.get_paths()[0].vertices.tobytes() for scatter in lesions}) == 3
    low, high = np.array(axis.get_xlim()), np.array(axis.get_ylim())
    assert np.isclose(low[1] - low[0], high[1] - high[0])  # one unit in both directions
    assert axis.get_box_aspect() == 1
    assert low[0] < one.points[:, 0].min() < one.points[:, 0].max() < low[1]
    assert high[0] < one.points[:, 1].min() < one.points[:, 1].max() < high[1]
    assert len(axis.get_xticks()) == len(axis.get_yticks()) == 0


def test_embedding_has_a_row_per_split_and_one_legend() -> None:
    two = [panel("CNN-AUG", ("a", "b")), panel("CNN-AUG-GAN", ("b", "a"))]
    figure = embedding_figure([("split 0", two), ("split 1", two[:1])], kind="phantom")
    assert [axis.get_title() for axis in figure.axes] == ["CNN-AUG", "CNN-AUG-GAN", "CNN-AUG", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["split 0", "", "split 1", ""]
    assert sum(axis.spines["left"].get_visible() for axis in figure.axes) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["a", "b"]
    assert len(legend.get_texts()) == 4
    faces = {
        axis.get_title(): {s.get_label(): s.get_facecolor()[0, :3].tolist() for s in axis.collections}
        for axis in figure.axes[:2]
    }
    assert faces["CNN-AUG"] == faces["CNN-AUG-GAN"]  # a class keeps its colour, whatever its number in a panel
    alone = embedding_figure([("split 0", [panel("CNN-AUG", ("a", "b"), views=0)])], kind="phantom")
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["a", "b"]


def test_thousands_of_augmentations_stay_pale_and_are_one_picture() -> None:
    few, many = panel("few", ("a", "b"), 20, 10), panel("many", ("a", "b"), 60, 480)
    figure = embedding_figure([("split 0", [few, many])], kind="phantom")
    scatters = [{s.get_label(): s for s in axis.collections} for axis in figure.axes]
    light, lighter = (found["a, original=False"] for found in scatters)
    assert lighter.get_alpha() < light.get_alpha() / 2
    assert lighter.get_sizes()[0] < light.get_sizes()[0]
    assert (light.get_rasterized(), lighter.get_rasterized()) == (False, True)
    lesions = [found["a, original=True"] for found in scatters]
    assert lesions[0].get_sizes()[0] == lesions[1].get_sizes()[0]
    assert not lesions[1].get_rasterized()
    assert len(figure_svg(figure)) < 600_000


def test_embeddings_without_points_draw() -> None:
    empty = EmbeddingPanel("none", np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, int), ("a",))
    single = EmbeddingPanel("one", np.full((1, 2), 7.0), np.zeros(1, int), np.zeros(1, int), ("a",))
    figure = embedding_figure([("split 0", [empty, single])], kind="phantom")
    figure_png(figure, dpi=40)
    assert figure.axes[1].get_xlim() == (6, 8)
    figure_png(embedding_figure([], kind="phantom"), dpi=40)


# --- every method beside the others -----------------------------------------------------------------------------------


def test_forest_shows_values_intervals_and_seeds() -> None:
    rows = comparison()
    figure = forest_figure(rows, kind="phantom", reference=0.786)
    (axis,) = figure.axes
    figure_png(figure, dpi=72)
    assert axis.bbox.width > 0.45 * figure.bbox.width  # long names are broken, not given the room of the axis
    lines = by_label(axis)
    places = [float(lines[r.label][0].get_ydata()[0]) for r in rows[:-1]]
    assert places == sorted(places)
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first row is the upper one
    ticks = dict(zip(axis.get_yticks(), [label.get_text() for label in axis.get_yticklabels()], strict=True))
    for r, y in zip(rows, places, strict=False):
        assert " ".join(ticks[y].split()) == r.label
        assert np.allclose(lines[r.label][0].get_xdata(), [100 * r.value])
        spans = [line.get_xdata() for line in axis.lines if list(line.get_ydata()) == [y, y]]
        assert np.allclose(spans, [[100 * r.low, 100 * r.high]])
        dots = lines.get(f"_seeds {r.label}")
        assert (dots is not None) == (len(r.seeds) > 1)
        if dots:
            assert np.allclose(dots[0].get_xdata(), [100 * s for s in r.seeds])
            assert 0 < dots[0].get_ydata()[0] - y < 0.5
    assert np.allclose(lines["reference"][0].get_xdata(), 78.6)
    assert lines["reference"][0].get_linestyle() == "--"
    assert "CNN-AUG: 78.6 %" in [text.get_text() for text in figure.legends[0].get_texts()]
    written = [text.get_text() for text in axis.texts]
    assert "85.7 (78.7 to 91.7)" in written
    assert written.count("no result") == 1
    low, high = axis.get_xlim()
    known = [100 * v for r in rows[:-1] for v in (r.low, r.high, *r.seeds)]
    assert low < min(known) < max(known) < high
    assert len({lines[r.label][0].get_marker() for r in rows[:-1]}) == 4  # a marker per group


def test_forest_separates_its_groups() -> None:
    def bold_and_separators(rows):
        (axis,) = forest_figure(rows, kind="phantom").axes
        bold = [label.get_text() for label in axis.get_yticklabels() if label.get_fontweight() == "bold"]
        return bold, sum(line.get_color() == "#CCCCCC" for line in axis.lines)

    assert bold_and_separators([row("a", 0.5, "x"), row("b", 0.5, "x"), row("c", 0.5, "y")]) == (["x", "y"], 1)
    assert bold_and_separators([row("a", 0.5, ""), row("b", 0.5, "")]) == ([], 0)
    figure = draw("forest")
    figure_png(figure, dpi=100)
    (axis,) = figure.axes
    separators = [line.get_window_extent().y0 for line in axis.lines if line.get_color() == "#CCCCCC"]
    assert len(separators) == 3
    for label in axis.get_yticklabels():  # however many lines a name has
        box = label.get_window_extent()
        assert not [y for y in separators if box.y0 < y < box.y1], label.get_text()
    plain = forest_figure([row("a", 0.5, "")], kind="phantom")
    assert "reference" not in by_label(plain.axes[0])
    assert "single seeds" not in [text.get_text() for text in plain.legends[0].get_texts()]
    figure_png(forest_figure([], kind="phantom"), dpi=40)


# --- Fig. 6 -----------------------------------------------------------------------------------------------------------


def test_grid_shows_the_images_in_their_order_each_row_named() -> None:
    real = {"cyst": images(9, 0.1), "metastasis": images(2, 0.2)}
    arms = {
        "DCGAN": {"cyst": images(9, 0.5), "metastasis": images(9, 0.6)},
        "ACGAN": {"cyst": images(1, 0.7, size=16)},
    }
    figure = synthetic_grid_figure(real, arms, columns=4, kind="phantom", note="drawn at random")
    axes = figure.axes
    assert [axis.get_ylabel() for axis in axes] == ["phantom\nlesions", "synthetic:\nDCGAN", "synthetic:\nACGAN"] * 2
    assert [axis.get_title(loc="left") for axis in axes] == ["cyst", "", "", "metastasis", "", ""]
    found = [
        real["cyst"],
        arms["DCGAN"]["cyst"],
        arms["ACGAN"]["cyst"],
        real["metastasis"],
        arms["DCGAN"]["metastasis"],
    ]
    for axis, wanted in zip(axes, found, strict=False):
        (shown,) = axis.images
        assert shown.get_clim() == (0, 1)
        picture, size = np.asarray(shown.get_array()), wanted.shape[-1]
        assert picture.shape[0] == size
        step = size + (picture.shape[1] - 4 * size) // 3
        for column in range(4):
            tile = picture[:, column * step : column * step + size]
            assert np.allclose(tile, wanted[column] if column < len(wanted) else 1.0)
    assert not axes[3].texts
    assert [text.get_text() for text in axes[5].texts] == ["none of this class"]


def test_grid_without_gans_and_with_mistaken_nesting() -> None:
    figure = synthetic_grid_figure({"cyst": images(3, 0.1)}, {}, kind="imported", note="")
    assert [axis.get_ylabel() for axis in figure.axes] == ["real"]  # a phantom's are never called that
    with pytest.raises(ValueError, match="cyst has classes that the real images do not have: DCGAN"):
        synthetic_grid_figure({"cyst": images(3, 0.1)}, {"cyst": {"DCGAN": images(1, 0.1)}}, kind="phantom", note="")
