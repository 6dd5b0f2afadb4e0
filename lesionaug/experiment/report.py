"""`lesionaug report`: a run as one self-contained HTML page, its figures, tables and numbers as files beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from lesionaug import __version__
from lesionaug.augment.sheet import banner
from lesionaug.data.files import write_json_atomic, write_text_atomic
from lesionaug.experiment import paper
from lesionaug.experiment.checklist import checklist
from lesionaug.experiment.counts import Number, key_part
from lesionaug.experiment.numbers import ReportNumbers, collect_numbers
from lesionaug.experiment.pictures import GAN_NAMES, REDUCED_GANS, reduced_gans, write_pictures
from lesionaug.experiment.protocol import FOLDERS, STAGES
from lesionaug.experiment.readings import readings, show_value
from lesionaug.experiment.report_figures import Figure, write_figures
from lesionaug.experiment.report_tables import write_tables
from lesionaug.experiment.results import RunResults, load_run
from lesionaug.experiment.study_results import StudyResults, render_study, study_of_run

__all__ = ["write_pictures", "write_report"]

Progress = Callable[[int, int, str], None]
NO_PICTURES = (
    "Pictures are made from the ROI store, whose place a run does not keep. "
    "Add them with `lesionaug report RUN --rois STORE`."
)
_PROGRESS = ("reading the run", "pictures", "counting", "figures", "page")
_SECTIONS = {
    "summary": "Summary",
    "data": "Data and folds",
    "rois": "Regions of interest",
    "augmentation": "Augmentation (Fig. 3 of the paper)",
    "accuracy": "Accuracy against group size (Fig. 8 of the paper)",
    "confusion": "Confusion matrices (Tables I and II)",
    "methods-compared": "Methods compared (Tables IV and V)",
    "pairs": "Paired tests of any two methods",
    "controls": "Controls",
    "synthetic": "Synthetic images (Fig. 6 of the paper)",
    "maps": "Maps of the features (Fig. 9 of the paper)",
    "memorisation": "Memorisation",
    "study": "Reader study (Table III of the paper)",
    "paper": "What the paper printed",
    "learning": "Learning curves",
    "readings": "Readings of the paper",
    "run": "How it was run",
    "methods": "Methods and citation",
    "checklist": "Checklist (CLAIM)",
    "files": "Files and provenance",
}
_QUESTIONS = {
    "equal-steps": "Does augmentation help, or only the longer training that comes with it?",
    "equal-count": "Do synthetic images help more than as many more classic ones?",
    "longer": "How far do the lesions alone go when they are trained on for as long as anything else?",
    "synthetic-only": "Are synthetic images a substitute for classic augmentation?",
    "gan-originals": "And when the GANs themselves had no classic augmentation to learn from?",
}
_ARM_NAMES = {"classic": "classic", **GAN_NAMES, "acgan-discriminator": "ACGAN discriminator", "bovw": "BoVW-MI"}
_SOURCES = (
    ("data, fold", "`folds.json`"),
    ("classic, dcgan, acgan, equal-steps", "`models/cnn-ARM-SIZE-split*-seed*/`: `predictions.csv`, `task.json`"),
    ("bovw, acgan-discriminator, other controls", "`models/`, the same without a size"),
    ("method", "the same files, of each split the group in use"),
    ("compare, pair", "the same files: two of them, lesion by lesion"),
    ("choice", "`choices/choice-ARM/choice.json`, counted from predictions of the models it names"),
    ("optimum", "the classic group of the paper's rule"),
    ("memorisation", "`memorisation/memorisation-GAN-split*/evaluation.json`"),
    ("study", "`study/analysis.json`, written by `lesionaug study analyse --run`"),
    ("task, stage, step, run", "`task.json` of every step's folder"),
    ("paper", "what the paper printed: part of the software, `lesionaug/experiment/paper.py`"),
)


def write_report(
    run_dir: str | os.PathLike[str],
    store_path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    *,
    share: bool = False,
) -> Path:
    """Write RUN/report.html and RUN/report/{numbers.json, figures, tables}.

    The page depends on the run directory alone: the same run gives the same bytes. An incomplete run gives a page that
    says what is missing.

    Args:
        run_dir: A run of `lesionaug run`, complete or not.
        store_path: The run's ROI store, for the pictures of ROIs and augmentations; without it, those of an earlier
            `write_pictures` are used.
        progress: Called as (done, total, text).
        share: Write report-share.html and report-share/ instead: without any image of a patient, without synthetic
            images, which may be copies of them, and without names of lesions and patients.

    Returns:
        The path of the page.

    Raises:
        DataError: Not a run, damaged files, or another store than the run's.
    """
    run = Path(run_dir)

    def step(stage: int) -> None:
        if progress is not None:
            progress(stage, len(_PROGRESS), _PROGRESS[min(stage, len(_PROGRESS) - 1)])

    step(0)
    results = load_run(run)
    step(1)
    if store_path is not None and not share:
        write_pictures(run, store_path)
    step(2)
    numbers = collect_numbers(results)
    study = study_of_run(results)
    numbers.values.update(study.values if study else {})
    step(3)
    folder = run / _folder(share)
    if share:  # nothing that lay there before may leave with it
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    figures = write_figures(results, numbers, folder / "figures", share=share)
    write_tables(results, numbers, folder / "tables")
    write_json_atomic(folder / "numbers.json", {"schema": 2, "kind": results.kind, "numbers": numbers.values})
    step(4)
    page = run / f"{_folder(share)}.html"
    write_text_atomic(page, render(results, numbers, figures, study, share=share))
    step(5)
    return page


def _folder(share: bool) -> str:
    return "report-share" if share else "report"


def format_number(value: Number, style: str) -> str:
    """A number as the page shows it.

    Args:
        value: The number; None is "n/a".
        style: "int" (with thousands), "count" (a whole count, or a mean with one decimal), "pct" (a fraction in
            percent, one decimal), "points" (the same with its sign), "p" (a p-value), "seconds" (one decimal), "auc"
            (two decimals), "small" (three digits).
    """
    if value is None:
        return "n/a"
    if style == "points":
        return f"{round(100 * value, 1) + 0.0:+.1f}"  # +0.0, never -0.0
    if style == "p":
        return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.2f}"
    if style == "pct":
        return f"{100 * value:.1f}"
    if style == "seconds":
        return f"{value:,.1f}"
    if style == "auc":
        return f"{value:.2f}"
    if style == "small":
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if style == "count" and abs(value - round(value)) > 1e-9:
        return f"{value:,.1f}"
    return f"{round(value):,}"


def render(
    results: RunResults,
    numbers: ReportNumbers,
    figures: dict[str, Figure],
    study: StudyResults | None = None,
    *,
    share: bool = False,
) -> str:
    """The page as HTML text.

    Args:
        results: The run.
        numbers: What `collect_numbers` counted.
        figures: Figures by name, as `write_figures` returns them; any may be absent.
        study: The reader study, whose numbers are among `numbers`.
        share: Say what was left out.
    """

    def num(key: str, style: str) -> Markup:
        if key.startswith("paper.") and key not in numbers.values:
            return Markup("not in the paper")  # a class that the paper does not have
        text = format_number(numbers.values[key], style)
        return Markup('<span data-key="{}">{}</span>').format(key, text)

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["part"] = key_part
    environment.filters["code"] = _code
    template = environment.from_string(
        resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    config, several = results.config, len(numbers.seeds) > 1
    names = (
        "rois", "sheet", "accuracy", "confusion", "confusion_all", "forest", "synthetic", "maps", "learning",
        "gan_learning",
    )  # fmt: skip
    tested = {task.name for task in numbers.tasks}
    return template.render(
        num=num,
        show=show_value,
        share=share,
        folder=_folder(share),
        numbers=numbers,
        values=numbers.values,
        banner=banner(results.kind),
        version=__version__,
        config=config,
        config_json=json.dumps(config.model_dump(mode="json"), indent=1, sort_keys=True),
        kind=results.kind,
        store_hash=str(results.info["store"]["manifest_sha256"])[:12],
        sections={name: (number, title) for number, (name, title) in enumerate(_SECTIONS.items(), 1)},
        reductions=config.reductions,
        missing=numbers.missing,
        arms=results.arms,
        arm_names={arm: _ARM_NAMES.get(arm, arm) for arm in results.arms},
        groups=numbers.groups,
        classic=numbers.of("classic"),
        shown=numbers.shown(),
        first=min((group.size for group in numbers.shown()), default=None),
        optimum=numbers.optimum,
        choices=numbers.choices,
        classic_choice=numbers.choices.get("classic"),
        choice_text=_choice_text(results, numbers),
        methods=numbers.methods,
        controls=[method for method in numbers.methods if method.control],
        questions=_QUESTIONS,
        aug=numbers.method("cnn-aug"),
        gan=numbers.method("cnn-aug-gan"),
        names={method.id: method.name for method in numbers.methods},
        pairs=numbers.pairs,
        classes=numbers.classes,
        papers_classes=set(numbers.classes) == set(paper.CLASSES),
        splits=numbers.splits,
        seeds=numbers.seeds,
        tasks=numbers.tasks,
        memorised=numbers.memorised,
        gan_names=[GAN_NAMES[kind] for kind in config.gans],
        gan_note=REDUCED_GANS if reduced_gans(results) else "",
        counting="Counts are means over the seeds; an interval counts each lesion once, at the nearest whole count."
        if several
        else "",
        figures={name: figures.get(name) for name in names},
        study=render_study(environment, study, num, in_report=True),
        galleries=[figure for name, figure in figures.items() if name.startswith("memorisation-")],
        no_pictures=NO_PICTURES,
        paper_results=(paper.CNN_AUG, paper.CNN_AUG_GAN, paper.BOVW_MI, *paper.TABLE_IV),
        readings=list(readings(config)),
        stages=_stages(results),
        others=[step for step in results.steps if step.name in results.done and step.name not in tested],
        together=any("lanes" in str(task.info.get("trained_by", "")) for task in numbers.tasks),
        facts=_facts(results),
        checklist=checklist(results, numbers),
        sources=_SOURCES,
    )


def _code(text: str) -> Markup:
    """Text with `code` in backquotes, as HTML."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def _choice_text(results: RunResults, numbers: ReportNumbers) -> str:
    """How the classic group was chosen, for the methods paragraph."""
    aug = numbers.method("cnn-aug")
    size = f" ({aug.size_text})" if aug else ""
    if results.config.choice == "nested":
        return (
            f"For every split the smallest group{size} with the highest number of correct lesions was chosen by cross "
            "validation inside its training folds."
        )
    return (
        f"The smallest group{size} with the highest number of correct test lesions was chosen, on the test folds as in "
        "the paper."
    )


