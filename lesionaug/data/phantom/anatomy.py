"""Phantom, step 1: the upper abdomen of a made-up patient in portal-phase CT, in space, and what one slice cuts of it.

`draw_patient` draws everything about a patient once, so all slices of it belong together; `cut_slice` gives the shapes
of a slice before anything is painted, so that lesions can be placed among them. `painting` paints them in HU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.phantom.recipe import TissueRecipe
from lesionaug.data.phantom.shapes import (
    ANGLES,
    Ellipsoid,
    Float,
    Grid,
    Point,
    Star,
    Waves,
    draw_waves,
    ellipse,
    slab_coverage,
    soft_max,
    soft_min,
    sub_slices,
    through_points,
    wobble,
)
from lesionaug.data.phantom.vessels import Points, Tubes, grow_tree, polyline

LOWEST_MM, HIGHEST_MM = -42.0, 70.0  # where slices are taken: from the gallbladder up to below the heart

# The liver's outline in slices from the dome to its tip: radii (in half-widths of the body) around its middle, by
# angle in degrees from the patient's left towards the back. Beyond the wall means: up to the wall.
_LIVER_ANGLES = [-95.0, -50, -28, -14, -5, 4, 14, 27, 42, 56, 70, 84, 100, 180, 240]
_LIVER_OUTLINES: dict[float, list[float]] = {
    65.0: [1.1, 1.05, 0.86, 0.74, 0.64, 0.56, 0.50, 0.44, 0.42, 0.46, 0.62, 0.90, 1.2, 1.2, 1.1],
    35.0: [1.1, 1.10, 1.02, 0.92, 0.78, 0.60, 0.45, 0.35, 0.33, 0.40, 0.60, 0.90, 1.2, 1.2, 1.1],
    5.0: [1.1, 1.10, 1.02, 0.92, 0.74, 0.50, 0.38, 0.29, 0.28, 0.37, 0.57, 0.90, 1.2, 1.2, 1.1],
    -20.0: [1.1, 1.05, 0.92, 0.72, 0.54, 0.40, 0.32, 0.27, 0.27, 0.35, 0.52, 0.84, 1.2, 1.2, 1.1],
    -45.0: [1.1, 0.95, 0.70, 0.48, 0.36, 0.29, 0.25, 0.22, 0.24, 0.31, 0.42, 0.68, 1.1, 1.2, 1.1],
    -75.0: [0.8, 0.62, 0.42, 0.26, 0.19, 0.15, 0.14, 0.14, 0.17, 0.24, 0.34, 0.58, 0.9, 1.2, 1.0],
}


@dataclass(frozen=True)
class Values:
    """Tissue values of a patient, HU."""

    liver: float
    vessel: float
    aorta: float
    cava: float
    spleen: float
    muscle: float
    kidney: float
    fat: float
    stomach: float
    bone: float
    pancreas: float
    bile: float


class Surroundings(NamedTuple):
    """What bounds the liver and is the same at every height: depths in mm on a grid, and the gap before the wall."""

    cavity: Float
    gap: Float
    vertebra: Float
    aorta: Float
    cava: Float


@dataclass(frozen=True)
class Patient:
    """One made-up patient: build in mm, tissue values in HU, organs and vessels in space."""

    half_width_mm: float
    half_height_mm: float
    hu: Values
    body: Star
    fat_mm: NDArray[np.float64]  # by angle around the origin, [NUM_ANGLES]
    wall_mm: NDArray[np.float64]
    gap_mm: NDArray[np.float64]  # fat between the liver and the wall
    dome_mm: tuple[float, float, float]  # where the diaphragm's cap begins, height of its right and left half
    dome_tilt: float
    liver_center_mm: tuple[float, float]
    liver_heights_mm: NDArray[np.float64]
    liver_outlines_mm: NDArray[np.float64]  # [heights, NUM_ANGLES]
    surface: Waves
    vertebra: Star
    aorta: Star
    cava: Star
    disc_mm: float
    rib_mm: float
    cleft_mm: float  # how deep the round ligament's cleft is in low slices; 0 for none
    organs: dict[str, Ellipsoid]
    veins: Tubes
    hilum: Tubes
    pancreas: Tubes
    small_vessels: Tubes
    texture: Waves
    mottle: Waves

    def cavity_depth(self, x: Float, y: Float) -> Float:
        """Depth under the inner face of the body wall."""
        index = self.body.angle_index(x, y)
        depth: Float = self.body.depth(x, y) - (self.fat_mm + self.wall_mm).astype(np.float32)[index]
        return depth

    def dome_depth(self, x: Float, y: Float, z: Float | float) -> Float:
        """Depth under the diaphragm's two domes; large where the wall bounds the abdomen."""
        a, b = np.float32(self.half_width_mm), np.float32(self.half_height_mm)
        begin, right, left = (np.float32(v) for v in self.dome_mm)
        above = np.maximum(z - (begin - np.float32(self.dome_tilt) * y), 0)
        halves = []
        for side, height in ((-1, right), (1, left)):
            level = np.sqrt(
                ((x - np.float32(side * 0.36) * a) / (np.float32(0.80) * a)) ** 2
                + (y / (np.float32(1.25) * b)) ** 2
                + (above / height) ** 2
            )
            halves.append((1 - level) * np.float32(0.9) * b)
        domes: Float = soft_max(halves[0], halves[1], 12.0)
        return domes

    def peritoneum_depth(self, x: Float, y: Float, z: Float | float, cavity: Float) -> Float:
        """Depth inside the abdominal cavity, below the diaphragm, given the depth inside the wall."""
        depth: Float = np.minimum(cavity - np.float32(0.3), self.dome_depth(x, y, z))
        return depth

    def surroundings(self, x: Float, y: Float) -> Surroundings:
        """What bounds the liver at every height."""
        return Surroundings(
            cavity=self.cavity_depth(x, y),
            gap=self.gap_mm.astype(np.float32)[self.body.angle_index(x, y)],
            vertebra=self.vertebra.depth(x, y),
            aorta=self.aorta.depth(x, y),
            cava=self.cava.depth(x, y),
        )

    def allowed_depth(self, x: Float, y: Float, z: float, around: Surroundings) -> Float:
        """Where liver or lesion may be: inside the peritoneum, off the spine, the great vessels and the kidney."""
        depth = self.peritoneum_depth(x, y, z, around.cavity) - around.gap
        depth = soft_min(depth, -(around.vertebra + 7), 8.0)
        depth = soft_min(depth, -(around.aorta + 4), 4.0)
        depth = np.minimum(depth, -(around.cava - np.float32(0.5)))  # the cava lies in a groove of the liver
        depth = soft_min(depth, -(self.organs["right kidney"].depth(x, y, z) + 4), 5.0)
        return soft_min(depth, -self.organs["right kidney's fat"].depth(x, y, z), 5.0)

    def liver_outline(self, z: float) -> Star:
        """The liver's own outline in the plane at z, before wall and neighbours stop it."""
        at = float(np.interp(z, self.liver_heights_mm, np.arange(len(self.liver_heights_mm))))
        low = min(int(at), len(self.liver_heights_mm) - 2)
        share = at - low
        radii = (1 - share) * self.liver_outlines_mm[low] + share * self.liver_outlines_mm[low + 1]
        return Star(self.liver_center_mm, radii)

    def liver_depth(self, x: Float, y: Float, z: float, allowed: Float) -> Float:
        """Depth inside the liver in the plane at z, given where it may be."""
        own = self.liver_outline(z).depth(x, y) + np.float32(2.5) * self.surface.on(x, y, z)
        own = soft_min(own, -(self.organs["gallbladder"].depth(x, y, z) + 1), 3.0)
        return soft_min(own, allowed, 9.0)

    def spleen_depth(self, x: Float, y: Float, z: float, peritoneum: Float) -> Float:
        """Depth inside the spleen in the plane at z; stomach and kidney have pressed a hollow into it."""
        middle = (0.28 * self.half_width_mm, 0.1 * self.half_height_mm, 10.0)
        hollow = Ellipsoid(middle, (46.0, 52.0, 90.0), np.eye(3))
        own = self.organs["spleen"].depth(x, y, z) + np.float32(2.5) * self.surface.on(x, y, z)
        return soft_min(soft_min(own, -hollow.depth(x, y, z), 5.0), peritoneum - np.float32(1.5), 6.0)


