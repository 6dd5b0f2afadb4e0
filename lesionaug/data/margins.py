"""From a drawn margin to the lesion's mask, diameter, centre and the crop a store keeps (docs/definitions.md, 1).

Points are (x, y) in the corner convention: the origin is the top-left corner of the image and the centre of pixel
(row i, column j) lies at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Convention = Literal["pixel_centre", "pixel_edge"]

# Reach of the augmentations around the centre of a lesion of diameter d, in units of d (paper, section III-A): the
# un-augmented side is 1.4 d, scaling adds at most 0.4 d on either side, and any of it is turned freely.
_SIDE = 1.4
_LARGEST_SIDE = _SIDE + 2 * 0.4
_PATCH_SIZE = 64  # pixels of an output patch; the resampling kernel widens with side / 64

_CROSSINGS_AT_ONCE = 1 << 20  # of outlines with rows of pixels, worked on together


def polygons_to_mask(
    polygons: Sequence[NDArray[np.float64]], height: int, width: int, *, convention: Convention
) -> NDArray[np.bool_]:
    """Draw closed polygons into a mask; a pixel belongs to it when its centre lies inside.

    Inside is the even-odd rule over all polygons together, so a polygon within another cuts a hole (XOR), and a
    keyhole contour works too. A centre exactly on an outline belongs to the polygon when the outline is a left or an
    upper one (more precisely: an edge spans the rows y_low <= y < y_high, and a crossing at x turns on the pixels whose
    centre is >= x); two polygons that share an edge therefore share no pixel and leave no gap.

    Args:
        polygons: Each [n, 2], (x, y); the last point is joined to the first.
        height: Rows of the mask.
        width: Columns of the mask.
        convention: What an integer coordinate means: "pixel_centre" (DICOM patient coordinates, most tables) or
            "pixel_edge" (this package's own, COCO, LabelMe, DICOM SR).

    Returns:
        Boolean [height, width]; parts outside the image are left out.
    """
    # Every crossing of an edge with a row of pixel centres flips all pixels to its right; cumulating them gives parity.
    half = 0.5 if convention == "pixel_centre" else 0.0
    outlines = [np.asarray(polygon, dtype=np.float64) + half for polygon in polygons if len(polygon)]
    inside = np.zeros((height, width), dtype=np.bool_)
    if not outlines:
        return inside
    # Only the box about the outlines is worked on, with a pixel to spare for the rounding of a crossing.
    low = np.min([outline.min(axis=0) for outline in outlines], axis=0)
    high = np.max([outline.max(axis=0) for outline in outlines], axis=0)
    left, top = (int(v) for v in np.clip(np.floor(low) - 1, 0, [width, height]))
    right, bottom = (int(v) for v in np.clip(np.ceil(high) + 1, 0, [width, height]))
    flips = np.zeros((max(0, bottom - top), max(0, right - left) + 1), dtype=np.int64)
    for start in outlines:
        end = np.roll(start, -1, axis=0)
        downward = (start[:, 1] <= end[:, 1])[:, None]
        upper, lower = np.where(downward, start, end), np.where(downward, end, start)
        # Rows i with upper_y <= i + 0.5 < lower_y.
        first = np.clip(np.ceil(upper[:, 1] - 0.5), top, bottom).astype(np.int64)
        count = np.clip(np.ceil(lower[:, 1] - 0.5), top, bottom).astype(np.int64) - first
        before = np.cumsum(count)  # crossings of an edge and of those before it
        done = 0
        while done < len(start):  # edges in blocks: a few million wild edges cross every row
            crossed = before[done - 1] if done else 0
            block = slice(done, max(done + 1, int(np.searchsorted(before, crossed + _CROSSINGS_AT_ONCE, side="right"))))
            _flip(flips, (left, top), upper[block], lower[block], first[block], count[block])
            done = block.stop
    inside[top:bottom, left:right] = np.cumsum(flips, axis=1)[:, :-1] % 2 == 1
    return inside


def _flip(
    flips: NDArray[np.int64],
    corner: tuple[int, int],
    upper: NDArray[np.float64],
    lower: NDArray[np.float64],
    first: NDArray[np.int64],
    count: NDArray[np.int64],
) -> None:
    """Count the crossings of edges [n, 2] -> [n, 2] with the rows first .. first + count - 1, at their columns.

    `flips` is the part of the picture whose first pixel is `corner` (x, y), and one column more.
    """
    left, top = corner
    edge = np.repeat(np.arange(len(upper)), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
    crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    column = np.clip(np.ceil(crossing - 0.5), left, left + flips.shape[1] - 1).astype(np.int64)
    np.add.at(flips, (row - top, column - left), 1)


def polygons_reach_outside(
    polygons: Sequence[NDArray[np.float64]], height: int, width: int, *, convention: Convention
) -> bool:
    """Whether any part of the polygons lies outside the image."""
    half = 0.5 if convention == "pixel_centre" else 0.0
    points = np.concatenate([np.asarray(polygon, dtype=np.float64) for polygon in polygons]) + half
    return bool((points < 0).any() or (points[:, 0] > width).any() or (points[:, 1] > height).any())


def centre(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """The middle (x, y) of the mask's bounding box, corner convention.

    Raises:
        ValueError: For an empty mask.
    """
    top, bottom, left, right = bounding_box(mask)
    return (left + right) / 2, (top + bottom) / 2


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the mask, bottom and right exclusive.

    Raises:
        ValueError: For an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise ValueError("the mask is empty: a lesion needs at least one pixel")
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def diameter_px(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> float:
    """The lesion diameter d: the largest distance between corner points of mask pixels.

    Args:
        mask: Boolean [height, width], at least one pixel.
        spacing_mm: (s_x, s_y); only their ratio matters.

    Returns:
        d in pixels of size min(s_x, s_y), exact to float64 rounding (the two ends of the largest distance are corners
        of the convex hull, so only those are compared).

    Raises:
        ValueError: For an empty mask.
    """
    top, bottom, left, right = bounding_box(mask)
    rows = np.flatnonzero(mask[top:bottom].any(axis=1)) + top
    window = mask[rows, left:right]
    first = left + window.argmax(axis=1)
    last = right - window[:, ::-1].argmax(axis=1)
    # Only the outermost corners of a row can lie on the hull.
    corners = {
        (int(x), int(y))
        for i, low, high in zip(rows, first, last, strict=True)
        for y in (i, i + 1)
        for x in (low, high)
    }
    hull = np.array(_convex_hull(sorted(corners)), dtype=np.float64)
    smallest = min(spacing_mm)
    hull *= np.array([spacing_mm[0] / smallest, spacing_mm[1] / smallest])
    squared = ((hull[:, None, :] - hull[None, :, :]) ** 2).sum(axis=2)
    return math.sqrt(float(squared.max()))


def _convex_hull(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The corners of the convex hull of sorted integer points (Andrew's monotone chain, exact in integers)."""

    def half(ordered: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        chain: list[tuple[int, int]] = []
        for x, y in ordered:
            while len(chain) >= 2:
                (ax, ay), (bx, by) = chain[-2], chain[-1]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    return half(points) + half(points[::-1])


def crop_box(
    centre_xy: tuple[float, float], diameter: float, spacing_mm: tuple[float, float], height: int, width: int
) -> tuple[int, int, int, int]:
    """The part of the slice that a store keeps, so that no augmented patch ever misses a pixel the slice has.

    A square of half-side 1.556 d + 2 max(1, 2.2 d / 64) + 1 pixels of size min(spacing): the reach of the largest
    turned patch, the support of the cubic kernel at that scale, and one pixel of rounding.

    Args:
        centre_xy: Centre of the lesion in the slice, corner convention.
        diameter: d in pixels of size min(spacing).
        spacing_mm: (s_x, s_y); a coarser axis needs fewer pixels for the same reach.
        height: Rows of the slice.
        width: Columns of the slice.

    Returns:
        (top, bottom, left, right), bottom and right exclusive, clipped to the slice.
    """
    half_side = 1.556 * diameter + 2 * max(1.0, _LARGEST_SIDE * diameter / _PATCH_SIZE) + 1
    smallest = min(spacing_mm)
    reach_x, reach_y = half_side * smallest / spacing_mm[0], half_side * smallest / spacing_mm[1]
    x, y = centre_xy
    return (
        max(0, math.floor(y - reach_y)),
        min(height, math.ceil(y + reach_y)),
        max(0, math.floor(x - reach_x)),
        min(width, math.ceil(x + reach_x)),
    )


def worst_outside_fraction(
    centre_xy: tuple[float, float], diameter: float, spacing_mm: tuple[float, float], height: int, width: int
) -> float:
    """The largest share of the area of any augmented patch that can lie outside the slice, 0 .. 1.

    The paper's patches are the square of side 1.4 d shifted by up to p = min(4, 0.1 d) along either of its axes, and
    squares of side up to 2.2 d around the centre, all at any angle. For a centre inside the slice the share of the
    centred squares grows with their side and that of the shifted ones with the shift towards a corner, so the largest
    square and the four corner shifts are enough; the angle is searched in whole degrees. The areas are exact.

    Args:
        centre_xy: Centre of the lesion in the slice, corner convention.
        diameter: d in pixels of size min(spacing).
        spacing_mm: (s_x, s_y).
        height: Rows of the slice.
        width: Columns of the slice.
    """
    smallest = min(spacing_mm)
    scale_x, scale_y = spacing_mm[0] / smallest, spacing_mm[1] / smallest  # now the pixels are square
    x, y, right, bottom = centre_xy[0] * scale_x, centre_xy[1] * scale_y, width * scale_x, height * scale_y
    if min(x, y, right - x, bottom - y) >= _LARGEST_SIDE / 2 * math.sqrt(2) * diameter:
        return 0.0
    shift = min(4.0, 0.1 * diameter)
    patches = [(_LARGEST_SIDE * diameter, 0.0, 0.0)]
    patches += [(_SIDE * diameter, dx, dy) for dx in (-shift, shift) for dy in (-shift, shift)]
    angles = np.deg2rad(np.arange(180.0))
    turns = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], -1).reshape(-1, 2, 2)
    worst = 0.0
    for side, dx, dy in patches:
        corners = side / 2 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]) + (dx, dy)
        inside = _areas_inside(corners @ turns + (x, y), right, bottom)
        worst = max(worst, 1.0 - float(inside.min()) / side**2)
    return min(1.0, worst)


