"""`lesionaug study analyse`: what the answers of a reader study say, as numbers, tables, figures and a page.

Readers are numbers here, images are counts: nothing that is written names a lesion, a patient or a reader, and nothing
that a reader wrote is repeated. The code names stand in what `lesionaug study export` writes.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lesionaug import __version__
from lesionaug.data.files import (
    check_new_folder,
    commit_directory,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from lesionaug.errors import ConfigError, DataError
from lesionaug.evaluation.classification import confusion_matrix
from lesionaug.evaluation.distances import Estimate
from lesionaug.evaluation.statistics import bootstrap_difference, holm, mcnemar
from lesionaug.experiment.study_results import ANALYSIS_SCHEMA, ANALYSIS_VERSION, FIGURES, flatten, models_sha256
from lesionaug.study import measures
from lesionaug.study.answers import IMAGE_SENT, AllAnswers, Answer, Reader, read_answers
from lesionaug.study.files import Design, Study, Truth, load_study, load_truth, uneven_classes
from lesionaug.study.measures import Cases, ReaderRatings, rate

if TYPE_CHECKING:
    from lesionaug.experiment.results import RunResults

FEW_READERS = 5  # below this a bootstrap over readers is too narrow to speak of other readers


@dataclass(frozen=True)
class Counted:
    """One reader's answers to one task that count: practice left out, the last revision of each.

    Attributes:
        first: Item -> choice at its first showing.
        again: Item -> choice at its repeat, which counts for nothing else.
        seconds: Item -> response time of the first answer to its first showing, and that answer; those alone that were
            given at the first sight of the image and without a pause.
        untimed: Answers to first showings without such a time.
    """

    first: dict[int, int]
    again: dict[int, int]
    seconds: dict[int, tuple[float, int]]
    untimed: list[int]


@dataclass(frozen=True, eq=False)
class Judged:
    """A study beside its truth.

    Attributes:
        design: How it asked.
        real: [items] bool.
        label: [items] int64, index of the class.
        cases: The items as a bootstrap draws them.
        readers: By number.
        counted: (reader, task) -> answers.
    """

    design: Design
    real: measures.BoolArray
    label: measures.IntArray
    cases: Cases
    readers: tuple[Reader, ...]
    counted: Mapping[tuple[int, str], Counted]

    def decision(self, task: str, choice: int) -> int:
        """The answer as it is compared: the class, or 1 for "real"."""
        return choice if task == "class" else int(says_real(self.design, choice))

    def truth(self, task: str, item: int) -> int:
        """The right decision."""
        return int(self.label[item]) if task == "class" else int(self.real[item])

    def some(self, items: Sequence[int]) -> Cases:
        """The cases of some items."""
        index = np.array(items, dtype=np.int64)
        return Cases(self.real[index], self.cases.block[index])


def says_real(design: Design, choice: Any) -> Any:
    """Whether an answer to the origin, or an array of them, says "real": the upper half of the scale."""
    return choice >= (1 if design.scale == "two-key" else 4)


def analyse_study(study: Path, out: Path, truth: Path | None = None, run: Path | None = None) -> Path:
    """Write OUT/{analysis.json, measures.csv, figures, analysis.html}; with a run RUN/study too, for its report.

    A study that is not finished is analysed for what is there.

    Args:
        study: Folder of `lesionaug study new`.
        out: A folder that does not exist yet.
        truth: The truth file; beside the study when None.
        run: A run of `lesionaug run` over the same lesions: readers are compared with its classifiers.

    Returns:
        The path of the page.

    Raises:
        DataError: Files that are missing or were changed, a truth of another study, a run over other lesions.
        ConfigError: The run holds the analysis of another study.
    """
    from lesionaug.experiment.results import load_run
    from lesionaug.study.analysis_page import render_analysis
    from lesionaug.study.figures import write_figures

    check_new_folder(out, "the analysis")
    found = load_study(study)
    right = load_truth(found, truth)
    results = None if run is None else load_run(run)
    if run is not None:
        _check_report(run / "study", found.id)
    analysis = summarise(found, right, read_answers(found), results)
    with commit_directory(out) as folder:
        (folder / FIGURES).mkdir()
        write_json_atomic(folder / "analysis.json", analysis)
        write_text_atomic(folder / "measures.csv", _table(analysis))
        write_figures(analysis, folder / FIGURES)
        write_text_atomic(folder / "analysis.html", render_analysis(folder))
    if run is not None:
        _hand_to_report(out, run / "study")
    return out / "analysis.html"


def summarise(study: Study, truth: Truth, answers: AllAnswers, run: RunResults | None = None) -> dict[str, Any]:
    """Every number of the analysis, as analysis.json holds it; what is not defined is None.

    Args:
        study: The study.
        truth: Its truth.
        answers: All of its readers.
        run: Whose classifiers the readers are compared with.

    Raises:
        DataError: A run over other lesions, or with other classes of them.
    """
    data = judge(study, truth, answers)
    design = study.design
    shown = [item for item in truth.items if not item.practice]
    analysis: dict[str, Any] = {
        "schema": ANALYSIS_SCHEMA,
        "version": ANALYSIS_VERSION,
        "lesionaug": __version__,
        "study_id": study.id,
        "kind": study.kind,
        "design": {
            "tasks": list(design.tasks),
            "classes": list(design.classes),
            "scale": design.scale,
            "order": design.order,
            "num_practice": design.num_practice,
            "num_repeats": design.num_repeats,
            "num_real": sum(item.origin == "real" for item in shown),
            "num_synthetic": sum(item.origin != "real" for item in shown),
        },
        "readers": {
            str(reader.reader): _reader(data, reader, answers.answers, len(study.slots[reader.slot]))
            for reader in data.readers
        },
        "pooled": {task: _pooled(data, task) for task in design.tasks},
        "pairs": _pairs(data),
        "against_cnn": {} if run is None else _against_cnn(data, truth, run),
        "run": None if run is None else {"models_sha256": models_sha256(run)},
    }
    analysis["notes"] = _notes(data, analysis)
    return analysis


def judge(study: Study, truth: Truth, answers: AllAnswers) -> Judged:
    """Sort the answers that count by reader and task: without practice, the last revision of each."""
    revisions: dict[tuple[int, int], list[Answer]] = {}
    for answer in answers.answers:
        revisions.setdefault((answer.reader, answer.trial), []).append(answer)
    counted: dict[tuple[int, str], Counted] = {
        (reader.reader, task): Counted({}, {}, {}, []) for reader in answers.readers for task in study.design.tasks
    }
    slots = {reader.reader: study.slots[reader.slot] for reader in answers.readers}
    seen_before = _seen_before(answers)
    for (reader, number), given in sorted(revisions.items()):
        trial = slots[reader][number]
        if trial.practice:
            continue
        given.sort(key=lambda answer: answer.revision)
        mine = counted[reader, trial.task]
        if trial.repeat:
            mine.again[trial.item] = given[-1].choice
            continue
        mine.first[trial.item] = given[-1].choice
        if given[0].response_ms > 0 and given[0].num_pauses == 0 and (reader, number) not in seen_before:
            mine.seconds[trial.item] = (given[0].response_ms / 1000, given[0].choice)
        else:
            mine.untimed.append(trial.item)
    real = np.array([item.origin == "real" for item in truth.items], dtype=np.bool_)
    label = np.array([study.design.classes.index(item.class_name) for item in truth.items], dtype=np.int64)
    cases = Cases.of(real, [item.patient for item in truth.items])
    return Judged(study.design, real, label, cases, answers.readers, counted)


def _seen_before(answers: AllAnswers) -> set[tuple[int, int]]:
    """Reader and trial of images that were sent more than once before the first answer: their times began anew."""
    first = {(a.reader, a.trial): a.server_utc for a in answers.answers if a.revision == 0}
    sent: Counter[tuple[int, int]] = Counter()
    for event in answers.events:
        trial = event.content.get("trial")
        if event.kind == IMAGE_SENT and isinstance(trial, int):
            sent[event.reader, trial] += event.server_utc <= first.get((event.reader, trial), "")
    return {key for key, times in sent.items() if times > 1}


def _reader(data: Judged, reader: Reader, answers: Sequence[Answer], num_trials: int) -> dict[str, Any]:
    """Everything about one reader alone."""
    mine = [answer for answer in answers if answer.reader == reader.reader]
    found: dict[str, Any] = {
        "years": reader.years,
        "trials": {"count": len({answer.trial for answer in mine}), "total": num_trials},
        "revised": len({answer.trial for answer in mine if answer.revision}),
        "times": {},
    }
    for task in data.design.tasks:
        counted = data.counted[reader.reader, task]
        found[task] = _class_measures(data, counted) if task == "class" else _origin_measures(data, counted)
        twice = [item for item in counted.again if item in counted.first]
        first, again = ([data.decision(task, side[item]) for item in twice] for side in (counted.first, counted.again))
        found[task]["repeats"] = _agreement(first, again, data.some(twice))
        timed = list(counted.seconds.values())
        found["times"][task] = {
            "all": asdict(measures.times([seconds for seconds, _ in timed])),
            "by_answer": [
                asdict(measures.times([seconds for seconds, said in timed if said == choice]))
                for choice in data.design.choices(task)
            ],
            "untimed": len(counted.untimed),
        }
    return found


def _class_measures(data: Judged, counted: Counted) -> dict[str, Any]:
    """Class accuracy on real and on synthetic images, the difference, and both confusion matrices."""
    items, said = _columns(counted.first)
    label, real = data.label[items], data.real[items]
    num_classes = len(data.design.classes)
    found: dict[str, Any] = {"items": items.size}
    rates = {}
    for name, mine in (("real", real), ("synthetic", ~real)):
        rates[name] = rate(int((label == said)[mine].sum()), int(mine.sum()))
        found[name] = asdict(rates[name])
        table = np.zeros((num_classes, num_classes), dtype=np.int64)
        if mine.any():
            table = confusion_matrix(label[mine], said[mine], num_classes)
        found[f"confusion_{name}"] = table.tolist()
    right = int((label == said).sum())
    commonest = int(np.bincount(label).max()) / items.size if items.size else None
    found["all"] = asdict(rate(right, items.size))
    found["always_commonest"] = commonest
    found["p_always_commonest"] = None if commonest is None else measures.binomial_p(right, items.size, commonest)
    found["difference"] = _estimate(measures.rate_difference(rates["real"], rates["synthetic"]))
    return found


def _origin_measures(data: Judged, counted: Counted) -> dict[str, Any]:
    """Real or synthetic: every measure with its baseline."""
    items, ratings = _columns(counted.first)
    real, called = data.real[items], says_real(data.design, ratings)
    sensitivity = rate(int((called & real).sum()), int(real.sum()))
    specificity = rate(int((~called & ~real).sum()), int((~real).sum()))
    correct, total = sensitivity.count + specificity.count, items.size
    always_real = int(real.sum()) / total if total else None
    detected = measures.detection(sensitivity, specificity)
    levels = data.design.choices("origin")
    return {
        "items": total,
        "sensitivity": asdict(sensitivity),
        "specificity": asdict(specificity),
        "balanced_accuracy": _estimate(measures.balanced_accuracy(sensitivity, specificity)),
        "d_prime": _estimate(detected.d_prime if detected else None),
        "criterion": _estimate(detected.criterion if detected else None),
        "auc": _estimate(measures.auc(data.some(items.tolist()), ratings) if total else None),
        "accuracy": asdict(rate(correct, total)),
        "always_real": always_real,
        "p_always_real": None if always_real is None else measures.binomial_p(correct, total, always_real),
        "p_half": measures.binomial_p(correct, total, 0.5),
        "ratings_real": [int((ratings[real] == level).sum()) for level in levels],
        "ratings_synthetic": [int((ratings[~real] == level).sum()) for level in levels],
    }


def _pairs(data: Judged) -> dict[str, Any]:
    """Any two readers about the images both have answered for."""
    found: dict[str, Any] = {}
    for one, other in itertools.combinations((reader.reader for reader in data.readers), 2):
        pair: dict[str, Any] = {"first": one, "second": other}
        for task in data.design.tasks:
            sides = [data.counted[number, task].first for number in (one, other)]
            common = [item for item in sides[0] if item in sides[1]]
            said = [[data.decision(task, side[item]) for item in common] for side in sides]
            truth = np.array([data.truth(task, item) for item in common], dtype=np.int64)
            right = [np.array(side, dtype=np.int64) == truth for side in said]
            pair[task] = {
                **_agreement(said[0], said[1], data.some(common)),
                "both_right": asdict(rate(int((right[0] & right[1]).sum()), len(common))),
                "only_first": int((right[0] & ~right[1]).sum()),
                "only_second": int((~right[0] & right[1]).sum()),
                "p": mcnemar(*right).p_value if common else None,
            }
        found[f"{one}-{other}"] = pair
    return found


def _pooled(data: Judged, task: str) -> dict[str, Any]:
    """Means over the readers who have answered for real and for synthetic images."""
    counted = [data.counted[reader.reader, task] for reader in data.readers]
    columns = [_columns(one.first) for one in counted]
    both = [(items, said) for items, said in columns if items.size and 0 < data.real[items].sum() < items.size]
    if task == "origin":
        readers = [ReaderRatings(items, said, says_real(data.design, said)) for items, said in both]
        measured = measures.pooled_detection(data.cases, readers)
        real_shares = [float(data.real[items].mean()) for items, _ in both]
        more: dict[str, Any] = {"always_real": float(np.mean(real_shares)) if both else None}
    else:
        measured = measures.pooled_class_accuracy(data.cases, [(i, data.label[i] == said) for i, said in both])
        num_classes = len(data.design.classes)
        more = {}
        for name, wanted in (("real", True), ("synthetic", False)):
            table = np.zeros((num_classes, num_classes), dtype=np.int64)
            for items, said in both:
                mine = data.real[items] == wanted
                table += confusion_matrix(data.label[items][mine], said[mine], num_classes)
            more[f"confusion_{name}"] = table.tolist()
    seconds = [second for one in counted for second, _ in one.seconds.values()]
    more["times"] = asdict(measures.times(seconds))
    return {"num_readers": len(both), **{name: _estimate(value) for name, value in measured.items()}, **more}


def _against_cnn(data: Judged, truth: Truth, run: RunResults) -> dict[str, Any]:
    """Each reader beside each method of the run, on the same real lesions, whose class both have said.

    A lesion's prediction is that of the model that did not see its fold. McNemar's test is of the first seed; the
    difference (method - reader) is the mean over the seeds and its interval draws patients.
    """
    from lesionaug.experiment.numbers import collect_numbers

    if "class" not in data.design.tasks:
        return {}
    known = {lesion.lesion_id: lesion for lesion in run.folds.lesions}
    item_of = {t.lesion_id: t.item for t in truth.items if t.lesion_id in known and not t.practice}
    fix = "Name the run over the ROI store that the study was made from"
    if not item_of:
        raise DataError("run", "none of its lesions is in the study", fix)
    if any(known[name].label != truth.items[item].class_name for name, item in item_of.items()):
        raise DataError("run", "a lesion has another class in the run than in the study", fix)
    found: dict[str, Any] = {}
    tested: list[dict[str, Any]] = []
    for method in collect_numbers(run).methods:
        if method.control:
            continue
        lesions = [name for task in method.of_seed(method.seeds[0]) for name in task.lesion_ids]
        correct = np.stack([method.correct(seed) for seed in method.seeds])  # [seeds, lesions]
        for reader in data.readers:
            said = data.counted[reader.reader, "class"].first
            place = [k for k, name in enumerate(lesions) if item_of.get(name) in said]
            if not place:
                continue
            items = [item_of[lesions[k]] for k in place]
            right = np.array([said[item] for item in items], dtype=np.int64) == data.label[items]
            patients = [known[lesions[k]].patient_id for k in place]
            test = mcnemar(right, correct[0, place])
            difference = None
            if len(set(patients)) > 1:
                difference = bootstrap_difference(right, correct[:, place], patients, seed=0)
            row = {
                "name": method.name,
                "lesions": len(items),
                "patients": len(set(patients)),
                "reader": asdict(rate(int(right.sum()), len(items))),
                "cnn": asdict(rate(int(correct[0, place].sum()), len(items))),
                "only_reader": test.only_first,
                "only_cnn": test.only_second,
                "p": test.p_value,
                "difference": _estimate(difference),
            }
            found.setdefault(str(reader.reader), {})[method.id] = row
            tested.append(row)
    if tested:
        for row, adjusted in zip(tested, holm([row["p"] for row in tested]).tolist(), strict=True):
            row["p_holm"] = adjusted
    return found


def _notes(data: Judged, analysis: Mapping[str, Any]) -> list[str]:
    """What must be known beside the numbers, as sentences."""
    readers, notes = analysis["readers"], []
    if not readers:
        return ["Nobody has begun this study yet."]
    for number, reader in readers.items():
        done, total = reader["trials"]["count"], reader["trials"]["total"]
        if done == 0:
            notes.append(f"Reader {number} has not answered anything yet.")
        elif done < total:
            notes.append(f"Reader {number} has not finished: {done} of {total} trials; what is there is counted.")
        origin = reader.get("origin")
        if origin and origin["auc"] is None and origin["balanced_accuracy"] is not None:
            notes.append(f"Reader {number} gave one answer to all: there is no ROC curve.")
    for task in data.design.tasks:
        sets = {frozenset(data.counted[reader.reader, task].first) for reader in data.readers} - {frozenset()}
        if len(sets) > 1:
            notes.append(
                f"Readers have answered about different images ({task}); pairs are compared on those both have."
            )
    num_readers = max(part["num_readers"] for part in analysis["pooled"].values())
    if num_readers == 1:
        notes.append("One reader: intervals of the means draw images only and say nothing of other readers.")
    elif 1 < num_readers < FEW_READERS:
        notes.append(
            f"{num_readers} readers are too few for the intervals of the means to speak of other readers: these are "
            "too narrow for that."
        )
    values = flatten(analysis)
    if any(
        values[key] is None and values[key.removesuffix(".low")] is not None for key in values if key.endswith(".low")
    ):
        notes.append(
            "Where a number has no interval, a reader's answers leave the bootstrap nothing to draw from (all right, "
            "for example, or one answer to all images of an origin): that is no certainty."
        )
    if _mixes_differ(data):
        notes.append(
            "Real and synthetic images are not of the same classes in the same shares: the class is a hint at the "
            "origin, and the class accuracies on the two kinds are not of the same lesions."
        )
    if data.design.scale == "two-key" and "origin" in data.design.tasks:
        notes.append(
            "Answers about the origin had two keys and no rating: the area under the curve is that below the two "
            "straight lines through the single operating point, and equals the balanced accuracy."
        )
    return notes


def _mixes_differ(data: Judged) -> bool:
    """Whether a class has another share of the real images that readers saw than of the synthetic ones."""
    seen = sorted({item for counted in data.counted.values() for item in counted.first})
    real, synthetic = (
        [data.design.classes[data.label[item]] for item in seen if data.real[item] == kind] for kind in (True, False)
    )
    return bool(uneven_classes(real, synthetic, data.design.classes))


def _columns(choices: Mapping[int, int]) -> tuple[measures.IntArray, measures.IntArray]:
    """Items and choices as arrays."""
    return np.array(list(choices), dtype=np.int64), np.array(list(choices.values()), dtype=np.int64)


def _agreement(first: Sequence[int], second: Sequence[int], cases: Cases) -> dict[str, Any]:
    if not first:
        return {"agreed": asdict(rate(0, 0)), "kappa": None}
    found = measures.agreement(first, second, cases)
    return {"agreed": asdict(found.agreed), "kappa": _estimate(found.kappa)}


def _estimate(value: Estimate | None) -> dict[str, float | None] | None:
    if value is None:
        return None
    return {name: number if math.isfinite(number) else None for name, number in asdict(value).items()}


def _table(analysis: Mapping[str, Any]) -> str:
    """Every number as a row: its key, and what data it is of."""
    from lesionaug.augment.sheet import banner

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["measure", "value", "data"])
    for key, value in flatten(analysis).items():
        writer.writerow([key, "" if value is None else value, banner(analysis["kind"])])
    return stream.getvalue()


def _check_report(target: Path, study_id: str) -> None:
    """Refuse to take the place of anything but an analysis of the same study, or of one that cannot be read."""
    if not target.exists():
        return
    if not (target / "analysis.json").is_file():
        rule = "the run holds a folder of this name that is no analysis of a reader study"
        raise DataError(f"{target.parent.name}/study", rule, "Move it away")
    try:
        earlier = json.loads((target / "analysis.json").read_text(encoding="utf-8"))["study_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if earlier != study_id:
        raise ConfigError(
            "--run", "the run holds the analysis of another reader study, and its report shows one",
            f"Remove {target} first, or leave --run out",
        )  # fmt: skip


def _hand_to_report(out: Path, target: Path) -> None:
    """Lay the analysis into the run, in the place of an earlier one of the same study."""
    earlier = target.with_name(".study.earlier.tmp")
    shutil.rmtree(earlier, ignore_errors=True)
    if target.exists():
        target.rename(earlier)
    with commit_directory(target) as folder:
        write_bytes_atomic(folder / "analysis.json", (out / "analysis.json").read_bytes())
        shutil.copytree(out / FIGURES, folder / FIGURES)
    shutil.rmtree(earlier, ignore_errors=True)
