"""Every awkward and broken file of the shared folder does what expectations.json says of it, in time and memory."""

from __future__ import annotations

import json
import math
import resource
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lesionaug.cli import main
from lesionaug.data.importer import check_source, import_source
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import Finding
from lesionaug.data.sources import guard
from lesionaug.data.store import load_rois
from tests.conftest import REPOSITORY

SHARED = REPOSITORY.parent / "shared" / "data"
EXPECTATIONS = json.loads((SHARED / "expectations.json").read_text()) if SHARED.is_dir() else {}
ON_ONE_LESION = "rtstruct_awkward/"  # drawn on the series of one_lesion/ct: its frame of reference and patient


def names(*folders: str) -> list[str]:
    return [name for name in EXPECTATIONS if name.startswith(folders)] or ["absent"]


@pytest.fixture(autouse=True)
def _needs_the_shared_folder(shared_data):
    pass


def errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def within_bounds(path: Path) -> list[Finding]:
    """What `data check` finds, in 5 seconds (those of a worker's start apart) and 1 GB."""
    check_source(SHARED / "awkward" / "explicit_le.dcm")  # a worker is there now
    largest_before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of other tests' processes
    started = time.monotonic()
    findings = check_source(path)
    assert time.monotonic() - started < 5
    for worker in guard._waiting:
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 1e6  # kB
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of those that were killed
    assert largest == largest_before or largest < 1e6
    return findings


def beside_a_table(folder: Path, name: str) -> Path:
    """The file, with a polygon about its middle in pixels, so large that the lesion's crop is the whole picture."""
    folder.mkdir()
    (folder / Path(name).name).symlink_to(SHARED / name)
    around = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    points = " ".join(f"{128 + 70 * math.cos(a):.1f},{128 + 70 * math.sin(a):.1f}" for a in around)
    patient = pydicom.dcmread(SHARED / name, stop_before_pixels=True).PatientID
    (folder / "table.csv").write_text(f'image,patient_id,polygon_xy\n{Path(name).name},{patient},"{points}"\n')
    return folder / "table.csv"


def whole_picture(folder: Path, name: str) -> np.ndarray:
    table = beside_a_table(folder / "source", name)
    rois = load_rois(import_source(table, folder / "rois", ImportOptions(isolate=False)).path)
    assert rois.images[0].shape == (256, 256)
    assert rois.spacing_mm[0].tolist() == pytest.approx([0.810547] * 2)
    return rois.images[0].numpy()


@pytest.mark.parametrize("name", names("awkward/"))
def test_awkward_files(name, tmp_path):
    expected = EXPECTATIONS[name]
    findings = within_bounds(SHARED / name)
    said = "\n".join(map(str, findings))
    if expected.startswith(("HU unknown", "invalid", "not an axial")):
        (error,) = errors(findings)
        assert error.where == Path(name).name
        assert error.rule
        assert error.fix
        with pytest.raises(ValueError, match=error.rule[:20].replace("(", ".")):
            whole_picture(tmp_path, name)
        return
    assert not errors(findings)
    if expected.startswith("skip"):
        assert "skipped: a localizer" in said
        assert "can be read" not in said
        return
    assert "can be read" in said
    hu, base = whole_picture(tmp_path, name), np.load(SHARED / "awkward" / "base_hu.npy")
    if "warn" in expected or "polygons only" in expected:
        assert [finding.severity for finding in findings].count("warning") == 1
    if "unsigned" in name:
        stored = pydicom.dcmread(SHARED / "awkward" / "explicit_le.dcm").pixel_array
        assert np.array_equal(hu[stored >= 0], base[stored >= 0])
    elif "padding" in name:
        assert hu[0, 0] == hu[0, -1] == hu[-1, 0] == hu[-1, -1] == -1024
        assert np.array_equal(hu[hu > -1024], base[hu > -1024])
        assert (hu > -1024).mean() > 0.5
    elif "flipped" in name:
        assert np.array_equal(hu, base)  # turned: rows run to the back again
    else:
        assert np.array_equal(hu, base)


@pytest.mark.parametrize(
    "name", ["awkward/orientation_flipped_y.dcm", "awkward/implicit_le.dcm", "awkward/monochrome1.dcm"]
)
def test_a_lesion_in_millimetres_lands_on_the_same_tissue(name, tmp_path):
    ids = []
    for number, file in enumerate((name, "awkward/explicit_le.dcm")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "slice.dcm").symlink_to(SHARED / file)
        (folder / "rtstruct.dcm").symlink_to(SHARED / "one_lesion" / "rtstruct.dcm")
        rois = load_rois(import_source(folder, tmp_path / f"{number}.rois", ImportOptions(isolate=False)).path)
        ids.append(rois.lesion_ids)
    assert ids[0] == ids[1]
    truth = np.load(SHARED / "one_lesion" / "truth_mask_slice1.npy") > 0
    assert rois.masks is not None
    assert int(rois.masks[0].sum()) == int(truth.sum())