def draw_patient(rng: np.random.Generator, tissue: TissueRecipe | None = None) -> Patient:
    """Draw a patient: build, tissue values, organs and vessels."""
    tissue = tissue or TissueRecipe()
    a = float(np.clip(rng.normal(160, 12), 140, 182))
    b = a * float(rng.uniform(0.66, 0.78))
    power = float(rng.uniform(2.1, 2.5))
    outline = (np.abs(np.cos(ANGLES) / a) ** power + np.abs(np.sin(ANGLES) / b) ** power) ** (-1 / power)
    outline *= 1 + wobble(rng, 0.008, range(2, 8))
    outline -= 4 * np.exp(-(((ANGLES - np.pi / 2) / 0.12) ** 2))  # the furrow over the spine
    body = Star((0.0, 0.0), outline)

    from_back = np.rad2deg(np.angle(np.exp(1j * (ANGLES - np.pi / 2))))  # 0 at the back, +90 patient right, -90 left
    front = np.exp(-(((np.abs(from_back) - 180) / 55) ** 2))
    fat_mm = float(np.clip(rng.lognormal(np.log(13), 0.45), 5, 30))
    fat = fat_mm * (1 - 0.25 * front) * np.exp(wobble(rng, 0.12, range(1, 6)))
    wall = float(rng.uniform(12, 16)) * (1 - 0.3 * front) * np.exp(wobble(rng, 0.05, range(2, 6)))
    wall += float(rng.uniform(16, 26)) * np.exp(-(((np.abs(from_back) - 19) / 15) ** 2))
    wall += 12 * np.exp(-((from_back / 10) ** 2))
    gap = np.clip(wobble(rng, 1.0, range(1, 12), 0.3) - 0.6, 0.0, 3.5)

    spine_y = b - fat_mm - 62 + float(rng.normal(0, 2))
    vertebra = ellipse((float(rng.normal(0, 2)), spine_y), float(rng.uniform(19, 23)), float(rng.uniform(14.5, 17)))
    side, front_y = vertebra.center_mm
    aorta_radius = float(rng.uniform(9, 12))
    aorta = ellipse((side + float(rng.uniform(8, 16)), front_y - 18 - aorta_radius), aorta_radius, aorta_radius * 0.97)
    cava = ellipse(
        (side - float(rng.uniform(20, 27)), front_y - float(rng.uniform(28, 36))),
        float(rng.uniform(11, 15)),
        float(rng.uniform(8, 12)),
        float(rng.uniform(-30, 30)),
    )
    vertebra = replace(vertebra, radii_mm=vertebra.radii_mm * (1 + wobble(rng, 0.025, range(2, 7))))
    aorta = replace(aorta, radii_mm=aorta.radii_mm * (1 + wobble(rng, 0.015, range(2, 5))))
    cava = replace(cava, radii_mm=cava.radii_mm * (1 + wobble(rng, 0.07, range(2, 6))))

    center = (-0.37 * a + float(rng.normal(0, 4)), -0.22 * b + float(rng.normal(0, 4)))
    turn, left_lobe = float(rng.normal(0, 4)), float(rng.uniform(0.72, 1.06))
    reach = np.array([1.0, 1.0, 1.0, left_lobe, left_lobe, left_lobe, (1 + left_lobe) / 2] + [1.0] * 8)
    heights = sorted(_LIVER_OUTLINES)
    bumps = 1 + wobble(rng, 0.025, range(2, 9), 0.8)
    outlines = [
        through_points([v + turn for v in _LIVER_ANGLES], list(np.array(_LIVER_OUTLINES[h]) * reach * a), 3.0) * bumps
        for h in heights
    ]
    stretch = float(rng.uniform(0.9, 1.15))

    patient = Patient(
        half_width_mm=a,
        half_height_mm=b,
        hu=_draw_values(rng, tissue),
        body=body,
        fat_mm=fat,
        wall_mm=wall,
        gap_mm=gap,
        dome_mm=(float(rng.uniform(-48, -28)), float(rng.uniform(108, 124)), float(rng.uniform(96, 112))),
        dome_tilt=float(rng.uniform(0.3, 0.45)),
        liver_center_mm=center,
        liver_heights_mm=np.array(heights) * stretch,
        liver_outlines_mm=np.array(outlines),
        surface=draw_waves(rng, 60.0),
        vertebra=vertebra,
        aorta=aorta,
        cava=cava,
        disc_mm=float(rng.uniform(0, 33)),
        rib_mm=float(rng.uniform(0, 32)),
        cleft_mm=float(rng.uniform(12, 36)) * (rng.random() < 0.7),
        organs=_draw_organs(rng, a, b, center),
        veins=Tubes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0)),
        hilum=Tubes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0)),
        pancreas=_draw_pancreas(rng, a, b),
        small_vessels=_draw_small_vessels(rng, a, b),
        texture=draw_waves(rng, 8.0, num=96, spread=0.4),
        mottle=draw_waves(rng, 24.0, num=64, spread=0.5),
    )
    return _with_vessels(patient, rng)


