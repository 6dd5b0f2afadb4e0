"""Small DICOM files that the import tests write: CT slices, structure sets and segmentations of a made-up patient."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

FRAME = "1.2.826.0.1.3680043.10.1"
SERIES = "1.2.826.0.1.3680043.10.2"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
HEIGHT, WIDTH = 60, 80


def hu_picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Every pixel different from its neighbours, within CT's range."""
    return np.random.default_rng(seed).integers(-200, 300, (height, width)).astype(np.int16)


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < radius**2


def ct_dataset(
    hu: np.ndarray, *, z: float = 0.0, position=(10.0, 20.0), spacing=(0.8, 0.8), orientation=AXIAL, patient="Pat-1"
) -> FileDataset:
    """`spacing` is DICOM's (row, column)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientID, ds.PatientName = "CT", patient, "Canary^Name"
    ds.PatientBirthDate, ds.PatientSex, ds.StudyID, ds.AccessionNumber = "19410203", "", "1", "CANARYACC"
    ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "19991231", "120000", ""
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = SERIES + ".1", SERIES, FRAME
    ds.InstanceNumber, ds.SeriesNumber = 1, 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Manufacturer = "somebody"
    ds.ImagePositionPatient = [*map(float, position), float(z)]
    ds.ImageOrientationPatient = list(orientation)
    ds.PixelSpacing, ds.SliceThickness = list(spacing), 5.0
    ds.Rows, ds.Columns = hu.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    ds.PixelData = (hu.astype(np.int32) + 1024).astype("<i2").tobytes()
    return ds


def write(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these files are wrong on purpose
        ds.save_as(path, enforce_file_format=False)
    return path


def series(folder: Path, count: int = 3, step: float = 5.0, **keywords) -> list[FileDataset]:
    """Slices z = 0, step, ... in files 0.dcm, 1.dcm, ..."""
    slices = [ct_dataset(hu_picture(n), z=n * step, **keywords) for n in range(count)]
    for number, ds in enumerate(slices):
        write(ds, folder / f"{number}.dcm")
    return slices


def circle_mm(x: float, y: float, radius: float, z: float, *, points: int = 60, position=(10.0, 20.0), spacing=0.8):
    """A contour around pixel (x, y) (integer: pixel centre) of the series' slices, in mm."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return [
        (position[0] + spacing * (x + radius * np.cos(a)), position[1] + spacing * (y + radius * np.sin(a)), z)
        for a in angles
    ]


def contour(points, *, kind: str = "CLOSED_PLANAR", reference: str | None = None) -> Dataset:
    item = Dataset()
    item.ContourGeometricType = kind
    item.NumberOfContourPoints = len(points)
    item.ContourData = [f"{value:.4f}" for point in points for value in point]
    if reference:
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", reference
        item.ContourImageSequence = [image]
    return item


def rtstruct_dataset(
    rois: dict[int, tuple[str, list[Dataset] | None]], *, frame: str = FRAME, patient="Pat-1"
) -> FileDataset:
    """`rois` by ROINumber: name and contours (None: no ContourSequence at all)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientID = "RTSTRUCT", patient
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in rois.items():
        roi = Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        ds.StructureSetROISequence.append(roi)
        item = Dataset()
        item.ReferencedROINumber = number
        if contours is not None:
            item.ContourSequence = contours
        ds.ROIContourSequence.append(item)
    return ds


def segmentation(
    slices: list[FileDataset],
    masks: np.ndarray,
    labels: list[str],
    *,
    kind: str = "BINARY",
    manufacturer: str = "somebody",
) -> Dataset:
    """A SEG written by highdicom. masks: [slices, rows, columns, segments], bool or (FRACTIONAL) float."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(labels, 1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hd.seg.Segmentation(
            source_images=slices,
            pixel_array=masks if kind == "FRACTIONAL" else masks.astype(np.uint8),
            segmentation_type=hd.seg.SegmentationTypeValues[kind],
            segment_descriptions=descriptions,
            series_instance_uid=generate_uid(),
            series_number=2,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=manufacturer,
            manufacturer_model_name="test",
            software_versions="1",
            device_serial_number="1",
            omit_empty_frames=False,
        )


def reread(path: Path) -> FileDataset:
    return pydicom.dcmread(path)
