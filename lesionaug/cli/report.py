"""`lesionaug report RUN`: the run as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App


def report(run: Path, /, *, rois: Path | None = None, share: bool = False) -> None:
    """Write RUN/report.html, and the figures, tables and numbers as files in RUN/report.

    A run that is not complete gives a page that says what is missing.

    Args:
        run: Folder of `lesionaug run`.
        rois: The run's ROI store: adds the pictures of ROIs, augmentations and synthetic ROIs, which are kept in
            RUN/pictures. Not used with `--share`.
        share: Write RUN/report-share.html and RUN/report-share instead, without images of patients or of GANs, and
            without names of lesions and patients.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.experiment.report import write_report

    with progress("Writing the report") as step:
        path = write_report(run, rois, step, share=share)
    print(path)


def register(app: App) -> None:
    """Add the command to `app`."""
    app.command(report)
