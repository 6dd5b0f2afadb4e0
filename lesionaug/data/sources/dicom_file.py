"""DICOM files as untrusted input: read whole or refused with a `DataError` that names the file, the rule and the fix.

pydicom raises a dozen kinds of exception on broken files and accepts 'abc' as a number; here every failure is one kind
of error, every number is checked, and no length that a file states is believed before memory is taken for it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import SourceFile
from lesionaug.errors import DataError, LesionaugError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

MAX_FILE_BYTES = 2 << 30

EXPORT_AGAIN = "Export the file again from its archive, or remove it"

_DEFLATED = "1.2.840.10008.1.2.1.99"
# A deflated file may grow to this, or to this many times its size: a slice deflates to a half, a segmentation to a
# hundredth, and a bomb to a thousandth.
_MAX_INFLATED_BYTES = 64 << 20
_MAX_INFLATION = 100
_META_START = 144  # preamble, DICM, and the element that holds the length of what follows
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


def read_dicom(source: SourceFile, *, pixels: bool, where: str | None = None) -> Dataset:
    """Read a DICOM file into memory; with `pixels` off the pixel data are left out.

    Raises:
        DataError: When it is no readable DICOM file, is too large, or inflates to more than any real file does.
    """
    import pydicom

    where = where or source.name
    with reading(where):
        if source.path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(where, "a file may have at most 2 GiB", "Split the object")
        content = source.path.read_bytes()
        if not is_dicom(content[:132]):
            what = "is empty" if not content else "lacks the 'DICM' mark at byte 128"
            raise DataError(where, f"this is no DICOM file: it {what}", EXPORT_AGAIN)
        # From memory, so that a length that lies cannot make the reader reserve gigabytes.
        meta = pydicom.filereader.read_partial(io.BytesIO(content), stop_when=lambda *_: True).file_meta
        if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
            dataset = _read_deflated(content, meta, pixels, where)
        else:
            dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=not pixels)
        if not text(dataset, "SOPClassUID"):
            raise DataError(
                where,
                "the file does not state what it is (SOP class UID): it is cut short or was stripped",
                EXPORT_AGAIN,
            )
        return dataset


def _read_deflated(content: bytes, meta: FileMetaDataset, pixels: bool, where: str) -> Dataset:
    """Read a file in the deflated transfer syntax, inflated here within bounds (64 kB can inflate to gigabytes)."""
    from pydicom.dataset import FileDataset
    from pydicom.filereader import read_dataset
    from pydicom.tag import BaseTag
    from pydicom.uid import ExplicitVRLittleEndian

    length = meta.get("FileMetaInformationGroupLength")
    start = _META_START + int(length) if length is not None else 0
    if not _META_START < start < len(content):
        raise DataError(where, "the file does not say where its deflated part begins", EXPORT_AGAIN)
    most = max(_MAX_INFLATED_BYTES, _MAX_INFLATION * len(content))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(content[start:], most)
    if inflater.unconsumed_tail:
        raise DataError(where, f"its {len(content) >> 10} KiB inflate to more than {most >> 20} MiB", EXPORT_AGAIN)
    if not inflater.eof:
        raise DataError(where, "the deflated part is cut short", EXPORT_AGAIN)

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        return not pixels and tag == _PIXEL_DATA

    inner = read_dataset(io.BytesIO(inflated), is_implicit_VR=False, is_little_endian=True, stop_when=at_pixels)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian  # what the inflated content is
    return FileDataset(io.BytesIO(), inner, file_meta=meta, is_implicit_VR=False, is_little_endian=True)


def text(dataset: Dataset, keyword: str) -> str:
    """A value as trimmed text, '' where it is absent."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def numbers(dataset: Dataset, keyword: str, count: int, where: str, name: str) -> NDArray[np.float64] | None:
    """`count` finite numbers, None where the tag is absent or empty.

    Raises:
        DataError: When it holds anything else.
    """
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    values = [value] if isinstance(value, (str, int, float)) else list(value)
    try:
        parsed = np.array([float(str(entry)) for entry in values], dtype=np.float64)
    except ValueError:
        parsed = np.empty(0)
    if parsed.shape != (count,) or not bool(np.isfinite(parsed).all()):
        shown = "\\".join(str(entry) for entry in values)[:60]
        wanted = "a finite number" if count == 1 else f"{count} finite numbers"
        raise DataError(where, f"{name} must be {wanted} (with a decimal point), got '{shown}'", "Correct the tag")
    return parsed
