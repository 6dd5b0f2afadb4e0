"""The contact sheet of the augmentation (Fig. 3 of the paper): one lesion per class, every kind, one grey window."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lesionaug.augment.plan import AugmentationPlan
    from lesionaug.data.rois import RoiBatch

RING_COLOUR = "#E69F00"  # Okabe-Ito orange: seen on dark and on bright tissue, also without colour vision
BANNERS = {
    "phantom": "Phantom data: synthetic, not patients",
    "imported": "Imported CT data: pictures and numbers of the user's own store",
    "user": "User data: handed over as arrays, origin not recorded",
}
_FLIPS = {1: "left-right", 2: "up-down", 3: "both"}  # bit 0 left-right, bit 1 up-down


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet: augmentation `index` of the plan (None: the un-augmented ROI) and the text below it."""

    index: int | None
    kind: str


def banner(kind: str) -> str:
    """What the pixels are, as a sentence that stands on every picture and page."""
    return BANNERS.get(kind, f"Data of unknown kind ({kind})")


def drawing_style() -> AbstractContextManager[None]:
    """What every picture of the package has in common; the salt and the bundled font make equal content equal bytes."""
    return matplotlib.rc_context(
        {
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "font.family": "DejaVu Sans",
            "font.size": 9.0,
            "legend.frameon": False,
            "svg.fonttype": "path",
            "svg.hashsalt": "lesionaug",
        }
    )


def figure_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as PNG bytes: no date, no software tag, so that equal figures give equal bytes."""
    stream = io.BytesIO()
    with drawing_style():
        FigureCanvasAgg(figure)
        figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def random_lesions(rois: RoiBatch, per_class: int, seed: int) -> list[tuple[str, list[int]]]:
    """Draw lesions of every class at random, never by look.

    Args:
        rois: The ROIs.
        per_class: How many of each class, at most.
        seed: The seed of the draw.

    Returns:
        (class name, indices) per class that has lesions; "unlabelled" comes last.
    """
    drawn = []
    labels = rois.labels.tolist()
    for label, name in [*enumerate(rois.classes), (-1, "unlabelled")]:
        # sorted by id: the draw depends on which lesions there are, not on their order in the batch
        members = sorted((i for i, value in enumerate(labels) if value == label), key=lambda i: rois.lesion_ids[i])
        if members:
            chosen = random.Random(f"{seed}/{name}").sample(members, min(per_class, len(members)))
            drawn.append((name, chosen))
    return drawn


def sheet_rows(plan: AugmentationPlan, columns: int = 9) -> list[tuple[str, list[Tile]]]:
    """The rows of a lesion's sheet: rotations, then what the plan does to the first rotated ROI.

    Args:
        plan: The augmentation plan.
        columns: Tiles per row at most; the first tile of a row is what the others were made from.

    Returns:
        (name, tiles) per row. Flips and scalings share a row where they fit; a kind the plan does not use has none.
    """
    rotations = [Tile(r * plan.variants, "rotated") for r in range(min(plan.n_rot, columns - 1))]
    rows = [("rotated", [Tile(None, "original"), *rotations])]
    first, flips, shifts, scalings = 1, plan.n_flip, plan.n_trans, plan.n_scale
    kinds = {
        "translated": [Tile(first + flips + i, "translated") for i in range(shifts)],
        "flipped": [Tile(first + i, "flipped") for i in range(flips)],
        "scaled": [Tile(first + flips + shifts + i, "scaled") for i in range(scalings)],
    }
    if flips and scalings and flips + scalings < columns:
        kinds["flipped, scaled"] = kinds.pop("flipped") + kinds.pop("scaled")
    rows += [(name, [Tile(0, "rotated"), *tiles][:columns]) for name, tiles in kinds.items() if tiles]
    return rows


def contact_sheet(
    rois: RoiBatch,
    plan: AugmentationPlan,
    *,
    seed: int = 0,
    window: tuple[float, float] | None = None,
    lesions: Sequence[int] | None = None,
    columns: int = 9,
    size: int = 64,
    ring: bool = True,
    antialias: bool = True,
    a: float = -0.5,
    border: str = "reflect",
) -> Figure:
    """Draw the augmentation of one lesion per class: original, rotations, flips, translations and scalings (Fig. 3).

    All tiles share one grey window; none is scaled by itself. The parameters stand below each tile: the angle in
    degrees, the shift in source pixels along the patch's axes, the margin per side in lesion diameters d.

    Args:
        rois: ROIs with labels or without.
        plan: The augmentation plan whose augmentations are shown.
        seed: Seed of the augmentations (as in `plan.sample`) and of the draw of the lesions.
        window: (low, high) HU; default: the liver window `DEFAULT_WINDOW_HU`.
        lesions: Indices of the lesions to show; default: one of each class, drawn at random.
        columns: Tiles per row.
        size: Pixels of a patch, as the network sees it.
        ring: Draw the circle of diameter d around the lesion's centre.
        antialias: As in `augment`.
        a: As in `augment`.
        border: As in `augment`.

    Returns:
        A figure of one block of rows per lesion.
    """
    import torch

    from lesionaug.augment.execute import augment
    from lesionaug.augment.plan import originals
    from lesionaug.data.rois import DEFAULT_WINDOW_HU

    window = DEFAULT_WINDOW_HU if window is None else window
    draw = functools.partial(augment, size=size, window=window, antialias=antialias, a=a, border=border)
    if lesions is None:
        named = [(name, chosen[0]) for name, chosen in random_lesions(rois, 1, seed)]
    else:
        named = [(_class_name(rois, i), i) for i in lesions]
    rows = sheet_rows(plan, columns)
    indices = sorted({tile.index for _, tiles in rows for tile in tiles if tile.index is not None})
    place = {index: position for position, index in enumerate(indices)}

    with drawing_style():
        figure = Figure(figsize=(0.62 + 1.12 * columns, 0.75 + len(named) * (0.3 + 1.32 * len(rows))))
        blocks = figure.subfigures(len(named), 1, squeeze=False)[:, 0]
        for (name, lesion), block in zip(named, blocks, strict=True):
            one = rois[[lesion]].to("cpu")
            params = plan.sample(one, seed=seed, indices=torch.tensor(indices, dtype=torch.int64))
            base = originals(one, plan.base_side)
            patches = draw(one, params)[:, 0]
            original = draw(one, base)[0, 0]
            diameter = float(one.diameters[0])
            block.suptitle(f"{name}, lesion {one.lesion_ids[0][:12]}: {_extent(one)}", x=0.01, ha="left", weight="bold")
            axes = block.subplots(len(rows), columns, squeeze=False)
            for (kind, tiles), line in zip(rows, axes, strict=True):
                line[0].set_ylabel(kind, fontsize=9)
                for tile, axis in zip([*tiles, *[None] * (columns - len(tiles))], line, strict=True):
                    if tile is None:
                        axis.set_axis_off()
                        continue
                    row, source = (0, base) if tile.index is None else (place[tile.index], params)
                    picture = original if tile.index is None else patches[row]
                    shift = (float(source.shift[row, 0]), float(source.shift[row, 1]))
                    side = float(source.side[row])
                    _draw_tile(axis, picture.numpy(), diameter / side if ring else None, shift, side)
                    angle, flip = float(source.angle[row]), int(source.flip[row])
                    axis.set_xlabel(_caption(tile, angle, flip, shift, side / diameter), fontsize=7.5, labelpad=2)
        figure.suptitle(
            f"Augmentation of {'one lesion per class, drawn at random' if lesions is None else 'chosen lesions'} "
            f"(seed {seed}); window {show_window(window)} in every tile; {size} x {size} pixels"
            + ("; ring: lesion diameter d" if ring else ""),
            fontsize=9,
        )
        figure.supxlabel(banner(rois.kind), fontsize=9, weight="bold")
    return figure


def show_window(window: tuple[float, float]) -> str:
    """A grey window as text, with a proper minus sign."""
    return f"{window[0]:g} to {window[1]:g} HU".replace("-", "\N{MINUS SIGN}")


def _class_name(rois: RoiBatch, index: int) -> str:
    label = int(rois.labels[index])
    return rois.classes[label] if label >= 0 else "unlabelled"


def _extent(one: RoiBatch) -> str:
    """The lesion's diameter in pixels, and in mm where the spacing is known."""
    diameter = float(one.diameters[0])
    text = f"d = {diameter:.1f} px"
    if one.spacing_mm is not None:
        text += f" = {diameter * float(one.spacing_mm[0].min()):.1f} mm"
    return text


