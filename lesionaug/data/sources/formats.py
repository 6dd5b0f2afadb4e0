"""The formats that margins come in, by the name that `--format` knows them by."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lesionaug.data.slices import Margin, SourceFile
from lesionaug.data.sources.given import Given

MarginReader = Callable[[SourceFile, Given], Iterator[Margin]]


@dataclass(frozen=True)
class Format:
    """A format of margins.

    Attributes:
        name: As `--format` has it.
        title: In words.
        reader: "module:function" below this folder; the function yields a file's margins.
        on_dicom: Its margins lie on the DICOM CT slices of the source; otherwise it names its own pictures.
    """

    name: str
    title: str
    reader: str
    on_dicom: bool

    def load(self) -> MarginReader:
        """The reader."""
        module, function = self.reader.split(":")
        reader: MarginReader = getattr(importlib.import_module(f"lesionaug.data.sources.{module}"), function)
        return reader


FORMATS = {
    entry.name: entry
    for entry in (
        Format("rtstruct", "DICOM structure set", "rtstruct:read_rtstruct", on_dicom=True),
        Format("seg", "DICOM segmentation", "segmentation:read_segmentation", on_dicom=True),
        Format("sr", "DICOM structured report", "structured_report:read_structured_report", on_dicom=True),
        Format("aim", "AIM annotations (XML)", "aim:read_aim", on_dicom=True),
        Format("slicer", "3D Slicer markups", "slicer:read_slicer", on_dicom=True),
        Format("nifti", "NIfTI mask", "nifti_masks:read_nifti_mask", on_dicom=False),
        Format("ircadb", "folder of DICOM masks (3D-IRCADb)", "ircadb:read_ircadb", on_dicom=False),
        Format("table", "table of margins (CSV)", "tables:read_table", on_dicom=False),
        Format("coco", "COCO annotations", "coco:read_coco", on_dicom=False),
        Format("labelme", "LabelMe annotations", "labelme:read_labelme", on_dicom=False),
        Format("deeplesion", "DeepLesion's table", "deeplesion:read_deeplesion", on_dicom=False),
    )
}
