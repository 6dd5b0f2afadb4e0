"""What a patch costs against the number of patches, the size of the ROI, threads and dtypes, and how much memory.

    python -m benchmarks.scaling [--device cpu] [--out benchmarks/results]

Writes <device>-scaling.json and a picture of it beside the results of `make bench`. About two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lesionaug as la
from benchmarks.conftest import machine, slug
from benchmarks.sources import RESULTS, source_hash
from lesionaug.augment.speed import LIKE_TORCH, SIZE, fold, median_seconds

COUNTS = (1, 4, 16, 64, 256, 1000, 4000, 30000)
DIAMETERS = (10, 20, 40, 80, 160, 320, 512)  # pixels
SOURCES = (torch.float32, torch.int16, torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float64)
OUTPUTS = (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.float64)
MODES: dict[str, dict[str, Any]] = {"antialiased": {}, "plain": LIKE_TORCH}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long each point is repeated")
    parser.add_argument("--most", type=int, default=max(COUNTS), help="patches of the largest call")
    options = parser.parse_args()
    device = torch.device(options.device)
    rois = fold(device)
    params = la.AugmentationPlan().sample(rois, seed=0)
    shuffled = params[torch.randperm(len(params), generator=torch.Generator().manual_seed(0)).to(device)]
    some = shuffled[: min(4000, options.most)]

    def point(call: Callable[[], Any], patches: int) -> float:
        return 1e6 * median_seconds(call, device, options.seconds) / patches

    def augment(batch: la.RoiBatch, rows: la.AugmentationParams, **how: Any) -> Callable[[], Any]:
        return lambda: la.augment(batch, rows, SIZE, **how)

    found: dict[str, Any] = {"csrc_sha256": source_hash(), "machine": machine(device)}
    counts = [count for count in COUNTS if count <= options.most]
    found["patches"] = {
        mode: {count: point(augment(rois, shuffled[:count], **how), count) for count in counts}
        for mode, how in MODES.items()
    }
    found["diameter"] = {
        mode: {d: point(augment(*of_diameter(d, device), **how), 480) for d in DIAMETERS} for mode, how in MODES.items()
    }
    if device.type == "cpu":
        found["threads"] = {mode: dict(per_thread(augment(rois, some, **how), point)) for mode, how in MODES.items()}
    found["source"] = {name(dtype): point(augment(converted(rois, dtype), some), len(some)) for dtype in SOURCES}
    found["output"] = {name(dtype): point(augment(rois, some, dtype=dtype), len(some)) for dtype in OUTPUTS}
    found["extra_memory_mb"] = extra_memory(augment(rois, params[: options.most]), device)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{slug(found['machine']['device'])}-scaling.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, file.with_suffix(".png"))
    print(f"written to {file} and {file.with_suffix('.png').name}")


def of_diameter(d: int, device: torch.device) -> tuple[la.RoiBatch, la.AugmentationParams]:
    """One lesion in the crop a store would keep, and its 480 augmentations."""
    side = int(3.3 * d + 16)
    image = torch.from_numpy(np.random.default_rng(d).normal(size=(side, side)).astype(np.float32))
    rois = la.RoiBatch.from_images([image], [[side / 2, side / 2]], [float(d)]).to(device)
    return rois, la.AugmentationPlan().sample(rois, seed=0)


def converted(rois: la.RoiBatch, dtype: torch.dtype) -> la.RoiBatch:
    """The same lesions with pixels of another type; integers hold 0 to 200."""
    scale = 1 if dtype.is_floating_point else 200
    images = [(image.clamp(0, 1) * scale).to(dtype) for image in rois.images]
    return la.RoiBatch.from_images(images, rois.centers, rois.diameters)


def per_thread(
    call: Callable[[], Any], point: Callable[[Callable[[], Any], int], float]
) -> Iterator[tuple[int, float]]:
    """Milliseconds of one call with every number of threads up to torch's."""
    threads = torch.get_num_threads()
    try:
        for count in range(1, threads + 1):
            torch.set_num_threads(count)
            yield count, point(call, 1000)  # in thousandths of the call: ms
    finally:
        torch.set_num_threads(threads)


def extra_memory(call: Callable[[], torch.Tensor], device: torch.device) -> float:
    """By how much the peak of memory rose in a call beyond its output, MB; on the CPU after a first one has run."""
    if device.type == "cuda":
        call()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        out = call()
        used = torch.cuda.max_memory_allocated(device) - before
    else:
        before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out = call()
        used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return max(0.0, (used - out.numel() * out.element_size()) / 1e6)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def draw(found: dict[str, Any], file: Path) -> None:
    """Four panels: number of patches, size of the ROI, threads, dtypes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    panels = (
        (axes[0, 0], "patches", "patches in a call", "us a patch"),
        (axes[0, 1], "diameter", "diameter of the lesion, pixels", "us a patch"),
        (axes[1, 0], "threads", "threads", "ms a call"),
    )
    for axis, key, label, unit in panels:
        for mode, points in found.get(key, {}).items():
            axis.plot([int(x) for x in points], list(points.values()), marker="o", label=mode)
        axis.set(xlabel=label, ylabel=unit)
        if key == "threads":
            axis.set_ylim(0, None)
            axis.xaxis.get_major_locator().set_params(integer=True)
        else:
            axis.set(xscale="log", yscale="log")
        axis.legend()
    bars = {f"from {k}": v for k, v in found["source"].items()} | {f"to {k}": v for k, v in found["output"].items()}
    axes[1, 1].barh(list(bars), list(bars.values()))
    axes[1, 1].set(xlabel="us a patch, antialiased")
    axes[1, 1].invert_yaxis()
    about = found["machine"]
    figure.suptitle(f"{about['device']}, {about['threads']} threads, torch {about['torch']}")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
