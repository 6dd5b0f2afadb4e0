"""Outlines in the stored pixels of an image that is named by its SOP instance UID, matched to that slice.

Shared by the formats that draw on images: structured reports and AIM annotations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import MarginRefused
from lesionaug.data.sources.contours import Reference, SliceIndex
from lesionaug.data.sources.dicom_ct import CtSlice

# What one outline may hold: real ones have hundreds of points and are a few hundred pixels (or mm) long. Drawing takes
# memory for every row that an edge crosses, so it is the length that must be bounded.
MAX_POINTS = 100_000
MAX_LENGTH = 1e6
MAX_OUTLINES = 1000

# Corners of the polygon that stands for a circle or an ellipse; it is off by 1e-6 of the radius.
CORNERS = 2000
# The two axes of an ellipse must halve each other and stand upright on each other to this share of the longer one.
SAME_CENTRE = 0.1


@dataclass(frozen=True, eq=False)
class Region:
    """A closed outline on one image.

    Attributes:
        points: float64 [n, 2], (x, y) in pixels of the image as it is stored; (0.5, 0.5) is the first pixel's centre.
        reference: The image.
        included: Off for what is cut out of the others.
    """

    points: NDArray[np.float64]
    reference: Reference
    included: bool = True


def outline(values: Any, where: str) -> NDArray[np.float64]:
    """The points [n, dimensions] of an outline, checked.

    Raises:
        MarginRefused: When they are no finite numbers of a plausible size, or more than any real outline has.
    """
    try:
        points = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        points = np.empty(0)
    good = points.ndim == 2 and points.shape[0] > 0 and bool(np.isfinite(points).all())
    if not good or float(abs(points).max()) > MAX_LENGTH:
        raise MarginRefused(
            where,
            "the points of an outline must be finite numbers",
            "Export the margins again",
            "broken outline",
        )
    if len(points) > MAX_POINTS or float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum()) > MAX_LENGTH:
        raise MarginRefused(
            where,
            f"an outline may have {MAX_POINTS} points, and a length of {MAX_LENGTH:.0e}",
            "Export the margins again",
            "outline too long",
        )
    return points


def circle(points: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """The polygon [n, 2] of a circle that is given by its centre and a point on it.

    Raises:
        MarginRefused: When it is not given by two different points.
    """
    if len(points) != 2 or not float(np.linalg.norm(points[1] - points[0])) > 0:
        raise MarginRefused(
            where, "a circle is given by its centre and a point on it", "Export the margins again", "broken outline"
        )
    radius = float(np.linalg.norm(points[1] - points[0]))
    return _turned(points[0], np.array([radius, 0.0]), np.array([0.0, radius]))


def ellipse(points: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """The polygon [n, dimensions] of an ellipse that is given by the ends of its major, then of its minor axis.

    Raises:
        MarginRefused: When it is not given by the ends of two axes that halve each other at right angles.
    """
    if len(points) == 4:
        major, minor = (points[1] - points[0]) / 2, (points[3] - points[2]) / 2
        middle, other = (points[0] + points[1]) / 2, (points[2] + points[3]) / 2
        long, short = float(np.linalg.norm(major)), float(np.linalg.norm(minor))
        off = float(np.linalg.norm(middle - other))
        if min(long, short) > 0 and off <= SAME_CENTRE * long and abs(major @ minor) <= SAME_CENTRE * long * short:
            return _turned(middle, major, minor)
    raise MarginRefused(
        where,
        "an ellipse is given by the ends of its major axis, then of its minor axis",
        "Export the margins again",
        "broken outline",
    )


def _turned(
    middle: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)[:, None]
    return middle + first * np.cos(angles) + second * np.sin(angles)


def match_regions(
    regions: Sequence[Region], index: SliceIndex, where: str, *, patient: str | None
) -> tuple[dict[CtSlice, list[Region]], int]:
    """Find the slice of each region: the image that it names, and no other.

    Args:
        regions: Of one margin.
        index: Of every slice.
        where: Named in errors.
        patient: Of the margin, as `patient_key` has it; None where its format does not say.

    Returns:
        Regions by slice, and how many name an image that is not here.

    Raises:
        MarginRefused: When none of the images is here, the frame is none of the image's, or it is another patient's.
    """
    on_slice: dict[CtSlice, list[Region]] = defaultdict(list)
    missing = 0
    for region in regions:
        frames = index.referenced([Reference(region.reference.sop_uid)])
        named = index.referenced([region.reference])
        if not frames:
            missing += 1
            continue
        if len(named) != 1:
            wanted = "no frame" if region.reference.frame is None else f"frame {region.reference.frame}"
            raise MarginRefused(
                where,
                f"the margin must name a frame of its image, which has {len(frames)} here; it names {wanted}",
                "Export the margins again",
                "no such frame",
            )
        index.check_patient(named[0], patient, where)
        on_slice[named[0]].append(region)
    if not on_slice:
        raise MarginRefused(
            where,
            "no CT slice here is the image that the margin was drawn on",
            "Put the CT series that it was drawn on into the folder",
            "the image that it names is not here",
        )
    return on_slice, missing
