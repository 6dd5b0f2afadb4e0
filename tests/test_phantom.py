"""The phantom: real DICOM, margins where the lesions are, marked synthetic, the same from the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull

from lesionaug.data.phantom import PhantomSummary, draw_patient_slices, plan_patients, write_phantom
from lesionaug.data.phantom_anatomy import draw_geometry, draw_patient, paint_anatomy
from lesionaug.data.phantom_lesions import CLASSES, draw_shape, enlarged_liver, place_lesions
from lesionaug.data.phantom_scan import draw_scan, scan_slice
from lesionaug.data.phantom_shapes import Grid, ellipse
from lesionaug.errors import ConfigError

COUNTS = (4, 4, 4)
SEED = 7


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomSummary:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "p", COUNTS, SEED)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def hu_of(ds: pydicom.Dataset) -> np.ndarray:
    return ds.pixel_array.astype(np.float64) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)


def read_patients(phantom: PhantomSummary) -> list[tuple[list[pydicom.Dataset], pydicom.Dataset]]:
    patients = []
    for folder in sorted(phantom.path.glob("PHANTOM-*")):
        slices = [pydicom.dcmread(path) for path in sorted(folder.glob("ct-*.dcm"))]
        patients.append((slices, pydicom.dcmread(folder / "margins.seg.dcm")))
    return patients


def seg_masks(slices: list[pydicom.Dataset], seg: pydicom.Dataset) -> list[tuple[str, int, np.ndarray]]:
    """(class, index of the slice, mask) of every segment, read with pydicom alone."""
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns) != 0
    uids = [ds.SOPInstanceUID for ds in slices]
    names = {item.SegmentNumber: item.SegmentLabel for item in seg.SegmentSequence}
    found = []
    for mask, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        holder = group if "SegmentIdentificationSequence" in group else seg.SharedFunctionalGroupsSequence[0]
        number = holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found.append((names[number], uids.index(source), mask))
    return found


def test_ct_slices_are_what_a_scanner_writes(phantom: PhantomSummary) -> None:
    seen = 0
    for slices, _ in read_patients(phantom):
        assert len({ds.SeriesInstanceUID for ds in slices}) == 1
        assert len({ds.ImagePositionPatient[2] for ds in slices}) == len(slices)
        for ds in slices:
            seen += 1
            assert ds.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
            assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
            assert (ds.Rows, ds.Columns, ds.PixelRepresentation) == (512, 512, 0)
            assert 0.6 <= ds.PixelSpacing[0] <= 0.9
            assert 1.25 <= ds.SliceThickness <= 5
            assert 140 <= ds.Exposure <= 400
            assert ds.KVP == 120
            assert ds.pixel_array.max() < 2**ds.BitsStored
            hu = hu_of(ds)
            assert hu[:40, :40].mean() == pytest.approx(-1000, abs=15)
            body = ndimage.binary_fill_holes(ndimage.binary_opening(hu > -300, iterations=3))
            widths = np.flatnonzero(body.any(axis=0))
            assert widths[0] > 0  # all of the body is in the picture
            assert widths[-1] < 511
            assert 240 < (widths[-1] - widths[0]) * ds.PixelSpacing[1] < 400
    assert seen == phantom.num_slices


def test_margins_lie_on_the_lesions(phantom: PhantomSummary) -> None:
    counts: Counter[str] = Counter()
    for slices, seg in read_patients(phantom):
        assert seg.SegmentationType == "BINARY"
        for name, index, mask in seg_masks(slices, seg):
            counts[name] += 1
            hu = hu_of(slices[index])
            reach = max(5, int(0.2 * np.sqrt(mask.sum())))
            ring = ndimage.binary_dilation(mask, iterations=reach) & ~ndimage.binary_dilation(mask, iterations=3)
            ring &= (hu > 50) & (hu < 200)  # liver, not wall, fat or lung
            inside, around = hu[mask].mean(), np.median(hu[ring])
            if name == "cyst":
                assert inside < around - 40
                # Drawn elsewhere, the margin would not fit: a shift by its own radius takes in other tissue.
                shift = max(4, int(np.sqrt(mask.sum() / np.pi)))
                for axis in (0, 1):
                    for way in (-shift, shift):
                        elsewhere = np.abs(hu[np.roll(mask, way, axis)] - inside).mean()
                        assert elsewhere > np.abs(hu[mask] - inside).mean() + 10
            else:
                assert 30 < inside < 175
    assert counts == dict(zip(CLASSES, COUNTS, strict=True))


def test_segmentation_has_the_geometry_of_its_slices(phantom: PhantomSummary) -> None:
    for slices, seg in read_patients(phantom):
        assert seg.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
        assert seg.StudyInstanceUID == slices[0].StudyInstanceUID
        shared = seg.SharedFunctionalGroupsSequence[0]
        assert shared.PixelMeasuresSequence[0].PixelSpacing == slices[0].PixelSpacing
        for group, (_, index, _mask) in zip(seg.PerFrameFunctionalGroupsSequence, seg_masks(slices, seg), strict=True):
            position = (
                (group if "PlanePositionSequence" in group else shared).PlanePositionSequence[0].ImagePositionPatient
            )
            assert position == slices[index].ImagePositionPatient


def test_segmentation_read_by_highdicom_is_what_was_drawn(phantom: PhantomSummary) -> None:
    import highdicom as hd

    for plan in plan_patients(COUNTS, SEED)[:3]:
        drawn_slices, drawn, _ = draw_patient_slices(plan)
        folder = phantom.path / f"PHANTOM-{plan.number:04d}"
        slices = [pydicom.dcmread(path) for path in sorted(folder.glob("ct-*.dcm"))]
        seg = hd.seg.segread(folder / "margins.seg.dcm")
        pixels = seg.get_pixels_by_source_instance(
            [ds.SOPInstanceUID for ds in slices], assert_missing_frames_are_empty=True
        )
        assert [item.segment_label for item in map(seg.get_segment_description, seg.segment_numbers)] == list(
            plan.classes
        )
        for channel, segment in enumerate(drawn):
            np.testing.assert_array_equal(pixels[segment.slice_index, :, :, channel] != 0, segment.mask)
        for ds, item in zip(slices, drawn_slices, strict=True):
            np.testing.assert_array_equal(hu_of(ds), item.hu)


def test_every_file_says_that_it_is_synthetic(phantom: PhantomSummary) -> None:
    files = list(phantom.path.rglob("*.dcm"))
    assert len(files) == phantom.num_slices + phantom.num_patients
    for path in files:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        assert ds.PatientID == path.parent.name
        assert ds.PatientID.startswith("PHANTOM-")
        assert str(ds.PatientName) == ds.PatientID.replace("-", "^")
        assert ds.Manufacturer == "lesionaug phantom"
        assert ds.ImageComments == ds.PatientComments == "lesionaug phantom: synthetic, not a patient"
        assert ds.SeriesDescription.startswith("SYNTHETIC")
        assert ds.SyntheticData == "YES"
        assert ds.BurnedInAnnotation == "NO"
        for element in ds.iterall():
            if element.VR == "DA":
                assert element.value in ("", "19000101", None), element
            if element.VR == "DT":
                assert element.value == "19000101000000", element
            if element.VR == "UI" and element.value:
                assert pydicom.uid.UID(element.value).is_valid, element
    readme = (phantom.path / "README.txt").read_text(encoding="utf-8")
    for word in ("synthetic", "phantom", f"Seed           {SEED}", "4 cyst, 4 metastasis, 4 hemangioma", "CC0"):
        assert word in readme


def test_uids_are_unique_and_of_this_seed_only(phantom: PhantomSummary, tmp_path: Path) -> None:
    other = write_phantom(tmp_path / "q", (1, 1, 1), SEED)  # other counts: other patients, so other UIDs
    uids = [
        pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
        for folder in (phantom.path, other.path)
        for path in folder.rglob("*.dcm")
    ]
    assert len(set(uids)) == len(uids)
    assert all(uid.startswith(pydicom.uid.PYDICOM_ROOT_UID) for uid in uids)


def test_same_seed_same_bytes_in_any_number_of_processes(tmp_path: Path) -> None:
    write_phantom(tmp_path / "a", (1, 2, 1), 3)
    write_phantom(tmp_path / "b", (1, 2, 1), 3, workers=2)
    write_phantom(tmp_path / "c", (1, 2, 1), 4)
    first, second, third = (hashes(tmp_path / name) for name in "abc")
    assert first == second
    images = [name for name in first if name.endswith(".dcm")]
    assert images
    assert all(first[name] != third.get(name) for name in images)


def test_default_plan_is_the_papers_numbers_in_150_patients() -> None:
    plans = plan_patients((53, 64, 65), seed=0)
    assert len(plans) == 150
    assert Counter(name for plan in plans for name in plan.classes) == {"cyst": 53, "metastasis": 64, "hemangioma": 65}
    pairs = [plan.classes for plan in plans if len(plan.classes) == 2]
    assert len(pairs) == 32
    assert sum(plan.one_slice for plan in plans if len(plan.classes) == 2) == 16
    assert any(first == second for first, second in pairs)
    assert any(first != second for first, second in pairs)
    assert [plan.number for plan in plans] == list(range(1, 151))


def test_two_lesions_share_a_slice_or_have_two_and_never_overlap() -> None:
    plans = plan_patients((10, 10, 10), 11, patients=15)
    shared = 0
    for plan in plans[:8]:
        slices, (first, second), _ = draw_patient_slices(plan)
        if first.slice_index == second.slice_index:
            shared += 1
            assert len(slices) == 1
            assert not (first.mask & ndimage.binary_dilation(second.mask, iterations=2)).any()
        else:
            assert len(slices) == 2
            assert slices[0].position_z_mm != slices[1].position_z_mm
    assert 0 < shared < 8


@pytest.mark.parametrize("name", CLASSES)
def test_margins_measure_10_to_102_mm_inside_the_liver(name: str) -> None:
    rng = np.random.default_rng(5)
    assert all(10 <= draw_shape(name, rng).diameter_mm <= 102 for _ in range(200))
    for _ in range(6):
        patient = draw_patient(rng)
        scan = draw_scan(patient, rng)
        geometry = draw_geometry(patient, Grid(scan.spacing_mm, (256.0, 244.0)), float(rng.uniform(0, 1)), rng)
        placed = place_lesions([draw_shape(name, rng)], geometry, rng)
        assert placed is not None
        mask = placed[0].mask
        assert ndimage.label(mask)[1] == 1
        rows, columns = np.nonzero(mask)
        corners = np.concatenate([np.stack([columns + i, rows + j], 1) for i in (0, 1) for j in (0, 1)])
        hull = corners[ConvexHull(corners).vertices] * scan.spacing_mm
        assert 10 <= np.hypot(*(hull[:, None] - hull[None]).transpose(2, 0, 1)).max() <= 102
        liver = enlarged_liver(geometry, placed)[placed[0].box]
        assert (liver[mask] > 0).mean() > 0.9


def test_tissues_have_portal_phase_values() -> None:
    rng = np.random.default_rng(1)
    for level in (0.1, 0.8):
        patient = draw_patient(rng)
        scan = draw_scan(patient, rng)
        grid = Grid(scan.spacing_mm, (256.0, 244.0))
        geometry = draw_geometry(patient, grid, level, rng)
        hu = scan_slice(paint_anatomy(geometry, geometry.liver, rng), geometry, scan, rng).astype(float)

        def mean_at(center_mm: tuple[float, float], hu: np.ndarray = hu, grid: Grid = grid) -> float:
            return float(hu[ellipse(center_mm, 5, 5).depth(grid.x, grid.y) > 0].mean())

        assert mean_at(geometry.aorta.center_mm) == pytest.approx(patient.aorta_hu, abs=6)
        assert mean_at(geometry.cava.center_mm) == pytest.approx(patient.cava_hu, abs=6)
        assert 90 < mean_at(geometry.vertebra.center_mm) < 300
        liver = hu[geometry.liver > 6]
        assert np.median(liver) == pytest.approx(patient.liver_hu, abs=6)
        assert 7 < liver.std() < 26
        fat = hu[(geometry.body > 2.5) & (geometry.body < 4)]
        assert np.median(fat) == pytest.approx(patient.fat_hu, abs=12)
        assert 60 < (geometry.liver > 0).sum() * grid.spacing_mm**2 / 100 < 380  # cm2


def test_noise_is_correlated_and_as_strong_as_the_scan_says() -> None:
    rng = np.random.default_rng(2)
    patient = draw_patient(rng)
    scan = draw_scan(patient, rng)
    geometry = draw_geometry(patient, Grid(scan.spacing_mm, (256.0, 244.0)), 0.5, rng)
    hu = scan_slice(np.full((512, 512), 100, np.float32), geometry, scan, rng).astype(float) - 100
    center = hu[244 - 40 : 244 + 40, 256 - 40 : 256 + 40]
    assert center.std() == pytest.approx(scan.noise_hu, rel=0.15)
    assert abs(center.mean()) < 2
    neighbours = (center[:, 1:] * center[:, :-1]).mean() / center.var()
    assert 0.2 < neighbours < 0.9  # white noise would give 0


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        write_phantom(tmp_path / "mine", (1, 1, 1))
    assert hashes(tmp_path).keys() == {"mine/note"}
    with pytest.raises(ConfigError, match="parent folder"):
        write_phantom(tmp_path / "no" / "where", (1, 1, 1))


@pytest.mark.parametrize("lesions", [(1, 2), (0, 0, 0), (1, -1, 1), (1, 1, 10**9), ()])
def test_impossible_counts_are_refused(tmp_path: Path, lesions: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="--lesions"):
        write_phantom(tmp_path / "p", lesions)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argument, values",
    [
        ("--patients", {"patients": 1}),
        ("--patients", {"patients": 4}),
        ("--seed", {"seed": -1}),
        ("--seed", {"seed": 2**64}),
    ],
)
def test_impossible_numbers_are_refused(tmp_path: Path, argument: str, values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=argument):
        write_phantom(tmp_path / "p", (1, 1, 1), **values)
    with pytest.raises(ConfigError, match="--workers"):
        write_phantom(tmp_path / "p", (1, 1, 1), workers=0)


def test_a_class_may_be_absent_and_the_largest_seed_works(tmp_path: Path) -> None:
    summary = write_phantom(tmp_path / "p", (0, 0, 1), 2**64 - 1)
    assert summary.lesions == {"cyst": 0, "metastasis": 0, "hemangioma": 1}
    assert (summary.num_patients, summary.num_slices, summary.num_two_lesions) == (1, 1, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_phantom_leaves_nothing(tmp_path: Path, workers: int) -> None:
    def stop(done: int, total: int, text: str) -> None:
        assert (done, total, text[:8]) == (1, 3, "PHANTOM-")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "p", (1, 1, 1), progress=stop, patients=3, workers=workers)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_names_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cyclopts

    from lesionaug.cli import phantom as command

    app = cyclopts.App(name="lesionaug")
    command.register(app)
    words = ["phantom", str(tmp_path / "p"), "--lesions", "1", "0", "1", "--seed", "5", "--patients", "1"]
    app(words, result_action="return_value")
    shown = capsys.readouterr().out
    assert "phantom (synthetic): 1 cyst, 0 metastasis, 1 hemangioma in 1 patients" in shown
    assert "lesionaug data import" in shown
    assert (tmp_path / "p" / "PHANTOM-0001" / "margins.seg.dcm").is_file()
    with pytest.raises(ConfigError, match="exists already"):
        app(words, result_action="return_value")
