"""Phantom, step 1: the upper abdomen of a made-up patient in portal-phase CT, as soft shapes in HU on one slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionaug.data.phantom_shapes import (
    ANGLES,
    NUM_ANGLES,
    SLICE_SIZE,
    Box,
    Float,
    Grid,
    Star,
    blend,
    coverage,
    ellipse,
    smooth_noise,
    soft_max,
    soft_min,
    through_points,
    wobble,
)


@dataclass(frozen=True)
class Patient:
    """What one made-up patient keeps over all slices: build (mm) and tissue values (HU)."""

    half_width_mm: float
    half_height_mm: float
    squareness: float
    fat_mm: float
    wall_mm: float
    paraspinal_mm: float
    liver_hu: float
    vessel_hu: float
    aorta_hu: float
    cava_hu: float
    spleen_hu: float
    muscle_hu: float
    kidney_hu: float
    fat_hu: float
    stomach_hu: float
    bone_hu: float


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a patient: half-width 140-182 mm; liver 112 +- 8 HU, one in ten steatotic (75-95)."""
    half_width = float(np.clip(rng.normal(160, 12), 140, 182))
    liver = float(np.clip(rng.normal(112, 8), 97, 130)) if rng.random() > 0.1 else float(rng.uniform(75, 95))
    enhancement = float(rng.normal(0, 6))
    water = rng.random() < 0.7  # drunk before the scan; else oral contrast
    return Patient(
        half_width_mm=half_width,
        half_height_mm=half_width * float(rng.uniform(0.68, 0.78)),
        squareness=float(rng.uniform(2.15, 2.6)),
        fat_mm=float(np.clip(rng.lognormal(np.log(13), 0.45), 5, 30)),
        wall_mm=float(rng.uniform(12, 16)),
        paraspinal_mm=float(rng.uniform(16, 26)),
        liver_hu=liver,
        vessel_hu=max(liver + 25, 158 + enhancement + float(rng.normal(0, 4))),
        aorta_hu=152 + enhancement + float(rng.normal(0, 5)),
        cava_hu=136 + enhancement + float(rng.normal(0, 8)),
        spleen_hu=122 + enhancement + float(rng.normal(0, 5)),
        muscle_hu=float(rng.normal(58, 4)),
        kidney_hu=178 + enhancement + float(rng.normal(0, 8)),
        fat_hu=float(rng.normal(-100, 4)),
        stomach_hu=float(rng.uniform(8, 35)) if water else float(rng.uniform(120, 220)),
        bone_hu=float(rng.normal(190, 30)),
    )


@dataclass
class Geometry:
    """The shapes of one slice, drawn before anything is painted, so that lesions can be placed among them.

    Depths are [512, 512] float32 in mm. `allowed` is where liver or lesion may be: inside the peritoneum and off the
    spine and the great vessels.
    """

    patient: Patient
    grid: Grid
    level: float  # 0 at the dome of the liver, 1 at the kidneys
    body: Float
    cavity: Float
    peritoneum: Float
    allowed: Float
    liver: Float
    liver_center_mm: tuple[float, float]
    vertebra: Star
    aorta: Star
    cava: Star


