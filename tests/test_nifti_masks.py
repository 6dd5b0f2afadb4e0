"""NIfTI masks: which image they belong to, whether the grids agree, what is a lesion, and whose."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from lesionaug.data.importer import check_source, import_source
from lesionaug.data.labels import LabelMap
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import Finding, SourceFile
from lesionaug.data.sources.components import ComponentFinder
from lesionaug.data.sources.given import Given, ReadOptions
from lesionaug.data.sources.nifti_masks import read_nifti_mask
from lesionaug.data.sources.nifti_pairs import case_of, named_volumes, pair_volumes
from lesionaug.data.store import load_rois
from lesionaug.errors import DataError
from tests.dicom_files import circle_mm, contour, disc, rtstruct_dataset, series, write

SHAPE = (5, 60, 80)  # slices, rows, columns: towards the head, the back and the left
LPS = np.diag([-0.7, -0.9, 5.0, 1.0])  # NIfTI's own axes are R, A, S
LPS[:3, 3] = 30.0, 40.0, -100.0
HERE = ImportOptions(isolate=False)


def hu(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-200, 300, SHAPE).astype(np.int16)


def ball(x: float = 30, y: float = 25, radii=(0, 4.3, 7.3, 5.3, 0), label: int = 1) -> np.ndarray:
    return np.stack(
        [disc(*SHAPE[1:], x, y, radius) * label if radius else np.zeros(SHAPE[1:]) for radius in radii]
    ).astype(np.uint8)


def save(path: Path, values: np.ndarray, axes: str = "LPS", affine: np.ndarray = LPS, kind=nibabel.Nifti1Image) -> Path:
    """`values` [z, y, x] stored with its axes in another order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = kind(np.ascontiguousarray(values.transpose(2, 1, 0)), affine)
    now, then = (nibabel.orientations.axcodes2ornt(tuple(codes)) for codes in ("LPS", axes))
    image = image.as_reoriented(nibabel.orientations.ornt_transform(now, then))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    nibabel.save(image, path)
    return path


def margins(mask: Path, *, root: Path | None = None, **options):
    """What the reader yields, with its findings."""
    root = root or mask.parent
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    files = [SourceFile(n, path, path.relative_to(root).as_posix()) for n, path in enumerate(paths, 1)]
    options["label_map"] = LabelMap.parse(options.pop("label_map", ()))
    given = Given(options=ReadOptions(**options), files=files)
    found = list(read_nifti_mask(next(file for file in files if file.path == mask), given))
    return found, given.findings


