"""Margins out of folders of DICOM masks, as 3D-IRCADb-01 has them: one folder for each structure of a patient.

3Dircadb1.1/PATIENT_DICOM/image_0 ...            the CT slices
3Dircadb1.1/MASKS_DICOM/livertumor01/image_0 ... a mask for each slice, 0 or 255
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import (
    Finding,
    Margin,
    MarginOnSlice,
    MarginRefused,
    Plane,
    Reorientation,
    SourceFile,
    face_left_posterior,
    patient_key,
)
from lesionaug.data.sources.components import Component, ComponentFinder, OnSlice
from lesionaug.data.sources.contours import SAME_PLANE_MM
from lesionaug.data.sources.dicom_ct import MAX_SIDE, decode, pixel_spacing_mm, stored_plane, why_skipped
from lesionaug.data.sources.dicom_file import read_dicom, reading
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.segmentation import SAME_PIXEL
from lesionaug.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_MASKS, _SLICES = "masks_dicom", "patient_dicom"
# Structures that are taken where no label map names them.
# (The set has "liverkyst" for a cyst, "tumor" and "leftsurretumor" for those of other organs, and "metastasectomie" for
# the bed of one that was taken out.)
LESIONS = ("liver*tumor*", "liver*tumour*", "liver*cyst*", "liver*kyst*", "liver*metast*")

_MOST_FILES = 10_000  # in a folder


@dataclass(frozen=True)
class MaskFolder:
    """The masks of one structure.

    Attributes:
        case: The folder of its patient, relative to the source; '' is the source itself.
        name: The structure.
        number: Its place among the structures of the case, from 1.
        masks: Its files.
        slices: The files of the patient's slices.
    """

    case: str
    name: str
    number: int
    masks: tuple[SourceFile, ...]
    slices: tuple[SourceFile, ...]

    @property
    def patient(self) -> str:
        """The name of the case's folder: PatientID is often empty, or the same for all."""
        masks = self.masks[0].path.parent
        while _MASKS in (part.lower() for part in masks.parts):
            masks = masks.parent
        return patient_key(masks.name or masks.resolve().name)


def mask_folders(files: Iterable[SourceFile]) -> list[MaskFolder]:
    """The structures of every case: files in `MASKS_DICOM/<structure>` beside a `PATIENT_DICOM`.

    Both names may be doubled, as unpacking the archives into folders of their own leaves them.
    """
    masks: dict[str, dict[str, list[SourceFile]]] = {}
    slices: dict[str, list[SourceFile]] = {}
    for file in files:
        parts = PurePosixPath(file.name).parts
        lower = [part.lower() for part in parts[:-1]]
        for marker in (_MASKS, _SLICES):
            if marker not in lower:
                continue
            case = "/".join(parts[: lower.index(marker)])
            below = [part for part, small in zip(parts[:-1], lower, strict=True) if small != marker]
            below = below[lower.index(marker) :]
            if marker == _SLICES and not below:
                slices.setdefault(case, []).append(file)
            elif marker == _MASKS and len(below) == 1:
                masks.setdefault(case, {}).setdefault(below[0], []).append(file)
            break
    return [
        MaskFolder(case, name, number, tuple(structures[name]), tuple(slices[case]))
        for case, structures in sorted(masks.items())
        if case in slices
        for number, name in enumerate(sorted(structures), 1)
    ]