def draw_geometry(patient: Patient, grid: Grid, level: float, rng: np.random.Generator) -> Geometry:
    """Draw the shapes of a slice at `level` (0 dome of the liver ... 1 kidneys)."""
    a, b = patient.half_width_mm, patient.half_height_mm
    p = patient.squareness
    outline = (np.abs(np.cos(ANGLES) / a) ** p + np.abs(np.sin(ANGLES) / b) ** p) ** (-1 / p)
    outline *= 1 + wobble(rng, 0.008, range(2, 8))
    groove = np.exp(-(((ANGLES - np.pi / 2) / 0.12) ** 2))  # over the spinous processes
    body_shape = Star((0.0, 0.0), outline - 4 * groove)
    body = body_shape.depth(grid.x, grid.y)
    index = body_shape.angle_index(grid.x, grid.y)

    from_back = np.rad2deg(np.angle(np.exp(1j * (ANGLES - np.pi / 2))))  # 0 at the back, +90 patient right, -90 left
    front = np.exp(-(((np.abs(from_back) - 180) / 55) ** 2))
    fat = patient.fat_mm * (1 - 0.25 * front) * np.exp(wobble(rng, 0.12, range(1, 6)))
    wall = patient.wall_mm * (1 - 0.3 * front) * np.exp(wobble(rng, 0.05, range(2, 6)))
    wall += patient.paraspinal_mm * np.exp(-(((np.abs(from_back) - 19) / 15) ** 2))
    wall += 12 * np.exp(-((from_back / 10) ** 2))
    lung = max(0.0, 1 - level / 0.45) * float(rng.uniform(10, 22)) + float(rng.uniform(0, 2))
    behind = np.exp(-(((np.abs(from_back) - 55) / 28) ** 2))  # the costophrenic recess: the lungs' lowest part
    recess = lung * behind * np.exp(wobble(rng, 0.1, range(1, 5)))
    cavity = body - (fat + wall).astype(np.float32)[index]
    peritoneum = cavity - recess.astype(np.float32)[index]

    spine_y = b - patient.fat_mm - 62 + float(rng.normal(0, 2))
    vertebra = ellipse((float(rng.normal(0, 2)), spine_y), float(rng.uniform(19, 23)), float(rng.uniform(14.5, 17)))
    side, front_y = vertebra.center_mm
    aorta_radius = float(rng.uniform(9, 12.5))
    aorta = ellipse((side + float(rng.uniform(8, 16)), front_y - 17 - aorta_radius), aorta_radius, aorta_radius * 0.97)
    cava = ellipse(
        (side - float(rng.uniform(20, 27)), front_y - float(rng.uniform(28, 36))),
        float(rng.uniform(11, 15)),
        float(rng.uniform(8, 12)),
        float(rng.uniform(-30, 30)),
    )

    gap = np.clip(
        0.5 + wobble(rng, 0.9, range(1, 8), 0.5), 0.1, 3.0
    )  # fat between the liver and the wall, not everywhere
    allowed = soft_min(peritoneum - gap.astype(np.float32)[index], -(vertebra.depth(grid.x, grid.y) + 7), 8.0)
    allowed = soft_min(allowed, -(aorta.depth(grid.x, grid.y) + 3), 4.0)
    allowed = np.minimum(allowed, -(cava.depth(grid.x, grid.y) - 0.5))  # the cava lies in a groove of the liver

    # The liver: the whole right side up to the wall (hence radii beyond it), the left lobe in front, the bare area and
    # the fissure behind. Angles in degrees from the patient's left towards the back; radii in half-widths.
    left = float(rng.uniform(0.6, 0.92)) * (1 - 0.35 * max(0.0, level - 0.5))
    angles = [-95.0, -50, -28, -14, -5, 4, 14, 27, 42, 56, 70, 84, 100, 180, 240]
    radii = [1.1, 1.1, 1.05, 0.98, left, 0.66 * left, 0.42, 0.30, 0.28, 0.38, 0.58, 0.9, 1.2, 1.2, 1.1]
    center = (-0.37 * a + float(rng.normal(0, 4)), -0.24 * b + float(rng.normal(0, 4)))
    turn = float(rng.normal(0, 4))
    shape = through_points([angle + turn for angle in angles], [r * a for r in radii], 3.0)
    liver = Star(center, shape * (1 + wobble(rng, 0.035, range(2, 9), 0.8))).depth(grid.x, grid.y)
    liver = soft_min(liver, allowed, 10.0)
    return Geometry(patient, grid, level, body, cavity, peritoneum, allowed, liver, center, vertebra, aorta, cava)


