"""COCO annotations: polygons and run lengths, names of pictures as tools write them, and every mistake by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionaug.data.importer import check_source, import_source
from lesionaug.data.labels import LabelMap
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import MarginRefused, SourceFile
from lesionaug.data.sources.coco import read_coco, run_lengths_to_mask
from lesionaug.data.sources.find import find_source
from lesionaug.data.sources.given import Given, ReadOptions
from lesionaug.data.sources.guard import Guard
from lesionaug.data.store import load_rois
from lesionaug.errors import DataError
from tests.dicom_files import ct_dataset, disc, hu_picture, write

OPTIONS = ImportOptions(hu_offset=-32768, spacing_mm=(0.8, 0.8), isolate=False)
DISC = disc(60, 80, 30.5, 25.5, 7.3)
# Written by pycocotools 2.0 for DISC, and for a picture that begins inside and has a hole.
DISC_TEXT = "k[15e14M2N2O0O2O00000001N101N2N3LS^2"
HOLED_TEXT = (
    "01e9W1oF0000000000000000000000000000ROF::FF::FF::FF::FF::FF::FF::FF::FF::FF::FF::FF::FF::FF::FF::FF::FF::FF::FF::"
    "FF::d00000000000000000000000000000000000000000000000000000000000^b0"
)


def circle(x: float, y: float, radius: float, points: int = 400) -> list[float]:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).ravel().tolist()


def png(path: Path, seed: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((hu_picture(seed).astype(np.int32) + 32768).astype(np.uint16)).save(path)


def image(number: int = 1, name: str = "a.png", **more) -> dict:
    return {"id": number, "file_name": name, "width": 80, "height": 60, "patient_id": "P1", **more}


def annotation(number: int = 1, segmentation=None, **more) -> dict:
    segmentation = [circle(30.5, 25.5, 7.3)] if segmentation is None else segmentation
    return {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": segmentation, **more}


def coco(folder: Path, annotations: list, images: list | None = None, /, **more) -> Path:
    categories = [{"id": 1, "name": "cyst", "supercategory": "lesion"}, {"id": 2, "name": "liver"}]
    content = {"images": images or [image()], "categories": categories, "annotations": annotations} | more
    path = folder / "coco.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(path: Path, root: Path | None = None, **options) -> tuple[list, list]:
    """The margins and findings of a file, read as a worker would."""
    root = root or path.parent
    found = find_source(root, Guard(0), lambda *_: None, "coco")
    keywords = {"hu_offset": -32768, "spacing_mm": (0.8, 0.8)} | options
    given = Given(options=ReadOptions(**keywords), files=found.files)
    margins = list(read_coco(next(file for file in found.files if file.path == path), given))
    return margins, given.findings


def masks(path: Path, **options) -> list[np.ndarray]:
    return [margin.slices[0].mask for margin in read(path, **options)[0]]


def said(path: Path, **options) -> list[str]:
    """What is wrong, after checking that nothing was taken."""
    margins, findings = read(path, **options)
    assert margins == []
    return [str(finding) for finding in findings]


def test_polygons_count_from_the_edge_and_parts_are_united(tmp_path):
    png(tmp_path / "a.png")
    other = disc(60, 80, 40, 30, 6.0)
    path = coco(
        tmp_path,
        [annotation(1), annotation(7, [circle(30.5, 25.5, 7.3), circle(40, 30, 6.0)]), annotation(8, category_id=2)],
    )
    first, second, third = read(path)[0]
    assert np.array_equal(first.slices[0].mask, DISC)
    assert np.array_equal(second.slices[0].mask, DISC | other)
    assert (second.key, second.number, second.name, second.also_named) == ("7", 7, "cyst", ("lesion",))
    assert (third.name, third.also_named, third.patient) == ("liver", (), "p1")
    assert not first.names_its_class
    assert len(read(path, label_map=LabelMap.parse(["lesion=-"]))[0]) == 1


def test_a_polygon_within_another_makes_no_hole_and_is_noted(tmp_path):
    png(tmp_path / "a.png")
    path = coco(tmp_path, [annotation(1, [circle(30.5, 25.5, 7.3), circle(30.5, 25.5, 3.0)])])
    margins, findings = read(path)
    assert np.array_equal(margins[0].slices[0].mask, DISC)
    assert "makes no hole" in str(findings[0])


@pytest.mark.parametrize("counts", ["list", "text"])
def test_run_lengths(counts):
    column_major = DISC.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(column_major)) + 1
    lengths = np.diff([0, *changes, column_major.size]).tolist()
    written = {"size": [60, 80], "counts": lengths if counts == "list" else DISC_TEXT}
    assert np.array_equal(run_lengths_to_mask(written, (60, 80), "x"), DISC)


def test_run_lengths_with_a_hole_and_a_first_pixel_inside():
    expected = np.zeros((60, 80), dtype=bool)
    expected[0, 0] = True
    expected[10:50, 5:70] = True
    expected[20:30, 20:40] = False
    assert np.array_equal(run_lengths_to_mask({"size": [60, 80], "counts": HOLED_TEXT}, (60, 80), "x"), expected)
    assert not run_lengths_to_mask({"size": [60, 80], "counts": [4800]}, (60, 80), "x").any()
    assert run_lengths_to_mask({"size": [60, 80], "counts": [0, 4800]}, (60, 80), "x").all()


@pytest.mark.parametrize(
    "counts",
    [
        [4799],
        [4801],
        [-1, 4801],
        [5000, -200],
        [2**70, 1],
        [1.0, 4799],
        [True, 4799],
        ["1", 4799],
        [0] * 5000 + [4800],
        "",
        "o" * 40,
        "o" * 100_000,
        "P" * 9 + "0",
        DISC_TEXT[:-1],
        DISC_TEXT + "0",
        "é",
        " ",
        None,
        {},
        5,
    ],
)
def test_run_lengths_that_cannot_be(counts):
    with pytest.raises(MarginRefused, match="run lengths"):
        run_lengths_to_mask({"size": [60, 80], "counts": counts}, (60, 80), "x")


@pytest.mark.parametrize("size", [[80, 60], [60], None, "60", [60, "80"], [1e308, 80], [60, float("nan")]])
def test_run_lengths_of_another_size(size):
    with pytest.raises(MarginRefused, match="size of its picture"):
        run_lengths_to_mask({"size": size, "counts": [4800]}, (60, 80), "x")


def test_crowds_are_taken_with_a_note(tmp_path):
    png(tmp_path / "a.png")
    path = coco(tmp_path, [annotation(1, {"size": [60, 80], "counts": DISC_TEXT}, iscrowd=1)])
    margins, findings = read(path)
    assert np.array_equal(margins[0].slices[0].mask, DISC)
    assert "iscrowd" in str(findings[-1])


@pytest.mark.parametrize(
    ("stored", "written"),
    [
        ("a.png", "a.png"),
        ("images/a.png", "a.png"),
        ("images/a.png", "images\\a.png"),
        ("images/a b.png", "images/a%20b.png"),
        ("images/100%25.png", "images/100%25.png"),
        ("export/images/a.png", "images/a.png"),
        ("images/a.png", "D:\\project\\images\\a.png"),
        ("images/a.png", "/home/somebody/images/a.png"),
        ("images/a.png", "../../images/a.png"),
    ],
)
def test_names_of_pictures_as_tools_write_them(tmp_path, stored, written):
    png(tmp_path / stored)
    assert np.array_equal(masks(coco(tmp_path, [annotation()], [image(name=written)]))[0], DISC)


def test_names_of_pictures_that_could_be_others_are_refused(tmp_path):
    for name in ("s/a/1.png", "s/b/1.png", "outside/1.png"):
        png(tmp_path / name)
    (tmp_path / "s" / "link").symlink_to(tmp_path / "outside")
    for written, words in (
        ("1.png", "any of 3 files"),
        ("c/1.png", "not in the source"),
        ("../outside/2.png", "not in the source"),
        (str(tmp_path / "outside" / "3.png"), "not in the source"),
        ("a.png\0", "must be a text"),
        ("%00", "not in the source"),
        (["a"], "must be a text"),
        (None, "must be a text"),
        ("", "must be a text"),
        ("..", "not in the source"),
        ("x" * 5000, "must be a text"),
        ("x" * 900, "not in the source"),
        ("\ud800.png", "not in the source"),
    ):
        assert words in said(coco(tmp_path / "s", [annotation()], [image(name=written)]))[0], written
    path = coco(
        tmp_path / "s", [annotation(), annotation(2, image_id=2)], [image(1, "a/1.png"), image(2, "./a\\1.png")]
    )
    assert all("name the same picture" in line for line in said(path))


def test_paths_do_not_leave_the_source(tmp_path, monkeypatch):
    png(tmp_path / "secret.png")
    (tmp_path / "s").mkdir()
    path = coco(tmp_path / "s", [annotation()], [image(name="../secret.png")])
    assert "not in the source" in said(path)[0]
    monkeypatch.chdir(tmp_path / "s")
    given = Given(options=ReadOptions(hu_offset=-32768, spacing_mm=(1, 1)))
    assert list(read_coco(SourceFile(1, Path("coco.json"), "coco.json"), given)) == []
    assert "not in the source" in str(given.findings[0])


def test_the_patient_is_the_images_or_the_pictures_own(tmp_path):
    write(ct_dataset(hu_picture(2), patient=" Ann "), tmp_path / "a.dcm")
    nobody = {"patient_id": None}
    assert read(coco(tmp_path, [annotation()], [image(name="a.dcm", **nobody)]))[0][0].patient == "ann"
    assert "another one" in said(coco(tmp_path, [annotation()], [image(name="a.dcm", patient_id="Bob")]))[0]
    png(tmp_path / "a.png")
    assert "--pictures" in said(coco(tmp_path, [annotation()], [image(**nobody)]))[0]
    table = tmp_path / "pictures.csv"
    table.write_text("image,patient_id\na.png,Zoe\n")
    assert read(coco(tmp_path, [annotation()], [image(**nobody)]), pictures_table=table)[0][0].patient == "zoe"
    assert read(coco(tmp_path, [annotation()], [image(patient_id=17)]))[0][0].patient == "17"
    assert read(coco(tmp_path, [annotation()], [image(who="Eve")]), patient_by="who")[0][0].patient == "eve"
    assert read(coco(tmp_path, [annotation()], [image(patient_id="E\ud800ve")]))[0][0].patient == "e ve"
    assert "patient_id must be" in said(coco(tmp_path, [annotation()], [image(patient_id=[1])]))[0]


def test_spacing_and_size_of_a_picture(tmp_path):
    png(tmp_path / "a.png")
    path = coco(tmp_path, [annotation()], [image(row_spacing_mm=0.9, col_spacing_mm=0.7)])
    assert load_rois(import_source(path, tmp_path / "rois", OPTIONS).path).spacing_mm.tolist() == [[0.7, 0.9]]
    for more, words in (
        ({"row_spacing_mm": 0.9}, "spacing must be a number"),
        ({"row_spacing_mm": float("nan"), "col_spacing_mm": 1}, "spacing must be a number"),
        ({"row_spacing_mm": "0.9", "col_spacing_mm": 1}, "spacing must be a number"),
        ({"width": 160, "height": 120}, "it has 60 x 80"),
        ({"width": None}, "it has 60 x 80"),
        ({"width": [], "height": {}}, "it has 60 x 80"),
        ({"slice": 0}, "slice column is for volumes"),
        ({"slice": "x"}, "slice must be a whole number"),
    ):
        assert words in said(coco(tmp_path, [annotation()], [image(**more)]))[0], more
    assert "how large its pixels are" in said(coco(tmp_path, [annotation()]), spacing_mm=None)[0]


def test_windowed_pictures_are_refused_or_replaced_by_one_with_hu(tmp_path):
    Image.fromarray(np.zeros((60, 80), dtype=np.uint8)).save(tmp_path / "w.png")
    png(tmp_path / "hu.png")
    path = coco(tmp_path, [annotation()], [image(name="w.png")])
    assert "lost their HU" in said(path)[0]
    table = tmp_path / "pictures.csv"
    table.write_text("image,hu_image\nw.png,hu.png\n")
    assert np.array_equal(masks(path, pictures_table=table)[0], DISC)
    Image.fromarray(np.zeros((30, 40), dtype=np.uint8)).save(tmp_path / "w.png")
    assert "its hu_image 60 x 80" in said(path, pictures_table=table)[0]
    table.write_text("image,hu_image\nw.png,nothing.png\n")
    assert "is not in the source" in said(path, pictures_table=table)[0]


def test_every_mistake_is_named_and_the_others_go_on(tmp_path):
    png(tmp_path / "a.png")
    entries = [
        annotation(1),
        annotation(1),
        annotation(3, image_id=9),
        annotation(4, category_id=9),
        annotation(5, [], bbox=[1, 2, 3, 4]),
        annotation(6, [], keypoints=[1, 2, 3]),
        annotation(7, [[1, 2, 3, 4]]),
        annotation(8, [[1, 2, 3, 4, 5, float("nan")]]),
        annotation(9, [[1, 2, 3, 4, 5, 1e308]]),
        annotation(10, [[1, 2, 3, 4, 5, "6"]]),
        annotation(11, [[1, 2, 3, 4, 5, True]]),
        annotation(12, [[500, 500, 510, 500, 510, 510]]),
        annotation(13, "abc"),
        annotation(14, [[1, 2, 3, 4, 5, 6]] * 1001),
        annotation(15, [[0, 0, 1, 4096] * 1000]),
        annotation("16"),
        5,
        annotation(18, {"size": [60, 80], "counts": [1]}),
        annotation(19, [5]),
        annotation(20, [[[1, 2], [3, 4]], {}]),
        annotation(21, 2**80),
        annotation(22, image_id=[1]),
        annotation(23, [[10**400, 2, 3, 4, 5, 6]]),
        annotation(24),
    ]
    margins, findings = read(coco(tmp_path, entries))
    assert [margin.number for margin in margins] == [1, 24]
    by_number = {finding.number: finding for finding in findings if finding.source is not None}
    assert set(by_number) == set(range(1, 24)) - {2}
    for number, words in (
        (1, "same id"),
        (3, "image_id 9"),
        (4, "category_id 9"),
        (5, "a box"),
        (6, "key points"),
        (7, "three points"),
        (12, "no pixel centre"),
        (13, "list of at most"),
        (14, "list of at most"),
        (15, "up and down"),
        (16, "whole number as its id"),
        (17, "whole number as its id"),
    ):
        assert words in by_number[number].rule, number
    assert all(finding.reason and "a.png" not in finding.reason for finding in by_number.values())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"images": {}}, "must be a list"),
        ({"annotations": "x"}, "must be a list"),
        ({"annotations": []}, "holds no annotations"),
        ({"annotations": [{}] * 200_001}, "at most 200000"),
        ({"categories": 5}, "must be a list"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, more, words):
    with pytest.raises(DataError, match=words):
        read(coco(tmp_path, [annotation()], **more))


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"images": [', b"\xff\xfe\x00", b"[]", b"1e999", b'"' * 9])
def test_broken_json_is_one_error(tmp_path, content):
    path = tmp_path / "coco.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="coco"):
        list(read_coco(SourceFile(1, path, "coco.json"), Given()))
    (found,) = check_source(path, OPTIONS)
    assert found.severity == "error"


def test_images_and_categories_that_are_broken_or_double(tmp_path):
    png(tmp_path / "a.png")
    images = [image(), image(1, "b.png"), 5, {"id": "x"}, {"id": float("nan")}]
    lines = said(coco(tmp_path, [annotation()], images, categories=[None, {"id": 1, "name": 5.5}]))
    assert "3 image entries" in lines[0]
    assert "several image entries have the same id (1)" in lines[1]
    assert "1 category entries" in lines[2]
    assert "image_id 1 is no image" in lines[3]
    lines = said(coco(tmp_path, [annotation()], categories=[{"id": 1, "name": ["x"]}]))
    assert "no category of the file that has a name" in lines[0]


def test_the_real_file_gives_the_true_mask(shared_data, tmp_path):
    folder = shared_data / "one_lesion"
    options = ImportOptions(hu_offset=-32768, spacing_mm=(0.810547, 0.810547), label_map=("metastasis=metastasis",))
    rois = load_rois(import_source(folder / "coco.json", tmp_path / "rois", options).path)
    truth, hu = np.load(folder / "truth_mask_slice1.npy"), np.load(folder / "truth_hu.npy")[1]
    (x, y), (height, width) = rois.origins[0].tolist(), rois.images[0].shape
    assert np.array_equal(rois.masks[0].numpy(), truth[y : y + height, x : x + width])
    assert int(rois.masks[0].sum()) == int(truth.sum())
    assert np.array_equal(rois.images[0].numpy(), hu[y : y + height, x : x + width])
    assert rois.classes == ("metastasis",)
    assert not [f for f in check_source(folder / "coco.json", options) if f.severity == "error"]
