"""The contact sheet of a ROI store: every lesion with its margin, so that a person can see what was imported."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from lesionaug.data.margins import mask_edges

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from lesionaug.data.rois import RoiBatch

_TILE = 168  # pixels of a picture's side
_GAP = 10
_CAPTION = 34
_COLUMNS = 10
_MOST = 600  # tiles; a larger sheet opens nowhere
_BACKGROUND = (24, 26, 30)
_INK = (225, 228, 232)
_OUTLINE = (255, 196, 0)


def draw_contact_sheet(rois: RoiBatch, window_hu: tuple[float, float]) -> bytes:
    """A PNG with one tile for each lesion, sorted by class: the stored crop in the window, the mask's outline on it.

    Args:
        rois: With masks.
        window_hu: (low, high), black to white.

    Returns:
        The PNG file's bytes, without any text chunk.
    """
    from PIL import Image, ImageDraw, ImageFont

    order = sorted(range(len(rois)), key=lambda i: (int(rois.labels[i]), rois.lesion_ids[i]))[:_MOST]
    columns = min(_COLUMNS, max(4, len(order)))
    rows = -(-len(order) // columns)
    width = _GAP + columns * (_TILE + _GAP)
    header = 44
    sheet = Image.new("RGB", (width, header + rows * (_TILE + _CAPTION + _GAP) + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(16), ImageFont.load_default(12)
    draw.text((_GAP, 12), _title(rois, len(order), window_hu), fill=_INK, font=title)
    for place, index in enumerate(order):
        left = _GAP + place % columns * (_TILE + _GAP)
        top = header + place // columns * (_TILE + _CAPTION + _GAP)
        sheet.paste(_tile(rois, index, window_hu), (left, top))
        for line, words in enumerate(_caption(rois, index)):
            draw.text((left, top + _TILE + 3 + 15 * line), _shorten(words, small), fill=_INK, font=small)
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")
    return stream.getvalue()


def _title(rois: RoiBatch, shown: int, window_hu: tuple[float, float]) -> str:
    patients = len(set(rois.patient_ids))
    what = "PHANTOM (synthetic, no patients): " if rois.kind == "phantom" else ""
    part = "" if shown == len(rois) else f", the first {shown} shown"
    return (
        f"{what}{len(rois)} lesions of {patients} patients{part}; "
        f"window {window_hu[0]:g} .. {window_hu[1]:g} HU, outline: margin"
    )


def _caption(rois: RoiBatch, index: int) -> tuple[str, str]:
    label = int(rois.labels[index])
    diameter = float(rois.diameters[index])
    size = f"{diameter:.0f} px"
    if rois.spacing_mm is not None:
        size = f"{diameter * float(rois.spacing_mm[index].min()):.0f} mm"
    return (
        f"{rois.classes[label] if label >= 0 else 'unlabelled'}, {size}",
        f"{rois.lesion_ids[index][:8]}  {rois.patient_ids[index]}",
    )


def _shorten(words: str, font: FreeTypeFont | ImageFont) -> str:
    if font.getlength(words) <= _TILE:
        return words
    while len(words) > 1 and font.getlength(words + "...") > _TILE:
        words = words[:-1]
    return words + "..."


def _tile(rois: RoiBatch, index: int, window_hu: tuple[float, float]) -> Picture:
    """The crop, its longer side (in mm) filling the tile."""
    from PIL import Image, ImageDraw

    hu = rois.images[index].cpu().numpy().astype(np.float64)
    low, high = window_hu
    grey = Image.fromarray(np.rint(np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8))
    height, width = hu.shape
    across, down = (1.0, 1.0) if rois.spacing_mm is None else (float(s) for s in rois.spacing_mm[index])
    scale = _TILE / max(width * across, height * down)
    size = (max(1, round(width * across * scale)), max(1, round(height * down * scale)))
    tile = Image.new("RGB", (_TILE, _TILE), (0, 0, 0))
    offset = ((_TILE - size[0]) // 2, (_TILE - size[1]) // 2)
    tile.paste(grey.resize(size, Image.Resampling.BICUBIC).convert("RGB"), offset)
    masks = rois.masks
    if masks is not None:
        draw = ImageDraw.Draw(tile)
        to_tile = np.array([size[0] / width, size[1] / height])
        for start, end in mask_edges(masks[index].cpu().numpy()):
            a, b = np.array(start) * to_tile + offset, np.array(end) * to_tile + offset
            draw.line((float(a[0]), float(a[1]), float(b[0]), float(b[1])), fill=_OUTLINE, width=1)
    return tile