def _draw_values(rng: np.random.Generator, tissue: TissueRecipe) -> Values:
    """Draw tissue values: one enhancement for all vessels, a liver of its own, one in ten steatotic."""
    steatotic = rng.random() < tissue.steatosis
    mean, spread = tissue.liver_hu
    liver = float(np.clip(rng.normal(mean, spread), mean - 2 * spread, mean + 2.2 * spread))
    if steatotic:
        liver = float(rng.uniform(*tissue.steatotic_hu))
    enhancement = float(rng.normal(0, tissue.enhancement_hu))
    water = rng.random() < 0.6  # drunk before the scan; else oral contrast
    return Values(
        liver=liver,
        vessel=max(liver + 25, tissue.vessel_hu + enhancement + float(rng.normal(0, 4))),
        aorta=tissue.vessel_hu - 4 + enhancement + float(rng.normal(0, 5)),
        cava=max(liver + 6, tissue.vessel_hu - 26 + enhancement + float(rng.normal(0, 9))),
        spleen=122 + enhancement + float(rng.normal(0, 5)),
        muscle=float(rng.normal(60, 4)),
        kidney=180 + enhancement + float(rng.normal(0, 8)),
        fat=float(rng.normal(-102, 4)),
        stomach=float(rng.uniform(8, 35)) if water else float(rng.uniform(120, 260)),
        bone=float(rng.normal(205, 28)),
        pancreas=float(rng.normal(98, 8)),
        bile=float(rng.uniform(2, 16)),
    )


