"""HU out of DICOM: right, or refused with the file, the rule and the fix."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from lesionaug.data.importer import import_source
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import HU_CLIP, SourceFile
from lesionaug.data.sources.codestreams import loss
from lesionaug.data.sources.dicom_ct import CtSlice, hounsfield, read_ct_slice, rescale, why_skipped
from lesionaug.data.sources.dicom_file import read_dicom
from lesionaug.data.store import load_rois
from lesionaug.errors import DataError
from tests.dicom_files import contour, ct_dataset, hu_picture, rtstruct_dataset, write


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An explicit little-endian element; `length` may lie."""
    length = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    return (
        head
        + struct.pack(
            "<HI" if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT") else "<H",
            *((0, length) if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT") else (length,)),
        )
        + value
    )


ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def read(path: Path) -> CtSlice:
    source = SourceFile(1, path, path.name)
    return read_ct_slice(source, read_dicom(source, pixels=True))


def test_hu_geometry_and_identity_are_read(tmp_path):
    hu = hu_picture(1)
    ct = read(write(ct_dataset(hu, z=7.0, spacing=(1.5, 0.5), patient="  Pat-ÄB "), tmp_path / "a.dcm"))
    picture = ct.load()
    assert picture.hu.dtype == np.int16
    assert np.array_equal(picture.hu, hu)
    assert picture.spacing_mm == (0.5, 1.5)  # (s_x, s_y), while DICOM writes the row spacing first
    assert ct.patient == "pat-äb"
    assert ct.plane is not None
    pixels, depth = ct.plane.to_pixels(np.array([[10.0 + 3 * 0.5, 20.0 + 2 * 1.5, 9.0]]))
    assert pixels == pytest.approx(np.array([[3.0, 2.0]]))
    assert depth == pytest.approx([2.0])


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_lossless_compression_changes_no_value(tmp_path, syntax):
    ds = ct_dataset(hu_picture(2))
    ds.compress(syntax, generate_instance_uid=False)
    assert np.array_equal(read(write(ds, tmp_path / "a.dcm")).load().hu, hu_picture(2))


@pytest.mark.parametrize("little", [True, False])
def test_other_byte_orders(tmp_path, little):
    ds = ct_dataset(hu_picture(2))
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if little else ExplicitVRBigEndian
    if not little:
        ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
    plain = Dataset(ds)  # a FileDataset refuses to change its byte order
    plain.file_meta = ds.file_meta
    plain.save_as(tmp_path / "a.dcm", implicit_vr=little, little_endian=little, enforce_file_format=True)
    assert np.array_equal(read(tmp_path / "a.dcm").load().hu, hu_picture(2))


def test_slope_gives_floats_only_where_values_are_not_whole(tmp_path):
    ds = ct_dataset(hu_picture(2))
    ds.RescaleSlope = 0.5
    picture = read(write(ds, tmp_path / "a.dcm")).load()
    assert picture.hu.dtype == np.float32
    assert np.array_equal(picture.hu, (hu_picture(2) + 1024) * 0.5 - 1024)


def test_monochrome1_is_not_inverted_and_padding_becomes_air(tmp_path):
    hu = hu_picture(3)
    hu[:5] = -3024
    hu[5] = 5000
    ds = ct_dataset(hu)
    ds.PhotometricInterpretation, ds.PixelPaddingValue = "MONOCHROME1", -2000
    assert np.array_equal(read(write(ds, tmp_path / "a.dcm")).load().hu, np.clip(hu, *HU_CLIP))


@pytest.mark.parametrize(
    ("orientation", "position", "store"),
    [
        ((1, 0, 0, 0, 1, 0), (10.0, 20.0), lambda a: a),
        ((1, 0, 0, 0, -1, 0), (10.0, 20.0 + 59 * 0.8), np.flipud),
        ((-1, 0, 0, 0, 1, 0), (10.0 + 79 * 0.8, 20.0), np.fliplr),
        ((0, 1, 0, 1, 0, 0), (10.0, 20.0), np.transpose),
        ((0, -1, 0, 1, 0, 0), (10.0, 20.0 + 59 * 0.8), lambda a: np.rot90(a, -1)),
    ],
)
def test_every_axial_orientation_gives_the_same_picture(tmp_path, orientation, position, store):
    hu = hu_picture(4)
    stored = np.ascontiguousarray(store(hu))  # the rows and columns that this orientation would store
    ct = read(write(ct_dataset(stored, orientation=orientation, position=position), tmp_path / "a.dcm"))
    assert ct.turned_shape == (60, 80)
    assert np.array_equal(ct.load().hu, hu)
    assert ct.plane is not None
    assert ct.plane.position == pytest.approx([10.0, 20.0, 0.0])
    assert ct.plane.right == pytest.approx([1, 0, 0])
    assert ct.plane.down == pytest.approx([0, 1, 0])


def test_a_turned_picture_keeps_its_spacing_on_its_axes(tmp_path):
    stored = hu_picture(4).T
    ct = read(write(ct_dataset(stored, orientation=(0, 1, 0, 1, 0, 0), spacing=(0.5, 2.0)), tmp_path / "a.dcm"))
    assert ct.spacing_mm == (0.5, 2.0)  # rows were 0.5 apart and are columns now


def _without(keyword):
    def change(ds):
        del ds[keyword]

    return change


def _with(keyword, value):
    def change(ds):
        setattr(ds, keyword, value)

    return change


def _raw(tag: int, vr: str, content: bytes):
    """A value that pydicom would not write, put in as it stands."""

    def change(ds):
        from pydicom.dataelem import RawDataElement
        from pydicom.tag import Tag

        ds._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(content), content, 0, False, True)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("RescaleSlope"), "RescaleSlope and RescaleIntercept are missing"),
        (_without("RescaleIntercept"), "RescaleSlope and RescaleIntercept are missing"),
        (_with("RescaleSlope", 0), "RescaleSlope must be above 0"),
        (_raw(0x00281052, "DS", b"NaN "), "RescaleIntercept must be a finite number"),
        (_raw(0x00281052, "DS", b"air!!"), "RescaleIntercept must be a finite number"),
        (_with("RescaleType", "MGML"), "Hounsfield"),
        (_without("PixelSpacing"), "PixelSpacing is missing"),
        (_raw(0x00280030, "DS", b"0,81\\0.81 "), "decimal point"),
        (_raw(0x00280030, "DS", b"abcdefgh"), "2 finite numbers"),
        (_raw(0x00280030, "DS", b"NaN\\0.8 "), "2 finite numbers"),
        (_with("PixelSpacing", [-0.8, 0.8]), "0.01 .. 20 mm"),
        (_with("PixelSpacing", [0, 0]), "0.01 .. 20 mm"),
        (_with("ImageOrientationPatient", [0, 1, 0, 0, 0, -1]), "must be axial"),
        (_with("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "perpendicular"),
        (_with("Rows", 0), "Rows and Columns"),
        (_with("Columns", 65535), "Rows and Columns"),
        (_without("Rows"), "needs Rows"),
        (_without("PixelData"), "needs PixelData"),
        (_with("BitsAllocated", 13), "BitsAllocated"),
        (_with("BitsStored", 8), "HighBit"),
        (_with("SamplesPerPixel", 3), "grey"),
        (_with("LossyImageCompression", "01"), "with loss"),
        (_with("LossyImageCompression", "1"), "with loss"),
        (_with("LossyImageCompressionRatio", "10"), "with loss"),
        (_with("LossyImageCompressionRatio", ["1", "7.5"]), "with loss"),
        (_with("LossyImageCompressionMethod", "ISO_10918_1"), "with loss"),
        (_with("BurnedInAnnotation", "YES"), "burned in"),
        (_with("NumberOfFrames", "2"), "several frames"),
        (lambda ds: setattr(ds, "PixelData", ds.PixelData[:-100]), "broken"),
        (lambda ds: setattr(ds, "PixelData", ds.PixelData + bytes(160)), "160 bytes longer"),
        (lambda ds: setattr(ds, "PixelData", b""), "needs PixelData"),
        (_with("Columns", 79), "longer than"),
        (_with("Rows", 59), "longer than"),
        (_with("PixelRepresentation", None), "needs PixelRepresentation"),
        (_with("PhotometricInterpretation", "PALETTE COLOR"), "grey"),
        (_with("ImagePositionPatient", [1e30, 0, 0]), "a kilometre away"),
        (_raw(0x00281053, "DS", b"1,0 "), "decimal point"),
        (_with("RescaleSlope", -1), "RescaleSlope must be above 0"),
        (_with("RescaleSlope", 1000), "values must lie below"),
        (_with("RescaleIntercept", -100000), "values are -99176 .. -98677 HU, none within -1024"),
        (_with("RescaleIntercept", 10000), "none within -1024"),
        (_with("PixelSpacing", [0.8, 19]), "at most 1.5 m wide and high, PixelSpacing makes 1.52 m"),
        (_with("PixelSpacing", [19, 19]), "at most 1.5 m"),
    ],
)
def test_what_cannot_be_trusted_is_refused(tmp_path, change, words):
    ds = ct_dataset(hu_picture())
    change(ds)
    path = write(ds, tmp_path / "bad.dcm")
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert caught.value.where == "bad.dcm"
    assert caught.value.fix


