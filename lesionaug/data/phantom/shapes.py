"""Phantom, drawing tools: pixel grid, shapes in space, soft edges and smooth random fields.

Lengths are millimetres in the patient's axes: x to the patient's left (image right), y to the back (down), z to the
head, the origin in the middle of the body at the height of the liver's hilum. A `depth` is a signed distance to a
boundary in mm, positive inside; it is exact near the boundary and only roughly right far from it, which is all that
painting needs. Union is `max`, intersection `min`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float32]
Real = NDArray[np.floating[Any]]  # what a helper takes that makes float32 of it
Box = tuple[slice, slice]
Point = tuple[float, float, float]

NUM_ANGLES = 2048
SLICE_SIZE = 512
ANGLES = np.arange(NUM_ANGLES) * (2 * np.pi / NUM_ANGLES)
EVERYWHERE: Box = (slice(None), slice(None))


@dataclass(frozen=True)
class Grid:
    """The pixel centres of a slice in mm.

    Attributes:
        spacing_mm: Side of a (square) pixel.
        center_px: Where the origin of the body lies, (x, y) in pixels, corner convention.
    """

    spacing_mm: float
    center_px: tuple[float, float]

    @cached_property
    def x(self) -> Float:
        """The x of each column in mm, [1, 512] float32."""
        return (((np.arange(SLICE_SIZE) + 0.5) - self.center_px[0]) * self.spacing_mm).astype(np.float32)[None, :]

    @cached_property
    def y(self) -> Float:
        """The y of each row in mm, [512, 1] float32."""
        return (((np.arange(SLICE_SIZE) + 0.5) - self.center_px[1]) * self.spacing_mm).astype(np.float32)[:, None]

    def box(self, center_mm: tuple[float, ...], reach_mm: float) -> Box:
        """Rows and columns within `reach_mm` of a point (its x and y), clipped to the slice."""
        ranges = []
        for axis in (1, 0):
            middle = center_mm[axis] / self.spacing_mm + self.center_px[axis]
            reach = reach_mm / self.spacing_mm
            low = min(max(int(np.floor(middle - reach)), 0), SLICE_SIZE)
            ranges.append(slice(low, max(low, min(int(np.ceil(middle + reach)) + 1, SLICE_SIZE))))
        return ranges[0], ranges[1]


@dataclass(frozen=True)
class Star:
    """A plane shape given by its boundary's distance from a centre at evenly spaced angles (float64 [NUM_ANGLES])."""

    center_mm: tuple[float, float]
    radii_mm: NDArray[np.float64]

    @property
    def reach_mm(self) -> float:
        """The largest radius."""
        return float(self.radii_mm.max())

    @cached_property
    def _obliquity(self) -> Float:
        """What turns a distance along the radius into one across the boundary, [NUM_ANGLES]."""
        slope = np.gradient(np.concatenate([self.radii_mm[-1:], self.radii_mm, self.radii_mm[:1]]))[1:-1] / (
            2 * np.pi / NUM_ANGLES
        )
        obliquity: Float = (self.radii_mm / np.hypot(self.radii_mm, slope)).astype(np.float32)
        return obliquity

    def angle_index(self, x: Float, y: Float) -> NDArray[np.intp]:
        """Find the nearest tabulated angle of each point, of the shape that x and y broadcast to."""
        angle = np.arctan2(y - np.float32(self.center_mm[1]), x - np.float32(self.center_mm[0]))
        index: NDArray[np.intp] = np.rint(angle * np.float32(NUM_ANGLES / (2 * np.pi))).astype(np.intp) % NUM_ANGLES
        return index

    def depth(self, x: Float, y: Float) -> Float:
        """Measure the signed depth in mm, float32 of the shape that x and y broadcast to."""
        index = self.angle_index(x, y)
        distance = np.hypot(x - np.float32(self.center_mm[0]), y - np.float32(self.center_mm[1]))
        depth: Float = (self.radii_mm.astype(np.float32)[index] - distance) * self._obliquity[index]
        return depth


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid in space.

    Attributes:
        center_mm: Its middle.
        half_axes_mm: Along its own axes.
        axes: [3, 3], the directions of its own axes as rows, orthonormal.
    """

    center_mm: Point
    half_axes_mm: Point
    axes: NDArray[np.float64]

    @property
    def reach_mm(self) -> float:
        """The largest half-axis."""
        return max(self.half_axes_mm)

    def depth(self, x: Float, y: Float, z: Float | float) -> Float:
        """Measure the signed depth in mm, float32 of the shape that the coordinates broadcast to."""
        offset = [np.asarray(v, np.float32) - np.float32(c) for v, c in zip((x, y, z), self.center_mm, strict=True)]
        level: Any = np.float32(1e-6)  # (distance in radii) squared
        steep: Any = np.float32(1e-6)
        for axis, half in zip(self.axes, self.half_axes_mm, strict=True):
            ax, ay, az = axis.astype(np.float32) / np.float32(half)
            along = ax * offset[0] + ay * offset[1] + az * offset[2]
            level = level + along * along
            steep = steep + (along / np.float32(half)) ** 2
        radii = np.sqrt(level)
        depth: Float = np.minimum((1 - radii) * radii / np.sqrt(steep), np.float32(min(self.half_axes_mm)))
        return depth


@dataclass(frozen=True)
class Waves:
    """A smooth random field in space, of mean 0 and variance 1: a sum of plane waves.

    Attributes:
        vectors: Wave vectors, [n, 3] radians per mm.
        phases: [n] radians.
    """

    vectors: NDArray[np.float32]
    phases: NDArray[np.float32]

    def on(self, x: Float, y: Float, z: float) -> Float:
        """Evaluate it on a piece of a slice, [h, w] float32, from x [1, w] and y [h, 1]: two matrix products."""
        kx, ky, kz = self.vectors.T
        across = x.reshape(-1)[:, None] * kx  # [w, n]
        down = y.reshape(-1)[:, None] * ky + (self.phases + np.float32(z) * kz)  # [h, n]
        field: Float = np.cos(down) @ np.cos(across).T - np.sin(down) @ np.sin(across).T
        return field * np.float32(np.sqrt(2 / len(self.phases)))


def draw_waves(rng: np.random.Generator, wavelength_mm: float, num: int = 48, spread: float = 0.35) -> Waves:
    """Draw a field whose wavelengths scatter around `wavelength_mm` by a factor of about exp(+-`spread`)."""
    directions = rng.normal(size=(num, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = 2 * np.pi / wavelength_mm * np.exp(rng.normal(0, spread, size=(num, 1)))
    phases = rng.uniform(0, 2 * np.pi, size=num)
    return Waves((directions * lengths).astype(np.float32), phases.astype(np.float32))


def draw_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw an orthonormal frame, [3, 3], all directions equally likely."""
    frame, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation: NDArray[np.float64] = frame * np.sign(np.diag(upper))
    return rotation


