"""DICOM files as untrusted input: read whole or refused with a `DataError` that names the file, the rule and the fix.

pydicom raises a dozen kinds of exception on broken files and accepts 'abc' as a number; here every failure is one kind
of error, every number is checked, and no length that a file states is believed before memory is taken for it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import SourceFile
from lesionaug.errors import ConfigError, DataError, LesionaugError

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_FILE_BYTES = 2 << 30

EXPORT_AGAIN = "Export the file again from its archive, or remove it"

_DEFLATED = "1.2.840.10008.1.2.1.99"
# A deflated file may grow to this, or to this many times its size: a slice deflates to a half, a segmentation to a
# hundredth, and a bomb to a thousandth.
_MAX_INFLATED_BYTES = 64 << 20
_MAX_INFLATION = 100
_MOST_INFLATED_BYTES = 512 << 20
# Elements at the top level; real files have a few hundred, those with a scanner's private groups a thousand.
_MAX_ELEMENTS = 20_000
# Reads that parsing may take, two or three for an element or item: real files need 100,000 for a MiB of short elements
# and 10,000 for a MiB of contours. A million empty items would take a minute.
_MAX_READS = 60_000
_MAX_READS_PER_MIB = 30_000
_MAX_ITEMS = 5_000  # of a sequence, and one for each 32 bytes
_META_START = 132
_MOST_META_BYTES = 64 << 10
_PIXEL_DATA = 0x7FE00010


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever a broken file makes a reader raise into one `DataError`; readers' own warnings are silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except LesionaugError:
            raise
        except RecursionError as error:
            raise DataError(where, "sequences are nested deeper than any real file's", EXPORT_AGAIN) from error
        except MemoryError as error:
            raise DataError(where, "the file asks for more memory than there is", EXPORT_AGAIN) from error
        except Exception as error:  # pydicom and the codecs raise about a dozen types
            said = "".join(c if c.isprintable() else " " for c in str(error))[:160].strip()
            raise DataError(
                where, f"the file is broken and cannot be read ({type(error).__name__}: {said})", EXPORT_AGAIN
            ) from error


def is_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are those of a DICOM file."""
    return len(head) >= 132 and head[128:132] == b"DICM"


class _Content(io.BytesIO):
    """A file's content for pydicom, which neither counts what it parses nor notices a value that is cut short.

    From memory, so that a length that lies cannot make the reader reserve gigabytes.

    Attributes:
        fault: What was found; pydicom hides some exceptions within others, so it is kept.
    """

    # Sizes of reads that may end early: of a header, where the file ends, and of a search for a delimiter.
    _MAY_END = (1, 8, 1024 * 8)

    def __init__(self, content: bytes, where: str, file_size: int) -> None:
        super().__init__(content)
        self.fault: DataError | None = None
        self._where = where
        self._left = _MAX_READS + _MAX_READS_PER_MIB * file_size // (1 << 20)

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._left -= 1
        if self._left < 0:
            self.fault = DataError(
                self._where, "it has more elements and items than any real file of its size", EXPORT_AGAIN
            )
        elif size is not None and len(found) < size and size not in self._MAY_END and (found or size > 4):
            self.fault = DataError(
                self._where,
                f"the file is cut short or a length in it is wrong: an element of {size} bytes has {len(found)}",
                EXPORT_AGAIN,
            )
        if self.fault is not None:
            raise self.fault
        return found


def read_dicom(source: SourceFile, *, pixels: bool, where: str | None = None) -> Dataset:
    """Read a DICOM file into memory; with `pixels` off the pixel data are left out.

    A SOP class UID that was emptied (some anonymisers do) is taken from the file's meta information, which states it
    too.

    Raises:
        DataError: When it is no readable DICOM file, is cut short, too large, or inflates to more than any real file.
    """
    where = where or source.name
    with reading(where):
        if source.path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(where, "a file may have at most 2 GiB", "Split the object")
        content = source.path.read_bytes()
        if not is_dicom(content[:132]):
            what = "is empty" if not content else "lacks the 'DICM' mark at byte 128"
            raise DataError(where, f"this is no DICOM file: it {what}", EXPORT_AGAIN)
        stream = _Content(content, where, len(content))
        try:
            with _no_collection():
                dataset = _parse(stream, content, pixels, where)
        except Exception:
            if stream.fault is not None:
                raise stream.fault from None
            raise
        _check_items(dataset, where)
        if "SOPClassUID" in dataset and not text(dataset, "SOPClassUID"):
            dataset.SOPClassUID = text(dataset.file_meta, "MediaStorageSOPClassUID")
        if not text(dataset, "SOPClassUID"):
            raise DataError(
                where,
                "the file does not state what it is (SOP class UID): it is cut short or was stripped",
                EXPORT_AGAIN,
            )
        return dataset


