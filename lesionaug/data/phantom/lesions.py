"""Phantom, step 3: lesions in the liver as portal-phase CT shows them, with drawn margins.

What a class looks like is its `LesionRecipe`; here every lesion is painted by the same steps: ground tissue, rim, dead
middle, nodules under the boundary, fill-in, dense spots, septum, calcification. A lesion is a body in space. The slice
takes the mean over its thickness, so partial volume needs no rule of its own.

The margin is what the segmentation holds; the lesion's own boundary lies beside it, as it does under a radiologist's
pencil: margin = boundary + offset, the offset being N(0.5, 0.8) mm for the whole lesion (a little outside more often
than inside; scaled down for lesions below 20 mm) plus a smooth wobble along the outline of about 0.5 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from lesionaug.data.phantom.anatomy import Geometry
from lesionaug.data.phantom.recipe import LesionRecipe
from lesionaug.data.phantom.shapes import (
    Box,
    Ellipsoid,
    Float,
    Star,
    Waves,
    blend,
    coverage,
    draw_rotation,
    draw_waves,
    soft_max,
    soft_min,
    sub_slices,
    wobble,
)

SMALLEST_MM, LARGEST_MM = 10.5, 101.0  # of the margin; a mask measures up to a pixel more, and must stay within 10-102
SMALL_MM = 22.0  # below it a hemangioma may be filled already


@dataclass(frozen=True)
class LesionBody:
    """A lesion in space around (0, 0, 0), before it has a place.

    Attributes:
        name: Class name.
        recipe: What it looks like.
        diameter_mm: Largest diameter of its margin in the slice.
        ellipsoid: Its shape without bumps.
        bumps: What the bumps add to the depth, times `bump_mm`.
        bump_mm: Their standard deviation.
        offset_mm: By how much the margin lies outside, by angle [NUM_ANGLES].
        height_mm: Where the slice cuts it, off its middle.
    """

    name: str
    recipe: LesionRecipe
    diameter_mm: float
    ellipsoid: Ellipsoid
    bumps: Waves
    bump_mm: float
    offset_mm: NDArray[np.float64]
    height_mm: float

    @property
    def radius_mm(self) -> float:
        """Mean radius of the body."""
        return float(np.prod(self.ellipsoid.half_axes_mm) ** (1 / 3))

    @property
    def reach_mm(self) -> float:
        """No boundary, and no margin, lies farther away than this."""
        return self.ellipsoid.reach_mm + 3 * self.bump_mm + float(max(self.offset_mm.max(), 0)) + 1

    def depth(self, x: Float, y: Float, z: float) -> Float:
        """Depth under its boundary at (x, y) relative to its middle, `z` mm above the slice's middle."""
        height = self.height_mm + z
        return self.ellipsoid.depth(x, y, height) + np.float32(self.bump_mm) * self.bumps.on(x, y, height)

    def margin_depth(self, x: Float, y: Float) -> Float:
        """Depth under the drawn margin in the slice."""
        outline = Star((0.0, 0.0), self.offset_mm)
        return self.depth(x, y, 0.0) + self.offset_mm.astype(np.float32)[outline.angle_index(x, y)]


def draw_body(name: str, recipe: LesionRecipe, rng: np.random.Generator) -> LesionBody:
    """Draw size and shape of a lesion: diameter of the margin in the slice log-normal, 10.5-101 mm."""
    diameter = 0.0
    while not SMALLEST_MM <= diameter <= LARGEST_MM:
        diameter = float(rng.lognormal(np.log(recipe.median_mm), recipe.spread))
    stretch = 1 + np.abs(rng.normal(0, recipe.elongation, size=2))
    axes = draw_rotation(rng)
    bumps = draw_waves(rng, 2 * np.pi / recipe.lobes, num=24, spread=0.25)  # of the unit sphere
    lobulation = recipe.lobulation * float(rng.uniform(0.5, 1.4))
    offset = float(rng.normal(0.5, 0.8)) * min(1.0, diameter / 20)
    drawn = offset + wobble(rng, 0.35 * min(1.0, diameter / 20), range(1, 7), 0.7)
    height = float(np.clip(rng.normal(0, 0.15), -0.4, 0.4))
    radius = diameter / 2
    for _ in range(4):  # scale the body until the margin in the slice has the diameter
        body = LesionBody(
            name,
            recipe,
            diameter,
            Ellipsoid((0.0, 0.0, 0.0), (radius * stretch[0], radius * stretch[1], radius), axes),
            Waves(bumps.vectors / np.float32(radius), bumps.phases),
            lobulation * radius,
            drawn,
            height * radius,
        )
        radius *= (diameter - 2 * offset) / max(_diameter(body) - 2 * offset, 1.0)
    return body