def read_ircadb(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The lesions of one structure: one where its name is numbered (`livertumor01`), else one for each component.

    Structures that are no lesions by their names are left out unless the label map names them.

    Args:
        source: The first file of the structure's folder.
        given: The options, files and findings.

    Raises:
        DataError: When masks or slices cannot be read, or do not belong together.
    """
    folder = next(entry for entry in mask_folders(given.files) if entry.masks[0].path == source.path)
    where = source.name.rpartition("/")[0]
    if given.leaves_out(folder.name):
        given.note_left_out(where, source, folder.number)
        return
    is_lesion = any(fnmatch.fnmatchcase(folder.name.lower(), pattern) for pattern in LESIONS)
    if not is_lesion and given.options.label_map.find(folder.name) is None:
        rule, fix = "its name is no lesion's, so it is left out", f"--label-map {folder.name}=CLASS takes it"
        given.findings.append(Finding("info", where, rule, fix, "left out by name", source, folder.number))
        return
    if max(len(folder.masks), len(folder.slices)) > _MOST_FILES:
        raise DataError(where, f"a folder may hold at most {_MOST_FILES} slices", "Leave out what does not belong")
    slices = _read_slices(folder.slices, given)
    finder = ComponentFinder(where, lambda label: False)
    masks, missing = _pair(_read_masks(folder, given), slices, where, given.findings)
    for index, mask in masks.items():
        finder.add(index, mask.astype(np.int64))
    components = finder.components()
    if len(components) > 1 and re.search(r"\d$", folder.name):
        components = [_united(components)]
    if not components:
        rule = f"no slice here has a mask of it ({missing} masks without a slice), so it is skipped"
        given.findings.append(
            Finding("warning", where, rule, "", "no slice of it is in the source", source, folder.number)
        )
    for component in components:
        key = folder.name if len(components) == 1 else f"{folder.name}.{component.number}"
        at = where if len(components) == 1 else f"{where} component {component.number}"
        chosen = sorted(component.parts) if given.options.every_slice else [component.largest]
        entries = []
        patient = folder.patient
        for index in chosen:
            given.step(index, len(slices), "drawing margins")
            picture = given.pictures.get(slices[index].file.path, slices[index].file.name)
            patient = given.pictures.facts(slices[index].file.path).patient or patient
            mask = component.parts[index].whole(slices[index].turned_shape)
            entries.append(MarginOnSlice.of(picture.handle, mask))
        yield Margin(
            source=source,
            where=at,
            number=folder.number,
            key=key,
            name=folder.name,
            patient=patient,
            slices=entries,
            parts_missing=missing,
            also_named=(key,),
        )


@dataclass(frozen=True, eq=False)
class _Header:
    """What a slice or mask says of its place: its number by its name, its turned plane where it states one."""

    file: SourceFile
    number: int | None
    shape: tuple[int, int]  # as stored
    plane: Plane | None
    turn: Reorientation

    @property
    def turned_shape(self) -> tuple[int, int]:
        """(height, width) after turning."""
        return self.shape[::-1] if self.turn.transpose else self.shape

    @classmethod
    def of(cls, file: SourceFile, dataset: Dataset) -> _Header:
        with reading(file.name):
            height, width = int(dataset.Rows), int(dataset.Columns)
            plane, turn = None, Reorientation()
            if "PixelSpacing" in dataset:
                plane = stored_plane(dataset, dataset, pixel_spacing_mm(dataset, file.name), file.name)
            if plane is not None:
                plane, turn = face_left_posterior(plane, height, width, file.name)
            digits = re.findall(r"\d+", Path(file.name).stem if file.name.lower().endswith(".dcm") else file.path.name)
            return cls(file, int(digits[-1]) if digits else None, (height, width), plane, turn)


def _read_slices(files: Sequence[SourceFile], given: Given) -> list[_Header]:
    """The slices of a patient along their normal, else by number."""
    found = []
    for done, file in enumerate(files):
        given.step(done, len(files), "reading slices")
        dataset = read_dicom(file, pixels=False)
        if why_skipped(dataset, file.name) is None:
            found.append(_Header.of(file, dataset))
    if not found:
        raise DataError(PurePosixPath(files[0].name).parent.as_posix(), "no CT slice is here", "Unpack it again")
    if all(header.plane is not None for header in found):
        return sorted(found, key=lambda header: 0.0 if header.plane is None else header.plane.depth_mm)
    return sorted(found, key=lambda header: -1 if header.number is None else header.number)


@dataclass(frozen=True, eq=False)
class _Mask:
    header: _Header
    bits: NDArray[np.uint8] | None  # None where it is empty

    @property
    def picture(self) -> NDArray[np.bool_]:
        """Bool [height, width] as stored."""
        height, width = self.header.shape
        assert self.bits is not None
        return np.unpackbits(self.bits, count=height * width).reshape(height, width).astype(np.bool_)


def _read_masks(folder: MaskFolder, given: Given) -> list[_Mask]:
    found = []
    for done, file in enumerate(folder.masks):
        given.step(done, len(folder.masks), "reading masks")
        dataset = read_dicom(file, pixels=True)
        header = _Header.of(file, dataset)
        with reading(file.name):
            height, width = header.shape
            if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
                raise DataError(file.name, f"a mask must have 1 .. {MAX_SIDE} pixels a side", "Unpack it again")
            stored = decode(dataset, file.name)
            values = np.unique(stored)
        if stored.shape != header.shape or values.size > 2 or values[0] < 0 or (values.size == 2 and values[0] != 0):
            raise DataError(file.name, "a mask must hold 0 and one other value", "Put the CT slices into PATIENT_DICOM")
        found.append(_Mask(header, np.packbits(stored > 0) if values[-1] > 0 else None))
    return found


def _pair(
    masks: Sequence[_Mask], slices: Sequence[_Header], where: str, findings: list[Finding]
) -> tuple[dict[int, NDArray[np.bool_]], int]:
    """The turned masks that are not empty by their slice's index, and how many have no slice here.

    By position where slices and masks state it, else by the number that ends the file's name.

    Raises:
        MarginRefused: When they do not belong together.
    """
    drawn = [mask for mask in masks if mask.bits is not None]
    depths = {round(mask.header.plane.depth_mm, 3) for mask in masks if mask.header.plane is not None}
    if len(depths) < len(masks) or any(entry.plane is None for entry in slices):
        rule = "masks or slices do not state their positions; they are paired by the numbers in their names"
        findings.append(Finding("info", where, rule))
        found = [_by_number(mask.header, slices, where) for mask in drawn]
        turns = [Reorientation() if index is None else slices[index].turn for index in found]
    else:
        found = [_by_position(mask.header, slices, where) for mask in drawn]
        turns = [mask.header.turn for mask in drawn]
    paired: dict[int, NDArray[np.bool_]] = {}
    for mask, index, turn in zip(drawn, found, turns, strict=True):
        if index is None:
            continue
        turned = turn.apply(mask.picture)
        if turned.shape != slices[index].turned_shape or index in paired:
            raise MarginRefused(
                where,
                "a mask must have the shape of its slice, and each slice one mask",
                "Unpack the case again",
                "masks do not fit the slices",
            )
        paired[index] = turned
    missing = found.count(None)
    return dict(sorted(paired.items())), missing


def _by_number(mask: _Header, slices: Sequence[_Header], where: str) -> int | None:
    found = [] if mask.number is None else [i for i, entry in enumerate(slices) if entry.number == mask.number]
    if len(found) != 1:
        raise MarginRefused(
            where,
            f"{len(found)} slices have the number of a mask ({mask.number}), and the files state no position",
            "Unpack the case again",
            "masks do not fit the slices",
        )
    return found[0]


def _by_position(mask: _Header, slices: Sequence[_Header], where: str) -> int | None:
    plane = mask.plane
    assert plane is not None
    depths = [0.0 if entry.plane is None else entry.plane.depth_mm for entry in slices]
    index = int(np.abs(np.array(depths) - plane.depth_mm).argmin())
    on = slices[index].plane
    assert on is not None
    (offset,), (away,) = on.to_pixels(plane.position[None])
    if abs(float(away)) > SAME_PLANE_MM:
        return None
    directions = min(float(on.right @ plane.right), float(on.down @ plane.down))
    spacing = max(abs(a / b - 1) for a, b in zip(plane.spacing_mm, on.spacing_mm, strict=True))
    if float(np.abs(offset).max()) > SAME_PIXEL or directions < 1 - 1e-6 or spacing > 1e-3:
        raise MarginRefused(
            where, "a mask must lie on the grid of its slice", "Unpack the case again", "masks do not fit the slices"
        )
    return index


def _united(components: Sequence[Component]) -> Component:
    """All components as one lesion."""
    parts: dict[int, OnSlice] = {}
    for component in components:
        for index, entry in component.parts.items():
            parts.setdefault(index, OnSlice()).parts.extend(entry.parts)
    return Component(1, 1, "1", parts)