def _stages(results: RunResults) -> dict[str, list[str]]:
    """Stages of the run and the folders of their steps."""
    found: dict[str, list[str]] = {}
    for stage in STAGES:
        kinds = dict.fromkeys(step.kind for step in results.steps if step.stage == stage)
        if kinds:
            found[stage] = list(dict.fromkeys(f"{FOLDERS[kind]}/" for kind in kinds))
    return found


def _facts(results: RunResults) -> list[tuple[str, str]]:
    """Seeds, machine and versions as rows of a table."""
    config, info = results.config, results.info
    facts = [
        ("seeds of the training", ", ".join(str(seed) for seed in config.seeds)),
        ("seed of the folds", f"{config.folds.seed}{', given as a file' if config.folds.from_file else ''}"),
        ("seed of the augmentations", str(config.plan.seed)),
        ("threads per model", str(config.threads_per_task)),
        ("command", f"lesionaug {info.get('command', '')}".strip()),
    ]
    facts += [(f"machine: {name}", str(value)) for name, value in sorted(info.get("machine", {}).items())]
    versions: dict[str, set[str]] = {name: {str(value)} for name, value in info.get("versions", {}).items()}
    for task in results.tasks:  # a run that was resumed elsewhere shows it
        for name, value in task.info.get("versions", {}).items():
            versions.setdefault(name, set()).add(str(value))
    facts += [(f"version: {name}", ", ".join(sorted(found))) for name, found in sorted(versions.items())]
    return facts
