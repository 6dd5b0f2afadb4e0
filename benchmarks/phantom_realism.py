"""How like portal-phase liver CT the phantom is: noise, liver and edges beside real slices, in numbers and as pictures.

    python -m benchmarks.phantom_realism OUT --real ../shared/data/crlm_ct/CRLM-CT-1004

The phantom is drawn as the real slices were taken (GE, 5 mm), with a seed that difficulty was not tuned on. OUT gets
realism.md and realism.json, noise_power.png, classes.png (the three classes), slices.png and crops.png (real and
phantom in the same window, side by side); the folder of --blind gets blind.png and blind_key.txt, liver crops of both
in random order for somebody who has not seen the key.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pydicom
from scipy import ndimage

from lesionaug.data.files import write_json_atomic, write_text_atomic
from lesionaug.data.phantom import PhantomRecipe, ScanRecipe
from lesionaug.data.phantom.dataset import draw_patient_slices, plan_patients

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WINDOW = (-110.0, 190.0)
PATCH = 32
CROP = 112
CREDIT = (
    "Real slices: Colorectal-Liver-Metastases (TCIA), patient CRLM-CT-1004, Simpson et al. 2023,\n"
    "doi:10.7937/QXK2-QG03, CC BY 4.0 (windowed, cropped). The others are lesionaug phantoms, not patients."
)


class Picture(NamedTuple):
    """A slice: HU [h, w] float64, pixel side in mm, and where its lesions are known to lie (bool [h, w])."""

    hu: np.ndarray
    spacing: float
    lesions: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--real", type=Path, required=True, help="folder of real CT slices")
    parser.add_argument("--blind", type=Path, help="folder for crops in random order and their key")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--patients", type=int, default=12)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    real = [read_slice(path) for path in sorted(options.real.glob("*.dcm"))]
    phantom = draw(options.seed, options.patients)
    measured = {"real": measure(real), "phantom": measure(phantom)}
    write_json_atomic(options.out / "realism.json", measured)
    write_text_atomic(options.out / "realism.md", table(measured))
    draw_noise_power(measured, options.out / "noise_power.png")
    draw_slices(real[:3], phantom[:3], options.out / "slices.png")
    rng = np.random.default_rng(options.seed)
    crops = [liver_crops(pictures, 12, rng) for pictures in (real, phantom)]
    draw_crops(*crops, options.out / "crops.png")
    if options.blind is not None:
        options.blind.mkdir(parents=True, exist_ok=True)
        draw_blind(*crops, rng, options.blind)
    draw_classes(options.seed, options.out / "classes.png")
    print(table(measured))


def read_slice(path: Path) -> Picture:
    ds = pydicom.dcmread(path)
    hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    return Picture(np.clip(hu, -1024, 3071), float(ds.PixelSpacing[0]), np.zeros(hu.shape, bool))


def draw(seed: int, patients: int) -> list[Picture]:
    recipe = PhantomRecipe(scan=ScanRecipe(ge_share=1.0, thickness_mm=(5.0,)))
    pictures = []
    for plan in plan_patients(None, seed, recipe=recipe)[:patients]:
        slices, masks, scan = draw_patient_slices(plan)
        lesions = np.any([segment.mask for segment in masks if segment.slice_index == 0], axis=0)
        pictures.append(Picture(slices[0].hu.astype(np.float64), scan.spacing_mm, lesions))
    return pictures


def liver_patches(hu: np.ndarray, size: int, step: int = 8) -> list[tuple[float, int, int]]:
    """(roughness, row, column) of squares of liver, the most even first: right half, 70-150 HU, no fat, gas or bone."""
    found = []
    for row in range(0, hu.shape[0] - size, step):
        for column in range(0, hu.shape[1] // 2 - size, step):
            patch = hu[row : row + size, column : column + size]
            smooth = ndimage.uniform_filter(patch, 5)
            if 70 < patch.mean() < 150 and smooth.min() > 20 and smooth.max() < 200:
                found.append((float(ndimage.gaussian_filter(patch, 3).std()), row, column))
    return sorted(found)


def measure(pictures: list[Picture]) -> dict:
    """Liver mean and spread, noise power by frequency, sharpness of edges."""
    edges = np.arange(0, 0.70, 0.05)
    means, spreads, powers, widths = [], [], [], []
    for hu, spacing, _ in pictures:
        even = liver_patches(hu, PATCH)
        for _, row, column in even[: max(3, len(even) // 8)]:
            patch = hu[row : row + PATCH, column : column + PATCH]
            means.append(patch.mean())
            spreads.append(patch.std())
            powers.append(radial_power(patch, spacing, edges))
        widths += edge_widths(hu, spacing)
    power = np.nanmean(powers, axis=0)
    middle = (edges[:-1] + edges[1:]) / 2
    return {
        "slices": len(pictures),
        "liver_mean_hu": float(np.mean(means)),
        "liver_mean_spread_hu": float(np.std(means)),
        "noise_hu": float(np.mean(spreads)),
        "noise_range_hu": [float(np.min(spreads)), float(np.max(spreads))],
        "frequency_per_mm": middle.tolist(),
        "noise_power": (power / power.sum()).tolist(),
        "mean_frequency_per_mm": float((power * middle**2).sum() / (power * middle).sum()),
        "edge_10_90_mm": float(np.median(widths)),
        "edge_profiles": len(widths),
    }


def radial_power(patch: np.ndarray, spacing: float, edges: np.ndarray) -> np.ndarray:
    """Noise power spectrum in rings of frequency, after taking the slow part off."""
    rest = patch - ndimage.gaussian_filter(patch, 8)
    hann = np.hanning(PATCH)[:, None] * np.hanning(PATCH)[None]
    power = np.abs(np.fft.fft2((rest - rest.mean()) * hann)) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(PATCH, spacing), np.fft.fftfreq(PATCH, spacing)))
    ring = np.digitize(frequency.ravel(), edges) - 1
    keep = (ring >= 0) & (ring < len(edges) - 1)
    sums = np.bincount(ring[keep], power.ravel()[keep], len(edges) - 1)
    counts = np.bincount(ring[keep], minlength=len(edges) - 1)
    return sums / np.where(counts, counts, np.nan)


def edge_widths(hu: np.ndarray, spacing: float, num: int = 400) -> list[float]:
    """Distances (mm) over which edges between soft tissue and air (the skin, the lung) rise from 10 to 90 %."""
    smooth = ndimage.gaussian_filter(hu, 1.0)
    gy, gx = np.gradient(smooth)
    steep = np.hypot(gx, gy)
    rows, columns = np.nonzero((steep > 150) & (np.abs(smooth + 450) < 120))
    rng = np.random.default_rng(0)
    pick = rng.permutation(len(rows))[:num]
    t = np.arange(-7, 7.01, 0.1)
    widths = []
    for row, column in zip(rows[pick], columns[pick], strict=True):
        nx, ny = gx[row, column] / steep[row, column], gy[row, column] / steep[row, column]
        profile = ndimage.map_coordinates(hu, [row + t * ny, column + t * nx], order=1, mode="nearest")
        low, high = profile[:25], profile[-25:]
        if not (low.mean() < -750 and -150 < high.mean() < 160 and low.std() < 60 and high.std() < 60):
            continue
        level = (profile - low.mean()) / (high.mean() - low.mean())
        first, last = np.argmax(level > 0.1), len(level) - 1 - np.argmax(level[::-1] < 0.9)
        if last > first:
            widths.append(float((t[last] - t[first]) * spacing))
    return widths


def table(measured: dict) -> str:
    real, ours = measured["real"], measured["phantom"]
    similarity = float(np.minimum(real["noise_power"], ours["noise_power"]).sum())
    rows = [
        ("slices", f"{real['slices']}", f"{ours['slices']}"),
        (
            "liver, mean (spread over patches), HU",
            f"{real['liver_mean_hu']:.0f} ({real['liver_mean_spread_hu']:.0f})",
            f"{ours['liver_mean_hu']:.0f} ({ours['liver_mean_spread_hu']:.0f})",
        ),
        (
            "standard deviation in even liver, mean (range), HU",
            *(f"{m['noise_hu']:.1f} ({m['noise_range_hu'][0]:.1f}-{m['noise_range_hu'][1]:.1f})" for m in (real, ours)),
        ),
        (
            "mean frequency of the noise, per mm",
            f"{real['mean_frequency_per_mm']:.3f}",
            f"{ours['mean_frequency_per_mm']:.3f}",
        ),
        ("edge from tissue to air, 10-90 %, mm", f"{real['edge_10_90_mm']:.2f}", f"{ours['edge_10_90_mm']:.2f}"),
    ]
    lines = ["| | real (CRLM-CT-1004) | phantom (GE-like, 5 mm) |", "|---|---|---|"]
    lines += [f"| {name} | {a} | {b} |" for name, a, b in rows]
    lines += ["", f"Overlap of the two noise power spectra, each of area 1: {100 * similarity:.0f} %."]
    return "\n".join(lines) + "\n"


def draw_noise_power(measured: dict, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for name, style in (("real", "o-"), ("phantom", "s--")):
        axis.plot(measured[name]["frequency_per_mm"], measured[name]["noise_power"], style, label=name)
    axis.set(xlabel="spatial frequency, per mm", ylabel="share of the noise power", ylim=(0, None))
    axis.legend(frameon=False)
    axis.set_title("Noise power spectrum in even liver: real CT and phantom", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def shown(hu: np.ndarray) -> np.ndarray:
    return np.clip((hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)


def grid_of(pictures: list[np.ndarray], titles: list[str], columns: int, size: float, credit: bool = True):
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * size + 0.6), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(shown(picture), cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
        axis.set_title(title, fontsize=7, pad=2)
    if credit:
        figure.text(0.5, 0.005, CREDIT, ha="center", fontsize=6)
    figure.subplots_adjust(0.005, 0.07, 0.995, 0.96, 0.02, 0.12)
    return figure


def draw_slices(real: list[Picture], phantom: list[Picture], path: Path) -> None:
    pictures = [picture.hu for picture in (*real, *phantom)]
    titles = ["real"] * len(real) + ["PHANTOM (synthetic)"] * len(phantom)
    figure = grid_of(pictures, titles, len(real), 3.2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def liver_crops(pictures: list[Picture], num: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Crops of mostly liver-like tissue at random places, vessels and edges included, drawn lesions left out.

    Every slice gives as many as the others, if it has the places; the middles of two from one are 45 pixels apart.
    """
    places = []
    for index, (hu, _, lesions) in enumerate(pictures):
        tissue = ndimage.uniform_filter(((hu > 60) & (hu < 190)).astype(float), CROP)
        free = ndimage.maximum_filter(lesions, CROP + 16) == 0
        rows, columns = np.nonzero((tissue > 0.72) & free)
        near = (columns < hu.shape[1] * 0.48) & (columns > CROP // 2) & (rows > CROP // 2)
        places += [(index, int(r), int(c)) for r, c in zip(rows[near], columns[near], strict=True)]
    chosen: list[tuple[int, int, int]] = []
    for each in (-(-num // len(pictures)), num):
        for place in rng.permutation(len(places)):
            index, row, column = places[place]
            same = [c for c in chosen if c[0] == index]
            apart = all(max(abs(row - c[1]), abs(column - c[2])) >= 45 for c in same)
            if apart and len(same) < each and len(chosen) < num:
                chosen.append((index, row, column))
    half = CROP // 2
    order = rng.permutation(len(chosen))
    return [pictures[i].hu[r - half : r + half, c - half : c + half] for i, r, c in (chosen[k] for k in order)]


def draw_crops(real: list[np.ndarray], phantom: list[np.ndarray], path: Path) -> None:
    pictures, titles = [], []
    for row in range(0, 12, 4):
        pictures += real[row : row + 4] + phantom[row : row + 4]
        titles += ["real"] * 4 + ["PHANTOM (synthetic)"] * 4
    figure = grid_of(pictures, titles, 8, 1.5)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_classes(seed: int, path: Path, each: int = 10) -> None:
    """The first lesions of every class, whatever they look like, each with a fifth of its diameter around it."""
    found: dict[str, list[np.ndarray]] = {}
    for plan in plan_patients(None, seed):
        slices, masks, _ = draw_patient_slices(plan)
        for segment in masks:
            rows, columns = np.nonzero(segment.mask)
            row, column = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
            half = max(int(0.7 * max(np.ptp(rows), np.ptp(columns))), 8)
            padded = np.pad(slices[segment.slice_index].hu, half, mode="edge")
            found.setdefault(segment.name, []).append(padded[row : row + 2 * half, column : column + 2 * half])
        if len(found) == 3 and min(map(len, found.values())) >= each:
            break
    names = sorted(found)
    pictures = [picture for name in names for picture in found[name][:each]]
    titles = [f"phantom {name}" for name in names for _ in range(each)]
    figure = grid_of(pictures, titles, each, 1.15, credit=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_blind(real: list[np.ndarray], phantom: list[np.ndarray], rng: np.random.Generator, out: Path) -> None:
    each = min(len(real), len(phantom))
    both = real[:each] + phantom[:each]
    order = rng.permutation(2 * each)
    figure = grid_of([both[i] for i in order], [str(n) for n in range(1, 2 * each + 1)], 6, 1.8, credit=False)
    figure.savefig(out / "blind.png", dpi=110)
    plt.close(figure)
    key = [f"{n} {'real' if i < each else 'phantom'}" for n, i in enumerate(order, 1)]
    write_text_atomic(out / "blind_key.txt", "\n".join(key) + "\n")


if __name__ == "__main__":
    main()