def _areas_inside(polygons: NDArray[np.float64], right: float, bottom: float) -> NDArray[np.float64]:
    """Areas of polygons [n, corners, 2] within the rectangle (0, 0) .. (right, bottom), float64 [n].

    By Green's theorem each is the integral, along the edges, of y held to 0 .. bottom over x where it is in 0 .. right.
    """
    x0, y0 = polygons[..., 0], polygons[..., 1]
    x1, y1 = np.roll(x0, -1, axis=1), np.roll(y0, -1, axis=1)
    start, end = np.clip(x0, 0, right), np.clip(x1, 0, right)
    slope = (y1 - y0) / np.where(x1 == x0, np.inf, x1 - x0)  # an edge that goes straight down adds nothing
    one, other = y0 + slope * (start - x0), y0 + slope * (end - x0)
    low, high = np.minimum(one, other), np.maximum(one, other)
    held_low, held_high = np.clip(low, 0, bottom), np.clip(high, 0, bottom)
    between, above = held_high - held_low, np.maximum(high - np.maximum(low, bottom), 0)
    length = between + above + np.maximum(np.minimum(high, 0) - low, 0)
    mean = (between * (held_low + held_high) / 2 + above * bottom) / np.where(length > 0, length, 1.0)
    areas: NDArray[np.float64] = np.abs(((end - start) * np.where(length > 0, mean, held_low)).sum(axis=1))
    return areas


def mask_edges(mask: NDArray[Any]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The edges between mask pixels and others, as lines between (x, y) corner points: the margin as it was stored."""
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    edges = [((float(x), float(y)), (float(x + 1), float(y))) for y, x in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    edges += [((float(x), float(y)), (float(x), float(y + 1))) for y, x in zip(rows, columns, strict=True)]
    return edges
