"""Which NIfTI volume is a mask, of which image, and of whom, by the names of files and folders alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal

from lesionaug.data.slices import SourceFile
from lesionaug.data.sources.nifti import SUFFIXES

Role = Literal["mask", "image", ""]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MASK_WORDS = _words("mask masks seg segs segmentation segmentations label labels gt roi rois annotation annotations")
_IMAGE_WORDS = _words("image images img imgs volume volumes vol vols scan scans")
# These say less: a case may be called lesion_3, and a mask ct_tumor.
_WEAK_MASK_WORDS = _words("lesion lesions tumor tumors tumour tumours cyst cysts metastasis metastases")
_WEAK_IMAGE_WORDS = _words("ct cts")
_ROLE_WORDS = _MASK_WORDS | _IMAGE_WORDS | _WEAK_MASK_WORDS | _WEAK_IMAGE_WORDS
# Folders of these words hold a part of the cases, not a case.
_PARTS = _words("tr ts val train training test testing validation raw final all nii nifti batch part fold")
# What tells the pictures of one patient apart, and no patients.
_PHASES = _words(
    "pvp pv portal venous arterial art ap late delayed delay dp plain native nc nect ncct cect unenhanced phase"
)
_CHANNEL = re.compile(r"000\d")  # nnU-Net's case_0000.nii.gz
_TOKEN = re.compile(r"[0-9]+|[^\W\d_]+")

# A folder with more images than this holds cases; with fewer they may be the phases of one patient.
_MOST_IMAGES_OF_A_CASE = 4


@dataclass(frozen=True)
class NamedVolume:
    """A volume by its name.

    Attributes:
        file: The file.
        role: "mask", "image", or '' where the name does not tell.
        key: The words of the name without those that tell the role.
        folder: The same of the folders it lies in; folders that only tell a role are left out.
        channel: nnU-Net's name without its channel, equal to `key` for others.
    """

    file: SourceFile
    role: Role
    key: tuple[str, ...]
    folder: tuple[str, ...]
    channel: tuple[str, ...]

    @property
    def stem(self) -> str:
        """The name without folders and suffix."""
        return _stem(self.file.name)


@dataclass(frozen=True)
class Pairs:
    """What `pair_volumes` found.

    Attributes:
        images: The image of each mask.
        ambiguous: Masks that may belong to several images, with those.
        alone: Masks without an image.
        unused: Images without a mask, and volumes whose names tell nothing.
    """

    images: dict[SourceFile, SourceFile]
    ambiguous: dict[SourceFile, tuple[SourceFile, ...]]
    alone: tuple[SourceFile, ...]
    unused: tuple[SourceFile, ...]


def is_nifti_name(name: str) -> bool:
    """Whether a file is called .nii or .nii.gz."""
    return name.lower().endswith(SUFFIXES)


def role_of(file: SourceFile) -> Role:
    """What a volume's name says it is."""
    return _named(file).role


def named_volumes(files: Iterable[SourceFile]) -> list[NamedVolume]:
    """The NIfTI volumes among files, by their names."""
    return [_named(file) for file in files if is_nifti_name(file.name)]


def pair_volumes(files: Iterable[SourceFile]) -> Pairs:
    """Find the image of each mask by their names; see `image_of`.

    A mask is what is called so (or lies in a folder that is), and what bears the name of an nnU-Net image without its
    channel.

    Args:
        files: Of the source.
    """
    volumes = named_volumes(files)
    channels = {(_parent(volume), volume.channel) for volume in volumes if volume.channel != volume.key}
    masks = [
        volume
        for volume in volumes
        if volume.role == "mask" or (not volume.role and (_parent(volume), volume.key) in channels)
    ]
    others = [volume for volume in volumes if volume not in masks]
    images: dict[SourceFile, SourceFile] = {}
    ambiguous: dict[SourceFile, tuple[SourceFile, ...]] = {}
    for mask in masks:
        found = image_of(mask, others)
        if len(found) == 1:
            images[mask.file] = found[0].file
        elif found:
            ambiguous[mask.file] = tuple(image.file for image in found)
    used = {*images.values(), *(image for found in ambiguous.values() for image in found)}
    return Pairs(
        images,
        ambiguous,
        alone=tuple(mask.file for mask in masks if mask.file not in images and mask.file not in ambiguous),
        unused=tuple(volume.file for volume in others if volume.file not in used),
    )


def image_of(mask: NamedVolume, volumes: Sequence[NamedVolume]) -> list[NamedVolume]:
    """The image of a mask: none, one, or several that may be.

    From the mask's folder upwards, folders that only tell a role left out (`imagesTr` and `labelsTr` are one place):
    the image of the same name; else the one whose name begins or ends the mask's (`case_7_ct` and `case_7_tumor_2`;
    `ct` and anything); else the one whose name the mask's begins or ends; else the only one there.

    Args:
        mask: The mask.
        volumes: Those that may be its image; masks among them are passed over.
    """
    images = [volume for volume in volumes if volume.role != "mask" and volume.file != mask.file]
    for depth in range(len(mask.folder), -1, -1):
        level = mask.folder[:depth]
        here = [image for image in images if image.folder[:depth] == level]
        if not here:
            continue
        best = max(_likeness(mask, image) for image in here)
        if best > 0:
            found = [image for image in here if _likeness(mask, image) == best]
        else:
            found = here if len(here) == 1 and here[0].folder == level else []
        for narrower in (
            [image for image in found if image.folder == level],
            [image for image in found if image.role == "image"],
            [image for image in found if _parent(image) == _parent(mask)],
        ):
            if len(found) > 1 and any(image in found for image in narrower):
                found = [image for image in found if image in narrower]
        if found:
            return found
    return []


