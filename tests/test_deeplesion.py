"""DeepLesion's table: ellipses out of RECIST diameters, NIH's coordinates, LesaNet's classes, and every mistake."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionaug.data.importer import check_source, import_source
from lesionaug.data.labels import LabelMap, LesionTerms
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import MarginRefused, SourceFile
from lesionaug.data.sources.deeplesion import NUM_LESIONS, read_deeplesion, recist_ellipse
from lesionaug.data.sources.given import Given, ReadOptions
from lesionaug.data.store import load_rois
from lesionaug.errors import ConfigError, DataError
from tests.dicom_files import HEIGHT, WIDTH, hu_picture

# A lesion 20 pixels long and 12 wide, turned by 30 degrees, in coordinates that count from 1.
CENTRE, LONG, SHORT, ANGLE = (40.0, 30.0), 20.0, 12.0, math.radians(30)
NAME = "000016_01_01_008.png"


def ends(x: float = CENTRE[0], y: float = CENTRE[1], shift: float = 1.0) -> list[float]:
    along, across = np.array([math.cos(ANGLE), math.sin(ANGLE)]), np.array([-math.sin(ANGLE), math.cos(ANGLE)])
    middle = np.array([x, y]) + shift
    points = [middle - along * LONG / 2, middle + along * LONG / 2, middle - across * 6, middle + across * 6]
    return np.concatenate(points).tolist()


def row(name: str = NAME, patient="16", box: str | None = None, coordinates: str | None = None, **more) -> dict:
    numbers = ends()
    x, y = numbers[0::2], numbers[1::2]
    nih = [min(x) - 5, min(y) - 5, max(x) + 5, max(y) + 5]
    return {
        "File_name": name,
        "Patient_index": patient,
        "Measurement_coordinates": coordinates or ", ".join(f"{n:.4f}" for n in numbers),
        "Bounding_boxes": box or ", ".join(f"{n:.4f}" for n in nih),
        "Lesion_diameters_Pixel_": "20, 12",
        "Coarse_lesion_type": "4",
        "Possibly_noisy": "0",
        "Spacing_mm_px_": "0.8, 0.8, 5",
    } | more


def table(folder: Path, *rows: dict, name: str = "DL_info.csv") -> Path:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def picture(path: Path, seed: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((hu_picture(seed).astype(np.int32) + 32768).astype(np.uint16)).save(path)


def read(path: Path, **options) -> tuple[list, list]:
    given = Given(options=ReadOptions(**options))
    return list(read_deeplesion(SourceFile(1, path, path.name), given)), given.findings


def ellipse_mask(x: float = CENTRE[0], y: float = CENTRE[1]) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    u = (columns - x) * math.cos(ANGLE) + (rows - y) * math.sin(ANGLE)
    v = -(columns - x) * math.sin(ANGLE) + (rows - y) * math.cos(ANGLE)
    return (u / (LONG / 2)) ** 2 + (v / (SHORT / 2)) ** 2 < 1


def test_the_ellipse_of_nihs_coordinates_counts_from_one(tmp_path):
    picture(tmp_path / "Images_png" / "000016_01_01" / "008.png")
    margins, findings = read(table(tmp_path, row()))
    (margin,) = margins
    assert int((margin.slices[0].mask ^ ellipse_mask()).sum()) <= 2  # the outline has 72 corners
    assert (margin.patient, margin.name, margin.also_named, margin.number) == ("dl-16", "liver", (NAME,), 2)
    assert not margin.names_its_class
    loaded = margin.slices[0].slice.load()
    assert np.array_equal(loaded.hu, hu_picture(1))
    assert loaded.spacing_mm == (0.8, 0.8)
    (note,) = findings
    assert "approximation" in note.rule
    assert "count from 1" in note.rule
    margins, findings = read(table(tmp_path, row(box="1, 2, 3, 4")))
    assert int((margins[0].slices[0].mask ^ ellipse_mask(41, 31)).sum()) <= 2
    assert "count from 0" in findings[0].rule


def test_the_ellipse_reaches_as_far_as_the_diameters_say():
    # The short diameter stands off the middle of the long one and to one side of it, as in real rows.
    outline = recist_ellipse(np.array([0.0, 0, 20, 0, 5, -2, 5, 6]), "x")
    assert outline.min(axis=0) == pytest.approx([0, -2], abs=0.01)
    assert outline.max(axis=0) == pytest.approx([20, 6], abs=0.01)
    for broken in ([0, 0, 20, 0, 0, 0, 20, 0], [0, 0, 5, 0, 2, -9, 2, 9], [0] * 8, [3, 3, 3, 3, 1, 1, 2, 2]):
        with pytest.raises(MarginRefused, match="across it"):
            recist_ellipse(np.array(broken, dtype=float), "x")


@pytest.mark.parametrize("place", [f"Images_png/{NAME}", "000016_01_01/008.png", NAME])
def test_places_of_pictures(tmp_path, place):
    picture(tmp_path / place)
    assert len(read(table(tmp_path, row()))[0]) == 1


def test_the_offset_may_be_another_one(tmp_path):
    picture(tmp_path / NAME)
    path = table(tmp_path, row())
    assert np.array_equal(read(path, hu_offset=-32769)[0][0].slices[0].slice.load().hu, hu_picture(1) - 1)
    (tmp_path / "p.csv").write_text(f"image,hu_offset\n{NAME},-32770\n")
    given = Given(options=ReadOptions(pictures_table=tmp_path / "p.csv"), files=[SourceFile(1, tmp_path / NAME, NAME)])
    (margin,) = read_deeplesion(SourceFile(2, path, path.name), given)
    assert np.array_equal(margin.slices[0].slice.load().hu, hu_picture(1) - 2)


def test_noisy_rows_absent_pictures_and_types_left_out_are_counted(tmp_path):
    picture(tmp_path / NAME)
    rows = [
        row(Possibly_noisy="1"),
        row(),
        row("000017_01_01_001.png"),
        row("000018_01_01_001.png"),
        row(Coarse_lesion_type="5"),
        row(Coarse_lesion_type="-1"),
    ]
    margins, findings = read(table(tmp_path, *rows), label_map=LabelMap.parse(["liver=metastasis", "*=-"]))
    assert [margin.number for margin in margins] == [3]
    said = [str(finding) for finding in findings]
    assert "1 rows marked Possibly_noisy, so they are skipped" in said[2]
    assert "2 rows left out as the label map says" in said[1]
    assert "2 rows without their picture here" in said[3]


def test_every_mistake_is_named_and_the_others_go_on(tmp_path):
    picture(tmp_path / NAME)
    rows = [
        row("../../etc/passwd"),
        row("a_b_c_d.png"),
        row(patient="Ann"),
        row(patient="-1"),
        row(coordinates="1, 2, 3"),
        row(coordinates="1, 2, 3, 4, 5, 6, 7, nan"),
        row(coordinates="1, 2, 3, 4, 5, 6, 7, 1e308"),
        row(coordinates="1, 2, 3, 4, 5, 6, 7, 8, 9"),
        row(coordinates="," * 100_000),
        row(coordinates="9000, 9000, 9020, 9000, 9010, 8995, 9010, 9005"),
        row(coordinates="1, 2, 3, 4, 1, 2, 3, 4"),
        row(Spacing_mm_px_="0, 0, 5"),
        row(Spacing_mm_px_="0.8"),
        row(Coarse_lesion_type="9"),
        row(Coarse_lesion_type="x"),
        row(),
    ]
    margins, findings = read(table(tmp_path, *rows))
    assert [margin.number for margin in margins] == [17]
    errors = {finding.number: finding for finding in findings if finding.severity == "error"}
    assert sorted(errors) == list(range(2, 17))
    assert all(finding.reason and finding.where == f"DL_info.csv line {n}" for n, finding in errors.items())
    assert "in digits" in errors[2].rule
    assert "no pixel centre" in errors[11].rule
    with pytest.raises(DataError, match="lacks the columns patient_index"):
        read(table(tmp_path, {"File_name": NAME, "Measurement_coordinates": "1"}))
    (tmp_path / "DL_info.csv").write_text("File_name,Patient_index,Measurement_coordinates,Spacing_mm_px_\n")
    with pytest.raises(DataError, match="holds no rows"):
        read(tmp_path / "DL_info.csv")


def test_an_index_is_needed_where_labels_go_by_it(tmp_path):
    picture(tmp_path / NAME)
    assert read(table(tmp_path, row()))[0][0].key == "2"  # the line, for the row in NIH's table is not known
    with pytest.raises(DataError, match=f"{NUM_LESIONS} rows, and this one has 1"):
        read(table(tmp_path, row()), only_keys=frozenset({"0"}))
    path = table(tmp_path, row(index="7"), row(index="8"), row(index="8"), row(index="x"))
    margins, findings = read(path, only_keys=frozenset({"7", "9"}))
    assert [margin.key for margin in margins] == ["7"]
    assert [finding.reason for finding in findings if finding.severity == "error"] == [
        "index given twice",
        "broken index",
    ]
    assert "1 rows without a class in the label file" in findings[-1].rule


def test_the_whole_table_goes_by_its_rows_and_stays_within_bounds(tmp_path):
    one = row()
    rows = [one | {"File_name": f"{n // 8:06d}_01_01_{n % 300:03d}.png"} for n in range(NUM_LESIONS)]
    path = table(tmp_path, *rows)
    picture(tmp_path / rows[-1]["File_name"])
    margins, findings = read(path, only_keys=frozenset({"5", str(NUM_LESIONS - 1)}))
    assert [margin.key for margin in margins] == [str(NUM_LESIONS - 1)]
    assert len(findings) == 3


def lesanet(path: Path, lesions: dict[int, tuple[list[int], list[int]]]) -> Path:
    """A file in LesaNet's form; terms 0 .. 4."""
    content: dict = {"term_list": ["liver", "cyst", "hemangioma", "metastasis", "kidney"]}
    for split, of_split in (("train", lesions), ("val", {}), ("test", {})):
        content[f"{split}_lesion_idxs"] = list(of_split)
        content[f"{split}_relevant_labels"] = [both[0] for both in of_split.values()]
        content[f"{split}_uncertain_labels"] = [both[1] for both in of_split.values()]
    path.write_text(json.dumps(content))
    return path


