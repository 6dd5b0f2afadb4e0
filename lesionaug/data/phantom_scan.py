"""Phantom, step 3: what a made-up scanner makes of the painted anatomy: pixel size, blur and correlated noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from lesionaug.data.phantom_anatomy import Geometry, Patient
from lesionaug.data.phantom_shapes import (
    SLICE_SIZE,
    Float,
)


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


def draw_scan(patient: Patient, rng: np.random.Generator) -> Scan:
    """Draw a scan: pixels 0.6-0.9 mm that hold the whole body, slices 1.25-5 mm, 140-400 mAs, noise 8-18 HU.

    Noise grows as (mAs x thickness)^-0.3, slower than photon counting alone (-0.5): thin slices are read with smoother
    settings and large patients get more mAs.
    """
    ge = rng.random() < 0.5
    smallest = max(0.6, 2.06 * patient.half_width_mm / SLICE_SIZE)
    spacing = float(np.round(rng.uniform(smallest, min(0.9, smallest + 0.15)), 6))
    thickness = float(rng.choice([1.25, 2.5, 3.75, 5.0] if ge else [1.5, 2.0, 3.0, 5.0]))
    exposure = int(rng.integers(140, 401))
    build = (patient.half_width_mm / 160) ** 1.5
    noise = 11.0 * (1000 / (exposure * thickness)) ** 0.3 * build * float(np.exp(rng.normal(0, 0.08)))
    return Scan(
        vendor="GE-like" if ge else "Siemens-like",
        kernel="STANDARD" if ge else "B30f",
        spacing_mm=spacing,
        thickness_mm=thickness,
        exposure_mas=exposure,
        noise_hu=float(np.clip(noise, 8, 18)),
        blur_mm=float(rng.uniform(0.50, 0.62)) if ge else float(rng.uniform(0.56, 0.70)),
        cutoff_per_mm=0.42 if ge else 0.36,
    )


def scan_slice(hu: Float, geometry: Geometry, scan: Scan, rng: np.random.Generator) -> NDArray[np.int16]:
    """Add blur and noise: what the scanner makes of the painted anatomy, [512, 512] int16 HU, -1024 to 3071.

    The noise has the ring-shaped power spectrum of filtered back projection (rising with frequency, then cut off by the
    kernel), is strongest in the middle of the body and weakest in the air around it.
    """
    blurred = ndimage.gaussian_filter(hu, scan.blur_mm / scan.spacing_mm, truncate=3.5)
    white = rng.standard_normal(hu.shape, dtype=np.float32)
    fx = fft.rfftfreq(SLICE_SIZE, scan.spacing_mm).astype(np.float32)[None, :]
    fy = fft.fftfreq(SLICE_SIZE, scan.spacing_mm).astype(np.float32)[:, None]
    frequency = np.hypot(fx, fy)
    amplitude = np.sqrt(frequency + 0.02) * np.exp(-((frequency / scan.cutoff_per_mm) ** 2))
    noise = fft.irfft2(fft.rfft2(white) * amplitude, s=hu.shape)
    noise *= np.float32(1 / noise.std())
    reach = np.float32(geometry.patient.half_height_mm)
    middle = np.clip(geometry.body / reach, -0.3, 1)
    strength = np.float32(scan.noise_hu) * np.where(middle > 0, 0.72 + 0.3 * middle, 0.72 + 0.9 * middle)
    measured = blurred + strength.astype(np.float32) * noise
    stored: NDArray[np.int16] = np.clip(np.rint(measured), -1024, 3071).astype(np.int16)
    return stored
