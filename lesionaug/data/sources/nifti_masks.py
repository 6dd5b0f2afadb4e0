"""Margins out of NIfTI masks: label maps and probabilities, each connected component a lesion."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import Finding, Margin, MarginOnSlice, SourceFile, patient_key
from lesionaug.data.sources.components import Component, ComponentFinder
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.nifti import GridMap, NiftiVolume, map_grid
from lesionaug.data.sources.nifti_pairs import NamedVolume, also_named, case_of, image_of, named_volumes
from lesionaug.data.sources.pictures import SAME_SPACING
from lesionaug.errors import DataError

FRACTION = 0.5  # a voxel of a probability mask belongs from here on
FEW_VOXELS = 5  # a component of fewer is probably a slip of the pen

_LARGEST_LABEL = 65535
_WHOLE = 1e-3  # a value so near a whole number is one: floats and scl_slope round
_ROUNDING = 1e-6  # voxels; two grids no further apart are not worth a note
_MOST_BESIDE = 20_000  # files looked at beside a mask's folder
_FAR = 64  # slices read on the way to a lesion before progress is reported


def read_nifti_mask(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The margins of a mask, one for each connected component (26 neighbours) of each label.

    They come in the order of their largest slices, so that the image is read in one pass.

    Args:
        source: The mask; its image is the one of `--image`, else found by name (see `nifti_pairs.image_of`).
        given: The options, files and findings.

    Raises:
        DataError: When mask or image cannot be read, or they are two grids.
    """
    found, volumes = find_image(source, given)
    image_file = given.file_of(found.file.path)
    image = given.pictures.volume(image_file, image_file.name)
    image.check_image()
    mask, grid = _open_mask(source, image, given)
    other_axes = grid != GridMap(away=grid.away)
    if other_axes or grid.away > _ROUNDING:
        how = "with its axes in another order or direction" if other_axes else f"to {grid.away:.1g} voxels"
        given.findings.append(Finding("info", source.name, f"its grid is that of {image_file.name}, {how}"))
    facts = given.pictures.facts(image_file.path)
    patient = facts.patient or given.pictures.facts(source.path).patient
    if not patient:
        patient = patient_key(case_of(found, volumes))
        rule = "NIfTI names no patient, so lesions are grouped by the name of the image or its folder"
        fix = "Name the patients with --pictures where one of them has several images"
        given.findings.append(Finding("info", source.name, rule, fix))
    stated, own = facts.spacing_mm, image.spacing_mm
    if stated is not None and any(abs(a / b - 1) > SAME_SPACING for a, b in zip(stated, own, strict=True)):
        rule = f"the table of pictures says {stated[1]:g} x {stated[0]:g} mm a pixel, the image {own[1]:g} x {own[0]:g}"
        raise DataError(image_file.name, rule, "Correct the one that is wrong")
    names = also_named(source)
    components = _components(mask, image, grid, source, names, given)
    several = {component.label for component in components}
    if len(several) > 1 and not given.options.label_map:
        shown = ", ".join(str(label) for label in sorted(several)[:12])
        rule = f"it holds the labels {shown}, and all are taken as lesions"
        fix = "Say what they are with --label-map 2=metastasis, or leave some out with --label-map 1=-"
        given.findings.append(Finding("warning", source.name, rule, fix))
    _note_few_voxels(components, source, given)
    turn = image.turn
    read_up_to = -1
    for component in sorted(components, key=lambda entry: (entry.largest, entry.number)):
        first = component.largest if not given.options.every_slice else min(component.parts)
        for index in range(max(read_up_to, 0), first, _FAR):  # on the way, so that nobody takes the reader to hang
            image.stored(index, image.axes[2])
            given.step(index, image.num_slices, "reading volumes")
        if read_up_to < 0:
            _note_no_fat(image, first, given)
        read_up_to = max(read_up_to, first)
        yield Margin(
            source=source,
            where=f"{source.name} label {component.label} component {component.key}",
            number=component.number,
            key=component.key,
            name=str(component.label),
            patient=patient,
            slices=[
                MarginOnSlice.of(image.slice(index), turn.apply(part.whole(image.stored_shape)))
                for index, part in sorted(component.parts.items())
                if given.options.every_slice or index == component.largest
            ],
            also_named=(f"label {component.label}", *names),
        )