LESIONS = {
    1: ([0, 1], []),
    2: ([0, 3], [4]),
    3: ([0, 1, 3], []),  # two classes
    4: ([0, 1], [3]),  # the report also says it may be another
    5: ([1, 4], []),  # not the liver
    6: ([0], [1]),  # only uncertain
    7: ([0, 2], [2]),
}


def test_lesanets_terms_give_classes(tmp_path):
    terms = LesionTerms.read(lesanet(tmp_path / "l.json", LESIONS), LabelMap(()))
    assert terms.labels == {"1": "cyst", "2": "metastasis", "7": "hemangioma"}
    assert terms.num_ambiguous == 2
    own = LabelMap.parse(["cyst=benign", "hemangioma=benign", "metastasis=malignant", "*=-"])
    assert LesionTerms.read(tmp_path / "l.json", own).labels == {"1": "benign", "2": "malignant", "7": "benign"}
    two = LabelMap.parse(["cyst=cyst", "metastasis=-"])
    assert LesionTerms.read(tmp_path / "l.json", two).labels == {"1": "cyst", "4": "cyst"}
    for rules, words in ((["cyts=cyst"], "fits no term"), (["cyst=cyst", "*=other"], "fits every term")):
        with pytest.raises(ConfigError, match=words):
            LesionTerms.read(tmp_path / "l.json", LabelMap.parse(rules))


