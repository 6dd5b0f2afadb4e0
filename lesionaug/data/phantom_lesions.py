"""Phantom, step 2: cysts, metastases and hemangiomas as portal-phase CT shows them, in the liver, with drawn margins.

The margin is what the segmentation holds; the lesion's own boundary lies beside it, as it does under a radiologist's
pencil: margin = boundary + offset, the offset being N(0.5, 0.8) mm for the whole lesion (a little outside more often
than inside; scaled down for lesions below 20 mm) plus a smooth wobble along the outline of about 0.5 mm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionaug.data.phantom_anatomy import Geometry
from lesionaug.data.phantom_scan import Scan
from lesionaug.data.phantom_shapes import (
    ANGLES,
    Box,
    Float,
    Star,
    blend,
    coverage,
    ellipse,
    smooth_noise,
    soft_max,
    soft_min,
    wobble,
)

CLASSES = ("cyst", "metastasis", "hemangioma")
SMALLEST_MM, LARGEST_MM = 10.5, 101.0  # of the margin; a mask measures up to a pixel more, and must stay within 10-102

# Median (mm) and spread (sigma of the logarithm) of the diameter; elongation; roughness of the outline.
SIZES: dict[str, tuple[float, float]] = {"cyst": (25.0, 0.50), "metastasis": (29.0, 0.50), "hemangioma": (30.0, 0.52)}
ELONGATION: dict[str, float] = {"cyst": 0.14, "metastasis": 0.18, "hemangioma": 0.20}
ROUGHNESS: dict[str, float] = {"cyst": 0.022, "metastasis": 0.045, "hemangioma": 0.050}


@dataclass(frozen=True)
class LesionShape:
    """A lesion's boundary and its margin as stars around (0, 0), before it has a place."""

    name: str  # class name
    boundary_mm: NDArray[np.float64]  # radii by angle
    margin_mm: NDArray[np.float64]
    diameter_mm: float  # largest diameter of the margin

    @property
    def reach_mm(self) -> float:
        """The larger of both outlines' largest radii."""
        return float(max(self.boundary_mm.max(), self.margin_mm.max()))


def draw_shape(name: str, rng: np.random.Generator) -> LesionShape:
    """Draw size and outline of a lesion: diameter log-normal per class, 10.5-101 mm."""
    median, sigma = SIZES[name]
    diameter = 0.0
    while not SMALLEST_MM <= diameter <= LARGEST_MM:
        diameter = float(rng.lognormal(np.log(median), sigma))
    stretch = 1 + abs(float(rng.normal(0, ELONGATION[name])))
    radii = ellipse((0.0, 0.0), stretch, 1.0, float(rng.uniform(0, 180))).radii_mm
    radii = radii * (1 + wobble(rng, ROUGHNESS[name] * float(rng.uniform(0.5, 1.4)), range(2, 9), 0.9))
    offset = float(rng.normal(0.5, 0.8)) * min(1.0, diameter / 20)
    drawn = offset + wobble(rng, 0.35 * min(1.0, diameter / 20), range(1, 7), 0.7)
    boundary = radii * diameter / 2
    for _ in range(3):  # scale the boundary until the margin around it has the diameter
        boundary = boundary * (diameter - 2 * offset) / max(largest_diameter(boundary + drawn) - 2 * offset, 1.0)
    return LesionShape(name, boundary, boundary + drawn, diameter)


def largest_diameter(radii_mm: NDArray[np.float64]) -> float:
    """Measure the largest distance between two points of a star's boundary (Feret diameter), in mm."""
    step = len(radii_mm) // 256
    radii, angles = radii_mm[::step], ANGLES[::step]
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    return float(np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2).max()))


@dataclass(frozen=True)
class PlacedLesion:
    """A lesion in its slice.

    Attributes:
        box: The part of the slice that holds it and its surroundings.
        depth: Signed depth under its boundary in the box, float32 mm, flattened where wall, spine or vessels stop it.
        mask: The margin's pixels in the box (bool; pixel-centre rule).
    """

    shape: LesionShape
    star: Star
    box: Box
    depth: Float
    mask: NDArray[np.bool_]


