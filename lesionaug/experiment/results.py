"""What a run directory holds, read back and checked: configuration, folds, predictions of every trained model."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lesionaug.data.folds import Folds, load_folds
from lesionaug.data.own_files import parse_json
from lesionaug.errors import ConfigError, DataError
from lesionaug.evaluation.classification import ClassificationSummary, confusion_matrix
from lesionaug.experiment.config import RunConfig, validate_config
from lesionaug.experiment.graph import TRAIN_ANEW, Ground, committed, hash_json
from lesionaug.experiment.machine import versions_that_matter
from lesionaug.experiment.protocol import INNER, Step, arms, choice_name, group_sizes, plan_steps, task_name

if TYPE_CHECKING:
    from torch import Tensor

    from lesionaug.data.rois import RoiBatch

RUN_SCHEMA = 2


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of some lesions, one row each.

    Attributes:
        classes: Class names.
        lesion_ids: [n].
        patient_ids: [n] pseudonyms.
        folds: [n], the fold each lesion was tested in.
        labels: [n] int64, true class.
        predicted: [n] int64, the most probable class.
        probabilities: [n, classes] float32.
    """

    classes: tuple[str, ...]
    lesion_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    folds: tuple[int, ...]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]

    @classmethod
    def of_fold(cls, test: RoiBatch, split: int, probabilities: Tensor) -> Predictions:
        """What a model says of the lesions of its test fold: `probabilities` float32 [n, classes] on the CPU."""
        return cls.of(test, [split] * len(test), probabilities)

    @classmethod
    def of(cls, test: RoiBatch, folds: Sequence[int], probabilities: Tensor) -> Predictions:
        """What a model says of lesions of several folds: `folds` [n], `probabilities` as above."""
        return cls(
            classes=test.classes,
            lesion_ids=test.lesion_ids,
            patient_ids=test.patient_ids,
            folds=tuple(folds),
            labels=test.labels.cpu().numpy(),
            predicted=probabilities.argmax(1).numpy(),
            probabilities=probabilities.numpy(),
        )

    def num_correct(self, fold: int | None = None) -> int:
        """Lesions that are right, of one fold or of all."""
        right = self.labels == self.predicted
        return int(right.sum() if fold is None else right[np.array(self.folds) == fold].sum())

    @property
    def summary(self) -> ClassificationSummary:
        """Confusion matrix, accuracy, sensitivities and specificities."""
        confusion = confusion_matrix(self.labels, self.predicted, len(self.classes))
        return ClassificationSummary.from_confusion(confusion, self.classes)

    def to_csv(self) -> str:
        """Write predictions.csv; nine digits give back every float32 exactly."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_columns(self.classes))
        for row, lesion_id in enumerate(self.lesion_ids):
            writer.writerow(
                [
                    lesion_id,
                    self.patient_ids[row],
                    self.folds[row],
                    self.classes[self.labels[row]],
                    self.classes[self.predicted[row]],
                    *(format(float(value), ".9g") for value in self.probabilities[row]),
                ]
            )
        return text.getvalue()

    @classmethod
    def from_csv(cls, text: str, classes: tuple[str, ...]) -> Predictions:
        """Read what `to_csv` wrote.

        Raises:
            ValueError: Other columns, an unknown class, a row that does not parse, a prediction that is not the most
                probable class.
        """
        rows = list(csv.reader(io.StringIO(text)))
        if not rows or rows[0] != _columns(classes):
            raise ValueError(f"the columns must be {','.join(_columns(classes))}")
        body = rows[1:]
        if not body or any(len(row) != len(rows[0]) for row in body):
            raise ValueError("a row is missing or incomplete")
        number = {name: index for index, name in enumerate(classes)}
        try:
            found = cls(
                classes=classes,
                lesion_ids=tuple(row[0] for row in body),
                patient_ids=tuple(row[1] for row in body),
                folds=tuple(int(row[2]) for row in body),
                labels=np.array([number[row[3]] for row in body], dtype=np.int64),
                predicted=np.array([number[row[4]] for row in body], dtype=np.int64),
                probabilities=np.array([[float(value) for value in row[5:]] for row in body], dtype=np.float32),
            )
        except KeyError as error:
            raise ValueError(f"unknown class {error}") from error
        sums = found.probabilities.sum(1)
        if not (np.isfinite(sums).all() and np.abs(sums - 1).max() < 1e-3):
            raise ValueError("the probabilities of a row must add up to 1")
        if (found.probabilities.argmax(1) != found.predicted).any():
            raise ValueError("a predicted class is not its row's most probable one")
        return found


@dataclass(frozen=True, eq=False)
class TaskResult:
    """One trained model's predictions of its test fold.

    Attributes:
        name: Folder below models/.
        arm: One of `RunResults.arms`.
        group_size: Images asked for per fold; 0 where the arm has one model alone.
        per_lesion: Augmentations per lesion.
        split: The fold it was tested on.
        seed: Of its training.
        info: task.json.
        predictions: One row per lesion of the test fold.
    """

    name: str
    arm: str
    group_size: int
    per_lesion: int
    split: int
    seed: int
    info: dict[str, Any]
    predictions: Predictions

    @property
    def lesion_ids(self) -> tuple[str, ...]:
        """Lesions of the test fold."""
        return self.predictions.lesion_ids

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Their patients."""
        return self.predictions.patient_ids

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Their classes."""
        return self.predictions.labels

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """Their predicted classes."""
        return self.predictions.predicted

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Their class probabilities [n, classes]."""
        return self.predictions.probabilities


