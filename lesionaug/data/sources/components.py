"""Lesions out of a mask that comes slice by slice: connected components of labels, in little memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionaug.errors import DataError

MOST_PARTS = 200_000  # of all slices; noise, or an image in place of a mask, has millions
MOST_COMPONENTS = 2_000

_EIGHT = np.ones((3, 3), dtype=np.bool_)  # neighbours in a slice; with those in the next slices they are 26


@dataclass(frozen=True, eq=False)
class Part:
    """What a component has on one slice: the corner (top, left) and shape of its bounding box, the mask in bits."""

    corner: tuple[int, int]
    shape: tuple[int, int]
    bits: NDArray[np.uint8]
    area: int

    @classmethod
    def of(cls, corner: tuple[int, int], mask: NDArray[np.bool_]) -> Part:
        """Keep a mask [height, width] whose corner lies at (top, left)."""
        return cls(corner, (mask.shape[0], mask.shape[1]), np.packbits(mask), int(np.count_nonzero(mask)))

    def add_to(self, picture: NDArray[np.bool_]) -> None:
        """Draw it into a whole slice."""
        (top, left), (height, width) = self.corner, self.shape
        bits = np.unpackbits(self.bits, count=height * width).reshape(self.shape)
        picture[top : top + height, left : left + width] |= bits.astype(np.bool_)


@dataclass(eq=False)
class OnSlice:
    """The parts of a component on one slice."""

    parts: list[Part] = field(default_factory=list)

    @property
    def area(self) -> int:
        """In pixels."""
        return sum(part.area for part in self.parts)

    def whole(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """The mask of the slice, bool [height, width] as stored."""
        picture = np.zeros(shape, dtype=np.bool_)
        for part in self.parts:
            part.add_to(picture)
        return picture


@dataclass(eq=False)
class Component:
    """A lesion: its label, running numbers, and parts by the image's slice index."""

    label: int
    number: int
    key: str
    parts: dict[int, OnSlice]

    @property
    def largest(self) -> int:
        """The slice of largest area, the first on a tie."""
        return max(sorted(self.parts), key=lambda index: self.parts[index].area)

    @property
    def size(self) -> int:
        """In voxels."""
        return sum(entry.area for entry in self.parts.values())


class _Union:
    """Parts that touch each other, by their numbers."""

    def __init__(self) -> None:
        self.above: list[int] = []

    def add(self) -> int:
        self.above.append(len(self.above))
        return len(self.above) - 1

    def find(self, part: int) -> int:
        while self.above[part] != part:
            self.above[part] = self.above[self.above[part]]
            part = self.above[part]
        return part

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self.above[second] = first


class ComponentFinder:
    """Connected components (26 neighbours) of each label of a mask: parts within a slice, joined across slices.

    Args:
        where: Named in errors.
        leaves_out: Whether a label is passed over.
    """

    def __init__(self, where: str, leaves_out: Callable[[int], bool]) -> None:
        self._where = where
        self._leaves_out = leaves_out
        self._union = _Union()
        self._parts: list[tuple[int, int, Part]] = []  # label, slice, part
        self._before: tuple[int, NDArray[np.int32]] | None = None  # a slice and its part numbers + 1, 0 is background
        self.left_out: dict[int, bool] = {}

    def add(self, index: int, labels: NDArray[np.int64]) -> None:
        """Add a slice, next to the one before in either direction; empty slices may be left out.

        Args:
            index: Of the slice.
            labels: [height, width], 0 is background.

        Raises:
            DataError: When the mask falls into more parts than any drawn one.
        """
        here = np.zeros(labels.shape, dtype=np.int32)
        for label, around in enumerate(ndimage.find_objects(labels), 1):
            if around is None:
                continue
            if label not in self.left_out:
                self.left_out[label] = self._leaves_out(label)
            if self.left_out[label]:
                continue
            marked, _ = ndimage.label(labels[around] == label, structure=_EIGHT)
            top, left = around[0].start, around[1].start
            for number, box in enumerate(ndimage.find_objects(marked), 1):
                cut = marked[box] == number
                part = self._union.add()
                if part >= MOST_PARTS:
                    rule = f"it falls into more than {MOST_PARTS} parts, so it is no mask of lesions"
                    raise DataError(self._where, rule, "Clean the mask")
                here[around][box][cut] = part + 1
                corner = (top + box[0].start, left + box[1].start)
                self._parts.append((label, index, Part.of(corner, cut)))
        if self._before is not None and abs(self._before[0] - index) == 1:
            for one, other in _touching(self._before[1], here):
                if self._parts[one][0] == self._parts[other][0]:
                    self._union.join(one, other)
        self._before = index, here

    def components(self) -> list[Component]:
        """The components, numbered by label, then by their lowest slices.

        Raises:
            DataError: When there are more than anybody draws.
        """
        by_root: dict[int, dict[int, OnSlice]] = defaultdict(lambda: defaultdict(OnSlice))
        for number, (_, index, part) in enumerate(self._parts):
            by_root[self._union.find(number)][index].parts.append(part)
        if len(by_root) > MOST_COMPONENTS:
            rule = f"it holds {len(by_root)} separate components, more than {MOST_COMPONENTS}"
            raise DataError(self._where, rule, "Clean the mask, or leave labels out with --label-map")

        def order(root: int) -> tuple[int, int, tuple[int, int]]:
            lowest = min(by_root[root])
            return self._parts[root][0], lowest, min(part.corner for part in by_root[root][lowest].parts)

        components: list[Component] = []
        of_label: dict[int, int] = defaultdict(int)
        for root in sorted(by_root, key=order):
            label = self._parts[root][0]
            of_label[label] += 1
            key = f"{label}.{of_label[label]}"
            components.append(Component(label, len(components) + 1, key, dict(by_root[root])))
        return components


def _touching(before: NDArray[np.int32], here: NDArray[np.int32]) -> set[tuple[int, int]]:
    """Pairs of parts of two neighbouring slices with a voxel of one among the nine next to a voxel of the other."""
    rows, columns = np.nonzero(here)
    if not rows.size:
        return set()
    padded = np.pad(before, 1)
    pairs: set[tuple[int, int]] = set()
    own = here[rows, columns].astype(np.int64)
    for down in range(3):
        for right in range(3):
            other = padded[rows + down, columns + right].astype(np.int64)
            both = np.unique(other[other > 0] * (1 << 32) + own[other > 0])
            pairs.update((int(code >> 32) - 1, int(code & 0xFFFFFFFF) - 1) for code in both)
    return pairs
