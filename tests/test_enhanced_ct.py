"""Enhanced CT: every frame is a slice of its own, with its geometry and scale out of the functional groups."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, generate_uid

from lesionaug.data.importer import check_source, import_source
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import SourceFile
from lesionaug.data.sources import dicom_ct
from lesionaug.data.sources.dicom_ct import ENHANCED_CT, LEGACY_CONVERTED_ENHANCED_CT, CtSlice, read_ct_slices
from lesionaug.data.sources.dicom_file import read_dicom
from lesionaug.data.sources.given import ReadOptions
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.errors import DataError
from tests.dicom_files import (
    HEIGHT,
    WIDTH,
    circle_mm,
    contour,
    disc,
    hu_picture,
    rtstruct_dataset,
    segmentation,
    series,
    write,
)


def group(**values) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def enhanced(slices: list, *, shared: bool = True, sop_class: str = ENHANCED_CT) -> Dataset:
    """The frames of single slices as one object; what all share in the shared group, or all of it in each frame's."""
    ds = copy.deepcopy(slices[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    moved = "ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness RescaleSlope RescaleIntercept"
    for keyword in (*moved.split(), "RescaleType"):
        del ds[keyword]
    ds.NumberOfFrames = len(slices)
    frames = []
    for one in slices:
        common = group(
            PlaneOrientationSequence=[group(ImageOrientationPatient=one.ImageOrientationPatient)],
            PixelMeasuresSequence=[group(PixelSpacing=one.PixelSpacing, SliceThickness=one.SliceThickness)],
            PixelValueTransformationSequence=[
                group(RescaleSlope=one.RescaleSlope, RescaleIntercept=one.RescaleIntercept, RescaleType="HU")
            ],
            CTImageFrameTypeSequence=[group(FrameType=["ORIGINAL", "PRIMARY", "AXIAL", "NONE"])],
        )
        own = group() if shared else common
        own.PlanePositionSequence = [group(ImagePositionPatient=one.ImagePositionPatient)]
        frames.append(own)
    ds.PerFrameFunctionalGroupsSequence = frames
    if shared:
        ds.SharedFunctionalGroupsSequence = [common]
    ds.PixelData = b"".join(one.PixelData for one in slices)
    return ds


def read(path: Path) -> list[CtSlice]:
    source = SourceFile(1, path, path.name)
    return read_ct_slices(source, read_dicom(source, pixels=True), ReadOptions())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sop_class", [ENHANCED_CT, LEGACY_CONVERTED_ENHANCED_CT])
@pytest.mark.parametrize("compressed", [True, False])
def test_each_frame_equals_the_single_slice(tmp_path, shared, sop_class, compressed):
    singles = series(tmp_path, 4, step=2.5, spacing=(0.9, 0.7), orientation=(1, 0, 0, 0, -1, 0))
    ds = enhanced(singles[::-1], shared=shared, sop_class=sop_class)  # frames may come in any order
    if compressed:
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    found = read(write(ds, tmp_path / "enhanced.dcm"))
    assert [ct.frame for ct in found] == [0, 1, 2, 3]
    for ct, number in zip(found, (3, 2, 1, 0), strict=True):
        (single,) = read(tmp_path / f"{number}.dcm")
        assert np.array_equal(ct.load().hu, single.load().hu)
        assert np.array_equal(ct.load().hu, hu_picture(number)[::-1])
        assert ct.plane is not None
        assert single.plane is not None
        assert ct.plane.position == pytest.approx(single.plane.position)
        assert (ct.spacing_mm, ct.step_mm, ct.hash) == (single.spacing_mm, single.step_mm, single.hash)
        assert (ct.spacing_mm, ct.step_mm) == ((0.7, 0.9), 5.0)


def test_scale_of_each_frame_and_localizer_frames(tmp_path):
    ds = enhanced(series(tmp_path, 3), shared=False)
    frames = ds.PerFrameFunctionalGroupsSequence
    frames[1].PixelValueTransformationSequence[0].RescaleIntercept = -1000
    frames[2].CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    found = read(write(ds, tmp_path / "enhanced.dcm"))
    assert [ct.frame for ct in found] == [0, 1]
    assert np.array_equal(found[1].load().hu, hu_picture(1) + 24)
    for frame in frames:
        frame.CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    with pytest.raises(DataError, match="localizer"):
        read(write(ds, tmp_path / "enhanced.dcm"))


def test_one_frame_that_lost_something_is_named(tmp_path):
    ds = enhanced(series(tmp_path, 3))
    frames = []
    for number in range(3):
        stream = io.BytesIO()
        stored = Image.fromarray((hu_picture(number).astype(np.int32) + 1024).astype(np.uint16))
        stored.save(stream, "JPEG2000", no_jp2=True, irreversible=number == 1)
        frames.append(stream.getvalue())
    ds.PixelRepresentation, ds.file_meta.TransferSyntaxUID = 0, JPEG2000Lossless
    for with_table in (True, False):
        ds.PixelData = encapsulate(frames, has_bot=with_table)
        ds["PixelData"].is_undefined_length = True
        with pytest.raises(DataError, match=r"frame 2: .*with loss though it claims none"):
            read(write(ds, tmp_path / "enhanced.dcm"))


def test_many_lesions_of_one_file_read_it_once(tmp_path, monkeypatch):
    found = read(write(enhanced(series(tmp_path, 3)), tmp_path / "enhanced.dcm"))
    read_files = []
    monkeypatch.setattr(
        dicom_ct,
        "read_dicom",
        lambda source, **keywords: (read_files.append(source), read_dicom(source, **keywords))[1],
    )
    dicom_ct.last_multi_frame.cache_clear()
    for ct in found * 3:
        ct.load()
    assert len(read_files) == 1


def _frames(number):
    def change(ds):
        ds.NumberOfFrames = number

    return change


def _frame(keyword, **values):
    def change(ds):
        for name, value in values.items():
            setattr(ds.PerFrameFunctionalGroupsSequence[1][keyword][0], name, value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_frames(2), "each frame described"),
        (_frames(4), "each frame described"),
        (_frames(10**9), "each frame described"),
        (lambda ds: delattr(ds, "NumberOfFrames"), "each frame described"),
        (lambda ds: delattr(ds, "PerFrameFunctionalGroupsSequence"), "each frame described"),
        (_frame("PixelMeasuresSequence", PixelSpacing=[0, 0]), "frame 2: PixelSpacing"),
        (
            _frame("PlaneOrientationSequence", ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
            "frame 2: slices must be axial",
        ),
        (_frame("PixelValueTransformationSequence", RescaleSlope=0), "frame 2: RescaleSlope"),
        (_frame("PixelValueTransformationSequence", RescaleType="Z_EFF"), "frame 2: .*Hounsfield"),
        (
            lambda ds: delattr(ds.PerFrameFunctionalGroupsSequence[2], "PixelMeasuresSequence"),
            "PixelSpacing is missing",
        ),
        (
            lambda ds: delattr(ds.PerFrameFunctionalGroupsSequence[2], "PixelValueTransformationSequence"),
            "frame 3: RescaleSlope and RescaleIntercept are missing",
        ),
        (lambda ds: setattr(ds, "PixelData", ds.PixelData[: -WIDTH * HEIGHT]), "frame"),
        (lambda ds: setattr(ds, "LossyImageCompression", "01"), "with loss"),
        (lambda ds: setattr(ds, "BurnedInAnnotation", "YES"), "burned in"),
        (
            lambda ds: (setattr(ds, "RescaleSlope", 1), setattr(ds, "RescaleIntercept", 0)),
            "slope 1, intercept 0 and slope 1, intercept -1024",
        ),
    ],
)
def test_what_cannot_be_trusted_is_refused(tmp_path, change, words):
    ds = enhanced(series(tmp_path, 3), shared=False)
    change(ds)
    with pytest.raises(DataError, match=words) as caught:
        read(write(ds, tmp_path / "enhanced.dcm"))
    assert caught.value.where.startswith("enhanced.dcm")


def drawn(*, reference: str | None = None, frame=None, z: float = 5.0) -> Dataset:
    item = contour(circle_mm(30, 25, 9, z), reference=reference)
    if frame is not None:
        item.ContourImageSequence[0].ReferencedFrameNumber = frame
    return item


def test_the_same_lesion_comes_from_single_slices_and_from_frames(tmp_path):
    singles = series(tmp_path / "single", 3)
    frames = enhanced(singles)
    masks = np.zeros((3, HEIGHT, WIDTH, 1), dtype=bool)
    masks[1, ..., 0] = disc(HEIGHT, WIDTH, 60, 30, 6)
    seg = segmentation(singles, masks, ["met"])
    write(frames, tmp_path / "multi" / "enhanced.dcm")
    for folder in ("single", "multi"):
        write(rtstruct_dataset({1: ("a", [drawn()])}), tmp_path / folder / "RS.dcm")
        write(seg, tmp_path / folder / "seg.dcm")
    stores = [load_rois(import_source(tmp_path / n, tmp_path / f"{n}.rois").path) for n in ("single", "multi")]
    assert len(stores[0]) == 2
    assert stores[0].lesion_ids == stores[1].lesion_ids
    assert all(np.array_equal(a, b) for a, b in zip(stores[0].images, stores[1].images, strict=True))
    here = import_source(tmp_path / "multi", tmp_path / "here", ImportOptions(isolate=False)).path
    assert manifest_sha256(here) == manifest_sha256(tmp_path / "multi.rois")


@pytest.mark.parametrize("frame", [2, [2], [1, 2], [2, 3], None])
def test_references_name_frames(tmp_path, frame):
    ds = enhanced(series(tmp_path / "slices", 3))
    source = tmp_path / "source"
    write(ds, source / "enhanced.dcm")
    item = drawn(reference=ds.SOPInstanceUID, frame=frame)
    # Another frame of reference: the reference alone decides.
    write(rtstruct_dataset({1: ("a", [item])}, frame="1.2.3"), source / "RS.dcm")
    rois = load_rois(import_source(source, tmp_path / "rois", ImportOptions(isolate=False)).path)
    (left, top), (height, width) = rois.origins[0].tolist(), rois.images[0].shape
    assert np.array_equal(rois.images[0], hu_picture(1)[top : top + height, left : left + width])


def test_a_reference_to_a_frame_that_lies_elsewhere_is_refused(tmp_path):
    ds = enhanced(series(tmp_path / "slices", 3))
    write(ds, tmp_path / "source" / "enhanced.dcm")
    item = drawn(reference=ds.SOPInstanceUID, frame=3)
    write(rtstruct_dataset({1: ("a", [item])}), tmp_path / "source" / "RS.dcm")
    (error,) = [
        str(f) for f in check_source(tmp_path / "source", ImportOptions(isolate=False)) if f.severity == "error"
    ]
    assert "5.00 mm away" in error


def test_a_segmentation_made_on_the_frames_is_placed(tmp_path):
    ds = enhanced(series(tmp_path / "slices", 3))
    ds.PixelPresentation, ds.VolumetricProperties, ds.VolumeBasedCalculationTechnique = "MONOCHROME", "VOLUME", "NONE"
    masks = np.zeros((3, HEIGHT, WIDTH, 1), dtype=bool)
    masks[2, ..., 0] = disc(HEIGHT, WIDTH, 40, 30, 6)
    seg = segmentation([ds], masks, ["met"])  # highdicom references the frames by number
    write(ds, tmp_path / "source" / "enhanced.dcm")
    write(seg, tmp_path / "source" / "seg.dcm")
    rois = load_rois(import_source(tmp_path / "source", tmp_path / "rois", ImportOptions(isolate=False)).path)
    (left, top), (height, width) = rois.origins[0].tolist(), rois.images[0].shape
    assert np.array_equal(rois.images[0], hu_picture(2)[top : top + height, left : left + width])
    assert rois.masks is not None
    assert np.array_equal(rois.masks[0], masks[2, top : top + height, left : left + width, 0])


@pytest.mark.parametrize("name", ["23x38x3", "24x38x3"])
def test_real_frames_equal_the_slices_that_they_were_made_from(shared_data, name):
    folder = shared_data / "dcmqi_ct_seg" / name
    singles = {ct.plane.depth_mm: ct for path in folder.glob("image/*.dcm") for ct in read(path)}
    frames = read(folder / "multiframe" / "mf.dcm")
    assert len(frames) == len(singles) == 3
    for ct in frames:
        single = singles[ct.plane.depth_mm]
        assert np.array_equal(ct.load().hu, single.load().hu)
        assert ct.spacing_mm == single.spacing_mm
        assert np.allclose(ct.plane.position, single.plane.position)


def test_a_table_names_frames(tmp_path):
    ds = enhanced(series(tmp_path / "slices", 3), shared=False)
    kind = ds.PerFrameFunctionalGroupsSequence[1].CTImageFrameTypeSequence[0]
    kind.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    write(ds, tmp_path / "enhanced.dcm")
    square = '"20,20 40,20 40,40 20,40"'
    table = tmp_path / "table.csv"
    table.write_text(f"image,patient_id,slice,polygon_xy\nenhanced.dcm,Pat-1,2,{square}\n")
    rois = load_rois(import_source(table, tmp_path / "rois", ImportOptions(isolate=False)).path)
    (left, top), (height, width) = rois.origins[0].tolist(), rois.images[0].shape
    assert np.array_equal(rois.images[0], hu_picture(2)[top : top + height, left : left + width])
    for cell, words in (("1", "no localizer"), ("3", "no localizer"), ("", "needs the slice column")):
        table.write_text(f"image,patient_id,slice,polygon_xy\nenhanced.dcm,Pat-1,{cell},{square}\n")
        (error,) = [f for f in check_source(table, ImportOptions(isolate=False)) if f.severity == "error"]
        assert words in error.rule