def test_declared_padding_above_the_scale_is_air_not_metal(tmp_path):
    hu = hu_picture(3)
    ds = ct_dataset(hu)
    ds.PixelRepresentation, ds.PixelPaddingValue = 0, 0xFFFF
    stored = (hu.astype(np.int32) + 1024).astype("<u2")
    stored[:5], hu[:5] = 0xFFFF, -1024
    ds.PixelData = stored.tobytes()
    assert np.array_equal(read(write(ds, tmp_path / "a.dcm")).load().hu, hu)
    stored[5:8], hu[5:8] = 0xFFF0, -1024
    ds.PixelData, ds.PixelPaddingRangeLimit = stored.tobytes(), 0xFF00
    assert np.array_equal(read(write(ds, tmp_path / "a.dcm")).load().hu, hu)
    del ds.PixelPaddingValue, ds.PixelPaddingRangeLimit
    with pytest.raises(DataError, match="sign, slope or padding"):
        read(write(ds, tmp_path / "a.dcm"))


def test_declared_padding_that_looks_like_tissue_is_air_where_it_reaches_the_border(tmp_path):
    hu = hu_picture(3)
    hu[hu == 40] = 41
    hu[:20, :20], hu[-1:, 30:60] = 40, 40  # padding, with the value of liver
    hu[30:36, 30:36], hu[0, 70] = 40, 40  # tissue inside, and noise at the border
    ds = ct_dataset(hu)
    assert np.array_equal(read(write(ds, tmp_path / "a.dcm")).load().hu, hu)
    ds.PixelPaddingValue = 1064
    wanted = hu.copy()
    wanted[:20, :20], wanted[-1:, 30:60] = -1024, -1024
    ct = read(write(ds, tmp_path / "a.dcm"))
    assert np.array_equal(ct.load().hu, wanted)
    assert [note for note in ct.notes if "padding value is 40 HU" in note]
    # A value that is declared and not used changes nothing, and is no note.
    ds.PixelPaddingValue = 1024 + 301
    ct = read(write(ds, tmp_path / "a.dcm"))
    assert np.array_equal(ct.load().hu, hu)
    assert not ct.notes