def place_lesions(shapes: list[LesionShape], geometry: Geometry, rng: np.random.Generator) -> list[PlacedLesion] | None:
    """Find places for all lesions of a slice, none touching another; None when they do not fit together.

    A lesion's centre lies 0.55-1.1 of its radius under the liver's surface (0.9 of the largest depth there is for the
    large ones), so some are deep inside and some bulge over the surface, and the liver grows around these.
    """
    grid = geometry.grid
    coarse = 4
    liver_depth = ndimage.distance_transform_edt(geometry.liver[::coarse, ::coarse] > 0) * grid.spacing_mm * coarse
    placed: list[PlacedLesion] = []
    for shape in sorted(shapes, key=lambda shape: -shape.diameter_mm):  # the large one has the fewest places
        radius = shape.diameter_mm / 2
        wanted = min(radius * float(rng.uniform(0.55, 1.1)) + 2, 0.9 * float(liver_depth.max()))
        free = liver_depth >= wanted
        for other in placed:
            distance = np.hypot(
                grid.x[:, ::coarse] - other.star.center_mm[0], grid.y[::coarse] - other.star.center_mm[1]
            )
            free &= distance > shape.reach_mm + other.shape.reach_mm + 6
        rows, columns = np.nonzero(free)
        if len(rows) == 0:
            return None
        pick = int(rng.integers(len(rows)))
        jitter = rng.uniform(-2, 2, size=2)
        center = (
            float(grid.x[0, coarse * columns[pick]] + jitter[0]),
            float(grid.y[coarse * rows[pick], 0] + jitter[1]),
        )
        placed.append(_placed(shape, center, geometry))
    return [next(p for p in placed if p.shape is shape) for shape in shapes]


def _placed(shape: LesionShape, center_mm: tuple[float, float], geometry: Geometry) -> PlacedLesion:
    grid = geometry.grid
    box = grid.box(center_mm, shape.reach_mm + 12)
    x, y, allowed = grid.x[:, box[1]], grid.y[box[0]], geometry.allowed[box]
    star = Star(center_mm, shape.boundary_mm)
    depth = soft_min(star.depth(x, y), allowed, 3.0)
    mask = (Star(center_mm, shape.margin_mm).depth(x, y) >= 0) & (allowed > -1.0)
    return PlacedLesion(shape, star, box, depth, mask)


def enlarged_liver(geometry: Geometry, lesions: list[PlacedLesion]) -> Float:
    """Grow 4-10 mm of parenchyma over lesions that bulge out of the liver; its new depth map, [512, 512]."""
    liver = geometry.liver.copy()
    for lesion in lesions:
        rim = 4 + 0.06 * lesion.shape.diameter_mm
        grown = soft_max(liver[lesion.box], lesion.depth + np.float32(rim), 12.0)
        liver[lesion.box] = np.minimum(grown, geometry.allowed[lesion.box])
    return liver


@dataclass(frozen=True)
class _Canvas:
    """What a lesion is painted with: local coordinates and the tissue around it, all [h, w] of its box."""

    depth: Float  # mm under the boundary
    inner: Float  # the same in mean radii: 0 at the boundary, about 1 in the middle
    x: Float
    y: Float
    radius_mm: float
    liver_hu: float
    pool_hu: float  # the blood pool: enhanced vessels
    spacing_mm: float
    rng: np.random.Generator

    def field(self, correlation_mm: float) -> Float:
        """Draw smooth noise of unit variance with a correlation length in mm."""
        shape = (self.depth.shape[0], self.depth.shape[1])
        return smooth_noise(self.rng, shape, max(0.6, correlation_mm / self.spacing_mm))

    def spot(self, angle: float, inner: float, along_mm: float, across_mm: float, ragged: float = 0.25) -> Float:
        """Draw a soft blob, 0 to 1: `inner` radii under the boundary, half-axes `along_mm` and `across_mm`, [h, w]."""
        distance = self.radius_mm * (1 - inner)
        dx, dy = self.x - np.float32(distance * np.cos(angle)), self.y - np.float32(distance * np.sin(angle))
        radial = dx * np.float32(np.cos(angle)) + dy * np.float32(np.sin(angle))
        tangential = -dx * np.float32(np.sin(angle)) + dy * np.float32(np.cos(angle))
        size = np.hypot(tangential / np.float32(along_mm), radial / np.float32(across_mm))
        size *= 1 + np.float32(ragged) * self.field(0.35 * (along_mm + across_mm) / 2 + 0.5)
        soft: Float = np.clip((1.15 - size) / np.float32(0.45), 0, 1)
        return soft


