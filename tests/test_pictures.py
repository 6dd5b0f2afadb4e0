"""Pictures by file: the table of what their files lack, and PNG as untrusted input."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lesionaug.data.slices import SourceFile
from lesionaug.data.sources.given import Given, ReadOptions
from lesionaug.data.sources.pictures import PictureFacts, read_pictures_table
from lesionaug.errors import DataError
from tests.dicom_files import ct_dataset, hu_picture, write


def given(folder: Path, **options) -> Given:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [SourceFile(n, path, path.relative_to(folder).as_posix()) for n, path in enumerate(paths, 1)]
    return Given(options=ReadOptions(**options), files=files)


def png(path: Path, hu: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((hu.astype(np.int32) + 32768).astype(np.uint16)).save(path)
    return path


def table(path: Path, *rows: str, head: str = "image,patient_id,row_spacing_mm,col_spacing_mm,hu_offset") -> Path:
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def test_a_table_says_what_a_png_lacks(tmp_path):
    path = png(tmp_path / "src/a/slice.png", hu_picture(1))
    facts = table(tmp_path / "facts.csv", "a/slice.png, Pat-7 ,0.9,0.7,-32768")
    source = given(tmp_path / "src", pictures_table=facts)
    assert source.pictures.facts(path) == PictureFacts("pat-7", (0.7, 0.9), -32768.0)
    picture = source.pictures.get(path, "a/slice.png")
    assert (picture.patient, picture.spacing_mm) == ("pat-7", (0.7, 0.9))
    assert np.array_equal(picture.handle.load().hu, hu_picture(1))
    assert source.pictures.get(path, "x", spacing_mm=(0.7, 0.9), patient="PAT-7").patient == "pat-7"
    with pytest.raises(DataError, match="table of pictures has another one"):
        source.pictures.get(path, "x", patient="P8")
    with pytest.raises(DataError, match=r"table of pictures says 0\.9 x 0\.7 mm .*, the image 1 x 1"):
        source.pictures.get(path, "x", spacing_mm=(1.0, 1.0))
    # What the user says for all pictures gives way to what is said of one.
    source = given(tmp_path / "src", pictures_table=facts, spacing_mm=(2.0, 2.0), hu_offset=-1024.0)
    picture = source.pictures.get(path, "x")
    assert picture.spacing_mm == (0.7, 0.9)
    assert np.array_equal(picture.handle.load().hu, hu_picture(1))


def test_a_picture_goes_by_its_path_the_end_of_it_or_its_place_beside_the_table(tmp_path):
    paths = {
        name: png(tmp_path / "src" / name, hu_picture(n)) for n, name in enumerate(("a/1.png", "b/1.png", "b/2.png"))
    }
    outside = png(tmp_path / "tables/x.png", hu_picture(9))
    rows = ("a/1.png,A", "2.png,B", "x.png,X", f"{paths['b/1.png'].resolve()},C")
    source = given(tmp_path / "src", pictures_table=table(tmp_path / "tables/t.csv", *rows, head="image,patient_id"))
    assert [source.pictures.facts(path).patient for path in (*paths.values(), outside)] == ["a", "c", "b", "x"]
    assert not source.findings
    source = given(tmp_path / "src", pictures_table=table(tmp_path / "t.csv", "1.png,A", head="image,patient_id"))
    with pytest.raises(DataError, match="any of 2 files"):
        source.pictures.facts(outside)
    source = given(
        tmp_path / "src", pictures_table=table(tmp_path / "t.csv", "gone.png,A", "2.png,B", head="image,patient_id")
    )
    assert source.pictures.facts(paths["b/2.png"]).patient == "b"
    (warning,) = source.findings
    assert (warning.severity, warning.where) == ("warning", "--pictures t.csv line 2")


def test_a_dicom_picture_must_agree_with_the_table(tmp_path):
    path = write(ct_dataset(hu_picture(), spacing=(0.9, 0.7), patient="P1"), tmp_path / "src/a.dcm")
    for row, words in (("a.dcm,P1,0.9,0.7,", ""), ("a.dcm,P2,,,", "another one"), ("a.dcm,,0.8,0.8,", "0.8 x 0.8")):
        source = given(tmp_path / "src", pictures_table=table(tmp_path / "t.csv", row))
        if words:
            with pytest.raises(DataError, match=words):
                source.pictures.get(path, "a.dcm")
        else:
            assert source.pictures.get(path, "a.dcm").patient == "p1"


@pytest.mark.parametrize(
    ("head", "row", "words"),
    [
        ("image,note", "a.png,x", "needs image and one of"),
        ("patient_id", "P1", "needs image and one of"),
        ("image,patient_id", ",P1", "line 2: image is empty"),
        ("image,patient_id", "a.png,P1\na.png,P2", "line 3: the image has a row"),
        ("image,row_spacing_mm", "a.png,0.8", "spacing must be"),
        ("image,row_spacing_mm,col_spacing_mm", "a.png,0.8,nan", "spacing must be"),
        ("image,row_spacing_mm,col_spacing_mm", "a.png,0.8,0", "spacing must be"),
        ("image,hu_offset", "a.png,inf", "hu_offset must be"),
        ("image,hu_offset", "a.png,x", "hu_offset must be"),
        ("image,patient_id", "", "no rows"),
        ("image,patient_id", "a.png", "2 cells"),
    ],
)
def test_a_broken_table_of_pictures_has_one_error_with_its_line(tmp_path, head, row, words):
    with pytest.raises(DataError, match=words) as caught:
        read_pictures_table(table(tmp_path / "t.csv", row, head=head))
    assert caught.value.where.startswith("--pictures t.csv")


def test_a_table_of_pictures_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_pictures_table(tmp_path / "t.csv")


# PNG


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, interlaced: int = 0, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def load(folder: Path, content: bytes) -> np.ndarray:
    (folder / "a.png").write_bytes(content)
    source = given(folder, spacing_mm=(1.0, 1.0), hu_offset=-32768.0)
    return source.pictures.get(folder / "a.png", "a.png").handle.load().hu


def test_png_that_holds_hu_is_read_whatever_else_it_holds(tmp_path):
    hu = hu_picture(2)
    information = PngImagePlugin.PngInfo()
    information.add_text("Comment", "Canary^Name", zip=True)
    path = tmp_path / "b.png"
    Image.fromarray((hu.astype(np.int32) + 32768).astype(np.uint16)).save(path, pnginfo=information)
    assert np.array_equal(load(tmp_path, path.read_bytes()), hu)
    # One pixel, interlaced: its only pass has one row.
    pixel = struct.pack(">H", 32768 + 40)
    assert load(tmp_path, raw_png(1, 1, 16, 0, b"\0" + pixel, 1)).tolist() == [[40]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (raw_png(3, 2, 16, 2, (b"\0" + bytes(18)) * 2), "16-bit grey"),  # 16-bit colour
        (raw_png(3, 2, 8, 0, (b"\0" + bytes(3)) * 2), "16-bit grey"),
        (raw_png(3, 2, 16, 4, (b"\0" + bytes(12)) * 2), "16-bit grey"),  # grey and alpha
        (raw_png(100_000, 100_000, 16, 0, b""), "pixels"),  # a bomb by its header
        (raw_png(5000, 1, 16, 0, bytes(10_001)), "4096 pixels"),
        (raw_png(3, 2, 16, 0, b"\0" + bytes(6)), "last row"),
        (raw_png(3, 3, 16, 0, bytes(20), 1), "last row"),
        (raw_png(3, 2, 16, 0, (b"\0" + bytes(6)) * 2)[:-30], "cannot be read"),
        (
            raw_png(3, 2, 16, 0, bytes(14), 0, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20)))),
            "cannot be read",
        ),
        (raw_png(0, 0, 16, 0, b""), "cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (b"\xff\xd8\xff" + bytes(200), "16-bit PNG"),
    ],
)
def test_other_png_and_broken_ones_are_refused(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        load(tmp_path, content)