def test_slices_of_air_alone_are_read(tmp_path):
    for value in (-1024, -3024):
        hu = np.full((60, 80), value, np.int16)
        assert (read(write(ct_dataset(hu), tmp_path / "a.dcm")).load().hu == -1024).all()
    hu[10:50, 10:70] = -1024  # a padded picture of nothing
    assert (read(write(ct_dataset(hu), tmp_path / "a.dcm")).load().hu == -1024).all()


@pytest.mark.parametrize("left", [0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_a_file_cut_anywhere_is_refused_not_skipped(tmp_path, left):
    content = write(ct_dataset(hu_picture()), tmp_path / "a.dcm").read_bytes()
    (tmp_path / "b.dcm").write_bytes(content[: int(len(content) * left)])
    with pytest.raises(DataError):
        read(tmp_path / "b.dcm")


def test_an_emptied_sop_class_is_taken_from_the_meta_information(tmp_path):
    ds = ct_dataset(hu_picture())
    ds.SOPClassUID = ""
    assert np.array_equal(read(write(ds, tmp_path / "a.dcm")).load().hu, hu_picture())
    del ds.SOPClassUID
    with pytest.raises(DataError, match="does not state what it is"):
        read(write(ds, tmp_path / "b.dcm"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (element(0x00091000, b"SH", b"") * 1_000_000, "elements at its top level"),
        (element(0x00091000, b"OB", b"", 0xFFFFFFFE), "4294967294 bytes has"),
        (element(0x00081140, b"SQ", b"", 0xFFFFFFFF) + ITEM, "broken|cut short"),
        ((element(0x00081140, b"SQ", b"", 0xFFFFFFFF) + ITEM[:4] + b"\xff" * 4) * 20_000, "nested deeper"),
        (element(0x00081140, b"SQ", ITEM * 200_000, 0xFFFFFFFF) + END, "elements and items"),
        (element(0x00081140, b"SQ", ITEM * 1_000_000), "elements and items"),
    ],
)
def test_structures_that_no_real_file_has_are_refused_in_seconds(tmp_path, content, words):
    whole = write(ct_dataset(hu_picture()), tmp_path / "a.dcm").read_bytes()
    at = whole.index(b"\x08\0\x08\0CS")
    (tmp_path / "b.dcm").write_bytes(whole[:at] + content + whole[at:])
    started = time.process_time()
    with pytest.raises(DataError, match=words):
        read(tmp_path / "b.dcm")
    assert time.process_time() - started < 5


F = np.zeros((9, 7), dtype=bool)
F[1:8, 1] = F[1, 1:6] = F[4, 1:5] = True


def _scene(points_mm: np.ndarray) -> np.ndarray:
    """A patient with an F of 6 mm strokes, not symmetric in any way: HU at points [..., 3] in mm."""
    column = np.floor((points_mm[..., 0] + 20) / 6).astype(int)  # x to the left of the patient
    row = np.floor((points_mm[..., 1] + 25) / 6).astype(int)
    inside = (column >= 0) & (column < 7) & (row >= 0) & (row < 9)
    on = inside & F[np.clip(row, 0, 8), np.clip(column, 0, 6)]
    return np.where(on, 180, -60) + np.rint(points_mm[..., 0]).astype(int)


@pytest.mark.parametrize("spacing", [(1.5, 0.5), (0.5, 1.25)])
@pytest.mark.parametrize("tilt_deg", [0.0, 18.5])
@pytest.mark.parametrize("turn", range(8))
def test_the_same_tissue_at_the_same_scale_from_every_orientation(tmp_path, turn, tilt_deg, spacing):
    """Slices of one patient, stored in 8 orientations: the ROI shows the F upright, where the margin was drawn."""
    tilt = np.deg2rad(tilt_deg)
    left, back = np.array([1.0, 0, 0]), np.array([0, np.cos(tilt), -np.sin(tilt)])
    right, down = (left, back) if turn < 4 else (back, left)
    right, down = right * (-1 if turn & 1 else 1), down * (-1 if turn & 2 else 1)
    rows, columns = round(90 / spacing[0]), round(90 / spacing[1])  # 90 mm x 90 mm about the origin
    corner = -right * spacing[1] * (columns - 1) / 2 - down * spacing[0] * (rows - 1) / 2
    i, j = np.mgrid[:rows, :columns]
    points = corner + j[..., None] * spacing[1] * right + i[..., None] * spacing[0] * down
    ds = ct_dataset(_scene(points), spacing=spacing, orientation=(*right, *down), position=corner[:2], z=corner[2])
    write(ds, tmp_path / "source" / "0.dcm")
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    around = 3.0 * left - 4.0 * back + 14 * (np.cos(angles)[:, None] * left + 0.7 * np.sin(angles)[:, None] * back)
    write(rtstruct_dataset({1: ("a", [contour([tuple(p) for p in around])])}), tmp_path / "source" / "RS.dcm")
    rois = load_rois(import_source(tmp_path / "source", tmp_path / "rois", ImportOptions(isolate=False)).path)
    s_x, s_y = rois.spacing_mm[0].tolist()
    across_x, across_y = (spacing[1], spacing[0]) if turn < 4 else (spacing[0], spacing[1])
    assert (s_x, s_y) == (across_x, across_y)
    # Where each pixel of the ROI lies in the patient, by the turned picture's own axes.
    height, width = rois.images[0].shape
    extent_x, extent_y = (
        (columns * spacing[1], rows * spacing[0]) if turn < 4 else (rows * spacing[0], columns * spacing[1])
    )
    i, j = np.mgrid[:height, :width]
    x = (rois.origins[0][0].item() + j + 0.5) * s_x - extent_x / 2
    y = (rois.origins[0][1].item() + i + 0.5) * s_y - extent_y / 2
    here = x[..., None] * left + y[..., None] * back
    assert np.array_equal(rois.images[0].numpy(), _scene(here))
    ellipse = ((x - 3) / 14) ** 2 + ((y + 4) / (0.7 * 14)) ** 2
    assert rois.masks is not None
    mask = rois.masks[0].numpy()
    assert mask[ellipse < 0.97].all()
    assert not mask[ellipse > 1.03].any()
    reach = rois.diameters[0].item() * min(s_x, s_y)
    assert reach == pytest.approx(28, abs=2 * max(s_x, s_y))


def test_values_beyond_their_own_bits_are_refused(tmp_path):
    ds = ct_dataset(hu_picture())
    ds.BitsStored, ds.HighBit = 9, 8
    with pytest.raises(DataError, match="must fit 9 bits"):
        read(write(ds, tmp_path / "a.dcm"))


def test_negative_values_without_sign_extension_are_read(tmp_path):
    hu = hu_picture()
    ds = ct_dataset(hu)
    ds.BitsStored, ds.HighBit, ds.RescaleIntercept = 12, 11, 0
    ds.PixelData = (hu.astype(np.int32) & 0xFFF).astype("<u2").tobytes()
    assert np.array_equal(read(write(ds, tmp_path / "a.dcm")).load().hu, hu)


def test_lossy_syntaxes_are_refused_before_decoding(tmp_path):
    ds = ct_dataset(hu_picture())
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x04\0\0\0abcd"
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(DataError, match="with loss"):
        read(write(ds, tmp_path / "lossy.dcm"))


def test_a_ratio_beside_the_word_lossless_is_no_loss(tmp_path):
    ds = ct_dataset(hu_picture())
    ds.LossyImageCompression, ds.LossyImageCompressionRatio = "00", "2.5"
    assert np.array_equal(read(write(ds, tmp_path / "a.dcm")).load().hu, hu_picture())
    ds.LossyImageCompression, ds.LossyImageCompressionRatio = None, "1"
    assert np.array_equal(read(write(ds, tmp_path / "a.dcm")).load().hu, hu_picture())


def _jpeg_2000(stored: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(stored.astype(np.uint16)).save(stream, "JPEG2000", **options)
    return stream.getvalue()


def _jpeg_ls(stored: np.ndarray, most_error: int) -> bytes:
    import jpeg_ls

    return bytes(jpeg_ls.encode_array(stored.astype(np.uint16), lossy_error=most_error))


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEG2000Lossless, lambda a, lossy: _jpeg_2000(a, no_jp2=True, irreversible=lossy)),
        (JPEG2000, lambda a, lossy: _jpeg_2000(a, no_jp2=True, irreversible=lossy)),
        (JPEG2000Lossless, lambda a, lossy: _jpeg_2000(a, no_jp2=False, irreversible=lossy)),
        (JPEGLSLossless, lambda a, lossy: _jpeg_ls(a, 30 if lossy else 0)),
    ],
)
def test_pixels_that_lost_something_under_a_lossless_syntax_are_refused(tmp_path, syntax, encode):
    hu = hu_picture(1, 64, 96)
    for lossy in (False, True):
        ds = ct_dataset(hu)
        ds.PixelRepresentation, ds.LossyImageCompression = 0, "00"
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([encode(hu.astype(np.int32) + 1024, lossy)])
        ds["PixelData"].is_undefined_length = True
        write(ds, tmp_path / "a.dcm")
        if not lossy:
            assert np.array_equal(read(tmp_path / "a.dcm").load().hu, hu)
            continue
        with pytest.raises(DataError, match="with loss though it claims none"):
            read(tmp_path / "a.dcm")


