"""Segments are placed by their own geometry; highdicom is the independent reader."""

from __future__ import annotations

import zlib
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from lesionaug.data.importer import import_source
from lesionaug.data.slices import Finding, Margin, SourceFile
from lesionaug.data.sources.dicom_ct import CtSlice, read_ct_slice
from lesionaug.data.sources.dicom_file import read_dicom
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.segmentation import read_segmentation
from lesionaug.data.store import load_rois
from lesionaug.errors import DataError
from tests.dicom_files import HEIGHT, WIDTH, ct_dataset, disc, hu_picture, segmentation, series, write


def margins(folder: Path, dataset) -> tuple[list[Margin], list[Finding]]:
    path = write(dataset, folder / "seg.dcm")
    slices: list[CtSlice] = []
    for number, file in enumerate(sorted(folder.glob("[0-9]*.dcm")), 1):
        source = SourceFile(number, file, file.name)
        slices.append(read_ct_slice(source, read_dicom(source, pixels=True)))
    findings: list[Finding] = []
    return list(read_segmentation(SourceFile(9, path, path.name), Given(slices, findings))), findings


def relabelled(folder: Path, dataset, syntax: bytes) -> tuple[list[Margin], list[Finding]]:
    """As `margins`, in a transfer syntax that pydicom does not know."""
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    margins(folder, dataset)
    path = folder / "seg.dcm"
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", syntax.ljust(22, b"\0")))
    source, slices = SourceFile(9, path, path.name), []
    for number, file in enumerate(sorted(folder.glob("[0-9]*.dcm")), 1):
        one = SourceFile(number, file, file.name)
        slices.append(read_ct_slice(one, read_dicom(one, pixels=True)))
    findings: list[Finding] = []
    return list(read_segmentation(source, Given(slices, findings))), findings


def two_segments(rows: int = HEIGHT, columns: int = WIDTH) -> np.ndarray:
    masks = np.zeros((3, rows, columns, 2), dtype=bool)
    masks[1, ..., 0] = disc(rows, columns, 30, 20, 8)
    masks[2, ..., 0] = disc(rows, columns, 30, 20, 5)
    masks[0, ..., 1] = disc(rows, columns, 34, 22, 9)
    return masks


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segments_come_back_on_their_slices(tmp_path, kind):
    slices = series(tmp_path)
    masks = two_segments()
    drawn = np.where(masks, 0.7, 0.3) if kind == "FRACTIONAL" else masks  # the threshold is 0.5
    if kind == "FRACTIONAL":
        drawn = drawn / 1.5 + (masks * 0.1)
        assert ((drawn >= 0.5) == masks).all()
    found, findings = margins(tmp_path, segmentation(slices, drawn, ["cyst", "met"], kind=kind))
    assert not findings
    assert [(m.number, m.name) for m in found] == [(1, "cyst"), (2, "met")]
    for margin in found:
        own = {entry.slice.source.name: entry.mask for entry in margin.slices}
        wanted = {
            f"{n}.dcm": masks[n, ..., margin.number - 1] for n in range(3) if masks[n, ..., margin.number - 1].any()
        }
        assert own.keys() == wanted.keys()
        assert all(np.array_equal(own[name], wanted[name]) for name in own)


@pytest.mark.parametrize(("rows", "columns"), [(13, 17), (11, 23)])
def test_one_bit_frames_that_start_within_a_byte(tmp_path, rows, columns):
    slices = [ct_dataset(hu_picture(n, rows, columns), z=5.0 * n) for n in range(3)]
    for number, ds in enumerate(slices):
        write(ds, tmp_path / f"{number}.dcm")
    masks = np.random.default_rng(1).random((3, rows, columns, 1)) < 0.4
    (margin,), _ = margins(tmp_path, segmentation(slices, masks, ["a"]))
    assert all(np.array_equal(entry.mask, masks[n, ..., 0]) for n, entry in enumerate(margin.slices))
    other = hd.seg.segread(tmp_path / "seg.dcm").get_pixels_by_source_instance(
        [ds.SOPInstanceUID for ds in slices], ignore_spatial_locations=True
    )
    assert all(np.array_equal(entry.mask, other[n, ..., 0] > 0) for n, entry in enumerate(margin.slices))