def case_of(image: NamedVolume, volumes: Sequence[NamedVolume]) -> str:
    """Whose an image is, as far as its name tells: never more than a guess that the user is told of.

    The folder where it holds a few images (the phases of a patient); else the name up to its last number, without words
    for phases; else the name.

    Args:
        image: The image.
        volumes: Every volume of the source.
    """
    folder = "/".join(part for part in PurePosixPath(image.file.name).parts[:-1] if _may_be_a_case(part))
    beside = {v.key for v in volumes if v.role != "mask" and _parent(v) == _parent(image)}
    if folder and len(beside) <= _MOST_IMAGES_OF_A_CASE:
        return folder
    kept = [
        match
        for match in _TOKEN.finditer(image.stem)
        if match.group().lower() not in _ROLE_WORDS and match.group().lower() not in _PHASES
    ]
    if image.channel != image.key and any(v.key == image.channel for v in volumes):
        kept = kept[:-1]
    numbers = [index for index, match in enumerate(kept) if match.group().isdigit()]
    if numbers:
        kept = kept[: numbers[-1] + 1]
    if kept:
        return image.stem[kept[0].start() : kept[-1].end()]
    above = [part for part in image.file.path.resolve().parent.parts[::-1] if _may_be_a_case(part)]
    return folder or (above[0] if above else image.stem)


def _may_be_a_case(folder: str) -> bool:
    """Whether a folder may be a patient's: not `imagesTr`, `CT` or `Training Batch 1`."""
    tokens = set(_tokens(folder))
    said = {token for token in tokens if not token.isdigit()}
    return bool(tokens) and not (said and said <= _ROLE_WORDS | _PARTS)


def also_named(mask: SourceFile) -> tuple[str, ...]:
    """What a label map may call the lesions of a mask: its name, the words of it, and its folders; no numbers."""
    stem = _stem(mask.name)
    folders = PurePosixPath(mask.name).parts[:-1] or (mask.path.parent.name,)
    names = (stem, *(match.group() for match in _TOKEN.finditer(_spaced(stem))), *folders[::-1])
    return tuple(dict.fromkeys(name for name in names if not name.isdigit()))


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", PurePosixPath(name).name, flags=re.IGNORECASE)


def _spaced(written: str) -> str:
    """`imagesTr` as two words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", written)


def _tokens(written: str) -> list[str]:
    return [match.group().lower() for match in _TOKEN.finditer(_spaced(written))]


def _folder(part: str) -> str:
    """What a folder's name says beside a role: nothing for `labels` or `CT`, `tr` for `imagesTr`."""
    tokens = _tokens(part)
    if _folder_role(part):
        return "".join(token for token in tokens if token not in _ROLE_WORDS)
    return part


def _folder_role(part: str) -> Role:
    """The role that a folder states, '' where its name says more: a folder of patients may be called ct_study_3."""
    tokens = set(_tokens(part))
    if tokens <= _ROLE_WORDS | _PARTS:
        if tokens & (_MASK_WORDS | _WEAK_MASK_WORDS):
            return "mask"
        if tokens & (_IMAGE_WORDS | _WEAK_IMAGE_WORDS):
            return "image"
    return ""


@lru_cache(maxsize=1 << 16)
def _named(file: SourceFile) -> NamedVolume:
    tokens = _tokens(_stem(file.name))
    folders = PurePosixPath(file.name).parts[:-1]
    key = tuple(token for token in tokens if token not in _ROLE_WORDS)
    role = _role(tokens, folders)
    channel = key
    if role != "mask" and len(key) > 1 and tokens[-1] == key[-1] and _CHANNEL.fullmatch(key[-1]):
        channel = key[:-1]
    return NamedVolume(file, role, key, tuple(text for part in folders if (text := _folder(part))), channel)


def _role(tokens: Sequence[str], folders: Sequence[str]) -> Role:
    words = set(tokens)
    if words & _MASK_WORDS:
        return "mask"
    if words & _IMAGE_WORDS:
        return "image"
    for part in folders[::-1]:
        if role := _folder_role(part):
            return "image" if role == "mask" and words & _WEAK_IMAGE_WORDS and not words & _WEAK_MASK_WORDS else role
    if words & _WEAK_MASK_WORDS:
        return "mask"
    return "image" if words & _WEAK_IMAGE_WORDS else ""


def _parent(volume: NamedVolume) -> str:
    return volume.file.name.rpartition("/")[0]


def _likeness(mask: NamedVolume, image: NamedVolume) -> float:
    if mask.key == image.key:
        return 1000.0
    if mask.key == image.channel:
        return 999.0
    for key in (image.key, image.channel):
        if _ends(key, mask.key):
            return 1.0 + len(key)
    return 0.5 if _ends(mask.key, image.key) else 0.0


def _ends(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    """Whether a name begins or ends with another."""
    return len(part) < len(whole) and part in (whole[: len(part)], whole[len(whole) - len(part) :])
