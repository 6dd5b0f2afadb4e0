"""Changes to files that know their structure: DICOM elements, JSON values, cells, headers, chunks; else bytes.

Every function takes the file's bytes and a `random.Random`, and returns other bytes. It never raises for bytes that it
cannot parse: those are changed as bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[bytes, Random], bytes]

NASTY_TEXT = (
    "", " ", "0", "-0", "-1", "1", "2", "65536", "4294967296", "-2147483649", "1" * 400, "nan", "NaN", "inf",
    "-Infinity", "1e400", "1e-400", "1e308", "0,81", "abc", "\0", "\x1b[2J", "\u202e", "é" * 70, "../x", "/etc/passwd",
    "a\\b\\c", "\\\\\\", "=1+1", "%s%n", "{}", "[]", "'", '"', "\n", "x" * 5000, "1_000",
    "0x10", "١٢", "True", "null", "*", "[",
)  # fmt: skip
NASTY_JSON: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, -1e308, 1e-320, 10**12, 2**31, 2**63, 2**64, -(2**63) - 1,
    10**400, float("nan"), float("inf"), "", "0", "abc", "nan", "../x", "/etc/passwd", "\0", "\ud800", "é" * 300,
    "x" * 3000, [], {}, [[]], [{}], [0], [None], ["a", "b"], {"a": 1}, [1e400], [0] * 50,
    [[0, 0], [1e200, 0], [0, 1e200]], "[1, 2]",
)  # fmt: skip
NASTY_INTS = (0, 1, 2, 3, 7, 8, 15, 16, 32, 64, 127, 128, 255, 256, 32767, 32768, 65535, 65536, (1 << 31) - 1, 1 << 31)


def as_bytes(data: bytes, random: Random) -> bytes:
    """Flip, cut, insert, repeat or copy bytes, anywhere."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at = random.randrange(len(content) + 1)
        to = min(len(content), at + random.choice((1, 1, 2, 4, 8, 64)))
        action = random.randrange(7)
        if action == 0 and at < len(content):
            content[at] ^= 1 << random.randrange(8)
        elif action == 1:
            content[at:to] = random.randbytes(to - at)
        elif action == 2:
            del content[at:to]
        elif action == 3:
            del content[at:]
        elif action == 4:
            content[at:at] = random.randbytes(random.choice((1, 2, 4, 100)))
        elif action == 5:
            content[at:at] = content[at:to] * random.choice((1, 2, 50))
        elif content:
            start = random.randrange(len(content))
            content[at:to] = content[start : start + to - at]
    return bytes(content)


def _or_bytes(mutate: Mutator) -> Mutator:
    """The mutator for most calls; bytes for the others, and where it cannot parse."""

    def either(data: bytes, random: Random) -> bytes:
        if random.random() < 0.2:
            return as_bytes(data, random)
        try:
            for _ in range(random.choice((1, 1, 1, 2, 3))):
                data = mutate(data, random)
        except (ValueError, IndexError, KeyError, TypeError, struct.error, zlib.error, OSError, EOFError):
            return as_bytes(data, random)
        except RecursionError:
            return data
        return data

    return either


# DICOM: explicit little endian, as lists of [tag, VR, value]; a value is bytes, or for a sequence a list of lists.

_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_VRS = (*_LONG, b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
        b"SS", b"ST", b"TM", b"UI", b"UL", b"US", b"ZZ", b"\0\0")  # fmt: skip
_ITEM, _ITEM_END, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
_UNDEFINED = 0xFFFFFFFF
_CT_TAGS = bytes.fromhex  # tags are four bytes as stored


def _elements(data: bytes, at: int, end: int, depth: int = 0) -> tuple[list[list[Any]], int]:
    found: list[list[Any]] = []
    while at + 8 <= end:
        tag = data[at : at + 4]
        if tag == _ITEM_END:
            return found, at + 8
        vr = data[at + 4 : at + 6]
        if vr in _LONG:
            (length,) = struct.unpack_from("<I", data, at + 8)
            at += 12
        else:
            (length,) = struct.unpack_from("<H", data, at + 6)
            at += 8
        if vr == b"SQ" and depth < 20:
            items, at = _items(data, at, end if length == _UNDEFINED else min(end, at + length), depth)
            found.append([tag, vr, items])
            continue
        if length == _UNDEFINED:
            length = end - at
        found.append([tag, vr, data[at : min(end, at + length)]])
        at += length
    return found, at


def _items(data: bytes, at: int, end: int, depth: int) -> tuple[list[list[Any]], int]:
    items = []
    while at + 8 <= end:
        tag, length = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        at += 8
        if tag != _ITEM:
            break
        item, after = _elements(data, at, end if length == _UNDEFINED else min(end, at + length), depth + 1)
        items.append(item)
        at = after if length == _UNDEFINED else at + length
    return items, at