def test_an_import_with_lesanets_labels(tmp_path):
    for n in (1, 2, 5):
        picture(tmp_path / "s" / f"00000{n}_01_01_001.png", seed=n)
    rows = [row(f"00000{n}_01_01_001.png", patient=str(n), index=str(n)) for n in (1, 2, 5)]
    path = table(tmp_path / "s", *rows)
    labels = lesanet(tmp_path / "s" / "l.json", LESIONS)
    report = import_source(tmp_path / "s", tmp_path / "rois", ImportOptions(labels=labels, isolate=False))
    assert report.class_counts == {"cyst": (1, 1), "metastasis": (1, 1)}
    assert any("3 lesions have one class alone, 2 of them are here" in str(f) for f in report.findings)
    options = ImportOptions(labels=labels, label_map=("cyst=benign",), isolate=False)
    assert import_source(path, tmp_path / "benign", options).class_counts == {"benign": (1, 1)}
    picture(tmp_path / "other" / "a.png")
    (tmp_path / "other" / "t.csv").write_text('image,patient_id,polygon_xy\na.png,1,"1,1 9,1 9,9"\n')
    with pytest.raises(ConfigError, match="for DeepLesion"):
        check_source(tmp_path / "other", ImportOptions(labels=labels, isolate=False))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b"5",
        b"{}",
        b"[5]",
        b'[{"lesion_idx": 1}]',
        b'[{"lesion_idx": true, "expanded_terms": []}]',
        b'[{"lesion_idx": -1, "expanded_terms": ["liver"]}]',
        b'[{"lesion_idx": 1, "expanded_terms": [5]}]',
        b'{"term_list": [1]}',
        b'{"term_list": ["a"], "train_lesion_idxs": [1], "train_relevant_labels": [], "train_uncertain_labels": []}',
        b'[{"lesion_idx": 1, "expanded_terms": ["liver", "cyst"]}, {"lesion_idx": 1, "expanded_terms": []}]',
    ],
)
def test_broken_files_of_terms(tmp_path, content):
    path = tmp_path / "l.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"l\.json"):
        LesionTerms.read(path, LabelMap(()))