def refusal(mask: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        margins(mask, **options)
    return str(caught.value)


# Which image belongs to a mask


def paired(*names: str):
    files = [SourceFile(number, Path("/r/case") / name, name) for number, name in enumerate(sorted(names), 1)]
    found, volumes = pair_volumes(files), named_volumes(files)
    cases = {
        mask.name: (image.name, case_of(next(v for v in volumes if v.file == image), volumes))
        for mask, image in found.images.items()
    }
    return cases, found


@pytest.mark.parametrize(
    ("mask", "image", "case"),
    [
        ("labelsTr/liver_0.nii.gz", "imagesTr/liver_0.nii.gz", "liver_0"),  # MSD
        ("labelsTr/liver_0.nii.gz", "imagesTr/liver_0_0000.nii.gz", "liver_0"),  # nnU-Net
        ("labelsTr/liver_0000.nii.gz", "imagesTr/liver_0000.nii.gz", "liver_0000"),
        ("FLARE22_Tr_0001.nii.gz", "FLARE22_Tr_0001_0000.nii.gz", "FLARE22_Tr_0001"),
        ("Training Batch 1/segmentation-0.nii", "Training Batch 1/volume-0.nii", "0"),  # LiTS
        ("STS_003_CT_mask.nii.gz", "STS_003_CT_image.nii.gz", "STS_003"),
        ("mask_PIR.nii.gz", "image_PIR.nii.gz", "PIR"),
        ("HH/12/mask_pvp.nii.gz", "HH/12/pvp.nii.gz", "HH/12"),  # MCT-LTDiag
        ("s0001/segmentations/liver_tumor.nii.gz", "s0001/ct.nii.gz", "s0001"),  # TotalSegmentator
        ("1_mask.nii.gz", "1_portal.nii.gz", "1"),
        ("p/GT.nii.gz", "p/CT.nii.gz", "p"),
        ("tumor/1.nii.gz", "ct/1.nii.gz", "1"),
        ("case_7_tumor_2.nii.gz", "case_7_ct.nii.gz", "case_7"),
        ("lesion_01_mask.nii.gz", "lesion_01_image.nii.gz", "01"),
        ("labels/tumor_001.nii.gz", "images/tumor_001.nii.gz", "001"),
        ("mask_pvp.nii.gz", "pvp.nii.gz", "case"),  # the folder's own name
        ("roi.nii", "scan.NII.GZ", "case"),
    ],
)
def test_image_and_mask_are_paired_by_name(mask, image, case):
    # The same layout twice: what belongs to another case must not confuse it.
    cases, found = paired(mask, image)
    assert cases == {mask: (image, case)}
    assert not found.alone
    assert not found.ambiguous


def test_pairs_stay_within_their_cases():
    names = [f"s{n}/{name}.nii.gz" for n in range(12) for name in ("ct", "segmentations/cyst", "segmentations/tumor")]
    cases, found = paired(*names, "imagesTr/liver_1.nii.gz", "imagesTr/liver_10.nii.gz", "labelsTr/liver_10.nii.gz")
    assert len(cases) == 25
    assert all(mask.split("/")[0] == image.split("/")[0] for mask, (image, _) in cases.items() if mask[0] == "s")
    assert cases["labelsTr/liver_10.nii.gz"] == ("imagesTr/liver_10.nii.gz", "liver_10")
    assert [file.name for file in found.unused] == ["imagesTr/liver_1.nii.gz"]


def test_ambiguous_and_lonely_masks_are_told():
    _, found = paired("1_arterial.nii.gz", "1_portal.nii.gz", "1_mask.nii.gz")
    ((mask, images),) = found.ambiguous.items()
    assert mask.name == "1_mask.nii.gz"
    assert {image.name for image in images} == {"1_arterial.nii.gz", "1_portal.nii.gz"}
    _, found = paired("a_mask.nii.gz", "b_ct.nii.gz", "c_ct.nii.gz")
    assert [file.name for file in found.alone] == ["a_mask.nii.gz"]


# What is a lesion


def test_components_are_those_of_a_whole_volume():
    values = np.random.default_rng(3).choice([0, 1, 2], (9, 12, 15), p=[0.8, 0.1, 0.1])
    for order in (range(9), range(8, -1, -1)):  # masks may be stored from head to foot
        finder = ComponentFinder("mask", lambda label: False)
        for index in order:
            finder.add(index, values[index])
        found = finder.components()
        drawn = np.zeros(values.shape, np.int64)
        for component in found:
            for index, entry in component.parts.items():
                drawn[index][entry.whole(values.shape[1:])] = component.number
        assert np.array_equal(drawn > 0, values > 0)
        seen = 0
        for label in (1, 2):
            wanted, count = ndimage.label(values == label, structure=np.ones((3, 3, 3)))
            own = [c for c in found if c.label == label]
            assert [c.key for c in own] == [f"{label}.{n}" for n in range(1, count + 1)]
            for component in own:
                (number,) = np.unique(wanted[drawn == component.number])
                assert np.array_equal(drawn == component.number, wanted == number)
                areas = (wanted == number).sum(axis=(1, 2))
                assert component.largest == areas.argmax()
                assert component.size == areas.sum()
            seen += count
        assert len(found) == seen
    assert [component.number for component in found] == list(range(1, seen + 1))


def test_labels_and_names_give_classes(tmp_path):
    mask = ball(label=2) + ball(60, 40, (5.3, 4.3, 0, 0, 0), label=2) + ball(20, 45, (0, 0, 0, 6.3, 6.3), label=1)
    save(tmp_path / "CRLM/1/pvp.nii.gz", hu())
    path = save(tmp_path / "CRLM/1/mask_pvp.nii.gz", mask)
    found, findings = margins(path, root=tmp_path)
    assert [(m.number, m.key, m.name, m.patient) for m in found] == [
        (2, "2.1", "2", "crlm/1"),  # in the order of their slices, so that the image is read once
        (3, "2.2", "2", "crlm/1"),
        (1, "1.1", "1", "crlm/1"),
    ]
    assert all({"label 2", "mask_pvp", "CRLM"} <= {*m.also_named} for m in found[:2])
    assert not any(name.isdigit() for name in found[0].also_named)  # '1' would be label 1 to a map
    assert any("labels 1, 2" in f.rule for f in findings if f.severity == "warning")
    found, findings = margins(path, root=tmp_path, label_map=("1=-", "2=metastasis"))
    assert [m.key for m in found] == ["2.1", "2.2"]
    assert [f.rule for f in findings if f.number == 1] == ["left out as the label map says"]
    report = import_source(tmp_path, tmp_path / "rois", ImportOptions(isolate=False, label_map=("CRLM=metastasis",)))
    assert report.class_counts == {"metastasis": (3, 1)}


def test_every_slice_and_the_largest(tmp_path):
    save(tmp_path / "image.nii.gz", hu())
    path = save(tmp_path / "mask.nii.gz", ball())
    (largest,), _ = margins(path)
    assert [entry.area for entry in largest.slices] == [int(disc(60, 80, 30, 25, 7.3).sum())]
    (every,), _ = margins(path, every_slice=True)
    assert len(every.slices) == 3
    assert np.array_equal(every.slices[2].mask, disc(60, 80, 30, 25, 5.3))
    assert np.array_equal(every.slices[2].slice.load().hu, hu()[3])


def test_probabilities_are_cut_at_a_half_and_scaled_masks_are_scaled(tmp_path):
    save(tmp_path / "image.nii.gz", hu())
    whole, _ = margins(save(tmp_path / "mask.nii.gz", ball()))
    for name, values in {
        "mask_float": ball().astype(np.float32),
        "mask_probability": np.where(ball() > 0, 0.5, 0.49).astype(np.float32),
        "mask_half": np.where(ball() > 0, 1.0, 0.3).astype(np.float64),
    }.items():
        found, _ = margins(save(tmp_path / f"{name}.nii.gz", values))
        assert np.array_equal(found[0].slices[0].mask, whole[0].slices[0].mask), name
        assert found[0].name == "1"
    image = nibabel.Nifti1Image((ball() * 200).transpose(2, 1, 0), LPS)
    image.header.set_slope_inter(1 / 255, 0)
    nibabel.save(image, tmp_path / "mask_scaled.nii.gz")
    found, _ = margins(tmp_path / "mask_scaled.nii.gz")
    assert np.array_equal(found[0].slices[0].mask, whole[0].slices[0].mask)


def test_labels_that_rounding_moved_are_whole(tmp_path):
    labels = ball() + ball(60, 40, (0, 0, 0, 6.3, 6.3), label=2)
    save(tmp_path / "image.nii.gz", hu())
    whole, _ = margins(save(tmp_path / "mask.nii.gz", labels))
    scaled = nibabel.Nifti1Image((labels * 10).transpose(2, 1, 0), LPS)
    scaled.header.set_slope_inter(0.1, 0)  # as a 32-bit number: 20 becomes 2.00000003
    nibabel.save(scaled, tmp_path / "mask_scaled.nii.gz")
    for name, off in {"mask_above": 1e-7, "mask_below": -1e-7, "mask_noise": -2e-4}.items():
        save(tmp_path / f"{name}.nii.gz", (labels * (1 + off) + off).astype(np.float32))
    for name in ("mask_scaled", "mask_above", "mask_below", "mask_noise"):
        found, _ = margins(tmp_path / f"{name}.nii.gz")
        assert [m.name for m in found] == ["1", "2"]
        for a, b in zip(found, whole, strict=True):
            assert np.array_equal(a.slices[0].mask, b.slices[0].mask), name
    assert "fractions" in refusal(save(tmp_path / "mask_off.nii.gz", (labels * 1.01).astype(np.float32)))


def test_an_image_of_8_bits_is_refused_once(tmp_path):
    save(tmp_path / "image.nii.gz", ((hu() + 200) // 2).astype(np.uint8))
    path = save(tmp_path / "mask.nii.gz", ball() + ball(60, 40, (0, 0, 0, 6.3, 6.3)))
    (error,) = errors(path)
    assert "image.nii.gz" in error.where
    assert "8 bits" in error.rule


def test_an_image_without_fat_or_air_is_a_warning(tmp_path):
    for offset in (0, 1024):
        save(tmp_path / "image.nii.gz", hu() + offset)
        _, findings = margins(save(tmp_path / "mask.nii.gz", ball()))
        found = [f for f in findings if f.severity == "warning"]
        assert [f.where for f in found] == ["image.nii.gz"] * bool(offset)
        assert all("no value below 0 HU" in f.rule for f in found)


def test_few_voxels_are_named(tmp_path):
    save(tmp_path / "image.nii.gz", hu())
    mask = ball()
    mask[4, 50, 70] = 1
    found, findings = margins(save(tmp_path / "mask.nii.gz", mask))
    assert len(found) == 2
    (warning,) = [f for f in findings if f.severity == "warning"]
    assert "fewer than 5 voxels" in warning.rule
    mask[4, ::10, ::20] = 1
    _, findings = margins(save(tmp_path / "mask.nii.gz", mask))
    (warning,) = [f for f in findings if f.severity == "warning"]
    assert "components" in warning.rule


# Grids


@pytest.mark.parametrize("image_axes", ["LPS", "RAS", "LPI", "PIR", "SAL"])
@pytest.mark.parametrize("mask_axes", ["LPS", "RAS", "PIR", "ILA"])
def test_any_order_of_axes_gives_the_same_lesion(tmp_path, image_axes, mask_axes):
    save(tmp_path / "image.nii.gz", hu(), image_axes)
    (margin,), findings = margins(save(tmp_path / "mask.nii.gz", ball(), mask_axes))
    (entry,) = margin.slices
    picture = entry.slice.load()
    assert np.array_equal(entry.mask, ball()[2] > 0)
    assert np.array_equal(picture.hu, hu()[2])
    assert picture.spacing_mm == pytest.approx((0.7, 0.9))
    assert any("in another order" in f.rule for f in findings) == (image_axes != mask_axes)


def test_a_tilted_volume_is_taken_and_an_oblique_one_is_not(tmp_path):
    for degrees in (20, 40):
        angle = np.radians(degrees)
        turn = np.eye(4)
        turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        save(tmp_path / "image.nii.gz", hu(), affine=turn @ LPS)
        path = save(tmp_path / "mask.nii.gz", ball(), affine=turn @ LPS)
        if degrees == 20:
            assert np.array_equal(margins(path)[0][0].slices[0].mask, ball()[2] > 0)
        else:
            assert "oblique" in refusal(path)


def shifted(voxels: float) -> np.ndarray:
    moved = LPS.copy()
    moved[:3, 3] += LPS[:3, 0] * voxels
    return moved


def test_grids_must_agree(tmp_path):
    save(tmp_path / "image.nii.gz", hu())
    _, findings = margins(save(tmp_path / "mask.nii.gz", ball(), affine=shifted(2e-4)))
    assert any("voxels" in f.rule and f.severity == "info" for f in findings)
    (margin,), findings = margins(save(tmp_path / "mask.nii.gz", ball(), affine=shifted(0.04)))
    assert any("0.04 voxels" in f.rule and f.severity == "info" for f in findings)
    assert np.array_equal(margin.slices[0].mask, ball()[2] > 0)
    assert "0.06 voxels away" in refusal(save(tmp_path / "mask.nii.gz", ball(), affine=shifted(0.06)))
    path = save(tmp_path / "mask.nii.gz", ball(), affine=shifted(0.3))
    said = refusal(path)
    assert "mask.nii.gz" in said
    assert "0.3 voxels away from image.nii.gz" in said
    assert "--trust-voxels" in said
    assert np.array_equal(margins(path, trust_voxels=True)[0][0].slices[0].mask, ball()[2] > 0)
    turned = np.diag([0.7, 0.9, 5.0, 1.0])  # another flag over the same voxels
    path = save(tmp_path / "mask.nii.gz", ball(), "RAS", affine=turned)
    assert "grid" in refusal(path)
    path = save(tmp_path / "mask.nii.gz", ball()[:, :, :-1])
    said = refusal(path)
    assert "(79, 60, 5) and (80, 60, 5)" in said
    assert "trust" not in said
    assert "shape" in refusal(path, trust_voxels=True)


def test_an_image_that_does_not_know_its_grid_needs_the_users_word(tmp_path):
    for signs in ((1, 1), (-1, -1)):  # nibabel's and SimpleITK's placeholders
        placeholder = np.diag([*signs, 1.0, 1.0])
        for name, values in {"image": hu(), "mask": ball()}.items():
            nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), placeholder), tmp_path / f"{name}.nii.gz")
        path = tmp_path / "mask.nii.gz"
        assert "orientation and spacing are not known" in refusal(path)
        assert "--spacing" in refusal(path, trust_voxels=True)
        ((margin,), _) = margins(path, trust_voxels=True, spacing_mm=(0.7, 0.9))
        assert margin.slices[0].slice.load().spacing_mm == (0.7, 0.9)
        assert np.array_equal(margin.slices[0].mask, ball()[2] > 0)
        assert np.array_equal(margin.slices[0].slice.load().hu, hu()[2])