@pytest.mark.parametrize(("kind", "bits"), [("BINARY", 1), ("FRACTIONAL", 8), ("LABELMAP", 8)])
def test_frames_that_are_deflated_one_by_one(tmp_path, kind, bits):
    slices = series(tmp_path)
    masks = two_segments()
    dataset = segmentation(slices, masks.astype(float) if kind == "FRACTIONAL" else masks, ["a", "b"], kind=kind)
    count, size = int(dataset.NumberOfFrames), HEIGHT * WIDTH * bits // 8
    packers = [zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS) for _ in range(count)]
    frames = [
        packer.compress(dataset.PixelData[n * size : (n + 1) * size]) + packer.flush()
        for n, packer in enumerate(packers)
    ]
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    found, findings = relabelled(tmp_path, dataset, b"1.2.840.10008.1.2.8.1")
    assert not findings
    assert len(found) == 2
    for margin in found:
        assert np.array_equal(
            margin.largest().mask, masks[2 - margin.number if margin.number > 1 else 1, ..., margin.number - 1]
        )
    frames[1] = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS).compress(b"") + frames[0][:5]
    dataset.PixelData = encapsulate(frames)
    _, findings = relabelled(tmp_path, dataset, b"1.2.840.10008.1.2.8.1")
    assert any("does not inflate to" in f.rule or "broken" in f.rule for f in findings)


def test_one_bit_rle_and_segments_of_one_number_are_refused(tmp_path):
    slices = series(tmp_path)
    dataset = segmentation(slices, two_segments(), ["a", "b"])
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.5"
    dataset.PixelData = encapsulate([bytes(64)] * int(dataset.NumberOfFrames))
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    found, findings = margins(tmp_path, dataset)
    assert not found
    assert all("RLE Lossless are not supported" in finding.rule for finding in findings)
    dataset.SegmentSequence[1].SegmentNumber = 1
    with pytest.raises(DataError, match="two segments have one"):
        margins(tmp_path, dataset)


@pytest.mark.parametrize("name", ["sparse-labelmap-noppv.dcm", "sparse-labelmap-ppv5.dcm"])
def test_real_label_maps_with_and_without_padding(shared_data, tmp_path, name):
    """Two frames of three slices, one described segment beside the background."""
    from lesionaug.data.sources.dicom_ct import read_ct_slices
    from lesionaug.data.sources.given import ReadOptions

    path = shared_data / "dcmqi_ct_seg" / name
    slices = []
    for number, file in enumerate(sorted((shared_data / "dcmqi_ct_seg" / "24x38x3" / "image").glob("*.dcm")), 1):
        source = SourceFile(number, file, file.name)
        slices += read_ct_slices(source, read_dicom(source, pixels=True), ReadOptions())
    findings: list[Finding] = []
    (margin,) = read_segmentation(SourceFile(9, path, path.name), Given(slices, findings))
    assert not findings
    assert (margin.number, margin.name) == (1, "Liver")
    stored = pydicom.dcmread(path).pixel_array
    assert sum(entry.area for entry in margin.slices) == int((stored == 1).sum())


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("FRACTIONAL", lambda ds: setattr(ds, "MaximumFractionalValue", 0), r"must be 1 \.\. 255, got '0'"),
        ("FRACTIONAL", lambda ds: setattr(ds, "MaximumFractionalValue", 256), r"must be 1 \.\. 255, got '256'"),
        ("FRACTIONAL", lambda ds: delattr(ds, "MaximumFractionalValue"), r"must be 1 \.\. 255, got ''"),
        (
            "FRACTIONAL",
            lambda ds: setattr(ds, "Columns", WIDTH - 1),
            "must have 28440 bytes of pixel data .* got 28800",
        ),
        ("BINARY", lambda ds: setattr(ds, "Columns", WIDTH - 1), "must have 3555 bytes of pixel data .* got 3600"),
        ("LABELMAP", lambda ds: setattr(ds, "Rows", HEIGHT + 1), "must have 14640 bytes of pixel data .* got 14400"),
        ("BINARY", lambda ds: setattr(ds, "PixelData", ds.PixelData + b"\xff\xff"), "3600 bytes .* got 3602"),
        ("BINARY", lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2]), "3600 bytes .* got 3598"),
        ("BINARY", lambda ds: delattr(ds, "PixelData"), "lacks its PixelData"),
    ],
)
def test_a_scale_that_is_none_and_pixels_of_another_length_are_refused(tmp_path, kind, change, words):
    masks = two_segments()
    drawn = masks.astype(float) if kind == "FRACTIONAL" else masks
    dataset = segmentation(series(tmp_path), drawn, ["a", "b"], kind=kind)
    change(dataset)
    with pytest.raises(DataError, match=words):
        margins(tmp_path, dataset)


