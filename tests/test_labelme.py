"""LabelMe files: shapes that are margins and shapes that are not, groups, masks, and every mistake by itself."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionaug.data.importer import check_source, import_source
from lesionaug.data.labels import LabelMap
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import SourceFile
from lesionaug.data.sources.given import Given, ReadOptions
from lesionaug.data.sources.labelme import read_labelme
from lesionaug.data.store import load_rois
from lesionaug.errors import DataError
from tests.dicom_files import ct_dataset, disc, hu_picture, write

DISC = disc(60, 80, 30.5, 25.5, 7.3)


def circle(x: float, y: float, radius: float, points: int = 400) -> list[list[float]]:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).tolist()


def shape(points=None, kind: str | None = "polygon", label="cyst", group=None, **more) -> dict:
    points = circle(30.5, 25.5, 7.3) if points is None else points
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}, **more}


def png_text(mask: np.ndarray, mode: str | None = None) -> str:
    stream = io.BytesIO()
    picture = Image.fromarray(mask)
    (picture.convert(mode) if mode else picture).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def labelme(folder: Path, shapes: list, /, name: str = "a.json", **more) -> Path:
    content = {"version": "5.0.1", "flags": {}, "shapes": shapes, "imagePath": "a.dcm", "imageData": "AAAA"}
    path = folder / name
    path.write_text(json.dumps(content | {"imageHeight": 60, "imageWidth": 80} | more), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    write(ct_dataset(hu_picture(2), patient="Ann"), tmp_path / "a.dcm")
    return tmp_path


def read(path: Path, **options) -> tuple[list, list]:
    files = [SourceFile(n, file, file.name) for n, file in enumerate(sorted(path.parent.iterdir()), 1)]
    given = Given(options=ReadOptions(**options), files=files)
    return list(read_labelme(SourceFile(1, path, path.name), given)), given.findings


def masks(path: Path) -> list[np.ndarray]:
    return [margin.slices[0].mask for margin in read(path)[0]]


def said(path: Path) -> str:
    margins, findings = read(path)
    assert margins == []
    finding = findings[-1]
    assert finding.reason
    assert finding.source is not None
    return str(finding)


def test_polygons_circles_and_masks_are_margins(folder):
    rows, columns = np.flatnonzero(DISC.any(axis=1)), np.flatnonzero(DISC.any(axis=0))
    (top, bottom), (left, right) = (rows[0], rows[-1]), (columns[0], columns[-1])
    part = DISC[top : bottom + 1, left : right + 1]
    place = [[float(left), float(top)], [float(right), float(bottom)]]
    shapes = [
        shape(),
        shape(kind=None),
        shape([[30.5, 25.5], [30.5, 25.5 + 7.3]], "circle"),
        shape(place, "mask", mask=png_text(part)),
        shape(place, "mask", mask=png_text(part.astype(np.uint8) * 255)),
    ]
    path = labelme(folder, shapes)
    margins, findings = read(path)
    assert len(margins) == 5
    assert findings == []
    assert all(np.array_equal(margin.slices[0].mask, DISC) for margin in margins)
    assert [margin.key for margin in margins] == [f"a:{n}" for n in range(1, 6)]
    assert {margin.patient for margin in margins} == {"ann"}


def test_a_group_of_one_label_is_one_lesion(folder):
    second = disc(60, 80, 40, 30, 6.0)
    shapes = [
        shape(group=3),
        shape(circle(40, 30, 6.0), group=3),
        shape(circle(60, 40, 5.0), group=3, label="liver"),
        shape(circle(10, 10, 5.0)),
    ]
    margins, findings = read(labelme(folder, shapes))
    assert [(margin.name, margin.number) for margin in margins] == [("cyst", 1), ("liver", 3), ("cyst", 4)]
    assert np.array_equal(margins[0].slices[0].mask, DISC | second)
    assert findings == []


def test_what_is_no_margin_is_named_and_skipped(folder):
    kinds = ("rectangle", "point", "points", "line", "linestrip")
    path = labelme(folder, [*(shape([[1, 2], [3, 4]], kind) for kind in kinds), shape()])
    margins, findings = read(path)
    assert [margin.number for margin in margins] == [6]
    assert [finding.number for finding in findings] == [1, 2, 3, 4, 5]
    assert all(f"a {kind}, which is no margin" in finding.rule for kind, finding in zip(kinds, findings, strict=True))
    assert {finding.severity for finding in findings} == {"warning"}


def test_flags_and_labels_are_names_for_the_map(folder):
    path = labelme(folder, [shape(flags={"sure": True, "late": False}), shape(label="Liver")])
    (first, second), _ = read(path)
    assert (first.also_named, second.also_named) == (("sure",), ())
    margins, findings = read(path, label_map=LabelMap.parse(["liver=-", "sure=cyst"]))
    assert [margin.name for margin in margins] == ["cyst"]
    assert findings[0].reason == "left out"


def test_names_of_pictures(folder):
    (folder / "images").mkdir()
    (folder / "a.dcm").rename(folder / "images" / "a.dcm")
    (folder / "json").mkdir()
    path = labelme(folder / "json", [shape()], imagePath="..\\images\\a.dcm")
    given = Given()
    (margin,) = read_labelme(SourceFile(1, path, "json/a.json"), given)
    assert np.array_equal(margin.slices[0].mask, DISC)
    for written in ("..\\..\\images\\a.dcm", "b.dcm", None, 5):
        path = labelme(folder / "json", [shape()], imagePath=written)
        with pytest.raises(DataError, match=r"picture"):
            list(read_labelme(SourceFile(1, path, "json/a.json"), given))


def test_a_picture_of_another_size_is_refused(folder):
    with pytest.raises(DataError, match="it has 60 x 80"):
        read(labelme(folder, [shape()], imageHeight=120, imageWidth=160))
    assert len(read(labelme(folder, [shape()], imageHeight=None, imageWidth=None))[0]) == 1


def test_without_a_patient_the_table_of_pictures_is_named(tmp_path):
    Image.fromarray((hu_picture(1).astype(np.int32) + 32768).astype(np.uint16)).save(tmp_path / "a.png")
    path = labelme(tmp_path, [shape()], imagePath="a.png")
    options = ImportOptions(hu_offset=-32768, spacing_mm=(1.0, 1.0), isolate=False)
    (found,) = [str(finding) for finding in check_source(path, options) if finding.severity == "error"]
    assert "--pictures" in found
    (tmp_path / "p.csv").write_text("image,patient_id\na.png,Bob\n")
    options = ImportOptions(hu_offset=-32768, spacing_mm=(1.0, 1.0), isolate=False, pictures=tmp_path / "p.csv")
    assert import_source(path, tmp_path / "rois", options).num_lesions == 1


BROKEN_MASK = np.zeros((4, 3), dtype=np.uint8)
BOMB = np.zeros((3000, 3000), dtype=np.uint8)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (5, "must be an object"),
        (shape(label=""), "label"),
        (shape(label=None), "label"),
        (shape(label=["x"]), "label"),
        (shape(label="x" * 300), "label"),
        (shape(kind="spiral"), "not known"),
        (shape(kind=["polygon"]), "not known"),
        (shape(group=[1]), "group_id"),
        (shape(group=1.5), "group_id"),
        (shape("abc"), "three points"),
        (shape([[1, 2], [3, 4]]), "three points"),
        (shape([[1, 2], [3, 4], [5]]), "three points"),
        (shape([[1, 2], [3, 4], [5, float("nan")]]), "three points"),
        (shape([[1, 2], [3, 4], [5, 1e308]]), "three points"),
        (shape([[1, 2], [3, 4], [5, "6"]]), "three points"),
        (shape([[1, 2], [3, 4], [5, 10**400]]), "three points"),
        (shape([[500, 500], [510, 500], [510, 510]]), "no pixel centre"),
        (shape([[5, 5], [5, 5], [5, 5]]), "no pixel centre"),
        (shape([[30, 30]], "circle"), "its centre"),
        (shape([[30, 30], [float("inf"), 30]], "circle"), "its centre"),
        (shape([[30, 30], [30, 30]], "circle"), "no pixel centre"),
        (shape([[0, 0], [2, 3]], "mask"), "base64"),
        (shape([[0, 0], [2, 3]], "mask", mask="%%%"), "broken"),
        (shape([[0, 0], [2, 3]], "mask", mask="A"), "base64"),
        (shape([[0, 0], [2, 3]], "mask", mask=5), "base64"),
        (shape([[0, 0], [3, 3]], "mask", mask=png_text(BROKEN_MASK)), "base64"),
        (shape([[0, 0], [2, 3]], "mask", mask=png_text(BOMB)), "base64"),
        (shape([[0, 0], [2, 3]], "mask", mask=png_text(BROKEN_MASK, "RGB")), "base64"),
        (shape([[0, 0], [2, 3]], "mask", mask=png_text(BROKEN_MASK)), "no pixel centre"),
        (shape([[-1, 0], [1, 3]], "mask", mask=png_text(BROKEN_MASK)), "base64"),
        (shape([[78, 0], [80, 3]], "mask", mask=png_text(BROKEN_MASK)), "base64"),
        (shape([[2, 3], [0, 0]], "mask", mask=png_text(BROKEN_MASK)), "base64"),
        (shape([[0, 0], [2, float("nan")]], "mask", mask=png_text(BROKEN_MASK)), "base64"),
        (shape({}, "mask", mask=png_text(BROKEN_MASK)), "base64"),
    ],
)
def test_every_mistake_is_named(folder, entry, words):
    assert words in said(labelme(folder, [entry]))
    margins, _ = read(labelme(folder, [entry, shape()]))
    assert [margin.number for margin in margins] == [2]


@pytest.mark.parametrize("shapes", [{}, 5, "x", [{}] * 200_001])
def test_files_that_cannot_be_read(folder, shapes):
    with pytest.raises(DataError, match="must be a list"):
        read(labelme(folder, shapes))
    path = folder / "b.json"
    path.write_bytes(b'{"shapes": ' + b"[" * 100_000)
    with pytest.raises(DataError, match="nested"):
        read(path)


def test_the_real_file_gives_the_true_mask(shared_data, tmp_path):
    """Its picture is a windowed copy; the table names the one with HU."""
    folder = shared_data / "one_lesion"
    options = ImportOptions(hu_offset=-32768, spacing_mm=(0.810547, 0.810547), isolate=False)
    found = [str(f) for f in check_source(folder / "labelme.json", options) if f.severity == "error"]
    assert "lost their HU" in found[0]
    table = tmp_path / "pictures.csv"
    table.write_text("image,patient_id,hu_image\nwindowed_W400_L40.png,FIXTURE-001,000001_01_01_002.png\n")
    options = ImportOptions(
        hu_offset=-32768, spacing_mm=(0.810547, 0.810547), isolate=False, pictures=table, label_map=("*=metastasis",)
    )
    rois = load_rois(import_source(folder / "labelme.json", tmp_path / "rois", options).path)
    truth, hu = np.load(folder / "truth_mask_slice1.npy"), np.load(folder / "truth_hu.npy")[1]
    (x, y), (height, width) = rois.origins[0].tolist(), rois.images[0].shape
    assert np.array_equal(rois.masks[0].numpy(), truth[y : y + height, x : x + width])
    assert int(rois.masks[0].sum()) == int(truth.sum())
    assert np.array_equal(rois.images[0].numpy(), hu[y : y + height, x : x + width])
