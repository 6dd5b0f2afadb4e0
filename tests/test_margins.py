"""Masks, diameters, crops and the outside fraction against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from lesionaug.data import margins
from lesionaug.data.margins import (
    _areas_inside,
    centre,
    crop_box,
    diameter_px,
    polygons_reach_outside,
    polygons_to_mask,
    worst_outside_fraction,
)

seeds = st.integers(0, 2**32 - 1)


def star(rng: np.random.Generator, x: float, y: float, points: int = 11) -> np.ndarray:
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = rng.uniform(3, 14, points)
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_a_mask_equals_an_independent_point_in_polygon_test(seed):
    rng = np.random.default_rng(seed)
    polygon = star(rng, rng.uniform(5, 35), rng.uniform(5, 25))
    mask = polygons_to_mask([polygon], 30, 40, convention="pixel_edge")
    rows, columns = np.mgrid[:30, :40]
    centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    assert np.array_equal(mask.ravel(), Outline(polygon).contains_points(centres))


def test_the_two_conventions_are_half_a_pixel_apart():
    square = np.array([[2.0, 3.0], [6.0, 3.0], [6.0, 5.0], [2.0, 5.0]])
    edge = polygons_to_mask([square], 10, 10, convention="pixel_edge")
    assert edge[3:5, 2:6].all()
    assert edge.sum() == 8
    centred = polygons_to_mask([square - 0.5], 10, 10, convention="pixel_centre")
    assert np.array_equal(edge, centred)


def test_neighbours_share_no_pixel_and_leave_no_gap_even_through_pixel_centres():
    # The shared edge x = 4.5 and the corners run exactly through pixel centres.
    left = np.array([[0.5, 0.5], [4.5, 0.5], [4.5, 8.5], [0.5, 8.5]])
    right = np.array([[4.5, 0.5], [8.5, 0.5], [8.5, 8.5], [4.5, 8.5]])
    a, b = (polygons_to_mask([p], 10, 10, convention="pixel_edge") for p in (left, right))
    assert not (a & b).any()
    assert (a | b)[0:8, 0:8].all()
    assert (a | b).sum() == 64


def test_an_inner_polygon_is_a_hole_and_direction_does_not_matter():
    rng = np.random.default_rng(3)
    outer, inner = star(rng, 20, 15, 40) * 1.0, np.array([[18.0, 13], [22, 13], [22, 17], [18, 17]])
    whole = polygons_to_mask([outer], 30, 40, convention="pixel_edge")
    hole = polygons_to_mask([inner], 30, 40, convention="pixel_edge")
    assert np.array_equal(polygons_to_mask([outer, inner[::-1]], 30, 40, convention="pixel_edge"), whole ^ hole)
    assert np.array_equal(polygons_to_mask([outer[::-1]], 30, 40, convention="pixel_edge"), whole)


def test_a_keyhole_contour_has_a_hole():
    keyhole = np.array([[2, 2], [12, 2], [12, 12], [2, 12], [2, 2], [5, 5], [5, 9], [9, 9], [9, 5], [5, 5]], float)
    mask = polygons_to_mask([keyhole], 14, 14, convention="pixel_edge")
    assert mask.sum() == 100 - 16
    assert not mask[5:9, 5:9].any()


def test_parts_outside_are_cut_off_and_said():
    polygon = np.array([[-5.0, -5.0], [5.0, -5.0], [5.0, 5.0], [-5.0, 5.0]])
    assert polygons_to_mask([polygon], 20, 20, convention="pixel_edge").sum() == 25
    assert polygons_reach_outside([polygon], 20, 20, convention="pixel_edge")
    assert not polygons_reach_outside([np.array([[0.0, 0], [20, 0], [20, 20]])], 20, 20, convention="pixel_edge")
    assert polygons_reach_outside([np.array([[0.0, 0], [19.6, 0], [9, 9]])], 20, 20, convention="pixel_centre")


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0.3, 3.0))
def test_the_diameter_is_the_largest_distance_between_corners(seed, ratio):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 12)) < 0.12
    mask[rng.integers(9), rng.integers(12)] = True
    spacing = (0.7, 0.7 * ratio)
    corners = {(j + dx, i + dy) for i, j in np.argwhere(mask) for dx in (0, 1) for dy in (0, 1)}
    small = min(spacing)
    expected = max(
        math.hypot((a[0] - b[0]) * spacing[0] / small, (a[1] - b[1]) * spacing[1] / small)
        for a, b in itertools.product(corners, corners)
    )
    assert diameter_px(mask, spacing) == pytest.approx(expected, rel=1e-12)


def test_one_pixel_has_its_diagonal_and_an_empty_mask_is_refused():
    mask = np.zeros((5, 5), dtype=bool)
    with pytest.raises(ValueError, match="empty"):
        diameter_px(mask, (1.0, 1.0))
    mask[2, 3] = True
    assert diameter_px(mask, (0.5, 0.5)) == pytest.approx(math.sqrt(2))
    assert centre(mask) == (3.5, 2.5)


def test_the_crop_reaches_as_far_as_the_design_says():
    d = 40.0
    half = 1.556 * d + 2 * max(1, 2.2 * d / 64) + 1
    top, bottom, left, right = crop_box((250.0, 240.0), d, (1.0, 1.0), 512, 512)
    assert (top, bottom, left, right) == (
        math.floor(240 - half),
        math.ceil(240 + half),
        math.floor(250 - half),
        math.ceil(250 + half),
    )
    # Pixels twice as high need half as many rows for the same millimetres.
    top, bottom, left, right = crop_box((250.0, 240.0), d, (0.5, 1.0), 512, 512)
    assert right - left == math.ceil(250 + half) - math.floor(250 - half)
    assert bottom - top == math.ceil(240 + half / 2) - math.floor(240 - half / 2)
    assert crop_box((5.0, 5.0), d, (1.0, 1.0), 30, 20) == (0, 30, 0, 20)


def test_the_outside_fraction_agrees_with_counting_points():
    rng = np.random.default_rng(0)
    for x, y, d, spacing in (
        (20.0, 50.0, 30.0, (1.0, 1.0)),
        (50.0, 12.0, 18.0, (0.5, 1.0)),
        (3.0, 3.0, 10.0, (1.0, 1.0)),
    ):
        small = min(spacing)
        scale = np.array([spacing[0] / small, spacing[1] / small])
        size = np.array([100.0, 90.0]) * scale
        worst = 0.0
        p = min(4.0, 0.1 * d)
        unit = rng.random((4000, 2)) - 0.5
        for degrees in range(0, 180, 3):
            t = math.radians(degrees)
            turn = np.array([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]])
            for side, shift in ((2.2 * d, (0, 0)), *((1.4 * d, s) for s in itertools.product((-p, p), repeat=2))):
                points = (unit * side + shift) @ turn.T + np.array([x, y]) * scale
                worst = max(worst, 1 - ((points > 0) & (points < size)).all(axis=1).mean())
        assert worst_outside_fraction((x, y), d, spacing, 90, 100) == pytest.approx(worst, abs=0.025)
    assert worst_outside_fraction((50.0, 50.0), 20.0, (1.0, 1.0), 100, 100) == 0.0


def clipped_area(polygon: list[tuple[float, float]], right: float, bottom: float) -> float:
    """By clipping at each border in turn (Sutherland and Hodgman), then the shoelace formula."""
    for axis, limit, sign in ((0, 0.0, 1.0), (0, right, -1.0), (1, 0.0, 1.0), (1, bottom, -1.0)):
        clipped: list[tuple[float, float]] = []
        for index, point in enumerate(polygon):
            previous = polygon[index - 1]
            depth, previous_depth = sign * (point[axis] - limit), sign * (previous[axis] - limit)
            if (depth > 0) != (previous_depth > 0):
                t = previous_depth / (previous_depth - depth)
                clipped.append((previous[0] + t * (point[0] - previous[0]), previous[1] + t * (point[1] - previous[1])))
            if depth > 0:
                clipped.append(point)
        polygon = clipped
    return abs(sum(polygon[i - 1][0] * p[1] - p[0] * polygon[i - 1][1] for i, p in enumerate(polygon))) / 2


@given(
    st.floats(-20, 120), st.floats(-20, 120), st.floats(1, 150), st.integers(1, 100), st.integers(1, 100),
    st.sampled_from([0, 30, 45, 90, 135, 179]),
)  # fmt: skip
def test_areas_inside_a_slice_are_those_of_clipped_squares(x, y, side, right, bottom, degrees):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = side / 2 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    square = corners @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
    expected = clipped_area([tuple(corner) for corner in square.tolist()], right, bottom)
    assert _areas_inside(square[None], right, bottom)[0] == pytest.approx(expected, abs=1e-9 * side**2)


def test_the_shifted_patches_count_towards_the_outside_fraction():
    # Centre on the border: the largest patch lies outside by half, one of side 1.4 d that is moved by (p, p) by more.
    d, shift = 30.0, 3.0
    half_diagonal = 0.7 * d * math.sqrt(2)
    inside = (half_diagonal - shift * math.sqrt(2)) ** 2 / (1.4 * d) ** 2  # turned by 45 degrees, moved straight out
    for centre_xy in ((0.0, 100.0), (200.0, 100.0), (100.0, 0.0), (100.0, 200.0)):
        assert worst_outside_fraction(centre_xy, d, (1.0, 1.0), 200, 200) == pytest.approx(1 - inside, abs=1e-9)


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_outlines_drawn_in_blocks_give_the_same_mask(monkeypatch, at_once):
    """Any number of crossings at a time, polygons reaching beyond every border, and far away."""
    rng = np.random.default_rng(at_once)
    for spread in (3.0, 30.0, 1e4):
        polygons = [rng.normal(rng.choice([-9, 20, 45]), spread, (rng.integers(3, 40), 2)) for _ in range(3)]
        whole = polygons_to_mask(polygons, 40, 37, convention="pixel_centre")
        with monkeypatch.context() as patch:
            patch.setattr(margins, "_CROSSINGS_AT_ONCE", at_once)
            assert np.array_equal(polygons_to_mask(polygons, 40, 37, convention="pixel_centre"), whole)
        # The even-odd rule at each pixel centre, one by one.
        i, j = (int(v) for v in rng.integers(0, 37, 2))
        crossings = 0
        for polygon in polygons:
            for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                if (y0 <= i) != (y1 <= i) and x0 + (i - y0) * (x1 - x0) / (y1 - y0) < j:
                    crossings += 1
        assert whole[i, j] == bool(crossings % 2)
