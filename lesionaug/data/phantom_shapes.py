"""Phantom, drawing tools: pixel grid, star-shaped outlines, soft edges and smooth noise.

Lengths are millimetres in the patient's axes: x to the patient's left (image right), y to the back (down), the origin
in the middle of the body. A `depth` is a signed distance to a boundary in mm, positive inside; it is exact near the
boundary and only roughly right far from it, which is all that painting needs. Union is `max`, intersection `min`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float32]
Box = tuple[slice, slice]

NUM_ANGLES = 2048
SLICE_SIZE = 512
ANGLES = np.arange(NUM_ANGLES) * (2 * np.pi / NUM_ANGLES)


@dataclass(frozen=True)
class Grid:
    """The pixel centres of a slice in mm.

    Attributes:
        spacing_mm: Side of a (square) pixel.
        center_px: Where the origin of the body lies, (x, y) in pixels, corner convention.
    """

    spacing_mm: float
    center_px: tuple[float, float]

    @property
    def x(self) -> Float:
        """The x of each column in mm, [1, 512] float32."""
        return (((np.arange(SLICE_SIZE) + 0.5) - self.center_px[0]) * self.spacing_mm).astype(np.float32)[None, :]

    @property
    def y(self) -> Float:
        """The y of each row in mm, [512, 1] float32."""
        return (((np.arange(SLICE_SIZE) + 0.5) - self.center_px[1]) * self.spacing_mm).astype(np.float32)[:, None]

    def box(self, center_mm: tuple[float, float], reach_mm: float) -> Box:
        """Rows and columns within `reach_mm` of a point, clipped to the slice."""
        ranges = []
        for axis in (1, 0):
            middle = center_mm[axis] / self.spacing_mm + self.center_px[axis]
            reach = reach_mm / self.spacing_mm
            low = min(max(int(np.floor(middle - reach)), 0), SLICE_SIZE)
            ranges.append(slice(low, max(low, min(int(np.ceil(middle + reach)) + 1, SLICE_SIZE))))
        return ranges[0], ranges[1]


@dataclass(frozen=True)
class Star:
    """A shape given by its boundary's distance from a centre at evenly spaced angles (float64 [NUM_ANGLES])."""

    center_mm: tuple[float, float]
    radii_mm: NDArray[np.float64]

    @property
    def reach_mm(self) -> float:
        """The largest radius."""
        return float(self.radii_mm.max())

    def angle_index(self, x: Float, y: Float) -> NDArray[np.intp]:
        """Find the nearest tabulated angle of each point, [h, w] for x [1, w] and y [h, 1]."""
        angle = np.arctan2(y - np.float32(self.center_mm[1]), x - np.float32(self.center_mm[0]))
        index: NDArray[np.intp] = np.rint(angle * np.float32(NUM_ANGLES / (2 * np.pi))).astype(np.intp) % NUM_ANGLES
        return index

    def depth(self, x: Float, y: Float) -> Float:
        """Measure the signed depth in mm, [h, w] float32 for x [1, w] and y [h, 1]."""
        index = self.angle_index(x, y)
        slope = np.gradient(np.concatenate([self.radii_mm[-1:], self.radii_mm, self.radii_mm[:1]]))[1:-1] / (
            2 * np.pi / NUM_ANGLES
        )
        obliquity = (self.radii_mm / np.hypot(self.radii_mm, slope)).astype(np.float32)
        distance = np.hypot(x - np.float32(self.center_mm[0]), y - np.float32(self.center_mm[1]))
        depth: Float = (self.radii_mm.astype(np.float32)[index] - distance) * obliquity[index]
        return depth


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


def coverage(depth: Float, edge_mm: float) -> Float:
    """Tell how much of each pixel a shape covers, 0 to 1: a ramp of width `edge_mm` across its boundary."""
    ramp: Float = np.clip(depth / np.float32(edge_mm) + np.float32(0.5), 0, 1)
    return ramp


def blend(hu: Float, box: Box, covered: Float, value: Float | float) -> None:
    """Paint `value` (HU) over `hu[box]` in place where `covered` says so."""
    hu[box] += covered * (np.asarray(value, np.float32) - hu[box])


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], correlation_px: float) -> Float:
    """Draw Gaussian noise of unit variance and a correlation length in pixels, [shape] float32."""
    white = rng.standard_normal(shape, dtype=np.float32)
    field: Float = ndimage.gaussian_filter(white, correlation_px, mode="wrap", truncate=3.0)
    return field * np.float32(2 * np.sqrt(np.pi) * correlation_px)  # undoes what the Gaussian takes off the variance
