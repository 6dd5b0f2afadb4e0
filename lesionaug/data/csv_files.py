"""CSV tables as untrusted input: UTF-8, commas, distinct headings, every row as long as the heading."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from lesionaug.errors import DataError

MAX_TABLE_BYTES = 512 << 20


def read_rows(path: Path, where: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV as dictionaries with trimmed lower-case headings; '__line__' holds the line.

    Raises:
        DataError: When it is no UTF-8 comma-separated file with distinct headings, or a row has too many cells.
    """
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DataError(where, "a table may have at most 512 MiB", "Split it")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(where, "a table must be UTF-8 text", "Save it as 'CSV UTF-8'") from error
    if content.startswith("version https://git-lfs"):
        raise DataError(where, "this is a Git LFS pointer, not the table itself", "Run git lfs pull")
    csv.field_size_limit(MAX_TABLE_BYTES)
    reader = csv.reader(io.StringIO(content, newline=""))
    try:
        heading = [cell.strip().lower() for cell in next(reader, [])]
        if len(heading) == 1 and (";" in heading[0] or "\t" in heading[0]):
            raise DataError(where, "columns must be separated by commas", "Save it as comma-separated CSV")
        if len(set(heading)) != len(heading):
            raise DataError(where, "column headings must be distinct", "Rename the repeated column")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(heading):
                raise DataError(
                    f"{where} line {reader.line_num}",
                    f"a row must have {len(heading)} cells as the heading does, this one has {len(cells)}",
                    "Put quotes around cells that hold commas",
                )
            row = {name: cell.strip() for name, cell in zip(heading, cells, strict=True)}
            row["__line__"] = str(reader.line_num)
            yield row
    except csv.Error as error:
        raise DataError(where, f"this is no valid CSV ({error})", "Save the table again") from error


def heading(path: Path) -> set[str]:
    """The trimmed lower-case headings of a CSV, empty where it cannot be read as one.

    Other separators than commas are seen through, so that the table is known; `read_rows` then refuses them.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            line = stream.readline(1 << 16)
        rows = [next(csv.reader([line], delimiter=delimiter), []) for delimiter in ",;\t"]
        return {cell.strip().lower() for cell in next((row for row in rows if len(row) > 1), rows[0])}
    except (UnicodeDecodeError, OSError, csv.Error):
        return set()
