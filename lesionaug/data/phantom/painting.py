"""Phantom, step 2: paints the shapes of one slice in HU, before blur and noise; the lesions come on top."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lesionaug.data.phantom.anatomy import Geometry
from lesionaug.data.phantom.shapes import (
    EVERYWHERE,
    SLICE_SIZE,
    Ellipsoid,
    Float,
    blend,
    coverage,
    ellipse,
    soft_max,
    soft_min,
)
from lesionaug.data.phantom.vessels import Tubes, polyline


def paint_anatomy(
    geometry: Geometry, rng: np.random.Generator, *, liver: Float | None = None, spleen: Float | None = None
) -> Float:
    """Paint everything but the lesions, [512, 512] float32 HU, before blur and noise.

    `liver` and `spleen` are depths to use instead of the geometry's: organs that lesions have enlarged.
    """
    liver_depth = geometry.liver if liver is None else liver
    spleen_depth = geometry.spleen if spleen is None else spleen
    patient, grid = geometry.patient, geometry.grid
    hu = np.full((SLICE_SIZE, SLICE_SIZE), -1000, np.float32)
    x, y, edge = grid.x, grid.y, geometry.edge_mm
    texture = patient.texture.on(x, y, geometry.z_mm)
    mottle = patient.mottle.on(x, y, geometry.z_mm)

    _paint_table(hu, geometry)
    _paint_wall(hu, geometry, texture, mottle)
    lung = np.minimum(geometry.cavity - 1.0, -(geometry.peritoneum + 2.2))  # the rest is diaphragm
    blend(hu, EVERYWHERE, coverage(np.minimum(geometry.cavity - 0.6, -geometry.peritoneum), edge), patient.hu.muscle)
    lean = np.abs(patient.dome_depth(x, y, geometry.z_mm + geometry.thickness_mm / 2) - geometry.peritoneum)
    lean = np.where(geometry.peritoneum < geometry.cavity - 1.5, 2 * lean, 0).astype(np.float32)
    blend(hu, EVERYWHERE, coverage(lung, edge + np.minimum(lean, 12)), -860 + 25 * texture)
    _paint_left_side(hu, geometry, spleen_depth, texture, mottle, rng)

    vein = patient.veins.cut(grid, geometry.heights, 0.9)
    stem = patient.hilum.cut(grid, geometry.heights, 0.9)
    parenchyma = patient.hu.liver + 1.8 * mottle + 3.0 * texture
    covered = coverage(liver_depth, edge + geometry.liver_lean_mm)
    blend(hu, EVERYWHERE, covered, parenchyma)
    _paint_clefts(hu, geometry, liver_depth)
    blend(hu, EVERYWHERE, vein * (covered > 0.5), patient.hu.vessel)
    blend(hu, EVERYWHERE, stem, patient.hu.vessel)
    bile = patient.organs["gallbladder"]
    box = grid.box(bile.center_mm, bile.reach_mm + 4)
    bx, by = x[:, box[1]], y[box[0]]
    blend(hu, box, geometry.slab(lambda z: np.minimum(bile.depth(bx, by, z) + 1.8, geometry.peritoneum[box])), 70)
    blend(
        hu, box, geometry.slab(lambda z: np.minimum(bile.depth(bx, by, z), geometry.peritoneum[box])), patient.hu.bile
    )

    _paint_great_vessels(hu, geometry)
    _paint_bones(hu, geometry, texture)
    return hu


def _paint_table(hu: Float, geometry: Geometry) -> None:
    """Paint the table: a thin shell curved like a shallow dish under the back, and the frame below it."""
    x, y, edge = geometry.grid.x, geometry.grid.y, geometry.edge_mm
    dish = (geometry.patient.half_height_mm + 14) - (x / 260) ** 2 * 24 - y
    blend(hu, EVERYWHERE, coverage(np.float32(1.8) - np.abs(dish), edge) * (np.abs(x) < 210), 110)
    blend(hu, EVERYWHERE, coverage(np.float32(20) - np.abs(dish + 21), edge) * (np.abs(x) < 200 + dish), -960)
    blend(hu, EVERYWHERE, coverage(np.float32(1.2) - np.abs(dish + 41), edge) * (np.abs(x) < 160), 20)


def _paint_wall(hu: Float, geometry: Geometry, texture: Float, mottle: Float) -> None:
    """Paint skin, subcutaneous fat with its septa, two layers of muscle with fat between them, and the cavity's fat."""
    patient, edge = geometry.patient, geometry.edge_mm
    x, y = geometry.grid.x, geometry.grid.y
    index = patient.body.angle_index(x, y)
    blend(hu, EVERYWHERE, coverage(geometry.body, edge), 20)  # skin
    septa = 22 * np.clip(1 - np.abs(texture + 0.4 * mottle) / 0.16, 0, 1)
    blend(hu, EVERYWHERE, coverage(geometry.body - 1.8, edge), patient.hu.fat + 3 * texture + septa * 0.6)
    fat = patient.fat_mm.astype(np.float32)[index]
    wall = patient.wall_mm.astype(np.float32)[index]
    muscle = geometry.body - fat + 0.4 * mottle
    marbled = patient.hu.muscle + 4 * texture - 70 * np.clip(mottle + 0.5 * texture - 1.35, 0, 1)
    blend(hu, EVERYWHERE, coverage(muscle, edge), marbled)
    plane = np.abs(muscle - 0.42 * wall + 0.35 * mottle)  # fat between the outer muscles and the ribs' layer
    thick = np.clip(0.15 + 0.5 * mottle + 0.15 * texture, 0, 1.2)
    blend(hu, EVERYWHERE, coverage(thick - plane, edge) * (wall > 9), patient.hu.fat + 20)
    # Fat inside is crossed by strands: peritoneal folds, small vessels and nerves, some thick, some hardly seen.
    # They are thickest where the great vessels, their nerves and lymph nodes lie.
    side, front = patient.vertebra.center_mm[0], patient.vertebra.center_mm[1] - 32
    deep = np.exp(-(((x - np.float32(side)) / 42) ** 2) - ((y - np.float32(front)) / 30) ** 2)
    strands = np.clip(1 - np.abs(mottle + 0.3 * texture) / (0.16 + 0.14 * deep), 0, 1)
    strands = strands * np.clip(0.5 + 0.4 * texture + 0.4 * deep, 0, 1.4)
    blend(hu, EVERYWHERE, coverage(geometry.cavity, edge), patient.hu.fat + 6 + 6 * mottle + (60 + 60 * deep) * strands)


