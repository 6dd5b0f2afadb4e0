"""`lesionaug audit`: proof over a finished run that nothing was tested on whom it had learned from.

It reads what the run wrote and trusts no program that wrote it: the patients, lesions and pixels that every artefact
says it knows are compared with those of the fold it is tested on, every file with its hash, every input with the
output it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionaug.data.folds import FoldedLesion, Folds, load_folds
from lesionaug.data.own_files import parse_json
from lesionaug.data.provenance import Provenance, content_hashes
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.data.synthetic import load_synthetic
from lesionaug.errors import DataError, LesionaugError
from lesionaug.experiment.graph import Ground, hash_files, hash_json
from lesionaug.experiment.protocol import Step, plan_steps
from lesionaug.experiment.results import Predictions, load_config, load_info, load_run_folds, make_ground

LEARNING = ("cnn", "bovw", "gan", "synthetic", "discriminator")  # kinds of steps that know lesions


@dataclass(frozen=True)
class Finding:
    """Something that must not be.

    Attributes:
        where: The file or folder, below the run.
        rule: What must hold and what was found.
    """

    where: str
    rule: str


@dataclass(frozen=True)
class Audit:
    """What `audit_run` found.

    Attributes:
        findings: Everything that is wrong; none is a pass.
        num_steps: Steps that are there and were looked at.
        num_files: Files whose hash was compared.
        num_missing: Steps that the run lacks.
        exceptions: What sees test folds by design, said in words.
    """

    findings: tuple[Finding, ...]
    num_steps: int
    num_files: int
    num_missing: int
    exceptions: tuple[str, ...]


def audit_run(run_dir: Path | str, store_path: Path | str | None = None) -> Audit:
    """Check a run for leaks between training and test folds, and that it is as it was written.

    Args:
        run_dir: The run, complete or not.
        store_path: Its ROI store: the lesions' pixels are then hashed anew instead of taken from run.json.

    Raises:
        DataError, ConfigError: Not a run that can be read, or another store.
    """
    run = Path(run_dir)
    config, info = load_config(run), load_info(run)
    findings: list[Finding] = []
    try:
        folds = load_run_folds(run, config, info)
    except LesionaugError as error:
        findings.append(Finding("folds.json", error.rule))
        folds = load_folds(run / "folds.json")
    contents: Mapping[str, str] = info.get("contents") or {}
    if store_path is not None:
        if manifest_sha256(Path(store_path)) != info["store"]["manifest_sha256"]:
            raise DataError("--rois", "this store is not the run's", "Give the store it was made from")
        rois = load_rois(store_path)
        found = dict(zip(rois.lesion_ids, content_hashes(rois), strict=True))
        if contents and dict(contents) != found:
            findings.append(Finding("run.json", "the pixels of its lesions are not those of the store"))
        contents = found
    elif {lesion.lesion_id for lesion in folds.lesions} != set(contents):
        findings.append(Finding("run.json", "it does not hold the hashes of every lesion's pixels"))
    findings += _twins(folds, contents)
    steps = plan_steps(config, folds, len(info["store"]["classes"]))
    expected = {step.folder for step in steps}
    for parent in sorted({folder.partition("/")[0] for folder in expected}):
        for folder in sorted((run / parent).glob("[!.]*")):
            if f"{parent}/{folder.name}" not in expected:
                findings.append(Finding(f"{parent}/{folder.name}", "it does not belong to the run"))
    ground, classes = make_ground(config, info), tuple(info["store"]["classes"])
    num_steps = num_files = 0
    outputs: dict[str, str] = {}
    for step in steps:
        if not (run / step.folder).exists():
            continue
        num_steps += 1
        try:
            task = parse_json((run / step.folder / "task.json").read_text(encoding="utf-8"))
            tested = _tested(step, folds, contents)
            findings += _check_files(run, step, task, outputs)
            findings += [Finding(f"{step.folder}/task.json", rule) for rule in _record(step, task, ground)]
            findings += [Finding(step.folder, rule) for rule in _sources(step, task, folds, contents, classes)]
            num_files += len(task["outputs"])
            outputs[step.name] = task["output_sha256"]
            findings += [Finding(step.folder, rule) for rule in _leaks(run, step, task, tested)]
            findings += _check_predictions(run, step, folds, classes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, LesionaugError) as error:
            rule = error.rule if isinstance(error, LesionaugError) else f"{type(error).__name__}: {error}"
            findings.append(Finding(step.folder, f"it cannot be audited ({rule})"))
    return Audit(tuple(findings), num_steps, num_files, len(steps) - num_steps, _exceptions(config.choice, config.gans))


def _twins(folds: Folds, contents: Mapping[str, str]) -> Iterator[Finding]:
    """Lesions with the same pixels in two folds."""
    home: dict[str, Any] = {}
    for lesion in folds.lesions:
        content = contents.get(lesion.lesion_id)
        if content is None:
            continue
        other = home.setdefault(content, lesion)
        if other.fold != lesion.fold:
            yield Finding(
                "folds.json",
                f"lesions {other.lesion_id} (fold {other.fold}) and {lesion.lesion_id} (fold {lesion.fold}) have the "
                "same pixels",
            )


def _tested(step: Step, folds: Folds, contents: Mapping[str, str]) -> Provenance:
    """Whom a step is tested on, or must not know."""
    lesions = [lesion for lesion in folds.lesions if lesion.fold in step.held_out]
    return _provenance(lesions, contents)


def _provenance(lesions: Sequence[FoldedLesion], contents: Mapping[str, str]) -> Provenance:
    """What folds.json and run.json say of some lesions."""
    return Provenance(
        frozenset(lesion.patient_id for lesion in lesions),
        frozenset(lesion.lesion_id for lesion in lesions),
        frozenset(contents[lesion.lesion_id] for lesion in lesions if lesion.lesion_id in contents),
    )


def _leaks(run: Path, step: Step, task: Mapping[str, Any], tested: Provenance) -> Iterator[str]:
    if step.kind not in LEARNING:
        return
    known = {"task.json": Provenance.from_json(task["sources"])}
    if step.kind == "gan":
        known["gan.json"] = Provenance.from_json(
            parse_json((run / step.folder / "gan.json").read_text(encoding="utf-8"))["sources"]
        )
    if step.kind == "synthetic":
        store = load_synthetic(run / step.folder / "rois")
        known["rois"] = store.provenance
        if store.split != step.split:
            yield f"rois is of split {store.split}, not {step.split}"
    for where, provenance in known.items():
        try:
            provenance.check_apart(tested, where, "")
        except DataError as error:
            yield f"{where}: {error.rule}"


def _record(step: Step, task: Mapping[str, Any], ground: Ground) -> Iterator[str]:
    """Whether a step says that it was made as this run's configuration, store, folds and versions have it."""
    if task["config_sha256"] != ground.config_sha256:
        yield "it belongs to another configuration than config.json"
    elif task["key"] != ground.key(step, task["inputs"]):
        yield "its key does not fit what it says it was made from"


