"""Whom a model has learned from, so that nothing is ever tested on patients it knows: by patient, lesion and pixels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lesionaug.data.rois import RoiBatch
from lesionaug.errors import DataError


@dataclass(frozen=True)
class Provenance:
    """The lesions something was made from.

    Attributes:
        patients: Pseudonyms.
        lesions: Ids.
        contents: Hashes of the lesions' pixels, see `content_hashes`: the same lesion under another name is known.
    """

    patients: frozenset[str]
    lesions: frozenset[str]
    contents: frozenset[str]

    @classmethod
    def of(cls, rois: RoiBatch) -> Provenance:
        """Of lesions themselves."""
        return cls(frozenset(rois.patient_ids), frozenset(rois.lesion_ids), frozenset(content_hashes(rois)))

    @classmethod
    def union(cls, sources: Iterable[Provenance]) -> Provenance:
        """Of all that several things were made from."""
        parts = [(source.patients, source.lesions, source.contents) for source in sources]
        return cls(*(frozenset().union(*kinds) for kinds in zip(*parts, strict=True)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Provenance:
        """Read what `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: Something else.
        """
        return cls(*(_strings(value[name]) for name in ("patients", "lesions", "contents")))

    def to_json(self) -> dict[str, list[str]]:
        """As plain values, sorted."""
        return {
            "patients": sorted(self.patients),
            "lesions": sorted(self.lesions),
            "contents": sorted(self.contents),
        }

    def check_apart(self, test: Provenance, where: str, fix: str) -> None:
        """Refuse to test lesions, patients or pixels that are known already.

        Args:
            test: Those to be tested on.
            where: What learned from these, for the error.
            fix: What the user can do.

        Raises:
            DataError: Naming one that is on both sides.
        """
        for what, mine, theirs in (
            ("patient(s)", self.patients, test.patients),
            ("lesion(s)", self.lesions, test.lesions),
        ):
            both = sorted(mine & theirs)
            if both:
                raise DataError(where, f"it learned from {len(both)} {what} to be tested, for one {both[0]}", fix)
        both = sorted(self.contents & test.contents)
        if both:
            raise DataError(
                where,
                f"it learned from the pixels of {len(both)} lesion(s) to be tested, which go by other names there "
                f"(content {both[0][:12]})",
                fix,
            )


def content_hashes(rois: RoiBatch) -> tuple[str, ...]:
    """One hash for each lesion, of the pixels within its diameter alone: names and the size of a crop play no part."""
    hashes = []
    images = [image.detach().cpu().numpy() for image in rois.images]
    for image, (x, y), diameter in zip(images, rois.centers.tolist(), rois.diameters.tolist(), strict=True):
        left, top = (max(math.floor(c - diameter / 2), 0) for c in (x, y))
        right, bottom = (max(math.ceil(c + diameter / 2), 1) for c in (x, y))
        part = np.ascontiguousarray(image[top:bottom, left:right], dtype=np.float64)
        about = hashlib.blake2b(repr(part.shape).encode(), digest_size=16)
        about.update(part.tobytes())
        hashes.append(about.hexdigest())
    return tuple(hashes)


def _strings(values: Iterable[Any]) -> frozenset[str]:
    values = list(values)
    if not all(isinstance(value, str) for value in values):
        raise TypeError("ids must be strings")
    return frozenset(values)
