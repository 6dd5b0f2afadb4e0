"""The report: every number equals a recount from the saved predictions; the page is self-contained and accessible."""

from __future__ import annotations

import csv
import functools
import html
import json
import math
import random
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from lesionaug.data.folds import load_folds
from lesionaug.data.provenance import Provenance
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import manifest_sha256, save_rois
from lesionaug.data.synthetic import SyntheticRois, save_synthetic
from lesionaug.errors import ConfigError, DataError
from lesionaug.evaluation.statistics import bootstrap_difference, needed_lesions, power_of_mcnemar
from lesionaug.experiment.choices import choose
from lesionaug.experiment.config import RunConfig, resolve_config
from lesionaug.experiment.graph import Result, commit
from lesionaug.experiment.numbers import collect_numbers
from lesionaug.experiment.pictures import pictures_are_whole, write_pictures
from lesionaug.experiment.protocol import Step, plan_steps
from lesionaug.experiment.report import format_number, render, write_report
from lesionaug.experiment.results import folds_sha256, load_run, make_ground

CLASSES = ("cyst", "hemangioma", "metastasis")  # a store's order need not be the paper's
GROUPS = (0, 30, 500)
SYNTHETIC = (30, 1500)
VOID = {"meta", "img", "br", "link", "hr", "input"}
SMALL_PLAN = {"n_rot": 2, "n_flip": 1, "n_trans": 1, "n_scale": 1}
EPOCHS = {"steps": None, "epochs": 8}
LITTLE: dict[str, Any] = {"gans": (), "bovw": None, "controls": (), "embedding": None, "memorisation": None}
ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def make_config(**more: Any) -> RunConfig:
    """The tiny preset with three groups, and epochs instead of steps, so that there is an equal-steps control."""
    values = {"classic_groups": GROUPS, "synthetic_groups": SYNTHETIC, "classifier": EPOCHS, **more}
    gone = {key: values.pop(key) for key in ("bovw", "embedding", "memorisation") if key in values}
    return resolve_config("tiny", **values).model_copy(update=gone)