def test_kinds_of_nifti(tmp_path):
    def write_pair(name, image, mask):
        nibabel.save(image, tmp_path / f"image{name}")
        nibabel.save(mask, tmp_path / f"mask{name}")
        (margin,), _ = margins(tmp_path / f"mask{name}")
        assert np.array_equal(margin.slices[0].slice.load().hu, hu()[2]), name
        assert np.array_equal(margin.slices[0].mask, ball()[2] > 0), name

    values, labels = hu().transpose(2, 1, 0), ball().transpose(2, 1, 0)
    write_pair("_plain.nii", nibabel.Nifti1Image(values, LPS), nibabel.Nifti1Image(labels, LPS))
    write_pair("_two.nii.gz", nibabel.Nifti2Image(values, LPS), nibabel.Nifti2Image(labels, LPS))
    write_pair("_4d.nii.gz", nibabel.Nifti1Image(values[..., None], LPS), nibabel.Nifti1Image(labels[..., None], LPS))
    big = nibabel.Nifti1Header(endianness=">")
    big.set_data_dtype(np.int16)
    write_pair("_big.nii.gz", nibabel.Nifti1Image(values, LPS, big), nibabel.Nifti1Image(labels, LPS))
    scaled = nibabel.Nifti1Image(((values + 1024) * 2).astype(np.uint16), LPS)
    scaled.header.set_slope_inter(0.5, -1024)
    write_pair("_scaled.nii.gz", scaled, nibabel.Nifti1Image(labels, LPS))


