"""A study's design: what is shown, that orders follow the rules, that the truth lies apart, and damaged files."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import stat
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lesionaug as la
from lesionaug.cli import main
from lesionaug.data.provenance import Provenance
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import manifest_sha256, save_rois
from lesionaug.data.synthetic import load_synthetic
from lesionaug.errors import ConfigError, DataError
from lesionaug.experiment import paper
from lesionaug.experiment.config import ImageConfig
from lesionaug.study import design as design_module
from lesionaug.study import images as images_module
from lesionaug.study.design import make_study
from lesionaug.study.encoding import EDGE_LEVELS, encoding_check, num_levels, quantise
from lesionaug.study.files import Study, Truth, load_study, load_truth
from lesionaug.study.options import StudyOptions, consent_of
from lesionaug.study.orders import LONGEST_RUN, REPEAT_GAP, arrange, spread
from tests.runs import make_rois, make_store
from tests.studies import make_stores, make_synthetic, small_study


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Path, Path]:
    return make_stores(tmp_path_factory.mktemp("design"))


@pytest.fixture(scope="module")
def made(stores) -> tuple[Study, Truth]:
    """20 real and 20 synthetic images, 4 for practice, a quarter repeated, for 3 readers."""
    options = StudyOptions(num_real=20, num_practice=4, repeats=0.25, num_readers=3)
    new = make_study(stores[0], stores[0].parent / "made", stores[1], options)
    study = load_study(new.folder)
    return study, load_truth(study)


def of_task(study: Study, slot: int, task: str) -> list:
    return [trial for trial in study.slots[slot] if trial.task == task]


def longest_run(values) -> int:
    return max(len(list(group)) for _, group in groupby(values))


def test_one_to_one_and_the_same_of_every_class(made) -> None:
    study, truth = made
    counts = Counter((item.origin, item.class_name) for item in truth.items if not item.practice)
    assert sum(counts.values()) == study.design.num_items == 40
    assert sum(count for (origin, _), count in counts.items() if origin == "real") == 20
    assert {counts["real", name] - counts["synthetic", name] for name in study.design.classes} == {0}
    assert max(counts.values()) - min(counts.values()) <= 1
    rehearsed = [item for item in truth.items if item.practice]
    assert Counter(item.origin for item in rehearsed) == {"real": 2, "synthetic": 2}
    lesions = [item.lesion_id for item in truth.items if item.origin == "real"]
    assert len(set(lesions)) == len(lesions) == 22


def test_orders_follow_the_rules(made) -> None:
    study, truth = made
    orders = set()
    for slot in range(3):
        assert [trial.task for trial in study.slots[slot]] == ["class"] * 54 + ["origin"] * 54
        for task in ("class", "origin"):
            trials = of_task(study, slot, task)
            assert [trial.practice for trial in trials] == [True] * 4 + [False] * 50
            items = [trial.item for trial in trials]
            assert set(items) == set(range(44))
            for kind in ("origin", "class_name"):
                assert longest_run(getattr(truth.items[item], kind) for item in items[4:]) <= LONGEST_RUN
            twice = [item for item, count in Counter(items).items() if count == 2]
            assert len(twice) == 10
            for item in twice:
                first, second = (i for i, found in enumerate(items) if found == item)
                assert not trials[first].repeat
                assert trials[second].repeat
                assert second - first >= min(REPEAT_GAP, 50 // 3)
            repeated = Counter(truth.items[item].origin for item in twice)
            assert repeated == {"real": 5, "synthetic": 5}
            orders.add(tuple(items))
    assert len(orders) == 6, "readers and tasks share an order"


def test_the_number_of_an_item_tells_nothing(stores, tmp_path) -> None:
    """Real ones are not first or last: over several studies their mean number is that of all, within chance."""
    ranks = []
    for number in range(3):
        options = StudyOptions(num_real=18, num_practice=0, repeats=0, num_readers=1)
        study = load_study(make_study(stores[0], tmp_path / str(number), stores[1], options).folder)
        truth = load_truth(study)
        ranks += [item.item for item in truth.items if item.origin == "real"]
    assert abs(np.mean(ranks) - 17.5) < 4 * 10.4 / np.sqrt(len(ranks) * 2)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_arrange(data) -> None:
    kinds = data.draw(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("rs")), min_size=1, max_size=60))
    twice = data.draw(st.sets(st.sampled_from(range(len(kinds))), max_size=len(kinds) // 5))
    items = [*range(len(kinds)), *twice]
    order = arrange(items, kinds, random.Random(data.draw(st.integers(0, 99))))
    assert sorted(order) == sorted(items)
    for number in range(2):
        values = [kinds[item][number] for item in order]
        most = max(Counter(values).values())
        if most <= 2 * (len(values) - most):  # far from forced
            assert longest_run(values) <= LONGEST_RUN + (len(values) < 12)


@given(st.integers(0, 60), st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_spread(total: int, available: list[int]) -> None:
    counts = spread(total, available)
    assert sum(counts) == min(total, sum(available))
    assert all(0 <= count <= most for count, most in zip(counts, available, strict=True))
    short = [count for count, most in zip(counts, available, strict=True) if count < most]
    assert all(count <= low + 1 for low in short for count in counts)


def test_real_images_are_the_un_augmented_rois_in_whole_hu(made) -> None:
    study, truth = made
    rois = make_rois()
    for item in truth.items:
        if item.origin == "synthetic":
            continue
        one = rois[[rois.lesion_ids.index(item.lesion_id)]]
        assert (item.patient, item.class_name) == (one.patient_ids[0], one.classes[int(one.labels[0])])
        wanted = la.augment(one, la.originals(one), size=64, window=(-160, 240))[0, 0].numpy() * 400
        found = study.images[item.item] / 65535 * 400
        assert np.abs(found - np.round(found)).max() < 0.01
        inside = (wanted > EDGE_LEVELS) & (wanted < 400 - EDGE_LEVELS)
        assert np.abs(found - wanted)[inside].max() <= 0.51
    assert (study.design.num_levels, study.design.window_hu) == (401, (-160.0, 240.0))


def test_patients_are_spread(tmp_path) -> None:
    """Three lesions of each of eight patients: eight real images of one class are of eight patients."""
    rois = make_rois()
    save_rois(
        RoiBatch.from_images(
            rois.images, rois.centers, rois.diameters, labels=[0] * 24, lesion_ids=rois.lesion_ids,
            patient_ids=[f"P{i // 3}" for i in range(24)], classes=("cyst",), kind="phantom",
        ), tmp_path / "rois",
    )  # fmt: skip
    made = make_synthetic(tmp_path / "s", labels=torch.zeros(36, dtype=torch.int64), classes=("cyst",))
    new = make_study(tmp_path / "rois", tmp_path / "study", made, StudyOptions(num_real=8, num_practice=0))
    study = load_study(new.folder)
    assert study.design.tasks == ("origin",)  # one class is no question
    assert len({item.patient for item in load_truth(study).items if item.patient}) == 8


def test_the_truth_lies_apart(made, stores) -> None:
    study, truth = made
    file = study.folder.parent / "made.truth.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert hashlib.sha256(file.read_bytes()).hexdigest() == study.truth_sha256
    told = "".join((study.folder / name).read_text() for name in ("study.json", "orders.json", "consent.txt"))
    value = json.loads(file.read_text())
    assert value["key"] not in told
    for item in truth.items:
        if item.origin == "real":
            assert f'"{item.lesion_id}"' not in told
            assert f'"{item.patient}"' not in told
    assert "synthetic" not in told.replace("synthetic_", "")
    assert sorted(path.name for path in study.folder.iterdir()) == [
        "consent.txt",
        "images.u16",
        "orders.json",
        "study.json",
    ]
    assert truth.provenance["store_manifest_sha256"] == manifest_sha256(stores[0])
    synthetic = [item for item in truth.items if item.origin == "synthetic"]
    assert {item.source["gan"] for item in synthetic} == {"dcgan"}
    assert len({item.source["index"] for item in synthetic}) == len(synthetic)


def test_two_studies_share_no_order_but_their_images(stores, tmp_path) -> None:
    options = StudyOptions(num_real=9, num_practice=0, num_readers=1)
    studies = [load_study(make_study(stores[0], tmp_path / name, stores[1], options).folder) for name in "ab"]
    assert studies[0].id != studies[1].id
    assert studies[0].slots != studies[1].slots
    lesions = [sorted(item.lesion_id for item in load_truth(study).items if item.lesion_id) for study in studies]
    assert lesions[0] == lesions[1]
    other = make_study(
        stores[0], tmp_path / "c", stores[1], StudyOptions(num_real=9, num_practice=0, num_readers=1, seed=1)
    )
    assert sorted(i.lesion_id for i in load_truth(load_study(other.folder)).items if i.lesion_id) != lesions[0]


def test_combined_asks_both_questions_in_a_row(tmp_path) -> None:
    study = load_study(small_study(tmp_path, order="combined").folder)
    trials = study.slots[0]
    assert len(trials) == 2 * (12 + 2 + 2)
    for one, two in zip(trials[::2], trials[1::2], strict=True):
        assert (one.task, two.task) == ("class", "origin")
        assert (one.item, one.practice, one.repeat) == (two.item, two.practice, two.repeat)


def test_the_papers_study(tmp_path) -> None:
    """53 cysts, 64 metastases and 65 hemangiomas, all of them, and 40 synthetic ones of each."""
    generator = torch.Generator().manual_seed(0)
    labels = [0] * 53 + [1] * 64 + [2] * 65
    images = [(60 + 20 * torch.randn(24, 24, generator=generator)).to(torch.int16) for _ in labels]
    rois = RoiBatch.from_images(
        images, [[12, 12]] * 182, [10] * 182, labels=labels, classes=paper.CLASSES, kind="phantom"
    )
    save_rois(rois, tmp_path / "rois")
    made = make_synthetic(tmp_path / "s", per_class=40, size=16, classes=paper.CLASSES)
    new = make_study(tmp_path / "rois", tmp_path / "study", made, StudyOptions(preset="paper", num_readers=2))
    study = load_study(new.folder)
    assert {name: new.counts["real", name] for name in paper.CLASSES} == dict(
        zip(paper.CLASSES, paper.CLASS_COUNTS, strict=True)
    )
    assert {new.counts["synthetic", name] for name in paper.CLASSES} == {40}
    assert (study.design.num_items, study.design.num_practice, study.design.num_repeats) == (302, 0, 0)
    assert (study.design.scale, study.design.size, new.trials_per_reader) == ("two-key", 16, 604)
    truth = load_truth(study)
    for kind in ("origin", "class_name"):
        assert longest_run(getattr(truth.items[t.item], kind) for t in of_task(study, 1, "origin")) <= LONGEST_RUN
    with pytest.raises(DataError, match="182 real ones are wanted, and 24 are there"):
        make_study(make_store(tmp_path / "few"), tmp_path / "other", made, StudyOptions(preset="paper"))


def test_a_run_gives_images_of_all_its_splits(tmp_path, monkeypatch) -> None:
    """What `load_run` would say of a run with two kinds of GAN; reading real runs is tests/test_protocol.py's."""
    store = make_store(tmp_path / "rois")
    steps = []
    for gan in ("dcgan", "acgan", "originals"):
        for split in range(3):
            folder = f"synthetic/{gan}{split}"
            (tmp_path / "run" / folder).mkdir(parents=True)
            generator = torch.Generator().manual_seed(len(steps))
            images = torch.rand(36, 1, 64, 64, generator=generator)
            make_synthetic(tmp_path / "run" / folder / "rois", split=split, images=images)
            steps.append(SimpleNamespace(name=folder, kind="synthetic", arm=gan, split=split, seed=0, folder=folder))
    run = SimpleNamespace(
        info={"store": {"manifest_sha256": manifest_sha256(store)}},
        config=SimpleNamespace(gans=("dcgan", "acgan"), image=ImageConfig()),
        steps=steps, done={step.name: f"hash of {step.name}" for step in steps},
    )  # fmt: skip
    (tmp_path / "run" / "run.json").touch()
    (tmp_path / "run" / "models").mkdir()
    monkeypatch.setattr(images_module, "load_run", lambda path: run)
    warnings: list[str] = []

    def sources(name: str, **options) -> Counter:
        study = make_study(
            store, tmp_path / name, tmp_path / "run", StudyOptions(num_real=12, num_practice=0, **options)
        )
        warnings.extend(study.warnings)
        items = [i for i in load_truth(load_study(study.folder)).items if i.origin == "synthetic"]
        assert Counter(item.class_name for item in items) == dict.fromkeys(make_rois().classes, 4)
        return Counter((item.source["gan"], item.source["split"]) for item in items)

    assert sources("one") == {("dcgan", 0): 4, ("dcgan", 1): 4, ("dcgan", 2): 4}
    assert sources("two", gans=("dcgan", "acgan")) == {
        (gan, split): 2 for gan in ("dcgan", "acgan") for split in range(3)
    }
    collapsed = tmp_path / "run" / "synthetic/dcgan0" / "rois"
    collapsed.rename(tmp_path / "good")
    make_synthetic(collapsed, split=0, images=torch.full((36, 1, 64, 64), 0.5))
    assert sources("without") == {("dcgan", 1): 6, ("dcgan", 2): 6}
    assert any("synthetic/dcgan0: 36 of 36 synthetic images" in warning for warning in warnings)
    truth = json.loads((tmp_path / "without.truth.json").read_text())
    assert [source.get("left_out") for source in truth["provenance"]["synthetic"]] == ["collapsed", None, None]
    with pytest.raises(ConfigError, match="the run has no wgan"):
        sources("three", gans=("wgan",))
    del run.done["synthetic/dcgan1"]
    with pytest.raises(DataError, match="synthetic/dcgan1 is not done"):
        sources("four")
    run.info["store"]["manifest_sha256"] = "0"
    with pytest.raises(DataError, match="another ROI store"):
        sources("five")
    assert not [path for path in tmp_path.iterdir() if "four" in path.name or "five" in path.name]


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"kind": "imported"}, "learned from imported data"),
        ({"classes": ("a", "b", "c")}, "its classes are a, b, c"),
        ({"images": torch.rand(36, 1, 4, 4)}, "4 pixels per side"),
    ],
)
def test_stores_that_do_not_belong_together(stores, tmp_path, changes, error) -> None:
    with pytest.raises(DataError, match=error):
        make_study(stores[0], tmp_path / "study", make_synthetic(tmp_path / "s", **changes))
    assert not (tmp_path / "study.truth.json").exists()