def write_run(
    folder: Path,
    *,
    store_sha256: str = "ab" * 32,
    classes: tuple[str, ...] = CLASSES,
    twins: bool = False,
    config: RunConfig | None = None,
    without: str = "(?!)",
    **more: Any,
) -> Path:
    """A finished run as `lesionaug run` leaves it, with made-up results.

    Predictions are right more often in larger groups; `twins` gives classic groups 30 and 500 the same ones. Steps
    whose name `without` matches are left out, and with them all that need them.
    """
    config = config or make_config(**more)
    lesions = [
        {
            "lesion_id": f"lesion-{i:05d}",
            "patient_id": f"patient-{i // 2:05d}",  # two lesions each
            "label": classes[(i // 2) % 3 if i < 36 else 0],
            "fold": (i // 6) % 3,
        }
        for i in range(41)
    ]
    folder.mkdir()

    def write(name: str, value: object) -> None:
        (folder / name).write_text(json.dumps(value), encoding="utf-8")

    write("config.json", config.model_dump(mode="json"))
    write("folds.json", {"schema": 1, "num_folds": 3, "seed": 0, "lesions": lesions})
    info = {
        "schema": 2,
        "kind": "phantom",
        "folds_sha256": folds_sha256(folder),
        "store": {
            "manifest_sha256": store_sha256,
            "num_lesions": len(lesions),
            "num_patients": len({lesion["patient_id"] for lesion in lesions}),
            "classes": list(classes),
            "class_counts": dict(Counter(lesion["label"] for lesion in lesions)),
        },
        "versions": {"lesionaug": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
        "machine": {"cpu": "Some CPU <fast> & cheap", "cores": 2, "device": "cpu"},
        "command": "run --preset tiny",
    }
    write("run.json", info)
    folds, ground = load_folds(folder / "folds.json"), make_ground(config, info)
    done: dict[str, str] = {}
    for number, step in enumerate(plan_steps(config, folds, len(classes))):
        if re.search(without, step.name) or any(name not in done for name in step.needs):
            continue
        result = make_result(folder, step, config, lesions, classes, twins)
        commit(folder, step, ground, {name: done[name] for name in step.needs}, result, 0.0)
        task = json.loads((folder / step.folder / "task.json").read_text())
        task["seconds"] = 1.25 + number % 7
        write(f"{step.folder}/task.json", task)
        done[step.name] = task["output_sha256"]
    return folder


def make_result(
    run: Path, step: Step, config: RunConfig, lesions: list[dict[str, Any]], classes: tuple[str, ...], twins: bool
) -> Result:
    """Made-up results of a step."""
    size = 30 if twins and step.arm == "classic" and step.size == 500 else step.size
    draw = random.Random(f"{step.arm} {size} {step.settings.get('held_out', step.split)} {step.seed}")
    out = step.settings.get("held_out", [step.split])
    test, train = ([x for x in lesions if (x["fold"] in out) == wanted] for wanted in (True, False))
    per_lesion = min(480, round(3 * step.size / len(lesions))) if step.arm in ("classic", "inner", "equal-steps") else 7
    made = 3 * round(step.size * 2 / 3) if step.arm in ("dcgan", "acgan") else 0
    learned = {"num_train_lesions": len(train), "num_train_images": len(train) * (1 + per_lesion) + made}
    if step.kind in ("cnn", "bovw", "discriminator"):
        rows = []
        for lesion in test:
            right = draw.random() < {0: 0.45, 30: 0.6, 500: 0.75, 1500: 0.8}[size]
            guess = lesion["label"] if right else draw.choice([c for c in classes if c != lesion["label"]])
            chances = [0.6 if c == guess else 0.2 for c in classes]
            rows.append([lesion["lesion_id"], lesion["patient_id"], lesion["fold"], lesion["label"], guess, *chances])

        def write_model(folder: Path) -> None:
            with (folder / "predictions.csv").open("w", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(["lesion_id", "patient_id", "fold", "label", "predicted", *(f"p_{c}" for c in classes)])
                writer.writerows(rows)
            if step.kind == "cnn":
                history = [f"{e},{1.1 * 0.9**e:.6f},{1 - 0.6 * 0.9**e:.6f}\n" for e in range(1, 9)]
                (folder / "history.csv").write_text("epoch,loss,train_accuracy\n" + "".join(history))

        info: dict[str, Any] = {**learned, "device": "cpu", "threads": 1, "versions": {}}
        if step.kind == "cnn":
            added = round((per_lesion * len(train) + made) / 2, 1)
            info |= {"group_size": step.size, "per_lesion": per_lesion, "capped": False, "num_synthetic": made}
            info |= {"actual_added_per_fold": added, "epochs": 8, "steps": 8 * -(-info["num_train_images"] // 16)}
        return Result(write_model, info)
    if step.kind == "choice":
        return Result(functools.partial(write_choice, run, step, config), {})
    if step.kind == "gan":
        blocks = [{"step": k, "loss_d": 1.3, "loss_g": 0.7 + k / 10, "d_real": 0.5, "d_fake": 0.4} for k in (1, 2, 3)]
        text = "".join(json.dumps(block) + "\n" for block in blocks)
        return Result(lambda folder: ignore((folder / "metrics.jsonl").write_text(text)), learned)
    if step.kind == "synthetic":
        images = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(1))
        nobody = Provenance(frozenset(), frozenset(), frozenset())
        labels, window = torch.arange(3).repeat(2), config.image.window_hu
        rois = SyntheticRois(images, labels, classes, "phantom", step.split, window, nobody, {})
        return Result(lambda folder: save_synthetic(rois, folder / "rois"), {"num_images": 6})
    if step.kind == "embedding":
        text = "lesion_id,label,view,x,y\n"
        for view in (0, 1):
            text += "".join(
                f"{x['lesion_id']},{quoted(x['label'])},{view},{draw.random():.6g},{draw.random():.6g}\n" for x in test
            )
        return Result(lambda folder: ignore((folder / "points.csv").write_text(text)), {"group_size": 30})
    values = {label: made_up_evaluation(draw) for label in classes[:2]}
    found = {**values, classes[2]: {"not_measured": "1 held-out patients, two of each are needed"}}

    def write_evaluation(folder: Path) -> None:
        (folder / "evaluation.json").write_text(json.dumps({"features_of": "x", "classes": found}))
        (folder / "gallery.png").write_bytes(ONE_PIXEL)

    return Result(write_evaluation, {})


def ignore(_: object) -> None:
    """For functions that must return nothing."""


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def made_up_evaluation(draw: random.Random) -> dict[str, Any]:
    def estimate() -> dict[str, float]:
        low, value, high = sorted(draw.random() for _ in range(3))
        return {"value": value, "low": low, "high": high}

    return {
        "num_training_lesions": draw.randrange(5, 40),
        "num_held_out_lesions": draw.randrange(2, 20),
        "kid_to_training": {
            name: estimate() for name in ("synthetic", "held-out lesions", "blurred training lesions", "noise")
        },
        "diversity": {name: {"spread": draw.random()} for name in ("synthetic", "held-out lesions")},
        "classified_as_wanted": {name: draw.random() for name in ("synthetic", "held-out lesions")},
        "memorisation": {
            "nearer_to_training": estimate(),
            "copies": {name: draw.random() for name in ("synthetic", "held-out lesions")},
            "membership_by_discriminator": estimate(),
            "membership_by_distance": estimate(),
        },
    }


def write_choice(run: Path, step: Step, config: RunConfig, folder: Path) -> None:
    """As the run's own step; `recount` counts it again in its own way."""
    tested = {size: mean(correct_of(run, step.arm, size, config.seeds)) for size in sizes_of(config, step.arm)}
    inner = None
    if step.arm == "classic":
        inner = {
            k: {size: inner_correct(run, size, k, config.seeds) for size in config.classic_groups} for k in range(3)
        }
    chosen = choose(tested, inner, step.settings["rule"], range(3))
    (folder / "choice.json").write_text(json.dumps(chosen))


class Page(HTMLParser):
    """The page as a checker sees it: balanced tags, numbers by key, ids, images, links, text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.numbers: dict[str, set[str]] = defaultdict(set)
        self.options: dict[str, str] = {}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str]] = []
        self.tags: Counter[str] = Counter()
        self.unscoped: list[str] = []
        self._open: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        found = {name: value or "" for name, value in attrs}
        assert len(found) == len(attrs), f"an attribute stands twice in <{tag}>"
        self.tags[tag] += 1
        if "id" in found:
            self.ids.append(found["id"])
        for name in ("href", "src", "action", "data", "poster", "srcset"):
            if name in found:
                self.links.append(found[name])
        if tag == "img":
            self.images.append(found)
        if tag == "th" and "scope" not in found:
            self.unscoped.append(self.getpos())
        if tag not in VOID:
            self.stack.append(tag)
            self._open.append((found.get("data-key", ""), found.get("data-config", ""), ""))

    def handle_endtag(self, tag):
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag, f"</{tag}> at {self.getpos()} closes another tag"
        key, option, text = self._open.pop()
        if key:
            self.numbers[key].add(text)
        if option:
            self.options[option] = text

    def handle_data(self, data):
        self.words.append(data)
        if self._open:
            key, option, text = self._open[-1]
            self._open[-1] = (key, option, text + data)


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def page_without_figures(run: Path) -> Page:
    """The page as `write_report` writes it, but for the figures, which take most of the time."""
    results = load_run(run)
    return Page(render(results, collect_numbers(results), {}))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn but not rendered, which takes most of the time."""
    for name, content in (("svg", "<svg/>"), ("png", ONE_PIXEL), ("pdf", b"%PDF-")):
        for module in ("report_figures", "pictures"):
            monkeypatch.setattr(f"lesionaug.experiment.{module}.figure_{name}", lambda *a, c=content, **k: c)


def words_of(page: Page) -> str:
    return " ".join("".join(page.words).split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report, for tests that change nothing in it."""
    run = write_run(tmp_path_factory.mktemp("finished") / "run")
    write_report(run)
    return run


# --- an own recount in plain Python: csv, collections, and the textbook formulas of Wilson and McNemar


def wilson(count: float, total: int) -> tuple[float, float]:
    z = 1.959963984540054
    p = count / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return middle - half, middle + half


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def pct(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # no -0.0


def whole(value: float) -> str:
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 else f"{value:,.1f}"


def sizes_of(config: Any, arm: str) -> tuple[int, ...]:
    if arm in ("classic", "equal-steps"):
        return tuple(config.classic_groups)
    return tuple(config.synthetic_groups) if arm in ("dcgan", "acgan") else (0,)


def model_name(arm: str, size: int, split: int, seed: int) -> str:
    if arm in ("bovw", "acgan-discriminator"):
        return f"{arm}-split{split}-seed{seed}"
    middle = f"-{size:05d}" if arm in ("classic", "dcgan", "acgan", "equal-steps") else ""
    return f"cnn-{arm}{middle}-split{split}-seed{seed}"


def read_rows(run: Path, name: str) -> list[dict[str, str]]:
    with (run / "models" / name / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def correct_of(run: Path, arm: str, size: int, seeds: Iterable[int]) -> list[int]:
    """Correct test lesions of each seed."""
    return [
        sum(
            row["label"] == row["predicted"] for k in range(3) for row in read_rows(run, model_name(arm, size, k, seed))
        )
        for seed in seeds
    ]


def inner_correct(run: Path, size: int, split: int, seeds: Iterable[int]) -> float:
    """Correct lesions of a split's training folds, each fold by the model that has not seen it; mean over seeds."""
    counts = []
    for seed in seeds:
        count = 0
        for fold in {0, 1, 2} - {split}:
            low, high = sorted((fold, split))
            rows = read_rows(run, f"cnn-inner-{size:05d}-without{low}and{high}-seed{seed}")
            count += sum(row["label"] == row["predicted"] and row["fold"] == str(fold) for row in rows)
        counts.append(count)
    return mean(counts)


class Recount:
    """Every number of the page, by key, as text, from the files of the run alone."""

    def __init__(self, run: Path, classes: tuple[str, ...]) -> None:
        self.run, self.classes = run, classes
        self.config = load_run(run).config
        self.done = set(load_run(run).done)  # what is done is graph.py's to say, and tested there
        self.seeds = self.config.seeds
        self.folds = json.loads((run / "folds.json").read_text())["lesions"]
        self.expected: dict[str, str] = {}
        self.discordance: dict[str, float] = {}
        self.rows = {
            path.parent.name: read_rows(run, path.parent.name)
            for path in (run / "models").glob("*/predictions.csv")
            if path.parent.name in self.done and "-inner-" not in path.parent.name
        }
        self.infos = {name: json.loads((run / "models" / name / "task.json").read_text()) for name in self.rows}
        self._count()

    def _count(self) -> None:
        config, expected = self.config, self.expected
        self._data()
        arms = ["classic", *config.gans]
        if "acgan" in config.gans:
            arms.append("acgan-discriminator")
        arms += ["bovw"] if config.bovw else []
        arms += [
            name
            for name in ("equal-steps", "equal-count", "longer", "synthetic-only", "gan-originals")
            if name in config.controls and ("dcgan" in config.gans or name in ("equal-steps", "longer"))
        ]
        self.groups: dict[tuple[str, int], dict[int, list[str]]] = {}
        for arm in arms:
            for size in sizes_of(config, arm):
                key = f"{arm}.{size}" if arm in ("classic", "dcgan", "acgan", "equal-steps") else arm
                expected[f"{key}.size"] = f"{size:,}"
                self.groups[arm, size] = self._models(key, arm, [size] * 3)
        self._choices()
        self._methods()
        self._steps()
        self._memorised()

    def _data(self) -> None:
        expected, folds = self.expected, self.folds
        expected["data.lesions"] = str(len(folds))
        expected["data.patients"] = str(len({row["patient_id"] for row in folds}))
        for name in self.classes:
            rows = [row for row in folds if row["label"] == name]
            expected[f"data.class.{name}.lesions"] = str(len(rows))
            expected[f"data.class.{name}.patients"] = str(len({row["patient_id"] for row in rows}))
        for fold in range(3):
            rows = [row for row in folds if row["fold"] == fold]
            expected[f"fold.{fold}.lesions"] = str(len(rows))
            expected[f"fold.{fold}.patients"] = str(len({row["patient_id"] for row in rows}))
            for name in self.classes:
                expected[f"fold.{fold}.class.{name}"] = str(sum(row["label"] == name for row in rows))

    def _models(self, key: str, arm: str, sizes: list[int]) -> dict[int, list[str]]:
        """Everything of models that are pooled; returns those of every complete seed."""
        expected, classes = self.expected, self.classes
        names = {seed: [model_name(arm, size, k, seed) for k, size in enumerate(sizes)] for seed in self.seeds}
        there = [name for wanted in names.values() for name in wanted if name in self.rows]
        expected[f"{key}.models"], expected[f"{key}.models_expected"] = str(len(there)), str(3 * len(self.seeds))
        for shown, saved in (
            ("per_lesion", "per_lesion"), ("added_per_fold", "actual_added_per_fold"), ("synthetic", "num_synthetic"),
            ("train_images", "num_train_images"), ("steps", "steps"), ("epochs", "epochs"),
        ):  # fmt: skip
            values = [self.infos[name][saved] for name in there if saved in self.infos[name]]
            if values:
                expected[f"{key}.{shown}.min"], expected[f"{key}.{shown}.max"] = whole(min(values)), whole(max(values))
        if there:
            expected[f"{key}.seconds"] = f"{sum(self.infos[name]['seconds'] for name in there):,.1f}"
        for seed, wanted in names.items():
            for k, name in enumerate(wanted):
                if name in self.rows:
                    part = self.rows[name]
                    hits = sum(row["label"] == row["predicted"] for row in part)
                    place = f"{key}.seed.{seed}.fold.{k}"
                    expected[f"{place}.correct"], expected[f"{place}.total"] = str(hits), str(len(part))
                    expected[f"{place}.accuracy"] = pct(hits / len(part))
        full = {seed: wanted for seed, wanted in names.items() if all(name in self.rows for name in wanted)}
        if not full:
            return {}
        counts: Counter[tuple[str, str]] = Counter()
        shares, n, repeats = [], len(self.folds), len(full)
        for seed, wanted in full.items():
            rows = [row for name in wanted for row in self.rows[name]]
            counts.update((row["label"], row["predicted"]) for row in rows)
            right = sum(row["label"] == row["predicted"] for row in rows)
            expected[f"{key}.seed.{seed}.correct"] = str(right)
            expected[f"{key}.seed.{seed}.accuracy"] = pct(right / n)
            shares.append(right / n)
        expected[f"{key}.seed_deviation"] = "n/a"
        if len(shares) > 1:
            deviation = math.sqrt(sum((share - mean(shares)) ** 2 for share in shares) / (len(shares) - 1))
            expected[f"{key}.seed_deviation"] = pct(deviation)
        correct = sum(counts[c, c] for c in classes) / repeats

        def rate(name: str, count: float, total: int) -> None:
            low, high = wilson(round(count), total)
            expected[name], expected[f"{name}.low"], expected[f"{name}.high"] = pct(count / total), pct(low), pct(high)

        expected[f"{key}.correct"], expected[f"{key}.total"] = whole(correct), str(n)
        rate(f"{key}.accuracy", correct, n)
        sensitivities, specificities, sizes_ = [], [], []
        for true in classes:
            row = [counts[true, guess] / repeats for guess in classes]
            positives = round(sum(row))
            for guess, count in zip(classes, row, strict=True):
                expected[f"{key}.confusion.{true}.{guess}"] = whole(count)
                expected[f"{key}.confusion_share.{true}.{guess}"] = pct(count / positives)
            false_alarms = sum(counts[other, true] for other in classes if other != true) / repeats
            rate(f"{key}.sensitivity.{true}", counts[true, true] / repeats, positives)
            rate(f"{key}.specificity.{true}", n - positives - false_alarms, n - positives)
            sensitivities.append(counts[true, true] / repeats / positives)
            specificities.append((n - positives - false_alarms) / (n - positives))
            sizes_.append(positives)
        expected[f"{key}.weighted_sensitivity"] = expected[f"{key}.accuracy"]
        expected[f"{key}.weighted_specificity"] = pct(
            sum(s * k for s, k in zip(specificities, sizes_, strict=True)) / n
        )
        expected[f"{key}.macro_sensitivity"] = pct(mean(sensitivities))
        expected[f"{key}.macro_specificity"] = pct(mean(specificities))
        return full

    def _choices(self) -> None:
        """By the paper's rule from the test folds, and nested from the inner models; in use as the option says."""
        config, expected = self.config, self.expected
        self.in_use: dict[str, dict[int, int]] = {}
        for arm in ("classic", *config.gans):
            counts = {
                size: mean(correct_of(self.run, arm, size, full))
                for (name, size), full in self.groups.items()
                if name == arm and full
            }
            if not counts:
                continue
            best = min(size for size, count in counts.items() if count == max(counts.values()))
            final = f"choice-{arm}" in self.done
            expected[f"choice.{arm}.paper.size"] = f"{best:,}"
            if arm == "classic":
                expected["optimum.size"], expected["optimum.correct"] = f"{best:,}", whole(counts[best])
            nested: dict[int, int] = {}
            if final:
                for size, count in counts.items():
                    expected[f"choice.{arm}.paper.correct.{size}"] = whole(count)
                for k in range(3) if arm == "classic" else ():
                    inner = {size: inner_correct(self.run, size, k, self.seeds) for size in counts}
                    nested[k] = min(size for size, count in inner.items() if count == max(inner.values()))
                    expected[f"choice.{arm}.nested.{k}.size"] = f"{nested[k]:,}"
                    for size, count in inner.items():
                        expected[f"choice.{arm}.nested.{k}.correct.{size}"] = whole(count)
            use_nested = arm == "classic" and config.choice == "nested"
            self.in_use[arm] = nested if use_nested else dict.fromkeys(range(3), best)
            for k, size in self.in_use[arm].items():
                expected[f"choice.{arm}.in_use.{k}"] = f"{size:,}"

    def _methods(self) -> None:
        config = self.config
        smallest = [config.classic_groups[0]] * 3
        used = {arm: [sizes[k] for k in range(3)] for arm, sizes in self.in_use.items() if sizes}
        wanted: list[tuple[str, str, list[int]]] = []
        if used.get("classic") != smallest:
            wanted.append(("none", "classic", smallest))
        if "classic" in used:
            wanted.append(("cnn-aug", "classic", used["classic"]))
        if "dcgan" in used:
            wanted.append(("cnn-aug-gan", "dcgan", used["dcgan"]))
        if "acgan" in used:
            wanted.append(("acgan", "acgan", used["acgan"]))
        single = {arm for arm, _ in self.groups} - {"classic", "dcgan", "acgan"}
        order = (
            "acgan-discriminator",
            "bovw",
            "equal-steps",
            "equal-count",
            "longer",
            "synthetic-only",
            "gan-originals",
        )
        wanted += [(arm, arm, smallest if arm == "equal-steps" else [0] * 3) for arm in order if arm in single]
        self.methods = {}
        for method, arm, sizes in wanted:
            full = self._models(f"method.{method}", arm, sizes)
            if full:
                self.methods[method] = full
        classic = [(size, full) for (arm, size), full in self.groups.items() if arm == "classic" and full]
        if classic:
            self._family({f"compare.{size}": (classic[0][1], full) for size, full in classic[1:]})
        if "cnn-aug" in self.methods:
            for arm in config.gans:
                groups = {size: full for (name, size), full in self.groups.items() if name == arm and full}
                base = self.methods["cnn-aug"]
                self._family({f"compare.{arm}.{size}": (base, full) for size, full in groups.items()})
        names = list(self.methods)
        self._family(
            {f"pair.{a}.{b}": (self.methods[a], self.methods[b]) for i, a in enumerate(names) for b in names[i + 1 :]}
        )
        key = "pair.cnn-aug.cnn-aug-gan"
        self.expected["paper.difference"] = "+7.1"
        if f"{key}.p" in self.expected:
            discordance = self.discordance[key]
            power = None
            if discordance >= 13 / 182:
                power = power_of_mcnemar(len(self.folds), 13 / 182, discordance, exact=True)
            self.expected[f"{key}.power_at_paper"] = "n/a" if power is None else pct(power)

    def _family(self, family: dict[str, tuple[dict[int, list[str]], dict[int, list[str]]]]) -> None:
        """Second against first, lesion by lesion, and Holm's adjustment of them all."""
        expected, p_values = self.expected, {}
        for key, (first, second) in family.items():
            seeds = [seed for seed in second if seed in first]
            if not seeds:
                continue
            sides = [[self._right(side[seed]) for seed in seeds] for side in (first, second)]
            lesions = sorted(sides[0][0])
            patient = {row["lesion_id"]: row["patient_id"] for row in self.folds}
            before, after = ([[vector[lesion] for lesion in lesions] for vector in side] for side in sides)
            gained = sum(b and not a for a, b in zip(before[0], after[0], strict=True))
            lost = sum(a and not b for a, b in zip(before[0], after[0], strict=True))
            differ, n = gained + lost, len(lesions)
            p_values[key] = binomtest(gained, differ, 0.5).pvalue if differ else 1.0
            interval = interval_of(
                tuple(map(tuple, before)), tuple(map(tuple, after)), tuple(patient[lesion] for lesion in lesions)
            )
            expected[f"{key}.difference"] = points((sum(map(sum, after)) - sum(map(sum, before))) / len(seeds) / n)
            expected[f"{key}.difference.low"], expected[f"{key}.difference.high"] = map(points, interval)
            expected[f"{key}.gained"], expected[f"{key}.lost"] = str(gained), str(lost)
            expected[f"{key}.discordance"] = pct(differ / n)
            self.discordance[key] = differ / n
            expected[f"{key}.needed_lesions"] = needed_of(abs(gained - lost) / n, differ / n)
        adjusted = 0.0
        for i, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
            adjusted = max(adjusted, min(1.0, (len(p_values) - i) * p))
            expected[f"{key}.p"], expected[f"{key}.p_holm"] = format_number(p, "p"), format_number(adjusted, "p")

    def _right(self, names: list[str]) -> dict[str, bool]:
        return {row["lesion_id"]: row["label"] == row["predicted"] for name in names for row in self.rows[name]}

    def _steps(self) -> None:
        expected = self.expected
        expected["run.models"] = str(len(self.rows))
        expected["run.models_expected"] = str(3 * len(self.seeds) * len(self.groups))
        infos = {
            path.parent.name: json.loads(path.read_text())
            for path in self.run.glob("*/*/task.json")
            if path.parent.name in self.done
        }
        planned = Counter(step.stage for step in load_run(self.run).steps)
        expected["run.steps"], expected["run.steps_expected"] = str(len(infos)), str(sum(planned.values()))
        expected["run.seconds"] = f"{sum(info['seconds'] for info in infos.values()):,.1f}"
        for stage, number in planned.items():
            mine = [info["seconds"] for info in infos.values() if info["stage"] == stage]
            expected[f"stage.{stage}.steps"], expected[f"stage.{stage}.steps_expected"] = str(len(mine)), str(number)
            expected[f"stage.{stage}.seconds"] = f"{sum(mine):,.1f}"
        for name, info in infos.items():
            expected[f"step.{name}.seconds"] = f"{info['seconds']:,.1f}"
        for name, rows in self.rows.items():
            info = self.infos[name]
            for key in ("num_train_lesions", "num_train_images", "epochs", "steps"):
                if key in info:
                    expected[f"task.{name}.{key}"] = f"{info[key]:,}"
            expected[f"task.{name}.seconds"] = f"{info['seconds']:,.1f}"
            expected[f"task.{name}.correct"] = str(sum(row["label"] == row["predicted"] for row in rows))
            expected[f"task.{name}.total"] = str(len(rows))

    def _memorised(self) -> None:
        """From evaluation.json, name by name."""
        for path in self.run.glob("memorisation/*/evaluation.json"):
            if path.parent.name not in self.done:
                continue
            kind, split = re.fullmatch(r"memorisation-(.*)-split(\d)", path.parent.name).groups()
            for label, one in json.loads(path.read_text())["classes"].items():
                if "not_measured" in one:
                    continue
                found, copies = one["memorisation"], one["memorisation"]["copies"]
                kid, wanted, spread = one["kid_to_training"], one["classified_as_wanted"], one["diversity"]
                shown = {
                    "training_lesions": (one["num_training_lesions"], str),
                    "held_out_lesions": (one["num_held_out_lesions"], str),
                    "kid.synthetic": (kid["synthetic"], digits),
                    "kid.held_out": (kid["held-out lesions"], digits),
                    "kid.blurred": (kid["blurred training lesions"], digits),
                    "kid.noise": (kid["noise"], digits),
                    "nearer_to_training": (found["nearer_to_training"], pct),
                    "copies.synthetic": (copies["synthetic"], pct),
                    "copies.held_out": (copies["held-out lesions"], pct),
                    "membership.distance": (found["membership_by_distance"], two),
                    "membership.discriminator": (found["membership_by_discriminator"], two),
                    "as_wanted.synthetic": (wanted["synthetic"], pct),
                    "as_wanted.held_out": (wanted["held-out lesions"], pct),
                    "spread.synthetic": (spread["synthetic"]["spread"], digits),
                    "spread.held_out": (spread["held-out lesions"]["spread"], digits),
                }
                for name, (value, style) in shown.items():
                    key = f"memorisation.{kind}.{split}.{label}.{name}"
                    if isinstance(value, dict):
                        self.expected[key] = style(value["value"])
                        self.expected[f"{key}.low"] = style(value["low"])
                        self.expected[f"{key}.high"] = style(value["high"])
                    else:
                        self.expected[key] = style(value)


def digits(value: float) -> str:
    return f"{value:.3g}"


def two(value: float) -> str:
    return f"{value:.2f}"


@functools.cache
def interval_of(before: tuple, after: tuple, patients: tuple) -> tuple[float, float]:
    """By the tested function, on our own vectors."""
    found = bootstrap_difference(before, after, patients, seed=0)
    return found.low, found.high


@functools.cache
def needed_of(change: float, discordance: float) -> str:
    return f"{needed_lesions(change, discordance, exact=True):,}" if change and discordance < 1 else "n/a"


def recount(run: Path, classes: tuple[str, ...]) -> dict[str, str]:
    return Recount(run, classes).expected


def check_numbers(run: Path, page: Page, classes: tuple[str, ...] = CLASSES) -> dict[str, str]:
    """Every number on the page is the one counted here."""
    ours = recount(run, classes)
    for key, texts in page.numbers.items():
        wanted = PAPER if key.startswith("paper.") else ours
        assert texts == {wanted[key]}, key
    return ours


def paper_table(name: str, classes: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> dict[str, str]:
    """Per class: counts of its row of the confusion matrix, or sensitivity and specificity."""
    if len(rows[0]) == 3:
        return {
            f"paper.{name}.confusion.{true}.{guess}": count
            for true, row in zip(classes, rows, strict=True)
            for guess, count in zip(classes, row, strict=True)
        }
    return {
        f"paper.{name}.{measure}.{label}": value
        for label, row in zip(classes, rows, strict=True)
        for measure, value in zip(("sensitivity", "specificity"), row, strict=True)
    }


# The paper's numbers as printed, typed here a second time.
PAPERS = ("cyst", "metastasis", "hemangioma")
PAPER = {
    "paper.lesions": "182",
    "paper.difference": "+7.1",
    "paper.class.cyst.lesions": "53",
    "paper.class.metastasis.lesions": "64",
    "paper.class.hemangioma.lesions": "65",
    "paper.classic.0.correct": "104",
    "paper.classic.0.accuracy": "57.1",
    "paper.classic.500.correct": "130",
    "paper.classic.500.accuracy": "71.4",
    "paper.dcgan.1500.correct": "152",
    "paper.dcgan.1500.accuracy": "83.5",
    **paper_table("CNN-AUG", PAPERS, (("52", "1", "0"), ("2", "44", "18"), ("0", "18", "47"))),
    **paper_table("CNN-AUG-GAN", PAPERS, (("53", "0", "0"), ("2", "52", "10"), ("1", "13", "51"))),
    **paper_table("CNN-AUG", PAPERS, (("98.1", "98.4"), ("68.7", "83.9"), ("72.3", "84.6"))),
    **paper_table("CNN-AUG-GAN", PAPERS, (("100.0", "97.7"), ("81.2", "89.0"), ("78.5", "91.4"))),
    **paper_table("BoVW-MI", PAPERS, (("96.3", "96.9"), ("75.0", "82.2"), ("66.1", "87.2"))),
    "paper.CNN-AUG.macro_sensitivity": "79.7",
    "paper.CNN-AUG.macro_specificity": "89.0",
    "paper.CNN-AUG-GAN.macro_sensitivity": "86.6",
    "paper.CNN-AUG-GAN.macro_specificity": "92.7",
    **{
        f"paper.{name}.{key}": value
        for name, values in {
            "CNN-AUG": ("143", "78.6", "88.4"),
            "CNN-AUG-GAN": ("156", "85.7", "92.4"),
            "BoVW-MI": ("142", "78.0", "88.3"),
            "DCGAN": ("156", "85.7", "92.4"),
            "ACGAN": ("148", "81.3", "90.0"),
            "ACGAN discriminator": ("144", "79.1", "88.8"),
        }.items()
        for key, value in zip(("correct", "weighted_sensitivity", "weighted_specificity"), values, strict=True)
    },
}
# Table III: the counts as printed, what follows from them worked out elsewhere.
PAPER |= {
    "paper.experts.images": "302",
    "paper.experts.real": "182",
    "paper.experts.always_real": "60.3",
    "paper.experts.agreed": "222",
    "paper.experts.agreement": "73.5",
    "paper.experts.agreement.low": "68.3",
    "paper.experts.agreement.high": "78.2",
    "paper.experts.both_right": "185",
    **{
        f"paper.expert{number}.{name}": text
        for number, texts in enumerate(
            (
                ("235", "77.8", "72.8", "82.1", "189", "62.6", "57.0", "67.9", "78.0", "77.5", "0.44", "< 0.0001"),
                ("209", "69.2", "63.8", "74.1", "177", "58.6", "53.0", "64.0", "69.2", "69.2", "0.56", "0.0033"),
            ),
            1,
        )
        for name, text in zip(
            (
                "class.correct", "class.accuracy", "class.accuracy.low", "class.accuracy.high", "origin.correct",
                "origin.accuracy", "origin.accuracy.low", "origin.accuracy.high", "class_real", "class_synthetic",
                "p_always_real", "p_half",
            ),
            texts,
            strict=True,
        )
    },
}  # fmt: skip
METHODS = ("none", "cnn-aug", "cnn-aug-gan", "acgan", "acgan-discriminator", "bovw")
CONTROLS = ("equal-steps", "equal-count", "longer", "synthetic-only", "gan-originals")


@pytest.mark.parametrize(("seeds", "choice"), [((0,), "paper"), ((3, 11, 12), "paper"), ((0,), "nested")])
def test_every_number_equals_a_recount(tmp_path: Path, seeds: tuple[int, ...], choice: str) -> None:
    run = write_run(tmp_path / "run", seeds=seeds, choice=choice)
    page = page_without_figures(run)
    ours = check_numbers(run, page)
    # and the page hides none of the main ones
    headline = {
        f"classic.{size}.{name}" for size in GROUPS for name in ("accuracy", "accuracy.low", "accuracy.high", "correct")
    }
    headline |= {f"{arm}.{size}.accuracy" for arm in ("dcgan", "acgan") for size in SYNTHETIC}
    headline |= {f"equal-steps.{size}.accuracy" for size in GROUPS}
    for method in ("none", "cnn-aug", "cnn-aug-gan", "bovw"):  # Table V, and the smallest group
        key = f"method.{method}"
        headline |= {f"{key}.{name}.{c}" for name in ("sensitivity", "specificity") for c in CLASSES}
        headline |= {f"{key}.macro_sensitivity", f"{key}.weighted_specificity", f"{key}.accuracy.low"}
    for method in ("none", "cnn-aug", "cnn-aug-gan"):  # Tables I and II
        headline |= {f"method.{method}.confusion.{a}.{b}" for a in CLASSES for b in CLASSES}
    headline |= {f"method.{method}.correct" for method in (*METHODS, *CONTROLS)}
    headline |= {f"classic.{size}.seed.{s}.fold.{k}.correct" for size in GROUPS for s in seeds for k in range(3)}
    headline |= {f"compare.{size}.{name}" for size in GROUPS[1:] for name in ("difference", "difference.low", "p_holm")}
    names = (*METHODS, *CONTROLS)
    headline |= {f"pair.{a}.{b}.p_holm" for i, a in enumerate(names) for b in names[i + 1 :]}
    headline |= {f"choice.classic.nested.{k}.size" for k in range(3)}
    headline |= {f"memorisation.{g}.{k}.cyst.nearer_to_training" for g in ("dcgan", "acgan") for k in range(3)}
    assert headline | {key for key in PAPER if ".class." not in key} <= set(page.numbers)
    words = words_of(page)
    assert "There is no reader study of this run" in words
    if choice == "nested":
        assert "In use is the nested choice" in words
        assert len({ours[f"choice.classic.in_use.{k}"] for k in range(3)}) > 1, "the splits should differ in this test"
    else:
        assert "It is the one in use" in words
    assert words.count("two of each are needed") == 2 * 2 * 3


def test_numbers_json_and_tables_equal_the_recount(tmp_path: Path, quick: None) -> None:
    run = write_run(tmp_path / "run", seeds=(0, 1))
    write_report(run)
    ours = recount(run, CLASSES)
    saved = json.loads((run / "report" / "numbers.json").read_text())["numbers"]
    assert {key for key in saved if not key.startswith("paper.")} <= set(ours) | {f"compare.{s}.with" for s in GROUPS}
    for key, text in ours.items():
        styles = ("int", "count", "pct", "seconds", "points", "p", "auc", "small")
        assert text in {format_number(saved[key], style) for style in styles}, key
    tables = {}
    for path in (run / "report" / "tables").glob("*.csv"):
        with path.open(newline="") as stream:
            tables[path.stem] = list(csv.DictReader(stream))

    def key_of(row: dict[str, str]) -> str:
        if row.get("method"):
            return f"method.{row['method']}"
        sized = row["arm"] in ("classic", "dcgan", "acgan", "equal-steps")
        return f"{row['arm']}.{row['group_size']}" if sized else row["arm"]

    num_groups, num_methods = 2 * len(GROUPS) + 2 * len(SYNTHETIC) + 6, len(METHODS) + len(CONTROLS)
    assert len(tables["groups"]) == num_groups
    assert len(tables["confusion"]) == (num_groups + num_methods) * 9
    for row in tables["confusion"]:
        key = f"{key_of(row)}.confusion.{row['true']}.{row['predicted']}"
        assert whole(float(row["count_mean_over_seeds"])) == ours[key]
    for row in tables["measures"]:
        key = f"{key_of(row)}.{row['measure']}.{row['class']}"
        found = [pct(float(row[name])) for name in ("value", "wilson_low", "wilson_high")]
        assert found == [ours[key + end] for end in ("", ".low", ".high")]
    for row in tables["groups"]:
        assert pct(float(row["accuracy"])) == ours[f"{key_of(row)}.accuracy"]
    for row in tables["methods"]:
        assert whole(float(row["correct"])) == ours[f"{key_of(row)}.correct"]
    assert len(tables["pairs"]) == num_methods * (num_methods - 1) // 2
    for row in tables["pairs"]:
        key = f"pair.{row['first']}.{row['second']}"
        assert points(float(row["difference"])) == ours[f"{key}.difference"]
        assert (row["gained"], row["lost"]) == (ours[f"{key}.gained"], ours[f"{key}.lost"])
        assert format_number(float(row["p_holm"]), "p") == ours[f"{key}.p_holm"]
    assert {row["by_the_papers_rule"] for row in tables["choices"] if row["arm"] == "classic"} == {ours["optimum.size"]}
    assert sum(int(row["correct"]) for row in tables["models"] if key_of(row) == "classic.0") == sum(
        int(ours[f"classic.0.seed.{s}.correct"]) for s in (0, 1)
    )
    assert {row["step"] for row in tables["steps"] if row["done"] == "True"} == set(load_run(run).done)
    assert all((run / row["folder"]).is_dir() for row in tables["steps"])


def test_a_changed_prediction_changes_the_page(tmp_path: Path) -> None:
    """The numbers come from the predictions, not from a cache: the recount test can fail."""
    run = write_run(tmp_path / "run", **LITTLE)
    before = page_without_figures(run).numbers["classic.0.correct"]
    path = run / "models" / "cnn-classic-00000-split0-seed0" / "predictions.csv"
    rows = list(csv.reader(path.read_text().splitlines()))
    row = next(row for row in rows[1:] if row[3] == row[4])
    wrong = next(c for c in CLASSES if c != row[3])
    row[4] = wrong
    row[5:] = ["0.8" if c == wrong else "0.1" for c in CLASSES]
    path.write_text("\n".join(",".join(r) for r in rows) + "\n")
    after = page_without_figures(run).numbers["classic.0.correct"]
    assert int(next(iter(after))) == int(next(iter(before))) - 1


def test_the_optimum_is_the_smallest_of_the_best(tmp_path: Path) -> None:
    """Groups 30 and 500 with equal counts: the paper's rule takes 30."""
    page = page_without_figures(write_run(tmp_path / "run", twins=True, **LITTLE))
    assert page.numbers["optimum.size"] == {"30"}


def test_page_is_self_contained_and_accessible(finished: Path) -> None:
    path = finished / "report.html"
    text = path.read_text(encoding="utf-8")
    page = read_page(path)
    for link in page.links:
        assert link.startswith(("#", "data:image/")), link[:60]
    assert not re.search(r"@import|url\(|<script|<link|<iframe|javascript:", text)
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.images
    assert all(len(image["alt"]) > 30 for image in page.images)
    assert page.tags["table"] == page.tags["caption"] > 20
    assert page.unscoped == []
    assert page.tags["html"] == page.tags["title"] == page.tags["h1"] == 1
    assert '<html lang="en">' in text
    assert "@media print" in text
    words = words_of(page)
    # the banner: at the top, on every figure and every table of ours
    assert words.count("Phantom data: synthetic, not patients") >= 2 + 2 * page.tags["figure"]
    for phrase in (
        "sees the test folds",
        "weighted sensitivity = accuracy",
        "private CT data",
        "321:321-331",
        "1803.01229",
        "e200029",
    ):
        assert phrase in words, phrase
    assert "preset tiny" in words
    assert "Some CPU <fast> & cheap" in words  # autoescaped
    assert html.escape("Some CPU <fast> & cheap") in text


def test_every_part_of_the_protocol_has_its_place(finished: Path) -> None:
    page = read_page(finished / "report.html")
    names = ("accuracy", "confusion", "confusion_all", "forest", "maps", "learning", "gan_learning")
    galleries = {f"memorisation-{kind}-split{k}" for kind in ("dcgan", "acgan") for k in range(3)}
    assert {f"figure-{name}" for name in (*names, *galleries)} <= set(page.ids)
    for name in names:
        for ending in ("png", "svg", "pdf"):
            assert (finished / "report" / "figures" / f"{name}.{ending}").stat().st_size > 1000
    # A reduced GAN is said wherever its results are drawn.
    captions = re.findall(r'<figure id="figure-([^"]*)">.*?<figcaption>(.*?)</figcaption>', page_text(finished), re.S)
    for name, caption in captions:
        assert ("Reduced GANs" in caption) == (name not in ("learning", "rois", "sheet")), name
    words = words_of(page)
    assert "To be filled in by the authors." in words
    assert not re.findall(r"[a-z)%]\.[A-Z][a-z]+ ", words), "a space is missing between two sentences"


def page_text(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_checklist_answers_what_the_run_knows(finished: Path) -> None:
    rows = re.findall(
        r'<tr><th scope="row">(\d+)</th><td class="text">', page_text(finished).split('id="checklist"')[1]
    )
    assert [int(row) for row in rows] == list(range(1, 43))


def test_the_readings_show_the_configuration(finished: Path) -> None:
    page = read_page(finished / "report.html")
    config = json.loads((finished / "config.json").read_text())
    assert page.options["image.window_hu"] == "-160, 240"
    assert page.options["plan.n_rot"] == str(config["plan"]["n_rot"])
    assert page.options["classic_groups"] == "0, 30, 500"
    assert page.options["classifier.steps"] == "not set"
    assert page.options["choice"] == "paper"
    assert {"synthetic_groups", "dcgan.loss", "acgan.conditioning", "bovw.mi_rule", "embedding.per_lesion"} <= set(
        page.options
    )
    for key, text in page.options.items():
        value = config
        for part in key.split("."):
            value = value[part]
        assert text.split(", ") == [
            {True: "yes", False: "no", None: "not set"}.get(v, f"{v:g}" if isinstance(v, float) else str(v))
            if not isinstance(v, (int, float)) or isinstance(v, bool)
            else f"{v:g}"
            for v in (value if isinstance(value, list) else [value])
        ], key


def test_reductions_stand_at_the_top(finished: Path) -> None:
    words = words_of(read_page(finished / "report.html"))
    reductions = make_config().reductions
    assert reductions
    place = words.index("1. Summary")
    for line in reductions:
        assert 0 < words.index(line) < place


def test_same_run_same_bytes_and_no_paths(tmp_path: Path) -> None:
    """That equal numbers give equal figures is tested beside the figures."""
    first, again = tmp_path / "first", tmp_path / "elsewhere"
    shutil.copytree(write_run(first, **LITTLE), again)
    pages = []
    for run in (first, again):
        write_report(run)
        files = sorted(path for path in [run / "report.html", *(run / "report").rglob("*")] if path.is_file())
        pages.append({path.relative_to(run): path.read_bytes() for path in files})
        for path in files:
            assert str(tmp_path).encode() not in path.read_bytes(), path
        assert not list(run.rglob("*.tmp"))
    assert pages[0] == pages[1]


@pytest.mark.parametrize("removed", ["one", "group", "gan", "all"])
def test_incomplete_runs_say_what_is_missing(tmp_path: Path, quick: None, removed: str) -> None:
    patterns = {
        "one": "^cnn-classic-00030-split1-seed0",
        "group": "^cnn-classic-00500-",
        "gan": "^gan-dcgan",
        "all": ".",
    }
    run = write_run(tmp_path / "run", seeds=(0, 1), without=patterns[removed])
    page = read_page(write_report(run))
    assert "missing" in page.ids
    words = words_of(page)
    assert "This run is not complete" in words
    assert "Missing steps (" in words
    check_numbers(run, page)
    if removed == "one":  # seed 1 of the group is whole, seed 0 is not
        assert "classic.30.seed.1.correct" in page.numbers
        assert "classic.30.seed.0.correct" not in page.numbers
        assert "classic +30: 5 of 6 models" in words
        assert "(provisional)" in words
    if removed == "group":
        assert "classic.500.accuracy" not in page.numbers
        assert "classic.30.accuracy" in page.numbers
    if removed == "gan":
        assert "pair.cnn-aug.acgan.p" in page.numbers
        assert "method.cnn-aug-gan.correct" not in page.numbers
        assert "No group of DCGAN is complete yet" in words
    if removed == "all":
        assert "No group has all its test folds yet" in words


def test_an_incomplete_run_with_nested_choice_has_no_optimum_in_use(tmp_path: Path, quick: None) -> None:
    run = write_run(tmp_path / "run", choice="nested", without="^choice-classic")
    page = read_page(write_report(run))
    check_numbers(run, page)
    assert "method.none.correct" in page.numbers
    assert "method.cnn-aug.correct" not in page.numbers
    assert "(not made yet)" in words_of(page)


@pytest.mark.parametrize("missing", [tuple(LITTLE), ("bovw",), ("gans",), ("embedding", "memorisation"), ("controls",)])
def test_runs_without_some_parts(tmp_path: Path, quick: None, missing: tuple[str, ...]) -> None:
    run = write_run(tmp_path / "run", **{name: LITTLE[name] for name in missing})
    results = load_run(run)
    assert results.complete()
    page = read_page(write_report(run))
    check_numbers(run, page)
    words = words_of(page)
    assert "missing" not in page.ids
    assert ("This run trains no GANs" in words) == ("gans" in missing)
    assert ("This run has no BoVW-MI baseline" in words) == ("bovw" in missing)
    assert ("This run draws no maps" in words) == ("embedding" in missing)
    assert ("This run has no controls" in words) == ("controls" in missing)
    assert ("bovw.words" in page.options) == ("bovw" not in missing)
    assert ("dcgan.loss" in page.options) == ("gans" not in missing)


def test_one_kind_of_gan_alone(tmp_path: Path, quick: None) -> None:
    run = write_run(tmp_path / "run", gans=("acgan",), controls=("longer",))
    page = read_page(write_report(run))
    check_numbers(run, page)
    assert "pair.cnn-aug.acgan.p" in page.numbers
    assert "method.cnn-aug-gan.correct" not in page.numbers
    assert "acgan.loss" in page.options
    assert "dcgan.loss" not in page.options


def test_other_classes_than_the_papers(tmp_path: Path, quick: None) -> None:
    classes = ("cyst", "a <b> & c", "focal nodular hyperplasia")
    run = write_run(tmp_path / "run", classes=classes, controls=())
    page = read_page(write_report(run))
    check_numbers(run, page, classes)
    assert "not in the paper" in "".join(page.words)


def test_class_names_with_dots_keep_their_numbers_apart(tmp_path: Path, quick: None) -> None:
    classes = ("1", "1.1", "x.low")
    write_report(write_run(tmp_path / "run", classes=classes, **LITTLE))
    numbers = json.loads((tmp_path / "run" / "report" / "numbers.json").read_text())
    values = numbers["numbers"]
    assert numbers["kind"] == "phantom"
    with (tmp_path / "run" / "report" / "tables" / "confusion.csv").open() as stream:
        table = {
            (r["group_size"], r["true"], r["predicted"]): float(r["count_mean_over_seeds"])
            for r in csv.DictReader(stream)
            if r["arm"]
        }
    expected: Counter[tuple[str, str, str]] = Counter()
    for path in (tmp_path / "run" / "models").glob("cnn-classic-*/predictions.csv"):
        size = str(int(path.parent.name.split("-")[2]))
        with path.open() as stream:
            for row in csv.DictReader(stream):
                expected[size, row["label"], row["predicted"]] += 1
    assert {key: count for key, count in table.items() if count} == dict(expected)
    for path in (tmp_path / "run" / "report" / "tables").glob("*.csv"):
        with path.open() as stream:
            assert {row["data"] for row in csv.DictReader(stream)} == {"Phantom data: synthetic, not patients"}, path
    assert sum(key.startswith("classic.0.confusion.") for key in values) == 9


def test_a_damaged_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises((DataError, ConfigError)):
        write_report(tmp_path)
    run = write_run(tmp_path / "run", without="^(synthetic|bovw)")
    for folder, name, text in (
        ("memorisation/memorisation-acgan-split1", "evaluation.json", '{"classes": {}}'),
        ("choices/choice-classic", "choice.json", '{"rule": "paper"}'),
        ("models/cnn-classic-00030-split1-seed0", "predictions.csv", "lesion_id\n"),
    ):
        (run / folder / name).write_text(text)
        with pytest.raises(DataError, match=folder):
            write_report(run)
    assert not (run / "report.html").exists()


def make_rois(n: int = 9, *, kind: str = "phantom", shift: float = 0.0) -> RoiBatch:
    noise = np.random.default_rng(3)
    images, masks, centers, diameters = [], [], [], []
    for i in range(n):
        half = int(1.556 * (14 + 2 * i)) + 5
        y, x = np.mgrid[: 2 * half, : 2 * half] + 0.5
        mask = (x - half) ** 2 + (y - half) ** 2 < (7 + i) ** 2
        images.append((noise.normal(90 + shift, 12, mask.shape) - 50 * mask).astype(np.int16))
        masks.append(mask)
        centers.append((half, half))
        diameters.append(14.0 + 2 * i)
    return RoiBatch.from_images(
        images,
        np.array(centers, dtype=float),
        np.array(diameters),
        labels=[CLASSES[(i // 2) % 3] for i in range(n)],
        classes=CLASSES,
        lesion_ids=[f"lesion-{i:05d}" for i in range(n)],
        patient_ids=[f"patient-{i // 2:05d}" for i in range(n)],
        spacing_mm=(0.7, 0.7),
        masks=masks,
        kind=kind,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lesions of `write_run`, with pixels."""
    folder = tmp_path_factory.mktemp("store") / "rois"
    rois = make_rois(41)
    labels = [(i // 2) % 3 if i < 36 else 0 for i in range(41)]
    rois = RoiBatch.from_images(
        list(rois.images), rois.centers, np.minimum(rois.diameters.numpy(), 30.0), labels=[CLASSES[i] for i in labels],
        classes=CLASSES, lesion_ids=rois.lesion_ids, patient_ids=rois.patient_ids, spacing_mm=(0.7, 0.7),
        masks=list(rois.masks), kind="phantom",
    )  # fmt: skip
    save_rois(rois, folder)
    return folder


def test_pictures_are_those_of_the_runs_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    save_rois(make_rois(), store)
    save_rois(make_rois(shift=5.0), tmp_path / "other")
    # No figures but the pictures are drawn: they take time and are not what this is about.
    more = {**LITTLE, "plan": SMALL_PLAN, "classic_groups": (0, 30)}
    run = write_run(tmp_path / "run", store_sha256=manifest_sha256(store), without="^(cnn|bovw)", **more)
    without = read_page(write_report(run))
    assert "lesionaug report RUN --rois STORE" in "".join(without.words)
    assert not pictures_are_whole(run)

    with pytest.raises(DataError, match="not the one the run was made from"):
        write_report(run, tmp_path / "other")
    assert not (run / "pictures").exists()

    seen = []
    with_pictures = read_page(write_report(run, store, lambda done, total, text: seen.append((done, total))))
    assert len(with_pictures.images) == len(without.images) + 2
    assert seen[-1][0] == seen[-1][1]
    assert pictures_are_whole(run)
    first = (run / "report.html").read_bytes()
    write_report(run)  # the saved pictures are used again
    assert (run / "report.html").read_bytes() == first

    info = json.loads((run / "pictures" / "pictures.json").read_text())
    assert set(info["lesions"]) == set(CLASSES)
    assert str(tmp_path) not in json.dumps(info)
    (run / "pictures" / "rois.png").write_bytes(b"cut short")
    assert len(read_page(write_report(run)).images) == len(without.images)
    write_pictures(run, store)
    write_report(run)
    assert (run / "report.html").read_bytes() == first


def test_synthetic_rois_stand_beside_training_lesions(tmp_path: Path, quick: None, store: Path) -> None:
    """Fig. 6; drawn again where the run's synthetic ROIs are others now, and never in the shared report."""
    run = write_run(
        tmp_path / "run", store_sha256=manifest_sha256(store), bovw=None, controls=(), embedding=None, plan=SMALL_PLAN,
        classic_groups=(0, 30),
    )  # fmt: skip
    page = read_page(write_report(run, store))
    assert {"figure-rois", "figure-augmentation", "figure-synthetic"} <= set(page.ids)
    assert pictures_are_whole(run)
    shared = write_report(run, share=True)
    check_shared(run, shared, {"accuracy", "confusion", "confusion_all", "forest", "learning", "gan_learning"})
    path = run / "pictures" / "pictures.json"
    info = json.loads(path.read_text())
    info["synthetic"] = dict.fromkeys(info["synthetic"], "another")
    path.write_text(json.dumps(info))
    assert not pictures_are_whole(run)
    results = load_run(run)
    assert "figure-synthetic" not in Page(render(results, collect_numbers(results), {})).ids


def check_shared(run: Path, page: Path, figures: set[str]) -> None:
    """No image of a patient or of a GAN, no name of a lesion or patient: in the page and in every file beside it."""
    assert page == run / "report-share.html"
    text = page.read_text(encoding="utf-8")
    assert "data:image/png" not in text
    shown = Page(text)
    assert {f"figure-{name}" for name in figures} == {name for name in shown.ids if name.startswith("figure-")}
    assert "Shared version" in words_of(shown)
    check_numbers(run, shown)
    found = [path for path in (run / "report-share").rglob("*") if path.is_file()]
    assert {path.stem for path in found if path.parent.name == "figures"} == figures
    names = {name for row in json.loads((run / "folds.json").read_text())["lesions"] for name in row.values()}
    names = {name for name in names if str(name).startswith(("lesion-", "patient-"))}
    assert len(names) == 41 + 21
    for path in (page, *found):
        content = path.read_bytes()
        assert not [name for name in names if name.encode() in content], path


def test_the_shared_report_leaves_patients_out(tmp_path: Path, quick: None, finished: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("report", "report.html"))
    (run / "report-share" / "figures").mkdir(parents=True)
    (run / "report-share" / "figures" / "rois.png").write_bytes(ONE_PIXEL)  # as if from elsewhere
    figures = {"accuracy", "confusion", "confusion_all", "forest", "maps", "learning", "gan_learning"}
    check_shared(run, write_report(run, share=True), figures)
    assert not (run / "report.html").exists()
    for name in figures:  # the same drawings, rendered
        assert not re.search("lesion-0|patient-0", (finished / "report" / "figures" / f"{name}.svg").read_text()), name


def test_command_prints_the_path_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cyclopts

    from lesionaug.cli import report

    run = write_run(tmp_path / "run", without=".", **LITTLE)
    app = cyclopts.App(name="lesionaug", result_action="return_value")
    report.register(app)
    app(["report", str(run)])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert (run / "report.html").exists()
    app(["report", str(run), "--share"])
    assert capsys.readouterr().out.strip() == str(run / "report-share.html")
    with pytest.raises(DataError):
        app(["report", str(tmp_path)])
