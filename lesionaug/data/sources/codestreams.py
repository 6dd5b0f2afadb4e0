"""Whether compressed pixels lost something, by their own headers: a transfer syntax may claim 'lossless' wrongly.

Only the markers before the coded data are read, segment by segment with the lengths they state.
"""

from __future__ import annotations

from collections.abc import Iterator

_JPEG_2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203)}
_JPEG_LS = {f"1.2.840.10008.1.2.4.{n}" for n in (80, 81)}
WITH_HEADERS = _JPEG_2000 | _JPEG_LS  # transfer syntaxes whose pictures say how they were compressed

_MOST_SEGMENTS = 10_000  # of one picture; real ones have a dozen, and two for each tile

_SOC, _SIZ, _COD, _COC, _SOT, _SOD = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93  # JPEG 2000
_SOI, _SOS = 0xFFD8, 0xFFDA  # JPEG-LS
_REVERSIBLE = 1  # the 5-3 wavelet; 0 is 9-7
_WIDE_COMPONENTS = 257  # from so many on a component's number has two bytes


def loss(syntax: str, codestream: bytes) -> str:
    """How a picture's codestream says that values were lost, '' where it does not.

    A codestream that is broken says nothing: its decoder does.

    Args:
        syntax: UID of the transfer syntax, one of `WITH_HEADERS`.
        codestream: Of one frame.
    """
    return _jpeg_2000_loss(codestream) if syntax in _JPEG_2000 else _jpeg_ls_loss(codestream)


def _jpeg_2000_loss(codestream: bytes) -> str:
    component_bytes = 1
    for marker, segment in _jpeg_2000_segments(codestream):
        if marker == _SIZ and int.from_bytes(segment[34:36], "big") >= _WIDE_COMPONENTS:
            component_bytes = 2
        # Style, progression, layers, colours, levels, block width, height and style come before the wavelet.
        at = 9 if marker == _COD else component_bytes + 5 if marker == _COC else None
        if at is not None and len(segment) > at and segment[at] != _REVERSIBLE:
            return "its JPEG 2000 wavelet is the irreversible one"
    return ""


def _jpeg_2000_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The segments of the main header and of every tile part's header, as (marker, content)."""
    at = _start_of_jpeg_2000(content)
    if int.from_bytes(content[at : at + 2], "big") != _SOC:
        return
    at, tile_end = at + 2, 0
    for _ in range(_MOST_SEGMENTS):
        marker, length = int.from_bytes(content[at : at + 2], "big"), int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _SOD:
            if tile_end <= at:  # the last tile part, of unknown length
                return
            at = tile_end
            continue
        if marker < 0xFF00 or length < 2:
            return
        if marker == _SOT:
            tile_end = at + int.from_bytes(content[at + 6 : at + 10], "big")
        yield marker, content[at + 4 : at + 2 + length]
        at += 2 + length


def _start_of_jpeg_2000(content: bytes) -> int:
    """Where the codestream starts: some writers leave it in the boxes of a .jp2 file."""
    at = 0
    if content[4:8] != b"jP  ":
        return at
    for _ in range(_MOST_SEGMENTS):
        length, head = int.from_bytes(content[at : at + 4], "big"), 8
        if length == 1:
            length, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        if content[at + 4 : at + 8] == b"jp2c":
            return at + head
        if length < head:
            break
        at += length
    return len(content)


def _jpeg_ls_loss(content: bytes) -> str:
    if int.from_bytes(content[:2], "big") != _SOI:
        return ""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        if content[at : at + 2] == b"\xff\xff":  # a fill byte
            at += 1
            continue
        marker, length = int.from_bytes(content[at : at + 2], "big"), int.from_bytes(content[at + 2 : at + 4], "big")
        if marker < 0xFF00 or length < 2:
            return ""
        segment = content[at + 4 : at + 2 + length]
        if marker == _SOS:
            near = segment[1 + 2 * segment[0] :][:1] if segment else b""  # after the components
            return f"its JPEG-LS values may be off by {near[0]}" if near and near[0] else ""
        at += 2 + length
    return ""
