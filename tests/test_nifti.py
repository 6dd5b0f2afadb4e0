"""NIfTI volumes as untrusted input: what a slice holds and where it lies, in bounded memory."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lesionaug.data.slices import SourceFile
from lesionaug.data.sources.nifti import NiftiVolume, map_grid
from lesionaug.errors import DataError

AFFINE = np.diag([-0.7, -0.9, 5.0, 1.0])
AFFINE[:3, 3] = 30.0, 40.0, -100.0


def volume(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, **options) -> NiftiVolume:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return NiftiVolume.open(SourceFile(1, path, path.name), **options)


def test_slices_read_in_any_order_are_those_of_nibabel(tmp_path):
    values = np.random.default_rng(0).integers(-900, 900, (9, 7, 6)).astype(np.int16)
    read = volume(tmp_path / "a.nii.gz", values)
    assert (read.num_slices, read.stored_shape, read.spacing_mm) == (6, (7, 9), pytest.approx((0.7, 0.9)))
    for index in (4, 0, 5, 3, 3):
        assert np.array_equal(read.read(index), values[:, :, index].T)
        assert np.array_equal(read.slice(index).load().hu, values[:, :, index].T)
    with pytest.raises(DataError, match=r"0 \.\. 5"):
        read.slice(6)
    across_rows = volume(tmp_path / "b.nii", values, AFFINE[:, [0, 2, 1, 3]])
    assert across_rows.num_slices == 7
    assert np.array_equal(across_rows.read(2), values[:, 2, :].T)


def test_planes_lie_where_the_affine_puts_them(tmp_path):
    read = volume(tmp_path / "a.nii", np.zeros((9, 7, 6), np.int16))
    plane = read.plane(3)
    assert plane.position.tolist() == pytest.approx([-30.0, -40.0, -85.0])  # DICOM's x and y run the other way
    assert plane.spacing_mm == pytest.approx((0.7, 0.9))
    assert plane.normal.tolist() == pytest.approx([0.0, 0.0, 1.0])
    flipped = AFFINE.copy()
    flipped[0, 0], flipped[0, 3] = 0.7, 30.0 - 0.7 * 8  # the same box, stored from the left
    turned = volume(tmp_path / "b.nii", np.zeros((9, 7, 6), np.int16), flipped)
    assert turned.plane(3).position.tolist() == pytest.approx(plane.position.tolist())
    grid = map_grid(turned, read)
    assert (grid.axes, grid.flips) == ((0, 1, 2), (True, False, False))
    assert grid.away < 1e-5


def test_scaled_values_are_exact_and_need_no_float_copy(tmp_path):
    values = np.random.default_rng(0).integers(0, 4000, (200, 200, 60)).astype(np.uint16)
    image = nibabel.Nifti1Image(values, AFFINE)
    image.header.set_slope_inter(0.5, -1024)
    nibabel.save(image, tmp_path / "a.nii.gz")
    nibabel.save(image, tmp_path / "across.nii.gz")
    read = NiftiVolume.open(SourceFile(1, tmp_path / "a.nii.gz", "a.nii.gz"))
    tracemalloc.start()
    for index in range(60):
        assert np.array_equal(read.read(index), np.asarray(image.dataobj[:, :, index]).T * 0.5 - 1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20  # the volume has 4.6 MiB as stored, 18 MiB as float64


def test_a_bomb_costs_its_slices_alone(tmp_path):
    # 64 MiB of zeros in 64 KiB: read slice by slice, never whole.
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.int16), AFFINE).header
    header.set_data_shape((1024, 1024, 32))
    header["vox_offset"] = 352
    with gzip.open(tmp_path / "a.nii.gz", "wb") as stream:
        stream.write(header.binaryblock + b"\0" * 4)
        for _ in range(32):
            stream.write(bytes(2 << 20))
    read = NiftiVolume.open(SourceFile(1, tmp_path / "a.nii.gz", "a.nii.gz"))
    tracemalloc.start()
    for index in range(32):
        assert not read.stored(index, 2).any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_large_volume_stored_across_its_slices_is_refused_before_it_is_read(tmp_path):
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.float64), AFFINE[:, [0, 2, 1, 3]]).header
    header.set_data_shape((1024, 100, 1024))
    header["vox_offset"] = 352
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4096)))
    read = NiftiVolume.open(SourceFile(1, tmp_path / "a.nii.gz", "a.nii.gz"))
    with pytest.raises(DataError, match="512 MiB"):
        read.read(0)


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.eye(4), "not known"),
        (np.diag([-1.0, -1.0, 1.0, 1.0]), "not known"),
        (np.diag([0.0, 1.0, 1.0, 1.0]), "singular"),
        (np.diag([0.001, 1.0, 1.0, 1.0]), "0.01 .. 50"),
        (np.diag([80.0, 1.0, 1.0, 1.0]), "0.01 .. 50"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular"),
    ],
)
def test_an_affine_that_is_none_is_refused(tmp_path, affine, words):
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), None)
    image.set_sform(affine, 1)
    image.header["qform_code"] = 0
    image.header["pixdim"][1:4] = 1
    nibabel.save(image, tmp_path / "a.nii")
    source = SourceFile(1, tmp_path / "a.nii", "a.nii")
    with pytest.raises(DataError, match=words):
        _ = NiftiVolume.open(source).affine
    with pytest.raises(DataError, match=words):
        NiftiVolume.open(source).slice(0).load()
    with pytest.raises(DataError, match="--spacing"):
        NiftiVolume.open(source, trust_voxels=True).slice(0).load()
    assert NiftiVolume.open(source, trust_voxels=True, spacing_mm=(0.7, 0.9)).spacing_mm == (0.7, 0.9)


def written(path: Path, image: nibabel.Nifti1Image, **fields) -> SourceFile:
    """A file whose header fields are what nibabel would not write."""
    header = image.header.copy()
    content = bytearray(image.to_bytes())
    for field, value in fields.items():
        header[field] = value
        kind, at = header.template_dtype.fields[field]
        content[at : at + kind.itemsize] = np.asarray(header[field], kind.base).tobytes()
    path.write_bytes(content)
    return SourceFile(1, path, path.name)


HU = np.random.default_rng(0).integers(-900, 900, (9, 7, 4))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("values", "fields", "words"),
    [
        (((HU + 900) / 8).astype(np.uint8), {}, "8 bits"),
        ((HU / 8).astype(np.int8), {}, "8 bits"),
        (HU.astype(np.int16), {"scl_slope": -1, "scl_inter": 0}, "scl_slope must be above 0, got -1"),
        (HU.astype(np.int16), {"scl_slope": 0, "scl_inter": -1024}, "scl_slope is 0, .* scl_inter -1024"),
        (HU.astype(np.int16), {"scl_slope": np.nan, "scl_inter": -1024}, "scl_slope is nan"),
        (((HU + 900) / 1800).astype(np.float32), {}, "no HU"),
        ((HU / 900).astype(np.float64), {}, "slice 0 holds values of -0.996 .. 0.941: these are no HU"),
        (HU.astype(np.int16), {"scl_slope": 1 / 2000, "scl_inter": 0}, "no HU"),
    ],
)
def test_what_is_no_hu_is_refused_as_an_image(tmp_path, kind, values, fields, words):
    values = values.copy()
    values[0, 0, 0] = values.min()
    source = written(tmp_path / "a.nii", kind(values, AFFINE), **fields)
    with pytest.raises(DataError, match=words) as caught:
        NiftiVolume.open(source).slice(0).load()
    assert caught.value.where == "a.nii"
    assert caught.value.fix


@pytest.mark.parametrize("fields", [{}, {"scl_slope": 0, "scl_inter": 0}, {"scl_slope": 1, "scl_inter": 0}])
def test_unscaled_values_and_empty_slices_are_taken(tmp_path, fields):
    values = HU.astype(np.float32)
    values[:, :, 1] = 0
    read = NiftiVolume.open(written(tmp_path / "a.nii", nibabel.Nifti1Image(values, AFFINE), **fields))
    assert np.array_equal(read.slice(0).load().hu, HU[:, :, 0].T)
    assert not read.slice(1).load().hu.any()


def test_sizes_of_a_voxel_that_contradict_each_other_are_refused(tmp_path):
    image = nibabel.Nifti1Image(HU.astype(np.int16), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    for q_code in (0, 1):
        fields = {"pixdim": [1, 0.8, 0.9, 5, 0, 0, 0, 0], "qform_code": q_code}
        source = written(tmp_path / "a.nii", image, **fields)
        with pytest.raises(DataError, match=r"0.7 x 0.9 x 5 mm by its affine .* 0.8 x 0.9 x 5 mm by pixdim"):
            NiftiVolume.open(source).slice(0).load()
    near = [1, 0.70002, 0.9, 5, 0, 0, 0, 0]  # fewer digits
    assert NiftiVolume.open(written(tmp_path / "a.nii", image, pixdim=near)).spacing_mm == pytest.approx((0.7, 0.9))


def load_all(source: SourceFile) -> None:
    read = NiftiVolume.open(source)
    for index in range(read.num_slices):
        read.slice(index).load()


def test_damaged_real_volumes_have_clear_errors(shared_data):
    said = {"truncated": "cannot be read", "nan_image": "NaN", "singular_affine": "singular", "git_lfs_pointer": "LFS"}
    for name, words in said.items():
        source = SourceFile(1, shared_data / "corrupt" / f"{name}.nii.gz", name)
        with pytest.raises(DataError, match=words):
            load_all(source)


def test_an_affine_beside_a_size_that_was_never_set_is_taken(tmp_path):
    """Writers that set the sform alone leave 1 x 1 x 1 in pixdim, which states nothing."""
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3) - 1000, None)
    image.header.set_sform(np.diag([-0.8, -0.8, 5.0, 1.0]), code=1)
    image.header["qform_code"], image.header["pixdim"][1:4] = 0, 1
    nibabel.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[80:92] = np.ones(3, "<f4").tobytes()
    raw[252:254] = bytes(2)
    (tmp_path / "a.nii").write_bytes(raw)
    assert NiftiVolume.open(SourceFile(1, tmp_path / "a.nii", "a.nii")).spacing_mm == pytest.approx((0.8, 0.8))
    raw[80:92] = np.array([0.7, 0.8, 5], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(DataError, match="two sizes of a voxel"):
        _ = NiftiVolume.open(SourceFile(1, tmp_path / "a.nii", "a.nii")).affine
