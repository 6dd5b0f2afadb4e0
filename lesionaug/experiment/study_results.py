"""The reader study as the report shows it: RUN/study, written by `lesionaug study analyse --run`, and Table III."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError
from markupsafe import Markup

from lesionaug.augment.sheet import banner
from lesionaug.errors import DataError
from lesionaug.evaluation.classification import wilson_interval
from lesionaug.experiment import paper
from lesionaug.experiment.graph import hash_json

if TYPE_CHECKING:
    from lesionaug.experiment.results import RunResults

Number = int | float | None
ANALYSIS_SCHEMA, ANALYSIS_VERSION = "lesionaug-study-analysis", 2
FOLDER, ANALYSIS, FIGURES = "study", "analysis.json", "figures"
_AGAIN = "Write it again with `lesionaug study analyse STUDY OUT --run RUN`"
# Name of a figure -> the text that replaces it, and its caption.
_TEXTS: Mapping[str, tuple[str, str]] = {
    "study_forest": (
        "Accuracy, balanced accuracy and area under the ROC curve of every reader; the numbers are in the table below.",
        "Real or synthetic: accuracy with its Wilson 95 % interval beside what a reader who always says real would "
        "have (dashed), balanced accuracy (Newcombe) and area under the ROC curve (bootstrap), whose chance is 50 % "
        "and 0.5. The mean's interval draws readers and images.",
    ),
    "study_ratings": (
        "ROC curves of the readers and histograms of their ratings of real and of synthetic images.",
        "ROC curves from the ratings, positive is real, ringed where the answer turns from synthetic to real; and how "
        "often each rating was given to real and to synthetic images.",
    ),
    "study_confusion": (
        "Class confusion matrices of every reader, on real and on synthetic images.",
        "Class that was said against true class, on real images and on synthetic ones, whose class is that which their "
        "GAN was asked for.",
    ),
    "study_kappa": (
        "Cohen's kappa of any two readers, and of each reader's repeats; the numbers are in the tables below.",
        "Cohen's kappa with bootstrap 95 % intervals: of two readers off the diagonal, of a reader's repeated answers "
        "on it. 0 is what chance gives, 1 full agreement.",
    ),
    "study_times": (
        "Median response times of every reader by answer.",
        "Response times without pauses, by answer: median and quartiles.",
    ),
}


@dataclass(frozen=True, eq=False)
class StudyResults:
    """An analysed reader study.

    Attributes:
        analysis: analysis.json.
        values: Its numbers by key; all begin with `study.`.
        figures: Name -> (data URI, text that replaces it, caption), in the order of the page.
        outdated: The run's models are no longer those that readers were compared with.
    """

    analysis: Mapping[str, Any]
    values: dict[str, Number]
    figures: Mapping[str, tuple[str, str, str]]
    outdated: bool = False


def models_sha256(results: RunResults) -> str:
    """Hash of what every model of a run said."""
    return hash_json({task.name: results.done[task.name] for task in results.tasks})


def flatten(value: Any, key: str = "study") -> dict[str, Number]:
    """Every number below a value of JSON, by its path; an estimate's own value stands under its name alone.

    Texts, lists of texts and true or false are left out; what is not defined is None.
    """
    if isinstance(value, Mapping):
        found: dict[str, Number] = {}
        for name, part in value.items():
            found |= flatten(part, key if name == "value" else f"{key}.{name}")
        return found
    if isinstance(value, list):
        return {k: number for i, part in enumerate(value) for k, number in flatten(part, f"{key}.{i}").items()}
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return {key: value}
    return {}


def read_study(folder: Path) -> StudyResults | None:
    """Read an analysis; None where there is none.

    Args:
        folder: OUT of `lesionaug study analyse`, or RUN/study.

    Raises:
        DataError: It is damaged, or of another version.
    """
    path, where = folder / ANALYSIS, f"{FOLDER}/{ANALYSIS}"
    if not folder.is_dir():
        return None
    try:
        analysis = json.loads(path.read_text(encoding="utf-8"))
        known = (analysis["schema"], analysis["version"]) == (ANALYSIS_SCHEMA, ANALYSIS_VERSION)
        figures = {
            name: (_svg((folder / FIGURES / f"{name}.svg").read_bytes()), *texts)
            for name, texts in _TEXTS.items()
            if (folder / FIGURES / f"{name}.svg").is_file()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(where, f"it cannot be read ({type(error).__name__})", _AGAIN) from error
    if not known:
        rule = f"it is {analysis['schema']!r} version {analysis['version']!r}, which this version does not read"
        raise DataError(where, rule, _AGAIN)
    return StudyResults(analysis, flatten(analysis), figures)


def study_of_run(results: RunResults) -> StudyResults | None:
    """The reader study that a run's readers are compared in, or None."""
    found = read_study(results.path / FOLDER)
    if found is None:
        return None
    made_of = (found.analysis.get("run") or {}).get("models_sha256")
    return StudyResults(found.analysis, found.values, found.figures, outdated=made_of != models_sha256(results))