def test_broken_lists_of_terms(tmp_path):
    for relevant in ([5], [-1], ["x"], [True], "x", None):
        with pytest.raises(DataError, match="LesaNet"):
            LesionTerms.read(lesanet(tmp_path / "l.json", {1: (relevant, [])}), LabelMap(()))
    with pytest.raises(DataError, match="no such file"):
        LesionTerms.read(tmp_path / "nothing.json", LabelMap(()))


def test_the_real_terms_give_the_counts_that_were_published(shared_data):
    """Relevant terms alone name 92, 42 and 101 lesions; for one of each the report hedges, so it is left out."""
    path = shared_data / "deeplesion" / "text_mined_labels_171_and_split.json"
    content = json.loads(path.read_text())
    names = content["term_list"]
    sure: Counter[str] = Counter()
    for split in ("train", "val", "test"):
        for numbers in content[f"{split}_relevant_labels"]:
            terms = {names[n] for n in numbers}
            of_class = terms & {"cyst", "hemangioma", "metastasis"}
            if "liver" in terms and len(of_class) == 1:
                sure[of_class.pop()] += 1
    assert sure == {"cyst": 92, "hemangioma": 42, "metastasis": 101}
    terms = LesionTerms.read(path, LabelMap(()))
    assert Counter(terms.labels.values()) == {"cyst": 91, "hemangioma": 41, "metastasis": 100}
    by_hand = LesionTerms.read(path.parent / "hand_labeled_test_set.json", LabelMap(()))
    assert Counter(by_hand.labels.values()) == {"cyst": 6, "hemangioma": 4}


def test_lesanets_index_is_the_row_from_zero(shared_data):
    """The rows that NIH's table places in the liver are mostly those that LesaNet does, only with this count."""
    folder = shared_data / "deeplesion"
    by_hand = {
        e["lesion_idx"]: e["expanded_terms"] for e in json.loads((folder / "hand_labeled_test_set.json").read_text())
    }
    with (folder / "DeepLesion_Liver_test_set.csv").open(encoding="utf-8") as stream:
        indices = [int(cells["index"]) for cells in csv.DictReader(stream)]
    agreeing = {}
    for shift in (-1, 0, 1):
        known = [by_hand[index + shift] for index in indices if index + shift in by_hand]
        agreeing[shift] = sum("liver" in terms for terms in known) / len(known)
    assert agreeing[0] > 0.95
    assert max(agreeing[-1], agreeing[1]) < 0.5


def test_real_rows_are_nihs_and_count_from_one(shared_data, tmp_path):
    for name in ("DL_info_sample158.csv", "DeepLesion_Liver_test_set.csv"):
        with (shared_data / "deeplesion" / name).open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        small = table(tmp_path, *rows[:20])
        for cells in rows[:20]:
            path = tmp_path / cells["File_name"]
            Image.fromarray(np.full((512, 512), 32768, dtype=np.uint16)).save(path)
        margins, findings = read(small)
        assert len(margins) == 20
        assert "count from 1, as NIH's do" in findings[0].rule
        for margin, cells in zip(margins, rows, strict=False):
            numbers = [float(n) for n in cells["Measurement_coordinates"].split(",")]
            middle = np.mean(np.array(numbers[:4]).reshape(2, 2), axis=0) - 1
            mask = margin.slices[0].mask
            assert mask[round(middle[1]), round(middle[0])]
            long, short = (float(n) for n in cells["Lesion_diameters_Pixel_"].split(","))
            assert int(mask.sum()) == pytest.approx(math.pi / 4 * long * short, rel=0.1, abs=12)


def test_the_real_file_gives_the_true_mask(shared_data, tmp_path):
    folder = shared_data / "one_lesion"
    options = ImportOptions(label_map=("liver=metastasis",))
    rois = load_rois(import_source(folder / "png" / "DL_info.csv", tmp_path / "rois", options).path)
    truth, hu = np.load(folder / "truth_mask_slice1.npy"), np.load(folder / "truth_hu.npy")[1]
    (x, y), (height, width) = rois.origins[0].tolist(), rois.images[0].shape
    assert np.array_equal(rois.masks[0].numpy(), truth[y : y + height, x : x + width])
    assert int(rois.masks[0].sum()) == int(truth.sum())
    assert np.array_equal(rois.images[0].numpy(), hu[y : y + height, x : x + width])
