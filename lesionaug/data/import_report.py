"""What an import says about itself, in the store's manifest and in import_report.csv: numbers and hashes, no names."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from lesionaug.data.slices import Finding, Lesion


def manifest_entry(lesion: Lesion) -> dict[str, Any]:
    """What the manifest says about a lesion beyond the batch; numbers and hash prefixes in place of names."""
    return {
        "worst_outside_fraction": round(lesion.outside_fraction, 6),
        "area_px": int(lesion.mask.sum()),
        "source": {
            "margin": f"#{lesion.margin.source.number}",
            "margin_sha256_prefix": lesion.margin.source.hash_prefix,
            "margin_number": lesion.margin.number,
            "slice": f"#{lesion.slice_source.number}",
            "slice_sha256_prefix": lesion.slice_source.hash_prefix,
        },
    }


_REPORT_COLUMNS = (
    "taken",
    "reason",
    "lesion_id",
    "patient",
    "label",
    "margin_file",
    "margin_sha256_prefix",
    "margin_number",
    "slice_file",
    "slice_sha256_prefix",
    "area_px",
    "diameter_px",
    "diameter_mm",
    "worst_outside_fraction",
    "contours_without_slice",
)


def report_csv(
    lesions: Sequence[Lesion], labels: Sequence[str | None], pseudonyms: dict[str, str], skipped: Sequence[Finding]
) -> str:
    """One row for every margin, taken or not; nothing in it names a person or a file."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_REPORT_COLUMNS)
    for lesion, label in zip(lesions, labels, strict=True):
        margin = lesion.margin
        writer.writerow(
            (
                "yes",
                "",
                lesion.lesion_id,
                pseudonyms[margin.patient],
                label or "",
                f"#{margin.source.number}",
                margin.source.hash_prefix,
                margin.number,
                f"#{lesion.slice_source.number}",
                lesion.slice_source.hash_prefix,
                int(lesion.mask.sum()),
                f"{lesion.diameter_px:.3f}",
                f"{lesion.diameter_px * min(lesion.spacing_mm):.2f}",
                f"{lesion.outside_fraction:.4f}",
                margin.parts_missing,
            )
        )
    for finding in sorted(skipped, key=lambda f: (f.source.number if f.source else 0, f.number or 0)):
        assert finding.source is not None
        margin_file = (f"#{finding.source.number}", finding.source.hash_prefix, finding.number)
        writer.writerow(("no", finding.reason, "", "", "", *margin_file, *[""] * 7))
    return stream.getvalue()
