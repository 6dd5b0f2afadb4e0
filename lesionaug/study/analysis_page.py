"""The analysis of a reader study as one self-contained HTML page."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lesionaug import __version__
from lesionaug.augment.sheet import banner
from lesionaug.errors import DataError
from lesionaug.experiment.report import format_number
from lesionaug.experiment.study_results import expert_numbers, read_study, render_study


def render_analysis(folder: Path) -> str:
    """The page of an analysis whose numbers and figures lie in a folder.

    Raises:
        DataError: There is no analysis in it.
    """
    study = read_study(folder)
    if study is None:
        raise DataError(folder.name, "there is no analysis in it", "Give the folder of `lesionaug study analyse`")
    values = {**expert_numbers(), **study.values}

    def num(key: str, style: str) -> Markup:
        return Markup('<span data-key="{}">{}</span>').format(key, format_number(values[key], style))

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files(__package__).joinpath("analysis.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        banner=banner(str(study.analysis["kind"])),
        version=__version__,
        study_id=study.analysis["study_id"],
        body=render_study(environment, study, num, in_report=False),
    )
