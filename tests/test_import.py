"""Whole imports: labels, faults, pseudonyms, duplicates, privacy, the command line."""

from __future__ import annotations

import csv
import hmac
import json
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw

from lesionaug import cli
from lesionaug.data.contact_sheet import draw_contact_sheet
from lesionaug.data.importer import SourceRefused, check_source, import_source
from lesionaug.data.margins import worst_outside_fraction
from lesionaug.data.options import ImportOptions
from lesionaug.data.patients import Aliases
from lesionaug.data.slices import SourceFile, patient_key
from lesionaug.data.sources import find
from lesionaug.data.sources.guard import Guard
from lesionaug.data.sources.recognise import recognise
from lesionaug.data.store import load_rois, manifest_sha256, read_manifest
from lesionaug.errors import ConfigError, DataError
from tests.dicom_files import (
    HEIGHT,
    WIDTH,
    circle_mm,
    contour,
    ct_dataset,
    disc,
    hu_picture,
    rtstruct_dataset,
    segmentation,
    series,
    write,
)

HERE = ImportOptions(isolate=False)


def patient(folder: Path, patient_id: str, names: dict[int, str], *, seed: int = 0, radius: float = 6.0) -> None:
    """Three slices and a structure set with one round ROI for each number, largest on the middle slice."""
    frame = f"1.2.3.{seed + 1}"
    slices = []
    for n in range(3):
        ds = ct_dataset(hu_picture(10 * seed + n), z=5.0 * n, patient=patient_id)
        ds.FrameOfReferenceUID, ds.SeriesInstanceUID = frame, frame + ".1"
        slices.append(ds)
        write(ds, folder / f"{n}.dcm")
    rois = {
        number: (name, [contour(circle_mm(20 + 18 * place, 30, radius - abs(n - 1) * 2, 5.0 * n)) for n in range(3)])
        for place, (number, name) in enumerate(names.items())
    }
    write(rtstruct_dataset(rois, frame=frame, patient=patient_id), folder / "RS.dcm")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    patient(folder / "a", "Ann", {1: "Cyst_1", 5: "met"}, seed=0)
    patient(folder / "b", " ann ", {1: "Met 2"}, seed=1)
    patient(folder / "c", "Bob", {2: "CYST"}, seed=2)
    return folder


def find_source(path: Path) -> find.FoundSource:
    return find.find_source(path, Guard(0), lambda done, total, text: None)


def errors(findings) -> list[str]:
    return [str(finding) for finding in findings if finding.severity == "error"]


def test_one_lesion_for_each_roi_on_its_largest_slice(cohort, tmp_path):
    report = import_source(cohort, tmp_path / "rois")
    rois = load_rois(report.path)
    assert (len(rois), report.num_patients) == (4, 2)  # 'Ann' and ' ann ' are one person
    assert rois.labels.tolist() == [-1] * 4
    assert rois.masks is not None
    assert all(int(mask.sum()) > 100 for mask in rois.masks)  # radius 6; the other slices have 4
    assert list(rois.lesion_ids) == sorted(rois.lesion_ids)
    assert any("unlabelled" in finding.rule for finding in report.findings)


def test_every_slice_on_request(cohort, tmp_path):
    rois = load_rois(import_source(cohort, tmp_path / "rois", ImportOptions(every_slice=True)).path)
    assert len(rois) == 12
    assert len(set(rois.lesion_ids)) == 12
    assert len(set(rois.patient_ids)) == 2


def test_importing_again_gives_the_same_bytes_even_from_other_file_names(cohort, tmp_path):
    import_source(cohort, tmp_path / "one")
    import_source(cohort, tmp_path / "two")
    assert manifest_sha256(tmp_path / "one") == manifest_sha256(tmp_path / "two")
    os.rename(cohort / "a", cohort / "z")
    os.rename(cohort / "c" / "1.dcm", cohort / "c" / "renamed")
    import_source(cohort, tmp_path / "three")
    one, three = load_rois(tmp_path / "one"), load_rois(tmp_path / "three")
    assert (one.lesion_ids, one.patient_ids) == (three.lesion_ids, three.patient_ids)