def _ellipsoid(rng: np.random.Generator, center: Point, half_axes: Point, turn_deg: float = 0.0) -> Ellipsoid:
    """Make an ellipsoid with a middle and size that vary a little, turned about the body's axis and slightly tilted."""
    turn, lean, roll = np.deg2rad([turn_deg + rng.normal(0, 5), rng.normal(0, 8), rng.normal(0, 8)])
    about_z = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(lean), np.sin(lean)], [0, -np.sin(lean), np.cos(lean)]])
    about_y = np.array([[np.cos(roll), 0, np.sin(roll)], [0, 1, 0], [-np.sin(roll), 0, np.cos(roll)]])
    moved = tuple(float(c + rng.normal(0, 3)) for c in center)
    sized = tuple(float(h * rng.uniform(0.88, 1.12)) for h in half_axes)
    return Ellipsoid((moved[0], moved[1], moved[2]), (sized[0], sized[1], sized[2]), about_y @ about_x @ about_z)


def _draw_organs(rng: np.random.Generator, a: float, b: float, liver: tuple[float, float]) -> dict[str, Ellipsoid]:
    """Draw the organs that are near enough to ellipsoids."""
    organs = {
        "spleen": _ellipsoid(rng, (0.66 * a, 0.24 * b, 18.0), (0.19 * a, 0.46 * b, 62.0), -16),
        "left kidney": _ellipsoid(rng, (0.37 * a, 0.38 * b, -38.0), (28.0, 24.0, 54.0), 50),
        "right kidney": _ellipsoid(rng, (-0.33 * a, 0.46 * b, -80.0), (28.0, 24.0, 54.0), -50),
        "right kidney's fat": _ellipsoid(rng, (-0.31 * a, 0.58 * b, -80.0), (44.0, 40.0, 64.0)),
        "gallbladder": _ellipsoid(rng, (liver[0] + 0.17 * a, liver[1] + 0.02 * b, -52.0), (15.0, 19.0, 30.0)),
        "colon left": _ellipsoid(rng, (0.70 * a, -0.40 * b, -38.0), (19.0, 23.0, 40.0)),
        "colon front": _ellipsoid(rng, (0.22 * a, -0.58 * b, -62.0), (48.0, 19.0, 26.0)),
        "colon right": _ellipsoid(rng, (-0.38 * a, -0.30 * b, -92.0), (26.0, 24.0, 34.0)),
        "stomach": _ellipsoid(rng, (0.40 * a, -0.20 * b, 18.0), (0.25 * a, 0.33 * b, 78.0), 15),
        "esophagus": _ellipsoid(rng, (0.12 * a, 0.12 * b, 80.0), (10.0, 8.0, 46.0)),
    }
    for number in range(int(rng.integers(6, 11))):  # loops of jejunum below the stomach
        where = (float(rng.uniform(0.08, 0.55)) * a, float(rng.uniform(-0.45, 0.1)) * b, float(rng.uniform(-80, -35)))
        organs[f"bowel {number}"] = _ellipsoid(rng, where, (15.0, 11.0, 13.0), float(rng.uniform(0, 180)))
    return organs