def draw_vessels(geometry: Geometry, rng: np.random.Generator) -> Float:
    """Draw portal and hepatic veins as the slice cuts them: the filled share of each pixel, [512, 512], 0 to 1.

    Branching tubes run outwards from the porta and the hepatic confluence, taper, and dip out of the slice; small dots
    are branches that cross it.
    """
    grid, a = geometry.grid, geometry.patient.half_width_mm
    filled = np.zeros((SLICE_SIZE, SLICE_SIZE), np.float32)
    cava = geometry.cava.center_mm
    porta = (geometry.liver_center_mm[0] + 18.0, geometry.liver_center_mm[1] + 12.0)
    tubes: list[tuple[float, float, float, float, float]] = []  # x, y, direction, radius, length left
    for _ in range(int(rng.integers(3, 7))):
        start = porta if rng.random() < 0.6 else (cava[0] - 8.0, cava[1] - 8.0)
        direction = np.pi + float(rng.uniform(-1.7, 1.7))
        offset = float(rng.uniform(0, 0.4)) * a
        tubes.append(
            (
                start[0] + offset * np.cos(direction),
                start[1] + offset * np.sin(direction),
                direction,
                float(rng.uniform(2.0, 4.8)),
                float(rng.uniform(0.15, 0.5)) * a,
            )
        )
    x, y = grid.x, grid.y

    def stamp(px: float, py: float, qx: float, qy: float, radius: float, seen: float) -> None:
        box = grid.box(((px + qx) / 2, (py + qy) / 2), radius + 2 + np.hypot(qx - px, qy - py) / 2)
        bx, by = x[:, box[1]] - np.float32(px), y[box[0]] - np.float32(py)
        dx, dy = np.float32(qx - px), np.float32(qy - py)
        along = np.clip((bx * dx + by * dy) / max(float(dx * dx + dy * dy), 1e-6), 0, 1)
        distance = np.hypot(bx - along * dx, by - along * dy)
        np.maximum(filled[box], coverage(np.float32(radius) - distance, 1.2) * np.float32(seen), out=filled[box])

    while tubes:
        px, py, direction, radius, left = tubes.pop()
        phase, dips = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(20, 60))
        while left > 0 and radius > 0.7:
            step = 5.0
            direction += float(rng.normal(0, 0.16))
            qx, qy = px + step * np.cos(direction), py + step * np.sin(direction)
            seen = float(np.clip(0.65 + 0.75 * np.sin(phase + left * 2 * np.pi / dips), 0, 1))
            if seen > 0.05:
                stamp(px, py, qx, qy, radius, seen)
            px, py, left, radius = qx, qy, left - step, radius * 0.955
            if radius > 1.4 and rng.random() < 0.11:
                turn = float(rng.choice([-1, 1])) * float(rng.uniform(0.5, 1.1))
                tubes.append((px, py, direction + turn, radius * float(rng.uniform(0.55, 0.85)), left * 0.8))
    for _ in range(int(rng.integers(18, 40))):
        px = geometry.liver_center_mm[0] + float(rng.normal(-0.05, 0.42)) * a
        py = geometry.liver_center_mm[1] + float(rng.normal(0.1, 0.3)) * a
        direction, length = float(rng.uniform(0, 2 * np.pi)), float(rng.exponential(2.5))
        radius = float(np.clip(rng.lognormal(np.log(1.3), 0.4), 0.6, 3.5))
        stamp(px, py, px + length * np.cos(direction), py + length * np.sin(direction), radius, rng.uniform(0.4, 1))
    return filled


