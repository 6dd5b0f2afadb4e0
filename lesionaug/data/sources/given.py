"""What a reader of margins is given beside its file: the slices, what the user said, and where faults are noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lesionaug.data.labels import LabelMap
from lesionaug.data.patients import NO_ALIASES, Aliases
from lesionaug.data.slices import Finding, NumberedFiles, SourceFile, patient_key
from lesionaug.data.sources.dicom_file import text

if TYPE_CHECKING:
    from pydicom import Dataset

    from lesionaug.data.sources.contours import SliceIndex
    from lesionaug.data.sources.dicom_ct import CtSlice
    from lesionaug.data.sources.pictures import Pictures


@dataclass(frozen=True)
class ReadOptions:
    """What the user said about how to read a source; the defaults are those of the command line.

    Attributes:
        hu_offset: Added to the values of PNG images to give HU.
        spacing_mm: (s_x, s_y) of pictures that do not say it themselves.
        pixel_edge: Integers in a polygon table mean pixel edges, not pixel centres.
        every_slice: One lesion for every slice of a margin, not only its largest.
        trust_voxels: Take a NIfTI image and mask of one shape as one grid, whatever their affines say.
        image: The image of a mask file that is imported by itself.
        allow_burned_in: Files, by name or pattern relative to the source, whose burned-in text was looked at.
        patient_by: DICOM keyword or table column that tells patients apart, None for PatientID or patient_id.
        aliases: Persons under several ids.
        label_map: NAME=CLASS.
        only_keys: The margins that have a class, by key, where a label file names few of many (DeepLesion); else None.
        pictures_table: Facts about pictures by name: patient, spacing, offset.
    """

    hu_offset: float | None = None
    spacing_mm: tuple[float, float] | None = None
    pixel_edge: bool = False
    every_slice: bool = False
    trust_voxels: bool = False
    image: Path | None = None
    allow_burned_in: tuple[str, ...] = ()
    patient_by: str | None = None
    aliases: Aliases = NO_ALIASES
    label_map: LabelMap = field(default_factory=lambda: LabelMap(()))
    only_keys: frozenset[str] | None = None
    pictures_table: Path | None = None

    def same_patient(self, one: str, other: str) -> bool:
        """Whether two ids are one person's, by the alias table."""
        return self.aliases.of(one) == self.aliases.of(other)

    def patient_of(self, dataset: Dataset) -> str:
        """Whose a DICOM object is, '' where it does not say."""
        return patient_key(text(dataset, self.patient_by or "PatientID"))


def no_step(done: int, total: int, text: str) -> None:
    """Progress that nobody asked for."""


@dataclass(eq=False)
class Given:
    """Handed to every reader of margins: `reader(source, given)` yields `Margin`s.

    Attributes:
        slices: Every DICOM CT slice of the source.
        findings: Faults and notes are appended here; a margin at fault is left out, the others go on.
        options: What the user said.
        files: Every file of the source.
        step: Called as (done, total, text) now and then; a reader that is silent for long is taken to hang.
    """

    slices: Sequence[CtSlice] = ()
    findings: list[Finding] = field(default_factory=list)
    options: ReadOptions = field(default_factory=ReadOptions)
    files: Sequence[SourceFile] = ()
    step: Callable[[int, int, str], None] = no_step

    @cached_property
    def _numbered(self) -> NumberedFiles:
        return NumberedFiles(self.files)

    @cached_property
    def index(self) -> SliceIndex:
        """The slices by reference, frame of reference and series."""
        from lesionaug.data.sources.contours import SliceIndex

        return SliceIndex(self.slices, self.options.same_patient)

    @cached_property
    def pictures(self) -> Pictures:
        """Pictures by file, for margins that name theirs."""
        from lesionaug.data.sources.pictures import Pictures

        return Pictures(self)

    def file_of(self, path: Path) -> SourceFile:
        """The numbered file at a path; one outside the source gets the next free number."""
        return self._numbered.of(path)

    def leaves_out(self, name: str, also_named: Sequence[str] = ()) -> bool:
        """Whether the label map says to leave lesions of this name out."""
        return self.options.label_map.leaves_out(name, *also_named)

    def note_left_out(self, where: str, source: SourceFile, number: int) -> None:
        """Note that a margin is left out as the label map says."""
        self.findings.append(Finding("info", where, "left out as the label map says", "", "left out", source, number))
