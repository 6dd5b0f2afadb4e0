"""Slicer's closed curves lie on the one series beside them, are drawn exactly, or are refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lesionaug.data.importer import check_source, import_source
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import Finding, Margin, SourceFile
from lesionaug.data.sources import slicer
from lesionaug.data.sources.dicom_ct import CtSlice, read_ct_slice
from lesionaug.data.sources.dicom_file import read_dicom
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.slicer import read_slicer
from lesionaug.errors import DataError
from tests.dicom_files import HEIGHT, WIDTH, circle_mm, ct_dataset, disc, hu_picture, series
from tests.test_rtstruct import errors

CIRCLE = circle_mm(30, 25, 9.3, 5.0, points=2000)


def curve(points=CIRCLE, label: str = "met", **changed) -> dict:
    positions = [list(map(float, point)) for point in points]
    markup = {
        "type": "ClosedCurve",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": [
            {"id": str(n), "label": f"{label}-{n}", "position": position, "positionStatus": "defined"}
            for n, position in enumerate(positions, 1)
        ],
    }
    return {key: value for key, value in {**markup, **changed}.items() if value is not ...}


def slices_below(root: Path) -> list[CtSlice]:
    found = []
    for number, path in enumerate(sorted(root.rglob("*.dcm")), 1):
        source = SourceFile(number, path, path.relative_to(root).as_posix())
        found.append(read_ct_slice(source, read_dicom(source, pixels=True)))
    return found


def margins(root: Path, *markups, name: str = "m.mrk.json") -> tuple[list[Margin], list[Finding]]:
    (root / name).write_text(json.dumps({"@schema": "...markups-schema-v1.0.3.json#", "markups": list(markups)}))
    findings: list[Finding] = []
    return list(read_slicer(SourceFile(9, root / name, name), Given(slices_below(root), findings))), findings


@pytest.mark.parametrize("system", ["LPS", "RAS", "0", "1", 0, 1, "ras"])
@pytest.mark.parametrize("units", ["mm", ["mm", "UCUM", "millimeter"], ...])
def test_a_curve_lies_where_a_structure_set_has_it(tmp_path, system, units):
    series(tmp_path)
    sign = -1 if system in ("RAS", "ras", "0", 0) else 1
    points = [(sign * x, sign * y, z) for x, y, z in CIRCLE]
    (margin,), findings = margins(tmp_path, curve(points, coordinateSystem=system, coordinateUnits=units))
    (entry,) = margin.slices
    assert entry.slice.source.name == "1.dcm"
    assert np.array_equal(entry.mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))
    assert (margin.name, margin.also_named, margin.patient, findings) == ("met", ("m",), "pat-1", [])


def test_without_a_coordinate_system_it_is_slicer_s_own_default_with_a_warning(tmp_path):
    series(tmp_path)
    (margin,), findings = margins(tmp_path, curve(coordinateSystem=...))
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))
    assert [finding.severity for finding in findings] == ["warning"]
    assert "LPS" in findings[0].rule


def test_names(tmp_path):
    series(tmp_path)
    mixed = curve()
    mixed["controlPoints"][0]["label"] = "other-1"
    bare = curve()
    for point in bare["controlPoints"]:
        del point["label"]
    found, _ = margins(tmp_path, curve(name="liver met"), curve(label="cyst 2"), mixed, bare, name="Case7.mrk.json")
    assert [(margin.name, margin.also_named) for margin in found] == [
        ("liver met", ("met", "Case7")),
        ("cyst 2", ("Case7",)),
        ("Case7", ()),
        ("Case7", ()),
    ]
    assert [margin.key for margin in found] == ["1", "2", "3", "4"]


def test_other_markups_are_named_and_passed_over(tmp_path):
    series(tmp_path)
    others = [curve(type=kind) for kind in ("Fiducial", "Line", "Curve", "Plane", "ROI", "ROI")]
    (margin,), findings = margins(tmp_path, *others, curve())
    assert margin.number == 7
    assert [str(finding) for finding in findings] == [
        "m.mrk.json: only closed curves are margins; passed over: 1 Curve, 1 Fiducial, 1 Line, 1 Plane, 2 ROI."
    ]
    found, findings = margins(tmp_path)
    assert found == []
    assert [finding.severity for finding in findings] == ["info"]


@pytest.mark.parametrize(("points", "warned"), [(6, True), (12, True), (60, False)])
def test_control_points_far_apart_are_worth_a_warning(tmp_path, points, warned):
    series(tmp_path)
    drawn = circle_mm(30, 25, 15, 5.0, points=points)
    (margin,), findings = margins(tmp_path, curve(drawn))
    assert len(margin.slices) == 1
    away = 15 * 0.8 * (1 - math.cos(math.pi / points))  # of the circle from the polygon
    assert (away > 0.4) == warned
    assert [f"by about {away:.1f} mm" in finding.rule for finding in findings] == [True] * warned


def test_points_without_a_position_are_left_out_with_a_warning(tmp_path):
    series(tmp_path)
    markup = curve()
    for status in ("undefined", "preview", "missing"):
        markup["controlPoints"].insert(5, {"label": "met-9999", "position": [0, 0, 0], "positionStatus": status})
    (margin,), findings = margins(tmp_path, markup)
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))
    assert "3 of its 2003 control points" in findings[0].rule


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"coordinateSystem": "IJK"}, "LPS or RAS"),
        ({"coordinateSystem": ["RAS"]}, "LPS or RAS"),
        ({"coordinateUnits": "um"}, "in mm"),
        ({"coordinateUnits": ["um", "UCUM", "micrometer"]}, "in mm"),
        ({"coordinateUnits": 3}, "in mm"),
        ({"coordinateUnits": []}, "in mm"),
        ({"controlPoints": ...}, "three control points"),
        ({"controlPoints": {}}, "must be a list"),
        ({"controlPoints": [[1, 2, 3]] * 9}, "must be objects"),
        ({"controlPoints": [{}] * 9}, "three finite numbers"),
        ({"controlPoints": [{"position": [1, 2, 3], "positionStatus": ["defined"]}] * 9}, "three control points"),
        ({"controlPoints": [{"position": position} for position in ([1, 2, 5], [4, 5, 5])]}, "three control points"),
        *(
            ({"controlPoints": [*curve()["controlPoints"][:9], {"position": position}]}, words)
            for position, words in (
                ([math.nan, 2, 5], "finite numbers"),
                ([math.inf, 2, 5], "finite numbers"),
                ([1e9, 2, 5], "finite numbers"),
                ([10**400, 2, 5], "finite numbers"),
                ([True, 2, 5], "finite numbers"),
                (["1", 2, 5], "finite numbers"),
                ([1, 2], "finite numbers"),
                (None, "finite numbers"),
                ([20, 30, 9], "not parallel"),
            )
        ),
        ({"controlPoints": [{"position": [1 + n, 2, 5]} for n in range(9)]}, "no pixel centre"),
    ],
)
def test_a_broken_curve_is_refused_and_the_others_go_on(tmp_path, changed, words):
    series(tmp_path)
    found, findings = margins(tmp_path, curve(name="bad", **changed), curve(name="good"))
    assert [margin.name for margin in found] == ["good"]
    (error,) = errors(findings)
    assert words in error
    assert "m.mrk.json markup 1 'bad'" in error


@pytest.mark.parametrize(
    "written",
    ["", "{", "[]", "3", "null", '{"markups": 3}', '{"markups": {}}', "[" * 100_000, '{"markups": ' + "[" * 100_000],
)
def test_a_broken_file_is_refused_by_name_also_in_a_whole_import(tmp_path, written):
    series(tmp_path)
    path = tmp_path / "a.mrk.json"
    path.write_text(written)
    findings: list[Finding] = []
    source = SourceFile(9, path, path.name)
    if written in ("[]", "3", "null") or not written.startswith('{"markups": {'):
        with pytest.raises(DataError):
            list(read_slicer(source, Given((), findings)))
    assert any("a.mrk.json" in text for text in errors(check_source(tmp_path, ImportOptions(isolate=False))))


def test_entries_that_are_no_objects_and_files_too_large_or_too_full(tmp_path, monkeypatch):
    series(tmp_path)
    found, findings = margins(tmp_path, 3, None, [], {}, {"type": 3}, {"type": {}}, curve())
    assert len(found) == 1
    assert "3 (no object), 1 (no type), 1 3, 1 a dict of 0" in findings[0].rule
    with pytest.raises(DataError, match="1000 curves"):
        margins(tmp_path, *[{"type": "ClosedCurve"}] * 1001)
    monkeypatch.setattr(slicer, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="at most"):
        margins(tmp_path, curve())


def test_a_wild_curve_is_refused(tmp_path):
    series(tmp_path)
    found, findings = margins(tmp_path, curve([(20 + 5 * (n % 2), 30 + 9e4 * (n % 3), 5) for n in range(90)]))
    assert found == []
    assert "a length of" in errors(findings)[0]


def test_a_curve_of_a_slice_that_is_not_here_is_counted(tmp_path):
    series(tmp_path)
    (margin,), _ = margins(tmp_path, curve(circle_mm(30, 25, 9, 55.0)))
    assert (margin.slices, margin.parts_missing) == ([], 1)


def two_patients(root: Path) -> None:
    for name in ("ann", "bob"):
        for ds, path in zip(series(root / name, patient=name), sorted((root / name).glob("*.dcm")), strict=True):
            ds.SeriesInstanceUID = ds.FrameOfReferenceUID = f"1.2.{ord(name[0])}"
            ds.PixelData = ct_dataset(hu_picture(ord(name[0]))).PixelData
            ds.save_as(path)


def test_the_series_is_the_one_in_the_folder_then_below_it_then_anywhere(tmp_path):
    two_patients(tmp_path)
    (tmp_path / "bob" / "curves").mkdir()
    (tmp_path / "case" / "ct").mkdir(parents=True)
    for name in ("bob/m.mrk.json", "case/m.mrk.json"):
        (tmp_path / name).write_text(json.dumps({"markups": [curve()]}))
    (margin,), _ = margins(tmp_path, curve(), name="bob/m.mrk.json")
    assert (margin.patient, margin.slices[0].slice.source.name) == ("bob", "bob/1.dcm")
    for name in ("m.mrk.json", "bob/curves/m.mrk.json"):
        with pytest.raises(DataError, match=r"2 CT series of 2 patients.*folder of its own series"):
            margins(tmp_path, curve(), name=name)
    (tmp_path / "ann").rename(tmp_path / "case" / "ct" / "ann")
    (margin,), _ = margins(tmp_path, curve(), name="case/m.mrk.json")
    assert margin.patient == "ann"
    for path in (tmp_path / "case").rglob("*.dcm"):
        path.unlink()
    (margin,), _ = margins(tmp_path, curve(), name="case/m.mrk.json")
    assert margin.patient == "bob"
    for path in tmp_path.rglob("*.dcm"):
        path.unlink()
    with pytest.raises(DataError, match="no CT slice"):
        margins(tmp_path, curve(), name="case/m.mrk.json")


def test_two_series_of_one_patient_are_not_told_apart(tmp_path):
    first = series(tmp_path / "a")
    for ds, path in zip(first, sorted((tmp_path / "a").glob("*.dcm")), strict=True):
        ds.SeriesInstanceUID = "1.2.3"
        ds.save_as(path)
    series(tmp_path / "b")
    with pytest.raises(DataError, match=r"2 CT series\."):
        margins(tmp_path, curve())


def test_a_whole_import_of_a_patient_s_folders(tmp_path):
    root = tmp_path / "s"
    two_patients(root)
    (root / "ann" / "met.mrk.json").write_text(json.dumps({"markups": [curve()]}))
    (root / "bob" / "Cyst.mrk.json").write_text(json.dumps({"markups": [curve(label="x")]}))
    options = ImportOptions(isolate=False, label_map=("met=metastasis", "cyst=cyst"))
    report = import_source(root, tmp_path / "rois", options)
    assert report.class_counts == {"cyst": (1, 1), "metastasis": (1, 1)}