def test_errors_name_their_option(stores, tmp_path) -> None:
    for wrong in (tmp_path / "nothing", stores[0]):
        with pytest.raises(DataError, match=f"^--synthetic {wrong.name}"):
            make_study(stores[0], tmp_path / "study", wrong)
    with pytest.raises(DataError, match=r"^--consent: the file text\.txt does not exist"):
        consent_of(tmp_path / "text.txt")
    (tmp_path / "text.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"^--consent: text\.txt must be a UTF-8"):
        consent_of(tmp_path / "text.txt")


def test_foreign_lesions_are_said_to_be_so(stores, tmp_path) -> None:
    foreign = Provenance(frozenset({"x"}), frozenset({"x"}), frozenset({"x"}))
    made = make_synthetic(tmp_path / "s", provenance=foreign)
    new = make_study(stores[0], tmp_path / "study", made, StudyOptions(num_real=6, num_practice=0))
    assert any("two data sets" in warning for warning in new.warnings)


def images_of(path: Path) -> torch.Tensor:
    return load_synthetic(path).images.clone()


def test_images_that_show_nothing_are_left_out(stores, tmp_path) -> None:
    """Four grey ones, of which two differ by less than a step, and five copies of one."""
    images = images_of(stores[1])
    images[:4] = 0.5
    images[3] += 0.0001
    images[12:17] = images[12]
    made = make_synthetic(tmp_path / "s", images=images)
    new = make_study(stores[0], tmp_path / "study", made, StudyOptions(num_real=12, num_practice=2))
    assert "8 of 36 synthetic images are one grey or copies of others: left out" in new.warnings
    study = load_study(new.folder)
    assert all(image.min() < image.max() for image in study.images)
    assert len({image.tobytes() for image in study.images}) == len(study.images)
    taken = {item.source["index"] for item in load_truth(study).items if item.origin == "synthetic"}
    assert not taken & {0, 1, 2, 3, 13, 14, 15, 16}


@pytest.mark.parametrize("images", [torch.full((36, 1, 64, 64), 0.4), torch.rand(1, 1, 64, 64).repeat(36, 1, 1, 1)])
def test_a_gan_that_has_not_learned_is_refused(stores, tmp_path, images, monkeypatch) -> None:
    monkeypatch.setattr(design_module, "encoding_check", lambda *_: pytest.fail("blank images were looked at"))
    made = make_synthetic(tmp_path / "s", images=images)
    with pytest.raises(DataError, match=r"3[56] of 36 synthetic images .*has not learned") as refused:
        make_study(stores[0], tmp_path / "study", made)
    assert "--preset demo" in str(refused.value)
    assert not list(tmp_path.glob("study*"))


@pytest.mark.parametrize("num", [3, 20])
def test_real_rois_that_show_nothing(stores, tmp_path, num: int) -> None:
    """All above the window, though their pixels differ."""
    rois = make_rois()
    pixels = [image + (2000 if i < num else 0) for i, image in enumerate(rois.images)]
    changed = RoiBatch.from_images(
        pixels, rois.centers, rois.diameters, labels=rois.labels.tolist(), lesion_ids=rois.lesion_ids,
        patient_ids=rois.patient_ids, classes=rois.classes, kind="phantom",
    )  # fmt: skip
    save_rois(changed, tmp_path / "rois")
    options = StudyOptions(num_real=9, num_practice=0)
    if num == 20:
        with pytest.raises(DataError, match="20 of 24 real images are one grey"):
            make_study(tmp_path / "rois", tmp_path / "study", stores[1], options)
        return
    new = make_study(tmp_path / "rois", tmp_path / "study", stores[1], options)
    assert "3 of 24 real images are one grey or copies of others: left out" in new.warnings
    assert not {item.lesion_id for item in load_truth(load_study(new.folder)).items} & set(rois.lesion_ids[:3])


@pytest.mark.parametrize(
    "options, error",
    [
        ({"num_real": 0}, "--real"),
        ({"num_real": 25}, "25 real ones are wanted, and 19 are there"),
        ({"num_synthetic": 99}, "99 synthetic ones|99 real"),
        ({"num_practice": -1}, "--practice"),
        ({"repeats": 1.5}, "--repeats"),
        ({"num_readers": 0}, "--readers"),
        ({"num_readers": 65}, "--readers"),
        ({"seed": -1}, "--seed"),
        ({"title": ""}, "--title"),
        ({"title": "a\nb"}, "--title"),
        ({"consent": " "}, "--consent"),
        ({"gans": ("dcgan",)}, "--gan"),
    ],
)
def test_options_that_cannot_be(stores, tmp_path, options, error) -> None:
    with pytest.raises((ConfigError, DataError), match=error):
        make_study(stores[0], tmp_path / "study", stores[1], StudyOptions(**options))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(stores, tmp_path) -> None:
    options = StudyOptions(num_real=6, num_practice=0)
    (tmp_path / "study.truth.json").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        make_study(stores[0], tmp_path / "study", stores[1], options)
    assert (tmp_path / "study.truth.json").read_text() == "mine"
    with pytest.raises(ConfigError, match="must not lie in the study's folder"):
        make_study(stores[0], tmp_path / "s", stores[1], options, truth=tmp_path / "s" / "truth.json")


def test_a_failure_leaves_neither_folder_nor_truth(stores, tmp_path, monkeypatch) -> None:
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(design_module, "write_bytes_atomic", refuse)
    with pytest.raises(OSError, match="No space"):
        make_study(stores[0], tmp_path / "study", stores[1], StudyOptions(num_real=6, num_practice=0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, change, error",
    [
        ("study.json", lambda v: v | {"schema": "x"}, "its schema is not"),
        ("study.json", lambda v: v | {"version": 2}, "version 1, got 2"),
        ("study.json", lambda v: v | {"version": True}, "version"),
        ("study.json", lambda v: v | {"study_id": "../.."}, "study_id"),
        ("study.json", lambda v: v | {"kind": "patients"}, "kind"),
        ("study.json", lambda v: v | {"title": "a\x1bb"}, "title"),
        ("study.json", lambda v: v | {"title": 5}, "title"),
        ("study.json", lambda v: v | {"display": {"zoom": 0, "smooth": True}}, "display"),
        ("study.json", lambda v: v | {"design": []}, "design"),
        ("study.json", lambda v: v | {"design": v["design"] | {"size": 1 << 40}}, "size"),
        ("study.json", lambda v: v | {"design": v["design"] | {"num_items": 5000}}, "at most 5000|must be"),
        ("study.json", lambda v: v | {"design": v["design"] | {"num_items": True}}, "num_items"),
        ("study.json", lambda v: v | {"design": v["design"] | {"classes": ["a", "a"]}}, "classes"),
        ("study.json", lambda v: v | {"design": v["design"] | {"classes": list("abcdefghij")}}, "classes"),
        ("study.json", lambda v: v | {"design": v["design"] | {"tasks": ["class", "class"]}}, "tasks"),
        ("study.json", lambda v: v | {"design": v["design"] | {"tasks": [["class"]]}}, "tasks"),
        ("study.json", lambda v: v | {"design": v["design"] | {"order": ["separate"]}}, "order"),
        ("study.json", lambda v: v | {"design": v["design"] | {"window_hu": [1, 0]}}, "window_hu"),
        ("study.json", lambda v: v | {"design": v["design"] | {"window_hu": [0, 1e300]}}, "window_hu"),
        ("study.json", lambda v: [v], "its schema is not"),
        ("orders.json", lambda v: v | {"slots": []}, "slots"),
        ("orders.json", lambda v: v | {"study_id": "0" * 32}, "another study"),
        ("orders.json", lambda v: v | {"slots": [v["slots"][0][:-1]]}, "trials for each task"),
        ("orders.json", lambda v: v | {"slots": [[v["slots"][0][0]] * len(v["slots"][0])]}, "repeats|missing"),
        ("orders.json", lambda v: v | {"slots": [v["slots"][0][::-1]]}, "tasks are mixed|repeats|practice"),
        ("orders.json", lambda v: v | {"slots": [[t | {"item": 99} for t in v["slots"][0]]]}, "no trial"),
        ("orders.json", lambda v: v | {"slots": [[t | {"task": "truth"} for t in v["slots"][0]]]}, "no trial"),
        ("orders.json", lambda v: v | {"slots": [[t | {"repeat": False} for t in v["slots"][0]]]}, "repeats"),
        ("orders.json", lambda v: v | {"slots": [[t | {"practice": False} for t in v["slots"][0]]]}, "practice"),
        ("orders.json", lambda v: v | {"slots": [["x"] * len(v["slots"][0])]}, "no trial"),
    ],
)
def test_damaged_studies(tmp_path, small, name, change, error) -> None:
    folder = tmp_path / "study"
    shutil.copytree(small, folder)
    content = json.dumps(change(json.loads((folder / name).read_text()))).encode()
    (folder / name).write_bytes(content)
    if name == "orders.json":  # whoever edits it can write its hash too
        study = json.loads((folder / "study.json").read_text())
        study["orders_sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "study.json").write_text(json.dumps(study))
    with pytest.raises(DataError, match=error):
        load_study(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return small_study(tmp_path_factory.mktemp("small")).folder


@pytest.mark.parametrize("name", ["study.json", "orders.json", "images.u16", "consent.txt"])
def test_files_that_are_gone_changed_or_links(tmp_path, small, name) -> None:
    shutil.copytree(small, tmp_path / "study")
    file = tmp_path / "study" / name
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load_study(tmp_path / "study")
    file.symlink_to(small / name)
    with pytest.raises(DataError, match="a link"):
        load_study(tmp_path / "study")
    file.unlink()
    for other in (content + b"\0", content[:-1] + b"\xff", b"", b"{" * 100_000):
        file.write_bytes(other)
        with pytest.raises(DataError):
            load_study(tmp_path / "study")
    file.write_bytes(content)
    load_study(tmp_path / "study")
    with pytest.raises(DataError, match="no such study"):
        load_study(tmp_path / "nothing")


def test_truths_that_are_not_the_studys(tmp_path, small) -> None:
    study, file = load_study(small), small.parent / "study.truth.json"
    assert len(load_truth(study, file).items) == 14
    with pytest.raises(DataError, match="cannot be read"):
        load_truth(study, tmp_path / "none.json")
    value = json.loads(file.read_text())
    value["items"][0]["origin"] = "real" if value["items"][0]["origin"] == "synthetic" else "synthetic"
    (tmp_path / "t.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match="not the truth file that the study was made with"):
        load_truth(study, tmp_path / "t.json")


def test_steps_of_the_pixels() -> None:
    assert num_levels((-160, 240)) == 401
    assert num_levels((0, 80)) == 256
    assert num_levels((-1000, 3000)) == 1024
    found = quantise(np.array([0.0, 1.0, 0.5, 0.5 + 0.4 / 400]), 401)
    assert found.tolist() == [328, 65207, 32768, 32768]  # 2, 398, 200 and 200 of 400
    assert found.dtype == np.uint16


def textures(count: int, seed: int) -> np.ndarray:
    """Smooth noise about as lesions are, [count, 64, 64] in (0, 1)."""
    from scipy.ndimage import gaussian_filter

    draws = np.random.default_rng(seed)
    contrast = draws.uniform(0.03, 0.08, count)
    fields = [gaussian_filter(draws.standard_normal((64, 64)), draws.uniform(0.8, 1.6)) for _ in range(count)]
    return np.stack([0.5 + c * field / field.std() for c, field in zip(contrast, fields, strict=True)])


def check(real: np.ndarray, synthetic: np.ndarray):
    images = quantise(np.concatenate([real, synthetic]), 401)
    return encoding_check(images, np.arange(len(images)) >= len(real), 401)


def test_a_classifier_on_encoding_is_at_chance_for_images_of_one_kind() -> None:
    """Sharper or of more contrast is part of a picture, not of its encoding."""
    real = textures(60, 0)
    for synthetic in (textures(60, 1), 0.5 + 1.3 * (textures(60, 1) - 0.5)):
        found = check(real, synthetic)
        assert found.warnings == ()
        assert 0.35 < found.rounding.balanced_accuracy < 0.65


@pytest.mark.parametrize(
    "encode",
    [
        lambda x: np.rint(x * 255) / 255,  # 8 bits
        lambda x: np.rint(x * 63) / 63,
        lambda x: x[:, ::2, ::2].repeat(2, 1).repeat(2, 2),  # enlarged by repeating pixels
        lambda x: np.rint(x * 200) * 2 / 400,  # even HU alone
    ],
)
def test_a_classifier_on_encoding_finds_other_rounding(encode) -> None:
    found = check(textures(40, 0), encode(textures(40, 1)))
    assert found.rounding.balanced_accuracy > 0.9
    assert found.rounding.p_value <= 0.01
    assert "rounded or resized" in found.warnings[0]


def test_pixels_at_the_ends_are_told_apart_from_rounding() -> None:
    clipped = textures(40, 1)
    clipped[:, :3] = 1.0
    found = check(textures(40, 0), clipped)
    assert found.ends.balanced_accuracy > 0.9
    assert found.ends.auc["pixels at the upper end"] == 1.0
    assert any("ends of the window" in warning for warning in found.warnings)


def test_the_command_warns_and_says_what_comes_next(tmp_path, capsys) -> None:
    store = make_store(tmp_path / "rois")
    images = torch.rand(36, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    made = make_synthetic(tmp_path / "s", images=(images * 16).round() / 16)
    with pytest.raises(SystemExit) as exited:
        main(
            [
                "study",
                "new",
                str(store),
                str(tmp_path / "st"),
                "--synthetic",
                str(made),
                "--real",
                "12",
                "--readers",
                "1",
            ]
        )
    assert exited.value.code == 0
    out = capsys.readouterr().out
    assert "phantom data, not patients" in out
    assert "12 real: 4 cyst, 4 hemangioma, 4 metastasis" in out
    assert "warning: real and synthetic images differ in how their pixels are rounded" in out
    assert f"Next: lesionaug study serve {tmp_path / 'st'}" in out
    told = load_truth(load_study(tmp_path / "st")).provenance
    assert any("rounded" in warning for warning in told["warnings"])
    assert told["encoding_check"]["rounding"]["p_value"] < 0.05
    assert "rounded" not in (tmp_path / "st" / "study.json").read_text()