def _paint_cyst(canvas: _Canvas) -> tuple[Float, float]:
    """Water (0-20 HU), homogeneous, sharp; one in eight has a thin septum, one in ten is a little dense (to 30 HU)."""
    rng = canvas.rng
    base = float(np.clip(rng.normal(9, 5), 0, 20)) if rng.random() > 0.1 else float(rng.uniform(20, 30))
    hu = np.full_like(canvas.depth, base) + 1.0 * canvas.field(4.0)
    if canvas.radius_mm > 8 and rng.random() < 0.125:
        turn, offset = float(rng.uniform(0, np.pi)), float(rng.uniform(-0.4, 0.4)) * canvas.radius_mm
        line = canvas.x * np.float32(np.cos(turn)) + canvas.y * np.float32(np.sin(turn)) - np.float32(offset)
        line = line + 0.8 * canvas.field(6.0)
        hu = hu + np.float32(rng.uniform(20, 40)) * coverage(np.float32(0.6) - np.abs(line), 0.8)
    return hu, 0.5


def _paint_metastasis(canvas: _Canvas) -> tuple[Float, float]:
    """Soft tissue (40-80 HU), ill-defined, uneven; a target-like rim, a necrotic centre, dense spots in some."""
    rng, radius = canvas.rng, canvas.radius_mm
    base = min(float(rng.uniform(40, 80)), canvas.liver_hu - 16)
    hu = base + float(rng.uniform(2, 7)) * canvas.field(float(rng.uniform(2.0, 5.0)))
    kind = rng.random()
    if kind < 0.42:  # target: a rim of denser tumour, sometimes enhancing, broken in places
        thickness = float(rng.uniform(0.16, 0.34))
        rim = np.exp(-(((canvas.inner - 0.7 * thickness) / np.float32(thickness)) ** 2))
        uneven = np.clip(0.75 + 0.35 * canvas.field(0.5 * radius), 0.0, 1.3)
        hu = hu + np.float32(rng.uniform(14, 54)) * rim * uneven
    if 0.22 < kind < 0.70:  # necrosis: an irregular centre towards fluid
        edge = float(rng.uniform(0.45, 0.75))
        dead = np.clip((canvas.inner + 0.12 * canvas.field(0.3 * radius + 0.8) - edge) / np.float32(0.2), 0, 1)
        hu = hu + dead * (np.float32(rng.uniform(12, 40)) - hu)
    if rng.random() < 0.62:  # dense spots: viable or bleeding tissue, vessels; these look like faint nodules
        for _ in range(int(rng.integers(1, 6))):
            size = float(np.clip(rng.uniform(0.10, 0.32) * radius, 1.2, 9))
            spot = canvas.spot(
                float(rng.uniform(0, 2 * np.pi)),
                float(rng.uniform(0.05, 0.6)),
                size * float(rng.uniform(1.0, 1.7)),
                size,
            )
            hu = np.maximum(hu, base + np.float32(rng.uniform(24, 74)) * spot)
    if rng.random() < 0.08:  # calcified: a few small hard spots, as of mucinous primaries
        for _ in range(int(rng.integers(1, 4))):
            size = float(rng.uniform(0.8, 2.0))
            spot = canvas.spot(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.2, 0.95)), size, size)
            hu = np.maximum(hu, np.float32(rng.uniform(140, 320)) * spot)
    return hu, float(rng.uniform(1.2, 2.5) + min(3.5, 0.12 * radius) * rng.uniform(0.1, 1.1))


