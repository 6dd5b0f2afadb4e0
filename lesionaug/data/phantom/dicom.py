"""Phantom, step 5: slices and margins as DICOM CT Image Storage and DICOM SEG, marked synthetic in every file.

All UIDs and dates are fixed by the seed, so that the same phantom has the same bytes whenever it is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionaug import __version__
from lesionaug.data.phantom.scanner import Scan
from lesionaug.data.phantom.shapes import SLICE_SIZE, Grid
from lesionaug.data.sources.dicom_ct import PHANTOM_MANUFACTURER

COMMENT = "lesionaug phantom: synthetic, not a patient"
NO_DATE, NO_TIME = "19000101", "000000"  # where DICOM wants one: a date before CT existed
HU_OFFSET = 1024


@dataclass(frozen=True)
class SliceFile:
    """One slice to write: pixels in HU (int16 [512, 512]) and where it lies."""

    hu: NDArray[np.int16]
    grid: Grid
    position_z_mm: float  # towards the head


@dataclass(frozen=True)
class SegmentMask:
    """One lesion's margin: its class name, the slice it is on (index) and the mask (bool [512, 512])."""

    name: str
    slice_index: int
    mask: NDArray[np.bool_]


def phantom_uid(*parts: object) -> str:
    """Make a valid UID under pydicom's root, fixed by what it names."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["lesionaug phantom", *(str(part) for part in parts)]))


def _decimal(value: float) -> str:
    """Write a DICOM decimal string of at most 16 characters."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def ct_dataset(
    item: SliceFile, number: int, scan: Scan, patient_number: int, uid_root: Sequence[object], series_uid: str
) -> Any:
    """Make a CT image as scanners do: unsigned with intercept -1024; 16 bits stored (GE-like) or 12 (Siemens-like).

    Args:
        item: Pixels and position.
        number: InstanceNumber, from 1.
        scan: The scan's parameters.
        patient_number: 1 for PHANTOM-0001.
        uid_root: What every UID of this patient is derived from.
        series_uid: SeriesInstanceUID of the patient's CT series.

    Returns:
        A pydicom dataset with file meta information.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(phantom_uid(*uid_root, "ct", number))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]  # no scanner measured it
    ds.SyntheticData = "YES"
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = NO_DATE
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = NO_TIME
    ds.AccessionNumber = ""
    ds.Modality = "CT"
    ds.Manufacturer = PHANTOM_MANUFACTURER
    ds.ManufacturerModelName = f"phantom, {scan.vendor}"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "SYNTHETIC liver phantom"
    ds.SeriesDescription = "SYNTHETIC portal venous phase, lesionaug phantom"
    ds.PatientName = f"PHANTOM^{patient_number:04d}"
    ds.PatientID = f"PHANTOM-{patient_number:04d}"
    ds.PatientBirthDate = ""
    ds.PatientSex = "O"
    ds.PatientComments = COMMENT
    ds.ContrastBolusAgent = "SYNTHETIC, as iodine in portal venous phase"
    ds.BodyPartExamined = "LIVER"
    ds.ScanOptions = "HELICAL MODE"
    ds.SliceThickness = _decimal(scan.thickness_mm)
    ds.KVP = "120"
    ds.DataCollectionDiameter = _decimal(round(SLICE_SIZE * scan.spacing_mm, 3))
    ds.SoftwareVersions = f"lesionaug {__version__}"
    ds.ProtocolName = "SYNTHETIC abdomen, portal venous"
    ds.ReconstructionDiameter = ds.DataCollectionDiameter
    ds.GantryDetectorTilt = "0"
    ds.ExposureTime = "500"
    ds.XRayTubeCurrent = str(2 * scan.exposure_mas)
    ds.Exposure = str(scan.exposure_mas)
    ds.ConvolutionKernel = scan.kernel
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID = phantom_uid(*uid_root, "study")
    ds.SeriesInstanceUID = series_uid
    ds.StudyID = "1"
    ds.SeriesNumber = "2"
    ds.AcquisitionNumber = "1"
    ds.InstanceNumber = str(number)
    spacing, (cx, cy) = item.grid.spacing_mm, item.grid.center_px
    ds.ImagePositionPatient = [  # of the centre of the first pixel; the body's middle is the origin
        _decimal(round((0.5 - cx) * spacing, 4)),
        _decimal(round((0.5 - cy) * spacing, 4)),
        _decimal(item.position_z_mm),
    ]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.FrameOfReferenceUID = phantom_uid(*uid_root, "frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.SliceLocation = _decimal(item.position_z_mm)
    ds.ImageComments = COMMENT
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows = ds.Columns = SLICE_SIZE
    ds.PixelSpacing = [_decimal(spacing), _decimal(spacing)]
    ds.BitsAllocated = 16
    ds.BitsStored = 16 if scan.vendor == "GE-like" else 12
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = 0
    ds.BurnedInAnnotation = "NO"
    ds.WindowCenter = "40"
    ds.WindowWidth = "400"
    ds.RescaleIntercept = str(-HU_OFFSET)
    ds.RescaleSlope = "1"
    ds.RescaleType = "HU"
    ds.LossyImageCompression = "00"
    ds.PixelData = (item.hu.astype(np.int32) + HU_OFFSET).astype("<u2").tobytes()
    return ds


def _kind(name: str) -> Any:
    """Code of a class: the standard one, or a code of ours under the class's own name."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    known = {"cyst": codes.SCT.Cyst, "metastasis": codes.SCT.Metastasis, "hemangioma": codes.SCT.Hemangioma}
    value = "SYNTH-" + hashlib.sha256(name.encode()).hexdigest()[:8].upper()
    return known.get(name) or hd.sr.CodedConcept(value, "99LESIONAUG", name)