def test_headers_of_codestreams_are_walked_not_searched():
    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">HH", marker, len(content) + 2) + content

    def coding(wavelet: int) -> bytes:
        return bytes([0, 0, 0, 1, 0, 5, 4, 4, 0, wavelet])

    start, size = b"\xff\x4f", segment(0xFF51, bytes(34) + b"\0\1" + bytes(3))
    comment = segment(0xFF64, segment(0xFF52, coding(0)))  # looks like a marker, within another's content
    good = start + size + comment + segment(0xFF52, coding(1))
    assert loss(JPEG2000Lossless, good + b"\xff\x93") == ""
    assert "irreversible" in loss(JPEG2000Lossless, start + size + segment(0xFF52, coding(0)))
    assert "irreversible" in loss(JPEG2000Lossless, good + segment(0xFF53, bytes([0, 0, 5, 4, 4, 0, 0])))
    data = b"\xff\x93" + b"\xff\x52" * 8

    def tile(header: bytes) -> bytes:
        return segment(0xFF90, struct.pack(">HIBB", 0, 12 + len(header) + len(data), 0, 1)) + header + data

    assert loss(JPEG2000Lossless, good + tile(b"") * 2) == ""
    assert "irreversible" in loss(JPEG2000Lossless, good + tile(b"") + tile(segment(0xFF52, coding(0))))
    for broken in (b"", b"\xff", start, good[:-3], start + b"\xff\x52\0\0", b"\0" * 40, b"\0\0\0\x0cjP  " * 9):
        assert loss(JPEG2000Lossless, broken) == ""
    scan = segment(0xFFDA, bytes([1, 1, 0, 2, 0, 0]))
    assert "off by 2" in loss(JPEGLSLossless, b"\xff\xd8" + segment(0xFFE0, b"\xff\xda") + b"\xff" + scan)
    for broken in (b"", b"\xff\xd8", b"\xff\xd8\xff\xda\0\2", b"\xff\xd8" + b"\xff" * 40, scan):
        assert loss(JPEGLSLossless, broken) == ""


