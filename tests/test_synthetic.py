"""Synthetic ROIs on disk, and that nothing is trained on what it is tested on: by patient, lesion or pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lesionaug.data.provenance import Provenance, content_hashes
from lesionaug.data.rois import RoiBatch
from lesionaug.data.synthetic import SyntheticRois, load_synthetic, save_synthetic
from lesionaug.errors import DataError


def lesions(ids: str = "abcd", patients: str = "PPQR", seed: int = 0, crop: int = 0) -> RoiBatch:
    """Noise with a lesion of 20 pixels in the middle; `crop` pixels are missing all around."""
    generator = torch.Generator().manual_seed(seed)
    images = [(60 + 20 * torch.randn(64, 64, generator=generator)).round().to(torch.int16) for _ in ids]
    return RoiBatch.from_images(
        [image[crop : 64 - crop, crop : 64 - crop] for image in images],
        [[32.25 - crop, 31.5 - crop]] * len(ids),
        [20.0] * len(ids),
        labels=[i % 2 for i in range(len(ids))],
        lesion_ids=list(ids),
        patient_ids=list(patients),
    )


def synthetic(**changes) -> SyntheticRois:
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    made = SyntheticRois(
        images,
        torch.arange(6) % 2,
        ("cyst", "other"),
        "phantom",
        1,
        (-160.0, 240.0),
        Provenance.of(lesions()),
        {"a": 1},
    )
    return replace(made, **changes)


def test_a_hash_sees_the_lesions_pixels_and_nothing_else() -> None:
    first = content_hashes(lesions())
    assert len(set(first)) == 4
    assert content_hashes(lesions(ids="wxyz", patients="1234")) == first  # no names
    assert content_hashes(lesions(crop=15)) == first  # no surroundings
    assert content_hashes(lesions(seed=1)) != first
    as_float = RoiBatch.from_images(
        [image.to(torch.float32) for image in lesions().images], lesions().centers, lesions().diameters
    )
    assert content_hashes(as_float) == first  # values, not types


@given(row=st.integers(0, 63), column=st.integers(0, 63))
def test_one_changed_pixel_of_the_lesion_is_another_content(row: int, column: int) -> None:
    rois = lesions(ids="a", patients="P")
    image = rois.images[0].clone()
    image[row, column] += 1
    changed = RoiBatch.from_images([image], rois.centers, rois.diameters)
    inside = 21 <= row < 42 and 22 <= column < 43
    assert (content_hashes(changed) != content_hashes(rois)) == inside


def test_a_lesion_beyond_the_edge_has_a_hash() -> None:
    image = torch.arange(100.0).view(10, 10)
    rois = RoiBatch.from_images([image, image], [[0.0, 10.0], [5.0, 5.0]], [8.0, 40.0])
    assert len(set(content_hashes(rois))) == 2


def test_patients_lesions_and_copies_are_told_apart() -> None:
    known = Provenance.of(lesions())
    known.check_apart(Provenance.of(lesions("wxyz", "STUV", seed=1)), "x", "y")
    with pytest.raises(DataError, match=r"GAN: it learned from 1 patient\(s\) to be tested, for one Q\. Do this"):
        known.check_apart(Provenance.of(lesions("wxyz", "SQUV", seed=1)), "GAN", "Do this")
    with pytest.raises(DataError, match=r"1 lesion\(s\) to be tested, for one c"):
        known.check_apart(Provenance.of(lesions("wxyc", "STUV", seed=1)), "GAN", "Do this")
    with pytest.raises(DataError, match=r"the pixels of 4 lesion\(s\) to be tested, which go by other names"):
        known.check_apart(Provenance.of(lesions("wxyz", "STUV")), "GAN", "Do this")


def test_provenance_comes_back_from_json() -> None:
    known = Provenance.of(lesions())
    assert Provenance.from_json(json.loads(json.dumps(known.to_json()))) == known
    with pytest.raises(TypeError, match="strings"):
        Provenance.from_json({"patients": [1], "lesions": [], "contents": []})


def test_a_store_comes_back(tmp_path: Path) -> None:
    made = synthetic()
    save_synthetic(made, tmp_path / "s")
    found = load_synthetic(tmp_path / "s")
    assert torch.equal(found.images, made.images)
    assert torch.equal(found.labels, made.labels)
    assert (found.classes, found.kind, found.split, found.window_hu) == (
        ("cyst", "other"),
        "phantom",
        1,
        (-160.0, 240.0),
    )
    assert found.provenance == made.provenance
    assert found.details == {"a": 1}
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["synthetic"] is True


def test_synthetic_rois_refuse_to_meet_their_sources() -> None:
    made = synthetic()
    made.check_apart(lesions("wxyz", "STUV", seed=1))
    with pytest.raises(
        DataError, match=r"synthetic ROIs: it learned from .* Use them in split 1 of their own folds only"
    ):
        made.check_apart(lesions("wxyz", "SQUV", seed=1))
    with pytest.raises(DataError, match="other names"):
        made.check_apart(lesions("wxyz", "STUV"))


def test_nothing_is_overwritten_or_left_half(tmp_path: Path) -> None:
    save_synthetic(synthetic(), tmp_path / "s")
    with pytest.raises(DataError, match="exists already"):
        save_synthetic(synthetic(), tmp_path / "s")
    with pytest.raises(DataError, match="does not exist"):
        save_synthetic(synthetic(), tmp_path / "no" / "s")
    for wrong in (
        {"images": torch.rand(6, 16, 16)},
        {"images": torch.rand(6, 1, 16, 16) + 0.5},
        {"images": torch.full((6, 1, 16, 16), float("nan"))},
        {"labels": torch.arange(6)},
        {"labels": torch.arange(5)},
    ):
        with pytest.raises(ValueError, match="must"):
            save_synthetic(synthetic(**wrong), tmp_path / "t")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def change_manifest(folder: Path, **changes) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schema": "x"}, "no store of synthetic ROIs"),
        ({"version": 2}, "reads version 1"),
        ({"kind": "x"}, "cannot be read"),
        ({"window_hu": [2, 1]}, "cannot be read"),
        ({"num_images": 5}, "cannot be read"),
        ({"classes": ["one"]}, "cannot be read"),
        ({"sources": {}}, "cannot be read"),
        ({"sha256": "0"}, "not the one the manifest was written for"),
    ],
)
def test_a_damaged_store_is_one_clear_error(changes, message: str, tmp_path: Path) -> None:
    save_synthetic(synthetic(), tmp_path / "s")
    change_manifest(tmp_path / "s", **changes)
    with pytest.raises(DataError, match=message):
        load_synthetic(tmp_path / "s")


def test_a_missing_store_or_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such store"):
        load_synthetic(tmp_path / "s")
    save_synthetic(synthetic(), tmp_path / "s")
    (tmp_path / "s" / "images.safetensors").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load_synthetic(tmp_path / "s")