def test_frames_padded_to_whole_bytes_are_refused_and_one_byte_that_makes_them_even_is_not(tmp_path):
    rows, columns = 11, 23  # 253 bits: 3 of padding in each frame
    slices = [ct_dataset(hu_picture(n, rows, columns), z=5.0 * n) for n in range(9)]
    for number, ds in enumerate(slices):
        write(ds, tmp_path / f"{number}.dcm")
    masks = np.random.default_rng(1).random((9, rows, columns, 1)) < 0.4
    dataset = segmentation(slices, masks, ["a"])
    assert len(dataset.PixelData) == 286  # 285, and one to make it even
    assert len(margins(tmp_path, dataset)[0]) == 1
    padded = np.packbits(masks[..., 0].reshape(9, -1), axis=1, bitorder="little").tobytes()
    assert len(padded) == 288
    dataset.PixelData = padded
    with pytest.raises(DataError, match="no padding between frames"):
        margins(tmp_path, dataset)


def test_fractions_above_their_maximum_are_refused(tmp_path):
    dataset = segmentation(series(tmp_path), two_segments().astype(float), ["a", "b"], kind="FRACTIONAL")
    dataset.MaximumFractionalValue = 100
    found, findings = margins(tmp_path, dataset)
    assert not found
    assert all("must not exceed MaximumFractionalValue 100, got 255" in finding.rule for finding in findings)
    dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint8) // 255 * 100).tobytes()
    found, findings = margins(tmp_path, dataset)
    assert len(found) == 2
    assert not findings


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize(("described", "words"), [(1, "segment 2,"), (0, "segments 1, 2,")])
def test_frames_of_segments_that_are_not_described_are_an_error(tmp_path, kind, described, words):
    dataset = segmentation(series(tmp_path), two_segments(), ["a", "b"], kind=kind)
    dataset.SegmentSequence = [s for s in dataset.SegmentSequence if 1 <= s.SegmentNumber <= described]
    found, (finding,) = margins(tmp_path, dataset)
    assert len(found) == described
    assert (finding.severity, finding.where) == ("error", "seg.dcm")
    assert words in finding.rule


def test_a_binary_segment_of_number_0_is_an_error(tmp_path):
    dataset = segmentation(series(tmp_path), two_segments(), ["a", "b"])
    dataset.SegmentSequence[0].SegmentNumber = 0
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber %= 2
    dataset.SegmentSequence[1].SegmentNumber = 1
    (margin,), (finding,) = margins(tmp_path, dataset)
    assert margin.name == "b"
    assert (finding.severity, "segment 0," in finding.rule) == ("error", True)


def test_a_series_that_is_not_here_is_worth_one_warning(tmp_path):
    dataset = segmentation(series(tmp_path), two_segments(), ["a", "b"])
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    assert not margins(tmp_path, dataset)[1]  # its frames name their slices
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    found, (finding,) = margins(tmp_path, dataset)
    assert len(found) == 2
    assert (finding.severity, "drawn on is not here" in finding.rule) == ("warning", True)
    del dataset.ReferencedSeriesSequence
    assert not margins(tmp_path, dataset)[1]


def test_overlapping_segments_keep_all_their_pixels(tmp_path):
    slices = series(tmp_path, 1)
    masks = np.stack([disc(HEIGHT, WIDTH, 30, 20, 8), disc(HEIGHT, WIDTH, 33, 20, 8)], axis=-1)[None]
    found, _ = margins(tmp_path, segmentation(slices, masks, ["a", "b"]))
    assert [int(m.slices[0].mask.sum()) for m in found] == [int(masks[..., 0].sum()), int(masks[..., 1].sum())]


def test_frames_without_a_slice_are_counted(tmp_path):
    slices = series(tmp_path)
    dataset = segmentation(slices, two_segments(), ["a", "b"])
    (tmp_path / "1.dcm").unlink()
    found, findings = margins(tmp_path, dataset)
    assert [m.parts_missing for m in found] == [1, 1]
    assert [[e.slice.source.name for e in m.slices] for m in found] == [["2.dcm"], ["0.dcm"]]
    assert not findings