def _written(elements: list[list[Any]], random: Random, lie: float) -> bytes:
    parts = []
    for tag, vr, value in elements:
        content, length = value, None
        if isinstance(value, list):
            items = [_written(item, random, lie) for item in value]
            if random.random() < 0.5:
                content = b"".join(_ITEM + struct.pack("<I", len(item)) + item for item in items)
            else:
                content = b"".join(_ITEM + b"\xff" * 4 + item + _ITEM_END + b"\0" * 4 for item in items)
                content, length = content + _SEQUENCE_END + b"\0" * 4, _UNDEFINED
        stated = len(content) if length is None else length
        if random.random() < lie:
            stated = random.choice((0, 1, stated + 1, stated + 2, max(0, stated - 1), 0xFFFE, _UNDEFINED, 1 << 30))
        if vr in _LONG:
            parts.append(tag + vr + b"\0\0" + struct.pack("<I", min(stated, _UNDEFINED)) + content)
        else:
            parts.append(tag + vr + struct.pack("<H", stated & 0xFFFF) + content)
    return b"".join(parts)


def _places(elements: list[list[Any]]) -> list[list[list[Any]]]:
    """Every list of elements, the nested ones too."""
    nested = [elements]
    for element in elements:
        if isinstance(element[2], list):
            for item in element[2]:
                nested += _places(item)
    return nested


def _nasty_value(vr: bytes, value: Any, random: Random) -> bytes:
    if vr in (b"US", b"SS", b"UL", b"SL"):
        code = "<H" if vr[1:] == b"S" else "<I"
        return struct.pack(code, random.choice(NASTY_INTS) & (0xFFFF if code == "<H" else _UNDEFINED))
    if vr in (b"FD", b"FL"):
        return struct.pack("<d", random.choice((0.0, -1.0, float("nan"), float("inf"), 1e308, 5e-324)))
    parts = value.split(b"\\") if isinstance(value, bytes) and len(value) < 1 << 16 else [b""]
    text = random.choice(NASTY_TEXT).encode()
    if random.random() < 0.6:
        parts[random.randrange(len(parts))] = text
    else:
        parts = random.choice(([text], parts * 2, parts[:-1], parts[::-1], [*parts, text], [text] * 6))
    joined = b"\\".join(parts)
    return joined + b" " * (len(joined) % 2)


@_or_bytes
def dicom(data: bytes, random: Random) -> bytes:
    """Change, drop, repeat, swap, move or nest elements; lie about lengths and types."""
    if data[128:132] != b"DICM":
        raise ValueError("no DICOM file")
    elements, _ = _elements(data, 132, len(data))
    places = [place for place in _places(elements) if place]
    place = random.choice(places)
    at = random.randrange(len(place))
    element = place[at]
    action, lie = random.randrange(12), 0.0
    if action <= 3:
        element[2] = _nasty_value(element[1], element[2], random)
        if element[1] == b"SQ":
            element[1] = b"LO"
    elif action == 4:
        del place[at]
    elif action == 5:
        place[at:at] = [list(element) for _ in range(random.choice((1, 2, 200)))]
    elif action == 6:
        other = random.choice(random.choice(places))
        element[2], other[2] = other[2], element[2]
    elif action == 7:
        element[1] = random.choice(_VRS)
        if isinstance(element[2], list) and element[1] != b"SQ":
            element[2] = b"1\\2 "
        if not isinstance(element[2], list) and element[1] == b"SQ":
            element[2] = [[]]
    elif action == 8:
        other = random.choice(random.choice(places))
        element[0] = random.choice((other[0], random.randbytes(4)))
    elif action == 9:
        lie = random.choice((0.02, 0.2))
    elif action == 10 and isinstance(element[2], list):
        element[2] = random.choice((element[2] * 2, element[2][:-1], element[2][::-1], [[]], []))
    else:
        item = [list(element)]
        for _ in range(random.choice((1, 3, 30, 300))):
            item = [[element[0], b"SQ", [item]]]
        place[at] = item[0]
    if random.random() < 0.1:
        _other_syntax(elements, random)
    return data[:132] + _written(elements, random, lie)


def _other_syntax(elements: list[list[Any]], random: Random) -> None:
    syntaxes = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
                "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",
                "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.3", "")  # fmt: skip
    for element in elements:
        if element[0] == b"\x02\x00\x10\x00":
            text = random.choice(syntaxes).encode()
            element[2] = text + b"\0" * (len(text) % 2)
        if element[0] == b"\xe0\x7f\x10\x00" and random.random() < 0.7 and isinstance(element[2], bytes):
            fragment = random.choice((element[2], element[2][:100], b"\xff\xd8\xff\xe0" + element[2][:64], b""))
            element[2] = [[[b"\0\0\0\0", b"UN", fragment]]] if random.random() < 0.1 else _encapsulated(fragment)