def _paint_left_side(
    hu: Float, geometry: Geometry, spleen_depth: Float, texture: Float, mottle: Float, rng: np.random.Generator
) -> None:
    """Paint vessels of the fat, pancreas, spleen, kidneys, stomach, colon and bowel."""
    patient, grid, z = geometry.patient, geometry.grid, geometry.z_mm
    x, y = grid.x, grid.y
    inside = geometry.peritoneum - 1.5
    within = coverage(inside, 1.0)
    vessels = patient.small_vessels.cut(grid, geometry.heights, 0.9) * within
    blend(hu, EVERYWHERE, vessels, patient.hu.vessel - 15)

    lobules = 1.2 * texture + 1.0 * mottle
    distance = patient.pancreas.depth(grid, z)
    depth = soft_min(distance + lobules, inside, 3.0)
    blend(hu, EVERYWHERE, coverage(depth, 2.0), patient.hu.pancreas - 35 * np.clip(-texture - 1.1, 0, 1))

    covered = coverage(spleen_depth, geometry.edge_mm + geometry.spleen_lean_mm)
    blend(hu, EVERYWHERE, covered, patient.hu.spleen + 1.5 * texture + 1.5 * mottle)

    for side, name in ((1, "left kidney"), (-1, "right kidney")):
        kidney = patient.organs[name]
        middle = kidney.center_mm
        sinus = Ellipsoid((middle[0] - side * 11, middle[1] - 3, middle[2]), (11.0, 8.0, 34.0), kidney.axes)
        box = grid.box(middle, kidney.reach_mm + 4)
        bx, by, wall = x[:, box[1]], y[box[0]], geometry.peritoneum[box]
        for shape, value, soft in ((kidney, patient.hu.kidney, None), (sinus, patient.hu.fat + 25, 3.0)):
            # A kidney lies behind the peritoneum, beside the spine.
            blend(hu, box, geometry.slab(_limited(shape, bx, by, wall + 6), soft), value + 2 * texture[box])

    for name, organ in patient.organs.items():
        if name.startswith(("bowel", "colon", "stomach", "esophagus")):
            _paint_hollow(hu, geometry, name, organ, inside, texture, mottle, rng)