def expert_numbers() -> dict[str, Number]:
    """Table III: the paper's counts, and what follows from them; all keys begin with `paper.expert`.

    The paper prints neither intervals nor tests, and no baseline: 182 of its 302 images are real, so a reader who
    always says "real" is right on 60.3 %.
    """
    from scipy.stats import binomtest

    total, always_real = paper.EXPERT_NUM_IMAGES, paper.EXPERT_NUM_REAL / paper.EXPERT_NUM_IMAGES
    values: dict[str, Number] = {
        "paper.experts.images": total,
        "paper.experts.real": paper.EXPERT_NUM_REAL,
        "paper.experts.always_real": always_real,
        "paper.experts.agreed": paper.EXPERTS_AGREED,
        "paper.experts.agreement": paper.EXPERTS_AGREED / total,
        "paper.experts.both_right": paper.EXPERTS_BOTH_CORRECT,
    }
    values["paper.experts.agreement.low"], values["paper.experts.agreement.high"] = wilson_interval(
        paper.EXPERTS_AGREED, total
    )
    for number, expert in enumerate(paper.EXPERTS, 1):
        key = f"paper.expert{number}"
        for name, correct in (("class", expert.class_correct), ("origin", expert.real_or_synthetic_correct)):
            values[f"{key}.{name}.correct"] = correct
            values[f"{key}.{name}.accuracy"] = correct / total
            low, high = wilson_interval(correct, total)
            values[f"{key}.{name}.accuracy.low"], values[f"{key}.{name}.accuracy.high"] = low, high
        values[f"{key}.class_real"] = expert.class_real_pct / 100
        values[f"{key}.class_synthetic"] = expert.class_synthetic_pct / 100
        for name, chance in (("p_always_real", always_real), ("p_half", 0.5)):
            values[f"{key}.{name}"] = float(binomtest(expert.real_or_synthetic_correct, total, chance).pvalue)
    return values


def render_study(
    environment: Environment, study: StudyResults | None, num: Callable[[str, str], Markup], *, in_report: bool
) -> Markup:
    """The reader study as part of a page.

    Args:
        environment: Of the page; it escapes what is put in.
        study: What to show; without one only the paper's Table III, and how a study is made.
        num: A number by its key, as the page shows it.
        in_report: Whether the page is a run's report.

    Raises:
        DataError: The analysis lacks something.
    """
    template = environment.from_string(
        resources.files(__package__).joinpath("study.html.j2").read_text(encoding="utf-8")
    )
    try:
        return Markup(
            template.render(
                study=study,
                a=None if study is None else study.analysis,
                banner="" if study is None else banner(str(study.analysis["kind"])),
                num=num,
                in_report=in_report,
                experts=[(f"expert{i}", expert.name) for i, expert in enumerate(paper.EXPERTS, 1)],
            )
        )
    except (TemplateError, KeyError, TypeError, AttributeError) as error:
        rule = f"it lacks something ({type(error).__name__}: {error})"
        raise DataError(f"{FOLDER}/{ANALYSIS}", rule, _AGAIN) from error


def _svg(content: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(content).decode('ascii')}"