def find_image(mask: SourceFile, given: Given) -> tuple[NamedVolume, list[NamedVolume]]:
    """The image of a mask, and every volume that its name was compared with.

    A mask that is imported by itself may have it beside its folder, as in `imagesTr` beside `labelsTr`.

    Raises:
        DataError: When there is none, or several may be.
    """
    volumes = named_volumes(given.files)
    if given.options.image is not None:
        path = given.options.image
        if not path.is_file():
            raise DataError(f"--image {path.name}", "there is no such file", "Check the path")
        image = named_volumes([SourceFile(0, path, _name_beside(path, mask.path))])
        if not image:
            raise DataError(f"--image {path.name}", "the image of a NIfTI mask must be .nii or .nii.gz", "Name that")
        return image[0], [*(v for v in volumes if v.file.path.resolve() != path.resolve()), *image]
    found = image_of(_of(mask, volumes), volumes)
    if not found and "/" not in mask.name:
        volumes = named_volumes(_around(mask.path))
        found = image_of(_of(mask, volumes), volumes)
    if len(found) == 1:
        return found[0], volumes
    if found:
        shown = ", ".join(sorted(image.file.name for image in found)[:6])
        raise DataError(
            mask.name,
            f"the mask may belong to any of {shown}",
            "Import the mask alone with --image, or rename them",
        )
    raise DataError(
        mask.name,
        "no NIfTI image of this mask was found by its name",
        "Import the mask alone with --image, or give image and mask one name but for the words image and mask",
    )