def _limited(shape: Ellipsoid, x: Float, y: Float, limit: Float) -> Callable[[float], Float]:
    """Make the depth of a shape by height, where something else ends it."""
    return lambda z: np.minimum(shape.depth(x, y, z), limit)


def _paint_hollow(
    hu: Float,
    geometry: Geometry,
    name: str,
    organ: Ellipsoid,
    inside: Float,
    texture: Float,
    mottle: Float,
    rng: np.random.Generator,
) -> None:
    """Paint a hollow organ: wall, what is in it, and gas that has risen to the front."""
    patient, grid, edge = geometry.patient, geometry.grid, geometry.edge_mm
    draws = rng.random(4)  # the same number for every organ, in the slice or not
    if abs(geometry.z_mm - organ.center_mm[2]) > organ.reach_mm + geometry.thickness_mm:
        return
    box = grid.box(organ.center_mm, organ.reach_mm * 1.2 + 6)
    bx, by, limit = grid.x[:, box[1]], grid.y[box[0]], inside[box]

    def depth_at(z: float) -> Float:
        own = organ.depth(bx, by, z) + 3.0 * patient.surface.on(bx, by, z) + 1.0 * mottle[box]
        return soft_min(own, limit, 5.0)

    depth = depth_at(geometry.z_mm)
    wall = {"stomach": 3.5, "esophagus": 4.0}.get(name, 2.2) + 0.9 * texture[box] * (name == "stomach")
    blend(hu, box, geometry.slab(depth_at), patient.hu.muscle + 22)
    content: Any
    if name.startswith("colon"):
        content, rough = 40 + 60 * float(draws[0]) - 160 * np.clip(texture[box] + 0.4 * mottle[box], 0, 1), 30.0
    elif name == "stomach" and patient.hu.stomach > 60:
        content, rough = patient.hu.stomach + 25 * texture[box] * (1 + mottle[box]), 12.0
    else:
        content, rough = np.broadcast_to(np.float32(patient.hu.stomach), depth.shape), 6.0
    if name == "esophagus":
        content, rough = np.broadcast_to(np.float32(patient.hu.muscle - 6), depth.shape), 3.0
    lumen = coverage(depth - wall, edge + 1.0)
    blend(hu, box, lumen, content + rough * 0.4 * texture[box])
    shares = {"stomach": 0.75, "esophagus": 0.25}
    if draws[1] < shares.get(name, 0.6 if name.startswith("colon") else 0.2):
        half = organ.half_axes_mm[1]
        level = organ.center_mm[1] + (float(draws[2]) * 0.9 - 0.65) * half
        gas = np.minimum(depth - wall, level - by + 0.6 * texture[box])
        blend(hu, box, coverage(gas, edge), -930)


def _paint_clefts(hu: Float, geometry: Geometry, liver_depth: Float) -> None:
    """Paint the fat of the liver's clefts: the round ligament's in front, the venous ligament's behind, the hilum's."""
    patient, z = geometry.patient, geometry.z_mm
    a = patient.half_width_mm
    x, y = geometry.grid.x, geometry.grid.y
    inside = coverage(liver_depth, 2.0)
    bend = 2.5 * patient.surface.on(x, y, z) + 0.6 * patient.mottle.on(x, y, z)
    middle = patient.liver_center_mm[0] + 0.36 * a
    low = float(np.clip((8 - z) / 40, 0, 1))
    if patient.cleft_mm * low > 4:  # the round ligament, deeper the lower the slice
        front = -patient.half_height_mm * 0.62
        depth = y - front - 0.5 * bend
        reach = np.float32(patient.cleft_mm * low)
        uneven = 0.75 + 0.35 * patient.texture.on(x, y, z)
        width = np.float32(0.4 + 1.3 * low) * np.clip(1.15 - depth / reach, 0.05, 1) * uneven
        cleft = np.minimum(width - np.abs(x - middle - 1.6 * bend - 0.2 * depth), reach - depth)
        blend(hu, EVERYWHERE, coverage(cleft, 1.4) * inside * 0.75, patient.hu.fat + 30)
    if -12 < z < 40:  # the venous ligament, from the left portal vein to the back, oblique
        hilum = patient.liver_center_mm[1] + 0.18 * patient.half_height_mm
        along = (x - (patient.liver_center_mm[0] + 0.30 * a)) * 0.8 + (y - hilum) * 0.6
        across = -(x - (patient.liver_center_mm[0] + 0.30 * a)) * 0.6 + (y - hilum) * 0.8
        cleft = np.minimum(np.float32(0.8) - np.abs(across + bend), np.minimum(along + 4, 40 - along))
        blend(hu, EVERYWHERE, coverage(cleft, 1.4) * inside * 0.45, patient.hu.fat + 40)
    stem = patient.hilum
    fatty = Tubes(stem.start[:1], stem.end[:1], stem.radius[:1] + 4.5)
    around = fatty.depth(geometry.grid, z) + 1.5 * bend
    blend(hu, EVERYWHERE, coverage(around, 3.0) * 0.8, patient.hu.fat + 30)