# Files


def damage(path: Path, kind: str) -> None:
    values = ball().transpose(2, 1, 0)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "lfs":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif kind == "text":
        path.write_bytes(b"hello " * 200)
    elif kind in ("rgb", "complex", "nan", "negative", "fractions", "4d", "2d", "large"):
        made = {
            "rgb": np.zeros(values.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])),
            "complex": values.astype(np.complex64),
            "nan": np.where(values > 0, np.nan, 0).astype(np.float32),
            "negative": values.astype(np.int16) * -3,
            "fractions": values * np.float32(2.5),
            "4d": np.stack([values, values], axis=-1),
            "2d": values[:, :, 2],
            "large": values.astype(np.int32) * 70000,
        }[kind]
        nibabel.save(nibabel.Nifti1Image(made, LPS), path)
    else:
        header = bytearray(nibabel.Nifti1Image(values, LPS).to_bytes()[:352])
        dims = {"dims": (3, 32767, 32767, 32767), "sides": (3, 8000, 10, 10), "zero": (3, 80, 0, 5)}
        if kind in dims:
            header[40:48] = np.array(dims[kind], "<i2").tobytes()
        if kind == "offset":
            header[108:112] = np.array([2e9], "<f4").tobytes()
        if kind == "singular":
            header[280:328] = np.zeros(12, "<f4").tobytes()
            header[252:254], header[254:256] = b"\0\0", b"\2\0"

        path.write_bytes(gzip.compress(bytes(header) + values.tobytes("F")))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "cannot be read"),
        ("empty", "empty"),
        ("lfs", "Git LFS"),
        ("text", "no NIfTI"),
        ("rgb", "numbers"),
        ("complex", "numbers"),
        ("nan", "NaN"),
        ("negative", "labels must be"),
        ("fractions", "probabilities"),
        ("4d", "three axes"),
        ("2d", "three axes"),
        ("large", "labels must be"),
        ("dims", "2\\^30 voxels"),
        ("sides", "4096"),
        ("zero", "three axes"),
        ("offset", "header"),
        ("singular", "singular"),
    ],
)
def test_a_damaged_mask_has_one_clear_error(tmp_path, kind, words):
    save(tmp_path / "image.nii.gz", hu())
    save(tmp_path / "mask.nii.gz", ball())
    damage(tmp_path / "mask.nii.gz", kind)
    with pytest.raises(DataError, match=words) as caught:
        margins(tmp_path / "mask.nii.gz")
    assert caught.value.where == "mask.nii.gz"


