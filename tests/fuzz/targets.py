"""What is fuzzed: for each target its seeds, a mutator, and a check that raises when the property does not hold.

The property of all: from any bytes, a `LesionaugError` comes out or a result that can be used, within 5 s of CPU time
and the memory that a guarded reader has.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import mutators
from tests.fuzz.mutators import Mutator, join, split

CPU_SECONDS = 5.0
Check = Callable[[bytes], int | None]


class Finding(AssertionError):
    """The property does not hold."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        build: Makes what the reader needs in an empty folder; gives the check of an input, and the seeds. A check of
            margins gives the number of lesions.
        mutate: Knows the structure of its files.
    """

    build: Callable[[Path], tuple[Check, list[bytes]]]
    mutate: Mutator

    def prepare(self, folder: Path) -> tuple[Check, list[bytes]]:
        """`build`, and try the seeds: what a reader imports lazily is not held to the bounds of an input."""
        global _bounds
        check, seeds = self.build(folder)
        _bounds = False
        for seed in seeds:
            check(seed)
        _bounds = True
        return check, seeds


_bounds = True


@contextlib.contextmanager
def bounded(size: int) -> Iterator[None]:
    """Hold what runs inside to the property, for an input of `size` bytes; errors of ours are what it should give."""
    from lesionaug.data.sources.guard import MEMORY_BYTES, MEMORY_PER_FILE_BYTE
    from lesionaug.errors import LesionaugError

    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    if _bounds:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES + MEMORY_PER_FILE_BYTE * size, unlimited[1]))
    begun = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except LesionaugError as error:
        if not (error.rule and str(error)):
            raise Finding("an error without a rule") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
    seconds = time.process_time() - begun
    if seconds > CPU_SECONDS and _bounds:
        raise Finding(f"it took {seconds:.1f} s of CPU time")


def no_step(done: int, total: int, text: str) -> None:
    """Progress that nobody asked for."""


# Files of images and margins


def _small_series(folder: Path) -> list[Any]:
    from tests.dicom_files import ct_dataset, hu_picture, write

    slices = [ct_dataset(hu_picture(n, 24, 32), z=5.0 * n) for n in range(2)]
    for number, dataset in enumerate(slices):
        write(dataset, folder / f"{number}.dcm")
    return slices


def _bytes_of(dataset: Any) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(stream, enforce_file_format=False)
    return stream.getvalue()


def _read_ct(folder: Path) -> list[Any]:
    from lesionaug.data.slices import SourceFile
    from lesionaug.data.sources.dicom_ct import read_ct_slice
    from lesionaug.data.sources.dicom_file import read_dicom

    found = []
    for number, file in enumerate(sorted(folder.glob("*.dcm")), 1):
        source = SourceFile(number, file, file.name)
        found.append(read_ct_slice(source, read_dicom(source, pixels=True)))
    return found


def _check_lesions(results: list[Any]) -> int:
    """What readers yield must go into a store; the number of lesions."""
    import numpy as np

    from lesionaug.data.import_report import manifest_entry, report_csv
    from lesionaug.data.rois import RoiBatch
    from lesionaug.data.slices import HU_CLIP, Lesion

    lesions = list({e.lesion_id: e for e in results if isinstance(e, Lesion)}.values())
    if not lesions:
        return 0
    for lesion in lesions:
        if not (np.isfinite(lesion.hu).all() and HU_CLIP[0] <= lesion.hu.min() <= lesion.hu.max() <= HU_CLIP[1]):
            raise Finding("HU out of range")
        if not (lesion.mask.any() and lesion.mask.shape == lesion.hu.shape):
            raise Finding("a lesion without a mask")
    RoiBatch.from_images(
        [lesion.hu.astype(np.float32) for lesion in lesions],
        np.array([lesion.center for lesion in lesions], dtype=np.float64),
        np.array([lesion.diameter_px for lesion in lesions], dtype=np.float32),
        spacing_mm=np.array([lesion.spacing_mm for lesion in lesions], dtype=np.float64),
        masks=[lesion.mask for lesion in lesions],
        origins=np.array([lesion.origin for lesion in lesions], dtype=np.int64),
        patient_ids=[lesion.margin.patient for lesion in lesions],
    )
    json.dumps([manifest_entry(lesion) for lesion in lesions], allow_nan=False)
    report_csv(lesions, [None] * len(lesions), {lesion.margin.patient: "P" for lesion in lesions}, [])
    return len(lesions)


def _through_guard(reader: Any, source: Any, shared: Any, *more: Any) -> list[Any]:
    """What a guarded reader gives of a file: here, or in a worker where a codec in C++ may take the process with it."""
    from lesionaug.data.sources.guard import Guard, Job

    native = b"1.2.840.10008.1.2.4." in source.path.read_bytes()
    with Guard(1 if native else 0) as guard:
        guard.share(shared)
        (outcome,) = guard.run([Job(source.name, reader, (source, *more), source.size)], no_step, "")
    return [*outcome.results, *([outcome.error] if outcome.error else [])]


def _slices(folder: Path) -> tuple[Check, list[bytes]]:
    """A DICOM file that may be a CT slice."""
    from lesionaug.data.slices import SourceFile
    from lesionaug.data.sources.dicom_ct import CtSlice
    from lesionaug.data.sources.given import Given
    from lesionaug.data.sources.jobs import read_slices, recognise_file

    path = folder / "a.dcm"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        source = SourceFile(1, path, path.name)
        with bounded(len(data)):
            _through_guard(recognise_file, source, Given())
            for found in _through_guard(read_slices, source, Given()):
                if isinstance(found, CtSlice):
                    loaded = found.load()
                    if loaded.hu.shape != found.turned_shape or not min(loaded.spacing_mm) > 0:
                        raise Finding("a slice that is not what it says")

    return check, [_bytes_of(dataset) for dataset in _ct_seeds(folder)]


def _ct_seeds(folder: Path) -> list[Any]:
    import numpy as np
    from pydicom.uid import RLELossless

    from tests.dicom_files import ct_dataset, hu_picture

    picture = hu_picture(3, 24, 32)
    flipped = ct_dataset(picture, orientation=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), spacing=(0.5, 0.9))
    packed = ct_dataset(picture)
    packed.compress(RLELossless, np.frombuffer(packed.PixelData, "<i2").reshape(24, 32), generate_instance_uid=False)
    lossless = []
    for name in ("JPEG2000Lossless", "JPEGLSLossless"):
        from pydicom import uid

        one = ct_dataset(picture)
        with contextlib.suppress(Exception):  # an encoder that is not here
            one.compress(getattr(uid, name), generate_instance_uid=False)
            lossless.append(one)
    return [ct_dataset(picture), flipped, packed, *lossless, *_multi_frame(picture)]


def _multi_frame(picture: Any) -> list[Any]:
    """An Enhanced CT of two frames, as far as readers look."""
    from pydicom.dataset import Dataset

    from tests.dicom_files import ct_dataset

    ds = ct_dataset(picture)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    ds.NumberOfFrames, ds.PixelData = 2, ds.PixelData * 2

    def item(**values: Any) -> list[Dataset]:
        one = Dataset()
        for name, value in values.items():
            setattr(one, name, value)
        return [one]

    measures = item(PixelSpacing=[0.8, 0.8], SliceThickness=5.0)
    scale = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    ds.SharedFunctionalGroupsSequence = item(
        PixelMeasuresSequence=measures,
        PixelValueTransformationSequence=scale,
        PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    )
    ds.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=item(ImagePositionPatient=[10.0, 20.0, 5.0 * n]))[0] for n in range(2)
    ]
    for name in ("RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"):
        del ds[name]
    return [ds]


def _rtstruct_seeds(folder: Path, slices: list[Any]) -> list[bytes]:
    from tests.dicom_files import circle_mm, contour, rtstruct_dataset

    first, second = (
        contour(circle_mm(15, 12, radius, 5.0 * n, points=9), reference=reference)
        for n, (radius, reference) in enumerate(((5, str(slices[0].SOPInstanceUID)), (4, None)))
    )
    hole = contour(circle_mm(15, 12, 2, 0.0, points=5))
    point = contour(circle_mm(5, 5, 2, 0.0, points=1), kind="POINT")
    return [_bytes_of(rtstruct_dataset({1: ("cyst", [first, hole]), 7: ("met", [second, point]), 9: ("none", None)}))]


def _seg_seeds(folder: Path, slices: list[Any]) -> list[bytes]:
    import numpy as np

    from tests.dicom_files import disc, segmentation

    masks = np.zeros((2, 24, 32, 2), dtype=bool)
    masks[0, ..., 0], masks[1, ..., 1] = disc(24, 32, 10, 9, 4), disc(24, 32, 20, 12, 5)
    return [
        _bytes_of(segmentation(slices, masks * 0.8 if kind == "FRACTIONAL" else masks, ["cyst", "met"], kind=kind))
        for kind in ("BINARY", "FRACTIONAL", "LABELMAP")
    ]


def _picture(folder: Path) -> Any:
    """a.png, 16 bits, beside margins that name it; and a.nii."""
    import nibabel
    import numpy as np
    from PIL import Image

    from tests.dicom_files import hu_picture

    hu = hu_picture(1, 24, 32)
    Image.fromarray((hu.astype(np.int32) + 32768).astype(np.uint16)).save(folder / "a.png")
    (folder / "pictures.csv").write_text("image,patient_id\na.png,P1\n", encoding="utf-8")
    Image.fromarray(((hu > 100) * 255).astype(np.uint8)).save(folder / "mask.png")
    nibabel.save(nibabel.Nifti1Image(np.stack([hu.T] * 3, 2), np.diag([-0.8, -0.8, 5.0, 1.0])), folder / "a.nii")
    return hu


_SQUARE = "5.5,5.5 15.5,5.5 15.5,15 5.5,15"


def _table_seeds(folder: Path, slices: list[Any]) -> list[bytes]:
    head = "image,patient_id,lesion_id,label,polygon_xy,row_spacing_mm,col_spacing_mm"
    rows = [f'a.png,P1,L1,cyst,"{_SQUARE};8,8 9,8 9,9",0.8,0.8', f'a.png,P2,,met,"{_SQUARE}",0.8,0.8']
    written = json.dumps([[[5.5, 5.5], [15, 5.5], [12, 15]]])
    volume = ["image,patient_id,slice,polygons_xy_json", f'a.nii,P1,1,"{written}"', f'a.nii,P1,2,"{written}"']
    masks = ["image,patient_id,mask,row_spacing_mm,col_spacing_mm", "a.png,P1,mask.png,0.8,0.8"]
    dicom = ["image,patient_id,polygon_xy", f'0.dcm,Pat-1,"{_SQUARE}"']
    return ["\n".join(lines).encode() for lines in ([head, *rows], volume, masks, dicom)]


def _coco_seeds(folder: Path, slices: list[Any]) -> list[bytes]:
    polygon = [5.5, 5.5, 15.5, 5.5, 15.5, 15.0, 5.5, 15.0]
    annotation = {
        "id": 1,
        "image_id": 4,
        "category_id": 2,
        "segmentation": [polygon],
        "bbox": [5, 5, 10, 10],
        "area": 95,
    }
    runs = annotation | {"id": 2, "iscrowd": 1, "segmentation": {"size": [24, 32], "counts": [130, 8, 16, 8, 606]}}
    packed = annotation | {"id": 3, "segmentation": {"size": [24, 32], "counts": "R4808"}}
    image = {"id": 4, "file_name": "a.png", "width": 32, "height": 24, "patient_id": "P1"}
    image |= {"row_spacing_mm": 0.8, "col_spacing_mm": 0.8, "hu_offset": -32768}
    content = {"images": [image], "annotations": [annotation, runs, packed], "categories": [{"id": 2, "name": "cyst"}]}
    return [json.dumps(content).encode()]


def _labelme_seeds(folder: Path, slices: list[Any]) -> list[bytes]:
    points = [[5.5, 5.5], [15.5, 5.5], [15.5, 15.0]]
    shape = {"label": "cyst", "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
    circle = shape | {"shape_type": "circle", "points": points[:2], "group_id": 3}
    box = shape | {"shape_type": "rectangle", "points": [[2, 2], [9, 8]]}
    content = {"version": "5.0.1", "flags": {"patient_id": "P1"}, "shapes": [shape, circle, box], "imagePath": "a.png"}
    return [json.dumps(content | {"imageData": None, "imageHeight": 24, "imageWidth": 32}).encode()]


def _sr_seeds(folder: Path, slices: list[Any]) -> list[bytes]:
    from tests.dicom_files import circle_mm
    from tests.test_structured_report import group, region, region_mm, report, ring

    uid = str(slices[1].SOPInstanceUID)
    outline = group(region("POLYLINE", ring(15, 12, 5, points=9), uid), name="cyst 1", uid="1.2.3")
    around = group(region("CIRCLE", [(15, 12), (15, 16)], uid), region("POINT", [(3, 3)], uid), name="cyst 2")
    in_space = group(region_mm("POLYGON", [*(points := circle_mm(15, 12, 5, 0.0, points=9)), points[0]]), name="met")
    return [_bytes_of(report(outline, around, in_space))]


def _nifti_mask_seeds(folder: Path, slices: list[Any]) -> list[bytes]:
    import gzip

    import nibabel
    import numpy as np

    from tests.dicom_files import disc, hu_picture

    hu = np.stack([hu_picture(n, 24, 32).T for n in range(3)], 2)
    affine = np.diag([-0.8, -0.8, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(hu, affine), folder / "case_image.nii")
    labels = np.zeros((32, 24, 3), np.uint8)
    labels[..., 1], labels[2:6, 2:6, 2] = disc(24, 32, 15, 12, 5).T, 2
    whole = nibabel.Nifti1Image(labels, affine).to_bytes()
    likely = nibabel.Nifti1Image(labels.astype(np.float32) * 0.4, affine).to_bytes()
    turned = nibabel.Nifti1Image(
        labels[::-1], np.array([[0.8, 0, 0, -24.8], [0, -0.8, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])
    )
    return [whole, likely, turned.to_bytes(), gzip.compress(whole)]


def _slicer_seeds(folder: Path, slices: list[Any]) -> list[bytes]:
    from tests.dicom_files import circle_mm

    points = [
        {"id": str(n), "position": list(map(float, point)), "positionStatus": "defined"}
        for n, point in enumerate(circle_mm(15, 12, 5, 0.0, points=9))
    ]
    curve = {"type": "ClosedCurve", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    content = {"@schema": "https://raw.githubusercontent.com/slicer/slicer/markups-schema-v1.0.3.json#"}
    return [json.dumps(content | {"markups": [curve | {"name": "cyst"}, curve | {"type": "Fiducial"}]}).encode()]


def _aim_seeds(folder: Path, slices: list[Any]) -> list[bytes]:
    points = "".join(
        f'<TwoDimensionSpatialCoordinate><coordinateIndex value="{n}"/><x value="{x}"/><y value="{y}"/>'
        "</TwoDimensionSpatialCoordinate>"
        for n, (x, y) in enumerate(((5.5, 5.5), (15.5, 5.5), (15.5, 15.0)))
    )
    uid = slices[0].SOPInstanceUID
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><ImageAnnotationCollection xmlns="gme://caCORE.caCORE/4.4/edu.northwestern'
        '.radiology.AIM" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" aimVersion="AIMv4_0"><person><id value='
        '"Pat-1"/></person><imageAnnotations><ImageAnnotation><uniqueIdentifier root="1.2.3"/><name value="cyst"/>'
        '<markupEntityCollection><MarkupEntity xsi:type="TwoDimensionPolyline"><imageReferenceUid root="'
        f'{uid}"/><referencedFrameNumber value="1"/><twoDimensionSpatialCoordinateCollection>{points}'
        "</twoDimensionSpatialCoordinateCollection></MarkupEntity></markupEntityCollection></ImageAnnotation>"
        "</imageAnnotations></ImageAnnotationCollection>"
    )
    return [text.encode()]


def _deeplesion_seeds(folder: Path, slices: list[Any]) -> list[bytes]:
    head = (
        "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
        "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,"
        "Spacing_mm_px_,Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test"
    )
    axes = '"6.5, 7.5, 16.5, 15.5, 14.0, 8.0, 9.0, 14.5"'
    rest = '"10.1, 6.2","0.3, 0.6, 0.5",5,0,"1, 3","0.8, 0.8, 5","32, 24","-160, 240",F,60,1'
    (folder / "000001_01_01").mkdir(exist_ok=True)
    (folder / "000001_01_01" / "002.png").write_bytes((folder / "a.png").read_bytes())
    row = f'000001_01_01_002.png,1,1,1,2,{axes},"1.5, 2.5, 21.5, 20.5",{rest}'
    return [f"{head}\n{row}\n".encode()]


def _nifti_seeds(folder: Path) -> list[bytes]:
    import gzip

    import nibabel
    import numpy as np

    from tests.dicom_files import hu_picture

    hu = np.stack([hu_picture(n, 12, 16).T for n in range(3)], 2)
    found = []
    for array, affine in (
        (hu, np.diag([-0.8, -0.8, 5.0, 1.0])),
        ((hu > 150).astype(np.uint8), np.diag([-0.8, -0.8, 5.0, 1.0])),
        (
            hu.astype(np.float32).transpose(2, 0, 1),
            np.array([[0, 0.8, 0, 0], [0, 0, 0.8, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]]),
        ),
    ):
        image = nibabel.Nifti1Image(array, affine)
        if array.dtype == np.int16:
            image.header.set_slope_inter(1.0, -2.0)
        found.append(image.to_bytes())
    return [*found, gzip.compress(found[0])]


def _margins(format_name: str, file: str, seeds: Callable[[Path, list[Any]], list[bytes]]) -> Any:
    """A file of margins of one format, beside its slices or pictures."""

    def build(folder: Path) -> tuple[Check, list[bytes]]:
        from lesionaug.data.slices import SourceFile
        from lesionaug.data.sources.formats import FORMATS
        from lesionaug.data.sources.given import Given, ReadOptions
        from lesionaug.data.sources.jobs import read_lesions, recognise_file

        slices = _small_series(folder)
        _picture(folder)
        read = _read_ct(folder)
        path = folder / file
        inputs = seeds(folder, slices)
        named = sorted(p for p in folder.rglob("*") if p.is_file())
        others = [SourceFile(n, p, p.relative_to(folder).as_posix()) for n, p in enumerate(named, 2)]
        options = ReadOptions(
            hu_offset=-32768.0, spacing_mm=(0.8, 0.8), every_slice=True, pictures_table=folder / "pictures.csv"
        )

        def check(data: bytes) -> int:
            path.write_bytes(data)
            source = SourceFile(1, path, path.name)
            given = Given(slices=read, options=options, files=[source, *others])
            with bounded(len(data)):
                _through_guard(recognise_file, source, given)
                found = _through_guard(read_lesions, source, given, format_name)
            return _check_lesions([entry for part in found if isinstance(part, list) for entry in part])

        FORMATS[format_name].load()
        return check, inputs

    return build


def _nifti(folder: Path) -> tuple[Check, list[bytes]]:
    """A NIfTI file, as a volume whose slices are all read."""
    from lesionaug.data.slices import SourceFile
    from lesionaug.data.sources.given import Given
    from lesionaug.data.sources.jobs import read_volume, recognise_file

    def check(data: bytes) -> None:
        path = folder / ("a.nii.gz" if data.startswith(b"\x1f\x8b") else "a.nii")
        path.write_bytes(data)
        source = SourceFile(1, path, path.name)
        with bounded(len(data)):
            _through_guard(recognise_file, source, Given())
            _through_guard(read_volume, source, Given())

    return check, _nifti_seeds(folder)


def _png(folder: Path) -> tuple[Check, list[bytes]]:
    """A PNG, as the picture and as the mask of a row in a table."""
    from lesionaug.data.sources.given import Given, ReadOptions
    from lesionaug.data.sources.pictures import Pictures, read_mask

    _picture(folder)
    path = folder / "b.png"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        given = Given(options=ReadOptions(hu_offset=-32768.0, spacing_mm=(0.8, 0.8)))
        with bounded(len(data)):
            Pictures(given).get(path, path.name).handle.load()
        with bounded(len(data)):
            read_mask(path, path.name, None, given)

    return check, [(folder / name).read_bytes() for name in ("a.png", "mask.png")]


def _file_reader(name: str, reader: Callable[[], Callable[[Path], Any]], *seeds: bytes) -> Any:
    """A reader of one file, called without a guard as the package calls it."""

    def build(folder: Path) -> tuple[Check, list[bytes]]:
        path, read = folder / name, reader()

        def check(data: bytes) -> None:
            path.write_bytes(data)
            with bounded(len(data)):
                read(path)

        return check, list(seeds)

    return build


def _label_reader() -> Callable[[Path], Any]:
    from lesionaug.data.labels import LabelFile

    return LabelFile.read


def _alias_reader() -> Callable[[Path], Any]:
    from lesionaug.data.patients import Aliases

    return Aliases.read


def _json_recogniser() -> Callable[[Path], Any]:
    from lesionaug.data.slices import SourceFile
    from lesionaug.data.sources.recognise import recognise

    return lambda path: recognise(SourceFile(1, path, path.name))


def _source(folder: Path) -> tuple[Check, list[bytes]]:
    """A folder of slices, a structure set, and a file that may be anything: `data check` as a whole."""
    from lesionaug.data.importer import check_source
    from lesionaug.data.options import ImportOptions

    slices = _small_series(folder)
    _picture(folder)
    (folder / "rs.dcm").write_bytes(_rtstruct_seeds(folder, slices)[0])
    path = folder / "other"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with bounded(len(data)):
            native = b"1.2.840.10008.1.2.4." in data
            check_source(folder, ImportOptions(isolate=native, hu_offset=-32768.0, spacing_mm=(0.8, 0.8)))

    seeds = [_bytes_of(_ct_seeds(folder)[0]), *_rtstruct_seeds(folder, slices), *_seg_seeds(folder, slices)[:1]]
    return check, seeds


# Files of our own, that somebody may have changed


def _store(folder: Path) -> tuple[Check, list[bytes]]:
    """The two files of a ROI store."""
    from lesionaug.data.store import load_rois, save_rois
    from tests.runs import make_rois

    rois = make_rois()[[0, 1, 2]]
    save_rois(rois, folder / "rois")
    files = [folder / "rois" / name for name in ("manifest.json", "pixels.safetensors")]
    seed = join(*(file.read_bytes() for file in files))

    def check(data: bytes) -> None:
        for file, content in zip(files, split(data, 2), strict=True):
            file.write_bytes(content)
        with bounded(len(data)):
            found = load_rois(folder / "rois")
            if not all(bool(image.isfinite().all()) for image in found.images):
                raise Finding("pixels that are not finite")

    return check, [seed]


def _synthetic(folder: Path) -> tuple[Check, list[bytes]]:
    """The two files of a store of synthetic ROIs."""
    import torch

    from lesionaug.data.provenance import Provenance
    from lesionaug.data.synthetic import SyntheticRois, load_synthetic, save_synthetic
    from tests.runs import make_rois

    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    known = Provenance.of(make_rois()[[0, 1]])
    made = SyntheticRois(images, torch.arange(2), ("a", "b"), "phantom", 1, (-160.0, 240.0), known, {"a": 1})
    save_synthetic(made, folder / "s")
    files = [folder / "s" / name for name in ("manifest.json", "images.safetensors")]
    seed = join(*(file.read_bytes() for file in files))

    def check(data: bytes) -> None:
        for file, content in zip(files, split(data, 2), strict=True):
            file.write_bytes(content)
        with bounded(len(data)):
            load_synthetic(folder / "s")

    return check, [seed]


def _checkpoint(folder: Path) -> tuple[Check, list[bytes]]:
    """The two files of a checkpoint, and the metrics beside it."""
    import torch

    from lesionaug.training.checkpoint import Checkpoints, Metrics

    belongs_to = {"seed": 1, "gan": {"a": [1, 2]}}
    Checkpoints(folder / "c", belongs_to).save(7, {"w": torch.ones(2, 3), "n": torch.arange(3)})
    files = [folder / "c" / "step-000000007" / name for name in ("state.json", "state.safetensors")]
    seed = join(*(file.read_bytes() for file in files))

    def check(data: bytes) -> None:
        for file, content in zip(files, split(data, 2), strict=True):
            file.write_bytes(content)
        with bounded(len(data)):
            Checkpoints(folder / "c", belongs_to).newest()
        (folder / "metrics.jsonl").write_bytes(split(data, 2)[0])
        with bounded(len(data)):
            Metrics(folder / "metrics.jsonl").cut(5)

    return check, [seed, join(b'{"step": 1, "loss": 0.5}\n{"step": 9}', b"")]


def _study(folder: Path) -> tuple[Check, list[bytes]]:
    """The two JSON files of a reader study, and its truth."""
    from lesionaug.study.files import load_study, load_truth
    from tests.answered_studies import make_items, make_study

    study = folder / "study"
    make_study(study, make_items(4, 4, 1), lambda *_: 0, num_readers=1)
    files = [study / "study.json", study / "orders.json", folder / "study.truth.json"]
    seed = join(*(file.read_bytes() for file in files))

    def check(data: bytes) -> None:
        for file, content in zip(files, split(data, 3), strict=True):
            file.write_bytes(content)
        with bounded(len(data)):
            load_truth(load_study(study))

    return check, [seed]


def _mutate_study(data: bytes, random: Any) -> bytes:
    files = split(data, 3)
    at = random.randrange(3)
    files[at] = mutators.json_text(files[at], random)
    if random.random() < 0.8:  # as a forger would
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            stated = json.loads(files[0])
            stated["orders_sha256"], stated["truth_sha256"] = (hashlib.sha256(f).hexdigest() for f in files[1:])
            files[0] = json.dumps(stated).encode("utf-8", "surrogatepass")
    return join(*files)


def _pictures_reader() -> Callable[[Path], Any]:
    from lesionaug.data.sources.pictures import read_pictures_table

    return read_pictures_table


def _terms_reader() -> Callable[[Path], Any]:
    from lesionaug.data.labels import LabelMap, LesionTerms

    return lambda path: LesionTerms.read(path, LabelMap(()))


_TERMS = json.dumps(
    {"term_list": ["liver", "cyst", "hemangioma", "metastasis", "lung"]}
    | {
        f"{part}_{what}": value
        for part, first in (("train", 0), ("val", 10), ("test", 20))
        for what, value in (
            ("lesion_idxs", [first, first + 1, first + 2]),
            ("relevant_labels", [[0, 1], [0, 2, 3], [4]]),
            ("uncertain_labels", [[], [1], [3]]),
        )
    }
).encode()
_PICTURES = (
    b"image,patient_id,row_spacing_mm,col_spacing_mm,hu_offset,hu_image\na.png,P1,0.8,0.7,-32768,\nb.png,P2,,,,a.png\n"
)


def _folds_reader() -> Callable[[Path], Any]:
    from lesionaug.data.folds import load_folds

    return load_folds


_FOLDS = json.dumps(
    {
        "schema": 1,
        "num_folds": 2,
        "seed": 0,
        "lesions": [
            {"lesion_id": f"l{n}", "patient_id": f"P{n}", "label": "ab"[n % 2], "fold": n // 2} for n in range(4)
        ],
    }
).encode()

_RUN_FILES = (
    "config.json",
    "run.json",
    "folds.json",
    "{task}/task.json",
    "{task}/predictions.csv",
    "{task}/model.json",
)


def _run(folder: Path) -> tuple[Check, list[bytes]]:
    """The files of a small run, read as `report`, `status` and `audit` do."""
    from lesionaug.experiment.audit import audit_run
    from lesionaug.experiment.results import load_run
    from lesionaug.experiment.run import run_experiment
    from tests.runs import classic_only, make_store

    run = folder / "run"
    run_experiment(make_store(folder / "rois"), run, classic_only(), workers=1)
    task = next(p.name for p in sorted((run / "models").iterdir()) if (p / "predictions.csv").exists())
    files = [run / name.format(task=f"models/{task}") for name in _RUN_FILES]
    seed = join(*(file.read_bytes() if file.exists() else b"" for file in files))

    def check(data: bytes) -> None:
        for file, content in zip(files, split(data, len(files)), strict=True):
            file.write_bytes(content)
        with bounded(len(data)):
            load_run(run)
        with bounded(len(data)):
            audit_run(run)

    return check, [seed]


def _mutate_run(data: bytes, random: Any) -> bytes:
    """One of the files of a run."""
    files = split(data, len(_RUN_FILES))
    at = random.randrange(len(files))
    files[at] = (mutators.table if _RUN_FILES[at].endswith(".csv") else mutators.json_text)(files[at], random)
    return join(*files)


def _csv_bytes(*rows: tuple[str, ...]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()


_LABELS = _csv_bytes(("patient_id", "lesion_id", "label"), ("P1", "1", "cyst"), ("P2", "", "met"), ("P3", "2", "a, b"))
_ALIASES = _csv_bytes(("patient_id", "same_as"), ("P1", "P2"), ("P2", "P3"), ("P4", "P3"))
_ANY_JSON = (b'{"images": [], "annotations": []}', b'{"shapes": [], "imagePath": "a"}', b'{"markups": [{"type": "x"}]}')

TARGETS: dict[str, Target] = {
    "slices": Target(_slices, mutators.dicom),
    "rtstruct": Target(_margins("rtstruct", "rs.dcm", _rtstruct_seeds), mutators.dicom),
    "seg": Target(_margins("seg", "seg.dcm", _seg_seeds), mutators.dicom),
    "source": Target(_source, mutators.dicom),
    "nifti": Target(_nifti, mutators.nifti),
    "png": Target(_png, mutators.png),
    "table": Target(_margins("table", "t.csv", _table_seeds), mutators.table),
    "labels": Target(_file_reader("labels.csv", _label_reader, _LABELS), mutators.table),
    "aliases": Target(_file_reader("aliases.csv", _alias_reader, _ALIASES), mutators.table),
    "json": Target(_file_reader("a.json", _json_recogniser, *_ANY_JSON), mutators.json_text),
    "sr": Target(_margins("sr", "sr.dcm", _sr_seeds), mutators.dicom),
    "mask": Target(_margins("nifti", "case_mask.nii", _nifti_mask_seeds), mutators.nifti),
    "pictures": Target(_file_reader("pictures.csv", _pictures_reader, _PICTURES), mutators.table),
    "terms": Target(_file_reader("terms.json", _terms_reader, _TERMS), mutators.json_text),
    "study": Target(_study, _mutate_study),
    "coco": Target(_margins("coco", "coco.json", _coco_seeds), mutators.json_text),
    "labelme": Target(_margins("labelme", "a.json", _labelme_seeds), mutators.json_text),
    "slicer": Target(_margins("slicer", "a.mrk.json", _slicer_seeds), mutators.json_text),
    "deeplesion": Target(_margins("deeplesion", "DL_info.csv", _deeplesion_seeds), mutators.table),
    "aim": Target(_margins("aim", "a.xml", _aim_seeds), mutators.xml),
    "store": Target(_store, mutators.described(("pixels", "sha256"))),
    "synthetic": Target(_synthetic, mutators.described(("sha256",))),
    "checkpoint": Target(_checkpoint, mutators.described(("sha256",))),
    "folds": Target(_file_reader("folds.json", _folds_reader, _FOLDS), mutators.json_text),
    "run": Target(_run, _mutate_run),
}


def available() -> list[str]:
    """The targets whose format this version reads."""
    from lesionaug.data.sources.formats import FORMATS

    formats = {"coco", "labelme", "slicer", "aim", "deeplesion"}
    return [name for name in TARGETS if name not in formats or name in FORMATS]