def _draw_pancreas(rng: np.random.Generator, a: float, b: float) -> Tubes:
    """Draw head, body and tail of the pancreas as a thick line across the midline, rising to the spleen."""
    corners = [(-0.10, -0.12, -48.0), (-0.04, -0.14, -28.0), (0.08, -0.18, -16.0), (0.22, -0.08, -10.0)]
    corners += [(0.38, 0.06, -4.0), (0.50, 0.16, 3.0)]
    points = [(x * a + rng.normal(0, 3), y * b + rng.normal(0, 3), z + rng.normal(0, 3)) for x, y, z in corners]
    return polyline(points, [13, 12, 9, 9.5, 10, 8])


def _draw_small_vessels(rng: np.random.Generator, a: float, b: float) -> Tubes:
    """Draw vessels in the fat of the left side: short crooked lines in space."""
    tubes = []
    for _ in range(int(rng.integers(45, 70))):
        point = np.array([rng.uniform(-0.15, 0.62) * a, rng.uniform(-0.55, 0.35) * b, rng.uniform(-70, 70)])
        path, direction = [point], rng.normal(size=3)
        for _ in range(int(rng.integers(3, 7))):
            direction = direction + rng.normal(0, 0.5, size=3)
            point = point + 5 * direction / np.linalg.norm(direction)
            path.append(point)
        radius = float(np.clip(rng.lognormal(np.log(1.3), 0.35), 0.7, 3))
        tubes.append(polyline([(float(p[0]), float(p[1]), float(p[2])) for p in path], radius))
    return sum(tubes[1:], tubes[0])


def _with_vessels(patient: Patient, rng: np.random.Generator) -> Patient:
    """Grow the portal vein from the hilum and three hepatic veins from the cava into the liver."""
    a, b = patient.half_width_mm, patient.half_height_mm

    # The liver's depth on a lattice of 4 mm: near enough for vessels, and looked up instead of worked out.
    step, low = 4.0, np.array([-a, -b, -72.0])
    xs = np.arange(-a, 0.8 * a, step).astype(np.float32)[None]
    ys = np.arange(-b, b, step).astype(np.float32)[:, None]
    around = patient.surroundings(xs, ys)
    planes = []
    for z in np.arange(low[2], 92, step):
        allowed = patient.allowed_depth(xs, ys, float(z), around)
        planes.append(soft_min(patient.liver_outline(float(z)).depth(xs, ys), allowed, 9.0))
    lattice = np.stack(planes)  # [z, y, x]

    def inside(points: Points, margin: float = 3.0) -> NDArray[np.bool_]:
        at = np.rint((points - low) / step).astype(np.intp)[:, ::-1]
        within = ((at >= 0) & (at < lattice.shape)).all(axis=1)
        at = np.where(within[:, None], at, 0)
        found: NDArray[np.bool_] = within & (lattice[at[:, 0], at[:, 1], at[:, 2]] > margin)
        return found

    points = np.stack(
        [rng.uniform(-a, 0.75 * a, 2600), rng.uniform(-b, 0.8 * b, 2600), rng.uniform(-66, 82, 2600)], axis=1
    )
    points = points[inside(points, 5.0)][:520]
    portal, hepatic = points[::2], points[1::2]

    hilum = np.array([-0.10 * a, patient.liver_center_mm[1] + 0.24 * b, float(rng.uniform(-6, 6))])
    shift = rng.normal(0, 4, size=(6, 3))
    confluence = (0.04 * a, hilum[1] + 10, hilum[2] - 30)
    fork = hilum + np.array([-12, -6, 6])
    right = fork + np.array([-22, 4, 4]) + shift[0]
    left = fork + np.array([16, -18, 14]) + shift[1]
    trunks = [
        [fork, right, right + np.array([-20, 22, -10]) + shift[2]],
        [fork, right + np.array([-8, -4, 2]), right + np.array([-22, -20, 10]) + shift[3]],
        [fork, left, left + np.array([2, -24, 2]) + shift[4]],
    ]
    portal_tree = grow_tree([_points(t) for t in trunks], portal, 6.8, 0.95, rng, inside)
    stem = polyline([confluence, _point(hilum), _point(fork)], float(rng.uniform(6.2, 7.6)))

    mouth = np.array([patient.cava.center_mm[0], patient.cava.center_mm[1] - 6, 62.0])
    ends = [(-0.62 * a, 0.05 * b, 5.0), (-0.36 * a, -0.42 * b, 5.0), (0.12 * a, -0.45 * b, 25.0)]
    veins = [
        [_point(mouth), _point(mouth * 0.55 + np.array(e) * 0.45 + rng.normal(0, 5, size=3) + [0, 0, 8]), e]
        for e in ends
    ]
    hepatic_tree = grow_tree(veins, hepatic, 5.2, 0.9, rng, inside)
    splenic = polyline(
        [confluence, (0.2 * a, 0.02 * b, hilum[2] - 16), (0.42 * a, 0.12 * b, 0), (0.52 * a, 0.2 * b, 8)], 4.2
    )
    return replace(patient, veins=portal_tree + hepatic_tree, hilum=stem + splenic)