def _paint_hemangioma(canvas: _Canvas) -> tuple[Float, float]:
    """Hypodense; broken nodules near blood pool along the boundary, filling in; some small ones filled."""
    rng, radius = canvas.rng, canvas.radius_mm
    base = min(float(rng.uniform(40, 76)), canvas.liver_hu - 18)
    pool = canvas.pool_hu - float(rng.uniform(2, 28))
    hu = base + 3.0 * canvas.field(3.0)
    if radius < 11 and rng.random() < 0.35:  # filled: nearly blood pool all over, with a darker dot at most
        hu = max(pool - 8, canvas.liver_hu + 18) + 5 * canvas.field(2.5)
        return hu - np.float32(rng.uniform(0, 30)) * np.clip(canvas.inner * 1.5 - 0.6, 0, 1), float(rng.uniform(0.8, 2))
    faint = rng.random() < 0.5
    peak = min(base + float(rng.uniform(26, 56)), canvas.liver_hu - 6) if faint else pool
    progress = float(rng.beta(1.2, 3.0))  # of the fill-in at the time of the scan
    start = float(rng.uniform(0, 2 * np.pi))
    num_nodules = int(rng.integers(2, 6))
    for number in range(num_nodules):
        angle = start + 2 * np.pi * (number + float(rng.uniform(-0.35, 0.35))) / num_nodules
        across = max(1.6, radius * float(rng.uniform(0.10, 0.18)) * (1 + 0.9 * progress))
        along = across * float(rng.uniform(1.2, 2.8))
        inner = float(across / radius * rng.uniform(0.5, 0.9))
        spot = canvas.spot(angle, inner, along, across)
        hu = np.maximum(hu, hu + spot * (np.float32(peak - rng.uniform(0, 14)) - hu))
    glow = np.clip(1 - canvas.inner / np.float32(0.25 + 0.7 * progress), 0, 1)
    patches = np.clip(0.5 + 0.6 * canvas.field(0.35 * radius + 0.8), 0, 1)
    hu = hu + np.float32((0.12 if faint else 0.2) + 0.35 * progress) * glow * patches * np.maximum(peak - hu, 0)
    return hu, float(rng.uniform(0.9, 3.2))


_PAINTERS: dict[str, Callable[[_Canvas], tuple[Float, float]]] = {
    "cyst": _paint_cyst,
    "metastasis": _paint_metastasis,
    "hemangioma": _paint_hemangioma,
}


def paint_lesion(hu: Float, lesion: PlacedLesion, geometry: Geometry, scan: Scan, rng: np.random.Generator) -> None:
    """Paint a lesion into `hu` ([512, 512] float32, before blur and noise) in place.

    Edges soften with slice thickness: a boundary that leans by an angle passes several mm within a thick slice, and
    in a small lesion the slice holds some of the liver above and below it.
    """
    patient, grid, box = geometry.patient, geometry.grid, lesion.box
    x = grid.x[:, box[1]] - np.float32(lesion.star.center_mm[0])
    y = grid.y[box[0]] - np.float32(lesion.star.center_mm[1])
    radius = float(np.sqrt((lesion.shape.boundary_mm**2).mean()))
    canvas = _Canvas(
        depth=lesion.depth,
        inner=lesion.depth / np.float32(radius),
        x=np.broadcast_to(x, lesion.depth.shape),
        y=np.broadcast_to(y, lesion.depth.shape),
        radius_mm=radius,
        liver_hu=patient.liver_hu,
        pool_hu=patient.vessel_hu,
        spacing_mm=grid.spacing_mm,
        rng=rng,
    )
    inside, edge_mm = _PAINTERS[lesion.shape.name](canvas)
    lean = abs(float(rng.normal(0, 0.35)))
    curved = scan.thickness_mm**2 / (8 * radius)
    depth = lesion.depth
    if lesion.shape.name == "metastasis":  # its edge is ragged as well as soft
        depth = depth + np.float32(min(1.2, 0.06 * radius)) * canvas.field(2.5)
    edge = float(np.hypot(edge_mm, lean * scan.thickness_mm)) + curved
    covered = coverage(depth - np.float32(curved / 2), edge)
    covered = covered * covered * (3 - 2 * covered)
    share = 1 - 0.5 * min(1.0, scan.thickness_mm / (2 * radius)) ** 2 * float(rng.uniform(0, 1))
    blend(hu, box, covered * np.float32(share), inside)