def _encapsulated(fragment: bytes) -> bytes:
    fragment += b"\0" * (len(fragment) % 2)
    return _ITEM + b"\0" * 4 + _ITEM + struct.pack("<I", len(fragment)) + fragment + _SEQUENCE_END + b"\0" * 4


# JSON


def _spots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of every value."""
    keys: Any = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        _spots(value[key], found)
    return found


def change_json(value: Any, random: Random) -> Any:
    """Put another value somewhere, of another type as a rule; or drop, repeat, swap, wrap or rename."""
    spots = _spots(value, [])
    action = random.randrange(10)
    if not spots or (action == 0 and random.random() < 0.1):
        return random.choice(NASTY_JSON)
    container, key = random.choice(spots)
    if action <= 4:
        container[key] = random.choice(NASTY_JSON)
    elif action == 5:
        del container[key]
    elif action == 6 and isinstance(container, list):
        container[key:key] = [container[key]] * random.choice((1, 2, 1000))
    elif action == 6:
        container[random.choice(NASTY_TEXT)] = container[key]
    elif action == 7:
        other, at = random.choice(spots)
        if at in other if isinstance(other, dict) else at < len(other):
            container[key], other[at] = other[at], container[key]
    elif action == 8:
        for _ in range(random.choice((1, 2, 50))):
            container[key] = random.choice(([container[key]], {"a": container[key]}))
    else:
        container[key] = str(container[key])[:200]
    return value


def _dump(value: Any, random: Random) -> bytes:
    text = json.dumps(value)
    if random.random() < 0.03:
        text = text.replace('": ', '": 1, "', 1) if random.random() < 0.5 else "[" * 100_000
    return text.encode("utf-8", "surrogatepass")


@_or_bytes
def json_text(data: bytes, random: Random) -> bytes:
    """Change a JSON value."""
    return _dump(change_json(json.loads(data), random), random)


@_or_bytes
def json_lines(data: bytes, random: Random) -> bytes:
    """Change a value in one line of JSON Lines."""
    lines = data.splitlines() or [b"{}"]
    at = random.randrange(len(lines))
    lines[at] = _dump(change_json(json.loads(lines[at]), random), random)
    return b"\n".join(lines)


# Tables, XML, PNG, NIfTI


@_or_bytes
def table(data: bytes, random: Random) -> bytes:
    """Change, drop, repeat or swap cells, columns and rows of a CSV."""
    rows = [re.split(rb",(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", line) for line in data.splitlines()]
    row = random.choice(rows)
    at = random.randrange(len(row))
    action = random.randrange(8)
    if action <= 2:
        row[at] = random.choice(NASTY_TEXT).encode()
    elif action == 3:
        del row[at]
    elif action == 4:
        rows.insert(random.randrange(len(rows) + 1), list(row))
    elif action == 5:
        other = random.choice(rows)
        to = random.randrange(len(other))
        row[at], other[to] = other[to], row[at]
    elif action == 6:
        row[at] = b'"' + row[at].strip(b'"') + random.choice((b"", b'"', b'""'))
    else:
        number = re.compile(rb"-?\d+(\.\d+)?")
        row[at] = number.sub(lambda _: random.choice(NASTY_TEXT).encode(), row[at], count=1)
    return random.choice((b"\n", b"\n", b"\r\n", b"\r")).join(b",".join(row) for row in rows)


@_or_bytes
def xml(data: bytes, random: Random) -> bytes:
    """Change, drop or repeat an attribute, a tag or an element; declare entities."""
    tags = list(re.finditer(rb"<[^<>]*>", data))
    values = list(re.finditer(rb"\"[^\"<>]*\"", data))
    action = random.randrange(8)
    if action <= 3:
        found = random.choice(values)
        text = random.choice(NASTY_TEXT).encode().replace(b'"', b"&quot;").replace(b"<", b"&lt;")
        return data[: found.start()] + b'"' + text + b'"' + data[found.end() :]
    one, other = sorted(random.sample(range(len(tags)), 2))
    start, end = tags[one].start(), tags[other].end()
    if action == 4:
        return data[:start] + data[tags[one].end() :]
    if action == 5:
        return data[:start] + data[end:]
    if action == 6:
        return data[:end] + data[start:end] * random.choice((1, 3, 30)) + data[end:]
    entity = b"<!DOCTYPE a [<!ENTITY b 'b'><!ENTITY c '&b;&b;'><!ENTITY x SYSTEM 'file:///etc/passwd'>]>"
    after = data.find(b"?>") + 2 if data.startswith(b"<?xml") else 0
    return data[:after] + entity + data[after:start] + b"&c;&x;" + data[start:]


@_or_bytes
def png(data: bytes, random: Random) -> bytes:
    """Change, drop, repeat or swap chunks, with right check sums for the most part."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    chosen = random.choice(chunks)
    action = random.randrange(7)
    if chosen[0] == b"IHDR" and action <= 3 and len(chosen[1]) == 13:
        fields = list(struct.unpack(">IIBBBBB", chosen[1]))
        field = random.randrange(7)
        fields[field] = random.choice(NASTY_INTS) if field < 2 else random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chosen[1] = struct.pack(">IIBBBBB", *fields)
    elif action <= 2:
        chosen[1] = as_bytes(chosen[1], random)
    elif action == 3 and chosen[0] == b"IDAT":
        chosen[1] = zlib.compress(as_bytes(zlib.decompress(chosen[1]), random) * random.choice((1, 1, 1000)))
    elif action == 4:
        chunks.remove(chosen)
    elif action == 5:
        chunks.insert(random.randrange(len(chunks)), list(chosen))
    else:
        kind = random.choice((b"iTXt", b"zTXt", b"tEXt", b"iCCP", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"eXIf", b"IEND"))
        bomb = b"k\0\0" + zlib.compress(b"\0" * random.choice((10, 1 << 20, 1 << 24)))
        chunks.insert(random.randrange(1, len(chunks) + 1), [kind, random.choice((bomb, random.randbytes(20)))])
    parts = [data[:8]]
    for kind, content in chunks:
        check = zlib.crc32(kind + content) ^ (random.random() < 0.02)
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check))
    return b"".join(parts)


