"""AIM annotations find their image, are drawn exactly, or are refused by name; XML with entities is not read."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from lesionaug.data.importer import check_source, import_source
from lesionaug.data.labels import LabelMap
from lesionaug.data.options import ImportOptions
from lesionaug.data.slices import Finding, Margin, SourceFile
from lesionaug.data.sources import xml_files
from lesionaug.data.sources.aim import read_aim
from lesionaug.data.sources.given import Given, ReadOptions
from lesionaug.data.sources.recognise import recognise
from lesionaug.data.sources.xml_files import read_xml
from lesionaug.errors import DataError
from tests.dicom_files import HEIGHT, WIDTH, ct_dataset, disc, hu_picture, series, write
from tests.test_rtstruct import ct_slices, errors
from tests.test_structured_report import ring

AIM4 = 'xmlns="gme://caCORE.caCORE/4.4/edu.northwestern.radiology.AIM"'
AIM3 = 'xmlns="gme://caCORE.caCORE/3.2/edu.northwestern.radiology.AIM"'
XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def shape(kind: str, points, uid: str = "", *, frame: object = 1, include: str = "true") -> str:
    """A shape of AIM 4; integers are pixel edges."""
    coordinates = "".join(
        f'<TwoDimensionSpatialCoordinate><coordinateIndex value="{n}"/><x value="{x}"/><y value="{y}"/>'
        "</TwoDimensionSpatialCoordinate>"
        for n, (x, y) in enumerate(points)
    )
    return (
        f'<MarkupEntity xsi:type="{kind}"><includeFlag value="{include}"/><imageReferenceUid root="{uid}"/>'
        f'<referencedFrameNumber value="{frame}"/><twoDimensionSpatialCoordinateCollection>{coordinates}'
        "</twoDimensionSpatialCoordinateCollection></MarkupEntity>"
    )


def annotation(*shapes: str, name: str = "a", more: str = "") -> str:
    return (
        '<ImageAnnotation><typeCode code="4147007" codeSystem="2.16.840" codeSystemName="SCT">'
        '<iso:displayName xmlns:iso="uri:iso.org:21090" value="Mass"/></typeCode>'
        f'<name value="{name}"/>{more}<markupEntityCollection>{"".join(shapes)}</markupEntityCollection>'
        "</ImageAnnotation>"
    )


def collection(*annotations: str, patient: str = "Pat-1") -> str:
    person = f'<person><name value="Canary"/><id value="{patient}"/></person>' if patient else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ImageAnnotationCollection {AIM4} {XSI} aimVersion="AIMv4_0">'
        f"{person}<imageAnnotations>{''.join(annotations)}</imageAnnotations></ImageAnnotationCollection>"
    )


def margins(folder: Path, written: str | bytes, **options) -> tuple[list[Margin], list[Finding]]:
    path = folder / "aim.xml"
    path.write_bytes(written.encode() if isinstance(written, str) else written)
    findings: list[Finding] = []
    given = Given(ct_slices(folder), findings, ReadOptions(**options))
    return list(read_aim(SourceFile(9, path, path.name), given)), findings


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("TwoDimensionPolyline", ring(30.5, 25.5, 9.3)[:-1]),
        ("TwoDimensionCircle", [(30.5, 25.5), (30.5, 34.8)]),
        ("TwoDimensionEllipse", [(21.2, 25.5), (39.8, 25.5), (30.5, 16.2), (30.5, 34.8)]),
    ],
)
def test_outlines_in_pixels_count_from_the_edge(tmp_path, kind, points):
    slices = series(tmp_path)
    written = collection(annotation(shape(kind, points, slices[1].SOPInstanceUID), name="lesion 1"))
    (margin,), findings = margins(tmp_path, written)
    (entry,) = margin.slices
    assert entry.slice.source.name == "1.dcm"
    assert np.array_equal(entry.mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))
    assert (margin.name, margin.patient, findings) == ("lesion 1", "pat-1", [])
    assert set(margin.also_named) == {"SCT:4147007", "2.16.840:4147007", "Mass"}


def test_aim_3(tmp_path):
    slices = series(tmp_path)
    uid = slices[1].SOPInstanceUID
    points = "".join(
        f'<SpatialCoordinate xsi:type="TwoDimensionSpatialCoordinate" coordinateIndex="{n}" imageReferenceUID="{uid}" '
        f'referencedFrameNumber="1" x="{x}" y="{y}"/>'
        for n, (x, y) in reversed(list(enumerate([(30.5, 25.5), (30.5, 34.8)])))  # the index counts, not the place
    )
    written = (
        f'<ImageAnnotation {AIM3} {XSI} aimVersion="3.0" name="old" codeValue="RID39466" codeMeaning="cyst" '
        'codingSchemeDesignator="RadLex"><geometricShapeCollection>'
        '<GeometricShape xsi:type="Circle" includeFlag="true">'
        f"<spatialCoordinateCollection>{points}</spatialCoordinateCollection></GeometricShape>"
        '</geometricShapeCollection><person><Person id="PAT-1 "/></person><anatomicEntityCollection>'
        '<AnatomicEntity codeValue="RID58" codeMeaning="liver" codingSchemeDesignator="RadLex"/>'
        "</anatomicEntityCollection></ImageAnnotation>"
    )
    (margin,), findings = margins(tmp_path, written)
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 30.5, 25.5, 9.3))
    assert (margin.name, margin.patient, findings) == ("old", "pat-1", [])
    assert set(margin.also_named) == {"RadLex:RID39466", "cyst", "RadLex:RID58", "liver"}


def test_what_an_annotation_shows_may_name_its_class(tmp_path):
    slices = series(tmp_path / "s")
    circles = [shape("TwoDimensionCircle", [(x, 25), (x, 31)], slices[1].SOPInstanceUID) for x in (20, 60)]
    seen = (
        "<imagingObservationEntityCollection><ImagingObservationEntity>"
        '<typeCode code="RID4271" codeSystemName="RadLex"/></ImagingObservationEntity>'
        "</imagingObservationEntityCollection>"
    )
    written = collection(annotation(circles[0], name="cyst"), annotation(circles[1], name="two", more=seen))
    (tmp_path / "s" / "aim.xml").write_text(written)
    options = ImportOptions(isolate=False, label_map=("cyst=cyst", "RadLex:RID4271=hemangioma"))
    assert import_source(tmp_path / "s", tmp_path / "rois", options).classes == ("cyst", "hemangioma")
    found, findings = margins(tmp_path / "s", written, label_map=LabelMap.parse(["cyst=-"]))
    assert [margin.name for margin in found] == ["two"]
    assert findings[0].reason == "left out"


def test_included_outlines_are_united_and_excluded_ones_cut_out(tmp_path):
    slices = series(tmp_path)
    uid = slices[1].SOPInstanceUID
    circles = [(30, 25, 9, "true"), (38, 25, 9, "true"), (40, 25, 4, "false"), (70, 50, 4, "false")]
    shapes = [shape("TwoDimensionCircle", [(x, y), (x, y + r)], uid, include=flag) for x, y, r, flag in circles]
    (margin,), _ = margins(tmp_path, collection(annotation(*reversed(shapes))))
    first, second, hole, _ = (disc(HEIGHT, WIDTH, x, y, r) for x, y, r, _ in circles)
    assert np.array_equal(margin.slices[0].mask, (first | second) & ~hole)
    found, findings = margins(tmp_path, collection(annotation(shapes[3])))
    assert found == []
    assert "no pixel centre" in errors(findings)[0]


def test_pixels_are_those_of_the_picture_as_it_is_stored_and_what_reaches_out_is_clipped(tmp_path):
    write(ct_dataset(hu_picture(), orientation=(1, 0, 0, 0, -1, 0)), tmp_path / "0.dcm")
    (ct,) = ct_slices(tmp_path)
    (margin,), findings = margins(
        tmp_path, collection(annotation(shape("TwoDimensionCircle", [(20, 4), (20, 10)], ct.sop_uid)))
    )
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 20, 4, 6)[::-1])
    assert "partly outside" in findings[0].rule


def test_what_is_no_closed_outline_is_named_and_passed_over(tmp_path):
    slices = series(tmp_path)
    uid = slices[1].SOPInstanceUID
    others = [
        shape("TwoDimensionMultiPoint", [(1, 1), (2, 2), (3, 1)], uid),
        shape("TwoDimensionPolyline", [(1, 1), (2, 2)], uid),
        shape("ThreeDimensionPolygon", []),
        '<MarkupEntity xsi:type="TextAnnotationEntity"/>',
    ]
    good = shape("TwoDimensionCircle", [(30, 25), (30, 31)], uid)
    (margin,), findings = margins(tmp_path, collection(annotation(*others, good), annotation(*others, name="none")))
    assert np.array_equal(margin.slices[0].mask, disc(HEIGHT, WIDTH, 30, 25, 6))
    assert all("1 MultiPoint, 1 Polyline, 1 ThreeDimensionPolygon" in finding.rule for finding in findings)
    assert [(f.severity, f.number) for f in findings] == [("warning", None), ("warning", 2)]
    found, findings = margins(tmp_path, collection(annotation()))
    assert found == []
    assert [str(f) for f in findings] == ["aim.xml: the annotations hold no outline."]


def test_the_patient_is_the_slice_s_where_none_is_named(tmp_path):
    slices = series(tmp_path)
    circle = shape("TwoDimensionCircle", [(30, 25), (30, 31)], slices[1].SOPInstanceUID)
    (margin,), _ = margins(tmp_path, collection(annotation(circle), patient=""))
    assert margin.patient == "pat-1"
    found, findings = margins(tmp_path, collection(annotation(circle), patient="somebody else"))
    assert found == []
    assert "different patients" in errors(findings)[0]
    (margin,), _ = margins(tmp_path, collection(annotation(circle), patient="x"), patient_by="StudyID")
    assert len(margin.slices) == 1
    other = ct_dataset(hu_picture(9), patient="Pat-2")
    write(other, tmp_path / "9.dcm")
    both = annotation(circle, shape("TwoDimensionCircle", [(30, 25), (30, 31)], other.SOPInstanceUID))
    found, findings = margins(tmp_path, collection(both, patient=""))
    assert found == []
    assert "several patients" in errors(findings)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((' root="{uid}"', ' root="1.2.3.4"'), "no CT slice here is the image"),
        ((' root="{uid}"', ""), "name the one image"),
        (('referencedFrameNumber value="1"', 'referencedFrameNumber value="7"'), "names frame 7"),
        (('referencedFrameNumber value="1"', 'referencedFrameNumber value="x"'), "name the one image"),
        (('x value="30"', 'x value="nan"'), "finite numbers"),
        (('x value="30"', 'x value="1e300"'), "finite numbers"),
        (('x value="30"', 'x value="3,0"'), "must have the numbers"),
        (('x value="30"', "x"), "must have the numbers"),
        (('coordinateIndex value="1"', 'coordinateIndex value="0"'), "one coordinateIndex"),
        (('includeFlag value="true"', 'includeFlag value="perhaps"'), "includeFlag"),
        (('y value="31"', 'y value="25"'), "a circle is given by"),
        (("TwoDimensionCircle", "TwoDimensionEllipse"), "an ellipse is given by"),
    ],
)
def test_a_broken_annotation_is_refused_and_the_others_go_on(tmp_path, change, words):
    slices = series(tmp_path)
    uid = slices[1].SOPInstanceUID
    good = annotation(shape("TwoDimensionCircle", [(30, 25), (30, 31)], uid), name="good")
    old, new = (text.format(uid=uid) for text in change)
    assert old in good
    bad = good.replace(old, new).replace('"good"', '"bad"')
    found, findings = margins(tmp_path, collection(bad, good))
    assert [margin.name for margin in found] == ["good"]
    (error,) = errors(findings)
    assert words in error
    assert "aim.xml annotation 1 'bad'" in error


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))


@pytest.mark.parametrize(
    "doctype",
    [
        "<!DOCTYPE ImageAnnotationCollection>",
        f'<!DOCTYPE ImageAnnotationCollection [<!ENTITY l0 "lol">{LAUGHS}]>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE a SYSTEM "http://localhost/evil.dtd">',
        '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://localhost/evil.dtd"> %x;]>',
        f'<!DOCTYPE a [<!ENTITY l0 "{"x" * 100_000}">]>',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_and_entities_are_refused_at_once(tmp_path, doctype, encoding):
    series(tmp_path)
    entity = (
        "&x;" if "ENTITY x" in doctype else "&l11;" if "l11" in doctype else "&l0;" * 1000 if "l0" in doctype else ""
    )
    written = collection(annotation(name="NAME")).replace("UTF-8", encoding).replace("NAME", entity)
    head, end, rest = written.partition("?>")
    before = time.perf_counter()
    with pytest.raises(DataError, match="document type"):
        margins(tmp_path, (head + end + doctype + rest).encode(encoding))
    assert time.perf_counter() - before < 2
    # Also in a whole import the file is named; it is not passed over as one of no known kind.
    if encoding == "utf-8" and "ImageAnnotation" in doctype:
        assert any("document type" in text for text in errors(check_source(tmp_path, ImportOptions(isolate=False))))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "windows-1252"])
def test_encodings(tmp_path, encoding):
    slices = series(tmp_path)
    written = collection(
        annotation(shape("TwoDimensionCircle", [(30, 25), (30, 31)], slices[1].SOPInstanceUID), name="Ö")
    )
    (margin,), _ = margins(tmp_path, written.replace("UTF-8", encoding.removesuffix("-sig")).encode(encoding))
    assert margin.name == "Ö"


@pytest.mark.parametrize("encoding", ["utf-7", "rot13", "shift_jis", "utf-32", "no such encoding"])
def test_encodings_that_cannot_be_read_are_refused(tmp_path, encoding):
    series(tmp_path)
    with pytest.raises(DataError, match="well-formed XML"):
        margins(tmp_path, collection(annotation(name="&#233;")).replace("UTF-8", encoding))


def test_xml_too_deep_too_wide_or_too_large_is_refused(tmp_path, monkeypatch):
    series(tmp_path)
    for more in ("<b>" * 200_000, "<b " + " ".join(f'a{n}=""' for n in range(200)) + "/>"):
        with pytest.raises(DataError, match="XML may have"):
            margins(tmp_path, collection(annotation(more=more)))
    monkeypatch.setattr(xml_files, "MAX_ELEMENTS", 1000)
    with pytest.raises(DataError, match="XML may have 1000 elements"):
        margins(tmp_path, collection(annotation(more="<b/>" * 1001)))
    monkeypatch.setattr(xml_files, "MAX_BYTES", 1 << 20)
    with pytest.raises(DataError, match="at most 1 MiB"):
        margins(tmp_path, " " * (1 << 20) + collection(annotation()))


@pytest.mark.parametrize("written", ["", "<", "<a>", "\0\0\0", "<a/>", "<a></b>", "<a:b/>", "<ImageAnnotation>&x;"])
def test_what_is_no_aim_is_refused(tmp_path, written):
    series(tmp_path)
    with pytest.raises(DataError):
        margins(tmp_path, written)


def test_cut_short_anywhere_it_is_refused(tmp_path):
    whole = collection(annotation(shape("TwoDimensionCircle", [(30, 25), (30, 31)], "1.2.3"))).encode()
    path = tmp_path / "aim.xml"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_xml(SourceFile(1, path, path.name))


def test_a_file_is_aim_by_its_root(tmp_path):
    for number, (written, kind) in enumerate(
        (
            (collection(), "aim"),
            (collection().replace("UTF-8", "UTF-16").encode("utf-16"), "aim"),
            ("<!-- " + "x" * 3000 + " --><a:ImageAnnotation xmlns:a='b'>", "aim"),
            ("<report>about an ImageAnnotationCollection</report>", ""),
            ("<AnnotationOfAnnotation/>", ""),
            ("<!DOCTYPE ImageAnnotation [", "aim"),
            ('<?xml version="1.0" encoding="no such"?><ImageAnnotation/>', "aim"),
            ("", ""),
        )
    ):
        path = tmp_path / f"{number}.xml"
        path.write_bytes(written.encode() if isinstance(written, str) else written)
        assert recognise(SourceFile(1, path, path.name)).kind == kind