def test_a_damaged_image_is_named(tmp_path):
    values = hu().astype(np.float32)
    values[2, 5, 5] = np.nan
    save(tmp_path / "image.nii.gz", values)
    save(tmp_path / "mask.nii.gz", ball())
    (error,) = errors(tmp_path / "mask.nii.gz")
    assert "image.nii.gz" in error.where
    assert "NaN" in error.rule
    save(tmp_path / "image.nii.gz", hu())
    (tmp_path / "image.nii.gz").write_bytes((tmp_path / "image.nii.gz").read_bytes()[:9000])
    assert "image.nii.gz" in errors(tmp_path / "mask.nii.gz")[0].where


def test_an_empty_mask_is_a_warning(tmp_path):
    save(tmp_path / "image.nii.gz", hu())
    found, findings = margins(save(tmp_path / "mask.nii.gz", ball() * 0))
    assert not found
    assert [f.reason for f in findings if f.severity == "warning"] == ["empty mask"]


def errors(source: Path, options: ImportOptions = HERE) -> list[Finding]:
    return [finding for finding in check_source(source, options) if finding.severity == "error"]


def test_a_folder_imports_with_every_mask_that_has_an_image(tmp_path):
    for n in range(3):
        save(tmp_path / f"set/imagesTr/liver_{n}.nii.gz", hu(n))
        save(tmp_path / f"set/labelsTr/liver_{n}.nii.gz", ball(20 + 9 * n))
    save(tmp_path / "set/imagesTs/liver_9.nii.gz", hu(9))
    report = import_source(tmp_path / "set", tmp_path / "rois", HERE)
    assert (report.num_lesions, report.num_patients) == (3, 3)
    assert any(f.where == "imagesTs/liver_9.nii.gz" and f.severity == "info" for f in report.findings)
    (tmp_path / "set/imagesTr/liver_1.nii.gz").unlink()
    (error,) = errors(tmp_path / "set")
    assert error.where == "labelsTr/liver_1.nii.gz"
    assert "no NIfTI image" in error.rule
    # One mask by itself finds its image beside its folder.
    one = import_source(tmp_path / "set/labelsTr/liver_2.nii.gz", tmp_path / "one", HERE)
    assert set(load_rois(one.path).lesion_ids) < set(load_rois(report.path).lesion_ids)