DEFLATED = b"1.2.840.10008.1.2.1.99"


def deflated(content: bytes) -> bytes:
    """A file in the deflated transfer syntax."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    meta = element(0x00020002, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + element(0x00020010, b"UI", DEFLATED + b"\0")
    return bytes(128) + b"DICM" + meta + packer.compress(content) + packer.flush()


def content_of(ds: Dataset) -> bytes:
    """What follows the meta information; the image type is the first element."""
    stream = io.BytesIO()
    ds.save_as(stream)
    return stream.getvalue()[stream.getvalue().index(b"\x08\0\x08\0CS") :]


def test_a_deflated_file_gives_the_same_picture(tmp_path):
    (tmp_path / "a.dcm").write_bytes(deflated(content_of(ct_dataset(hu_picture(2)))))
    assert np.array_equal(read(tmp_path / "a.dcm").load().hu, hu_picture(2))
    ds = ct_dataset(hu_picture(2))
    ds.file_meta.TransferSyntaxUID = DEFLATED.decode()  # and as pydicom writes it
    ds.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert np.array_equal(read(tmp_path / "b.dcm").load().hu, hu_picture(2))
    (tmp_path / "c.dcm").write_bytes((tmp_path / "b.dcm").read_bytes()[:-200])
    with pytest.raises(DataError, match="cut short"):
        read(tmp_path / "c.dcm")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(element(0x7FE00010, b"OW", bytes(200 << 20)), "inflate to more than 64 MiB", id="zeros"),
        pytest.param(element(0x7FE00010, b"OW", bytes(60 << 20)), "SOP class", id="just-under"),
        pytest.param(
            b"".join(element(0x00091000 + n, b"SH", b"") for n in range(60000)) * 8, "elements", id="elements"
        ),
        pytest.param(element(0x00081140, b"SQ", ITEM * 7_000_000, 0xFFFFFFFF), "elements and items", id="items"),
    ],
)
def test_a_small_file_that_inflates_to_much_is_refused_in_seconds(tmp_path, content, words):
    (tmp_path / "a.dcm").write_bytes(deflated(content))
    assert (tmp_path / "a.dcm").stat().st_size < 2 << 20
    started = time.process_time()
    with pytest.raises(DataError, match=words):
        read(tmp_path / "a.dcm")
    assert time.process_time() - started < 5


def test_a_missing_codec_is_named_with_its_pip_line(tmp_path, monkeypatch):
    from pydicom.pixels.decoders.base import Decoder

    ds = ct_dataset(hu_picture())
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    path = write(ds, tmp_path / "a.dcm")
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(DataError, match=r"pip install pylibjpeg pylibjpeg-openjpeg"):
        read(path)


def test_an_unspecified_rescale_type_and_a_missing_position_are_notes(tmp_path):
    ds = ct_dataset(hu_picture())
    ds.RescaleType = "US"
    del ds.ImagePositionPatient
    ct = read(write(ds, tmp_path / "a.dcm"))
    assert ct.plane is None
    assert any("US" in note for note in ct.notes)
    assert any("position" in note for note in ct.notes)


def test_rescale_is_found_in_functional_groups_frame_before_shared():
    def group(intercept):
        transformation = Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = 1, intercept
        item = Dataset()
        item.PixelValueTransformationSequence = [transformation]
        return item

    ds = Dataset()
    ds.SharedFunctionalGroupsSequence = [group(-1000)]
    assert rescale(ds, "x") == (1.0, -1000.0)
    ds.PerFrameFunctionalGroupsSequence = [group(-7), group(-8)]
    assert rescale(ds, "x", frame=1) == (1.0, -8.0)
    ds.RescaleSlope, ds.RescaleIntercept = "1.0", -8
    assert rescale(ds, "x", frame=1) == (1.0, -8.0)
    with pytest.raises(DataError, match="slope 1, intercept -8 and slope 1, intercept -7"):
        rescale(ds, "x", frame=0)
    del ds.RescaleSlope  # half a scale says nothing
    assert rescale(ds, "x") == (1.0, -7.0)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 128 + b"DICM", b"\x89PNG\r\n\x1a\n" + b"\0" * 300, b"\0" * 128 + b"DICM" + bytes(range(256)) * 8],
)
def test_what_is_no_dicom_file_is_refused(tmp_path, content):
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(DataError):
        read(tmp_path / "a.dcm")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_give_a_picture_or_a_data_error(tmp_path, seed):
    whole = write(ct_dataset(hu_picture()), tmp_path / "a.dcm").read_bytes()
    rng = np.random.default_rng(seed)
    damaged = bytearray(whole)
    for place in rng.integers(132, 1400, 12):
        damaged[place] = rng.integers(256)
    if seed % 3 == 0:
        del damaged[int(rng.integers(200, len(damaged))) :]
    (tmp_path / "b.dcm").write_bytes(damaged)
    try:
        picture = read(tmp_path / "b.dcm").load()
    except DataError:
        return
    assert np.isfinite(picture.hu).all()


def test_what_is_neither_slice_nor_margin_is_skipped_or_refused_by_name():
    ds = ct_dataset(hu_picture())
    assert why_skipped(ds, "a") is None
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    assert "localizer" in str(why_skipped(ds, "a"))
    for uid, words in (
        ("1.2.840.10008.5.1.4.1.1.88.33", "SR"),
        ("1.2.840.10008.5.1.4.1.1.7", "Secondary Capture"),
        ("1.2.840.10008.5.1.4.1.1.20", "Nuclear Medicine"),
        ("1.2.840.10008.5.1.4.1.1.4", "MR"),
    ):
        ds.SOPClassUID = uid
        assert words in str(why_skipped(ds, "a"))
    ds.SOPClassUID = "1.2.3"
    with pytest.raises(DataError, match="SOP class must be one that DICOM knows"):
        why_skipped(ds, "a")


def test_the_awkward_and_corrupt_files_do_what_is_expected(shared_data):
    expectations = json.loads((shared_data / "expectations.json").read_text())
    base = np.load(shared_data / "awkward" / "base_hu.npy")
    for name, expected in expectations.items():
        path = shared_data / name
        if not name.startswith(("awkward/", "corrupt/")) or path.suffix != ".dcm":
            continue
        started = time.monotonic()
        source = SourceFile(1, path, path.name)
        try:
            dataset = read_dicom(source, pixels=True)
            skipped = why_skipped(dataset, path.name)
            hu = None if skipped else read_ct_slice(source, dataset).load().hu
            outcome = "skipped" if skipped else "read"
        except DataError:
            outcome, hu = "refused", None
        assert time.monotonic() - started < 5, name
        if "same HU" in expected and "unsigned" not in name:
            assert outcome == "read", name
            assert np.array_equal(hu, base), name
        elif expected.startswith("skip"):
            assert outcome == "skipped", name
        elif "fuzz" in name:
            continue  # a picture or a refusal: the loop has asked for it
        elif name.startswith("corrupt/") or "error" in expected or "sagittal" in name:
            assert outcome == "refused", name
        else:
            assert outcome == "read", name


def test_every_lossless_transfer_syntax_of_one_picture_agrees(shared_data):
    pictures = []
    for path in sorted((shared_data / "transfer_syntaxes").glob("CTImage*")):
        source = SourceFile(1, path, path.name)
        if "Process2_4" in path.name or "Process10_12" in path.name:
            with pytest.raises(DataError, match="with loss"):
                read_ct_slice(source, read_dicom(source, pixels=True))
        else:
            pictures.append(hounsfield(read_dicom(source, pixels=True), path.name))
    assert len(pictures) == 5
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