def _caption(tile: Tile, angle: float, flip: int, shift: tuple[float, float], side_in_d: float) -> str:
    """What was done to a tile: degrees, source pixels, lesion diameters."""
    if tile.kind == "original":
        return f"original\nmargin {_margin(side_in_d):.2f} d"
    if tile.kind == "rotated":
        return f"{angle:.1f}°"
    if tile.kind == "flipped":
        return _FLIPS.get(flip, "none")
    if tile.kind == "translated":
        return f"{_signed(shift[0])}, {_signed(shift[1])} px"
    return f"margin {_margin(side_in_d):.2f} d"


def _margin(side_in_d: float) -> float:
    """Tissue on each side of the lesion, in diameters: a patch of side 1.4 d has 0.2 d."""
    return (side_in_d - 1.0) / 2.0


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _draw_tile(axis: Axes, picture: Any, ring_side: float | None, shift: tuple[float, float], side: float) -> None:
    """One patch with values in (0, 1), black to white, and the ring of diameter d where the lesion's centre went."""
    axis.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", extent=(0.0, 1.0, 1.0, 0.0))
    axis.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    for spine in axis.spines.values():
        spine.set_visible(False)
    if ring_side is not None:
        from matplotlib.patches import Circle

        # docs/definitions.md, section 1: image = c where the patch point is n/2 + t n/S, at any angle and flip
        centre = (0.5 + shift[0] / side, 0.5 + shift[1] / side)
        axis.add_patch(Circle(centre, ring_side / 2, fill=False, edgecolor=RING_COLOUR, linewidth=0.8, alpha=0.9))
