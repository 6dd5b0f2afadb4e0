"""The analysis of a reader study: a recount of its files, what does not count, what is not defined, what stays out."""

from __future__ import annotations

import csv
import json
import random
import sqlite3
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lesionaug.cli import main
from lesionaug.errors import ConfigError, DataError
from lesionaug.evaluation.statistics import bootstrap_difference, mcnemar
from lesionaug.experiment.numbers import collect_numbers
from lesionaug.experiment.report import render, write_report
from lesionaug.experiment.results import load_run
from lesionaug.experiment.study_results import read_study, study_of_run
from lesionaug.study.analysis import analyse_study, summarise
from lesionaug.study.analysis_page import render_analysis
from lesionaug.study.answers import Answer, AnswerBook, read_answers
from lesionaug.study.export import export_study
from lesionaug.study.files import TruthItem, load_study, load_truth
from tests.answered_studies import CLASSES, make_items, make_study
from tests.studies import small_study
from tests.test_report import ONE_PIXEL, Page, words_of, write_run

ITEMS = make_items(24, 18, 4)
MARK = "=cmd|'/C calc'!A0 <script>alert(1)</script> Dr. Smith"


def say(reader: int, task: str, item: TruthItem, repeat: bool) -> int:
    """Right more often than not, otherwise at random; a reader's own, and another at a repeat."""
    draw = random.Random(f"{reader} {task} {item.item} {repeat}")
    if task == "class":
        return CLASSES.index(item.class_name) if draw.random() < 0.7 else draw.randrange(3)
    return min(6, max(1, round(draw.gauss(4.2 if item.origin == "real" else 3.0, 1.4))))


def two_keys(reader: int, task: str, item: TruthItem, repeat: bool) -> int:
    choice = say(reader, task, item, repeat)
    return int(choice >= 4) if task == "origin" else choice