@dataclass(frozen=True, eq=False)
class RunResults:
    """A run directory.

    Attributes:
        path: The directory.
        config: Its resolved configuration.
        info: run.json.
        folds: folds.json.
        tasks: Every committed model of an arm, sorted by name.
        steps: Every step of the run, in the plan's order.
        done: Output hashes of the steps that are done, by name.
    """

    path: Path
    config: RunConfig
    info: dict[str, Any]
    folds: Folds
    tasks: tuple[TaskResult, ...]
    steps: tuple[Step, ...]
    done: dict[str, str]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of labels and probabilities."""
        return tuple(self.info["store"]["classes"])

    @property
    def kind(self) -> str:
        """What the pixels are: "phantom", "imported" or "user"."""
        return str(self.info["kind"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds of the run."""
        return self.config.seeds

    @property
    def arms(self) -> tuple[str, ...]:
        """What has predictions of every lesion: classic, the kinds of GAN, the baseline, the controls."""
        return arms(self.config)

    def groups(self, arm: str = "classic") -> tuple[int, ...]:
        """Group sizes of an arm, ascending, done or not; (0,) where it has one model alone."""
        return group_sizes(self.config, arm)

    def missing(
        self, arm: str | None = None, group_size: int | None = None, seed: int | None = None
    ) -> tuple[str, ...]:
        """Names of what is not there yet: every step of the run, or the models of an arm, one group and seed or all."""
        if arm is None:
            return tuple(step.name for step in self.steps if step.name not in self.done)
        done = {task.name for task in self.tasks}
        names = (
            task_name(arm, size, split, chosen)
            for chosen in (self.seeds if seed is None else (seed,))
            for size in (self.groups(arm) if group_size is None else (group_size,))
            for split in range(self.folds.num_folds)
        )
        return tuple(name for name in names if name not in done)

    def complete(self, arm: str | None = None, group_size: int | None = None, seed: int | None = None) -> bool:
        """Whether all is there: the whole run, or the models of an arm, one group and seed or all."""
        return not self.missing(arm, group_size, seed)

    def choice(self, arm: str) -> dict[str, Any] | None:
        """The choice.json of "classic" or of a kind of GAN; None where it is not made yet, or of this run."""
        name = choice_name(arm)
        if name not in self.done:
            return None
        return read_json(self.path / "choices" / name, "choice.json", f"choices/{name}", TRAIN_ANEW)

    def step(self, name: str) -> Step:
        """A step by its name."""
        return next(step for step in self.steps if step.name == name)

    def task_info(self, name: str) -> dict[str, Any]:
        """The task.json of a step that is done."""
        return read_json(self.path / self.step(name).folder, "task.json", name, TRAIN_ANEW)

    def pooled(self, arm: str, group_size: int, seed: int) -> Predictions:
        """Predictions of all test folds of one group and seed: every lesion once, in the order of the folds.

        Raises:
            ConfigError: No such group or seed in this run, or tasks that are missing, by name.
        """
        if group_size not in self.groups(arm) or seed not in self.seeds:
            raise ConfigError(
                "run",
                f"there is no {arm} group {group_size} with seed {seed}",
                f"This run has groups {list(self.groups(arm))} and seeds {list(self.seeds)}",
            )
        missing = self.missing(arm, group_size, seed)
        if missing:
            raise ConfigError("run", f"not trained yet: {', '.join(missing)}", "Run `lesionaug run` again; it resumes")
        wanted = {task_name(arm, group_size, split, seed) for split in range(self.folds.num_folds)}
        parts = sorted((task for task in self.tasks if task.name in wanted), key=lambda task: task.split)
        return Predictions(
            classes=self.classes,
            lesion_ids=tuple(lesion for part in parts for lesion in part.lesion_ids),
            patient_ids=tuple(patient for part in parts for patient in part.patient_ids),
            folds=tuple(part.split for part in parts for _ in part.lesion_ids),
            labels=np.concatenate([part.labels for part in parts]),
            predicted=np.concatenate([part.predicted for part in parts]),
            probabilities=np.concatenate([part.probabilities for part in parts]),
        )