# Of the fields of a NIfTI-1 header: offset and format.
_NIFTI = ((0, "<i"), *((40 + 2 * n, "<h") for n in range(8)), (70, "<h"), (72, "<h"),
          *((76 + 4 * n, "<f") for n in range(8)), (108, "<f"), (112, "<f"), (116, "<f"), (252, "<h"), (254, "<h"),
          *((256 + 4 * n, "<f") for n in range(18)), (344, "<I"), (348, "<I"))  # fmt: skip
_FLOATS = (0.0, -1.0, 1.0, 0.5, 1e-30, 1e30, 3e38, float("nan"), float("inf"), 352.0, 1e9)


@_or_bytes
def nifti(data: bytes, random: Random) -> bytes:
    """Change fields of the header, in a gzip stream too, or the stream itself."""
    packed = data.startswith(b"\x1f\x8b")
    if packed and random.random() < 0.2:
        return as_bytes(data, random)
    content = bytearray(gzip.decompress(data) if packed else data)
    offset, code = random.choice(_NIFTI)
    if code == "<f":
        value: Any = random.choice(_FLOATS)
    else:
        value = random.choice((*NASTY_INTS, 348, 540, 4, 256, 512, 768, 1024, 1280)) & (
            0x7FFF if code == "<h" else 0x7FFFFFFF
        )
        value = -value if random.random() < 0.2 and code != "<I" else value
    struct.pack_into(code, content, offset, value)
    if random.random() < 0.1:
        content = content[: random.randrange(len(content))]
    if random.random() < 0.1:
        packed = not packed
    return gzip.compress(bytes(content), 1) if packed else bytes(content)


# Several files in one input: the length of each, then its bytes.


def join(*files: bytes) -> bytes:
    """Files as one input."""
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def split(data: bytes, count: int) -> list[bytes]:
    """The files of an input; those missing are empty, a length that lies ends with the input."""
    files, at = [], 0
    for _ in range(count):
        length = struct.unpack_from("<I", data, at)[0] if at + 4 <= len(data) else 0
        files.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return files


@_or_bytes
def safetensors(data: bytes, random: Random) -> bytes:
    """Change the header of a safetensors file, or its bytes."""
    (length,) = struct.unpack_from("<Q", data, 0)
    header = _dump(change_json(json.loads(data[8 : 8 + length]), random), random)
    stated = len(header) if random.random() < 0.9 else random.choice((0, 1, length, 1 << 40, (1 << 64) - 1))
    return struct.pack("<Q", stated) + header + data[8 + length :]


def described(place: tuple[str, ...]) -> Mutator:
    """For a manifest and its tensors: change one, and as a rule write the true SHA-256 where the manifest has it."""

    def mutate(data: bytes, random: Random) -> bytes:
        manifest, tensors = split(data, 2)
        if random.random() < 0.7:
            manifest = json_text(manifest, random)
        else:
            tensors = safetensors(tensors, random)
        if random.random() < 0.8:
            try:
                parsed = holder = json.loads(manifest)
                for key in place[:-1]:
                    holder = holder[key]
                holder[place[-1]] = hashlib.sha256(tensors).hexdigest()
                manifest = json.dumps(parsed).encode("utf-8", "surrogatepass")
            except (ValueError, KeyError, TypeError, RecursionError, IndexError):
                pass
        return join(manifest, tensors)

    return mutate
