"""One lesion in every encoding gives one ROI: the same HU, the same mask, the same id (the files of ../shared/data)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lesionaug.data.importer import import_source
from lesionaug.data.options import ImportOptions
from lesionaug.data.sources.formats import FORMATS
from lesionaug.data.store import load_rois, read_manifest

SPACING = (0.810547, 0.810547)
NAMED = ("metastasis*=metastasis",)
PNG = {"hu_offset": -32768.0, "spacing_mm": SPACING}
MASK = {"label_map": ("*=metastasis",)}

# Format, file, what it needs beside it, options.
CASES = [
    ("rtstruct", "rtstruct.dcm", "ct", {}),
    ("seg", "seg_binary.dcm", "ct", MASK),
    ("seg", "seg_fractional.dcm", "ct", MASK),
    ("seg", "seg_labelmap.dcm", "ct", MASK),
    ("sr", "sr_tid1500.dcm", "ct", {"label_map": ("SCT:108369006=metastasis",)}),
    ("sr", "sr_tid1500.dcm", "ct", {"label_map": ("neoplasm=metastasis",)}),
    ("aim", "aim.xml", "ct", {}),
    ("slicer", "slicer_closedcurve_LPS.mrk.json", "ct", {}),
    ("slicer", "slicer_closedcurve_RAS.mrk.json", "ct", {}),
    ("table", "polygons.csv", "ct", {"label_map": ()}),
    ("coco", "coco.json", "png", PNG),
    ("labelme", "labelme.json", "png", PNG),
    ("deeplesion", "DL_info.csv", "png/000001_01_01_002.png", {"label_map": ("*=metastasis",)}),
    ("nifti", "nifti/mask.nii.gz", "nifti/image.nii.gz", MASK),
    ("nifti", "nifti/mask_PIR.nii.gz", "nifti/image_PIR.nii.gz", MASK),
    ("nifti", "nifti/mask_canonicalRAS.nii.gz", "nifti/image_canonicalRAS.nii.gz", MASK),
    ("nifti", "nifti/mask.nii.gz", "nifti/image_sclinter.nii.gz", MASK),
    ("nifti", "nifti/mask.nii.gz", "nifti/image_4d.nii.gz", MASK),
    ("nifti", "nifti/mask.nii.gz", "nifti/image_PIR.nii.gz", MASK),
    ("nifti", "nifti/mask_probability_float.nii.gz", "nifti/image.nii.gz", MASK),
    ("nifti", "nifti/mask_identity_affine.nii.gz", "nifti/image.nii.gz", {**MASK, "trust_voxels": True}),
]


@pytest.mark.parametrize(
    ("named", "kind", "file", "beside", "options"),
    [
        *(("file", *case) for case in CASES),
        *(("folder", *case) for case in CASES if case[0] != "nifti"),  # pairs in a folder have tests of their own
    ],
)
def test_one_lesion(shared_data, tmp_path, named, kind, file, beside, options):
    """Alone with the images that it was drawn on, named as a file or found in its folder."""
    folder, truth = shared_data / "one_lesion", json.loads((shared_data / "one_lesion" / "truth.json").read_text())
    source = tmp_path / "source"
    source.mkdir()
    options = {"label_map": NAMED, **options}
    written = folder / ("png" if kind == "deeplesion" else "") / file
    margins = source / Path(file).name
    shutil.copy(written, margins)
    copy = shutil.copytree if (folder / beside).is_dir() else shutil.copy
    if kind == "nifti":
        options["image"] = source / Path(beside).name
        copy(folder / beside, options["image"])
    else:
        (source / beside).parent.mkdir(exist_ok=True)
        copy(folder / beside, source / (Path(beside).name if kind == "deeplesion" else beside))
        (source / "png" / "DL_info.csv").unlink(missing_ok=True)  # a source of its own
    if kind == "labelme":
        options["pictures"] = tmp_path / "pictures.csv"  # drawn on a windowed copy, by a program that knows no patients
        table = "image,patient_id,hu_image\nwindowed_W400_L40.png,FIXTURE-001,000001_01_01_002.png\n"
        options["pictures"].write_text(table)

    store = tmp_path / "rois"
    report = import_source(margins if named == "file" else source, store, ImportOptions(isolate=False, **options))

    assert (report.num_lesions, report.classes, report.num_skipped) == (1, ("metastasis",), 0)
    assert kind in FORMATS
    assert read_manifest(store)["import"]["format"] == kind
    rois = load_rois(store)
    assert rois.masks is not None
    left, top = np.asarray(rois.origins)[0]
    mask, hu = np.asarray(rois.masks[0]).astype(bool), np.asarray(rois.images[0]).squeeze()
    where = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
    whole = np.load(folder / "truth_mask_slice1.npy") > 0
    assert np.array_equal(mask, whole[where])
    assert mask.sum() == whole.sum()
    assert np.array_equal(hu, np.load(folder / "truth_hu.npy")[truth["slice_index"]][where])
    assert list(rois.lesion_ids) == ["a345edf51eafca4c"]
    assert np.allclose(rois.spacing_mm, [SPACING])
