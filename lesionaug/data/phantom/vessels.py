"""Phantom: the liver's vessels as trees in space, grown branch by branch and cut by the slice.

A tree grows like this: points are strewn in the liver, and each is joined to the node of the tree that reaches it with
least length and bend; radii follow Murray's law from the twigs to the trunk (the cube of a vessel's radius is the sum
of its branches' cubes). It is how vessels are commonly made for phantoms, without the optimisation of blood flow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.phantom.shapes import SLICE_SIZE, Box, Float, Grid, Point, coverage

Points = NDArray[np.float64]
STEP_MM = 4.0
MURRAY = 2.8  # exponent; 3 in theory, 2.7-3 as measured in organs


@dataclass(frozen=True)
class Tubes:
    """Straight pieces of vessels: [n, 3] starts and ends in mm, [n] radii in mm."""

    start: Points
    end: Points
    radius: NDArray[np.float64]

    def __add__(self, other: Tubes) -> Tubes:
        """Both together."""
        return Tubes(
            np.concatenate([self.start, other.start]),
            np.concatenate([self.end, other.end]),
            np.concatenate([self.radius, other.radius]),
        )

    def cut(self, grid: Grid, heights: Sequence[float], edge_mm: float) -> Float:
        """Tell how much of each voxel they fill, [512, 512] 0 to 1, averaged over the planes at `heights` (mm)."""
        total = np.zeros((SLICE_SIZE, SLICE_SIZE), np.float32)
        low, high = np.minimum(self.start[:, 2], self.end[:, 2]), np.maximum(self.start[:, 2], self.end[:, 2])
        for z in heights:
            filled = np.zeros_like(total)
            for i in np.flatnonzero((low - self.radius < z) & (z < high + self.radius)):
                _stamp(filled, grid, self.start[i], self.end[i], float(self.radius[i]), z, edge_mm)
            total += filled
        return total / np.float32(len(heights))

    def depth(self, grid: Grid, z: float) -> Float:
        """Depth inside them in the plane at z, [512, 512] mm; -99 far away from them. For a few thick ones."""
        depth = np.full((SLICE_SIZE, SLICE_SIZE), -99, np.float32)
        for start, end, radius in zip(self.start, self.end, self.radius, strict=True):
            run = end - start
            box = grid.box(tuple((start + end)[:2] / 2), float(np.linalg.norm(run)) / 2 + radius + 8)
            dx, dy = grid.x[:, box[1]] - np.float32(start[0]), grid.y[box[0]] - np.float32(start[1])
            inside = np.float32(radius) - _distance(dx, dy, np.float32(z - start[2]), run)
            np.maximum(depth[box], inside, out=depth[box])
        return depth


def polyline(points: Sequence[Point], radius_mm: float | Sequence[float]) -> Tubes:
    """Make one tube through `points`; a radius for all of it, or one for each point (pieces take the mean)."""
    path = np.asarray(points, np.float64)
    radii = np.broadcast_to(np.asarray(radius_mm, np.float64), len(path))
    return Tubes(path[:-1], path[1:], (radii[:-1] + radii[1:]) / 2)


def _stamp(filled: Float, grid: Grid, start: Points, end: Points, radius: float, z: float, edge_mm: float) -> None:
    """Draw one rounded piece, as the plane at `z` cuts it, into `filled` by maximum."""
    run = end - start
    # Only the part of the piece near the plane can be seen in it.
    if abs(run[2]) > 1e-6:
        a, b = sorted(((z - radius - 1 - start[2]) / run[2], (z + radius + 1 - start[2]) / run[2]))
        a, b = min(max(a, 0.0), 1.0), min(max(b, 0.0), 1.0)
    else:
        a, b = 0.0, 1.0
    middle, half = start + run * (a + b) / 2, float(np.hypot(run[0], run[1])) * (b - a) / 2
    box: Box = grid.box((float(middle[0]), float(middle[1])), half + radius + 1.5)
    if box[0].start == box[0].stop or box[1].start == box[1].stop:
        return
    dx, dy = grid.x[:, box[1]] - np.float32(start[0]), grid.y[box[0]] - np.float32(start[1])
    dz = np.float32(z - start[2])
    np.maximum(filled[box], coverage(np.float32(radius) - _distance(dx, dy, dz, run), edge_mm), out=filled[box])


def _distance(dx: Float, dy: Float, dz: np.float32, run: Points) -> Float:
    """Distance of points, told from a piece's start, to the piece that runs from there along `run`, mm."""
    rx, ry, rz = run.astype(np.float32)
    along = np.clip((dx * rx + dy * ry + dz * rz) / max(float(run @ run), 1e-6), 0, 1)
    distance: Float = np.sqrt((dx - along * rx) ** 2 + (dy - along * ry) ** 2 + (dz - along * rz) ** 2)
    return distance


