"""What a user asks of an import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lesionaug.data.labels import LabelMap
from lesionaug.data.patients import Aliases
from lesionaug.data.sources.given import ReadOptions
from lesionaug.data.sources.pictures import read_pictures_table

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ImportOptions:
    """What the user asked for; the defaults are those of the command line.

    Attributes:
        format: The one format of margins to read, where a folder holds several; see `sources.formats.FORMATS`.
        labels: CSV with patient_id[,lesion_id],label; or LesaNet's JSON for DeepLesion.
        label_map: NAME=CLASS for ROI names, segment labels, codes, folder names, label values or table labels.
        hu_offset: Added to the values of PNG images to give HU.
        spacing_mm: (s_x, s_y) of pictures that do not say it themselves.
        every_slice: One lesion for every slice of a margin, not only its largest.
        pixel_edge: Integers in a polygon table mean pixel edges, not pixel centres.
        trust_voxels: Take a NIfTI image and its mask as one grid, in the order they are stored, whatever affines say.
        image: The image of a mask file that is imported by itself.
        pictures: CSV with facts about pictures that their own files lack: image,patient_id and the like.
        patient_by: DICOM keyword or table column that tells patients apart, in place of PatientID or patient_id.
        patient_aliases: CSV with patient_id,same_as: one person under several ids.
        allow_burned_in: Files, by name or pattern relative to the source, whose burned-in text was looked at.
        skip_faulty: Leave faulty lesions out instead of refusing the source.
        pseudonym_key: File with the secret that pseudonyms are made with; made if it is not there. None is the user's
            own, see `data.patients.default_key_path`.
        isolate: Read files in guarded processes; off, a hostile file can hang or crash this one.
    """

    format: str | None = None
    labels: Path | None = None
    label_map: tuple[str, ...] = ()
    hu_offset: float | None = None
    spacing_mm: tuple[float, float] | None = None
    every_slice: bool = False
    pixel_edge: bool = False
    trust_voxels: bool = False
    image: Path | None = None
    pictures: Path | None = None
    patient_by: str | None = None
    patient_aliases: Path | None = None
    allow_burned_in: tuple[str, ...] = ()
    skip_faulty: bool = False
    pseudonym_key: Path | None = None
    isolate: bool = True

    def for_readers(self, label_map: LabelMap, aliases: Aliases) -> ReadOptions:
        """What the readers of margins need of it.

        Raises:
            DataError: When the table of pictures cannot be used.
        """
        if self.pictures is not None:
            read_pictures_table(self.pictures)
        return ReadOptions(
            hu_offset=self.hu_offset,
            spacing_mm=self.spacing_mm,
            pixel_edge=self.pixel_edge,
            every_slice=self.every_slice,
            trust_voxels=self.trust_voxels,
            image=self.image,
            allow_burned_in=self.allow_burned_in,
            patient_by=self.patient_by,
            aliases=aliases,
            label_map=label_map,
            pictures_table=self.pictures,
        )
