"""Polygon tables: the documented columns, every kind of image, and one clear error for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from lesionaug.data import collect
from lesionaug.data.importer import check_source, import_source
from lesionaug.data.options import ImportOptions
from lesionaug.data.store import load_rois
from lesionaug.errors import DataError
from tests.dicom_files import ct_dataset, disc, hu_picture, write

HEAD = "image,patient_id,lesion_id,label,polygon_xy,row_spacing_mm,col_spacing_mm"
PNG = ImportOptions(hu_offset=-32768)


def circle(x: float, y: float, radius: float, points: int = 400) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def cell(*polygons: np.ndarray) -> str:
    return '"' + ";".join(" ".join(f"{x:.4f},{y:.4f}" for x, y in polygon) for polygon in polygons) + '"'


def png(path: Path, hu: np.ndarray) -> None:
    Image.fromarray((hu.astype(np.int32) + 32768).astype(np.uint16)).save(path)


def table(folder: Path, *rows: str, head: str = HEAD) -> Path:
    path = folder / "lesions.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def errors(path: Path, options: ImportOptions = PNG) -> list[str]:
    return [str(finding) for finding in check_source(path, options) if finding.severity == "error"]


def test_png_with_an_offset_gives_hu_and_the_exact_mask(tmp_path):
    hu = hu_picture(1)
    png(tmp_path / "a.png", hu)
    source = table(tmp_path, f"a.png,P1,L1,cyst,{cell(circle(30, 25, 7.3))},0.9,0.7")
    rois = load_rois(import_source(source, tmp_path / "rois", PNG).path)
    (x, y), (height, width) = rois.origins[0].tolist(), rois.images[0].shape
    assert rois.masks is not None
    assert np.array_equal(rois.images[0].numpy(), hu[y : y + height, x : x + width])
    expected = disc(60, 80, 30.5, 25.5, 7.3)
    assert np.array_equal(rois.masks[0].numpy(), expected[y : y + height, x : x + width])
    assert rois.spacing_mm is not None
    assert rois.spacing_mm.tolist() == [[0.7, 0.9]]
    assert rois.centers[0].tolist() == [30.5 - x, 25.5 - y]
    assert (rois.classes, rois.kind) == (("cyst",), "imported")


def test_pixel_edge_coordinates_are_half_a_pixel_away(tmp_path):
    png(tmp_path / "a.png", hu_picture(1))
    table(tmp_path, f"a.png,P1,L1,cyst,{cell(circle(30.5, 25.5, 7.3))},1,1")
    import_source(tmp_path, tmp_path / "edge", ImportOptions(hu_offset=-32768, pixel_edge=True))
    table(tmp_path, f"a.png,P1,L1,cyst,{cell(circle(30, 25, 7.3))},1,1")
    import_source(tmp_path / "lesions.csv", tmp_path / "centre", PNG)
    assert load_rois(tmp_path / "edge").lesion_ids == load_rois(tmp_path / "centre").lesion_ids


def test_polygons_of_one_lesion_are_combined_over_cells_rows_and_json(tmp_path):
    png(tmp_path / "a.png", hu_picture(1))
    outer, inner = circle(30, 25, 9.3), circle(30, 25, 4.2)
    as_json = json.dumps([outer.tolist(), inner.tolist()])
    variants = {
        "cell": (HEAD, [f"a.png,P1,L1,cyst,{cell(outer, inner)},1,1"]),
        "rows": (HEAD, [f"a.png,P1,L1,cyst,{cell(p)},1,1" for p in (outer, inner)]),
        "json": (
            "patient_id,image,row_spacing_mm,col_spacing_mm,note,polygons_colrow_json",
            [f'P1,a.png,1,1,x,"{as_json}"'],
        ),
        "order": (
            "polygon_xy,spacing_col_mm,spacing_row_mm,PATIENT_ID, image",
            [f"{cell(outer, inner)},1,1,P1,a.png"],
        ),
    }
    ids = set()
    for name, (head, rows) in variants.items():
        table(tmp_path, *rows, head=head)
        rois = load_rois(import_source(tmp_path / "lesions.csv", tmp_path / name, PNG).path)
        ids.update(rois.lesion_ids)
        assert rois.masks is not None
        assert int(rois.masks[0].sum()) == int((disc(60, 80, 30.5, 25.5, 9.3) ^ disc(60, 80, 30.5, 25.5, 4.2)).sum())
    assert len(ids) == 1


def test_a_polygon_given_twice_counts_once_and_polygons_that_cross_are_named(tmp_path):
    options = ImportOptions(hu_offset=-32768, isolate=False)
    png(tmp_path / "a.png", hu_picture(1))
    png(tmp_path / "b.png", hu_picture(2))
    one, other = cell(circle(30, 25, 9.3)), cell(circle(40, 25, 9.3))
    row = "{}.png,P1,L1,cyst,{},1,1"

    def warnings(*rows: str) -> list[str]:
        own = "lesions.csv line 2 lesion 'L1': "
        return [said for f in check_source(table(tmp_path, *rows), options) if (said := str(f)).startswith(own)]

    (said,) = warnings(row.format("a", one), row.format("a", one))
    assert "1 of 2 outlines of lines 2, 3 repeat another one" in said
    rois = load_rois(import_source(tmp_path / "lesions.csv", tmp_path / "rois", options).path)
    assert rois.masks is not None
    assert int(rois.masks[0].sum()) == int(disc(60, 80, 30.5, 25.5, 9.3).sum())
    said = warnings(row.format("a", one), row.format("a", other))
    assert ["overlap in part" in message for message in said].count(True) == 1
    (said,) = warnings(row.format("a", one), row.format("b", cell(circle(30.5, 25.5, 0.2))))
    assert "no pixel centre on the image of line 3: left out" in said


def test_a_lesion_drawn_twice_is_worth_a_warning(tmp_path, monkeypatch):
    png(tmp_path / "a.png", hu_picture(1))
    png(tmp_path / "b.png", hu_picture(2))
    drawn = [("a", "P1", 30, 25), ("a", "P1", 31, 25), ("a", "P1", 44, 25), ("b", "P2", 30, 25)]
    rows = [
        f"{file}.png,{patient},L{n},cyst,{cell(circle(x, y, 7.3))},1,1"
        for n, (file, patient, x, y) in enumerate(drawn, 1)
    ]

    def warnings() -> list[str]:
        findings = check_source(table(tmp_path, *rows), PNG)
        return [said for finding in findings if "share" in (said := str(finding)) or "one slice" in said]

    (warned,) = warnings()
    assert "L2" in warned.partition("share")[0]
    assert "share 8" in warned  # two discs of radius 7.3, one pixel apart: 84 % of their union
    monkeypatch.setattr(collect, "MOST_COMPARED", 2)
    (warned,) = warnings()
    assert "a.png: 3 lesions lie on one slice of it" in warned


def test_a_dicom_image_gives_its_own_spacing_and_is_turned(tmp_path):
    hu = hu_picture(2)
    write(ct_dataset(hu, spacing=(0.9, 0.7)), tmp_path / "plain.dcm")
    flipped = ct_dataset(hu[:, ::-1], spacing=(0.9, 0.7), orientation=(-1, 0, 0, 0, 1, 0))
    write(flipped, tmp_path / "flipped.dcm")
    ids = []
    for name, x in (("plain", 30), ("flipped", 79 - 30)):
        source = table(tmp_path, f"{name}.dcm,pat-1 ,,cyst,{cell(circle(x, 25, 7.3))},,")
        rois = load_rois(import_source(source, tmp_path / name, ImportOptions()).path)
        ids += rois.lesion_ids
        assert rois.spacing_mm is not None
        assert rois.spacing_mm.tolist() == [[0.7, 0.9]]
    assert ids[0] == ids[1]


def test_the_patient_of_a_table_must_be_that_of_its_dicom_image(tmp_path):
    write(ct_dataset(hu_picture(2), patient="Secret^7"), tmp_path / "a.dcm")
    drawn, other = (cell(circle(x, 25, 7.3)) for x in (25, 55))
    source = table(tmp_path, f"a.dcm, SECRET^7,1,cyst,{drawn},,", f"a.dcm,P2,2,cyst,{other},,")
    (found,) = errors(source)
    assert "lesions.csv line 3" in found
    assert "a.dcm" in found
    assert "the file's PatientID is another one" in found
    assert "secret" not in found.lower()


def test_one_picture_under_two_patients_is_refused(tmp_path):
    drawn, other = (cell(circle(x, 25, 7.3)) for x in (25, 55))
    png(tmp_path / "a.png", hu_picture(2))
    png(tmp_path / "copy.png", hu_picture(2))
    png(tmp_path / "own.png", hu_picture(3))
    for second in ("a.png", "copy.png"):
        rows = (f"a.png,P1,1,cyst,{drawn},1,1", f"{second},P2,2,cyst,{other},1,1", f"own.png,P3,3,cyst,{drawn},1,1")
        source = table(tmp_path, *rows)
        found = errors(source)
        assert len(found) == 2
        assert "line 2 lesion '1'" in found[1]
        assert "line 3 lesion '2'" in found[1]
        assert "under another patient" in found[0]
    report = import_source(source, tmp_path / "rois", ImportOptions(hu_offset=-32768, skip_faulty=True))
    assert (report.num_lesions, report.num_skipped) == (1, 2)


def nifti(path: Path, hu: np.ndarray, axes: str, code: int = 1) -> None:
    """A volume of two slices, `hu` [y, x] towards left and back the second, stored with its axes in another order."""
    volume = np.stack([hu * 0, hu], axis=-1).transpose(1, 0, 2)  # [x, y, z] towards L, P, S
    affine = np.diag([-0.7, -0.9, 5.0, 1.0])  # NIfTI's axes are R, A, S
    image = nibabel.Nifti1Image(volume, affine)
    image = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt(("L", "P", "S")), nibabel.orientations.axcodes2ornt(tuple(axes))
        )
    )
    image.set_sform(image.affine, code)
    image.set_qform(image.affine, code)
    nibabel.save(image, path)


@pytest.mark.parametrize(
    ("axes", "x", "y", "z"), [("LPS", 30, 25, 1), ("RAS", 49, 34, 1), ("LPI", 30, 25, 0), ("PLS", 25, 30, 1)]
)
def test_nifti_in_any_axial_orientation_gives_one_lesion(tmp_path, axes, x, y, z):
    hu = hu_picture(3)
    png(tmp_path / "a.png", hu)
    source = table(tmp_path, f"a.png,P1,,cyst,{cell(circle(30, 25, 7.3))},0.9,0.7")
    wanted = load_rois(import_source(source, tmp_path / "png", PNG).path)
    nifti(tmp_path / "a.nii.gz", hu, axes)
    source = table(
        tmp_path, f"a.nii.gz,P1,{z},cyst,{cell(circle(x, y, 7.3))}", head="image,patient_id,slice,label,polygon_xy"
    )
    rois = load_rois(import_source(source, tmp_path / "nifti").path)
    assert rois.lesion_ids == wanted.lesion_ids
    assert rois.spacing_mm is not None
    assert rois.spacing_mm[0].tolist() == pytest.approx([0.7, 0.9])


def test_nifti_mistakes(tmp_path):
    head, row = "image,patient_id,slice,polygon_xy", "a.nii.gz,P1,{},{}"
    nifti(tmp_path / "a.nii.gz", hu_picture(), "LPS")
    drawn = cell(circle(30, 25, 7.3))
    assert "slice column" in errors(table(tmp_path, row.format("", drawn), head=head))[0]
    assert "slice must be 0 .. 1" in errors(table(tmp_path, row.format(2, drawn), head=head))[0]
    assert "whole number" in errors(table(tmp_path, row.format(-1, drawn), head=head))[0]
    nifti(tmp_path / "a.nii.gz", hu_picture(), "PIR")
    assert "must be axial" in errors(table(tmp_path, row.format(1, drawn), head=head))[0]
    nifti(tmp_path / "a.nii.gz", hu_picture(), "LPS", code=0)
    assert "oriented" in errors(table(tmp_path, row.format(1, drawn), head=head))[0]
    nifti(tmp_path / "a.nii.gz", hu_picture(), "LPS")
    (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:900])
    assert "broken" in errors(table(tmp_path, row.format(1, drawn), head=head))[0]
    (tmp_path / "a.nii.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS" in errors(table(tmp_path, row.format(1, drawn), head=head))[0]


ROW = f"a.png,P1,L1,cyst,{cell(circle(30, 25, 7.3))},1,1"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (ROW.replace("a.png", "b.png"), "is missing"),
        (ROW.replace("a.png", ""), "image and patient_id must not be empty"),
        (ROW.replace("P1", ""), "image and patient_id must not be empty"),
        (ROW.replace(",1,1", ",,"), "how large its pixels are"),
        (ROW.replace(",1,1", ",1,0"), "0.01 .. 20 mm"),
        (ROW.replace(",1,1", ",nan,1"), "0.01 .. 20 mm"),
        (ROW.replace("cyst", ""), "label is empty"),
        ("a.png,P1,L1,cyst,1 2 3,1,1", "polygons must be"),
        ('a.png,P1,L1,cyst,"1,1 2,2",1,1', "polygons must be"),
        ('a.png,P1,L1,cyst,"1,1 2,2 nan,4",1,1', "polygons must be"),
        ('a.png,P1,L1,cyst,"[[[1,2],[3]]]",1,1', "polygons must be"),
        ('a.png,P1,L1,cyst,"[1,2",1,1', "polygons must be"),
        ('a.png,P1,L1,cyst,"500,500 510,500 510,510",1,1', "no pixel centre"),
        ("a.png,P1,L1,cyst,1,1", "must have 7 cells"),
        (ROW.replace("cyst", "x" * 65), "class name"),
    ],
)
def test_each_mistake_in_a_row_has_one_error_with_its_line(tmp_path, row, words):
    png(tmp_path / "a.png", hu_picture(1))
    found = errors(table(tmp_path, row))
    assert len(found) == 1
    assert words in found[0]
    assert "lesions.csv line 2" in found[0]


def test_faulty_rows_are_all_listed_and_the_good_ones_importable_on_request(tmp_path):
    png(tmp_path / "a.png", hu_picture(1))
    good = f"a.png,P2,L2,cyst,{cell(circle(50, 30, 6.3))},1,1"
    source = table(tmp_path, ROW.replace("a.png", "b.png"), good, ROW.replace("L1", "L3").replace(",1,1", ",0,1"))
    assert len(errors(source)) == 2
    with pytest.raises(DataError, match="1 more"):
        import_source(source, tmp_path / "rois", PNG)
    assert not (tmp_path / "rois").exists()
    report = import_source(source, tmp_path / "rois", ImportOptions(hu_offset=-32768, skip_faulty=True))
    assert (report.num_lesions, report.num_skipped) == (1, 2)
    assert report.report.read_text().count("\nno,") == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEAD + "\n", "no rows"),
        (HEAD.replace(",", ";") + "\n", "without the columns of a table|commas"),
        (HEAD + ",label\n" + ROW + ",x\n", "distinct"),
        (HEAD.replace("patient_id", "who") + "\n" + ROW + "\n", "patient_id"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, words):
    (tmp_path / "lesions.csv").write_text(content)
    with pytest.raises(DataError, match=words):
        import_source(tmp_path / "lesions.csv", tmp_path / "rois", PNG)


def test_eight_bits_a_missing_offset_and_a_wrong_spacing_are_refused(tmp_path):
    source = table(tmp_path, ROW)
    png(tmp_path / "a.png", hu_picture(1))
    assert "--hu-offset" in errors(source, ImportOptions())[0]
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(tmp_path / "a.png")
    assert "8-bit" in errors(source)[0]
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(tmp_path / "a.jpg")
    assert "16-bit PNG, NIfTI or DICOM" in errors(table(tmp_path, ROW.replace("a.png", "a.jpg")))[0]
    write(ct_dataset(hu_picture(), spacing=(0.9, 0.7), patient="P1"), tmp_path / "a.dcm")
    assert "file says 1 x 1" in errors(table(tmp_path, ROW.replace("a.png", "a.dcm")))[0]


def test_real_tables_import(shared_data, tmp_path):
    folder = shared_data / "sts51"
    options = ImportOptions(labels=folder / "labels.csv", hu_offset=-32768)
    report = import_source(folder, tmp_path / "rois", options)
    assert (report.num_lesions, report.num_patients) == (51, 51)
    assert report.class_counts == {"large": (17, 17), "medium": (17, 17), "small": (17, 17)}
    rois = load_rois(report.path)
    # The same lesion out of the RTSTRUCT has the same id: the table's polygons and pixels are those of the DICOM files.
    dicom = load_rois(import_source(shared_data / "sts_rtstruct" / "STS_003", tmp_path / "one").path)
    assert set(dicom.lesion_ids) < set(rois.lesion_ids)


def test_one_real_lesion_is_the_same_in_every_supported_format(shared_data, tmp_path):
    folder = shared_data / "one_lesion"
    truth = np.load(folder / "truth_mask_slice1.npy") > 0
    hu = np.load(folder / "truth_hu.npy")[1]
    ids = set()
    for name in ("rtstruct.dcm", "seg_binary.dcm", "seg_fractional.dcm", "seg_labelmap.dcm", "polygons.csv"):
        rois = load_rois(import_source(folder / name, tmp_path / name).path)
        (x, y), (height, width) = rois.origins[0].tolist(), rois.images[0].shape
        assert rois.masks is not None
        assert np.array_equal(rois.masks[0].numpy(), truth[y : y + height, x : x + width]), name
        assert int(rois.masks[0].sum()) == int(truth.sum())
        assert np.array_equal(rois.images[0].numpy(), hu[y : y + height, x : x + width]), name
        ids.update(rois.lesion_ids)
    assert len(ids) == 1


def test_damaged_real_nifti_volumes_are_refused(shared_data, tmp_path):
    for name in ("truncated", "nan_image", "singular_affine", "git_lfs_pointer"):
        (tmp_path / "a.nii.gz").unlink(missing_ok=True)
        (tmp_path / "a.nii.gz").symlink_to(shared_data / "corrupt" / f"{name}.nii.gz")
        row = 'a.nii.gz,P1,1,"1,1 5,1 5,5"'
        assert errors(table(tmp_path, row, head="image,patient_id,slice,polygon_xy")), name
        assert errors(tmp_path / "a.nii.gz"), name


MASKED = "image,patient_id,label,mask,row_spacing_mm,col_spacing_mm"


def mask_png(path: Path, mask: np.ndarray, kind: str) -> Path:
    values = {"1": mask, "L": mask * np.uint8(255), "I;16": mask.astype(np.uint16) * 65535, "one": mask * np.uint8(1)}
    Image.fromarray(values[kind]).save(path)
    return path


def test_masks_of_any_grey_depth_give_the_polygons_lesion(tmp_path):
    png(tmp_path / "a.png", hu_picture(1))
    drawn = disc(60, 80, 30.5, 25.5, 7.3)
    source = table(tmp_path, f"a.png,P1,L1,cyst,{cell(circle(30, 25, 7.3))},1,1")
    wanted = load_rois(import_source(source, tmp_path / "wanted", PNG).path).lesion_ids
    for kind in ("1", "L", "I;16", "one"):
        mask_png(tmp_path / "m.png", drawn, kind)
        source = table(tmp_path, "a.png,P1,cyst,m.png,1,1", head=MASKED)
        rois = load_rois(import_source(source, tmp_path / kind.replace(";", ""), PNG).path)
        assert (rois.lesion_ids, rois.classes) == (wanted, ("cyst",)), kind
    # Two masks of one lesion are one; names may lie anywhere that the table says.
    mask_png(tmp_path / "half.png", drawn & (np.arange(80) < 30), "L")
    mask_png(tmp_path / "rest.png", drawn & (np.arange(80) >= 30), "L")
    rows = ("a.png,P1,cyst,half.png,1,1,L1", f"a.png,P1,cyst,../{tmp_path.name}/rest.png,1,1,L1")
    report = import_source(table(tmp_path, *rows, head=MASKED + ",lesion_id"), tmp_path / "both", PNG)
    assert load_rois(report.path).lesion_ids == wanted
    absolute = table(tmp_path, f"{tmp_path / 'a.png'},P1,cyst,{tmp_path / 'm.png'},1,1", head=MASKED)
    assert load_rois(import_source(absolute, tmp_path / "absolute", PNG).path).lesion_ids == wanted


def test_nifti_masks_in_a_table_lie_on_their_image(tmp_path):
    nifti(tmp_path / "a.nii.gz", hu_picture(3), "LPS")
    drawn = disc(60, 80, 30.5, 25.5, 7.3)
    nifti(tmp_path / "m.nii.gz", drawn.astype(np.int16), "LPS")
    png(tmp_path / "a.png", hu_picture(3))
    head, row = "image,patient_id,slice,mask", "{},P1,1,m.nii.gz"
    source = table(tmp_path, f"a.png,P1,,cyst,{cell(circle(30, 25, 7.3))},0.9,0.7")
    wanted = load_rois(import_source(source, tmp_path / "wanted", PNG).path).lesion_ids
    source = table(tmp_path, row.format("a.nii.gz"), head=head)
    assert load_rois(import_source(source, tmp_path / "nifti").path).lesion_ids == wanted
    assert "slice" in errors(table(tmp_path, "a.nii.gz,P1,2,m.nii.gz", head=head))[0]
    nifti(tmp_path / "m.nii.gz", drawn.astype(np.int16), "RAS")  # the same voxels in another order
    assert "axes of a mask" in errors(table(tmp_path, row.format("a.nii.gz"), head=head))[0]
    affine = np.diag([-0.7, -0.9, 5.0, 1.0])
    affine[0, 3] = 3.0
    stacked = np.stack([drawn * 0, drawn], axis=-1).transpose(1, 0, 2).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(stacked, affine), tmp_path / "m.nii.gz")
    assert "grid" in errors(table(tmp_path, row.format("a.nii.gz"), head=head))[0]
    trusted = ImportOptions(trust_voxels=True)
    assert load_rois(import_source(source, tmp_path / "trusted", trusted).path).lesion_ids == wanted


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.png,P1,cyst,gone.png,1,1,", "mask that the table names is missing"),
        ("a.png,P1,cyst,small.png,1,1,", "shape of its image"),
        ("a.png,P1,cyst,colour.png,1,1,", "grey PNG"),
        ("a.png,P1,cyst,empty.png,1,1,", "no pixel centre"),
        ("a.png,P1,cyst,broken.png,1,1,", "cannot be read"),
        ('a.png,P1,cyst,full.png,1,1,"1,1 5,1 5,5"', "not both"),
        ("a.png,P1,cyst,,1,1,", "polygons must be"),
    ],
)
def test_each_mistake_about_a_mask_has_one_error_with_its_line(tmp_path, row, words):
    png(tmp_path / "a.png", hu_picture(1))
    full = np.ones((60, 80), np.uint8)
    Image.fromarray(full).save(tmp_path / "full.png")
    Image.fromarray(full[:50]).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(full * 0).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "full.png").read_bytes()[:60])
    found = errors(table(tmp_path, row, head=MASKED + ",polygon_xy"))
    assert len(found) == 1
    assert words in found[0]
    assert "lesions.csv line 2" in found[0]


def test_one_real_png_and_its_mask_give_the_truth(shared_data, tmp_path):
    folder = shared_data / "one_lesion"
    for name in ("000001_01_01_002.png", "mask.png", "windowed_W400_L40.png"):
        (tmp_path / name).symlink_to(folder / "png" / name)
    row = "000001_01_01_002.png,FIXTURE-001,metastasis,mask.png,0.810547,0.810547"
    rois = load_rois(import_source(table(tmp_path, row, head=MASKED), tmp_path / "rois", PNG).path)
    assert rois.lesion_ids == load_rois(import_source(folder / "rtstruct.dcm", tmp_path / "wanted").path).lesion_ids
    windowed = row.replace("000001_01_01_002", "windowed_W400_L40")
    assert "8-bit" in errors(table(tmp_path, windowed, head=MASKED))[0]
