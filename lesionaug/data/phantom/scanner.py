"""Phantom, step 4: what a made-up scanner makes of the painted anatomy: pixel size, blur and correlated noise.

The noise is that of filtered back projection: the rays of each direction bring noise that is ramp-filtered across
them and grows with the tissue they had to pass, so it is streaky along the body's long axis, strongest in the middle
and weak in the lungs. The shapes of the kernels were fitted to the noise power spectrum of real slices
(benchmarks/phantom_realism.py measures both).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from lesionaug.data.phantom.recipe import ScanRecipe
from lesionaug.data.phantom.shapes import SLICE_SIZE, Float

NUM_DIRECTIONS = 8
COARSE = 8  # attenuation is summed on a grid of 64 x 64
WATER_PER_MM = 0.0195  # attenuation of water at the effective energy of 120 kVp
MODULATION = 0.75  # what remains of the differences between rays after tube current modulation and beam shaping


@dataclass(frozen=True)
class Scan:
    """How a made-up scanner took the slice: what shapes its blur and noise."""

    vendor: str  # "GE-like" or "Siemens-like"
    kernel: str
    spacing_mm: float
    thickness_mm: float
    exposure_mas: int
    noise_hu: float  # standard deviation in the middle of the body
    blur_mm: float  # sigma of the in-plane point spread
    cutoff_per_mm: float  # where the noise power falls off


def draw_scan(half_width_mm: float, rng: np.random.Generator, recipe: ScanRecipe | None = None) -> Scan:
    """Draw a scan: pixels 0.6-0.9 mm that hold the whole body, slices 1.25-5 mm, 140-400 mAs, noise 9-21 HU.

    Noise grows as (mAs x thickness)^-0.3, slower than photon counting alone (-0.5): thin slices are read with smoother
    settings and large patients get more mAs.
    """
    recipe = recipe or ScanRecipe()
    ge = rng.random() < recipe.ge_share
    smallest = max(0.6, 2.06 * half_width_mm / SLICE_SIZE)
    spacing = float(np.round(rng.uniform(smallest, min(0.9, smallest + 0.15)), 6))
    usual = (1.25, 2.5, 3.75, 5.0) if ge else (1.5, 2.0, 3.0, 5.0)
    thickness = float(rng.choice(recipe.thickness_mm or usual))
    exposure = int(rng.integers(recipe.exposure_mas[0], recipe.exposure_mas[1] + 1))
    build = (half_width_mm / 160) ** 1.5
    noise = 11.2 * (1000 / (exposure * thickness)) ** 0.3 * build * float(np.exp(rng.normal(0, 0.08)))
    return Scan(
        vendor="GE-like" if ge else "Siemens-like",
        kernel="STANDARD" if ge else "B30f",
        spacing_mm=spacing,
        thickness_mm=thickness,
        exposure_mas=exposure,
        noise_hu=float(np.clip(noise, 9, 21)) * recipe.noise,
        blur_mm=float(rng.uniform(0.52, 0.62)) if ge else float(rng.uniform(0.56, 0.70)),
        cutoff_per_mm=0.43 if ge else 0.38,
    )


def ray_noise(hu: Float, spacing_mm: float) -> Float:
    """Tell how strong the noise of each direction of rays is in each place, [NUM_DIRECTIONS, 64, 64], mean square 1.

    For each direction the attenuation along the ray through a pixel is summed over the coarse picture; the variance
    that ray brings grows exponentially with it.
    """
    size = SLICE_SIZE // COARSE
    coarse = hu.reshape(size, COARSE, size, COARSE).mean(axis=(1, 3))
    attenuation = np.clip(1 + coarse / 1000, 0, 2.2).astype(np.float32) * (WATER_PER_MM * spacing_mm * COARSE)
    strength = np.empty((NUM_DIRECTIONS, size, size), np.float32)
    for number in range(NUM_DIRECTIONS):
        angle = 180.0 * number / NUM_DIRECTIONS
        turned = ndimage.rotate(attenuation, angle, reshape=False, order=1)
        rays = np.repeat(turned.sum(axis=1, keepdims=True), size, axis=1)  # rays run along the rows
        strength[number] = np.exp(
            0.5 * MODULATION * ndimage.rotate(rays, -angle, reshape=False, order=1, mode="nearest")
        )
    middle = np.sqrt((strength[:, size * 3 // 8 : size * 5 // 8, size * 3 // 8 : size * 5 // 8] ** 2).mean())
    return strength / np.float32(middle)


def draw_noise(hu: Float, scan: Scan, rng: np.random.Generator) -> Float:
    """Draw the noise of one slice, [512, 512] float32 HU.

    Args:
        hu: The slice without noise.
        scan: How it was taken.
        rng: Of the noise.
    """
    white = fft.rfft2(rng.standard_normal(hu.shape, dtype=np.float32))
    fx = fft.rfftfreq(SLICE_SIZE, scan.spacing_mm).astype(np.float32)[None, :]
    fy = fft.fftfreq(SLICE_SIZE, scan.spacing_mm).astype(np.float32)[:, None]
    frequency = np.hypot(fx, fy)
    ramp = frequency / (frequency + np.float32(0.09))
    amplitude = np.sqrt(ramp + np.float32(0.03)) * np.exp(-0.5 * (frequency / np.float32(scan.cutoff_per_mm)) ** 2)
    twice = np.full(amplitude.shape, 2.0)  # a real picture's spectrum holds most frequencies once for two
    twice[:, [0, -1]] = 1.0
    amplitude /= np.float32(np.sqrt((amplitude**2 * twice).sum()) / SLICE_SIZE)  # now its noise has variance 1
    strength = ray_noise(hu, scan.spacing_mm)
    # A direction's rays make noise that varies across them: its share of the frequencies is a bell-shaped sector.
    direction = np.arctan2(fx, fy)
    total = np.zeros_like(hu)
    for number in range(NUM_DIRECTIONS):
        offset = np.angle(np.exp(2j * (direction - np.pi * number / NUM_DIRECTIONS))) / 2 * (NUM_DIRECTIONS / np.pi)
        sector = (np.cos(np.clip(offset, -1, 1) * (np.pi / 2)) ** 2).astype(np.float32)  # all add up to 1
        part = fft.irfft2(white * (amplitude * sector), s=hu.shape)
        total += part * ndimage.zoom(strength[number], COARSE, order=1, mode="nearest", grid_mode=True)
    return total * np.float32(scan.noise_hu)


def scan_slice(hu: Float, scan: Scan, rng: np.random.Generator) -> NDArray[np.int16]:
    """Add blur and noise: what the scanner makes of the painted anatomy, [512, 512] int16 HU, -1024 to 3071."""
    blurred = ndimage.gaussian_filter(hu, scan.blur_mm / scan.spacing_mm, truncate=3.5)
    measured = blurred + draw_noise(hu, scan, rng)
    stored: NDArray[np.int16] = np.clip(np.rint(measured), -1024, 3071).astype(np.int16)
    return stored
