"""Outlines in structured reports find their image, are drawn exactly, or are refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from lesionaug.data.importer import check_source, import_source
from lesionaug.data.labels import LabelMap
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import Finding, Margin, SourceFile
from lesionaug.data.sources import structured_report
from lesionaug.data.sources.given import Given, ReadOptions
from lesionaug.data.sources.structured_report import read_structured_report
from lesionaug.data.store import load_rois
from lesionaug.errors import DataError
from tests.dicom_files import FRAME, HEIGHT, WIDTH, circle_mm, ct_dataset, disc, hu_picture, series, write
from tests.test_rtstruct import ct_slices, errors

CT = "1.2.840.10008.5.1.4.1.1.2"
FINDING, SITE = ("DCM", "121071", "Finding"), ("SCT", "363698007", "Finding Site")
TRACKING, TRACKING_UID = ("DCM", "112039", "Tracking Identifier"), ("DCM", "112040", "Tracking Unique Identifier")
REGION = ("DCM", "111030", "Image Region")
METASTASIS = ("SCT", "4147007", "Mass")


def code(concept: tuple[str, str, str]) -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator, item.CodeValue, item.CodeMeaning = concept
    return item


def content(kind: str, concept=None, children=(), relation: str = "CONTAINS", **values) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = relation, kind
    if concept:
        item.ConceptNameCodeSequence = [code(concept)]
    for keyword, value in values.items():
        setattr(item, keyword, value)
    if children:
        item.ContentSequence = list(children)
    return item


def image(uid: str, frame=None, sop_class: str = CT) -> Dataset:
    named = Dataset()
    named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = sop_class, uid
    if frame is not None:
        named.ReferencedFrameNumber = frame
    return content("IMAGE", relation="SELECTED FROM", ReferencedSOPSequence=[named])


def region(kind: str, points, uid: str | None = None, frame=None) -> Dataset:
    """An outline in pixels of an image; integers are edges."""
    children = [] if uid is None else [image(uid, frame)]
    data = [float(value) for point in points for value in point]
    return content("SCOORD", REGION, children, GraphicType=kind, GraphicData=data)


def region_mm(kind: str, points, frame: str = FRAME) -> Dataset:
    data = [float(value) for point in points for value in point]
    return content("SCOORD3D", REGION, GraphicType=kind, GraphicData=data, ReferencedFrameOfReferenceUID=frame)


def group(*regions: Dataset, name: str = "a", uid: str = "", finding=METASTASIS) -> Dataset:
    children = [content("TEXT", TRACKING, relation="HAS OBS CONTEXT", TextValue=name)]
    if uid:
        children.append(content("UIDREF", TRACKING_UID, relation="HAS OBS CONTEXT", UID=uid))
    children.append(content("CODE", FINDING, ConceptCodeSequence=[code(finding)]))
    return content("CONTAINER", ("DCM", "125007", "Measurement Group"), [*children, *regions])


def report(*groups: Dataset, patient: str = "Pat-1") -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = structured_report.SOP_CLASSES[2]
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientID, ds.ValueType = "SR", patient, "CONTAINER"
    ds.ConceptNameCodeSequence = [code(("DCM", "126000", "Imaging Measurement Report"))]
    ds.ContentSequence = [content("CONTAINER", ("DCM", "126010", "Imaging Measurements"), groups)]
    return ds


def margins(folder: Path, dataset: Dataset, **options) -> tuple[list[Margin], list[Finding]]:
    path = write(dataset, folder / "SR.dcm")
    findings: list[Finding] = []
    given = Given(ct_slices(folder), findings, ReadOptions(**options))
    return list(read_structured_report(SourceFile(9, path, path.name), given)), findings


def ring(x: float, y: float, radius: float, points: int = 2000):
    """A closed polyline about (x, y), its first point repeated."""
    angles = np.linspace(0, 2 * np.pi, points)
    angles[-1] = 0
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("POLYLINE", ring(30.5, 25.5, 9.3)),
        ("CIRCLE", [(30.5, 25.5), (30.5, 34.8)]),
        ("ELLIPSE", [(21.2, 25.5), (39.8, 25.5), (30.5, 16.2), (30.5, 34.8)]),
    ],
)
def test_outlines_in_pixels_count_from_the_edge(tmp_path, kind, points):
    slices = series(tmp_path)
    dataset = report(group(region(kind, points, slices[1].SOPInstanceUID), name="lesion 1"))
    (margin,), findings = margins(tmp_path, dataset)
    (entry,) = margin.slices
    assert entry.slice.source.name == "1.dcm"
    assert np.array_equal(entry.mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))
    assert (margin.name, margin.also_named) == ("lesion 1", ("SCT:4147007", "Mass"))
    assert (margin.key, margin.patient, findings) == ("1", "pat-1", [])


def test_an_outline_of_more_than_64_kib(tmp_path):
    slices = series(tmp_path)
    dataset = report(group(region("POLYLINE", ring(30.5, 25.5, 9.3, points=9000), slices[1].SOPInstanceUID)))
    (margin,), findings = margins(tmp_path, dataset)
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))
    assert not findings


def test_a_turned_ellipse(tmp_path):
    slices = series(tmp_path)
    centre, along, across = np.array([40.25, 30.5]), np.array([12.0, 9.0]), np.array([-3.0, 4.0])  # half axes 15 and 5
    ends = [centre - along, centre + along, centre - across, centre + across]
    (margin,), _ = margins(tmp_path, report(group(region("ELLIPSE", ends, slices[0].SOPInstanceUID))))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    away = np.stack([columns + 0.5, rows + 0.5], axis=-1) - centre
    expected = (away @ along / 225) ** 2 + (away @ across / 25) ** 2 < 1
    assert np.array_equal(margin.slices[0].mask, expected)


def test_pixels_are_those_of_the_picture_as_it_is_stored(tmp_path):
    hu = hu_picture()
    write(ct_dataset(hu, orientation=(1, 0, 0, 0, -1, 0)), tmp_path / "0.dcm")
    (ct,) = ct_slices(tmp_path)
    assert ct.turn.flip_y
    (margin,), _ = margins(tmp_path, report(group(region("CIRCLE", [(20, 10), (20, 16)], ct.sop_uid))))
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 20, 10, 6)[::-1])


@pytest.mark.parametrize("kind", ["POLYGON", "POLYLINE"])
def test_outlines_in_millimetres_lie_where_a_structure_set_has_them(tmp_path, kind):
    series(tmp_path)
    points = circle_mm(30, 25, 9.3, 5.0, points=2000)
    (margin,), findings = margins(tmp_path, report(group(region_mm(kind, [*points, points[0]]))))
    (entry,) = margin.slices
    assert entry.slice.source.name == "1.dcm"
    assert np.array_equal(entry.mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))
    assert not findings


def test_an_ellipse_in_millimetres(tmp_path):
    series(tmp_path)
    x, y, r = 10 + 0.8 * 30, 20 + 0.8 * 25, 0.8 * 9.3
    ends = [(x - r, y, 5), (x + r, y, 5), (x, y - r, 5), (x, y + r, 5)]
    (margin,), _ = margins(tmp_path, report(group(region_mm("ELLIPSE", ends))))
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))


def test_an_outline_repeated_for_each_measurement_counts_once_and_a_hole_is_cut(tmp_path):
    slices = series(tmp_path)
    uid = slices[1].SOPInstanceUID
    outer, inner = (region("CIRCLE", [(30.5, 25.5), (30.5, 25.5 + r)], uid) for r in (12.2, 5.4))
    measured = content("NUM", ("SCT", "42798000", "Area"), [outer])
    (margin,), _ = margins(tmp_path, report(group(outer, measured, inner)))
    expected = disc(HEIGHT, WIDTH, 30.5, 25.5, 12.2) ^ disc(HEIGHT, WIDTH, 30.5, 25.5, 5.4)
    assert np.array_equal(margin.slices[0].mask, expected)


def test_groups_of_one_tracking_uid_are_one_lesion_unless_they_are_called_differently(tmp_path):
    slices = series(tmp_path)
    circles = [region("CIRCLE", [(30, 25), (30, 30 + n)], ds.SOPInstanceUID) for n, ds in enumerate(slices)]
    dataset = report(
        group(circles[0], name="a", uid="1.2.3"),
        group(circles[1], name="a", uid="1.2.3"),
        group(circles[2], name="b", uid="1.2.3"),
        group(circles[2], name="a", uid="1.2.4"),
    )
    found, _ = margins(tmp_path, dataset)
    assert [(margin.number, margin.name, len(margin.slices)) for margin in found] == [
        (1, "a", 2),
        (3, "b", 1),
        (4, "a", 1),
    ]


def test_an_image_may_be_named_by_its_place_in_the_report(tmp_path):
    slices = series(tmp_path)
    item = region("CIRCLE", [(30, 25), (30, 31)])
    item.ContentSequence = [
        content("IMAGE", relation="SELECTED FROM", ReferencedContentItemIdentifier=[1, 2, 1]),
    ]
    dataset = report(group(item))
    dataset.ContentSequence.append(content("CONTAINER", None, [image(slices[2].SOPInstanceUID)]))
    (margin,), _ = margins(tmp_path, dataset)
    assert margin.slices[0].slice.source.name == "2.dcm"
    item.ContentSequence[0].ReferencedContentItemIdentifier = [1, 7, 1]
    assert "the one image" in errors(margins(tmp_path, dataset)[1])[0]


def test_what_is_no_closed_outline_is_named_and_passed_over(tmp_path):
    slices = series(tmp_path)
    uid = slices[1].SOPInstanceUID
    line = region("POLYLINE", [(1, 1), (9, 9), (9, 1)], uid)
    dataset = report(
        group(line, region("POINT", [(3, 3)], uid), region("CIRCLE", [(30, 25), (30, 31)], uid), name="mixed"),
        group(line, name="open"),
        content("CONTAINER", None, [line]),
    )
    (margin,), findings = margins(tmp_path, dataset)
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 30, 25, 6))
    outside, mixed, opened = map(str, findings)
    assert "outside of any measurement group" in outside
    assert "1 POINT, 1 open POLYLINE" in mixed
    assert "'open'" in opened
    assert [(f.severity, f.number) for f in findings] == [("warning", None), ("warning", None), ("warning", 2)]


def test_a_report_without_outlines_is_a_note(tmp_path):
    series(tmp_path)
    segment = image("1.2.3", sop_class="1.2.840.10008.5.1.4.1.1.66.4")
    found, findings = margins(tmp_path, report(group(segment), content("TEXT", None, TextValue="nothing")))
    assert found == []
    assert [f.severity for f in findings] == ["info", "info"]
    assert "segmentation" in findings[0].rule
    assert "no planar contour" in findings[1].rule


@pytest.mark.parametrize("fault", ["missing", "patient", "frame", "none", "two"])
def test_the_image_must_be_here_and_the_patient_s_own(tmp_path, fault):
    slices = series(tmp_path)
    uid = slices[1].SOPInstanceUID
    item = region(
        "CIRCLE", [(30, 25), (30, 31)], "1.2.3.4" if fault == "missing" else uid, 2 if fault == "frame" else 1
    )
    if fault == "none":
        del item.ContentSequence
    if fault == "two":
        item.ContentSequence.append(image(slices[0].SOPInstanceUID))
    dataset = report(group(item, name="bad"), patient="somebody else" if fault == "patient" else "Pat-1")
    found, findings = margins(tmp_path, dataset)
    words = {
        "missing": "no CT slice here is the image",
        "patient": "different patients",
        "frame": "it names frame 2",
        "none": "the one image",
        "two": "the one image",
    }
    assert found == []
    (error,) = errors(findings)
    assert words[fault] in error
    assert "SR.dcm group 1 'bad'" in error


def test_outlines_on_slices_that_are_not_here_are_counted(tmp_path):
    slices = series(tmp_path)
    circles = [region("CIRCLE", [(30, 25), (30, 31)], uid) for uid in (slices[0].SOPInstanceUID, "1.2.3.4")]
    (margin,), _ = margins(tmp_path, report(group(*circles)))
    assert (len(margin.slices), margin.parts_missing) == (1, 1)


@pytest.mark.parametrize(
    "data",
    [
        [30.0, 25.0, float("nan"), 31.0],
        [30.0, 25.0, 1e30, 31.0],
        [30.0, 25.0, 31.0],
        [],
        [30.0, 25.0, 30.0, 25.0],
        [0.0, 0.0, 5.0, 5.0, 9.0, 9.0],
    ],
)
def test_a_broken_outline_is_refused_and_the_others_go_on(tmp_path, data):
    slices = series(tmp_path)
    bad, good = (region("CIRCLE", [(30, 25), (30, 31)], slices[1].SOPInstanceUID) for _ in range(2))
    bad.GraphicData = data
    found, findings = margins(tmp_path, report(group(bad, name="bad"), group(good, name="good")))
    assert [margin.name for margin in found] == ["good"]
    assert "'bad'" in errors(findings)[0]


@pytest.mark.parametrize("ends", [[(0, 0), (8, 0), (0, 1), (8, 1)], [(0, 5), (9, 5), (30, 1), (30, 9)], [(1, 1)] * 4])
def test_an_ellipse_whose_axes_do_not_cross_is_refused(tmp_path, ends):
    slices = series(tmp_path)
    found, findings = margins(tmp_path, report(group(region("ELLIPSE", ends, slices[1].SOPInstanceUID))))
    assert found == []
    assert "major axis" in errors(findings)[0]


def test_millimetres_need_one_frame_of_reference_and_do_not_go_with_pixels(tmp_path):
    slices = series(tmp_path)
    points = circle_mm(30, 25, 9.3, 5.0)
    for regions, words in (
        ([region_mm("POLYGON", points, "")], "one frame of reference"),
        ([region_mm("POLYGON", points, "1.9")], "matches no CT slice"),
        ([region_mm("POLYGON", points), region_mm("POLYGON", points, "1.9")], "one frame of reference"),
        ([region_mm("POLYGON", points), region("CIRCLE", [(3, 3), (9, 3)], slices[0].SOPInstanceUID)], "both"),
    ):
        found, findings = margins(tmp_path, report(group(*regions)))
        assert found == []
        assert words in errors(findings)[0]


def test_reports_too_deep_too_long_or_too_large_are_refused(tmp_path, monkeypatch):
    series(tmp_path)
    item = group()
    for _ in range(60):
        item = content("CONTAINER", None, [item])
    with pytest.raises(DataError, match="within each other"):
        margins(tmp_path, report(item))
    monkeypatch.setattr(structured_report, "MAX_ITEMS", 100)
    with pytest.raises(DataError, match="content items"):
        margins(tmp_path, report(*[group() for _ in range(50)]))
    monkeypatch.setattr(structured_report, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="at most"):
        margins(tmp_path, report(group()))


def test_cut_short_anywhere_a_report_is_refused_or_read(tmp_path):
    slices = series(tmp_path)
    dataset = report(group(region("CIRCLE", [(30, 25), (30, 31)], slices[1].SOPInstanceUID)))
    whole = write(dataset, tmp_path / "whole.dcm").read_bytes()
    path = tmp_path / "SR.dcm"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        findings: list[Finding] = []
        try:
            found = list(read_structured_report(SourceFile(9, path, path.name), Given(ct_slices(tmp_path), findings)))
        except DataError:
            continue
        assert len(found) == 0 or np.array_equal(found[0].slices[0].mask, disc(HEIGHT, WIDTH, 30, 25, 6))


def test_the_label_map_goes_by_name_code_and_meaning(tmp_path):
    slices = series(tmp_path / "s")
    uid = slices[1].SOPInstanceUID
    dataset = report(
        group(region("CIRCLE", [(20, 25), (20, 31)], uid), name="one"),
        group(region("CIRCLE", [(60, 25), (60, 31)], uid), name="two", finding=("SCT", "1", "Cyst")),
    )
    write(dataset, tmp_path / "s" / "SR.dcm")
    options = ImportOptions(isolate=False, label_map=("SCT:4147007=metastasis", "cyst=cyst"))
    report_of = import_source(tmp_path / "s", tmp_path / "rois", options)
    assert report_of.classes == ("cyst", "metastasis")
    found, findings = margins(tmp_path / "s", dataset, label_map=LabelMap.parse(["Cyst=-"]))
    assert [margin.name for margin in found] == ["one"]
    assert findings[0].reason == "left out"


def test_a_report_that_highdicom_wrote(tmp_path):
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes

    slices = series(tmp_path)
    context = hd.sr.ObservationContext(
        observer_person_context=hd.sr.ObserverContext(
            codes.DCM.Person, hd.sr.PersonObserverIdentifyingAttributes("A^B")
        )
    )
    flat = hd.sr.ImageRegion(
        hd.sr.GraphicTypeValues.POLYLINE,
        ring(30.5, 25.5, 9.3),
        hd.sr.SourceImageForRegion(CT, slices[1].SOPInstanceUID),
    )
    placed = hd.sr.ImageRegion3D(
        hd.sr.GraphicTypeValues3D.POLYGON, np.array([*(p := circle_mm(60, 25, 9.3, 0.0, points=2000)), p[0]]), FRAME
    )
    groups = [
        hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(), identifier=name),
            referenced_region=outlined,
            finding_type=CodedConcept("4147007", "SCT", "Mass"),
            finding_sites=[hd.sr.FindingSite(codes.SCT.Liver)],
        )
        for name, outlined in (("flat", flat), ("placed", placed))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = hd.sr.Comprehensive3DSR(
            evidence=slices,
            content=hd.sr.MeasurementReport(
                observation_context=context,
                procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
                imaging_measurements=groups,
            )[0],
            series_number=1,
            series_instance_uid=generate_uid(),
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="somebody",
        )
    found, findings = margins(tmp_path, written)
    assert [margin.name for margin in found] == ["flat", "placed"]
    assert [margin.slices[0].slice.source.name for margin in found] == ["1.dcm", "0.dcm"]
    for margin, x in zip(found, (30.5, 60.5), strict=True):
        assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, x, 25.5, 9.3))
        assert {"SCT:4147007", "Mass", "SCT:10200004", "Liver"} <= set(margin.also_named)
    assert not findings


def test_real_reports(shared_data, tmp_path):
    """highdicom's two documents beside their slice, a circle in each; open lines and points are passed over."""
    ct = (shared_data / "highdicom" / "ct_image.dcm").read_bytes()
    for name, centre, radius, passed in (
        ("sr_document.dcm", (58, 52), 11, 0),
        ("sr_document_with_multiple_groups.dcm", (45, 55), 10, 2),
    ):
        folder = tmp_path / name.removesuffix(".dcm")
        folder.mkdir()
        (folder / "0.dcm").write_bytes(ct)
        (folder / "SR.dcm").write_bytes((shared_data / "highdicom" / name).read_bytes())
        findings = check_source(folder, ImportOptions(isolate=False))
        assert errors(findings) == []
        assert sum("passed over" in finding.rule for finding in findings) == passed
        rois = load_rois(import_source(folder, tmp_path / (name + "-rois"), ImportOptions(isolate=False)).path)
        (slice_,) = ct_slices(folder)
        expected = disc(slice_.height, slice_.width, *centre, radius)
        assert rois.masks is not None
        assert int(rois.masks[0].sum()) == int(expected.sum())
    findings = check_source(shared_data / "dcmqi_ct_seg" / "sr-example" / "sr.dcm", ImportOptions(isolate=False))
    assert any("no planar contour" in finding.rule for finding in findings)
    assert len(errors(findings)) == 1  # that there is nothing to import