def _check_items(dataset: Dataset, where: str) -> None:
    """Refuse sequences of a million empty items: those of a stated length are parsed later, when they are asked for."""
    for tag in dataset.keys():  # noqa: SIM118  iterating a data set parses it
        value = dataset.get_item(tag).value
        if isinstance(value, bytes) and tag != _PIXEL_DATA:
            count = max(value.count(b"\xfe\xff\x00\xe0"), value.count(b"\xff\xfe\xe0\x00"))
            if count > _MAX_ITEMS + len(value) // 32:
                raise DataError(where, "it has more elements and items than any real file of its size", EXPORT_AGAIN)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Parsing makes many objects and no cycles to collect, and looking for some doubles its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_meta(source: SourceFile) -> Dataset:
    """The meta information at the start of a DICOM file.

    Raises:
        DataError: When it cannot be read.
    """
    with reading(source.name), source.path.open("rb") as stream:
        head = stream.read(_MOST_META_BYTES)
        return _meta(_Content(head, source.name, len(head)))


def _meta(stream: _Content) -> Dataset:
    """The meta information, always explicit and little endian; the stream then stands at its end."""
    from pydicom.filereader import read_dataset
    from pydicom.tag import BaseTag

    def beyond(tag: BaseTag, vr: str | None, length: int) -> bool:
        return tag >> 16 != 2

    stream.seek(_META_START)
    return read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=beyond)


def _parse(stream: _Content, content: bytes, pixels: bool, where: str) -> Dataset:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.filereader import read_dataset, read_partial
    from pydicom.tag import BaseTag
    from pydicom.uid import ExplicitVRLittleEndian

    num_elements = 0

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal num_elements
        num_elements += 1
        if num_elements > _MAX_ELEMENTS:
            raise DataError(where, f"a file may have at most {_MAX_ELEMENTS} elements at its top level", EXPORT_AGAIN)
        return not pixels and tag == _PIXEL_DATA

    meta = _meta(stream)
    if is_nested(meta.get("FileMetaInformationGroupLength")):  # pydicom would write it into its log
        raise DataError(where, "its meta information holds a sequence in place of a length", EXPORT_AGAIN)
    if text(meta, "TransferSyntaxUID") != _DEFLATED:
        stream.seek(0)
        dataset = read_partial(stream, stop_when=stop)
        dataset.buffer = None  # the content is not needed twice
        return dataset
    inflated = _Content(_inflate(content[stream.tell() :], where), where, len(content))
    try:
        inner = read_dataset(inflated, is_implicit_VR=False, is_little_endian=True, stop_when=stop)
    except Exception:
        if inflated.fault is not None:
            raise inflated.fault from None
        raise
    meta.TransferSyntaxUID = ExplicitVRLittleEndian  # what the inflated content is
    return FileDataset(
        io.BytesIO(), inner, file_meta=FileMetaDataset(meta), is_implicit_VR=False, is_little_endian=True
    )


def _inflate(deflated: bytes, where: str) -> bytes:
    """The content of a file in the deflated transfer syntax, within bounds (64 kB can inflate to gigabytes)."""
    most = min(max(_MAX_INFLATED_BYTES, _MAX_INFLATION * len(deflated)), _MOST_INFLATED_BYTES)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(deflated, most)
    except zlib.error:
        rule = "its transfer syntax says that it is deflated, and it cannot be inflated"
        raise DataError(where, rule, EXPORT_AGAIN) from None
    if inflater.unconsumed_tail:
        raise DataError(where, f"its {len(deflated) >> 10} KiB inflate to more than {most >> 20} MiB", EXPORT_AGAIN)
    if not inflater.eof:
        raise DataError(where, "the deflated part is cut short", EXPORT_AGAIN)
    return inflated


def text(dataset: Dataset, keyword: str) -> str:
    """A value as trimmed text, '' where it is absent, or a sequence of data sets in place of a value."""
    value = dataset.get(keyword)
    return "" if value is None or is_nested(value) else str(value).strip()


def is_nested(value: object) -> bool:
    """Whether it holds data sets; pydicom writes out all that is in them, and 2 kB of nesting made gigabytes."""
    from pydicom import Dataset
    from pydicom.sequence import Sequence

    return isinstance(value, (Dataset, Sequence))


def numbers(dataset: Dataset, keyword: str, count: int, where: str, name: str) -> NDArray[np.float64] | None:
    """`count` finite numbers, None where the tag is absent or empty.

    Raises:
        DataError: When it holds anything else.
    """
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    values = ["a sequence"] if is_nested(value) else [value] if isinstance(value, (str, int, float)) else list(value)
    try:
        parsed = np.array([float(str(entry)) for entry in values], dtype=np.float64)
    except ValueError:
        parsed = np.empty(0)
    if parsed.shape != (count,) or not bool(np.isfinite(parsed).all()):
        shown = "\\".join(str(entry) for entry in values)[:60]
        wanted = "a finite number" if count == 1 else f"{count} finite numbers"
        raise DataError(where, f"{name} must be {wanted} (with a decimal point), got '{shown}'", "Correct the tag")
    return parsed


def check_keyword(keyword: str, where: str) -> None:
    """Refuse what is no keyword of a DICOM element.

    Raises:
        ConfigError: With the keyword that may have been meant.
    """
    import difflib

    from pydicom.datadict import keyword_dict

    if keyword not in keyword_dict:
        near = difflib.get_close_matches(keyword, keyword_dict, 1)
        fix = f"Did you mean {near[0]}?" if near else "For example PatientID or ClinicalTrialSubjectID"
        raise ConfigError(where, f"'{keyword}' is no keyword of DICOM", fix)