def grow_tree(
    trunks: Sequence[Sequence[Point]],
    targets: Points,
    trunk_radius_mm: float,
    twig_radius_mm: float,
    rng: np.random.Generator,
    inside: Callable[[Points], NDArray[np.bool_]],
) -> Tubes:
    """Grow a vessel tree from trunks to all targets.

    Args:
        trunks: Polylines that are there from the start, each from the root outwards.
        targets: Points to supply, [n, 3] mm; the nearest to the trunks are joined first.
        trunk_radius_mm: Largest radius.
        twig_radius_mm: Radius of a branch that supplies one target.
        rng: For the bends.
        inside: Which of [m, 3] points lie in the organ; a branch that would leave it is left out.
    """
    position: list[Points] = []
    parent: list[int] = []
    heading: list[Points] = []
    for trunk in trunks:
        path = _resample(np.asarray(trunk, np.float64))
        for i, point in enumerate(path):
            parent.append(len(position) - 1 if i else -1)
            position.append(point)
            heading.append(_unit(path[min(i + 1, len(path) - 1)] - path[max(i - 1, 0)]))
    nodes, headings = np.array(position), np.array(heading)
    distance = np.linalg.norm(targets[:, None] - nodes[None], axis=2).min(axis=1)
    leaves: list[int] = []
    for target in targets[np.argsort(distance)]:
        away = target - nodes
        length = np.linalg.norm(away, axis=1)
        bend = 1 - (away * headings).sum(axis=1) / np.maximum(length, 1e-6)
        root = int(np.argmin(length * (1 + 0.7 * bend) + 2.0))
        if length[root] < STEP_MM:
            continue
        control = nodes[root] + headings[root] * length[root] * 0.45 + rng.normal(0, 0.08 * length[root], size=3)
        t = np.linspace(0, 1, max(2, int(np.ceil(length[root] / STEP_MM)) + 1))[1:, None]
        path = (1 - t) ** 2 * nodes[root] + 2 * t * (1 - t) * control + t**2 * target
        if not inside(path).all():
            continue
        first = len(nodes)
        parent += [root, *range(first, first + len(path) - 1)]
        steps = np.diff(np.concatenate([nodes[root][None], path]), axis=0)
        nodes = np.concatenate([nodes, path])
        headings = np.concatenate([headings, steps / np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-6)])
        leaves.append(len(nodes) - 1)
    supplied = np.zeros(len(nodes))
    supplied[leaves] = 1
    for i in range(len(nodes) - 1, -1, -1):  # children come after their parents
        if parent[i] >= 0:
            supplied[parent[i]] += supplied[i]
    radius = np.minimum(twig_radius_mm * np.maximum(supplied, 1) ** (1 / MURRAY), trunk_radius_mm)
    child = np.array([i for i, p in enumerate(parent) if p >= 0])
    return Tubes(nodes[np.array(parent)[child]], nodes[child], radius[child])


def _resample(path: Points) -> Points:
    pieces = [path[:1]]
    for start, end in itertools.pairwise(path):
        num = max(1, int(np.ceil(np.linalg.norm(end - start) / STEP_MM)))
        pieces.append(start + (end - start) * (np.arange(1, num + 1) / num)[:, None])
    return np.concatenate(pieces)


def _unit(vector: Points) -> Points:
    unit: Points = vector / max(float(np.linalg.norm(vector)), 1e-9)
    return unit
