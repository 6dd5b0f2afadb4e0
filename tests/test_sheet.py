"""The contact sheet (Fig. 3) and `lesionaug augment`: tiles are what their captions say, in one window."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import cyclopts
import numpy as np
import pytest
import torch
from matplotlib.patches import Circle
from safetensors.torch import load_file

import lesionaug as la
from lesionaug.augment.export import export_augmentations
from lesionaug.augment.sheet import contact_sheet, figure_png, sheet_rows
from lesionaug.data.store import manifest_sha256, save_rois
from lesionaug.errors import ConfigError

WINDOW = (-160.0, 240.0)


def make_rois(n: int = 5, kind: str = "phantom") -> la.RoiBatch:
    noise = np.random.default_rng(5)
    images, centers, diameters = [], [], []
    for i in range(n):
        d = 12.0 + 3 * i
        half = int(1.6 * d) + 6
        y, x = np.mgrid[: 2 * half, : 2 * half] + 0.5
        image = noise.normal(90, 8, x.shape) + 80 * np.exp(-((x - half) ** 2 + (y - half) ** 2) / (d / 5) ** 2)
        images.append(image.astype(np.int16))
        centers.append((half, half))
        diameters.append(d)
    return la.RoiBatch.from_images(
        images, np.array(centers, float), np.array(diameters), labels=[("a", "b")[i % 2] for i in range(n)], kind=kind,
        lesion_ids=[f"lesion-{i}" for i in range(n)], patient_ids=[f"p{i}" for i in range(n)],
    )  # fmt: skip


def tiles_of(block) -> list:
    return [axis for axis in block.axes if axis.images]


def test_tiles_are_what_augment_gives_in_one_window() -> None:
    rois, plan = make_rois(), la.AugmentationPlan()
    figure = contact_sheet(rois, plan, seed=9, window=WINDOW)
    assert len(figure.subfigs) == 2  # one lesion per class
    for block in figure.subfigs:
        title = block.get_suptitle()
        lesion = rois.lesion_ids.index(re.search(r"lesion (\S+):", title).group(1))
        one = rois[[lesion]]
        wanted = [tile for _, tiles in sheet_rows(plan) for tile in tiles]
        shown = tiles_of(block)
        assert len(shown) == len(wanted) == 9 + 8 + 9
        for axis, tile in zip(shown, wanted, strict=True):
            params = la.originals(one) if tile.index is None else plan.sample(one, seed=9, indices=[tile.index])
            patch = la.augment(one, params, size=64, window=WINDOW)[0, 0].numpy()
            assert np.array_equal(axis.images[0].get_array(), patch)
            assert axis.images[0].get_clim() == (0.0, 1.0)
            caption = axis.get_xlabel().replace("\N{MINUS SIGN}", "-")
            d, side = float(one.diameters[0]), float(params.side[0])
            if tile.kind == "rotated":
                assert caption == f"{float(params.angle[0]):.1f}°"
            elif tile.kind == "flipped":
                assert caption == {1: "left-right", 2: "up-down", 3: "both"}[int(params.flip[0])]
            elif tile.kind == "translated":
                assert caption == f"{float(params.shift[0, 0]):+.1f}, {float(params.shift[0, 1]):+.1f} px"
            else:
                assert caption.splitlines()[-1] == f"margin {(side - d) / 2 / d:.2f} d"
            # the ring: diameter d around the place the lesion's centre went, found by inverting the map
            matrix = params.patch_to_image(one, size=64)[0].double().numpy()
            centre = np.linalg.solve(matrix[:, :2], one.centers[0].numpy() - matrix[:, 2]) / 64
            (ring,) = [patch for patch in axis.patches if isinstance(patch, Circle)]
            assert np.allclose(ring.center, centre, atol=1e-5)
            assert np.isclose(2 * ring.radius, d / side)


def test_sheet_is_deterministic_names_its_data_and_follows_the_plan() -> None:
    rois, plan = make_rois(), la.AugmentationPlan(n_rot=2, n_flip=0, n_trans=1, n_scale=2)
    assert [name for name, _ in sheet_rows(plan)] == ["rotated", "translated", "scaled"]
    assert [len(tiles) for _, tiles in sheet_rows(la.AugmentationPlan(n_scale=30, n_trans=0))] == [9, 4, 9]
    png = figure_png(contact_sheet(rois, plan, seed=1, window=WINDOW), dpi=60)
    assert png == figure_png(contact_sheet(rois, plan, seed=1, window=WINDOW), dpi=60)
    assert png != figure_png(contact_sheet(rois, plan, seed=2, window=WINDOW), dpi=60)
    figure = contact_sheet(rois, plan, lesions=[3], window=WINDOW, ring=False)
    assert figure.get_supxlabel() == "Phantom data: synthetic, not patients"
    assert "patients" not in contact_sheet(make_rois(kind="user"), plan, window=WINDOW).get_supxlabel()
    assert "lesion-3" in figure.subfigs[0].get_suptitle()
    assert not any(isinstance(p, Circle) for axis in tiles_of(figure.subfigs[0]) for p in axis.patches)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_export_equals_augment_in_nested_order(tmp_path: Path, dtype: str) -> None:
    rois, plan = make_rois(), la.AugmentationPlan()
    seen = []
    manifest = export_augmentations(
        rois, tmp_path / "out", plan, per_lesion=6, seed=4, size=16, window=WINDOW, dtype=dtype,
        bytes_per_file=10 * 16 * 16 * (4 if dtype == "float32" else 1), progress=lambda *step: seen.append(step[:2]),
    )  # fmt: skip
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert [file["num_patches"] for file in manifest["files"]] == [10, 10, 10, 5]  # files end inside lesions, too
    assert seen[-1] == (35, 35)
    parts = []
    for file in manifest["files"]:
        path = tmp_path / "out" / file["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
        parts.append(load_file(path))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = plan.order(rois, seed=4)[:, :6]
    kind = {"dtype": torch.float32 if dtype == "float32" else torch.uint8}
    sampled = plan.sample(rois, seed=4, indices=order)
    wanted = la.augment(rois, sampled, size=16, window=WINDOW, **kind).view(5, 6, 1, 16, 16)
    base = la.augment(rois, la.originals(rois), size=16, window=WINDOW, **kind).view(5, 1, 1, 16, 16)
    assert torch.equal(tensors["images"].view(5, 7, 1, 16, 16), torch.cat([base, wanted], dim=1))
    assert torch.equal(tensors["augmentation"].view(5, 7), torch.cat([torch.full((5, 1), -1), order], dim=1))
    assert torch.equal(tensors["lesion"], torch.arange(5).repeat_interleave(7))
    for saved, drawn in (("angle_deg", "angle"), ("flip", "flip"), ("shift_px", "shift"), ("side_px", "side")):
        value = getattr(sampled, drawn)
        assert torch.equal(tensors[saved].view(5, 7, *value.shape[1:])[:, 1:].flatten(0, 1), value)
    assert torch.allclose(tensors["side_px"].view(5, 7)[:, 0], 1.4 * rois.diameters)
    assert [lesion["id"] for lesion in manifest["lesions"]] == list(rois.lesion_ids)
    assert manifest["kind"] == "phantom"
    assert manifest["window_hu"] == [-160.0, 240.0]


def test_export_does_not_depend_on_the_file_size(tmp_path: Path) -> None:
    rois = make_rois()
    one = export_augmentations(rois, tmp_path / "one", per_lesion=3, size=8)
    many = export_augmentations(rois, tmp_path / "many", per_lesion=3, size=8, bytes_per_file=1)
    assert len(one["files"]) == 1
    assert len(many["files"]) == 20
    whole = load_file(tmp_path / "one" / one["files"][0]["file"])["images"]
    split = torch.cat([load_file(tmp_path / "many" / file["file"])["images"] for file in many["files"]])
    assert torch.equal(whole, split)


def run_cli(*arguments: object) -> None:
    from lesionaug.cli import augment

    app = cyclopts.App(name="lesionaug", result_action="return_value")
    augment.register(app)
    app(["augment", *(str(argument) for argument in arguments)])


def test_command_writes_arrays_or_the_sheet_and_nothing_over_anything(tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    save_rois(make_rois(), store)
    run_cli(store, tmp_path / "out", "--per-lesion", 2, "--seed", 3, "--size", 8, "--window", -100, 200)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"] == {"manifest_sha256": manifest_sha256(store)}
    assert (manifest["per_lesion"], manifest["seed"], manifest["window_hu"]) == (2, 3, [-100.0, 200.0])
    assert str(tmp_path) not in json.dumps(manifest)
    run_cli(store, tmp_path / "sheet.png", "--sheet")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert "phantom data" in capsys.readouterr().out

    before = sorted(tmp_path.rglob("*"))
    for wrong, match in (
        ((tmp_path / "out",), "exists already"),
        ((tmp_path / "sheet.png", "--sheet"), "exists already"),
        ((tmp_path / "sheet.jpg", "--sheet"), "PNG"),
        ((tmp_path / "no" / "out",), "does not exist"),
        ((tmp_path / "new", "--per-lesion", 481), "0 .. 480"),
        ((tmp_path / "new", "--window", 200, -100), "LOW < HIGH"),
        ((tmp_path / "new", "--size", 0), "1 to 4096"),
        ((tmp_path / "new.png", "--sheet", "--per-lesion", 3), "one lesion per class"),
        ((tmp_path / "new", "--seed", -1), "2.64"),
    ):
        with pytest.raises(ConfigError, match=match):
            run_cli(store, *wrong)
    assert sorted(tmp_path.rglob("*")) == before


def test_unlabelled_lesions_have_a_sheet_too() -> None:
    rois = make_rois()
    bare = la.RoiBatch.from_images(rois.images, rois.centers, rois.diameters)
    figure = contact_sheet(bare, la.AugmentationPlan(), window=WINDOW)
    assert [block.get_suptitle().split(",")[0] for block in figure.subfigs] == ["unlabelled"]
