"""Folders of DICOM masks as 3D-IRCADb-01 has them: paired with the slices, named by folder, grouped by case."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lesionaug.data.importer import check_source, import_source
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import SourceFile
from lesionaug.data.sources.find import find_source
from lesionaug.data.sources.guard import Guard
from lesionaug.data.sources.ircadb import mask_folders
from lesionaug.data.store import load_rois
from lesionaug.errors import DataError
from tests.dicom_files import HEIGHT, WIDTH, circle_mm, contour, ct_dataset, disc, hu_picture, rtstruct_dataset, write

HERE = ImportOptions(isolate=False)
SEED = 40


def mask_dataset(mask: np.ndarray, z: float | None, **keywords):
    ds = ct_dataset(np.zeros(mask.shape, np.int16), z=z or 0.0, patient="", **keywords)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = (mask * 255).astype(np.uint8).tobytes()
    if z is None:
        del ds.ImagePositionPatient
    return ds


def case(folder: Path, structures: dict[str, list[np.ndarray]], *, stated=True, reverse=False, seed=SEED) -> Path:
    """Slices image_0 .. at z = 0, 2, ..., and a mask of each structure for each."""
    count = len(next(iter(structures.values())))
    for n in range(count):
        write(ct_dataset(hu_picture(seed + n), z=2.0 * n, patient="same"), folder / f"PATIENT_DICOM/image_{n}")
    for name, masks in structures.items():
        for n, mask in enumerate(masks):
            number = count - 1 - n if reverse else n
            write(mask_dataset(mask, 2.0 * n if stated else None), folder / f"MASKS_DICOM/{name}/image_{number}")
    return folder


EMPTY = np.zeros((HEIGHT, WIDTH), bool)


def ball(x: float, y: float, radii: list[float]) -> list[np.ndarray]:
    return [disc(HEIGHT, WIDTH, x, y, radius) if radius else EMPTY for radius in radii]


def lesions(source: Path, out: Path, **options):
    rois = load_rois(import_source(source, out, ImportOptions(isolate=False, **options)).path)
    assert rois.masks is not None
    found = []
    for n in range(len(rois)):
        (x, y), crop = rois.origins[n].tolist(), rois.masks[n].numpy()
        whole = EMPTY.copy()
        whole[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        found.append((whole, rois.images[n].numpy(), (x, y)))
    return rois, found


@pytest.mark.parametrize("stated", [True, False])
def test_a_structure_gives_its_largest_slice_on_the_right_picture(tmp_path, stated):
    case(tmp_path / "set/3Dircadb1.1", {"livertumor01": ball(30, 25, [0, 5.3, 7.3, 4.3])}, stated=stated)
    rois, ((mask, hu, (x, y)),) = lesions(tmp_path / "set", tmp_path / "rois")
    assert np.array_equal(mask, disc(HEIGHT, WIDTH, 30, 25, 7.3))
    assert np.array_equal(hu, hu_picture(SEED + 2)[y : y + hu.shape[0], x : x + hu.shape[1]])
    assert rois.spacing_mm is not None
    assert rois.spacing_mm[0].tolist() == [0.8, 0.8]
    found = [str(finding) for finding in check_source(tmp_path / "set", HERE)]
    assert any("paired by the numbers" in line for line in found) is not stated


def test_positions_win_over_the_masks_own_numbers(tmp_path):
    case(tmp_path / "c", {"livertumor": ball(30, 25, [0, 7.3, 5.3, 4.3])}, reverse=True)
    _, ((_, hu, (x, y)),) = lesions(tmp_path / "c", tmp_path / "rois")
    assert np.array_equal(hu, hu_picture(SEED + 1)[y : y + hu.shape[0], x : x + hu.shape[1]])


def test_a_mask_stored_the_other_way_round_is_turned_as_its_slice(tmp_path):
    folder = case(tmp_path / "c", {"livertumor": ball(30, 25, [0, 7.3, 5.3])})
    for n, mask in enumerate(ball(30, 25, [0, 7.3, 5.3])):
        flipped = mask_dataset(
            mask[::-1], 2.0 * n, orientation=(1, 0, 0, 0, -1, 0), position=(10.0, 20.0 + 0.8 * (HEIGHT - 1))
        )
        write(flipped, folder / f"MASKS_DICOM/livertumor/image_{n}")
    _, ((mask, _, _),) = lesions(folder, tmp_path / "rois")
    assert np.array_equal(mask, disc(HEIGHT, WIDTH, 30, 25, 7.3))


def test_several_lesions_in_one_folder_are_split_unless_it_is_numbered(tmp_path):
    two = [a | b for a, b in zip(ball(20, 20, [5.3, 6.3, 0]), ball(60, 40, [0, 4.3, 5.3]), strict=True)]
    case(tmp_path / "a", {"livertumors": two})
    assert len(lesions(tmp_path / "a", tmp_path / "split")[0]) == 2
    case(tmp_path / "b", {"livertumor01": two})
    _, ((mask, _, _),) = lesions(tmp_path / "b", tmp_path / "one")
    assert np.array_equal(mask, two[1])


def test_structures_go_by_their_folders_and_patients_by_their_cases(tmp_path):
    for n in (1, 2):
        structures = {
            "livertumor01": ball(30, 25, [0, 7.3, 5.3]),
            "livercyst": ball(55, 40, [0, 0, 6.3]),
            "liver": ball(40, 30, [20.3, 20.3, 20.3]),
        }
        case(tmp_path / f"set/3Dircadb1.{n}", structures, seed=SEED + 10 * n)
    mapped = {"label_map": ("livertumor*=metastasis", "livercyst=cyst")}
    report = import_source(tmp_path / "set", tmp_path / "rois", ImportOptions(isolate=False, **mapped))
    assert report.class_counts == {"cyst": (2, 2), "metastasis": (2, 2)}
    left = [str(f) for f in report.findings if "no lesion's" in f.rule]
    assert len(left) == 2
    assert "MASKS_DICOM/liver" in left[0]
    liver = import_source(
        tmp_path / "set/3Dircadb1.1", tmp_path / "liver", ImportOptions(isolate=False, label_map=("liver*=x",))
    )
    assert liver.num_lesions == 3
    out = import_source(
        tmp_path / "set/3Dircadb1.1",
        tmp_path / "out",
        ImportOptions(isolate=False, label_map=("livertumor01=x", "livercyst=-")),
    )
    assert out.num_lesions == 1


def test_the_dicom_of_masks_is_never_read_as_slices(tmp_path):
    case(tmp_path / "c", {"livertumor": ball(30, 25, [7.3, 5.3]), "skin": ball(30, 25, [20.3, 20.3])})
    write(rtstruct_dataset({1: ("GTV", [contour(circle_mm(30, 25, 7.3, 0.0))])}), tmp_path / "c/rs.dcm")
    found = find_source(tmp_path / "c", Guard(0), lambda *_: None, "rtstruct")
    assert [file.name for file in found.slices] == ["PATIENT_DICOM/image_0", "PATIENT_DICOM/image_1"]
    assert found.formats == ("rtstruct",)
    with pytest.raises(DataError, match="several sources"):
        find_source(tmp_path / "c", Guard(0), lambda *_: None)


def errors(source: Path) -> list[str]:
    return [str(finding) for finding in check_source(source, HERE) if finding.severity == "error"]


def test_masks_that_do_not_fit_are_refused(tmp_path):
    ball_here = {"livertumor": ball(30, 25, [0, 7.3, 5.3])}
    folder = case(tmp_path / "grid", ball_here)
    write(
        mask_dataset(EMPTY | ball_here["livertumor"][1], 2.0, spacing=(0.9, 0.9)),
        folder / "MASKS_DICOM/livertumor/image_1",
    )
    assert "grid of its slice" in errors(folder)[0]
    folder = case(tmp_path / "values", ball_here)
    write(ct_dataset(hu_picture(), z=2.0), folder / "MASKS_DICOM/livertumor/image_1")
    assert "0 and one other value" in errors(folder)[0]
    folder = case(tmp_path / "number", ball_here, stated=False)
    (folder / "MASKS_DICOM/livertumor/image_1").rename(folder / "MASKS_DICOM/livertumor/image_7")
    assert "0 slices have the number" in errors(folder)[0]
    folder = case(tmp_path / "shape", ball_here, stated=False)
    write(mask_dataset(np.ones((50, 50), bool), None), folder / "MASKS_DICOM/livertumor/image_1")
    assert "shape of its slice" in errors(folder)[0]
    folder = case(tmp_path / "broken", ball_here)
    (folder / "MASKS_DICOM/livertumor/image_1").write_bytes(b"x" * 500)
    assert "livertumor/image_1" in errors(folder)[0]
    folder = case(tmp_path / "none", ball_here)
    for path in (folder / "PATIENT_DICOM").iterdir():
        path.write_bytes(b"")
    assert errors(folder)


@pytest.mark.parametrize("isolate", [False, True])
def test_slices_without_a_lesion_are_read_too(tmp_path, isolate):
    folder = case(tmp_path / "c", {"livertumor": ball(30, 25, [0, 5.3, 0])})
    localizer = ct_dataset(hu_picture(), z=90.0, patient="same")
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(localizer, folder / "PATIENT_DICOM/image_9")
    options = ImportOptions(isolate=isolate)
    assert not [finding for finding in check_source(folder, options) if finding.severity == "error"]
    bare = ct_dataset(hu_picture(), z=0.0, patient="same")
    del bare.RescaleSlope
    write(bare, folder / "PATIENT_DICOM/image_0")
    short = ct_dataset(hu_picture(), z=4.0, patient="same")
    short.PixelData = short.PixelData[:200]
    write(short, folder / "PATIENT_DICOM/image_2")
    wrong = [finding.where for finding in check_source(folder, options) if finding.severity == "error"]
    assert wrong == ["PATIENT_DICOM/image_0", "PATIENT_DICOM/image_2"]
    with pytest.raises(DataError):
        import_source(folder, tmp_path / "rois", options)


def test_a_case_whose_name_is_no_text_has_a_pseudonym(tmp_path):
    case(tmp_path / "set" / os.fsdecode(b"c\xff"), {"livertumor": ball(30, 25, [0, 5.3, 0])})
    assert import_source(tmp_path / "set", tmp_path / "rois", HERE).num_patients == 1


def test_a_missing_slice_is_counted_and_the_next_largest_taken(tmp_path):
    folder = case(tmp_path / "c", {"livertumor": ball(30, 25, [5.3, 7.3, 0])})
    (folder / "PATIENT_DICOM/image_1").unlink()
    _, ((mask, _, _),) = lesions(folder, tmp_path / "rois")
    assert np.array_equal(mask, disc(HEIGHT, WIDTH, 30, 25, 5.3))


def test_folders_are_found_by_their_names():
    names = [
        "a/PATIENT_DICOM/image_0",
        "a/MASKS_DICOM/liver/image_0",
        "a/MASKS_DICOM/livertumor/image_0",
        "a/MASKS_DICOM/livertumor/image_1",
        "b/PATIENT_DICOM/PATIENT_DICOM/image_0",  # unpacked into a folder of the archive's name
        "b/MASKS_DICOM/MASKS_DICOM/livertumor/image_0",
        "c/MASKS_DICOM/livertumor/image_0",  # no slices
        "d/PATIENT_DICOM/image_0",
        "e/other/livertumor/image_0",
    ]
    files = [SourceFile(number, Path("/r") / name, name) for number, name in enumerate(names, 1)]
    found = [(f.case, f.name, f.number, len(f.masks), len(f.slices), f.patient) for f in mask_folders(files)]
    assert found == [("a", "liver", 1, 1, 1, "a"), ("a", "livertumor", 2, 2, 1, "a"), ("b", "livertumor", 1, 1, 1, "b")]