def _point(values: NDArray[np.float64]) -> Point:
    return (float(values[0]), float(values[1]), float(values[2]))


def _points(path: list[NDArray[np.float64]]) -> list[Point]:
    return [_point(p) for p in path]


@dataclass(frozen=True)
class Geometry:
    """The shapes of one slice: depths in mm, [512, 512] float32, at its middle height."""

    patient: Patient
    grid: Grid
    z_mm: float
    thickness_mm: float
    body: Float
    cavity: Float
    peritoneum: Float
    allowed: Float
    liver: Float
    liver_lean_mm: Float  # what the liver's depth changes over the thickness
    spleen: Float
    spleen_lean_mm: Float

    def slab(self, depth_at: Callable[[float], Float], edge_mm: float | None = None) -> Float:
        """Coverage of a shape by this slice, see `slab_coverage`."""
        return slab_coverage(depth_at, self.z_mm, self.thickness_mm, self.edge_mm if edge_mm is None else edge_mm)

    @property
    def edge_mm(self) -> float:
        """Width of an upright boundary's ramp: a pixel and a bit."""
        return max(1.0, 1.2 * self.grid.spacing_mm)

    @property
    def heights(self) -> list[float]:
        """Planes that sample the slice's thickness."""
        return sub_slices(self.z_mm, self.thickness_mm)


def cut_slice(patient: Patient, grid: Grid, z_mm: float, thickness_mm: float) -> Geometry:
    """Cut the patient at a height (0 is the hilum) and find the shapes of the slice."""
    x, y = grid.x, grid.y
    around = patient.surroundings(x, y)

    def allowed(z: float) -> Float:
        return patient.allowed_depth(x, y, z, around)

    peritoneum = patient.peritoneum_depth(x, y, z_mm, around.cavity)
    top, bottom = z_mm + thickness_mm / 2, z_mm - thickness_mm / 2
    above, below = (patient.liver_depth(x, y, z, allowed(z)) for z in (top, bottom))
    upper, lower = (patient.spleen_depth(x, y, z, peritoneum) for z in (top, bottom))
    return Geometry(
        patient=patient,
        grid=grid,
        z_mm=z_mm,
        thickness_mm=thickness_mm,
        body=patient.body.depth(x, y),
        cavity=around.cavity,
        peritoneum=peritoneum,
        allowed=allowed(z_mm),
        liver=np.float32(0.5) * (above + below),
        liver_lean_mm=np.abs(above - below),
        spleen=np.float32(0.5) * (upper + lower),
        spleen_lean_mm=np.abs(upper - lower),
    )