@pytest.mark.parametrize("name", names("corrupt/"))
def test_corrupt_files(name):
    findings = within_bounds(SHARED / name)
    if name.startswith("corrupt/fuzz") and not errors(findings):
        hu = whole_check(SHARED / name)
        assert np.isfinite(hu).all()
        assert hu.shape == (256, 256)
        return
    (error,) = errors(findings)
    assert error.where.startswith(Path(name).name)
    assert error.rule
    assert error.fix
    if "lfs" in name:
        assert "Git LFS pointer" in error.rule


def whole_check(path: Path) -> np.ndarray:
    from lesionaug.data.slices import SourceFile
    from lesionaug.data.sources.dicom_ct import read_ct_slice
    from lesionaug.data.sources.dicom_file import read_dicom

    source = SourceFile(1, path, path.name)
    return read_ct_slice(source, read_dicom(source, pixels=True)).load().hu


def on_one_lesion(folder: Path, *files: Path) -> Path:
    folder.mkdir()
    for path in (*(SHARED / "one_lesion" / "ct").glob("*.dcm"), *files):
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("name", names(ON_ONE_LESION))
def test_awkward_structure_sets(name, tmp_path):
    folder = on_one_lesion(tmp_path / "source", SHARED / name)
    findings = within_bounds(folder)
    truth = np.load(SHARED / "one_lesion" / "truth_mask_slice1.npy") > 0
    if "between" in name or "outside" in name:
        (error,) = errors(findings)
        assert Path(name).name in error.where
        assert "ROI 1" in error.where
        assert "exactly between" in error.rule or "inside the picture" in error.rule
        return
    assert not errors(findings)
    rois = load_rois(import_source(folder, tmp_path / "rois", ImportOptions(isolate=False)).path)
    assert len(rois) == 1
    assert rois.masks is not None
    area = int(rois.masks[0].sum())
    if "hole" in name:
        assert area == pytest.approx(truth.sum() - math.pi * 8**2, abs=12)
        x, y = (int(v) for v in rois.centers[0])
        assert not rois.masks[0][y, x]
    else:
        assert area == truth.sum()
    said = "\n".join(map(str, findings))
    assert ("ROI 2 'empty_roi'" in said) == ("roi_without" in name)
    assert ("frame of reference differs" in said) == ("mismatch" in name)


def test_the_rest_of_a_folder_goes_on(tmp_path):
    """All broken files in one folder with a good series: each is named, and the lesion is imported all the same."""
    bad = [SHARED / name for name in names("corrupt/") if name.endswith(".dcm") and "fuzz" not in name]
    folder = on_one_lesion(tmp_path / "source", SHARED / "one_lesion" / "rtstruct.dcm", *bad)
    assert {error.where for error in errors(check_source(folder))} == {path.name for path in bad}
    report = import_source(folder, tmp_path / "rois", ImportOptions(skip_faulty=True))
    assert report.num_lesions == 1


@pytest.mark.parametrize(
    "name",
    ["corrupt/truncated_50.dcm", "corrupt/empty.dcm", "awkward/pixel_spacing_zero.dcm", "corrupt/truncated.nii.gz"],
)
def test_the_command_exits_with_3_and_names_file_and_rule(name, capsys):
    with pytest.raises(SystemExit) as left:
        main(["data", "check", str(SHARED / name)])
    assert left.value.code == 3
    out = capsys.readouterr().out
    assert f"error: {Path(name).name}: " in out
    assert "1 error," in out


def test_twelve_real_structure_sets_and_every_contour_that_is_skipped(tmp_path):
    findings = check_source(SHARED / "sts_rtstruct")
    assert not errors(findings)
    report = import_source(SHARED / "sts_rtstruct", tmp_path / "rois")
    assert (report.num_lesions, report.num_patients) == (12, 12)
    rows = (tmp_path / "rois" / "import_report.csv").read_text().splitlines()
    assert len(rows) == 1 + 12 + report.num_skipped
    explained = {finding.where for finding in report.findings if finding.source is not None}
    assert len(explained) == report.num_skipped