def paint_anatomy(geometry: Geometry, liver_depth: Float, rng: np.random.Generator) -> Float:
    """Paint everything but the lesions, [512, 512] float32 HU, before blur and noise.

    `liver_depth` is the geometry's liver, or one that lesions have enlarged.
    """
    patient, grid = geometry.patient, geometry.grid
    b = patient.half_height_mm
    edge = max(1.0, 1.2 * grid.spacing_mm)
    hu = np.full((SLICE_SIZE, SLICE_SIZE), -1000, np.float32)
    everywhere: Box = (slice(None), slice(None))
    x, y = grid.x, grid.y

    # The table: a thin shell curved like a shallow dish, just under the back.
    dish = (b + 14) - (x / 260) ** 2 * 24 - y
    blend(hu, everywhere, coverage(np.float32(1.8) - np.abs(dish), edge) * (np.abs(x) < 210), 110)
    blend(hu, everywhere, coverage(np.float32(20) - np.abs(dish + 21), edge) * (np.abs(x) < 200 + dish), -960)
    blend(hu, everywhere, coverage(np.float32(1.2) - np.abs(dish + 41), edge) * (np.abs(x) < 160), 20)

    texture = smooth_noise(rng, (SLICE_SIZE, SLICE_SIZE), 2.2 / grid.spacing_mm)
    coarse = smooth_noise(rng, (SLICE_SIZE // 4, SLICE_SIZE // 4), 4.5 / (4 * grid.spacing_mm))
    coarse = ndimage.zoom(coarse, 4, order=1, mode="grid-wrap", grid_mode=True)

    blend(hu, everywhere, coverage(geometry.body, edge), 25)  # skin
    blend(hu, everywhere, coverage(geometry.body - 2, edge), patient.fat_hu + 4 * texture)
    index = np.rint(np.arctan2(y, x) * np.float32(NUM_ANGLES / (2 * np.pi))).astype(np.intp) % NUM_ANGLES
    muscle_depth = np.minimum(_fat_depth(geometry, index), geometry.body)
    marbled = patient.muscle_hu + 5 * texture - 45 * np.clip(coarse - 1.5, 0, 1)
    blend(hu, everywhere, coverage(muscle_depth, edge), marbled)
    blend(hu, everywhere, coverage(geometry.cavity, edge), patient.fat_hu + 5 + 7 * coarse)
    recess = np.minimum(geometry.cavity - 1.0, -geometry.peritoneum)
    blend(hu, everywhere, coverage(recess, edge + 0.5), -860 + 15 * texture)

    _paint_left_side(hu, geometry, texture, coarse, edge, rng)

    parenchyma = patient.liver_hu + 2.0 * coarse + 1.5 * texture
    vessels = draw_vessels(geometry, rng)
    parenchyma += vessels * (patient.vessel_hu - parenchyma)
    blend(hu, everywhere, coverage(liver_depth, edge), parenchyma)

    for vessel, value in ((geometry.aorta, patient.aorta_hu), (geometry.cava, patient.cava_hu)):
        box = grid.box(vessel.center_mm, vessel.reach_mm + 3)
        depth = vessel.depth(x[:, box[1]], y[box[0]])
        if vessel is geometry.aorta:
            blend(hu, box, coverage(depth + 1.2, edge), 50)  # its wall
        blend(hu, box, coverage(depth, edge), value)
    _paint_bones(hu, geometry, texture, edge, rng)
    return hu


def _fat_depth(geometry: Geometry, index: NDArray[np.intp]) -> Float:
    """Measure the depth under the fascia, the muscle ring's outer boundary between skin and cavity, [512, 512]."""
    # body - cavity is the local thickness of fat and wall together; the fat's share of it is the patient's.
    thickness = geometry.body - geometry.cavity
    fat = np.clip(np.float32(geometry.patient.fat_mm), 3, thickness - 7)
    front = np.exp(-(((ANGLES + np.pi / 2 + np.pi) % (2 * np.pi) - np.pi) ** 2) / 1.2).astype(np.float32)[index]
    depth: Float = geometry.body - fat * (1 - 0.2 * front)
    return depth


def _paint_left_side(
    hu: Float, geometry: Geometry, texture: Float, coarse: Float, edge: float, rng: np.random.Generator
) -> None:
    """Paint spleen, left kidney (low slices), stomach with gas over fluid, and small vessels in the fat."""
    patient, grid = geometry.patient, geometry.grid
    a, b = patient.half_width_mm, patient.half_height_mm
    x, y = grid.x, grid.y
    everywhere: Box = (slice(None), slice(None))
    inside = geometry.peritoneum - 2

    for _ in range(int(rng.integers(14, 26))):  # mesenteric vessels
        center = (float(rng.uniform(-0.1, 0.7)) * a, float(rng.uniform(-0.5, 0.4)) * b)
        shape = ellipse(center, float(rng.uniform(1.5, 6)), float(rng.uniform(1.2, 2.2)), float(rng.uniform(0, 180)))
        box = grid.box(center, shape.reach_mm + 2)
        covered = coverage(np.minimum(shape.depth(x[:, box[1]], y[box[0]]), inside[box]), 1.5)
        blend(hu, box, covered, float(rng.uniform(80, 150)))

    size = float(rng.uniform(0.8, 1.15))
    spleen = ellipse((0.63 * a, 0.22 * b), 0.19 * a * size, 0.46 * b * size, float(rng.uniform(-28, -8)))
    spleen = Star(spleen.center_mm, spleen.radii_mm * (1 + wobble(rng, 0.05, range(2, 7))))
    hollow = ellipse((0.30 * a, 0.12 * b), 0.27 * a, 0.42 * b)  # the stomach's and kidney's print on the hilum
    depth = np.minimum(spleen.depth(x, y), -hollow.depth(x, y))
    depth = soft_min(depth, inside, 6.0)
    blend(hu, everywhere, coverage(depth, edge), patient.spleen_hu + 2 * texture)

    if geometry.level > 0.6:
        center = (0.34 * a, 0.36 * b)
        kidney = ellipse(center, 27, 22, 50)
        sinus = ellipse((center[0] - 12, center[1] - 4), 10, 7, 60)
        box = grid.box(center, kidney.reach_mm + 4)
        bx, by = x[:, box[1]], y[box[0]]
        depth = np.minimum(kidney.depth(bx, by), -geometry.vertebra.depth(bx, by) - 8)
        depth = np.minimum(depth, geometry.peritoneum[box] + 8)
        blend(hu, box, coverage(depth, edge), patient.kidney_hu + 3 * texture[box])
        blend(hu, box, coverage(np.minimum(depth, sinus.depth(bx, by)), 3), patient.fat_hu + 30)

    center = (0.40 * a + float(rng.normal(0, 4)), -0.22 * b + float(rng.normal(0, 4)))
    stomach = ellipse(center, 0.24 * a * float(rng.uniform(0.8, 1.2)), 0.30 * b * float(rng.uniform(0.8, 1.2)), 20)
    stomach = Star(center, stomach.radii_mm * (1 + wobble(rng, 0.07, range(2, 7))))
    depth = soft_min(stomach.depth(x, y), inside, 6.0)
    blend(hu, everywhere, coverage(depth, edge), 75)
    folds = float(rng.uniform(3, 5)) + 1.2 * coarse
    content = np.broadcast_to(np.float32(patient.stomach_hu), hu.shape) + 8 * coarse
    blend(hu, everywhere, coverage(depth - folds, edge + 0.5), content)
    level = center[1] - float(rng.uniform(-0.1, 0.22)) * b  # gas rises to the front and lies on the fluid
    gas = np.minimum(depth - folds, level - y + 0.4 * coarse)
    blend(hu, everywhere, coverage(gas, edge), -920)


def _paint_bones(hu: Float, geometry: Geometry, texture: Float, edge: float, rng: np.random.Generator) -> None:
    """Paint the vertebra with canal, arch and processes; ribs in the wall."""
    patient, grid = geometry.patient, geometry.grid
    x, y = grid.x, grid.y
    spine_x, spine_y = geometry.vertebra.center_mm
    box = grid.box((spine_x, spine_y + 20), 75)
    bx, by = x[:, box[1]], y[box[0]]
    sponge = patient.bone_hu + 28 * texture[box]

    canal_center = (spine_x, spine_y + 24.5)
    canal = ellipse(canal_center, 10, 8.5).depth(bx, by)
    arch = ellipse((spine_x, spine_y + 25), 17, 15).depth(bx, by)
    process = ellipse((spine_x, spine_y + 47), 4.2, 17).depth(bx, by)
    for side in (-1, 1):
        transverse = ellipse((spine_x + side * 24, spine_y + 27), 17, 5.5, side * 18).depth(bx, by)
        arch = soft_max(arch, transverse, 6.0)
    bone = soft_max(arch, process, 6.0)
    blend(hu, box, coverage(bone, edge), 430)
    blend(hu, box, coverage(bone - 2.2, edge + 0.5), sponge + 60)
    body = geometry.vertebra.depth(bx, by)
    blend(hu, box, coverage(body, edge), 400)
    blend(hu, box, coverage(body - 1.8, edge + 0.5), sponge)
    blend(hu, box, coverage(canal, edge), 25)
    blend(hu, box, coverage(canal - 3.5, 2.0), 42)  # the cord in its fluid

    # Ribs lie oblique in the wall, so a slice cuts each as a flat ellipse along it, just outside the pleura.
    outline = geometry.body - geometry.cavity
    for side in (-1, 1):
        for from_back in (35.0, 62.0, 88.0, 113.0, 136.0):
            angle = np.deg2rad(90 + side * (from_back + float(rng.normal(0, 5))))
            radius = _radius_where(geometry, angle)
            center = (radius * np.cos(angle), radius * np.sin(angle))
            tangent = _tangent_deg(outline.shape, geometry, center)
            rib = ellipse(center, float(rng.uniform(7, 15)), float(rng.uniform(3.6, 4.6)), tangent)
            box = grid.box(center, rib.reach_mm + 3)
            depth = rib.depth(x[:, box[1]], y[box[0]])
            cartilage = from_back > 130
            blend(hu, box, coverage(depth, edge), 105 if cartilage else 480)
            if not cartilage:
                blend(hu, box, coverage(depth - 1.4, edge + 0.3), 160 + 20 * texture[box])


def _radius_where(geometry: Geometry, angle: float, outside_mm: float = 5.0) -> float:
    """Find the distance from the origin, along `angle`, at which the wall's inner face lies `outside_mm` behind."""
    radii = np.arange(40.0, 200.0, 0.5)
    spacing, (cx, cy) = geometry.grid.spacing_mm, geometry.grid.center_px
    columns = np.clip((radii * np.cos(angle) / spacing + cx).astype(int), 0, SLICE_SIZE - 1)
    rows = np.clip((radii * np.sin(angle) / spacing + cy).astype(int), 0, SLICE_SIZE - 1)
    return float(radii[int(np.argmax(geometry.cavity[rows, columns] < -outside_mm))])


def _tangent_deg(shape: tuple[int, ...], geometry: Geometry, center_mm: tuple[float, float]) -> float:
    """Find the direction of the cavity's boundary at a point: at a right angle to the gradient of its depth."""
    spacing, (cx, cy) = geometry.grid.spacing_mm, geometry.grid.center_px
    column = int(np.clip(center_mm[0] / spacing + cx, 3, shape[1] - 4))
    row = int(np.clip(center_mm[1] / spacing + cy, 3, shape[0] - 4))
    dx = float(geometry.cavity[row, column + 3] - geometry.cavity[row, column - 3])
    dy = float(geometry.cavity[row + 3, column] - geometry.cavity[row - 3, column])
    return float(np.rad2deg(np.arctan2(dy, dx))) + 90.0