def config_sha256(config: RunConfig) -> str:
    """Hash a configuration, independent of the order of its keys."""
    return hash_json(config.model_dump(mode="json"))


def ground_of(run_dir: Path) -> Ground:
    """What the steps of a run stand on.

    Raises:
        DataError, ConfigError: Not a run that can be read.
    """
    return make_ground(load_config(run_dir), load_info(run_dir))


def make_ground(config: RunConfig, info: dict[str, Any]) -> Ground:
    """The same of what is read already: the configuration, and run.json."""
    values = {
        "store": info["store"]["manifest_sha256"],
        "folds": info.get("folds_sha256"),
        "versions": versions_that_matter(info.get("versions") or {}),
        "device": config.device,
        "threads": config.threads_per_task,
    }
    return Ground(values, config_sha256(config))


def load_config(run_dir: Path) -> RunConfig:
    """Read config.json.

    Raises:
        DataError: Not a run directory, or not JSON.
        ConfigError: Keys or values that this version does not know.
    """
    return validate_config(read_json(run_dir, "config.json"), "config.json")


def load_info(run_dir: Path) -> dict[str, Any]:
    """Read run.json.

    Raises:
        DataError: Not a run directory, not JSON, or written by another version of the format.
    """
    info = read_json(run_dir, "run.json")
    if info.get("schema") != RUN_SCHEMA:
        raise DataError(
            "run.json",
            f"its schema is {info.get('schema')!r}, this version reads {RUN_SCHEMA}",
            "Use the matching lesionaug",
        )
    try:
        store = info["store"]
        well_formed = isinstance(info["kind"], str) and isinstance(store["manifest_sha256"], str)
        well_formed = well_formed and all(isinstance(name, str) for name in store["classes"])
        contents: dict[str, Any] = info.get("contents") or {}
        well_formed = well_formed and all(isinstance(content, str) for content in contents.values())
        well_formed = well_formed and isinstance(info.get("versions") or {}, dict)
    except (KeyError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        raise DataError("run.json", "kind, store, versions or contents are damaged", "Start a new run folder")
    return info


def folds_sha256(run_dir: Path) -> str:
    """Hash the bytes of folds.json."""
    return hashlib.sha256((run_dir / "folds.json").read_bytes()).hexdigest()


def load_run_folds(run_dir: Path, config: RunConfig, info: dict[str, Any]) -> Folds:
    """Read folds.json and check that it is what the run began with.

    Args:
        run_dir: The run.
        config: Its configuration.
        info: Its run.json; the hash is compared only where it has one.

    Raises:
        DataError: Missing, unknown or damaged file, or folds that leak.
        ConfigError: Folds of another number or seed than the configuration's, or a file that was changed.
    """
    folds = load_folds(run_dir / "folds.json")
    fix = "Restore the file, or name a new run folder; folds must not be edited"
    for key, wanted, found in (
        ("num_folds", config.folds.num_folds, folds.num_folds),
        ("seed", config.folds.seed, folds.seed),
    ):
        if found != wanted:
            raise ConfigError("folds.json", f"its {key} is {found}, but folds.{key} in config.json is {wanted}", fix)
    begun_with, now = info.get("folds_sha256"), folds_sha256(run_dir)
    if begun_with is not None and begun_with != now:
        raise ConfigError(
            "folds.json", f"it was changed since the run began (SHA-256 {str(begun_with)[:12]}, now {now[:12]})", fix
        )
    return folds


def load_run(run_dir: Path | str) -> RunResults:
    """Read a run, complete or not.

    Raises:
        DataError: Not a run directory, a damaged file, or predictions that do not fit the folds.
        ConfigError: A configuration that this version does not know, or folds that were changed.
    """
    path = Path(run_dir)
    config, info = load_config(path), load_info(path)
    folds = load_run_folds(path, config, info)
    classes = tuple(info["store"]["classes"])
    steps = plan_steps(config, folds, len(classes))
    check_folders(path, steps)
    done = committed(path, steps, make_ground(config, info))
    tasks = [
        _load_task(path, step, classes, folds)
        for step in sorted(steps, key=lambda step: step.name)
        if step.name in done and step.folder.startswith("models/") and step.arm != INNER
    ]
    return RunResults(path, config, info, folds, tuple(tasks), steps, done)


def check_folders(run_dir: Path, steps: Sequence[Step]) -> None:
    """Refuse folders that are no step's.

    Raises:
        DataError: Naming one.
    """
    expected = {step.folder for step in steps}
    for parent in sorted({folder.partition("/")[0] for folder in expected}):
        for folder in sorted((run_dir / parent).glob("[!.]*")):
            if folder.is_dir() and f"{parent}/{folder.name}" not in expected:
                raise DataError(f"{parent}/{folder.name}", "this task does not belong to the run", "Remove the folder")


def _load_task(run_dir: Path, step: Step, classes: tuple[str, ...], folds: Folds) -> TaskResult:
    where, folder = step.folder, run_dir / step.folder
    info = read_json(folder, "task.json", where, TRAIN_ANEW)
    per_lesion = info.get("per_lesion", 0)
    if not isinstance(per_lesion, int):
        raise DataError(f"{where}/task.json", f"per_lesion must be a count, got {per_lesion!r}", TRAIN_ANEW)
    try:
        predictions = Predictions.from_csv((folder / "predictions.csv").read_text(encoding="utf-8"), classes)
    except (OSError, ValueError) as error:
        raise DataError(f"{where}/predictions.csv", f"it cannot be read ({error})", TRAIN_ANEW) from error
    split = step.split
    truth = [(lesion.lesion_id, lesion.patient_id, lesion.label) for lesion in folds.lesions if lesion.fold == split]
    names = [classes[label] for label in predictions.labels]
    rows = list(zip(predictions.lesion_ids, predictions.patient_ids, names, strict=True))
    if rows != truth or set(predictions.folds) != {split}:
        rule = f"its lesions are not those of fold {split} in folds.json"
        raise DataError(f"{where}/predictions.csv", rule, TRAIN_ANEW)
    return TaskResult(step.name, step.arm, step.size, per_lesion, split, step.seed, info, predictions)


def _columns(classes: tuple[str, ...]) -> list[str]:
    return ["lesion_id", "patient_id", "fold", "label", "predicted", *(f"p_{name}" for name in classes)]


def read_json(
    folder: Path, name: str, where: str = "", fix: str = "Give the folder that `lesionaug run` wrote"
) -> dict[str, Any]:
    """Read a JSON object of a folder.

    Raises:
        DataError: Missing, unreadable, or not an object; it names `where`, or the folder.
    """
    place = f"{where}/{name}" if where else name
    try:
        value = parse_json((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(where or f"{folder.name}", f"there is no {name} in it", fix) from error
    except (OSError, ValueError) as error:
        raise DataError(place, f"it cannot be read ({error})", fix) from error
    if not isinstance(value, dict):
        raise DataError(place, "it does not hold a JSON object", fix)
    return value