def test_references_are_not_needed_and_frames_may_be_in_any_order(tmp_path):
    slices = series(tmp_path)
    dataset = segmentation(slices[::-1], two_segments()[::-1], ["a", "b"])
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    found, _ = margins(tmp_path, dataset)
    assert np.array_equal(found[0].largest().mask, two_segments()[1, ..., 0])


def _shift(dataset, by):
    # highdicom's frames of several segments share their position objects: move each once.
    positions = {
        id(f.PlanePositionSequence[0]): f.PlanePositionSequence[0] for f in dataset.PerFrameFunctionalGroupsSequence
    }
    for item in positions.values():
        x, y, z = (float(value) for value in item.ImagePositionPatient)
        item.ImagePositionPatient = [x + by, y, z]


def test_a_grid_shifted_by_whole_pixels_is_placed_and_one_shifted_by_half_refused(tmp_path):
    slices = series(tmp_path)
    dataset = segmentation(slices, two_segments(), ["a", "b"])
    _shift(dataset, 3 * 0.8)
    found, _ = margins(tmp_path, dataset)
    assert np.array_equal(found[0].largest().mask, np.roll(two_segments()[1, ..., 0], 3, axis=1))
    _shift(dataset, 0.4)
    found, findings = margins(tmp_path, dataset)
    assert not found
    assert all("pixel grid" in finding.rule for finding in findings)


def test_another_spacing_frame_or_patient_is_refused(tmp_path):
    slices = series(tmp_path)
    dataset = segmentation(slices, two_segments(), ["a", "b"])
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.8, 0.9]
    _, findings = margins(tmp_path, dataset)
    assert "pixel grid" in findings[0].rule
    dataset = segmentation(slices, two_segments(), ["a", "b"])
    dataset.PatientID = "Pat-2"
    _, findings = margins(tmp_path, dataset)
    assert "different patients" in findings[0].rule
    dataset = segmentation(slices, two_segments(), ["a", "b"])
    dataset.FrameOfReferenceUID = "1.2.3"
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    _, findings = margins(tmp_path, dataset)
    assert "matches no CT slice" in findings[0].rule


def test_a_flipped_series_is_met_by_its_own_segmentation(tmp_path):
    flipped = {"orientation": (1, 0, 0, 0, -1, 0), "position": (10.0, 20.0 + (HEIGHT - 1) * 0.8)}
    slices = series(tmp_path, **flipped)
    found, _ = margins(tmp_path, segmentation(slices, two_segments(), ["a", "b"]))
    assert np.array_equal(found[0].largest().mask, two_segments()[1, ::-1, :, 0])


def test_a_real_segmentation_gives_the_lesion_of_the_structure_set(shared_data, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for path in (
        *(shared_data / "sts_rtstruct" / "STS_008").glob("0*.dcm"),
        shared_data / "sts_seg" / "STS_008_SEG.dcm",
    ):
        (folder / path.name).symlink_to(path)
    seg = load_rois(import_source(folder, tmp_path / "seg").path)
    rtstruct = load_rois(import_source(shared_data / "sts_rtstruct" / "STS_008", tmp_path / "rt").path)
    assert seg.lesion_ids == rtstruct.lesion_ids


@pytest.mark.parametrize("name", ["liver.dcm", "partial_overlaps.dcm"])
def test_real_dcmqi_files_agree_with_highdicom(shared_data, tmp_path, name):
    folder = tmp_path / "source"
    folder.mkdir()
    for path in sorted((shared_data / "dcmqi_ct_seg" / "ct-3slice").glob("*.dcm")):
        (folder / path.name).symlink_to(path)
    seg = hd.seg.segread(shared_data / "dcmqi_ct_seg" / name)
    found, findings = margins(folder, read_dicom(SourceFile(1, shared_data / "dcmqi_ct_seg" / name, name), pixels=True))
    assert not [finding for finding in findings if finding.severity == "error"]
    uids = {
        path.name: read_dicom(SourceFile(1, path, path.name), pixels=False).SOPInstanceUID for path in folder.glob("0*")
    }
    assert len(found) == len(seg.segment_numbers)
    for margin in found:
        for entry in margin.slices:
            other = seg.get_pixels_by_source_instance(
                [uids[entry.slice.source.name]], segment_numbers=[margin.number], ignore_spatial_locations=True
            )
            assert np.array_equal(entry.mask, other[0, ..., 0] > 0)
        assert margin.slices