def _paint_great_vessels(hu: Float, geometry: Geometry) -> None:
    """Paint aorta, cava and the diaphragm's two legs beside the aorta."""
    patient, grid, edge = geometry.patient, geometry.grid, geometry.edge_mm
    for side, reach in ((-1, 13.0), (1, 9.0)):
        center = patient.aorta.center_mm
        leg = ellipse((center[0] + side * reach, center[1] + 6), 5.0, 15.0, side * 24.0)
        box = grid.box(leg.center_mm, leg.reach_mm + 3)
        depth = np.minimum(
            leg.depth(grid.x[:, box[1]], grid.y[box[0]]), -patient.aorta.depth(grid.x[:, box[1]], grid.y[box[0]]) - 1
        )
        blend(hu, box, coverage(depth, edge), patient.hu.muscle)
    _paint_adrenals(hu, geometry)
    for vessel, value in ((patient.aorta, patient.hu.aorta), (patient.cava, patient.hu.cava)):
        box = grid.box(vessel.center_mm, vessel.reach_mm + 3)
        depth = vessel.depth(grid.x[:, box[1]], grid.y[box[0]])
        if vessel is patient.aorta:
            blend(hu, box, coverage(depth + 1.0, edge), 50)  # its wall
        blend(hu, box, coverage(depth, edge), value)


def _paint_adrenals(hu: Float, geometry: Geometry) -> None:
    """Paint the adrenals: a thin line behind the cava, and an upturned V before the left kidney's upper end."""
    patient, z = geometry.patient, geometry.z_mm
    bend = patient.surface.on(geometry.grid.x, geometry.grid.y, z)
    cava, aorta = patient.cava.center_mm, patient.aorta.center_mm
    right = [(cava[0] + 1, cava[1] + 9), (cava[0] - 3, cava[1] + 20), (cava[0] - 9, cava[1] + 33)]
    left = [(aorta[0] + 32, aorta[1] + 20), (aorta[0] + 25, aorta[1] + 2), (aorta[0] + 42, aorta[1] + 12)]
    for path, middle in ((right, 2.0), (left, -6.0)):
        height = 1 - ((z - middle) / 24) ** 2
        if height <= 0:
            continue
        radius = 1.9 * float(np.sqrt(height))
        gland = polyline([(px, py, z) for px, py in path], radius).depth(geometry.grid, z) + 0.6 * bend
        depth = np.minimum(gland, geometry.peritoneum - 2)
        blend(hu, EVERYWHERE, coverage(depth, geometry.edge_mm), patient.hu.muscle + 22)


