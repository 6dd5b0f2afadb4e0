"""The tiled CUDA kernels (csrc/resample_tiled.cu): every way through them, and what the compiler made of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import lesionaug as la
from lesionaug.augment import native
from lesionaug.errors import EnvironmentProblem
from tests.conftest import REPOSITORY, TILED_DEVICES, open_device
from tests.test_resample import assert_close


@pytest.fixture(params=TILED_DEVICES)
def device(request, monkeypatch):
    """The tiled kernels, emulated and on a GPU."""
    return open_device(request.param, monkeypatch)


def about(image, zoom, degrees, size):
    """The map of a patch about the middle of an image."""
    angle = np.deg2rad(degrees)
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([image.shape[1] / 2 + 0.3, image.shape[0] / 2 - 0.2])
    return np.concatenate([linear, (middle - linear @ [size / 2, size / 2])[:, None]], axis=1)


def in_float64(image, maps, size, **options):
    """The same on the CPU by resample.h, in float64."""
    backend = native.CpuBackend()
    backend.path = "reference"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "backend", lambda device: backend)
        index = torch.zeros(len(maps), dtype=torch.int64)
        return la.resample([image.double()], maps, size, image_index=index, dtype=torch.float64, **options).numpy()


@pytest.mark.parametrize("border", ["reflect", "constant", "renorm"])
@pytest.mark.parametrize("size", [64, 36])  # whole squares of 32 pixels, and parts of them
def test_every_size_of_square(device, border, size):
    """Zooms at which a block loads the source of 32, 16 and 8 pixels per side, or reads it where it lies."""
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(150, 170))).float()
    zooms = [0.3, 1.0, 1.4, 2.0, 2.6, 3.2, 3.9, 4.3, 7.0]
    maps = torch.from_numpy(np.stack([about(image, z, d, size) for z in zooms for d in (0, 33)]))
    options = {"border": border, "fill": 0.5}
    index = torch.zeros(len(maps), dtype=torch.int64, device=device)
    got = la.resample([image.to(device)], maps.to(device), size, image_index=index, **options)
    assert_close(got, in_float64(image, maps, size, **options), image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_flips_share_a_sampling_in_large_calls(device, dtype):
    """From 4,096 patches on, four rows go to one block; the bits are those of small calls."""
    rng = np.random.default_rng(1)
    images = [torch.from_numpy(rng.integers(-900, 900, (40, 44)).astype(np.int16)) for _ in range(3)]
    rois = la.RoiBatch.from_images(images, [[20.0, 22.0]] * 3, [9.0, 14.0, 20.0])
    params = la.AugmentationPlan(n_rot=90).sample(rois, seed=4)
    params = params[torch.cat([torch.arange(len(params)), torch.arange(3)])]  # and a group that is not full
    assert len(params) > 4096
    rois, params = rois.to(device), params.to(device)
    options = {"window": (-160.0, 240.0), "dtype": dtype}
    together = la.augment(rois, params, 4, **options)
    for start in (0, 1600, len(params) - 37):
        part = la.augment(rois, params[start : start + 37], 4, **options)
        assert torch.equal(part, together[start : start + 37])
    for n in range(0, 4000, 16):
        for k, dims in ((1, [1]), (2, [2]), (3, [1, 2])):
            assert torch.equal(together[n + k], torch.flip(together[n], dims))


def test_what_it_cannot_do_is_done_by_the_plain_kernel(device):
    """Sizes that are no multiple of 4, float64, and patches at an address between multiples of 16 bytes."""
    image = torch.rand(30, 30)
    maps = torch.from_numpy(about(image, 1.2, 20, 8))[None]
    flat = torch.zeros(8 * 8 + 1, device=device)
    out = flat[1:].view(1, 1, 8, 8)
    la.resample([image.to(device)], maps.to(device), 8, out=out)
    assert_close(out, in_float64(image, maps, 8), image)
    for size, dtype in ((7, torch.float32), (8, torch.float64)):
        got = la.resample([image.to(device)], maps.to(device), size, dtype=dtype)
        assert_close(got, in_float64(image, maps, size), image)


def test_channels_and_a_bad_map_among_good_ones(device):
    image = torch.rand(1, 3, 50, 50)
    good = torch.from_numpy(about(image[0, 0], 1.3, 70, 64)).float()
    maps = torch.stack([good, torch.full((2, 3), float("nan")), good * 15, good])
    index = torch.zeros(4, dtype=torch.int64, device=device)
    got = la.resample(image.to(device), maps.to(device), 64, image_index=index)
    assert torch.equal(got[0], got[3])
    assert got[1].isnan().all()
    assert got[2].isfinite().all()
    for c in range(3):
        assert_close(got[:1, c : c + 1], in_float64(image[0, c], maps[:1].double(), 64), image)


def test_an_unknown_path_is_an_error(monkeypatch):
    monkeypatch.setenv("LESIONAUG_CUDA_PATH", "fast")
    monkeypatch.setattr(native.CudaBackend.module, "cuda_archs", "90", raising=False)
    with pytest.raises(EnvironmentProblem, match="LESIONAUG_CUDA_PATH: must be one of plain, tiled"):
        native.CudaBackend(torch.device("cuda", 0))


@pytest.mark.full
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_registers_spills_and_stores(tmp_path: Path, arch):
    """What ptxas reports needs no GPU: no kernel spills, three blocks fit on an SM, quads leave by 16-byte stores."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    source = REPOSITORY / "csrc" / "resample_tiled.cu"
    flags = [nvcc, "-std=c++17", "-O3", f"-arch={arch}", str(source)]
    built = subprocess.run(
        [*flags, "-Xptxas", "-v", "-c", "-o", str(tmp_path / "tiled.o")], capture_output=True, text=True, check=True
    )
    report = built.stderr + built.stdout
    kernels = re.findall(r"Compiling entry function '(\w*tiled_kernel\w*)'", report)
    assert len(kernels) == 6, "one for each type of source"
    assert set(re.findall(r"(\d+) bytes spill", report)) == {"0"}
    for registers, shared in re.findall(r"Used (\d+) registers.*?(\d+) bytes smem", report):
        assert int(registers) * 256 * 3 <= 65536
        assert (int(shared) + 1024) * 3 <= 100 * 1024  # the smallest of them, of sm_86 and sm_89
    subprocess.run([*flags, "-ptx", "-o", str(tmp_path / "tiled.ptx")], check=True)
    for kernel in re.split(r"\.entry ", (tmp_path / "tiled.ptx").read_text())[1:]:
        assert "st.global.v4" in kernel