def looks_like_mask(source: SourceFile, shared: Given, step: Any) -> Iterator[tuple[tuple[int, int, int], bool]]:
    """Shape of a volume, and whether it holds what masks hold: few small whole values from 0.

    For `Guard`: a job's reader.

    Raises:
        DataError: When it cannot be read.
    """
    volume = NiftiVolume.open(source, affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    values: set[float] = set()
    for index in range(volume.shape[2]):
        step(index, volume.shape[2], "looking at volumes")
        plane = volume.scaled(volume.stored(index, 2))
        exact = np.unique(plane)
        few = np.unique(np.rint(exact))
        values.update(few[:_MOST_LABELS_TOLD].tolist())
        fractions = not bool((abs(exact - np.rint(exact)) <= _WHOLE).all())
        if few[0] < 0 or few[-1] > 255 or fractions or len(values) > _MOST_LABELS_TOLD:
            yield volume.shape, False
            return
    yield volume.shape, len(values) > 1


_MOST_LABELS_TOLD = 32


def _of(mask: SourceFile, volumes: Sequence[NamedVolume]) -> NamedVolume:
    return next(volume for volume in volumes if volume.file.path == mask.path)


def _name_beside(path: Path, mask: Path) -> str:
    """The name of an image relative to its mask's folder, its folder and name where it lies elsewhere."""
    try:
        return path.resolve().relative_to(mask.resolve().parent).as_posix()
    except ValueError:
        return f"{path.resolve().parent.name}/{path.name}"


def _around(mask: Path) -> list[SourceFile]:
    """The volumes in the folder above a mask's and the folders in it, named relative to it."""
    above = mask.resolve().parent.parent
    found = [*above.glob("*.nii*"), *above.glob("*/*.nii*")]
    paths = sorted(path for path in found if path.is_file() and path.resolve() != mask.resolve())
    own = SourceFile(0, mask, mask.resolve().relative_to(above).as_posix())
    return [own, *(SourceFile(0, path, path.relative_to(above).as_posix()) for path in paths[:_MOST_BESIDE])]


def _open_mask(source: SourceFile, image: NiftiVolume, given: Given) -> tuple[NiftiVolume, GridMap]:
    trust = given.options.trust_voxels
    mask = NiftiVolume.open(source)
    if isinstance(mask.grid, DataError) and trust:
        mask = NiftiVolume.open(source, affine=image.affine)
    return mask, map_grid(mask, image, trust_voxels=trust)


def _components(
    mask: NiftiVolume,
    image: NiftiVolume,
    grid: GridMap,
    source: SourceFile,
    names: Sequence[str],
    given: Given,
) -> list[Component]:
    """The lesions of a mask, read as it is stored: a gz cannot be read backwards."""
    across = image.axes[2]
    finder = ComponentFinder(source.name, lambda label: given.leaves_out(str(label), (f"label {label}", *names)))
    labels = _Labels(source.name)
    count = mask.shape[grid.axes[across]]
    for index in range(count):
        given.step(index, count, "reading masks")
        plane = labels.of(mask.scaled(grid.plane(mask, index, image.axes)), mask)
        if plane is not None:
            finder.add(count - 1 - index if grid.flips[across] else index, plane)
    for label in sorted(label for label, is_out in finder.left_out.items() if is_out):
        given.note_left_out(f"{source.name} label {label}", source, label)
    if not finder.left_out:
        rule = "the mask is empty, so no lesion"
        given.findings.append(Finding("warning", source.name, rule, "", "empty mask", source, 0))
    return finder.components()


class _Labels:
    """Turns the values of a mask, slice by slice, into labels: whole values, or 1 for probabilities from 0.5 on."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._largest = 0.0
        self._probabilities = False

    def of(self, values: NDArray[np.float64], mask: NiftiVolume) -> NDArray[np.int64] | None:
        """The labels [height, width] of a slice, None where it is empty.

        Raises:
            DataError: When the values are neither labels nor probabilities.
        """
        if not np.any(values):
            return None
        least, largest = float(values.min()), float(values.max())
        if not (np.isfinite(least) and np.isfinite(largest)):
            raise DataError(self._where, "a mask must not hold NaN or infinity", "Export it again")
        self._largest = max(self._largest, largest)
        if least < -_WHOLE or self._largest > _LARGEST_LABEL + _WHOLE:
            raise DataError(
                self._where,
                f"labels must be 0 .. {_LARGEST_LABEL}, got {least if least < 0 else largest:g}",
                "Is this an image? Name mask and image apart, or name the image with --image",
            )
        whole = np.rint(values)
        if not self._probabilities and (mask.dtype.kind == "f" or mask.scale != (1.0, 0.0)):
            self._probabilities = bool((abs(values - whole) > _WHOLE).any())
        if not self._probabilities:
            return whole.astype(np.int64) if whole.any() else None
        if self._largest > 1 + _WHOLE:
            raise DataError(
                self._where,
                f"values must be whole labels or probabilities of 0 .. 1, got fractions up to {self._largest:g}",
                "Save the mask as whole numbers",
            )
        labels: NDArray[np.int64] = (values >= FRACTION).astype(np.int64)
        return labels if labels.any() else None


def _note_no_fat(image: NiftiVolume, index: int, given: Given) -> None:
    """Warn where a slice has neither fat nor air, as stored values have none whose offset of 1024 is missing."""
    with contextlib.suppress(DataError):  # told when its lesion is cut
        if image.slice(index).load().hu.min() >= 0:
            rule = f"slice {index} has no value below 0 HU, so neither fat nor air: are these HU?"
            fix = "Look at the contact sheet; save the CT in HU if soft tissue is brighter than 100 HU"
            given.findings.append(Finding("warning", image.where, rule, fix))


def _note_few_voxels(components: Sequence[Component], source: SourceFile, given: Given) -> None:
    few = [component for component in components if component.size < FEW_VOXELS]
    fix = "Take them out of the mask if they are stray voxels"
    if len(few) > 5:
        rule = (
            f"{len(few)} of {len(components)} components have fewer than {FEW_VOXELS} voxels; they are taken as lesions"
        )
        given.findings.append(Finding("warning", source.name, rule, fix))
        return
    for component in few:
        where = f"{source.name} label {component.label} component {component.key}"
        rule = f"it has fewer than {FEW_VOXELS} voxels ({component.size}); it is taken as a lesion"
        given.findings.append(Finding("warning", where, rule, fix))
