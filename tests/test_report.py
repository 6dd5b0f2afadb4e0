"""The report: every number equals a recount from the saved predictions; the page is self-contained and accessible."""

from __future__ import annotations

import csv
import html
import json
import math
import random
import re
import shutil
from collections import Counter, defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import manifest_sha256, save_rois
from lesionaug.errors import ConfigError, DataError
from lesionaug.evaluation.statistics import bootstrap_difference, needed_lesions
from lesionaug.experiment.config import resolve_config
from lesionaug.experiment.numbers import collect_numbers
from lesionaug.experiment.pictures import write_pictures
from lesionaug.experiment.report import format_number, render, write_report
from lesionaug.experiment.results import config_sha256, load_run

CLASSES = ("cyst", "hemangioma", "metastasis")  # a store's order need not be the paper's
GROUPS = (0, 30, 500)
VOID = {"meta", "img", "br", "link", "hr", "input"}


def write_run(folder: Path, *, seeds: tuple[int, ...] = (0,), store_sha256: str = "ab" * 32, classes=CLASSES) -> Path:
    """A finished run in the format of a run directory, with predictions that are right more often in larger groups."""
    draw = random.Random(7)
    config = resolve_config("tiny", classic_groups=GROUPS, seeds=seeds)
    lesions = []
    for i in range(41):
        patient = f"p{i // 2:03d}"  # two lesions each
        lesions.append(
            {
                "lesion_id": f"les{i:03d}",
                "patient_id": patient,
                "label": classes[(i // 2) % 3 if i < 36 else 0],
                "fold": (i // 6) % 3,
            }
        )
    folder.mkdir()
    counts = Counter(lesion["label"] for lesion in lesions)

    def write(name: str, value: object) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")

    write("config.json", config.model_dump(mode="json"))
    write("folds.json", {"schema": 1, "num_folds": 3, "seed": 0, "lesions": lesions})
    write(
        "run.json",
        {
            "schema": 1,
            "kind": "phantom",
            "store": {
                "manifest_sha256": store_sha256,
                "num_lesions": len(lesions),
                "num_patients": len({lesion["patient_id"] for lesion in lesions}),
                "classes": list(classes),
                "class_counts": dict(counts),
            },
            "versions": {"lesionaug": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
            "machine": {"cpu": "Some CPU <fast> & cheap", "cores": 2, "device": "cpu"},
            "command": "run --preset tiny",
        },
    )
    for size in GROUPS:
        per_lesion = round(3 * size / len(lesions))
        for split in range(3):
            test = [lesion for lesion in lesions if lesion["fold"] == split]
            train = len(lesions) - len(test)
            for seed in seeds:
                name = f"cnn-classic-{size:05d}-split{split}-seed{seed}"
                task = folder / "models" / name
                task.mkdir(parents=True)
                rows = []
                for lesion in test:
                    right = draw.random() < (0.45 if size == 0 else 0.75)
                    guess = lesion["label"] if right else draw.choice([c for c in classes if c != lesion["label"]])
                    chances = [0.6 if c == guess else 0.2 for c in classes]
                    rows.append([lesion["lesion_id"], lesion["patient_id"], split, lesion["label"], guess, *chances])
                with (task / "predictions.csv").open("w", newline="") as stream:
                    writer = csv.writer(stream, lineterminator="\n")
                    writer.writerow(
                        ["lesion_id", "patient_id", "fold", "label", "predicted", *(f"p_{c}" for c in classes)]
                    )
                    writer.writerows(rows)
                (task / "history.csv").write_text(
                    "epoch,loss,train_accuracy\n"
                    + "".join(f"{e},{1.1 * 0.9**e:.6f},{1 - 0.6 * 0.9**e:.6f}\n" for e in range(1, 9))
                )
                write(
                    f"models/{name}/task.json",
                    {
                        "schema": 1,
                        "task": name,
                        "arm": "classic",
                        "group_size": size,
                        "per_lesion": per_lesion,
                        "num_train_lesions": train,
                        "num_train_images": train * (1 + per_lesion),
                        "actual_added_per_fold": round(per_lesion * train / 2, 1),
                        "split": split,
                        "seed": seed,
                        "config_sha256": config_sha256(config),
                        "epochs": 8,
                        "steps": 12,
                        "seconds": 1.25 + split,
                        "train_mean": 0.5,
                        "num_parameters": 1000,
                        "device": "cpu",
                        "threads": 1,
                        "versions": {},
                    },
                )
    return folder


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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report, for tests that change nothing in it."""
    run = write_run(tmp_path_factory.mktemp("finished") / "run")
    write_report(run)
    return run


# --- an own recount in plain Python: csv, collections and the textbook formula of Wilson's interval


def wilson(count: float, total: int) -> tuple[float, float]:
    z = 1.959963984540054
    p = count / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return middle - half, middle + half


def pct(value: float) -> str:
    return f"{100 * value:.1f}"


def whole(value: float) -> str:
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 else f"{value:,.1f}"


def recount(run: Path, classes: tuple[str, ...]) -> dict[str, str]:
    """Every number of the page, by key, as text, from the files of the run alone."""
    expected: dict[str, str] = {}
    models = {path.name: path for path in (run / "models").iterdir()}
    by_group: dict[int, dict[int, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    infos: dict[int, list[dict[str, object]]] = defaultdict(list)
    fold_rows: dict[tuple[int, int, int], list[dict[str, str]]] = {}
    seconds = 0.0
    for name, folder in models.items():
        size, split, seed = (
            int(part) for part in re.fullmatch(r"cnn-classic-(\d+)-split(\d+)-seed(\d+)", name).groups()
        )
        with (folder / "predictions.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        info = json.loads((folder / "task.json").read_text())
        infos[size].append(info)
        by_group[size][seed] += rows
        fold_rows[size, seed, split] = rows
        seconds += info["seconds"]
        right = sum(row["label"] == row["predicted"] for row in rows)
        for key in ("num_train_lesions", "num_train_images", "epochs", "steps"):
            expected[f"task.{name}.{key}"] = f"{info[key]:,}"
        expected[f"task.{name}.seconds"] = f"{info['seconds']:,.1f}"
        expected[f"task.{name}.correct"], expected[f"task.{name}.total"] = str(right), str(len(rows))
    folds = json.loads((run / "folds.json").read_text())["lesions"]
    config = json.loads((run / "config.json").read_text())
    seeds = config["seeds"]
    expected["data.lesions"] = str(len(folds))
    expected["data.patients"] = str(len({row["patient_id"] for row in folds}))
    for name in classes:
        rows = [row for row in folds if row["label"] == name]
        expected[f"data.class.{name}.lesions"] = str(len(rows))
        expected[f"data.class.{name}.patients"] = str(len({row["patient_id"] for row in rows}))
    for fold in range(3):
        rows = [row for row in folds if row["fold"] == fold]
        expected[f"fold.{fold}.lesions"] = str(len(rows))
        expected[f"fold.{fold}.patients"] = str(len({row["patient_id"] for row in rows}))
        for name in classes:
            expected[f"fold.{fold}.class.{name}"] = str(sum(row["label"] == name for row in rows))
    expected["run.models"] = str(len(models))
    expected["run.models_expected"] = str(3 * len(seeds) * len(config["classic_groups"]))
    expected["run.seconds"] = f"{seconds:,.1f}"
    best: tuple[float, int] | None = None
    for size in config["classic_groups"]:
        key = f"classic.{size}"
        expected[f"{key}.size"] = f"{size:,}"
        expected[f"{key}.models"], expected[f"{key}.models_expected"] = str(len(infos[size])), str(3 * len(seeds))
        for shown, saved in (
            ("per_lesion", "per_lesion"),
            ("added_per_fold", "actual_added_per_fold"),
            ("train_images", "num_train_images"),
            ("steps", "steps"),
        ):
            values = [info[saved] for info in infos[size]]
            if values:
                expected[f"{key}.{shown}.min"], expected[f"{key}.{shown}.max"] = whole(min(values)), whole(max(values))
        full = [seed for seed in seeds if all((size, seed, split) in fold_rows for split in range(3))]
        if not full:
            continue
        counts: Counter[tuple[str, str]] = Counter()
        for seed in full:
            rows = by_group[size][seed]
            counts.update((row["label"], row["predicted"]) for row in rows)
            right = sum(row["label"] == row["predicted"] for row in rows)
            expected[f"{key}.seed.{seed}.correct"], expected[f"{key}.seed.{seed}.accuracy"] = (
                str(right),
                pct(right / len(rows)),
            )
            for split in range(3):
                part = fold_rows[size, seed, split]
                hits = sum(row["label"] == row["predicted"] for row in part)
                place = f"{key}.seed.{seed}.fold.{split}"
                expected[f"{place}.correct"], expected[f"{place}.total"] = str(hits), str(len(part))
                expected[f"{place}.accuracy"] = pct(hits / len(part))
        n, repeats = len(folds), len(full)
        correct = sum(counts[c, c] for c in classes) / repeats
        if best is None or correct > best[0]:
            best = (correct, size)

        def rate(name: str, count: float, total: int) -> None:
            low, high = wilson(round(count), total)
            expected[name], expected[f"{name}.low"], expected[f"{name}.high"] = pct(count / total), pct(low), pct(high)

        expected[f"{key}.correct"], expected[f"{key}.total"] = whole(correct), str(n)
        rate(f"{key}.accuracy", correct, n)
        sensitivities, specificities, sizes = [], [], []
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
            sizes.append(positives)
        expected[f"{key}.weighted_sensitivity"] = expected[f"{key}.accuracy"]
        expected[f"{key}.weighted_specificity"] = pct(sum(s * k for s, k in zip(specificities, sizes, strict=True)) / n)
        expected[f"{key}.macro_sensitivity"] = pct(sum(sensitivities) / len(classes))
        expected[f"{key}.macro_specificity"] = pct(sum(specificities) / len(classes))
    complete = {
        size: [s for s in seeds if all((size, s, split) in fold_rows for split in range(3))]
        for size in config["classic_groups"]
    }
    compare(expected, by_group, {size: full for size, full in complete.items() if full})
    if best:
        expected["optimum.size"], expected["optimum.correct"] = f"{best[1]:,}", whole(best[0])
    return expected


def compare(expected: dict[str, str], by_group: Any, complete: dict[int, list[int]]) -> None:
    """Every group against the smallest, by textbook formulas; intervals by the tested function, on our own vectors."""

    def right(size: int, seed: int) -> dict[str, bool]:
        return {row["lesion_id"]: row["label"] == row["predicted"] for row in by_group[size][seed]}

    (base, *others) = complete or [None]
    p_values = {}
    for size in complete:
        shares = [sum(right(size, seed).values()) / len(right(size, seed)) for seed in complete[size]]
        expected[f"classic.{size}.seed_deviation"] = "n/a"
        if len(shares) > 1:
            mean = sum(shares) / len(shares)
            deviation = math.sqrt(sum((share - mean) ** 2 for share in shares) / (len(shares) - 1))
            expected[f"classic.{size}.seed_deviation"] = pct(deviation)
    for size in others:
        seeds = [seed for seed in complete[size] if seed in complete[base]]
        if not seeds:
            continue
        lesions = sorted(right(base, seeds[0]))
        patient = {row["lesion_id"]: row["patient_id"] for row in by_group[base][seeds[0]]}
        sides = [[[right(group, seed)[lesion] for lesion in lesions] for seed in seeds] for group in (base, size)]
        gained = sum(b and not a for a, b in zip(sides[0][0], sides[1][0], strict=True))
        lost = sum(a and not b for a, b in zip(sides[0][0], sides[1][0], strict=True))
        differ, n, key = gained + lost, len(lesions), f"compare.{size}"
        tail = sum(math.comb(differ, k) for k in range(min(gained, lost) + 1)) / 2**differ
        p_values[key] = min(1.0, 2 * tail)
        interval = bootstrap_difference(*sides, [patient[lesion] for lesion in lesions], seed=0)
        mean = sum(map(sum, sides[1])) / len(seeds) / n - sum(map(sum, sides[0])) / len(seeds) / n
        expected[f"{key}.difference"] = f"{100 * mean:+.1f}"
        expected[f"{key}.difference.low"] = f"{100 * interval.low:+.1f}"
        expected[f"{key}.difference.high"] = f"{100 * interval.high:+.1f}"
        expected[f"{key}.gained"], expected[f"{key}.lost"] = str(gained), str(lost)
        change, discordance = abs(gained - lost) / n, differ / n
        needed = "n/a"
        if change:
            needed = f"{needed_lesions(change, discordance, exact=True):,}"
        expected[f"{key}.needed_lesions"] = needed
    adjusted = 0.0
    for i, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        adjusted = max(adjusted, min(1.0, (len(p_values) - i) * p))
        expected[f"{key}.p"], expected[f"{key}.p_holm"] = format_number(p, "p"), format_number(adjusted, "p")


# The paper's numbers as printed, typed here a second time.
PAPER = {
    "paper.lesions": "182",
    "paper.class.cyst.lesions": "53",
    "paper.class.metastasis.lesions": "64",
    "paper.class.hemangioma.lesions": "65",
    "paper.classic.0.correct": "104",
    "paper.classic.0.accuracy": "57.1",
    "paper.classic.500.correct": "130",
    "paper.classic.500.accuracy": "71.4",
    "paper.CNN-AUG.sensitivity.cyst": "98.1",
    "paper.CNN-AUG.sensitivity.metastasis": "68.7",
    "paper.CNN-AUG.sensitivity.hemangioma": "72.3",
    "paper.CNN-AUG.specificity.cyst": "98.4",
    "paper.CNN-AUG.specificity.metastasis": "83.9",
    "paper.CNN-AUG.specificity.hemangioma": "84.6",
    "paper.CNN-AUG.macro_sensitivity": "79.7",
    "paper.CNN-AUG.macro_specificity": "89.0",
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


@pytest.mark.parametrize("seeds", [(0,), (3, 11, 12)])
def test_every_number_equals_a_recount(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    run = write_run(tmp_path / "run", seeds=seeds)
    page = page_without_figures(run)
    ours = recount(run, CLASSES)
    for key, texts in page.numbers.items():
        wanted = PAPER if key.startswith("paper.") else ours
        assert texts == {wanted[key]}, key
    # and the page hides none of the main ones
    headline = {
        f"classic.{size}.{name}" for size in GROUPS for name in ("accuracy", "accuracy.low", "accuracy.high", "correct")
    }
    optimum = ours["optimum.size"].replace(",", "")
    for size in ("0", optimum):
        headline |= {f"classic.{size}.{name}.{c}" for name in ("sensitivity", "specificity") for c in CLASSES}
        headline |= {f"classic.{size}.confusion.{a}.{b}" for a in CLASSES for b in CLASSES}
        headline |= {f"classic.{size}.macro_sensitivity", f"classic.{size}.weighted_specificity"}
    headline |= {f"classic.{size}.seed.{s}.fold.{k}.correct" for size in GROUPS for s in seeds for k in range(3)}
    headline |= {f"compare.{size}.{name}" for size in GROUPS[1:] for name in ("difference", "difference.low", "p_holm")}
    assert headline | {key for key in PAPER if ".class." not in key} <= set(page.numbers)


def test_numbers_json_and_tables_equal_the_recount(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seeds=(0, 1))
    write_report(run)
    ours = recount(run, CLASSES)
    saved = json.loads((run / "report" / "numbers.json").read_text())["numbers"]
    for key, text in ours.items():
        styles = {format_number(saved[key], style) for style in ("int", "count", "pct", "seconds", "points", "p")}
        assert text in styles, key
    with (run / "report" / "tables" / "confusion.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(GROUPS) * 9
    for row in rows:
        key = f"classic.{row['group_size']}.confusion.{row['true']}.{row['predicted']}"
        assert whole(float(row["count_mean_over_seeds"])) == ours[key]
    with (run / "report" / "tables" / "measures.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            key = f"classic.{row['group_size']}.{row['measure']}.{row['class']}"
            assert [pct(float(row[c])) for c in ("value", "wilson_low", "wilson_high")] == [
                ours[key + e] for e in ("", ".low", ".high")
            ]
    with (run / "report" / "tables" / "groups.csv").open(newline="") as stream:
        assert [pct(float(row["accuracy"])) for row in csv.DictReader(stream)] == [
            ours[f"classic.{g}.accuracy"] for g in GROUPS
        ]
    with (run / "report" / "tables" / "models.csv").open(newline="") as stream:
        assert sum(int(row["correct"]) for row in csv.DictReader(stream) if row["group_size"] == "0") == sum(
            int(ours[f"classic.0.seed.{s}.correct"]) for s in (0, 1)
        )


def test_a_changed_prediction_changes_the_page(tmp_path: Path) -> None:
    """The numbers come from the predictions, not from a cache: the recount test can fail."""
    run = write_run(tmp_path / "run")
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
    run = write_run(tmp_path / "run")
    for split in range(3):
        source = run / "models" / f"cnn-classic-00030-split{split}-seed0" / "predictions.csv"
        shutil.copy(source, run / "models" / f"cnn-classic-00500-split{split}-seed0" / "predictions.csv")
    page = page_without_figures(run)
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
    assert page.tags["table"] == page.tags["caption"] > 5
    assert page.unscoped == []
    assert page.tags["html"] == page.tags["title"] == page.tags["h1"] == 1
    assert '<html lang="en">' in text
    assert "@media print" in text
    words = re.sub(r"\s+", " ", "".join(page.words))
    # the banner: at the top, on every figure and every table of ours
    assert words.count("Phantom data: synthetic, not patients") >= 2 + 2 * page.tags["figure"]
    for phrase in (
        "sees the test folds",
        "weighted sensitivity = accuracy",
        "private CT data",
        "321:321-331",
        "1803.01229",
    ):
        assert phrase in words, phrase
    assert "preset tiny" in words
    assert "Some CPU <fast> & cheap" in words  # autoescaped
    assert html.escape("Some CPU <fast> & cheap") in text


def test_the_readings_show_the_configuration(finished: Path) -> None:
    page = read_page(finished / "report.html")
    config = json.loads((finished / "config.json").read_text())
    assert page.options["image.window_hu"] == "-160, 240"
    assert page.options["plan.n_rot"] == str(config["plan"]["n_rot"])
    assert page.options["classic_groups"] == "0, 30, 500"
    assert page.options["classifier.steps"] == "12"
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
    text = read_page(finished / "report.html")
    words = " ".join("".join(text.words).split())
    reductions = resolve_config("tiny", classic_groups=GROUPS).reductions
    assert reductions
    place = words.index("1. Summary")
    for line in reductions:
        assert 0 < words.index(line) < place


def test_same_run_same_bytes_and_no_paths(finished: Path, tmp_path: Path) -> None:
    again = write_run(tmp_path / "elsewhere")
    write_report(again)
    pages = []
    for run in (finished, again):
        files = sorted(path for path in [run / "report.html", *(run / "report").rglob("*")] if path.is_file())
        pages.append({path.relative_to(run): path.read_bytes() for path in files})
        for path in files:
            assert str(run.parent).encode() not in path.read_bytes(), path
        assert not list(run.rglob("*.tmp"))
    assert pages[0] == pages[1]
    assert {path.name for path in pages[0]} >= {
        "accuracy.svg",
        "accuracy.png",
        "confusion.svg",
        "learning.svg",
        "numbers.json",
    }


@pytest.mark.parametrize("removed", ["one", "group", "all"])
def test_incomplete_runs_say_what_is_missing(tmp_path: Path, removed: str) -> None:
    run = write_run(tmp_path / "run", seeds=(0, 1))
    patterns = {"one": "cnn-classic-00030-split1-seed0", "group": "cnn-classic-00500-*", "all": "*"}
    for folder in list((run / "models").glob(patterns[removed])):
        shutil.rmtree(folder)
    page = read_page(write_report(run)) if removed == "all" else page_without_figures(run)
    assert "missing" in page.ids
    words = " ".join("".join(page.words).split())
    assert "This run is not complete" in words
    ours = recount(run, CLASSES)
    for key, texts in page.numbers.items():
        assert texts == {(PAPER if key.startswith("paper.") else ours)[key]}, key
    if removed == "one":  # seed 1 of the group is whole, seed 0 is not
        assert "classic.30.seed.1.correct" in page.numbers
        assert "classic.30.seed.0.correct" not in page.numbers
        assert "30: 5 of 6 models" in words
    if removed == "group":
        assert "classic.500.accuracy" not in page.numbers
        assert "classic.30.accuracy" in page.numbers
    if removed == "all":
        assert "No group has all its test folds yet" in words


def test_other_classes_than_the_papers(tmp_path: Path) -> None:
    classes = ("cyst", "a <b> & c", "focal nodular hyperplasia")
    run = write_run(tmp_path / "run", classes=classes)
    page = page_without_figures(run)
    ours = recount(run, classes)
    for key, texts in page.numbers.items():
        assert texts == {(PAPER if key.startswith("paper.") else ours)[key]}, key
    assert "not in the paper" in "".join(page.words)


def test_class_names_with_dots_keep_their_numbers_apart(tmp_path: Path) -> None:
    classes = ("1", "1.1", "x.low")
    write_report(write_run(tmp_path / "run", classes=classes))
    numbers = json.loads((tmp_path / "run" / "report" / "numbers.json").read_text())
    values = numbers["numbers"]
    assert numbers["kind"] == "phantom"
    with (tmp_path / "run" / "report" / "tables" / "confusion.csv").open() as stream:
        table = {
            (r["group_size"], r["true"], r["predicted"]): float(r["count_mean_over_seeds"])
            for r in csv.DictReader(stream)
        }
    expected: Counter[tuple[str, str, str]] = Counter()
    for path in (tmp_path / "run" / "models").glob("*/predictions.csv"):
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
    run = write_run(tmp_path / "run")
    (run / "models" / "cnn-classic-00030-split1-seed0" / "predictions.csv").write_text("lesion_id\n")
    with pytest.raises(DataError, match="cnn-classic-00030-split1-seed0"):
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
        labels=[CLASSES[i % 3] for i in range(n)],
        classes=CLASSES,
        lesion_ids=[f"{i:02x}" * 8 for i in range(n)],
        patient_ids=[f"p{i}" for i in range(n)],
        spacing_mm=(0.7, 0.7),
        masks=masks,
        kind=kind,
    )


def test_pictures_are_those_of_the_runs_store(tmp_path: Path) -> None:
    save_rois(make_rois(), tmp_path / "store")
    save_rois(make_rois(shift=5.0), tmp_path / "other")
    run = write_run(tmp_path / "run", store_sha256=manifest_sha256(tmp_path / "store"))
    shutil.rmtree(run / "models")  # no other figures are drawn: they take time and are not what this is about
    without = read_page(write_report(run))
    assert "lesionaug report RUN --rois STORE" in "".join(without.words)

    with pytest.raises(DataError, match="not the one the run was made from"):
        write_report(run, tmp_path / "other")
    assert not (run / "pictures").exists()

    seen = []
    with_pictures = read_page(
        write_report(run, tmp_path / "store", lambda done, total, text: seen.append((done, total)))
    )
    assert len(with_pictures.images) == len(without.images) + 2
    assert seen[-1][0] == seen[-1][1]
    first = (run / "report.html").read_bytes()
    write_report(run)  # the saved pictures are used again
    assert (run / "report.html").read_bytes() == first

    info = json.loads((run / "pictures" / "pictures.json").read_text())
    assert set(info["lesions"]) == set(CLASSES)
    assert str(tmp_path) not in json.dumps(info)
    (run / "pictures" / "rois.png").write_bytes(b"cut short")
    assert len(read_page(write_report(run)).images) == len(without.images)
    write_pictures(run, tmp_path / "store")
    write_report(run)
    assert (run / "report.html").read_bytes() == first


def test_command_prints_the_path_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cyclopts

    from lesionaug.cli import report

    run = write_run(tmp_path / "run")
    shutil.rmtree(run / "models")
    app = cyclopts.App(name="lesionaug", result_action="return_value")
    report.register(app)
    app(["report", str(run)])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert (run / "report.html").exists()
    with pytest.raises(DataError):
        app(["report", str(tmp_path)])