def summary(study: Path) -> dict[str, Any]:
    found = load_study(study)
    return summarise(found, load_truth(found), read_answers(found))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn but not rendered, which takes most of the time."""
    for name, content in (("svg", "<svg/>"), ("png", ONE_PIXEL), ("pdf", b"%PDF-")):
        for module in ("experiment.report_figures", "experiment.pictures", "study.figures"):
            monkeypatch.setattr(f"lesionaug.{module}.figure_{name}", lambda *a, c=content, **k: c)


# --- an own recount, from the files alone


def recount(study: Path, reader: int, task: str) -> tuple[dict[int, int], dict[int, int], list[float]]:
    """First and second answers by item, and the seconds of the first."""
    orders = json.loads((study / "orders.json").read_text())["slots"]
    with sqlite3.connect(study / "answers.sqlite3") as connection:
        slot = connection.execute("SELECT slot FROM readers WHERE reader = ?", (reader,)).fetchone()[0]
        rows = connection.execute(
            "SELECT trial, item, choice, response_ms FROM answers WHERE reader = ? AND task = ? "
            "ORDER BY trial, revision",
            (reader, task),
        ).fetchall()
    connection.close()
    first: dict[int, int] = {}
    again: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for trial, item, choice, milliseconds in rows:
        asked = orders[slot][trial]
        assert (asked["task"], asked["item"]) == (task, item)
        if asked["practice"]:
            continue
        if asked["repeat"]:
            again[item] = choice
        else:
            first[item] = choice
            seconds.setdefault(item, milliseconds / 1000)
    return first, again, list(seconds.values())


@pytest.mark.parametrize("order", ["separate", "combined"])
def test_every_count_equals_a_recount(tmp_path: Path, order: str) -> None:
    study = make_study(tmp_path / "study", ITEMS, say, num_readers=2, num_repeats=6, order=order)
    found = summary(study)
    assert (found["design"]["num_real"], found["design"]["num_synthetic"]) == (24, 18)
    real = {item.item: item.origin == "real" for item in ITEMS}
    label = {item.item: CLASSES.index(item.class_name) for item in ITEMS}
    origin_of: dict[int, dict[int, int]] = {}
    class_of: dict[int, dict[int, int]] = {}
    for number in (1, 2):
        one = found["readers"][str(number)]
        first, again, seconds = recount(study, number, "origin")
        origin_of[number] = first
        assert len(first) == one["origin"]["items"] == 42
        assert len(again) == one["origin"]["repeats"]["agreed"]["total"] == 6
        counts = Counter((real[item], choice >= 4) for item, choice in first.items())
        origin = one["origin"]
        assert (origin["sensitivity"]["count"], origin["sensitivity"]["total"]) == (counts[True, True], 24)
        assert (origin["specificity"]["count"], origin["specificity"]["total"]) == (counts[False, False], 18)
        assert origin["accuracy"]["count"] == counts[True, True] + counts[False, False]
        assert origin["always_real"] == 24 / 42
        assert origin["balanced_accuracy"]["value"] == pytest.approx(
            (counts[True, True] / 24 + counts[False, False] / 18) / 2
        )
        assert origin["auc"]["value"] == pytest.approx(
            roc_auc_score([real[item] for item in first], list(first.values()))
        )
        for name, wanted in (("ratings_real", True), ("ratings_synthetic", False)):
            said = Counter(choice for item, choice in first.items() if real[item] == wanted)
            assert origin[name] == [said[level] for level in range(1, 7)]
        same = sum((first[item] >= 4) == (choice >= 4) for item, choice in again.items())
        assert origin["repeats"]["agreed"]["count"] == same
        assert one["times"]["origin"]["all"]["median"] == np.median(seconds)
        assert sum(answer["count"] for answer in one["times"]["origin"]["by_answer"]) == 42
        first, again, _ = recount(study, number, "class")
        class_of[number] = first
        for name, wanted in (("real", True), ("synthetic", False)):
            cells = Counter((label[item], choice) for item, choice in first.items() if real[item] == wanted)
            table = one["class"][f"confusion_{name}"]
            assert table == [[cells[i, j] for j in range(3)] for i in range(3)]
            assert one["class"][name]["count"] == sum(table[i][i] for i in range(3))
        assert one["class"]["repeats"]["agreed"]["count"] == sum(first[item] == again[item] for item in again)
    pair = found["pairs"]["1-2"]
    assert pair["class"]["agreed"]["count"] == sum(
        class_of[1][item] == class_of[2][item] for item in label if item in class_of[1]
    )
    both = sum(class_of[1][item] == class_of[2][item] == label[item] for item in class_of[1])
    assert pair["class"]["both_right"]["count"] == both
    assert pair["origin"]["agreed"]["count"] == sum(
        (origin_of[1][i] >= 4) == (origin_of[2][i] >= 4) for i in origin_of[1]
    )
    aucs = [found["readers"][n]["origin"]["auc"]["value"] for n in ("1", "2")]
    assert found["pooled"]["origin"]["auc"]["value"] == pytest.approx(np.mean(aucs))
    rates = [found["readers"][n]["class"]["real"]["value"] for n in ("1", "2")]
    assert found["pooled"]["class"]["real"]["value"] == pytest.approx(np.mean(rates))
    assert found["notes"][:1] == [
        "2 readers are too few for the intervals of the means to speak of other readers: these are too narrow for that."
    ]


def test_a_study_as_it_is_made(tmp_path: Path, quick: None) -> None:
    """From `study new` to the analysis: what design writes and readers answer is what is judged here."""
    made = small_study(tmp_path)
    study = load_study(tmp_path / "study")
    truth = load_truth(study)
    book = AnswerBook(study)
    for code in ("one", "two"):
        reader = book.register(code, None, "")
        for number, trial in enumerate(study.slots[reader.slot]):
            item = truth.items[trial.item]
            right = (
                study.design.classes.index(item.class_name)
                if trial.task == "class"
                else 6
                if item.origin == "real"
                else 1
            )
            book.add(
                Answer(
                    reader.reader, number, trial.task, trial.item, 0, right, "", 900.0, 0.0, 0, 40.0, 400.0, 6, False,
                    "", "",
                )
            )  # fmt: skip
    book.close()
    analyse_study(tmp_path / "study", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert (found["design"]["num_real"], found["design"]["num_synthetic"]) == (6, 6)
    assert found["design"]["num_practice"] == 2
    for reader_ in found["readers"].values():
        assert reader_["origin"]["accuracy"]["count"] == reader_["class"]["all"]["count"] == 12
        assert reader_["origin"]["auc"] == {"value": 1, "low": None, "high": None}
        assert reader_["class"]["repeats"]["agreed"]["count"] == found["design"]["num_repeats"] > 0
        assert reader_["trials"]["count"] == reader_["trials"]["total"]
    assert any("no interval" in note for note in found["notes"])
    assert "1.00 (" not in words_of(Page((tmp_path / "out" / "analysis.html").read_text(encoding="utf-8")))
    export_study(tmp_path / "study", tmp_path / "csv", made.truth)
    assert "dcgan" in (tmp_path / "csv" / "imrmc.csv").read_text()


def test_the_last_revision_counts_and_the_time_of_the_first(tmp_path: Path) -> None:
    def ones(reader: int, task: str, item: TruthItem, repeat: bool) -> int:
        return 1

    study = make_study(
        tmp_path / "study", make_items(5, 5), ones, num_readers=1, tasks=["origin"], revise={(1, 3): 6, (1, 7): 5}
    )
    reader = summary(study)["readers"]["1"]
    said = np.array(reader["origin"]["ratings_real"]) + reader["origin"]["ratings_synthetic"]
    assert said.tolist() == [8, 0, 0, 0, 1, 1]
    assert (reader["revised"], reader["trials"]) == (2, {"count": 10, "total": 10})
    assert reader["times"]["origin"]["all"]["count"] == 10


def test_times_are_those_of_first_sights_without_a_pause(tmp_path: Path) -> None:
    """Of ten answers one had a pause; the image of another was sent twice before, and of a third once more after."""
    study = make_study(tmp_path / "study", make_items(5, 5), lambda *_: 1, num_readers=1, tasks=["origin"])
    with sqlite3.connect(study / "answers.sqlite3") as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE answers SET num_pauses = 1 WHERE trial = 2")
        for trial, utc in ((4, "2025-12-31"), (4, "2025-12-31T01"), (5, "2025-12-31"), (5, "2026-02-01")):
            connection.execute(
                "INSERT INTO events(reader, session, kind, content, client_ms, server_utc) "
                "VALUES (1, 's', 'image', ?, 0, ?)",
                (json.dumps({"trial": trial}), utc),
            )
    connection.close()
    times = summary(study)["readers"]["1"]["times"]["origin"]
    assert (times["all"]["count"], times["untimed"]) == (8, 2)


def test_means_have_accuracy_confusion_and_times_too(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", ITEMS, say, num_readers=2)
    found = summary(study)
    pooled, readers = found["pooled"], found["readers"].values()
    accuracies = [one["origin"]["accuracy"]["value"] for one in readers]
    assert pooled["origin"]["accuracy"]["value"] == pytest.approx(np.mean(accuracies))
    assert pooled["origin"]["accuracy"]["low"] < pooled["origin"]["accuracy"]["value"]
    assert pooled["origin"]["always_real"] == pytest.approx(24 / 42)
    for name in ("confusion_real", "confusion_synthetic"):
        summed = np.sum([one["class"][name] for one in readers], axis=0)
        assert pooled["class"][name] == summed.tolist()
    for task in ("class", "origin"):
        assert pooled[task]["times"]["count"] == sum(one["times"][task]["all"]["count"] for one in readers)


def test_different_mixes_of_classes_are_said(tmp_path: Path) -> None:
    items = list(make_items(12, 12))
    study = make_study(tmp_path / "even", items, say)
    assert not any("same shares" in note for note in summary(study)["notes"])
    uneven = [replace(item, class_name="cyst") if item.origin == "real" else item for item in items]
    study = make_study(tmp_path / "uneven", uneven, say)
    assert any("the class is a hint at the origin" in note for note in summary(study)["notes"])


# --- what is not there


def test_an_unfinished_study_is_analysed_for_what_is_there(tmp_path: Path, quick: None) -> None:
    """Reader 2 has stopped within the second task, reader 3 within practice, reader 4 has only registered."""
    study = make_study(tmp_path / "study", ITEMS, say, num_readers=4, stop={2: 46 + 20, 3: 2, 4: 0})
    page = analyse_study(study, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert [found["readers"][n]["origin"]["items"] for n in "1234"] == [42, 16, 0, 0]
    assert found["pooled"]["class"]["num_readers"] == found["pooled"]["origin"]["num_readers"] == 2
    assert found["readers"]["3"]["class"]["real"] == {"count": 0, "total": 0, "value": None, "low": None, "high": None}
    assert found["pairs"]["1-2"]["origin"]["agreed"]["total"] == 16
    assert found["pairs"]["1-4"]["origin"]["kappa"] is None
    notes = " ".join(found["notes"])
    for text in ("Reader 2 has not finished: 66 of 92", "Reader 3 has not finished", "Reader 4 has not answered"):
        assert text in notes
    assert "different images (origin)" in notes
    assert "different images (class)" not in notes
    text = words_of(Page(page.read_text(encoding="utf-8")))
    assert "Reader 2 has not finished: 66 of 92 trials" in text


@pytest.mark.parametrize("registered", [0, 1])
def test_nobody_has_answered(tmp_path: Path, quick: None, registered: int) -> None:
    study = make_study(tmp_path / "study", ITEMS, say, num_readers=registered, stop={1: 0})
    page = analyse_study(study, tmp_path / "out")
    wanted = "Reader 1 has not answered anything yet." if registered else "Nobody has begun this study yet."
    assert wanted in words_of(Page(page.read_text(encoding="utf-8")))


def test_one_answer_to_all_and_a_class_that_is_missing(tmp_path: Path, quick: None) -> None:
    def real_cyst(reader: int, task: str, item: TruthItem, repeat: bool) -> int:
        return 0 if task == "class" else 5

    items = [item for item in make_items(12, 9) if item.class_name != "metastasis"]
    items = [TruthItem(k, *list(vars(item).values())[1:]) for k, item in enumerate(items)]
    study = make_study(tmp_path / "study", items, real_cyst)
    analyse_study(study, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    origin = found["readers"]["1"]["origin"]
    assert origin["auc"] is None
    assert found["pooled"]["origin"]["auc"] is None
    assert origin["balanced_accuracy"]["value"] == 0.5
    assert origin["d_prime"]["low"] < 0 < origin["d_prime"]["high"]
    assert origin["accuracy"]["value"] == origin["always_real"]
    assert origin["p_always_real"] == pytest.approx(1)
    assert found["pairs"]["1-2"]["origin"]["kappa"] is None
    assert "Reader 1 gave one answer to all: there is no ROC curve." in found["notes"]


def test_two_keys_give_the_area_of_one_point_and_say_so(tmp_path: Path, quick: None) -> None:
    study = make_study(tmp_path / "study", ITEMS, two_keys, scale="two-key", num_readers=1)
    page = analyse_study(study, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    origin = found["readers"]["1"]["origin"]
    assert origin["auc"]["value"] == pytest.approx(origin["balanced_accuracy"]["value"])
    assert any("single operating point" in note for note in found["notes"])
    assert "of the single operating point" in words_of(Page(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("task", ["class", "origin"])
@pytest.mark.parametrize(("num_real", "num_synthetic"), [(9, 0), (0, 9), (9, 9)])
def test_one_task_alone_and_one_origin_alone(
    tmp_path: Path, quick: None, task: str, num_real: int, num_synthetic: int
) -> None:
    study = make_study(tmp_path / "study", make_items(num_real, num_synthetic), say, tasks=[task])
    analyse_study(study, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["pooled"][task]["num_readers"] == (2 if num_real and num_synthetic else 0)
    export_study(study, tmp_path / "csv", tmp_path / "study.truth.json")
    assert (tmp_path / "csv" / "imrmc.csv").exists() == (task == "origin")


# --- the truth


def test_the_truth_must_be_the_studys(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", ITEMS, say)
    truth = tmp_path / "study.truth.json"
    content = truth.read_text()
    truth.write_text(content.replace('"origin": "synthetic"', '"origin": "real"', 1))
    for act in (
        lambda: analyse_study(study, tmp_path / "out"),
        lambda: export_study(study, tmp_path / "out", truth),
    ):
        with pytest.raises(DataError, match="SHA-256"):
            act()
    truth.rename(tmp_path / "moved.json")
    with pytest.raises(DataError, match=r"study\.truth\.json"):
        analyse_study(study, tmp_path / "out")
    (tmp_path / "moved.json").write_text(content)
    assert not (tmp_path / "out").exists()
    other = make_study(tmp_path / "other", ITEMS, say)
    with pytest.raises(DataError, match="SHA-256"):
        analyse_study(other, tmp_path / "out", truth=tmp_path / "moved.json")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", ITEMS, say)
    (tmp_path / "out").mkdir()
    for act in (analyse_study, export_study):
        with pytest.raises(DataError, match="exists already"):
            act(study, tmp_path / "out")


# --- what is written


def test_the_analysis_names_nobody_and_repeats_nothing_that_readers_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the same bytes twice; and figures in every format."""
    study = make_study(tmp_path / "study", ITEMS, say, note=MARK, num_repeats=4)
    analyse_study(study, tmp_path / "out")
    for name in ("png", "pdf"):  # drawn once: they take most of the time
        monkeypatch.setattr(f"lesionaug.study.figures.figure_{name}", lambda *a, **k: b"")
    analyse_study(study, tmp_path / "again")
    files = {path.relative_to(tmp_path / "out"): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for name in ("forest", "ratings", "confusion", "kappa", "times"):
        for ending in ("svg", "png", "pdf"):
            assert Path("figures", f"study_{name}.{ending}") in files
    for relative, path in files.items():
        content = path.read_bytes()
        if path.suffix not in (".png", ".pdf"):
            assert content == (tmp_path / "again" / relative).read_bytes(), relative
        for secret in (b"Smith", b"script>alert", b"lesion-0", b"patient-0", b"code-", b"radiology"):
            assert secret not in content, (relative, secret)
    page = Page((tmp_path / "out" / "analysis.html").read_text(encoding="utf-8"))
    assert len(page.images) == 5
    assert all(image["alt"] for image in page.images)
    assert not [link for link in page.links if not link.startswith("data:")], "the page is self-contained"
    assert words_of(page).count("Phantom data") > 5


def test_raw_accuracy_never_stands_alone(tmp_path: Path, quick: None) -> None:
    study = make_study(tmp_path / "study", ITEMS, say)
    text = analyse_study(study, tmp_path / "out").read_text(encoding="utf-8")
    tables = [part.split("</table>")[0] for part in text.split('<table class="names">')[1:]]
    shown = [table for table in tables if ".origin.accuracy" in table]
    assert len(shown) == 2  # ours, and Table III
    for table in shown:
        for row in table.split("<tr>")[1:]:
            if ".origin.accuracy" in row:
                assert "always_real" in row


def test_the_export_is_safe_in_a_spreadsheet_and_whole(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", ITEMS, say, note=MARK + '\nü, "quoted"', num_repeats=3, revise={(1, 9): 0})
    export_study(study, tmp_path / "csv")
    assert not (tmp_path / "csv" / "truth.csv").exists()
    assert not (tmp_path / "csv" / "imrmc.csv").exists()
    for name in ("answers", "readers", "events"):
        with (tmp_path / "csv" / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert rows
        assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t"))]
        if name == "answers":
            assert len(rows) == 2 * 2 * (46 + 3) + 1
            assert rows[0]["note"] == f'\'{MARK}\nü, "quoted"'
            assert sum(row["counts"] == "1" for row in rows) == len(rows) - 1
            assert sum(row["practice"] == "1" for row in rows) == 2 * 2 * 4
            assert sum(row["repeat"] == "1" for row in rows) == 2 * 2 * 3
            assert {row["answer"] for row in rows} == {*CLASSES, "real", "synthetic"}
    saved = json.loads((tmp_path / "csv" / "study.json").read_text())
    assert len(saved["answers"]) == 2 * 2 * (46 + 3) + 1
    assert saved["answers"][0]["note"].startswith(MARK)
    assert "items" not in json.dumps(saved["study"]["design"]).replace("num_items", "")


def command(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as exited:
        main(["study", *map(str, words)])
    assert exited.value.code == 0
    return capsys.readouterr().out


def test_the_commands_say_what_is_there_and_who_has_not_finished(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", ITEMS, say, stop={2: 7}, revise={(2, 1): 0})
    truth = tmp_path / "study.truth.json"
    told = command(capsys, "export", study, tmp_path / "csv", "--truth", truth)
    assert "answers.csv, events.csv, imrmc.csv, readers.csv, study.json, truth.csv" in told
    assert "caution: truth.csv tells which images are real" in told
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "csv").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "csv").stat().st_mode) == 0o700
    assert "caution" not in command(capsys, "export", study, tmp_path / "without")
    told += command(capsys, "analyse", study, tmp_path / "out")
    assert f"{tmp_path / 'out' / 'analysis.html'}: the analysis" in told
    assert told.count("reader 1 (code-1): answered 92 of 92\n") == 2
    assert told.count("reader 2 (code-2): answered 7 of 92, not finished\n") == 2
    assert "warning" not in told
    for registered in (0, 1):
        study = make_study(tmp_path / f"none{registered}", ITEMS, say, num_readers=registered, stop={1: 0})
        told = command(capsys, "analyse", study, tmp_path / f"out{registered}")
        assert "warning: nobody has answered anything yet" in told
        assert told.count("answered 0 of 92, not finished") == registered


def test_the_frame_that_imrmc_reads(tmp_path: Path) -> None:
    """A truth row for every case, and for every GAN its own images beside the same real ones."""
    items = [
        item
        if item.origin == "real"
        else TruthItem(**{**vars(item), "source": {"gan": ("acgan", "dcgan")[item.item % 2]}})
        for item in ITEMS
    ]
    study = make_study(tmp_path / "study", items, say, num_repeats=5)
    export_study(study, tmp_path / "csv", tmp_path / "study.truth.json")
    with (tmp_path / "csv" / "imrmc.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["readerID", "caseID", "modalityID", "score"]
    truth = {row["caseID"]: row["score"] for row in rows if row["readerID"] == "truth"}
    assert truth == {f"case{item.item}": str(int(item.origin == "real")) for item in items if not item.practice}
    assert {row["modalityID"] for row in rows if row["readerID"] == "truth"} == {"truth"}
    first, _, _ = recount(study, 1, "origin")
    for modality in ("acgan", "dcgan"):
        mine = [row for row in rows if (row["readerID"], row["modalityID"]) == ("reader1", modality)]
        assert {row["caseID"] for row in mine} == {
            f"case{t.item}" for t in items if not t.practice and t.source.get("gan", modality) == modality
        }
        assert all(int(row["score"]) == first[int(row["caseID"][4:])] for row in mine)
    keys = [(row["readerID"], row["caseID"], row["modalityID"]) for row in rows]
    assert len(keys) == len(set(keys))
    with (tmp_path / "csv" / "truth.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(items)


# --- a run


def run_items(run: Path) -> list[TruthItem]:
    """The run's lesions, and ten synthetic images."""
    lesions = json.loads((run / "folds.json").read_text())["lesions"]
    real = [("real", x["label"], x["lesion_id"], x["patient_id"], {"store": "ab"}) for x in lesions]
    synthetic = [("synthetic", CLASSES[k % 3], None, None, {"gan": "dcgan"}) for k in range(10)]
    return [TruthItem(k, *what, False) for k, what in enumerate(real + synthetic)]


@pytest.mark.full
def test_readers_beside_the_networks_of_a_run_and_the_report(tmp_path: Path, quick: None) -> None:
    run = write_run(
        tmp_path / "run", seeds=(0, 1), gans=("dcgan",), controls=("longer",), embedding=None, memorisation=None
    )
    items = run_items(run)
    study = make_study(tmp_path / "study", items, say, note=MARK)
    analyse_study(study, tmp_path / "out", run=run)
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert (run / "study" / "analysis.json").read_bytes() == (tmp_path / "out" / "analysis.json").read_bytes()

    first, _, _ = recount(study, 1, "class")
    right = {items[i].lesion_id: CLASSES[choice] == items[i].class_name for i, choice in first.items()}
    predictions: dict[int, dict[str, bool]] = {0: {}, 1: {}}
    for seed in (0, 1):
        for path in (run / "models").glob(f"bovw-split*-seed{seed}/predictions.csv"):
            with path.open(newline="") as stream:
                predictions[seed] |= {r["lesion_id"]: r["label"] == r["predicted"] for r in csv.DictReader(stream)}
    lesions = list(predictions[0])
    assert len(lesions) == 41
    reader = [right[name] for name in lesions]
    networks = [[predictions[seed][name] for name in lesions] for seed in (0, 1)]
    row = found["against_cnn"]["1"]["bovw"]
    test = mcnemar(reader, networks[0])
    assert (row["lesions"], row["only_reader"], row["only_cnn"]) == (41, test.only_first, test.only_second)
    assert row["p"] == test.p_value
    assert row["reader"]["count"] == sum(reader)
    patient = {item.lesion_id: item.patient for item in items}
    wanted = bootstrap_difference(reader, networks, [patient[name] for name in lesions], seed=0)
    assert row["difference"]["value"] == pytest.approx(wanted.value)
    assert row["difference"]["value"] == pytest.approx(np.mean(networks) - np.mean(reader))
    assert not {"equal-steps", "longer"} & set(found["against_cnn"]["1"]), "controls are not compared"
    assert {"cnn-aug", "cnn-aug-gan", "bovw"} <= set(found["against_cnn"]["1"])

    text = write_report(run, share=True).read_text(encoding="utf-8")
    page = Page(text)
    assert "Smith" not in text
    for name in ("sensitivity", "specificity", "balanced_accuracy", "d_prime", "criterion", "auc", "always_real"):
        assert f"study.readers.1.origin.{name}" in page.numbers
    assert page.numbers["study.against_cnn.1.bovw.only_reader"] == {str(test.only_first)}
    assert page.numbers["study.readers.2.origin.always_real"] == {"80.4"}
    assert {f"figure-study_{name}" for name in ("forest", "ratings", "confusion", "kappa", "times")} <= set(page.ids)
    assert "The run has changed" not in words_of(page)
    numbers = json.loads((run / "report-share" / "numbers.json").read_text())["numbers"]
    assert numbers["study.readers.1.origin.auc"] == found["readers"]["1"]["origin"]["auc"]["value"]
    with (run / "report-share" / "tables" / "study.csv").open(newline="") as stream:
        assert "study.pairs.1-2.class.kappa" in {row["measure"] for row in csv.DictReader(stream)}


def test_an_analysis_that_the_run_has_left_behind_or_that_is_damaged(tmp_path: Path, quick: None) -> None:
    run = write_run(tmp_path / "run", gans=(), bovw=None, controls=(), embedding=None, memorisation=None)
    study = make_study(tmp_path / "study", run_items(run), say, num_readers=1)
    analyse_study(study, tmp_path / "out", run=run)
    (run / "study" / "old").write_text("")
    analyse_study(study, tmp_path / "out2", run=run)  # takes the place of the earlier one, whole
    assert not (run / "study" / "old").exists()
    assert not list(run.glob(".study*"))
    results = load_run(run)
    numbers = collect_numbers(results)
    found = study_of_run(results)
    assert found is not None
    assert not found.outdated
    page = run / "study" / "analysis.json"
    content = json.loads(page.read_text())
    content["run"]["models_sha256"] = "0" * 64
    page.write_text(json.dumps(content))
    found = study_of_run(results)
    assert found is not None
    numbers.values.update(found.values)
    assert "The run has changed since" in words_of(Page(render(results, numbers, {}, found)))
    del content["readers"]["1"]["origin"]["auc"]
    page.write_text(json.dumps(content))
    with pytest.raises(DataError, match="it lacks something"):
        render_analysis(run / "study")
    page.write_text('{"schema": "lesionaug-study-analysis", "version": 3}')
    with pytest.raises(DataError, match="version 3"):
        write_report(run)


@pytest.mark.full
def test_the_analysis_of_another_study_is_not_replaced(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", gans=(), bovw=None, controls=(), embedding=None, memorisation=None)
    items = run_items(run)
    analyse_study(make_study(tmp_path / "study", items, say, num_readers=1), tmp_path / "out", run=run)
    kept = (run / "study" / "analysis.json").read_bytes()
    other = make_study(tmp_path / "other", items, say, num_readers=1)
    with monkeypatch.context() as patch:
        patch.setattr("lesionaug.study.analysis.summarise", lambda *_: pytest.fail("computed first"))
        with pytest.raises(ConfigError, match=r"--run: .*another reader study.*Remove .*study first"):
            analyse_study(other, tmp_path / "out2", run=run)
    assert (run / "study" / "analysis.json").read_bytes() == kept
    assert not (tmp_path / "out2").exists()
    (run / "study" / "analysis.json").write_text("{")  # of no use to anybody
    analyse_study(other, tmp_path / "out2", run=run)
    assert json.loads((run / "study" / "analysis.json").read_text())["study_id"] == load_study(other).id


def test_a_run_over_other_lesions_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", gans=(), bovw=None, controls=(), embedding=None, memorisation=None)
    study = make_study(tmp_path / "study", ITEMS, say)
    with pytest.raises(DataError, match="none of its lesions"):
        analyse_study(study, tmp_path / "out", run=run)
    items = run_items(run)
    items[0] = TruthItem(**{**vars(items[0]), "class_name": next(n for n in CLASSES if n != items[0].class_name)})
    study = make_study(tmp_path / "study2", items, say)
    with pytest.raises(DataError, match="another class"):
        analyse_study(study, tmp_path / "out", run=run)
    assert not (tmp_path / "out").exists()
    assert not (run / "study").exists()
    foreign = run / "study"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("")
    study = make_study(tmp_path / "study3", run_items(run), say, num_readers=0)
    with pytest.raises(DataError, match="no analysis of a reader study"):
        analyse_study(study, tmp_path / "out", run=run)
    assert (foreign / "mine.txt").exists()


def test_an_analysis_that_is_not_there(tmp_path: Path) -> None:
    assert read_study(tmp_path / "nothing") is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_study(tmp_path / "empty")