def test_the_image_can_be_said(tmp_path):
    save(tmp_path / "1_arterial.nii.gz", hu(1))
    save(tmp_path / "elsewhere/portal.nii.gz", hu(2))
    save(tmp_path / "1_portal.nii.gz", hu(2))
    mask = save(tmp_path / "1_mask.nii.gz", ball())
    (error,) = errors(mask)
    assert "1_arterial.nii.gz, 1_portal.nii.gz" in error.rule
    for n, image in enumerate(("1_portal.nii.gz", "elsewhere/portal.nii.gz")):
        options = ImportOptions(isolate=False, image=tmp_path / image)
        rois = load_rois(import_source(mask, tmp_path / f"rois{n}", options).path)
        (x, y) = rois.origins[0].tolist()
        crop = rois.images[0].numpy()
        assert np.array_equal(crop, hu(2)[2][y : y + crop.shape[0], x : x + crop.shape[1]])


def test_two_volumes_without_telling_names_are_told_apart_by_what_they_hold(tmp_path):
    save(tmp_path / "x.nii.gz", ball())
    save(tmp_path / "y.nii.gz", hu())
    report = import_source(tmp_path, tmp_path.with_name("rois"), HERE)
    assert report.num_lesions == 1
    shutil.rmtree(report.path)
    save(tmp_path / "x.nii.gz", hu(1))
    with pytest.raises(DataError, match="without a mask"):
        import_source(tmp_path, tmp_path.with_name("rois"), HERE)


