"""Contours find their slice, are drawn exactly, or are refused by name."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from lesionaug.data.importer import check_source, import_source
from lesionaug.data.margins import diameter_px
from lesionaug.data.slices import Finding, Margin, Plane, Reorientation, SourceFile
from lesionaug.data.sources import rtstruct
from lesionaug.data.sources.contours import Contour, SliceIndex, draw, match
from lesionaug.data.sources.dicom_ct import CtSlice, read_ct_slice
from lesionaug.data.sources.dicom_file import read_dicom
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.rtstruct import read_rtstruct
from lesionaug.data.sources.segmentation import read_segmentation
from lesionaug.data.store import load_rois, read_manifest
from lesionaug.errors import DataError
from tests.dicom_files import (
    HEIGHT,
    SERIES,
    WIDTH,
    circle_mm,
    contour,
    ct_dataset,
    disc,
    hu_picture,
    rtstruct_dataset,
    series,
    write,
)


def ct_slices(folder: Path) -> list[CtSlice]:
    found = []
    for number, path in enumerate(sorted(folder.glob("[0-9]*.dcm")), 1):
        source = SourceFile(number, path, path.name)
        found.append(read_ct_slice(source, read_dicom(source, pixels=True)))
    return found


def margins(folder: Path, rois, **keywords) -> tuple[list[Margin], list[Finding]]:
    path = write(rtstruct_dataset(rois, **keywords), folder / "RS.dcm")
    findings: list[Finding] = []
    return list(read_rtstruct(SourceFile(9, path, path.name), Given(ct_slices(folder), findings))), findings


def errors(findings: list[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.severity == "error"]


def test_a_circle_becomes_the_disc_of_pixel_centres(tmp_path):
    series(tmp_path)
    # Many points: the polygon is then the circle. Its centre is the centre of pixel (30, 25): (30.5, 25.5) in corners.
    (margin,), findings = margins(tmp_path, {4: ("a", [contour(circle_mm(30, 25, 9.3, 5.0, points=2000))])})
    (entry,) = margin.slices
    assert entry.slice.source.name == "1.dcm"
    assert np.array_equal(entry.mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))
    assert margin.number == 4
    assert not findings
    assert diameter_px(entry.mask, (0.8, 0.8)) == pytest.approx(2 * 9.3, abs=1.5)


def test_holes_are_xor_and_repeated_names_stay_apart(tmp_path):
    series(tmp_path)
    ring = [contour(circle_mm(30, 25, r, 5.0, points=2000)) for r in (12.2, 5.4)]
    found, _ = margins(tmp_path, {1: ("same", ring), 2: ("same", [contour(circle_mm(60, 30, 6.3, 0.0, points=2000))])})
    assert [margin.number for margin in found] == [1, 2]
    expected = disc(HEIGHT, WIDTH, 30.5, 25.5, 12.2) ^ disc(HEIGHT, WIDTH, 30.5, 25.5, 5.4)
    assert np.array_equal(found[0].slices[0].mask, expected)


@pytest.mark.parametrize(("z", "name"), [(5.0, "1.dcm"), (6.9, "1.dcm"), (8.0, "2.dcm"), (3.1, "1.dcm")])
def test_a_contour_off_its_plane_goes_to_the_nearest_slice(tmp_path, z, name):
    series(tmp_path)
    (margin,), findings = margins(tmp_path, {1: ("a", [contour(circle_mm(30, 25, 9, z))])})
    assert [entry.slice.source.name for entry in margin.slices] == [name]
    assert not findings


def test_a_contour_exactly_between_two_slices_is_refused_and_drawn_on_neither(tmp_path):
    series(tmp_path)
    found, findings = margins(tmp_path, {7: ("liver met", [contour(circle_mm(30, 25, 9, 7.5))])})
    assert found == []
    assert "ROI 7 'liver met'" in errors(findings)[0]
    assert "exactly between" in errors(findings)[0]


def test_contours_of_slices_that_are_missing_are_counted_and_do_not_land_on_neighbours(tmp_path):
    series(tmp_path, count=2, step=20.0)  # every fourth slice of a series with 5 mm steps
    contours = [contour(circle_mm(30, 25, 5 + z / 5, z)) for z in np.arange(0, 25, 5.0)]
    (margin,), findings = margins(tmp_path, {1: ("a", contours)})
    assert margin.parts_missing == 3
    assert [entry.slice.source.name for entry in margin.slices] == ["0.dcm", "1.dcm"]
    assert np.array_equal(margin.slices[0].mask, margins(tmp_path, {1: ("a", contours[:1])})[0][0].slices[0].mask)
    assert margin.largest().slice.source.name == "1.dcm"
    assert not errors(findings)


@pytest.mark.parametrize(
    ("z_disc", "z_hole"), [(5.0, 5.3), (5.3, 5.6), (5.3, 5.0), (4.0, 6.0), (5.0, 5.05), (3.0, 7.3)]
)
@pytest.mark.parametrize("referenced", [False, True])
def test_contours_of_one_slice_at_several_depths(tmp_path, z_disc, z_hole, referenced):
    """Half a millimetre apart they are one drawing; further apart the nearest are taken, and a warning says so."""
    slices = series(tmp_path)
    uid = slices[1].SOPInstanceUID if referenced else None
    drawn = [contour(circle_mm(30, 25, r, z, points=2000), reference=uid) for r, z in ((12.2, z_disc), (5.4, z_hole))]
    (margin,), findings = margins(tmp_path, {1: ("a", drawn)})
    (entry,) = margin.slices
    assert entry.slice.source.name == "1.dcm"
    expected = disc(HEIGHT, WIDTH, 30.5, 25.5, 12.2)
    if abs(z_disc - z_hole) > 0.5:
        assert [f.severity for f in findings] == ["warning"]
        assert "1 of 2 are left out" in findings[0].rule
    else:
        expected = expected ^ disc(HEIGHT, WIDTH, 30.5, 25.5, 5.4)
        assert not findings
    assert np.array_equal(entry.mask, expected)
    assert margin.parts_missing == 0


def test_contours_denser_than_the_slices_are_never_dropped_silently(tmp_path):
    series(tmp_path)
    contours = [contour(circle_mm(30, 25, 9, z)) for z in (5.0, 6.0, 7.0)]  # planned at 1 mm, imaged at 5 mm
    (margin,), findings = margins(tmp_path, {1: ("a", contours)})
    assert margin.parts_missing == 0
    assert "2.00 mm apart in depth" in findings[0].rule
    assert np.array_equal(margin.slices[0].mask, margins(tmp_path, {1: ("a", contours[:1])})[0][0].slices[0].mask)


@pytest.mark.parametrize("thickness", [None, 0.0])
def test_where_no_slice_states_its_step_the_contours_tell_it(tmp_path, thickness):
    for n in range(2):  # every fourth slice of a series with 5 mm steps
        ds = ct_dataset(hu_picture(n), z=20.0 * n)
        ds.SliceThickness = thickness
        write(ds, tmp_path / f"{n}.dcm")
    contours = [contour(circle_mm(30, 25, 5 + z / 5, z)) for z in np.arange(0, 25, 5.0)]
    (margin,), findings = margins(tmp_path, {1: ("a", contours)})
    assert margin.parts_missing == 3
    assert not findings


def test_a_reference_by_uid_wins_over_another_frame_with_a_warning(tmp_path):
    slices = series(tmp_path)
    drawn = contour(circle_mm(30, 25, 9, 5.0), reference=slices[1].SOPInstanceUID)
    (margin,), findings = margins(tmp_path, {1: ("a", [drawn])}, frame="1.2.3")
    assert [entry.slice.source.name for entry in margin.slices] == ["1.dcm"]
    assert "frame of reference" in findings[0].rule
    # A reference to a slice that is elsewhere is a contradiction, not a match.
    drawn = contour(circle_mm(30, 25, 9, 5.0), reference=slices[2].SOPInstanceUID)
    _, findings = margins(tmp_path, {1: ("a", [drawn])})
    assert "lies 5.00 mm away" in errors(findings)[0]


def test_neither_uid_nor_frame_is_an_error_that_names_the_roi(tmp_path):
    series(tmp_path)
    found, findings = margins(tmp_path, {3: ("met", [contour(circle_mm(30, 25, 9, 5.0))])}, frame="1.2.3")
    assert not found
    assert "ROI 3 'met'" in errors(findings)[0]


def test_two_series_at_one_place_are_not_guessed_between(tmp_path):
    series(tmp_path)
    other = ct_dataset(hu_picture(9), z=5.0)
    other.SeriesInstanceUID = "1.2.3.4"
    write(other, tmp_path / "9.dcm")
    _, findings = margins(tmp_path, {1: ("a", [contour(circle_mm(30, 25, 9, 5.0))])})
    assert "2 series" in errors(findings)[0]
    drawn = contour(circle_mm(30, 25, 9, 5.0), reference=other.SOPInstanceUID)
    (margin,), findings = margins(tmp_path, {1: ("a", [drawn])})
    assert [entry.slice.source.name for entry in margin.slices] == ["9.dcm"]


def test_what_is_no_margin_is_skipped_and_named(tmp_path):
    series(tmp_path)
    good = contour(circle_mm(30, 25, 9, 5.0))
    found, findings = margins(
        tmp_path,
        {
            1: ("a", [good, contour([(30, 30, 5.0)], kind="POINT")]),
            2: ("b", [contour(circle_mm(30, 25, 9, 5.0), kind="OPEN_PLANAR")]),
            3: ("c", None),
        },
    )
    assert [margin.number for margin in found] == [1]
    said = "\n".join(map(str, findings))
    assert "1 POINT" in said
    assert "1 OPEN_PLANAR" in said
    assert {finding.number for finding in findings if finding.source} == {2, 3}
    assert not errors(findings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda item: setattr(item, "NumberOfContourPoints", 3), "points and holds"),
        (lambda item: setattr(item, "ContourData", item.ContourData[:-1]), "three points"),
        (lambda item: setattr(item, "ContourData", item.ContourData[:6]), "three points"),
    ],
)
def test_broken_contour_data_are_refused(tmp_path, change, words):
    series(tmp_path)
    item = contour(circle_mm(30, 25, 9, 5.0))
    change(item)
    found, findings = margins(tmp_path, {1: ("a", [item]), 2: ("b", [contour(circle_mm(30, 25, 9, 5.0))])})
    assert [margin.number for margin in found] == [2]
    assert words in errors(findings)[0]


def test_roi_numbers_that_are_none_or_given_twice_are_faults_of_those_rois(tmp_path):
    series(tmp_path)
    round_one = [contour(circle_mm(30, 25, 9, 5.0))]
    ds = rtstruct_dataset({n: (f"roi {n}", round_one) for n in (1, 2, 3, 4)})
    ds.StructureSetROISequence[1].ROINumber = 1
    path = write(ds, tmp_path / "RS.dcm")
    # A number that pydicom would not write.
    at = path.read_bytes().rindex(b"\x06\x30\x22\0IS\x02\x003 ")
    path.write_bytes(path.read_bytes()[: at + 8] + b"x " + path.read_bytes()[at + 10 :])
    findings: list[Finding] = []
    found = list(read_rtstruct(SourceFile(9, path, path.name), Given(ct_slices(tmp_path), findings)))
    assert [margin.number for margin in found] == [4]
    said = "\n".join(errors(findings))
    assert "ROINumber 1 is given to 2 items" in said
    assert "item 3 has 'x" in said


@pytest.mark.parametrize("wild", [[(1e6, 0.0, 5.0)], [(0.0, 0.0, 5.0)] * 500])
def test_contours_that_nobody_drew_are_refused(tmp_path, monkeypatch, wild):
    monkeypatch.setattr(rtstruct, "MAX_POINTS", 500)
    series(tmp_path)
    points = circle_mm(30, 25, 9, 5.0)
    found, findings = margins(tmp_path, {1: ("a", [contour(points + wild)]), 2: ("b", [contour(points)])})
    assert [margin.number for margin in found] == [2]
    assert "a contour may have" in errors(findings)[0]


def test_a_structure_set_that_is_cut_short_is_refused_not_half_read(tmp_path):
    series(tmp_path)
    path = write(rtstruct_dataset({1: ("a", [contour(circle_mm(30, 25, 9, 5.0))] * 3)}), tmp_path / "RS.dcm")
    whole = path.read_bytes()
    for left in (0.35, 0.6, 0.8, 0.95, 0.999):
        path.write_bytes(whole[: int(left * len(whole))])
        with pytest.raises(DataError, match=r"cut short|broken"):
            list(read_rtstruct(SourceFile(9, path, path.name), Given(ct_slices(tmp_path), [])))


def test_a_keyhole_is_the_ring_of_two_contours(tmp_path):
    series(tmp_path)
    outer, inner = circle_mm(30, 25, 12, 5.0), circle_mm(30, 25, 5, 5.0)
    keyhole = [*outer, outer[0], *inner[::-1], inner[-1]]
    (one,), _ = margins(tmp_path, {1: ("a", [contour(keyhole)])})
    (two,), _ = margins(tmp_path, {1: ("a", [contour(outer), contour(inner, kind="CLOSEDPLANAR_XOR")])})
    assert np.array_equal(one.slices[0].mask, two.slices[0].mask)
    assert not one.slices[0].mask[25, 30]


def test_an_outline_given_twice_counts_once(tmp_path):
    series(tmp_path)
    outer, hole = circle_mm(30, 25, 12.2, 5.0, points=2000), circle_mm(30, 25, 5.4, 5.0, points=2000)
    again = [outer[700:] + outer[:700], outer[::-1], [*outer, outer[0]]]  # another start, direction, and closed
    drawn = [contour(points) for points in (outer, hole, hole, *again)]
    (margin,), (finding,) = margins(tmp_path, {1: ("a", drawn)})
    expected = disc(HEIGHT, WIDTH, 30.5, 25.5, 12.2) ^ disc(HEIGHT, WIDTH, 30.5, 25.5, 5.4)
    assert np.array_equal(margin.slices[0].mask, expected)
    assert finding.severity == "warning"
    assert "4 of 6 outlines on slice #2 repeat another one" in finding.rule


@pytest.mark.parametrize(
    ("circles", "crossing"),
    [
        ([(30, 25, 12), (45, 25, 12)], True),
        ([(30, 25, 12), (30, 25, 4), (41, 25, 4)], True),  # the second hole reaches out
        ([(30, 25, 12), (27, 25, 4), (33, 25, 4)], True),  # the holes overlap
        ([(33, 25, 4), (30, 25, 12), (25, 25, 3.3)], False),  # two holes
        ([(30, 25, 12), (30, 25, 8), (30, 25, 4), (55, 25, 8)], False),  # an island in a hole, and another part
        ([(-2, 25, 8), (-2, 25, 4)], False),
    ],
)
def test_outlines_that_cross_are_worth_a_warning(tmp_path, circles, crossing):
    series(tmp_path)
    _, findings = margins(tmp_path, {1: ("a", [contour(circle_mm(*circle, 5.0)) for circle in circles])})
    said = [finding.rule for finding in findings if "outside" not in finding.rule]
    assert [rule for rule in said if "overlap in part" in rule] == said
    assert len(said) == crossing


def test_a_slice_whose_outlines_enclose_nothing_is_named(tmp_path):
    series(tmp_path)
    drawn = [contour(circle_mm(30, 25, 9, 5.0)), contour(circle_mm(30.5, 25.5, 0.2, 10.0))]
    (margin,), (finding,) = margins(tmp_path, {1: ("a", drawn)})
    assert [entry.slice.source.name for entry in margin.slices] == ["1.dcm"]
    assert finding.severity == "warning"
    assert "no pixel centre on slice #3: left out" in finding.rule


def test_contours_of_a_roi_that_is_not_described_are_an_error(tmp_path):
    series(tmp_path)
    one = [contour(circle_mm(30, 25, 9, 5.0))]
    dataset = rtstruct_dataset({1: ("a", one), 2: ("b", one), 3: ("c", None)})
    dataset.StructureSetROISequence = dataset.StructureSetROISequence[:1]
    path = write(dataset, tmp_path / "RS.dcm")
    findings: list[Finding] = []
    (margin,) = read_rtstruct(SourceFile(9, path, path.name), Given(ct_slices(tmp_path), findings))
    assert margin.number == 1
    (finding,) = findings
    assert (finding.severity, finding.where) == ("error", "RS.dcm")
    assert "ROI 2, which" in finding.rule


def test_a_series_that_is_not_here_is_worth_one_warning(tmp_path):
    slices = series(tmp_path)
    for named, referenced, warned in (("1.2.3", None, 1), ("1.2.3", slices[1].SOPInstanceUID, 0), (SERIES, None, 0)):
        one = [contour(circle_mm(30, 25, 9, 5.0), reference=referenced)]
        dataset = rtstruct_dataset({1: ("a", one), 2: ("b", one)})
        frame, study, item = Dataset(), Dataset(), Dataset()
        item.SeriesInstanceUID = named
        study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [item], [study]
        dataset.ReferencedFrameOfReferenceSequence = [frame]
        path = write(dataset, tmp_path / "RS.dcm")
        findings: list[Finding] = []
        assert len(list(read_rtstruct(SourceFile(9, path, path.name), Given(ct_slices(tmp_path), findings)))) == 2
        assert [finding.severity for finding in findings] == ["warning"] * warned
        assert all("drawn on is not here" in finding.rule for finding in findings)


@pytest.mark.parametrize("points", [1, 2])
def test_closed_contours_of_one_or_two_points_are_passed_over(tmp_path, points):
    series(tmp_path)
    good, click = contour(circle_mm(30, 25, 9, 5.0)), contour(circle_mm(30, 25, 9, 10.0)[:points])
    (margin,), findings = margins(tmp_path, {1: ("a", [good, click]), 2: ("b", [click])})
    assert margin.number == 1
    assert len(margin.slices) == 1
    assert [finding.severity for finding in findings] == ["warning"] * 3
    assert "1 CLOSED_PLANAR of fewer than 3 points" in findings[0].rule
    assert [finding.number for finding in findings if finding.reason == "no closed contour"] == [2]


def test_ten_thousand_slices_and_two_thousand_contours_take_seconds():
    plane = {"right": np.array([1.0, 0, 0]), "down": np.array([0, 1.0, 0]), "spacing_mm": (0.7, 0.7)}
    slices = [
        CtSlice(
            source=SourceFile(n, Path(f"{n}"), f"{n}"),
            plane=Plane(np.array([0, 0, float(n % 2500)]), **plane),
            turn=Reorientation(),
            height=512,
            width=512,
            spacing_mm=(0.7, 0.7),
            step_mm=1.0,
            sop_uid=f"1.2.{n}",
            series_uid=f"1.{n // 2500}",
            frame_of_reference="F",
            patient="p",
            phantom=False,
            notes=(),
        )
        for n in range(10_000)
    ]
    contours = [Contour(np.array(circle_mm(200, 200, 40, float(z)))) for z in range(2000)]
    started = time.process_time()
    index = SliceIndex(slices)
    on_slice, missing = match(contours, index.in_frame("F", {"1.2"}), index, "x", [], patient="p")
    entries = draw(on_slice, "x", [])
    assert time.process_time() - started < 10
    assert missing == 0
    assert [entry.slice.source.number for entry in entries] == list(range(5000, 7000))


def test_another_patient_is_refused(tmp_path):
    series(tmp_path)
    _, findings = margins(tmp_path, {1: ("a", [contour(circle_mm(30, 25, 9, 5.0))])}, patient="Pat-2")
    assert "different patients" in errors(findings)[0]


def test_partly_outside_is_clipped_with_a_message_and_wholly_outside_refused(tmp_path):
    series(tmp_path)
    (margin,), findings = margins(tmp_path, {1: ("a", [contour(circle_mm(1, 25, 9.3, 5.0, points=2000))])})
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 1.5, 25.5, 9.3))
    assert "partly outside" in findings[0].rule
    found, findings = margins(tmp_path, {1: ("a", [contour(circle_mm(-40, 25, 9, 5.0))])})
    assert not found
    assert "no pixel centre" in errors(findings)[0]


def test_a_tilted_gantry_has_tilted_contours(tmp_path):
    tilt = math.radians(18.5)
    down = np.array([0, math.cos(tilt), -math.sin(tilt)])
    write(ct_dataset(hu_picture(), orientation=(1, 0, 0, *down)), tmp_path / "0.dcm")
    points = [
        tuple(
            np.array([10.0, 20.0, 0.0])
            + 0.8 * ((30 + 9.3 * math.cos(a)) * np.array([1, 0, 0]) + (25 + 9.3 * math.sin(a)) * down)
        )
        for a in np.linspace(0, 2 * math.pi, 2000, endpoint=False)
    ]
    (margin,), findings = margins(tmp_path, {1: ("a", [contour(points)])})
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))
    assert not findings
    z = float(np.mean([p[2] for p in points]))
    _, findings = margins(tmp_path, {1: ("a", [contour(circle_mm(30, 25, 9, z))])})
    assert "not parallel" in errors(findings)[0]


def test_a_flipped_slice_gives_the_same_lesion(tmp_path):
    hu = hu_picture(5)
    drawn = {1: ("a", [contour(circle_mm(30, 25, 9, 0.0))])}
    ids = []
    for name, ds in (
        ("plain", ct_dataset(hu)),
        ("flipped", ct_dataset(hu[::-1], orientation=(1, 0, 0, 0, -1, 0), position=(10.0, 20.0 + (HEIGHT - 1) * 0.8))),
    ):
        write(ds, tmp_path / name / "0.dcm")
        write(rtstruct_dataset(drawn), tmp_path / name / "RS.dcm")
        ids.append(load_rois(import_source(tmp_path / name, tmp_path / f"{name}.rois").path).lesion_ids)
    assert ids[0] == ids[1]


def test_the_real_structure_sets_give_twelve_lesions_and_the_published_mask(shared_data, tmp_path):
    import nibabel

    report = import_source(shared_data / "sts_rtstruct", tmp_path / "rois")
    assert (report.num_lesions, report.num_patients, report.kind) == (12, 12, "imported")
    one = import_source(shared_data / "sts_rtstruct" / "STS_003", tmp_path / "one")
    rois, entry = load_rois(one.path), read_manifest(one.path)["lesions"][0]
    (left, top), (height, width) = entry["origin"], (entry["height"], entry["width"])
    image = nibabel.load(shared_data / "sts_nifti" / "STS_003_CT_image.nii.gz").get_fdata()
    mask = nibabel.load(shared_data / "sts_nifti" / "STS_003_CT_mask.nii.gz").get_fdata()
    index = round((-774.11 + 849.32) / 3.27)  # the slice of file 000023.dcm, of largest area
    oracle = mask[:, :, index].T > 0
    assert rois.masks is not None
    assert np.array_equal(rois.masks[0].numpy(), oracle[top : top + height, left : left + width])
    assert int(rois.masks[0].sum()) == int(oracle.sum())
    assert np.array_equal(rois.images[0].numpy(), image[:, :, index].T[top : top + height, left : left + width])


def test_a_real_structure_set_equals_its_segmentation(shared_data):
    """STS_008 as RTSTRUCT and as SEG: the same mask on the same slice, pixel by pixel."""
    slices = ct_slices(shared_data / "sts_rtstruct" / "STS_008")
    (drawn,) = [
        margin
        for margin in read_rtstruct(
            SourceFile(9, shared_data / "sts_rtstruct" / "STS_008" / "RS.dcm", "RS.dcm"), Given(slices, [])
        )
        if margin.name == "GTV_Mass_CT"
    ]
    (segment,) = read_segmentation(
        SourceFile(9, shared_data / "sts_seg" / "STS_008_SEG.dcm", "SEG.dcm"), Given(slices, [])
    )
    assert len(drawn.slices) == len(segment.slices) > 0
    for one, other in zip(drawn.slices, segment.slices, strict=True):
        assert one.slice is other.slice
        assert np.array_equal(one.mask, other.mask)


def test_the_awkward_structure_sets_do_what_is_expected(shared_data, tmp_path):
    truth = np.load(shared_data / "one_lesion" / "truth_mask_slice1.npy") > 0
    expected = {
        "offplane_0p3mm": truth.sum(),
        "frame_of_reference_mismatch": truth.sum(),
        "roi_without_contoursequence": truth.sum(),
        "hole_two_contours_xor": None,
        "between_slices": "exactly between",
        "partly_outside_image": "inside the picture",
    }
    for name, outcome in expected.items():
        folder = tmp_path / name
        folder.mkdir()
        for path in (
            *(shared_data / "one_lesion" / "ct").glob("*.dcm"),
            shared_data / "rtstruct_awkward" / f"{name}.dcm",
        ):
            (folder / path.name).symlink_to(path)
        if isinstance(outcome, str):
            assert any(outcome in message for message in errors(check_source(folder))), name
            continue
        rois = load_rois(import_source(folder, tmp_path / f"{name}.rois").path)
        assert rois.masks is not None
        area = int(rois.masks[0].sum())
        if outcome is None:
            assert area == pytest.approx(truth.sum() - math.pi * 8**2, abs=12)
        else:
            assert area == outcome, name