def wobble(rng: np.random.Generator, amplitude: float, orders: range, decay: float = 1.0) -> NDArray[np.float64]:
    """Draw a smooth function of the angle, mean 0, [NUM_ANGLES]: a Fourier series falling off as order^-decay."""
    total = np.zeros(NUM_ANGLES)
    for order in orders:
        size = rng.normal() * amplitude * (order / orders.start) ** -decay
        total += size * np.cos(order * ANGLES + rng.uniform(0, 2 * np.pi))
    return total


def ellipse(center_mm: tuple[float, float], half_x_mm: float, half_y_mm: float, tilt_deg: float = 0.0) -> Star:
    """Make an ellipse whose first axis is turned by `tilt_deg` from x towards y."""
    angle = ANGLES - np.deg2rad(tilt_deg)
    return Star(center_mm, 1.0 / np.hypot(np.cos(angle) / half_x_mm, np.sin(angle) / half_y_mm))


def through_points(angles_deg: list[float], radii_mm: list[float], smooth_deg: float) -> NDArray[np.float64]:
    """Lay periodic radii through control points, smoothed by a Gaussian of `smooth_deg`, [NUM_ANGLES]."""
    radii = np.interp(np.rad2deg(ANGLES), angles_deg, radii_mm, period=360.0)
    smooth: NDArray[np.float64] = ndimage.gaussian_filter1d(radii, smooth_deg / 360 * NUM_ANGLES, mode="wrap")
    return smooth


def soft_min(a: Float, b: Float, width_mm: float) -> Float:
    """Take the smaller of two depths with the corner rounded over `width_mm`."""
    near = np.maximum(np.float32(width_mm) - np.abs(a - b), 0) / np.float32(width_mm)
    rounded: Float = np.minimum(a, b) - near * near * np.float32(width_mm / 4)
    return rounded


def soft_max(a: Float, b: Float, width_mm: float) -> Float:
    """Take the larger of two depths with the corner rounded over `width_mm`."""
    return -soft_min(-a, -b, width_mm)


def coverage(depth: Real, edge_mm: Real | float) -> Float:
    """Tell how much of each pixel a shape covers, 0 to 1: a ramp of width `edge_mm` across its boundary."""
    ramp: Float = np.clip(depth / np.asarray(edge_mm, np.float32) + np.float32(0.5), 0, 1)
    return ramp


def slab_coverage(depth_at: Callable[[float], Float], z: float, thickness_mm: float, edge_mm: float) -> Float:
    """Tell how much of each voxel of a slab a shape covers, 0 to 1.

    Through the slab the depth is taken to change linearly, so a boundary that leans widens the ramp by what the depth
    changes over the thickness: the partial volume effect of a thick slice.

    Args:
        depth_at: Depth of the shape in the plane at a height z.
        z: Middle of the slab.
        thickness_mm: Its thickness.
        edge_mm: Width of the ramp for an upright boundary.
    """
    above, below = depth_at(z + thickness_mm / 2), depth_at(z - thickness_mm / 2)
    return coverage((above + below) / 2, np.float32(edge_mm) + np.abs(above - below))


def sub_slices(z: float, thickness_mm: float, step_mm: float = 1.0) -> list[float]:
    """List heights that sample a slab evenly, at most `step_mm` apart: for what changes too fast within the slab."""
    num = max(1, int(np.ceil(thickness_mm / step_mm)))
    return [float(z + thickness_mm * ((i + 0.5) / num - 0.5)) for i in range(num)]


def blend(hu: Float, box: Box, covered: Real, value: Real | float) -> None:
    """Paint `value` (HU) over `hu[box]` in place where `covered` says so."""
    hu[box] += covered * (np.asarray(value, np.float32) - hu[box])