def key_file(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


def test_pseudonyms_are_made_with_a_secret_key(cohort, tmp_path):
    key = key_file(tmp_path / "key", "0123456789abcdef0123456789abcdef")
    keyed = load_rois(import_source(cohort, tmp_path / "b", ImportOptions(pseudonym_key=key)).path)
    alone = load_rois(import_source(cohort / "c", tmp_path / "c", ImportOptions(pseudonym_key=key)).path)
    assert set(alone.patient_ids) < set(keyed.patient_ids)
    digest = hmac.new(b"0123456789abcdef0123456789abcdef", b"bob", "sha256").hexdigest()
    assert alone.patient_ids == (f"P-{digest[:16]}",)
    key_file(key, "another key of 16 bytes")
    other = load_rois(import_source(cohort / "c", tmp_path / "d", ImportOptions(pseudonym_key=key)).path)
    assert not set(other.patient_ids) & set(keyed.patient_ids)


def test_a_key_is_made_when_there_is_none_and_used_again(cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    one = load_rois(import_source(cohort, tmp_path / "one").path)
    key = tmp_path / "config" / "lesionaug" / "pseudonym.key"
    assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert len(key.read_text().strip()) == 64
    assert one.patient_ids == load_rois(import_source(cohort, tmp_path / "two").path).patient_ids
    key.unlink()
    assert set(one.patient_ids).isdisjoint(load_rois(import_source(cohort, tmp_path / "three").path).patient_ids)
    secret = key.read_bytes().strip()
    for store in ("one", "two", "three"):
        for file in (tmp_path / store).iterdir():
            assert secret not in file.read_bytes()


@pytest.mark.parametrize(
    ("content", "mode", "place", "words"),
    [
        ("short", 0o600, "key", "16 bytes"),
        ("0123456789abcdef", 0o640, "key", "other users can read"),
        ("0123456789abcdef", 0o604, "key", "other users can read"),
        (None, 0o600, "rois/key", "must not lie in the store"),
    ],
)
def test_keys_that_protect_nobody_are_refused(cohort, tmp_path, content, mode, place, words):
    key = tmp_path / place
    if content is not None:
        key_file(key, content).chmod(mode)
    with pytest.raises(ConfigError, match=words):
        import_source(cohort, tmp_path / "rois", ImportOptions(pseudonym_key=key))
    assert not (tmp_path / "rois").exists()


def test_one_person_under_two_ids_by_an_alias_table(cohort, tmp_path):
    aliases = tmp_path / "aliases.csv"
    aliases.write_text("patient_id,same_as\nBOB,Robert\nRobert,ann\n")
    labels = tmp_path / "labels.csv"
    labels.write_text("patient_id,label\nAnn,cyst\nBob,metastasis\n")
    options = ImportOptions(patient_aliases=aliases, labels=labels)
    rois = load_rois(import_source(cohort, tmp_path / "rois", options).path)
    assert len(set(rois.patient_ids)) == 1
    assert sorted(rois.classes[label] for label in rois.labels) == ["cyst"] * 3 + ["metastasis"]


def test_an_id_is_one_however_it_is_written(tmp_path):
    name = "Jos\u00e9 M\u00fcller-\u00c51"
    written = [name, unicodedata.normalize("NFD", name), "JOS\u00c9\u00a0\u00a0M\u00fc\u200bller-\uff21\u030a1 "]
    assert len({patient_key(one) for one in (*written, *map(patient_key, written))}) == 1
    assert patient_key("M\u00fcller-1") != patient_key("Muller-1")
    assert patient_key("\u200b \ufeff") == ""
    for number, one in enumerate(written[:2]):
        patient(tmp_path / "dicom" / str(number), "x", {1: "roi"}, seed=number)
        for path in (tmp_path / "dicom" / str(number)).iterdir():
            ds = pydicom.dcmread(path)
            ds.SpecificCharacterSet, ds.PatientID = "ISO_IR 192", one
            ds.save_as(path)
    (tmp_path / "labels.csv").write_text(f"patient_id,label\n{written[2]},cyst\n", encoding="utf-8")
    options = ImportOptions(labels=tmp_path / "labels.csv")
    report = import_source(tmp_path / "dicom", tmp_path / "one", options)
    assert (report.num_lesions, report.num_patients, report.class_counts) == (2, 1, {"cyst": (2, 1)})
    aliases = tmp_path / "aliases.csv"
    aliases.write_text(f"patient_id,same_as\n{written[2]},Bob\n", encoding="utf-8")
    assert Aliases.read(aliases).of(patient_key(written[1])) == "bob"
    table = tmp_path / "table"
    table.mkdir()
    rows = ["image,patient_id,polygon_xy,row_spacing_mm,col_spacing_mm"]
    for number, one in enumerate(written):
        picture = hu_picture(number).astype(np.int32) + 32768
        Image.fromarray(picture.astype(np.uint16)).save(table / f"{number}.png")
        rows.append(f'{number}.png,{one},"20,20 40,20 40,40",1,1')
    (table / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    options = ImportOptions(isolate=False, hu_offset=-32768.0)
    assert import_source(table, tmp_path / "two", options).num_patients == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("patient_id,alias\na,b\n", "patient_id and same_as"),
        ("patient_id,same_as\na,\n", "must not be empty"),
        ("patient_id,same_as\na,b\nA,c\n", "another same_as"),
        ("patient_id,same_as\na,b\nb,c\nc,a\n", "circle"),
    ],
)
def test_alias_tables_that_say_two_things_are_refused(cohort, tmp_path, content, words):
    (tmp_path / "aliases.csv").write_text(content)
    options = ImportOptions(patient_aliases=tmp_path / "aliases.csv")
    assert words in "\n".join(errors(check_source(cohort, options)))
    with pytest.raises(DataError, match=words):
        import_source(cohort, tmp_path / "rois", options)


def test_labels_from_a_file_by_patient_and_by_lesion(cohort, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("patient_id,lesion_id,label\nANN,5,metastasis\nann,,cyst\nbob,2,cyst\nzoe,,cyst\n")
    report = import_source(cohort, tmp_path / "rois", ImportOptions(labels=labels))
    assert report.class_counts == {"cyst": (3, 2), "metastasis": (1, 1)}
    assert any("1 rows fit no lesion (lines 5)" in finding.rule for finding in report.findings)
    store_id = next(e["id"] for e in read_manifest(report.path)["lesions"] if e["label"] == "metastasis")
    labels.write_text(f"patient_id,lesion_id,label\nann,{store_id},hemangioma\nann,,cyst\nbob,,cyst\n")
    report = import_source(cohort, tmp_path / "again", ImportOptions(labels=labels))
    assert report.class_counts == {"cyst": (3, 2), "hemangioma": (1, 1)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("patient_id,label\nann,cyst\n", "the file lacks the patient"),
        ("patient_id,lesion_id,label\nann,1,cyst\nbob,2,cyst\n", "knows this patient's lesions 1"),
        ("patient_id,label\nann,cyst\nann,met\nbob,met\n", "another class further up"),
        ("patient_id,label\nann,\nbob,x\n", "class name"),
        ("patient,label\nann,x\n", "columns patient_id and label"),
        ("patient_id,label\n", "no rows"),
    ],
)
def test_label_file_mistakes(cohort, tmp_path, content, words):
    labels = tmp_path / "labels.csv"
    labels.write_text(content)
    assert words in "\n".join(errors(check_source(cohort, ImportOptions(labels=labels))))
    with pytest.raises(DataError):
        import_source(cohort, tmp_path / "rois", ImportOptions(labels=labels))
    assert not (tmp_path / "rois").exists()


def test_a_missing_label_file_is_refused_even_when_faults_are_skipped(cohort, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        import_source(cohort, tmp_path / "rois", ImportOptions(labels=tmp_path / "nothing.csv", skip_faulty=True))


def test_labels_by_name(cohort, tmp_path):
    options = ImportOptions(label_map=("Cyst*=cyst", "met=metastasis", "Met 2=metastasis"))
    report = import_source(cohort, tmp_path / "rois", options)
    assert report.class_counts == {"cyst": (2, 2), "metastasis": (2, 1)}
    report = import_source(cohort, tmp_path / "less", ImportOptions(label_map=("cyst*=cyst", "met*=-")))
    assert report.class_counts == {"cyst": (2, 2)}
    assert report.num_skipped == 2
    found = errors(check_source(cohort, ImportOptions(label_map=("cyst*=cyst",))))
    assert len(found) == 1
    names = "'CYST' (1), 'Cyst_1' (1), 'Met 2' (1), 'met' (1)"
    assert f"no rule for 'Met 2' (1), 'met' (1); found here: {names}" in found[0]


@pytest.mark.parametrize("written", ["cyst", "=cyst", "a=", "a=b\x07", f"a={'x' * 65}"])
def test_label_map_mistakes(cohort, tmp_path, written):
    with pytest.raises(ConfigError, match="--label-map"):
        import_source(cohort, tmp_path / "rois", ImportOptions(label_map=(written,)))
    with pytest.raises(ConfigError, match="two classes"):
        check_source(cohort, ImportOptions(label_map=("a=b", "A=c")))
    with pytest.raises(ConfigError, match="one of the two"):
        check_source(cohort, ImportOptions(label_map=("a=b",), labels=tmp_path / "x"))


def test_patterns_that_contradict_each_other_are_the_users_mistake_for_structure_sets_too(cohort, tmp_path):
    options = ImportOptions(label_map=("cy*=cyst", "*st*=metastasis", "met*=metastasis"))
    with pytest.raises(ConfigError, match="--label-map"):
        check_source(cohort, options)
    with pytest.raises(ConfigError, match="--label-map"):
        import_source(cohort, tmp_path / "rois", options)


def test_one_bad_file_hides_nothing_and_blocks_the_import(cohort, tmp_path):
    (cohort / "a" / "0.dcm").write_bytes((cohort / "a" / "0.dcm").read_bytes()[:-500])
    (cohort / "b" / "2.dcm").write_bytes(b"not dicom")
    found = errors(check_source(cohort))
    assert [message.split(":")[0] for message in found] == ["a/0.dcm", "b/2.dcm"]
    with pytest.raises(SourceRefused) as caught:
        import_source(cohort, tmp_path / "rois")
    assert len(errors(caught.value.findings)) == 2
    assert not (tmp_path / "rois").exists()
    assert import_source(cohort, tmp_path / "rois", ImportOptions(skip_faulty=True)).num_lesions == 4
    assert list(tmp_path.glob(".rois*")) == []


def test_duplicates_are_taken_once_and_contradictions_refused(tmp_path):
    patient(tmp_path / "s" / "a", "Ann", {1: "x"})
    slices = sorted((tmp_path / "s" / "a").glob("[0-9].dcm"))
    rois = {1: ("y", [contour(circle_mm(20, 30, 6.0, 5.0))])}
    write(rtstruct_dataset(rois, frame="1.2.3.1", patient="Ann"), tmp_path / "s" / "a" / "RS2.dcm")
    report = import_source(tmp_path / "s", tmp_path / "rois")
    assert (report.num_lesions, report.num_skipped) == (1, 1)
    assert "duplicate" in report.report.read_text()
    found = errors(check_source(tmp_path / "s", ImportOptions(label_map=("x=cyst", "y=met"))))
    assert "another patient or class" in found[0]
    copy = tmp_path / "s" / "a" / "copy.dcm"
    copy.write_bytes(slices[1].read_bytes())
    assert any("same file" in str(f) for f in check_source(tmp_path / "s"))
    content = bytearray(slices[1].read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert "another content" in errors(check_source(tmp_path / "s"))[0]


def test_a_series_under_two_patients_is_refused_even_with_the_margins_on_other_slices(tmp_path):
    for number, name in enumerate(("Ann", "Bob")):
        frame = f"1.2.3.{number}"
        for n in range(3):
            ds = ct_dataset(hu_picture(n), z=5.0 * n, patient=name)
            ds.FrameOfReferenceUID, ds.SeriesInstanceUID = frame, frame + ".1"
            write(ds, tmp_path / "s" / name / f"{n}.dcm")
        rois = {1: ("x", [contour(circle_mm(20, 30, 6.0, 5.0 * number))])}
        write(rtstruct_dataset(rois, frame=frame, patient=name), tmp_path / "s" / name / "RS.dcm")
    found = errors(check_source(tmp_path / "s"))
    assert len(found) == 2
    assert all("under another patient" in message for message in found)
    with pytest.raises(DataError):
        import_source(tmp_path / "s", tmp_path / "rois")


def test_a_missing_patient_id_is_refused(tmp_path):
    patient(tmp_path / "s", "", {1: "x"})
    assert "PatientID is empty" in errors(check_source(tmp_path / "s"))[0]


def test_several_parts_of_a_mask_are_pointed_out(tmp_path):
    slices = series(tmp_path / "s", 1)
    mask = disc(HEIGHT, WIDTH, 20, 20, 5) | disc(HEIGHT, WIDTH, 60, 20, 5)
    write(segmentation(slices, mask[None, ..., None], ["a"]), tmp_path / "s" / "seg.dcm")
    assert any("2 separate parts" in finding.rule for finding in check_source(tmp_path / "s"))


def phantom(folder: Path, mark: str = "lesionaug phantom") -> None:
    slices = [ct_dataset(hu_picture(n), z=5.0 * n, patient="PHANTOM-0001") for n in range(2)]
    for number, ds in enumerate(slices):
        ds.Manufacturer = mark if number else "lesionaug phantom"
        write(ds, folder / f"{number}.dcm")
    masks = np.zeros((2, HEIGHT, WIDTH, 2), dtype=bool)
    masks[0, ..., 0], masks[1, ..., 1] = disc(HEIGHT, WIDTH, 30, 20, 8), disc(HEIGHT, WIDTH, 40, 30, 6)
    write(segmentation(slices, masks, ["cyst", "metastasis"], manufacturer="lesionaug phantom"), folder / "seg.dcm")


def test_a_phantom_stays_a_phantom_and_brings_its_classes(tmp_path):
    phantom(tmp_path / "s")
    report = import_source(tmp_path / "s", tmp_path / "rois")
    assert report.kind == "phantom"
    assert report.class_counts == {"cyst": (1, 1), "metastasis": (1, 1)}
    assert load_rois(report.path).kind == "phantom"


def test_a_mixture_of_phantom_and_patients_is_refused_always(tmp_path):
    phantom(tmp_path / "s", "somebody")
    assert "mixes" in "\n".join(errors(check_source(tmp_path / "s")))
    with pytest.raises(DataError, match="mixes"):
        import_source(tmp_path / "s", tmp_path / "rois", ImportOptions(skip_faulty=True))


def test_what_is_found(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        find_source(tmp_path / "nothing")
    folder = tmp_path / "s"
    folder.mkdir()
    with pytest.raises(DataError, match="nothing here"):
        find_source(folder)
    for name, words in (("a.nrrd", "NRRD"), ("b.zip", "archive")):
        (folder / name).write_bytes(b"whatever")
        with pytest.raises(DataError, match=words):
            find_source(folder)
        with pytest.raises(DataError, match=words):
            find_source(folder / name)
    (folder / "x.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"NRRD.*NIfTI.*archive"):
        find_source(folder)
    series(folder)
    assert find_source(folder).slices
    assert "no margins were found" in "\n".join(errors(check_source(folder)))


def test_other_objects_in_the_folder_are_skipped_or_refused_by_name(cohort, tmp_path):
    report_object = ct_dataset(hu_picture())
    report_object.SOPClassUID = report_object.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    write(report_object, cohort / "dose.dcm")
    (cohort / "README.txt").write_text("hello")
    (cohort / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    findings = check_source(cohort)
    assert not errors(findings)
    assert any("X-Ray Radiation Dose SR" in finding.rule for finding in findings)
    report_object.SOPClassUID = report_object.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    write(report_object, cohort / "enhanced.dcm")
    assert "NumberOfFrames must be 1 .. 65536" in errors(check_source(cohort))[0]


def test_a_margin_file_may_be_named_where_a_folder_holds_several_sources(cohort, tmp_path):
    (cohort / "table.csv").write_text('image,patient_id,polygon_xy\na/1.dcm,Ann,"10,10 30,10 30,30"\n')
    with pytest.raises(DataError, match="several sources"):
        find_source(cohort)
    assert import_source(cohort / "a" / "RS.dcm", tmp_path / "one").num_lesions == 2
    assert import_source(cohort / "table.csv", tmp_path / "two").num_lesions == 1


def test_nothing_that_is_written_or_said_in_errors_of_a_store_leads_to_the_patient(tmp_path):
    folder = tmp_path / "CANARYFOLDER"
    slices = series(folder, patient="CANARYID")
    points = contour(circle_mm(30, 25, 9, 5.0), reference=slices[1].SOPInstanceUID)
    rois = {
        1: ("CANARYROI", [points]),
        2: ("CANARYEMPTY", None),
        3: ("CANARYOUT", [contour(circle_mm(-50, 0, 9, 5.0))]),
    }
    structure_set = rtstruct_dataset(rois, patient="CANARYID")
    write(structure_set, folder / "CANARYFILE.dcm")
    report = import_source(folder, tmp_path / "rois", ImportOptions(label_map=("canary*=cyst",), skip_faulty=True))
    assert (report.num_lesions, report.num_skipped) == (1, 2)
    uids = [str(element.value) for ds in (*slices, structure_set) for element in ds.iterall() if element.VR == "UI"]
    forbidden = ["canary", "19410203", "19991231", str(tmp_path)]
    forbidden += [uid for uid in uids if uid and not uid.startswith("1.2.840.10008")]
    files = [path for path in report.path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "manifest.json",
        "pixels.safetensors",
        "import_report.csv",
        "contact_sheet.png",
    }
    for path in files:
        content = path.read_bytes().lower()
        for word in forbidden:
            assert word.lower().encode() not in content, (path.name, word)


def test_the_real_canary_leaves_no_trace(shared_data, tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "phi_canary.dcm").symlink_to(shared_data / "awkward" / "phi_canary.dcm")
    (folder / "t.csv").write_text(
        'image,patient_id,polygon_xy\nphi_canary.dcm,LEAKCANARYID42,"90,100 120,100 120,130 90,130"\n'
    )
    report = import_source(folder, tmp_path / "rois")
    content = b"".join(path.read_bytes() for path in report.path.iterdir())
    for word in (b"LEAKCANARY", b"leakcanary", b"phi_canary", b"19410203", b"19991231", b"1.2.826"):
        assert word not in content


def test_the_manifest_and_the_report_hold_the_outside_fraction_of_each_lesion(tmp_path):
    series(tmp_path / "s")
    rois = {1: ("edge", [contour(circle_mm(4, 25, 6.0, 5.0))]), 2: ("middle", [contour(circle_mm(45, 30, 3.0, 5.0))])}
    write(rtstruct_dataset(rois), tmp_path / "s" / "RS.dcm")
    report = import_source(tmp_path / "s", tmp_path / "rois")
    by_number = {e["source"]["margin_number"]: e for e in read_manifest(report.path)["lesions"]}
    edge = by_number[1]
    center = (edge["origin"][0] + edge["center"][0], edge["origin"][1] + edge["center"][1])
    expected = worst_outside_fraction(center, edge["diameter_px"], (0.8, 0.8), HEIGHT, WIDTH)
    assert expected > 0.2
    assert edge["worst_outside_fraction"] == pytest.approx(expected, abs=1e-5)
    assert by_number[2]["worst_outside_fraction"] == 0.0
    with report.report.open() as stream:
        written = {row["margin_number"]: float(row["worst_outside_fraction"]) for row in csv.DictReader(stream)}
    assert written["1"] == pytest.approx(expected, abs=1e-3)
    assert written["2"] == 0.0


def test_the_contact_sheet_of_a_phantom_says_so(tmp_path, monkeypatch):
    phantom(tmp_path / "s")
    said: list[str] = []
    draw_text = ImageDraw.ImageDraw.text

    def record(self, place, text, *args, **keywords):
        said.append(text)
        return draw_text(self, place, text, *args, **keywords)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    report = import_source(tmp_path / "s", tmp_path / "rois")
    assert said[0].startswith("PHANTOM (synthetic, no patients)")
    rois = load_rois(report.path)
    sheets = [draw_contact_sheet(replace(rois, kind=kind), (-160.0, 240.0)) for kind in ("phantom", "imported")]
    assert sheets[0] == report.sheet.read_bytes()
    assert sheets[0] != sheets[1]
    assert not any("PHANTOM" in text for text in said[len(said) // 3 * 2 :])


def test_contours_without_a_slice_are_counted_by_lesion_and_for_the_whole_import(cohort, tmp_path):
    assert not any("have no slice here" in str(finding) for finding in check_source(cohort))
    (cohort / "a" / "0.dcm").unlink()
    (cohort / "c" / "0.dcm").unlink()
    (cohort / "c" / "2.dcm").unlink()
    report = import_source(cohort, tmp_path / "rois")
    with report.report.open() as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["contours_without_slice"] for row in rows) == ["0", "1", "1", "2"]
    said = [f.rule for f in report.findings if f.severity == "warning" and "have no slice here" in f.rule]
    assert said == ["4 contours or frames of 3 margins have no slice here"]


def test_the_report_lists_every_margin(cohort, tmp_path):
    write(
        rtstruct_dataset({8: ("elsewhere", [contour(circle_mm(20, 30, 6.0, 500.0))])}, frame="1.2.3.1", patient="Ann"),
        cohort / "a" / "RS2.dcm",
    )
    report = import_source(cohort, tmp_path / "rois")
    with report.report.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["taken"] for row in rows] == ["yes"] * 4 + ["no"]
    assert rows[-1]["reason"] == "no slice of it is in the source"
    assert rows[-1]["margin_number"] == "8"
    by_id = {entry["id"]: entry for entry in read_manifest(report.path)["lesions"]}
    for row in rows[:4]:
        entry = by_id[row["lesion_id"]]
        assert row["patient"] == entry["patient"]
        assert row["slice_file"] == entry["source"]["slice"]
        assert float(row["diameter_px"]) == pytest.approx(entry["diameter_px"], abs=1e-3)
    with Image.open(report.sheet) as sheet:
        assert sheet.text == {}
        assert np.ptp(np.asarray(sheet)) > 200


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_the_command_line(cohort, tmp_path, capsys):
    code, out, _ = run(capsys, "data", "check", cohort)
    assert code == 0
    assert "0 errors" in out
    arguments = ("--label-map", "cyst*=cyst", "--label-map", "met*=metastasis")
    code, out, err = run(capsys, "data", "import", cohort, tmp_path / "rois", *arguments)
    assert (code, "error" in err) == (0, False)
    assert "4 lesions of 2 patients" in out
    assert "contact_sheet.png" in out
    code, _, err = run(capsys, "data", "import", cohort, tmp_path / "rois")
    assert code == 3
    assert "exists already" in err
    (cohort / "a" / "0.dcm").write_bytes(b"broken")
    code, out, _ = run(capsys, "data", "check", cohort)
    assert code == 3
    assert "a/0.dcm" in out
    code, _, err = run(capsys, "data", "import", cohort, tmp_path / "other")
    assert code == 3
    assert "Traceback" not in err
    assert run(capsys, "data", "import", cohort, tmp_path / "other", "--label-map", "x")[0] == 2


def test_findings_show_names_of_others_as_text_and_the_store_holds_none(tmp_path, capsys):
    source = tmp_path / "source"
    patient(source, "Ann", {})
    rois = {
        1: ("A", [contour(circle_mm(40, 30, 8, 5))]),
        2: ("A\x1b[31mB\nC", [contour(circle_mm(40, 30, 8, 500))]),
    }
    write(rtstruct_dataset(rois, frame="1.2.3.1", patient="Ann"), source / "RS.dcm")
    (source / os.fsdecode(b"b\xff.dcm")).write_bytes(b"broken")
    points = [{"position": list(map(float, point))} for point in circle_mm(40, 30, 8, 500)]
    curve = {"type": "ClosedCurve", "coordinateSystem": "LPS", "name": "\ud800x", "controlPoints": points}
    (source / "a.mrk.json").write_text(json.dumps({"markups": [curve]}))
    code, out, _ = run(capsys, "data", "check", source)  # capsys takes no surrogates
    assert code == 3
    assert "error: b?.dcm: " in out
    assert "warning: a.mrk.json" in out
    assert "'A?[31mB?C'" in out
    assert all(character.isprintable() for line in out.split("\n") for character in line)
    code, out, _ = run(capsys, "data", "import", source, tmp_path / "rois", "--skip-faulty")
    assert code == 0
    rows = list(csv.DictReader((tmp_path / "rois" / "import_report.csv").read_text(encoding="utf-8").splitlines()))
    assert sorted(row["taken"] for row in rows) == ["no", "no", "yes"]


def test_a_negative_offset_is_no_option(tmp_path, capsys):
    Image.fromarray((hu_picture().astype(np.int32) + 32768).astype(np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(
        'image,patient_id,polygon_xy,row_spacing_mm,col_spacing_mm\na.png,P,"20,20 40,20 40,40",1,1\n'
    )
    code, out, err = run(capsys, "data", "import", tmp_path / "t.csv", tmp_path / "rois", "--hu-offset", "-32768")
    assert code == 0, out + err
    assert np.abs(load_rois(tmp_path / "rois").images[0].numpy()).max() < 400


def test_the_class_may_come_from_the_name_of_a_folder(tmp_path):
    patient(tmp_path / "s" / "Cysts" / "p1", "Ann", {1: "x"}, seed=0)
    patient(tmp_path / "s" / "mets" / "p2", "Bob", {1: "x"}, seed=1)
    patient(tmp_path / "s" / "others" / "p3", "Cid", {1: "x"}, seed=2)
    options = ImportOptions(label_map=("cysts=cyst", "mets=metastasis", "others=-"))
    report = import_source(tmp_path / "s", tmp_path / "rois", options)
    assert report.class_counts == {"cyst": (1, 1), "metastasis": (1, 1)}
    assert [
        row["reason"] for row in csv.DictReader(report.report.read_text().splitlines()) if row["taken"] == "no"
    ] == ["left out"]


def warnings(findings) -> str:
    return "\n".join(str(finding) for finding in findings if finding.severity == "warning")


def test_aliases_of_nobody_are_said(cohort, tmp_path):
    aliases = tmp_path / "aliases.csv"
    aliases.write_text("patient_id,same_as\nBobb,Ann\nBob,Anne\nann,bob\n")
    said = warnings(check_source(cohort, ImportOptions(patient_aliases=aliases)))
    assert "aliases.csv line 2: its patient_id is no patient of this source" in said
    assert "aliases.csv line 3: its same_as is no patient of this source" in said
    aliases.write_text("patient_id,same_as\nBOB,Ann\n")
    assert "aliases.csv" not in warnings(check_source(cohort, ImportOptions(patient_aliases=aliases)))


def test_options_that_do_nothing_are_said(cohort, tmp_path):
    options = ImportOptions(hu_offset=-1024.0, spacing_mm=(1.0, 1.0), pixel_edge=True, trust_voxels=True)
    said = warnings(check_source(cohort, options))
    for name in ("--hu-offset", "--spacing", "--pixel-edge", "--trust-voxels"):
        assert f"{name}: nothing in this source needs it" in said
    assert "nothing in this source" not in warnings(check_source(cohort))
    with pytest.raises(ConfigError, match=r"'PatientsID' is no keyword of DICOM. Did you mean PatientID"):
        check_source(cohort, ImportOptions(patient_by="PatientsID"))


def test_what_is_no_tissue_and_no_shape_of_a_pixel_is_said(tmp_path):
    folder = tmp_path / "s"
    slices = series(folder, spacing=(0.5, 3.0))
    for n, ds in enumerate(slices):
        ds.RescaleIntercept = 2200  # 3024 .. 3523 HU
        write(ds, folder / f"{n}.dcm")
    points = contour(circle_mm(60, 25, 9, 5.0), reference=slices[1].SOPInstanceUID)
    write(rtstruct_dataset({1: ("x", [points])}), folder / "RS.dcm")
    findings = check_source(folder)
    assert "most of the lesion's pixels are not within -1024 .. 3071 HU" in errors(findings)[0]
    for n, ds in enumerate(slices):
        ds.RescaleIntercept = -1024
        write(ds, folder / f"{n}.dcm")
    findings = check_source(folder)
    assert errors(findings) == []
    assert "its pixels are 3 mm wide and 0.5 mm high" in warnings(findings)


def test_a_new_key_is_said_and_no_folder_made_for_it(cohort, tmp_path):
    with pytest.raises(ConfigError, match="folder of the key file does not exist"):
        import_source(cohort, tmp_path / "rois", ImportOptions(pseudonym_key=tmp_path / "typo" / "key"))
    assert not (tmp_path / "typo").exists()
    options = ImportOptions(pseudonym_key=tmp_path / "key")
    assert [import_source(cohort, tmp_path / name, options).new_key for name in ("a", "b")] == [True, False]


def test_several_sources_are_named_by_kind(cohort):
    (cohort / "table.csv").write_text('image,patient_id,polygon_xy\na/1.dcm,Ann,"10,10 30,10 30,30"\n')
    said = errors(check_source(cohort))[0]
    assert "DICOM: a/RS.dcm, b/RS.dcm and 1 more; table: table.csv" in said
    assert "--format with one of rtstruct, table" in said


def test_a_table_with_other_columns_is_named(cohort):
    (cohort / "polygons.csv").write_text("file,patient,polygon\n")
    assert "polygons.csv: a CSV without the columns of a table" in warnings(check_source(cohort))


def test_a_margin_under_an_alias_of_its_slices_patient(tmp_path):
    folder = tmp_path / "s"
    slices = series(folder, patient="Ann")
    points = contour(circle_mm(30, 25, 9, 5.0), reference=slices[1].SOPInstanceUID)
    write(rtstruct_dataset({1: ("x", [points])}, patient="Ann Smith"), folder / "RS.dcm")
    found = "\n".join(errors(check_source(folder)))
    assert "different patients" in found
    assert "--patient-aliases" in found
    (tmp_path / "aliases.csv").write_text("patient_id,same_as\nann smith,ann\n")
    options = ImportOptions(patient_aliases=tmp_path / "aliases.csv")
    assert import_source(folder, tmp_path / "rois", options).num_lesions == 1


def test_a_label_file_and_a_map_that_only_leaves_out_go_together(cohort, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("patient_id,label\nAnn,metastasis\n")
    options = ImportOptions(labels=labels, label_map=("CYST=-", "cyst_1=-"))
    assert import_source(cohort, tmp_path / "rois", options).class_counts == {"metastasis": (2, 1)}


def test_a_picture_by_itself_is_checked_and_not_imported(cohort, tmp_path, capsys):
    for words, code in (
        (["check", cohort / "a" / "1.dcm"], 0),
        (["import", cohort / "a" / "1.dcm", tmp_path / "x"], 3),
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(["data", *map(str, words)])
        assert left.value.code == code
    assert "0 errors, 0 warnings: nothing to import" in capsys.readouterr().out


def test_an_object_by_itself_that_is_no_slice_is_not_ready_to_import(tmp_path, capsys):
    scout, capture = ct_dataset(hu_picture()), ct_dataset(hu_picture())
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    capture.SOPClassUID = capture.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    for ds in (scout, capture):
        write(ds, tmp_path / "a.dcm")
        code, out, _ = run(capsys, "data", "check", tmp_path / "a.dcm")
        assert code == 0
        assert "skipped: " in out
        assert "can be read" not in out
        assert "0 errors, 0 warnings: nothing to import" in out


@pytest.mark.parametrize("kind", ["meta information", "explicit", "implicit"])
@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_dicom_without_its_preamble_is_named(tmp_path, suffix, kind):
    ds = ct_dataset(hu_picture(), patient="Ann")
    path = tmp_path / f"I0{suffix}"
    if kind == "meta information":
        write(ds, path)
        path.write_bytes(path.read_bytes()[132:])
    else:
        stream = pydicom.filebase.DicomBytesIO()
        stream.is_implicit_VR, stream.is_little_endian = kind == "implicit", True
        pydicom.filewriter.write_dataset(stream, ds)
        path.write_bytes(stream.getvalue())
    (said,) = errors(check_source(tmp_path, HERE))
    assert said.startswith(f"{path.name}: this looks like DICOM without the preamble")
    assert "dcmconv" in said


def test_other_binary_files_are_no_dicom_without_a_preamble(tmp_path):
    rng = np.random.default_rng(0)
    for number, start in enumerate((b"", b"\x08\x00", b"\x08\x00\x05\x00CS", b"\x08\x00\x05\x00" * 9, bytes(64))):
        (tmp_path / f"{number}.bin").write_bytes(start + rng.bytes(200))
    assert errors(check_source(tmp_path, HERE)) == [
        f"{tmp_path.name}: nothing here is a supported source. docs/import.md lists what can be imported"
    ]


def test_a_pointer_in_place_of_a_slice_is_a_fault(cohort):
    (cohort / "a" / "1.dcm").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for path in (cohort, cohort / "a" / "1.dcm"):
        assert any("1.dcm: this is a Git LFS pointer" in line for line in errors(check_source(path, HERE)))


def test_an_xml_file_is_known_behind_a_long_comment(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(f"<!--{'x' * 5000}--><ImageAnnotationCollection/>")
    assert recognise(SourceFile(1, path, path.name)).kind == "aim"


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_with_other_separators_is_told_to_have_commas(tmp_path, separator):
    path = tmp_path / "t.csv"
    path.write_text("image,patient_id,polygon_xy\n".replace(",", separator) + "a.png;p;1,1 2,2 3,1\n")
    for place in (tmp_path, path):
        assert errors(check_source(place, HERE))[0] == (
            "t.csv: columns must be separated by commas. Save it as comma-separated CSV"
        )


def test_what_a_file_is_may_stand_in_its_data_set_alone(cohort, tmp_path):
    ds = pydicom.dcmread(cohort / "c" / "RS.dcm")
    del ds.file_meta.MediaStorageSOPClassUID
    ds.save_as(cohort / "c" / "RS.dcm", enforce_file_format=False)
    assert import_source(cohort / "c", tmp_path / "rois").num_lesions == 1


def test_a_key_that_cannot_be_used_is_said_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "lesionaug").mkdir()
    key_file(tmp_path / "lesionaug" / "pseudonym.key", "0123456789abcdef").chmod(0o644)
    with pytest.raises(ConfigError, match="other users can read"):
        import_source(tmp_path / "no such source", tmp_path / "rois")


def test_a_pacs_export_holds_much_that_is_no_ct(cohort, tmp_path):
    for number, (sop_class, modality) in enumerate(
        (
            ("1.2.840.10008.5.1.4.1.1.4", "MR"),
            ("1.2.840.10008.5.1.4.1.1.128", "PT"),
            ("1.2.840.10008.5.1.4.1.1.7", "OT"),
            ("1.3.12.2.1107.5.9.1", "CT"),  # raw data of a manufacturer
        )
    ):
        ds = ct_dataset(hu_picture(number), patient="Ann")
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
        ds.Modality = modality
        if modality == "CT":
            for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelSpacing",
                            "ImagePositionPatient", "ImageOrientationPatient", "PixelRepresentation"):  # fmt: skip
                del ds[keyword]
        write(ds, cohort / f"other{number}.dcm")
    findings = check_source(cohort)
    assert errors(findings) == []
    said = "\n".join(finding.rule for finding in findings)
    assert all(words in said for words in ("MR Image", "Positron", "Secondary Capture", "private SOP class"))
    ds = ct_dataset(hu_picture(9), patient="Ann")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.222"
    write(ds, cohort / "bent.dcm")
    assert "SOP class must be one that DICOM knows" in errors(check_source(cohort))[0]