def _diameter(body: LesionBody) -> float:
    """Measure the margin's largest diameter in the slice on a grid of a 200th of it, mm."""
    line = np.linspace(-1, 1, 161, dtype=np.float32) * np.float32(body.reach_mm)
    mask = _one_piece(body.margin_depth(line[None], line[:, None]) >= 0)
    rows, columns = np.nonzero(mask & ~ndimage.binary_erosion(mask))
    points = np.stack([line[columns], line[rows]], axis=1)
    if len(points) < 3:
        return 1.0
    hull = points[ConvexHull(points, qhull_options="QJ").vertices]
    return float(np.hypot(*(hull[:, None] - hull[None]).transpose(2, 0, 1)).max())


def _one_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest part of a mask, without holes."""
    labels, num = ndimage.label(mask)
    if num > 1:
        mask = labels == 1 + int(np.argmax(ndimage.sum_labels(mask, labels, range(1, num + 1))))
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(mask)
    return filled


@dataclass(frozen=True)
class PlacedLesion:
    """A lesion in its slice.

    Attributes:
        body: The lesion.
        center_mm: Its middle in the slice (x, y).
        box: The part of the slice that holds it and its surroundings.
        depth: Signed depth under its boundary in the box, float32 mm, flattened where wall, spine or vessels stop it.
        mask: The margin's pixels in the box (bool; pixel-centre rule).
    """

    body: LesionBody
    center_mm: tuple[float, float]
    box: Box
    depth: Float
    mask: NDArray[np.bool_]


def place_lesions(
    bodies: list[LesionBody], geometry: Geometry, host: Float, rng: np.random.Generator
) -> list[PlacedLesion] | None:
    """Find places for all lesions of a slice, none touching another; None when they do not fit together.

    Some lie deep inside and some bulge over the surface, and the organ grows around these; a lesion that is too large
    for the depth it wants takes 0.9 of the largest depth there is.

    Args:
        bodies: The lesions.
        geometry: The slice.
        host: Depth in the organ that holds them, [512, 512] mm.
        rng: Of the places.
    """
    grid = geometry.grid
    coarse = 4
    near = geometry.patient.veins.cut(grid, geometry.heights[:1], 0.9)[::coarse, ::coarse] > 0.4
    to_vessel = ndimage.distance_transform_edt(~near) * grid.spacing_mm * coarse
    host_depth = ndimage.distance_transform_edt(host[::coarse, ::coarse] > 0) * grid.spacing_mm * coarse
    placed: list[PlacedLesion] = []
    for body in sorted(bodies, key=lambda body: -body.diameter_mm):  # the large one has the fewest places
        radius = body.diameter_mm / 2
        wanted = min(radius * float(rng.uniform(*body.recipe.under_surface)) + 2, 0.9 * float(host_depth.max()))
        free = host_depth >= wanted
        for other in placed:
            distance = np.hypot(grid.x[:, ::coarse] - other.center_mm[0], grid.y[::coarse] - other.center_mm[1])
            free &= distance > body.reach_mm + other.body.reach_mm + 6
        touching = free & (np.abs(to_vessel - radius) < 4)
        if rng.random() < body.recipe.at_vessel and touching.any():
            free = touching
        rows, columns = np.nonzero(free)
        if len(rows) == 0:
            return None
        pick = int(rng.integers(len(rows)))
        jitter = rng.uniform(-2, 2, size=2)
        center = (
            float(grid.x[0, coarse * columns[pick]] + jitter[0]),
            float(grid.y[coarse * rows[pick], 0] + jitter[1]),
        )
        placed.append(_placed(body, center, geometry))
    return [next(p for p in placed if p.body is body) for body in bodies]


def _placed(body: LesionBody, center_mm: tuple[float, float], geometry: Geometry) -> PlacedLesion:
    grid = geometry.grid
    box = grid.box(center_mm, body.reach_mm + 12)
    x, y = grid.x[:, box[1]] - np.float32(center_mm[0]), grid.y[box[0]] - np.float32(center_mm[1])
    allowed = geometry.allowed[box]
    depth = soft_min(body.depth(x, y, 0.0), allowed, 3.0)
    mask = _one_piece((body.margin_depth(x, y) >= 0) & (allowed > -1.0))
    return PlacedLesion(body, center_mm, box, depth, mask)


def enlarged_host(host: Float, geometry: Geometry, lesions: list[PlacedLesion]) -> Float:
    """Grow 2-5 mm of parenchyma over lesions that bulge out of their organ; its new depth map, [512, 512]."""
    grown = host.copy()
    for lesion in lesions:
        rim = 1.5 + 0.03 * lesion.body.diameter_mm
        around = soft_max(grown[lesion.box], lesion.depth + np.float32(rim), 8.0)
        grown[lesion.box] = np.minimum(around, geometry.allowed[lesion.box])
    return grown


class _Ingredients:
    """What is drawn once for a lesion, so that all planes through it belong together."""

    def __init__(self, body: LesionBody, host_hu: float, pool_hu: float, rng: np.random.Generator) -> None:
        self.body, self.rng = body, rng
        recipe, radius = body.recipe, body.radius_mm
        self.radius = radius
        self.hu = min(self.draw(recipe.hu), host_hu - recipe.below_liver_hu)
        self.host_hu, self.pool_hu = host_hu, pool_hu
        self.grain_hu = self.draw(recipe.grain_hu)
        self.grain = draw_waves(rng, self.draw((7.0, 16.0)), num=64, spread=0.4)
        self.coarse = draw_waves(rng, 1.3 * radius + 2, num=24)
        self.fine = draw_waves(rng, 0.7 * radius + 2, num=32)
        self.ragged = draw_waves(rng, self.draw((7.0, 13.0)), num=48)
        self.ragged_mm = min(1.5, recipe.ragged * radius)
        self.edge_mm = self.draw(recipe.edge_mm) + self.draw(recipe.edge_share) * min(radius, 30.0)
        self.rim = self.chance(recipe.rim)
        self.rim_thickness, self.rim_hu = self.draw(recipe.rim_thickness), self.draw(recipe.rim_hu)
        self.necrosis = self.chance(recipe.necrosis)
        self.necrosis_from, self.necrosis_hu = self.draw(recipe.necrosis_from), self.draw(recipe.necrosis_hu)
        self.fill = self.draw(recipe.fill)
        self.filled = body.diameter_mm < SMALL_MM and self.chance(recipe.filled)
        nodules = round(self.draw(recipe.num_nodules)) if self.chance(recipe.nodules) else 0
        self.nodules = [self._nodule(recipe) for _ in range(nodules)]
        self.brightest = self.draw(recipe.nodule_pool)
        spots = round(self.draw(recipe.num_spots)) if self.chance(recipe.spots) else 0
        self.spots = [
            (self._direction(), self.draw(recipe.spot_inner), self.draw(recipe.spot_size), self.draw(recipe.spot_pool))
            for _ in range(spots)
        ]
        self.septum = self._direction() if self.chance(recipe.septum) and radius > 7 else None
        self.septum_at, self.septum_hu = self.draw((-0.4, 0.4)) * radius, self.draw((25.0, 45.0))
        if self.chance(recipe.cystic):  # dead almost to the boundary: it can pass for a cyst
            self.necrosis, self.rim, self.spots, self.nodules = True, False, [], []
            self.necrosis_from, self.edge_mm = self.draw((0.02, 0.16)), min(self.edge_mm, 1.2)
        hard = int(rng.integers(1, 5)) if self.chance(recipe.calcified) else 0
        self.calcified = [
            (self._direction(), self.draw((0.2, 0.95)), self.draw((0.8, 2.0)), self.draw((160.0, 420.0)))
            for _ in range(hard)
        ]

    def draw(self, between: tuple[float, float]) -> float:
        return float(self.rng.uniform(*between))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def _direction(self) -> NDArray[np.float64]:
        """A direction in space, more often near the slice than above or below it."""
        direction = self.rng.normal(size=3) * [1.0, 1.0, 0.35]
        unit: NDArray[np.float64] = direction / np.linalg.norm(direction)
        return unit

    def _nodule(self, recipe: LesionRecipe) -> tuple[NDArray[np.float64], float, float, float]:
        height = self.draw(recipe.nodule_size) * (1 + 0.6 * self.fill)
        return self._direction(), height, height * self.draw(recipe.nodule_flatness), self.draw((0.8, 1.0))

    def paint(self, x: Float, y: Float, height: float, depth: Float) -> Float:
        """HU of its tissue in the plane at `height` above its middle, [h, w]; `depth` is that of the boundary."""
        radius = np.float32(self.radius)
        inner = depth / radius
        coarse, fine = self.coarse.on(x, y, height), self.fine.on(x, y, height)
        hu = np.float32(self.hu) + np.float32(self.grain_hu) * self.grain.on(x, y, height)
        if self.filled:  # nearly blood pool all over
            bright = max(self.hu + self.brightest * (self.pool_hu - self.hu), self.host_hu + 18)
            return np.float32(bright) + np.float32(0.7) * (hu - np.float32(self.hu)) + 3 * coarse
        if self.rim:
            thickness = np.float32(self.rim_thickness)
            ring = np.exp(-(((inner - 0.7 * thickness) / thickness) ** 2))
            gaps = np.clip(1 - np.float32(self.body.recipe.rim_gaps) * (0.8 - 0.9 * coarse), 0, 1.3)
            hu = hu + np.float32(self.rim_hu) * ring * gaps
        if self.necrosis:
            dead = np.clip((inner + 0.12 * fine - np.float32(self.necrosis_from)) / np.float32(0.2), 0, 1)
            hu = hu + dead * (np.float32(self.necrosis_hu) + np.float32(0.3 * self.grain_hu) * fine - hu)
        if self.nodules:
            hu = self._enhance(hu, x, y, height, inner, fine)
        for direction, at, size, pool in self.spots:
            blob = self._blob(x, y, height, direction * self.radius * (1 - at), max(1.2, size * self.radius), fine)
            hu = np.maximum(hu, np.float32(self.hu) + blob * np.float32(pool * (self.pool_hu - self.hu)))
        if self.septum is not None:
            nx, ny, nz = (np.float32(v) for v in self.septum)
            sheet = nx * x + ny * y + nz * np.float32(height) - np.float32(self.septum_at) + 0.06 * radius * coarse
            hu = hu + np.float32(self.septum_hu) * coverage(np.float32(0.7) - np.abs(sheet), 0.8)
        for direction, at, size, value in self.calcified:
            blob = self._blob(x, y, height, direction * self.radius * (1 - at), size, fine)
            hu = np.maximum(hu, np.float32(value) * blob)
        return hu

    def _enhance(self, hu: Float, x: Float, y: Float, height: float, inner: Float, fine: Float) -> Float:
        """Nodules hug the boundary, whatever its shape: they are laid out by direction and depth, not by place."""
        distance = np.sqrt(x * x + y * y + np.float32(height * height) + np.float32(1e-6))
        peak = np.float32(self.brightest * (self.pool_hu - self.hu))
        total = np.zeros_like(hu)
        for direction, tall, broad, strength in self.nodules:
            dx, dy, dz = (np.float32(v) for v in direction)
            cosine = np.clip((x * dx + y * dy + np.float32(height) * dz) / distance, -1, 1)
            along = np.arccos(cosine) * np.minimum(distance / np.float32(self.radius), 1)
            size = np.hypot(along / np.float32(broad), (inner - np.float32(0.55 * tall)) / np.float32(tall))
            size = size * (1 + np.float32(0.22) * fine)
            np.maximum(total, np.float32(strength) * np.clip((1.15 - size) / np.float32(0.4), 0, 1), out=total)
        glow = np.clip(1 - inner / np.float32(0.15 + 0.9 * self.fill), 0, 1)
        patches = np.clip(0.5 + 0.6 * fine, 0, 1)
        total = np.maximum(total, np.float32(0.85 * self.fill) * glow * patches)
        enhanced: Float = hu + peak * total
        return enhanced

    def _blob(self, x: Float, y: Float, height: float, center: NDArray[np.float64], size: float, fine: Float) -> Float:
        """A soft ball, 0 to 1, [h, w]."""
        cx, cy, cz = (np.float32(v) for v in center)
        distance = np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (np.float32(height) - cz) ** 2) / np.float32(size)
        ball: Float = np.clip((1.15 - distance * (1 + np.float32(0.2) * fine)) / np.float32(0.45), 0, 1)
        return ball


def paint_lesion(hu: Float, lesion: PlacedLesion, geometry: Geometry, host_hu: float, rng: np.random.Generator) -> None:
    """Paint a lesion into `hu` ([512, 512] float32, before blur and noise) in place; `host_hu` is its organ's value."""
    grid, box, body = geometry.grid, lesion.box, lesion.body
    x = grid.x[:, box[1]] - np.float32(lesion.center_mm[0])
    y = grid.y[box[0]] - np.float32(lesion.center_mm[1])
    drawn = _Ingredients(body, host_hu, geometry.patient.hu.vessel, rng)
    covered, tissue = np.zeros_like(lesion.depth), np.zeros_like(lesion.depth)
    heights = sub_slices(0.0, geometry.thickness_mm, max(1.0, geometry.thickness_mm / 4))
    for z in heights:
        height = body.height_mm + z
        depth = soft_min(body.depth(x, y, z), geometry.allowed[box], 3.0)
        painted = drawn.paint(x, y, height, depth)
        ragged = depth + np.float32(drawn.ragged_mm) * drawn.ragged.on(x, y, height)
        share = coverage(ragged, drawn.edge_mm)
        share = share * share * (3 - 2 * share)
        covered += share
        tissue += share * painted
    blend(hu, box, covered / np.float32(len(heights)), tissue / np.maximum(covered, np.float32(1e-6)))
