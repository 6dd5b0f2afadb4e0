"""The phantom: real DICOM, margins where the lesions are, marked synthetic, the same from the same seed."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull

from lesionaug.data.phantom import PhantomRecipe, PhantomSummary, load_recipe, write_phantom
from lesionaug.data.phantom.anatomy import cut_slice, draw_patient
from lesionaug.data.phantom.dataset import draw_patient_slices, plan_patients
from lesionaug.data.phantom.lesions import draw_body, enlarged_host, paint_lesion, place_lesions
from lesionaug.data.phantom.painting import paint_anatomy
from lesionaug.data.phantom.recipe import CYST, HEMANGIOMA, METASTASIS
from lesionaug.data.phantom.scanner import draw_noise, draw_scan, scan_slice
from lesionaug.data.phantom.shapes import Grid, draw_waves, ellipse, slab_coverage
from lesionaug.errors import ConfigError

CLASSES = ("cyst", "metastasis", "hemangioma")
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
                assert 8 < inside < 175  # a metastasis may be dead almost to its boundary
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
    sizes = Counter(len(plan.classes) for plan in plans)
    assert sizes == {1: 124, 2: 20, 3: 6}
    assert sum(plan.one_slice for plan in plans if len(plan.classes) > 1) == 13
    pairs = [plan.classes for plan in plans if len(plan.classes) == 2]
    assert any(first == second for first, second in pairs)
    assert any(first != second for first, second in pairs)
    assert [plan.number for plan in plans] == list(range(1, 151))


@pytest.mark.parametrize("patients, sizes", [(3, {3: 3}), (4, {3: 1, 2: 3}), (6, {3: 1, 2: 1, 1: 4}), (9, {1: 9})])
def test_lesions_are_shared_out_to_any_number_of_patients(patients: int, sizes: dict[int, int]) -> None:
    plans = plan_patients((3, 3, 3), 0, patients)
    assert Counter(len(plan.classes) for plan in plans) == sizes
    assert Counter(name for plan in plans for name in plan.classes) == dict.fromkeys(CLASSES, 3)


def test_lesions_of_a_patient_share_a_slice_or_have_their_own_and_never_overlap() -> None:
    plans = [plan for plan in plan_patients((10, 10, 10), 11, patients=13) if len(plan.classes) > 1]
    shared = 0
    for plan in plans[:8]:
        slices, masks, _ = draw_patient_slices(plan)
        assert len(masks) == len(plan.classes)
        assert len({item.position_z_mm for item in slices}) == len(slices)
        if len(slices) == 1:
            shared += 1
            for number, first in enumerate(masks):
                for second in masks[:number]:
                    assert not (first.mask & ndimage.binary_dilation(second.mask, iterations=2)).any()
        else:
            assert sorted(segment.slice_index for segment in masks) == list(range(len(slices)))
    assert 0 < shared < 8


def feret_mm(mask: np.ndarray, spacing: float) -> float:
    rows, columns = np.nonzero(mask)
    corners = np.concatenate([np.stack([columns + i, rows + j], 1) for i in (0, 1) for j in (0, 1)])
    hull = corners[ConvexHull(corners).vertices] * spacing
    return float(np.hypot(*(hull[:, None] - hull[None]).transpose(2, 0, 1)).max())


@pytest.mark.parametrize("num", [2, pytest.param(10, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", CLASSES)
def test_margins_measure_10_to_102_mm_inside_the_liver(name: str, num: int) -> None:
    rng = np.random.default_rng(5)
    recipe = PhantomRecipe().classes[name]
    assert all(10 <= draw_body(name, recipe, rng).diameter_mm <= 102 for _ in range(200))
    for _ in range(num):
        patient = draw_patient(rng)
        scan = draw_scan(patient.half_width_mm, rng)
        grid = Grid(scan.spacing_mm, (256.0, 244.0))
        geometry = cut_slice(patient, grid, float(rng.uniform(-15, 15)), scan.thickness_mm)
        body = draw_body(name, recipe, rng)
        placed = place_lesions([body], geometry, geometry.liver, rng)
        assert placed is not None
        mask = placed[0].mask
        assert ndimage.label(mask)[1] == 1
        diameter = feret_mm(mask, scan.spacing_mm)
        assert 10 <= diameter <= 102
        if (geometry.allowed[placed[0].box] > 1)[mask].all():  # nothing has flattened it
            assert diameter == pytest.approx(body.diameter_mm, abs=2.5 * scan.spacing_mm)
        liver = enlarged_host(geometry.liver, geometry, placed)[placed[0].box]
        assert (liver[mask] > 0).mean() > 0.9


@pytest.mark.parametrize("num", [2, pytest.param(8, marks=pytest.mark.full)])
def test_every_phantoms_lesion_measures_what_the_paper_says(num: int) -> None:
    for plan in plan_patients((num, num, num), 12):
        _, masks, scan = draw_patient_slices(plan)
        for segment in masks:
            assert 10 <= feret_mm(segment.mask, scan.spacing_mm) <= 102


def painted(name: str, rng: np.random.Generator, **changes: object) -> tuple[np.ndarray, np.ndarray, float, float]:
    """One lesion without noise: its HU in the slice, its depth in mean radii, the liver's and the vessels' value."""
    patient = draw_patient(rng)
    grid = Grid(0.7, (256.0, 244.0))
    geometry = cut_slice(patient, grid, 0.0, 2.5)
    recipe = PhantomRecipe().classes[name].model_copy(update={"spread": 0.0, "median_mm": 40.0, **changes})
    body = draw_body(name, recipe, rng)
    placed = place_lesions([body], geometry, geometry.liver, rng)
    assert placed is not None
    hu = np.full((512, 512), patient.hu.liver, np.float32)
    paint_lesion(hu, placed[0], geometry, patient.hu.liver, rng)
    return hu[placed[0].box], placed[0].depth / body.radius_mm, patient.hu.liver, patient.hu.vessel


def test_cysts_are_water_like_and_sharp() -> None:
    rng = np.random.default_rng(3)
    for _ in range(6):
        hu, inner, liver, _ = painted("cyst", rng, septum=0.0)
        core = hu[inner > 0.2]
        assert -4 < core.mean() < 24
        assert core.std() < 3
        assert np.abs(hu[inner < -0.15] - liver).max() < 1


def test_metastases_are_soft_tissue_and_ill_defined() -> None:
    rng = np.random.default_rng(4)
    plain = {"spots": 0.0, "rim": 0.0, "necrosis": 0.0, "calcified": 0.0}
    for _ in range(6):
        hu, inner, liver, _ = painted("metastasis", rng, **plain)
        assert 35 < hu[inner > 0.3].mean() < min(85, liver)
    dead, inner, *_ = painted("metastasis", rng, **{**plain, "necrosis": 1.0, "necrosis_from": (0.4, 0.4)})
    assert dead[inner > 0.65].mean() < dead[(inner > 0.1) & (inner < 0.3)].mean() - 5
    assert max(painted("metastasis", rng, **{**plain, "calcified": 1.0})[0].max() for _ in range(4)) > 120
    spotted = [painted("metastasis", rng, **{**plain, "spots": 1.0})[0].max() for _ in range(4)]
    assert max(spotted) > 120


def test_hemangiomas_have_nodules_near_blood_pool_under_the_boundary() -> None:
    rng = np.random.default_rng(6)
    ratios = []
    for _ in range(8):
        hu, inner, liver, pool = painted(
            "hemangioma", rng, filled=0.0, fill=(0.0, 0.0), nodules=1.0, num_nodules=(8, 8)
        )
        edge, core = hu[(inner > 0.08) & (inner < 0.3)], hu[inner > 0.7]
        ratios.append(float((edge > 100).mean() - (core > 100).mean()))
        assert hu[inner > 0.1].max() <= pool + 12
        assert core.mean() < liver
    assert np.mean(ratios) > 0.1
    small, inner, liver, _ = painted("hemangioma", rng, filled=1.0, median_mm=14.0)
    assert small[inner > 0.4].mean() > liver + 10


def test_tissues_have_portal_phase_values() -> None:
    rng = np.random.default_rng(1)
    for z in (-20.0, 40.0):
        patient = draw_patient(rng)
        scan = draw_scan(patient.half_width_mm, rng)
        grid = Grid(scan.spacing_mm, (256.0, 244.0))
        geometry = cut_slice(patient, grid, z, scan.thickness_mm)
        hu = scan_slice(paint_anatomy(geometry, rng), scan, rng).astype(float)

        def mean_at(center_mm: tuple[float, float], hu: np.ndarray = hu, grid: Grid = grid) -> float:
            return float(hu[ellipse(center_mm, 5, 5).depth(grid.x, grid.y) > 0].mean())

        assert mean_at(patient.aorta.center_mm) == pytest.approx(patient.hu.aorta, abs=6)
        assert mean_at(patient.cava.center_mm) == pytest.approx(patient.hu.cava, abs=6)
        at_disc = (z + patient.disc_mm) % 33 > 22  # a disc of 92 HU lies between the bodies
        assert (84 if at_disc else 90) < mean_at(patient.vertebra.center_mm) < 300
        liver = hu[geometry.liver > 6]
        assert np.median(liver) == pytest.approx(patient.hu.liver, abs=6)
        assert 7 < liver.std() < 26
        fat = hu[(geometry.body > 2.5) & (geometry.body < 4)]
        assert np.median(fat) == pytest.approx(patient.hu.fat, abs=12)
        assert 60 < (geometry.liver > 0).sum() * grid.spacing_mm**2 / 100 < 380  # cm2


def test_slices_of_a_patient_belong_together() -> None:
    """Half a millimetre up or down is nearly the same picture, three centimetres are another."""
    rng = np.random.default_rng(8)
    patient = draw_patient(rng)
    grid = Grid(0.75, (256.0, 244.0))

    def picture(z: float) -> np.ndarray:
        geometry = cut_slice(patient, grid, z, 2.5)
        return paint_anatomy(geometry, np.random.default_rng(0))[geometry.liver > 4]

    whole = [cut_slice(patient, grid, z, 2.5).liver for z in (0.0, 0.5, 30.0)]
    assert np.abs(whole[0] - whole[1]).max() < 2
    assert np.abs(whole[0] - whole[2]).max() > 5
    vessels = [patient.veins.cut(grid, [z], 0.9) > 0.5 for z in (0.0, 0.5, 30.0)]
    near, far = ((vessels[0] & other).sum() / vessels[0].sum() for other in vessels[1:])
    assert near > 0.7 > 0.3 > far
    assert picture(0.0).size > 1000


def test_vessels_lie_in_the_liver_and_are_thinner_farther_out() -> None:
    patient = draw_patient(np.random.default_rng(9))
    grid = Grid(0.75, (256.0, 244.0))
    inside = total = 0
    for z in (-20.0, 0.0, 20.0, 40.0):
        filled = patient.veins.cut(grid, [z], 0.9) > 0.5
        inside += int((filled & (cut_slice(patient, grid, z, 1.0).liver > -2)).sum())
        total += int(filled.sum())
    assert total > 500
    assert inside > 0.85 * total  # trunks begin at the hilum and at the cava
    assert 4 < patient.veins.radius.max() < 8
    assert np.median(patient.veins.radius) < 2


def test_thick_slices_blur_what_leans() -> None:
    x = np.linspace(-10, 10, 201, dtype=np.float32)[None]

    def rise(thickness: float, slope: float) -> float:
        covered = slab_coverage(lambda z: x + np.float32(slope * z), 0.0, thickness, 1.0)[0]
        return float(((covered > 0.1) & (covered < 0.9)).sum() * 0.1)

    assert rise(5.0, 0.0) == pytest.approx(0.8, abs=0.11)
    assert rise(5.0, 1.0) == pytest.approx(0.8 * 6, abs=0.11)
    covered = slab_coverage(lambda z: x + np.float32(z), 0.0, 5.0, 1.0)[0]
    assert covered.mean() == pytest.approx(0.5, abs=0.01)  # and moves nothing


def test_waves_are_one_field_in_space_with_unit_variance() -> None:
    waves = draw_waves(np.random.default_rng(0), 9.0, num=128)
    x = np.arange(0, 200, 1.5, dtype=np.float32)[None]
    field = waves.on(x, x.T, 4.0)
    assert field.std() == pytest.approx(1, abs=0.15)
    points = np.array([[x[0, j], x[0, i], 4.0] for i, j in ((0, 0), (7, 90), (120, 3))])
    exact = np.cos(points @ waves.vectors.T + waves.phases).sum(axis=1) * np.sqrt(2 / 128)
    np.testing.assert_allclose(exact, [field[0, 0], field[7, 90], field[120, 3]], atol=1e-3)


def test_noise_is_correlated_streaky_and_as_strong_as_the_scan_says() -> None:
    rng = np.random.default_rng(2)
    patient = draw_patient(rng)
    scan = draw_scan(patient.half_width_mm, rng)
    y, x = np.mgrid[:512, :512]
    body = np.where(((x - 256) / 220) ** 2 + ((y - 256) / 150) ** 2 < 1, 100.0, -1000.0).astype(np.float32)
    noise = np.stack([draw_noise(body, scan, rng) for _ in range(3)])
    center = noise[:, 216:296, 216:296]
    assert center.std() == pytest.approx(scan.noise_hu, rel=0.1)
    assert abs(center.mean()) < 1
    neighbours = (center[..., 1:] * center[..., :-1]).mean() / center.var()
    below = (center[:, 1:] * center[:, :-1]).mean() / center.var()
    assert 0.2 < neighbours < 0.9  # white noise would give 0
    assert neighbours > below + 0.03  # rays along the wide body bring more noise, in streaks from side to side
    assert noise[:, 20:60, 20:60].std() < 0.7 * center.std()  # little in the air


def test_a_recipe_changes_classes_sizes_contrast_and_organ(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(
        'host = "spleen"\n[classes.cyst]\ncount = 0\n[classes.metastasis]\ncount = 0\n[classes.hemangioma]\ncount = 1\n'
        '[classes.abscess]\nlike = "cyst"\ncount = 2\nmedian_mm = 20\nspread = 0\nhu = [25, 25]\n'
        "[tissue]\nliver_hu = [90, 1]\n[scan]\nthickness_mm = [2]\nnoise = 0\n"
    )
    recipe = load_recipe(file)
    assert recipe.classes["abscess"].edge_mm == CYST.edge_mm
    assert recipe.classes["metastasis"] == METASTASIS.model_copy(update={"count": 0})
    assert recipe.classes["hemangioma"] == HEMANGIOMA.model_copy(update={"count": 1})
    summary = write_phantom(tmp_path / "p", recipe=recipe, seed=3)
    assert summary.lesions == {"cyst": 0, "metastasis": 0, "hemangioma": 1, "abscess": 2}
    seen = Counter()
    for slices, seg in read_patients(summary):
        assert all(ds.SliceThickness == 2 for ds in slices)
        for item in seg.SegmentSequence:
            assert item.AnatomicRegionSequence[0].CodeMeaning == "Spleen"
        for name, index, mask in seg_masks(slices, seg):
            seen[name] += 1
            assert np.nonzero(mask)[1].mean() > 300  # on the patient's left
            if name == "abscess":
                assert hu_of(slices[index])[ndimage.binary_erosion(mask, iterations=5)].mean() == pytest.approx(
                    25, abs=6
                )
    assert seen == {"hemangioma": 1, "abscess": 2}
    written = PhantomRecipe.model_validate_json((summary.path / "recipe.json").read_text())
    assert written == recipe
    default = write_phantom(tmp_path / "q", (0, 0, 1), seed=3)
    assert not uids(summary.path) & uids(default.path)


def uids(folder: Path) -> set[str]:
    return {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in folder.rglob("*.dcm")}


@pytest.mark.parametrize(
    "text, message",
    [
        ("classes = 3", "classes must be a table"),
        ("[classes.abscess]\ncount = 3", "must say which class it is like"),
        ('[classes.abscess]\nlike = "tumour"', "like = 'tumour'"),
        ("[classes.cyst]\nsize = 3", "unknown key classes.cyst.size"),
        ("[classes.cyst]\nhu = [20, 0]", "hu must be low, high"),
        ("[scan]\nexposure_mas = [400, 140]", "exposure_mas must be low, high"),
        ("[tissue]\nliver_hu = [100, -1]", "tissue.liver_hu.1"),
        ("[classes.cyst]\nrim = 1.5", "rim"),
        ("[classes.cyst]\nhu = [0, inf]", "classes.cyst.hu"),
        ("[tisue]\nliver_hu = [90, 1]", "Did you mean tissue"),
        ('host = "kidney"', "host"),
        ("[scan", "not a readable TOML file"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_recipe(tmp_path / "my.toml")


def test_default_counts_are_the_papers() -> None:
    from lesionaug.experiment import paper

    classes = PhantomRecipe().classes
    assert tuple(classes) == paper.CLASSES
    assert tuple(kind.count for kind in classes.values()) == paper.CLASS_COUNTS


@pytest.mark.full
def test_dciodvfy_finds_no_error(phantom: PhantomSummary) -> None:
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy is not installed (Debian: apt-get install dicom3tools)")
    files = sorted(phantom.path.rglob("*.dcm"))
    for path in files:
        done = subprocess.run([tool, str(path)], capture_output=True, text=True, timeout=60)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        # Synthetic Data (0008,001C) is in the standard since 2023; Debian's dciodvfy is older and calls it unknown.
        errors = [line for line in errors if "(0x0008,0x001c)" not in line]
        assert not errors, f"{path.name}: {errors}"
    assert files


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
        ("--patients", {"patients": 0}),
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
    assert (summary.num_patients, summary.num_slices, summary.num_several) == (1, 1, 0)


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
    with pytest.raises(ConfigError, match="--workers"):
        app(["phantom", str(tmp_path / "q"), "--workers", "0"], result_action="return_value")
