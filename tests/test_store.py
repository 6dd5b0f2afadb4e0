"""A store comes back as it was, and a damaged or hostile one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lesionaug as la
from lesionaug.data.store import load_rois, manifest_sha256, read_manifest, save_rois
from lesionaug.errors import DataError


def batch(dtype=np.int16, masks: bool = True) -> la.RoiBatch:
    rng = np.random.default_rng(0)
    shapes = [(12, 9), (7, 20), (30, 31)]
    images = [rng.integers(-1000, 1000, shape).astype(dtype) for shape in shapes]
    if dtype != np.int16:
        images = [image + np.asarray(0.25, dtype) for image in images]
    return la.RoiBatch.from_images(
        images,
        np.array([[4.5, 6.25], [10.0, 3.5], [15.5, 15.0]]),
        np.array([3.3, 2.7, 11.1], np.float32),
        labels=np.array([1, -1, 0]),
        lesion_ids=["a", "b", "c"],
        patient_ids=["P1", "P1", "P2"],
        spacing_mm=np.array([[0.7, 0.7], [0.5, 1.1], [0.9, 0.9]]),
        masks=[rng.random(shape) < 0.5 for shape in shapes] if masks else None,
        origins=np.array([[0, 0], [5, 7], [100, 3]]),
        classes=("cyst", "metastasis"),
        kind="imported",
    )


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("masks", [True, False])
def test_a_batch_comes_back_bit_for_bit(tmp_path, dtype, masks):
    rois = batch(dtype, masks)
    save_rois(rois, tmp_path / "rois")
    again = la.load_rois(tmp_path / "rois")
    assert all(torch.equal(a, b) for a, b in zip(rois.images, again.images, strict=True))
    assert again.dtype == rois.dtype
    for name in ("centers", "diameters", "labels", "spacing_mm", "origins"):
        assert torch.equal(getattr(rois, name), getattr(again, name)), name
    assert (again.classes, again.lesion_ids, again.patient_ids, again.kind) == (
        rois.classes,
        rois.lesion_ids,
        rois.patient_ids,
        "imported",
    )
    if masks:
        assert rois.masks is not None
        assert again.masks is not None
        assert all(torch.equal(a, b) for a, b in zip(rois.masks, again.masks, strict=True))
    else:
        assert again.masks is None


def test_the_same_batch_gives_the_same_bytes_and_details_are_kept(tmp_path):
    details = {"lesions": [{"area_px": n} for n in range(3)], "import": {"format": "dicom"}}
    for name in ("a", "b"):
        save_rois(batch(), tmp_path / name, details=details, window_hu=(-100.0, 200.0))
    for file in ("manifest.json", "pixels.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert manifest_sha256(tmp_path / "a") == manifest_sha256(tmp_path / "b")
    manifest = read_manifest(tmp_path / "a")
    assert manifest["window_hu"] == [-100.0, 200.0]
    assert manifest["lesions"][2]["area_px"] == 2
    assert manifest["import"] == {"format": "dicom"}
    with pytest.raises(ValueError, match="repeat"):
        save_rois(batch(), tmp_path / "c", details={"kind": "phantom"})
    assert not (tmp_path / "c").exists()


def test_nothing_is_overwritten(tmp_path):
    save_rois(batch(), tmp_path / "rois")
    with pytest.raises(DataError, match="exists already"):
        save_rois(batch(), tmp_path / "rois")
    with pytest.raises(DataError, match="does not exist"):
        save_rois(batch(), tmp_path / "missing" / "rois")


def _edit(change):
    def apply(store: Path) -> None:
        path = store / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return apply


def _lesion(**fields):
    return _edit(lambda manifest: manifest["lesions"][1].update(fields))


def _truncate(name):
    def apply(store: Path) -> None:
        content = (store / name).read_bytes()
        (store / name).write_bytes(content[: len(content) // 2])

    return apply


def _flip_bit(store: Path) -> None:
    content = bytearray((store / "pixels.safetensors").read_bytes())
    content[-5] ^= 1
    (store / "pixels.safetensors").write_bytes(content)


def _link_out(store: Path) -> None:
    outside = store.parent / "outside"
    (store / "pixels.safetensors").rename(outside)
    (store / "pixels.safetensors").symlink_to(outside)


@pytest.mark.parametrize(
    "damage",
    [
        _edit(lambda m: m.update(version=2)),
        _edit(lambda m: m.update(version=True)),
        _edit(lambda m: m.update(schema="other")),
        _edit(lambda m: m.update(kind="real")),
        _edit(lambda m: m.update(classes=["cyst", "cyst"])),
        _edit(lambda m: m.update(lesions=[])),
        _edit(lambda m: m.pop("lesions")),
        _edit(lambda m: m["lesions"].pop()),
        _edit(lambda m: m["pixels"].update(file="../../etc/passwd")),
        _edit(lambda m: m["pixels"].update(dtype="int64")),
        _edit(lambda m: m["pixels"].update(num_pixels=10**15)),
        _edit(lambda m: m["pixels"].update(num_pixels=5)),
        _edit(lambda m: m["pixels"].update(sha256="0" * 64)),
        _edit(lambda m: m["pixels"].update(masks=False)),
        _edit(lambda m: m.update(hu_clip=[-10, 10])),
        _edit(lambda m: m.update(window_hu=[5, 5])),
        _lesion(height=10**9),
        _lesion(height=-7),
        _lesion(height=14, width=10**7),
        _lesion(height=7.0),
        _lesion(label="tumour"),
        _lesion(id="a"),
        _lesion(id=""),
        _lesion(center=[1.0]),
        _lesion(center=["x", 1.0]),
        _lesion(diameter_px=0),
        _lesion(diameter_px=None),
        _lesion(spacing_mm=[0.0, 1.0]),
        _lesion(spacing_mm=None),
        _lesion(origin=[0.5, 0]),
        _lesion(center=[10**400, 1.0]),
        _lesion(center=[-(10**400), 1.0]),
        _lesion(center=[1e300, 1.0]),
        _lesion(center=[20 + 2.8, 3.5]),  # 20 columns, diameter 2.7
        _lesion(center=[-2.8, 3.5]),
        _lesion(center=[10.0, 7 + 2.8]),
        _lesion(center=[10.0, -2.8]),
        _lesion(diameter_px=10**400),
        _lesion(diameter_px=1e39),
        _lesion(spacing_mm=[10**400, 1.0]),
        _edit(lambda m: m.update(window_hu=[0, 10**400])),
        _edit(lambda m: m.update(hu_clip=[-(10**400), 4000])),
        *(
            _lesion(**{name: text})
            for name in ("id", "patient")
            for text in ("x" * 201, "a\nb", "a\x1b[2Jb", "a\u202eb")
        ),
        *(
            _edit(lambda m, text=text: m.update(classes=[*m["classes"], text]))
            for text in ("x" * 201, "a\nb", "\x1b[31m", "a\x00", 7)
        ),
        _truncate("manifest.json"),
        _truncate("pixels.safetensors"),
        _flip_bit,
        _link_out,
        lambda store: (store / "pixels.safetensors").unlink(),
        lambda store: (store / "manifest.json").unlink(),
        lambda store: (store / "manifest.json").write_text("[" * 100_000),
        lambda store: (store / "manifest.json").write_bytes(b"\xff\xfe"),
        lambda store: (store / "manifest.json").write_text(
            (store / "manifest.json").read_text().replace("2.700000047683716", "NaN")
        ),
    ],
)
def test_a_damaged_or_hostile_store_is_refused(tmp_path, damage):
    save_rois(batch(), tmp_path / "rois")
    load_rois(tmp_path / "rois")
    damage(tmp_path / "rois")
    with pytest.raises(DataError) as caught:
        load_rois(tmp_path / "rois")
    assert str(tmp_path) not in str(caught.value)


def test_a_centre_may_lie_as_far_outside_its_crop_as_its_diameter(tmp_path):
    save_rois(batch(), tmp_path / "rois")
    _lesion(center=[22.5, -2.5], id="é" * 200)(tmp_path / "rois")
    assert load_rois(tmp_path / "rois").centers[1].tolist() == [22.5, -2.5]


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such ROI store"):
        load_rois(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"manifest\.json"):
        load_rois(tmp_path)