def test_nifti_beside_dicom_margins_is_left_alone(tmp_path):
    series(tmp_path / "ct")
    write(rtstruct_dataset({1: ("GTV", [contour(circle_mm(30, 25, 7.3, 5.0))])}), tmp_path / "rs.dcm")
    save(tmp_path / "image.nii.gz", hu())
    save(tmp_path / "mask.nii.gz", ball())
    findings = check_source(tmp_path, HERE)
    assert not [f for f in findings if f.severity == "error"]
    assert any(f.where == "mask.nii.gz" and "--format nifti" in f.fix for f in findings)
    nifti = import_source(tmp_path, tmp_path.with_name("rois"), ImportOptions(isolate=False, format="nifti"))
    assert nifti.num_lesions == 1
    shutil.rmtree(nifti.path)


def test_a_table_of_pictures_names_the_patients(tmp_path):
    for phase in ("early", "later2"):
        save(tmp_path / f"src/{phase}_ct.nii.gz", hu(len(phase)))
        save(tmp_path / f"src/{phase}_mask.nii.gz", ball(20 + len(phase)))
    table = tmp_path / "pictures.csv"
    table.write_text("image,patient_id\nearly_ct.nii.gz,P1\nlater2_ct.nii.gz, p1\n")
    assert import_source(tmp_path / "src", tmp_path / "two", HERE).num_patients == 2
    options = ImportOptions(isolate=False, pictures=table)
    assert import_source(tmp_path / "src", tmp_path / "one", options).num_patients == 1
    table.write_text("image,row_spacing_mm,col_spacing_mm\nearly_ct.nii.gz,0.8,0.8\n")
    (error,) = errors(tmp_path / "src", options)
    assert "0.8 x 0.8" in error.rule


def test_a_guarded_process_reads_a_mask(tmp_path):
    save(tmp_path / "image.nii.gz", hu())
    mask = save(tmp_path / "mask.nii.gz", ball())
    assert import_source(mask, tmp_path / "rois").num_lesions == 1
    mask.write_bytes(mask.read_bytes()[:60])
    assert "mask.nii.gz" in errors(mask, ImportOptions())[0].where


# Real files


def test_one_real_lesion_is_the_same_in_every_nifti(shared_data, tmp_path):
    folder = shared_data / "one_lesion" / "nifti"
    wanted = load_rois(import_source(shared_data / "one_lesion" / "rtstruct.dcm", tmp_path / "wanted", HERE).path)
    images = {"mask": ("image", "image_4d", "image_sclinter", "image_PIR", "image_canonicalRAS")}
    images |= {"mask_PIR": ("image_PIR", "image"), "mask_canonicalRAS": ("image_canonicalRAS",)}
    images |= {"mask_probability_float": ("image",), "mask_identity_affine": ("image_identity_affine",)}
    for mask, of in images.items():
        for image in of:
            unknown = {"trust_voxels": True, "spacing_mm": (0.810547, 0.810547)} if "identity" in mask else {}
            options = ImportOptions(isolate=False, image=folder / f"{image}.nii.gz", **unknown)
            rois = load_rois(import_source(folder / f"{mask}.nii.gz", tmp_path / f"{mask}-{image}", options).path)
            assert rois.lesion_ids == wanted.lesion_ids, (mask, image)
            assert rois.spacing_mm is not None
            assert rois.spacing_mm[0].tolist() == pytest.approx([0.810547, 0.810547], rel=1e-6)
    assert "shape" in errors(folder / "mask_wrong_shape.nii.gz")[0].rule
    assert "not known" in errors(folder / "mask_identity_affine.nii.gz")[0].rule


def test_a_real_structure_set_equals_its_nifti(shared_data, tmp_path):
    dicom = load_rois(import_source(shared_data / "sts_rtstruct" / "STS_003", tmp_path / "dicom", HERE).path)
    nifti = load_rois(import_source(shared_data / "sts_nifti", tmp_path / "nifti", HERE).path)
    assert nifti.lesion_ids == dicom.lesion_ids


def test_a_real_label_map_of_organs_imports(shared_data):
    _, findings = margins(shared_data / "totalseg" / "example_seg.nii.gz", label_map=("5=liver",))
    assert not [f for f in findings if f.severity == "error"]