def _paint_bones(hu: Float, geometry: Geometry, texture: Float) -> None:
    """Paint the vertebra (or disc) with canal, arch and processes; ribs in the wall where they cross the slice."""
    patient, grid, edge = geometry.patient, geometry.grid, geometry.edge_mm
    x, y = grid.x, grid.y
    spine_x, spine_y = patient.vertebra.center_mm
    box = grid.box((spine_x, spine_y + 20), 75)
    bx, by = x[:, box[1]], y[box[0]]
    grain = patient.texture.on(3.2 * bx, 3.2 * by, 3.2 * geometry.z_mm)
    sponge = patient.hu.bone + 40 * grain + 15 * texture[box]
    phase = (geometry.z_mm + patient.disc_mm) % 33.0  # body of the vertebra, then 8 mm of disc
    disc = float(np.clip((phase - 25) / max(geometry.thickness_mm, 1.0) + 0.5, 0, 1)) if phase > 12 else 0.0

    canal = ellipse((spine_x, spine_y + 24.5), 10, 8.5).depth(bx, by)
    process = ellipse((spine_x, spine_y + 47), 4.2, 17).depth(bx, by)
    arch = ellipse((spine_x, spine_y + 25), 17, 15).depth(bx, by)
    for side in (-1, 1):
        if disc < 0.5:
            transverse = ellipse((spine_x + side * 24, spine_y + 27), 17, 5.5, side * 18).depth(bx, by)
            arch = soft_max(arch, transverse, 6.0)
    bone = soft_max(arch, process, 6.0)
    blend(hu, box, coverage(bone, edge), 430)
    blend(hu, box, coverage(bone - 2.2, edge + 0.5), sponge + 60)
    body = patient.vertebra.depth(bx, by)
    blend(hu, box, coverage(body, edge), 400 - 250 * disc)
    blend(hu, box, coverage(body - 1.8, edge + 0.5), sponge * (1 - disc) + 92 * disc)
    blend(hu, box, coverage(canal, edge), 25)
    blend(hu, box, coverage(canal - 3.5, 2.0), 42)  # the cord in its fluid

    # Ribs lie 32 mm apart and fall by about 1.15 mm a degree from the spine to the front, so a slice cuts each once.
    for side in (-1, 1):
        for number in range(-6, 8):
            from_back = (32.0 * number + patient.rib_mm - geometry.z_mm) / 1.15 + side * 2
            if not 14 < from_back < 146:
                continue
            angle = np.deg2rad(90 + side * from_back)
            radius = _radius_where(geometry, angle)
            center = (radius * np.cos(angle), radius * np.sin(angle))
            steep = 7.5 + 6.5 * np.sin(np.deg2rad(min(from_back, 120) * 1.3))
            rib = ellipse(center, float(steep), 3.9, _tangent_deg(geometry, center))
            rib_box = grid.box(center, rib.reach_mm + 3)
            rough = texture[rib_box]
            depth = rib.depth(x[:, rib_box[1]], y[rib_box[0]]) + 0.25 * rough
            cartilage = from_back > 124
            blend(hu, rib_box, coverage(depth, edge), 110 + 10 * rough if cartilage else 440 + 40 * rough)
            if not cartilage:
                marrow = patient.hu.bone - 10 + 50 * rough
                blend(hu, rib_box, coverage(depth - 1.4 - 0.35 * rough, edge + 0.6), marrow)


def _radius_where(geometry: Geometry, angle: float, outside_mm: float = 4.6) -> float:
    """Find the distance from the origin, along `angle`, at which the wall's inner face lies `outside_mm` behind."""
    radii = np.arange(40.0, 200.0, 0.5)
    spacing, (cx, cy) = geometry.grid.spacing_mm, geometry.grid.center_px
    columns = np.clip((radii * np.cos(angle) / spacing + cx).astype(int), 0, SLICE_SIZE - 1)
    rows = np.clip((radii * np.sin(angle) / spacing + cy).astype(int), 0, SLICE_SIZE - 1)
    return float(radii[int(np.argmax(geometry.cavity[rows, columns] < -outside_mm))])


def _tangent_deg(geometry: Geometry, center_mm: tuple[float, float]) -> float:
    """Find the direction of the cavity's boundary at a point: at a right angle to the gradient of its depth."""
    spacing, (cx, cy) = geometry.grid.spacing_mm, geometry.grid.center_px
    column = int(np.clip(center_mm[0] / spacing + cx, 3, SLICE_SIZE - 4))
    row = int(np.clip(center_mm[1] / spacing + cy, 3, SLICE_SIZE - 4))
    dx = float(geometry.cavity[row, column + 3] - geometry.cavity[row, column - 3])
    dy = float(geometry.cavity[row + 3, column] - geometry.cavity[row - 3, column])
    return float(np.rad2deg(np.arctan2(dy, dx))) + 90.0