def _sources(
    step: Step, task: Mapping[str, Any], folds: Folds, contents: Mapping[str, str], classes: tuple[str, ...]
) -> Iterator[str]:
    """Whether a step says that it has learned from exactly the lesions that the folds give it."""
    if step.kind not in LEARNING:
        return
    label = step.settings.get("class")
    lesions = [
        lesion
        for lesion in folds.lesions
        if lesion.fold not in step.held_out and (label is None or lesion.label == classes[label])
    ]
    wanted = _provenance(lesions, contents)
    if Provenance.from_json(task["sources"]) != wanted:
        yield "it does not say that it has learned from exactly the lesions of its training folds"
    if task.get("num_train_lesions", len(lesions)) != len(lesions):
        yield "its number of training lesions is not that of its training folds"


def _check_files(run: Path, step: Step, task: Mapping[str, Any], outputs: Mapping[str, str]) -> Iterator[Finding]:
    found = hash_files(run / step.folder)
    for name in sorted(found.keys() | task["outputs"].keys()):
        if name not in task["outputs"]:
            yield Finding(f"{step.folder}/{name}", "this file was added after the step was committed")
        elif name not in found:
            yield Finding(f"{step.folder}/{name}", "this file is missing")
        elif found[name] != task["outputs"][name]:
            yield Finding(f"{step.folder}/{name}", "its bytes are not those that were committed (SHA-256)")
    if hash_json(task["outputs"]) != task["output_sha256"]:
        yield Finding(f"{step.folder}/task.json", "the hash of its outputs does not fit them")
    for name in step.needs:
        if name not in outputs:
            yield Finding(step.folder, f"{name}, which it was made from, is missing")
        elif task["inputs"].get(name) != outputs[name]:
            yield Finding(step.folder, f"it was made from another {name} than the one that is there")


def _check_predictions(run: Path, step: Step, folds: Folds, classes: tuple[str, ...]) -> Iterator[Finding]:
    file = run / step.folder / "predictions.csv"
    if not file.exists():
        if step.folder.startswith("models/"):
            yield Finding(step.folder, "there are no predictions")
        return
    truth = sorted(
        (lesion.lesion_id, lesion.patient_id, lesion.fold, lesion.label)
        for lesion in folds.lesions
        if lesion.fold in step.held_out
    )
    predictions = Predictions.from_csv(file.read_text(encoding="utf-8"), classes)
    names = [classes[label] for label in predictions.labels]
    rows = sorted(zip(predictions.lesion_ids, predictions.patient_ids, predictions.folds, names, strict=True))
    if rows != truth:
        yield Finding(f"{step.folder}/predictions.csv", "its lesions are not those of the fold it is tested on")


def _exceptions(rule: str, gans: tuple[str, ...]) -> tuple[str, ...]:
    said = (
        ["The number of synthetic images of each GAN arm is chosen on the test folds, by the paper's rule."]
        if gans
        else []
    )
    if rule == "paper":
        said.insert(0, "The classic optimum is chosen on the test folds, by the paper's rule (choices/choice-classic).")
    return tuple(said)