def seg_dataset(
    slices: Sequence[Any], segments: Sequence[SegmentMask], uid_root: Sequence[object], host: str = "liver"
) -> Any:
    """Make a BINARY segmentation of one patient, one segment a lesion, labelled by its class.

    Args:
        slices: The patient's CT datasets, in the order `SegmentMask.slice_index` counts.
        segments: The lesions.
        uid_root: What every UID of this patient is derived from.
        host: The organ that holds the lesions, "liver" or "spleen".
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name="lesionaug phantom",
        version=__version__,
        family=hd.sr.CodedConcept("SYNTH", "99LESIONAUG", "Random shape of a phantom"),  # no standard code fits
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=_kind(segment.name),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=phantom_uid(*uid_root, "lesion", number),
            tracking_id=f"synthetic lesion {number}",
            anatomic_regions=[codes.SCT.Spleen if host == "spleen" else codes.SCT.Liver],
        )
        for number, segment in enumerate(segments, 1)
    ]
    pixels = np.zeros((len(slices), SLICE_SIZE, SLICE_SIZE, len(segments)), np.uint8)
    for channel, segment in enumerate(segments):
        pixels[segment.slice_index, :, :, channel] = segment.mask
    seg = hd.seg.Segmentation(
        source_images=list(slices),
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=phantom_uid(*uid_root, "seg series"),
        series_number=3,
        sop_instance_uid=phantom_uid(*uid_root, "seg"),
        instance_number=1,
        manufacturer=PHANTOM_MANUFACTURER,
        manufacturer_model_name="phantom margins",
        software_versions=f"lesionaug {__version__}",
        device_serial_number="0",
        content_description="SYNTHETIC lesion margins",
        content_label="MARGINS",
        series_description="SYNTHETIC lesion margins, lesionaug phantom",
        pixel_measures=hd.PixelMeasuresSequence(  # highdicom would guess a distance between slices that are far apart
            pixel_spacing=slices[0].PixelSpacing, slice_thickness=slices[0].SliceThickness
        ),
        omit_empty_frames=True,
        content_date=NO_DATE,
        content_time=NO_TIME,
        series_date=NO_DATE,
        series_time=NO_TIME,
    )
    seg.SyntheticData = "YES"
    seg.ImageComments = COMMENT
    seg.PatientComments = COMMENT
    seg.BurnedInAnnotation = "NO"
    # highdicom takes the wall clock and a random UID here; both would make every phantom different.
    for equipment in seg.ContributingEquipmentSequence:
        if "ContributionDateTime" in equipment:
            equipment["ContributionDateTime"].value = NO_DATE + NO_TIME
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in seg:
            delattr(seg, keyword)
    organization = phantom_uid(*uid_root, "dimension organization")
    for sequence in (seg.DimensionOrganizationSequence, seg.DimensionIndexSequence):
        for entry in sequence:
            entry.DimensionOrganizationUID = organization
    return seg


def write_patient(
    folder: Path,
    slices: Sequence[SliceFile],
    segments: Sequence[SegmentMask],
    scan: Scan,
    patient_number: int,
    uid_root: Sequence[object],
    host: str = "liver",
) -> None:
    """Write `folder` (which must not exist) with ct-0001.dcm ... and margins.seg.dcm."""
    folder.mkdir()
    series_uid = phantom_uid(*uid_root, "ct series")
    datasets = [
        ct_dataset(item, number, scan, patient_number, uid_root, series_uid) for number, item in enumerate(slices, 1)
    ]
    for number, dataset in enumerate(datasets, 1):
        dataset.save_as(folder / f"ct-{number:04d}.dcm", enforce_file_format=True)
    seg_dataset(datasets, segments, uid_root, host).save_as(folder / "margins.seg.dcm", enforce_file_format=True)
