"""Making a reader study (paper IV-D): which images, in which order for whom, and the truth apart from all of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lesionaug import __version__
from lesionaug.data.files import check_new_file, check_new_folder, commit_directory, json_text, write_bytes_atomic
from lesionaug.data.rois import UNLABELLED, RoiBatch
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.data.synthetic import SyntheticRois, load_synthetic
from lesionaug.errors import ConfigError, DataError
from lesionaug.experiment import paper
from lesionaug.experiment.config import ImageConfig
from lesionaug.experiment.results import load_run
from lesionaug.study.encoding import encoding_check, num_levels, quantise
from lesionaug.study.files import (
    CONSENT,
    IMAGES,
    LARGEST_VALUE,
    MAX_CLASSES,
    MAX_CONSENT_BYTES,
    MAX_ITEMS,
    MAX_SIZE,
    MAX_SLOTS,
    MIN_SIZE,
    ORDERS,
    ORDERS_SCHEMA,
    STUDY,
    STUDY_SCHEMA,
    TRUTH_SCHEMA,
    VERSION,
    default_truth,
)
from lesionaug.study.orders import keyed, slot_trials, spread

DEFAULT_NUM = 60  # real, and as many synthetic: two tasks of these take a reader about half an hour
_ZOOM = 6
_SHOW_NOTHING = "{} of {} {} images are one grey or copies of others"
_Image = npt.NDArray[np.float32]

CONSENT_TEXT = """\
You are asked to look at small images of lesions and to answer one or two questions about each.

Your answers, the time each one took, your notes, how you set the display, your code name and what you tell of your
experience are stored in a file on this computer and used to describe how readers see these images. Your name is not
asked for. Please write nothing into a note that could identify you or a patient.

Taking part is voluntary. You can pause or stop at any moment, without giving a reason.
"""


@dataclass(frozen=True)
class StudyOptions:
    """What a study is to be; None takes the default of the preset.

    Attributes:
        preset: "paper": 182 real and 120 synthetic images, two keys for the origin. The paper tells of no practice and
            no repeats, so it has none; that one task comes before the other is a reading.
        num_real: Real images that count; 60 by default, fewer where there are fewer.
        num_synthetic: Synthetic ones; as many as real ones by default.
        num_practice: Images before each task that do not count, half of them real.
        repeats: Share of the images that each task shows twice.
        order: "separate" or "combined".
        scale: "six-step" or "two-key".
        num_readers: How many may take part.
        back: "allow" or "lock".
        seed: Of the choice of images. The orders have a key of their own that is always random.
        title: Shown to readers.
        consent: What they agree to.
        gans: Kinds of GAN of a run to take images of; its first by default.
    """

    preset: Literal["paper"] | None = None
    num_real: int | None = None
    num_synthetic: int | None = None
    num_practice: int | None = None
    repeats: float | None = None
    order: Literal["separate", "combined"] = "separate"
    scale: Literal["six-step", "two-key"] | None = None
    num_readers: int = 8
    back: Literal["allow", "lock"] = "allow"
    seed: int = 0
    title: str = "Reader study of lesion images"
    consent: str = CONSENT_TEXT
    gans: tuple[str, ...] = ()


@dataclass(frozen=True)
class NewStudy:
    """What `make_study` made.

    Attributes:
        folder: The study.
        truth: The truth file.
        kind: What the lesions are: "phantom", "imported" or "user".
        counts: (origin, class) -> images that count.
        num_practice: Images of the practice.
        trials_per_reader: Answers that a reader gives.
        warnings: Sentences, none identifying.
    """

    folder: Path
    truth: Path
    kind: str
    counts: dict[tuple[str, str], int]
    num_practice: int
    trials_per_reader: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """An image that could be shown.

    Attributes:
        origin: "real" or "synthetic".
        class_name: Its class.
        image: float32 [S, S] in (0, 1), the range of the window.
        lesion_id: Of a real lesion.
        patient: Pseudonym, of a real lesion.
        source: For the truth file.
    """

    origin: str
    class_name: str
    image: _Image
    lesion_id: str | None
    patient: str | None
    source: dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """One store of synthetic ROIs: its name, what the truth says of its images, and how to read it."""

    name: str
    about: dict[str, Any]
    load: Callable[[], SyntheticRois]


def make_study(
    rois_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    synthetic: str | os.PathLike[str],
    options: StudyOptions | None = None,
    truth: str | os.PathLike[str] | None = None,
) -> NewStudy:
    """Choose images, put them in order for every reader slot, and write the study and, apart from it, its truth.

    Args:
        rois_path: ROI store of the real lesions.
        out: Folder to create.
        synthetic: Store of `lesionaug gan sample`, or a run on the same ROI store.
        options: What the study is to be.
        truth: The truth file to create; beside the folder by default.

    Raises:
        ConfigError: Options that contradict each other.
        DataError: Stores or runs that cannot be read or do not belong together; too few images; files that exist.
    """
    options = _settled(options or StudyOptions())
    folder, rois_path, synthetic = Path(out), Path(rois_path), Path(synthetic)
    truth_file = default_truth(folder.absolute()) if truth is None else Path(truth)
    if folder.absolute() in truth_file.absolute().parents:
        raise ConfigError("--truth", "the truth must not lie in the study's folder", "Name a file somewhere else")
    check_new_folder(folder, "the study")
    check_new_file(truth_file)
    warnings: list[str] = []
    rois, store_hash = load_rois(rois_path), manifest_sha256(rois_path)
    unlabelled = int((rois.labels == UNLABELLED).sum())
    if unlabelled == len(rois):
        raise DataError(rois_path.name, "no lesion has a class", "Import them with their classes")
    if unlabelled:
        warnings.append(f"{unlabelled} lesions without a class are left out")
        rois = rois[rois.labels != UNLABELLED]
    if len(rois.classes) > MAX_CLASSES:
        raise DataError(
            rois_path.name, f"there are {len(rois.classes)} classes, and {MAX_CLASSES} digit keys", "Merge some"
        )
    most = (options.num_synthetic or options.num_real or DEFAULT_NUM) + (options.num_practice or 0)
    with _option("--synthetic"):
        sources, image = _sources(synthetic, store_hash, options)
        made, window, size = _synthetic(sources, rois, most, options.seed, synthetic.name, warnings)
    patches = _draw_real(rois, window, size, image)
    keep = _telling(patches, window, set())
    blank = len(patches) - len(keep)
    if 2 * blank > len(patches):
        said = _SHOW_NOTHING.format(blank, len(patches), "real")
        raise DataError(
            rois_path.name, f"{said}, as the GAN's window ({window[0]:g} .. {window[1]:g} HU) shows them",
            "See that they are in HU, or train with a window that fits them",
        )  # fmt: skip
    _tell_of(blank, len(patches), "real", warnings)
    chosen = _choose(rois[keep], patches[keep], made, options)
    key = secrets.token_bytes(32)
    keyed(key, "items").shuffle(chosen)
    return _write(folder, truth_file, rois, chosen, window, key, options, warnings, {
        "seed": options.seed,
        "store_manifest_sha256": store_hash,
        "synthetic": [source.about for source in sources],
        "image": image.model_dump(mode="json") | {"window_hu": list(window)},
    })  # fmt: skip


@contextlib.contextmanager
def _option(option: str) -> Iterator[None]:
    """Name the option that an error comes from."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if error.where.startswith("--"):
            raise
        raise type(error)(f"{option} {error.where}", error.rule, error.fix) from error


def _settled(options: StudyOptions) -> StudyOptions:
    """The options with the defaults of their preset, checked."""
    printed = options.preset == "paper"
    values = dict(vars(options))
    for name, of_paper, default in (
        ("num_real", paper.EXPERT_NUM_REAL, None),
        ("num_synthetic", paper.EXPERT_NUM_SYNTHETIC, None),
        ("num_practice", 0, 10),
        ("repeats", 0.0, 0.1),
        ("scale", "two-key", "six-step"),
    ):
        if values[name] is None:
            values[name] = of_paper if printed else default
    settled = StudyOptions(**values)
    for option, value, low, high in (
        ("--real", settled.num_real, 1, MAX_ITEMS),
        ("--fake", settled.num_synthetic, 1, MAX_ITEMS),
        ("--practice", settled.num_practice, 0, MAX_ITEMS),
        ("--repeats", settled.repeats, 0, 1),
        ("--readers", settled.num_readers, 1, MAX_SLOTS),
        ("--seed", settled.seed, 0, (1 << 64) - 1),
    ):
        if value is not None and not low <= value <= high:
            raise ConfigError(option, f"it must lie in {low} .. {high}, got {value}", "Choose another number")
    if not (0 < len(settled.title) <= 200 and settled.title.isprintable()):
        raise ConfigError("--title", "a title has 1 .. 200 printable characters", "Choose another")
    if not settled.consent.strip() or len(settled.consent.encode()) > MAX_CONSENT_BYTES:
        raise ConfigError("--consent", f"the text must have 1 .. {MAX_CONSENT_BYTES} bytes", "Write another")
    return settled


def _sources(path: Path, store_hash: str, options: StudyOptions) -> tuple[list[_Source], ImageConfig]:
    """The stores of synthetic ROIs of a folder, and how its GANs saw real ones."""
    if not (path / "run.json").exists():
        if options.gans:
            raise ConfigError("--gan", "this is a store of synthetic ROIs, of one GAN", "Leave it out")
        return [_Source(path.name, {}, lambda: load_synthetic(path))], ImageConfig()
    if not (path / "synthetic").is_dir() and (path / "gans").is_dir() and not (path / "models").is_dir():
        raise DataError(
            path.name, "this is a folder of `gan train`", "Give a store that `lesionaug gan sample` made of it"
        )
    results = load_run(path)
    if results.info["store"]["manifest_sha256"] != store_hash:
        raise DataError(path.name, "the run was made from another ROI store", "Give the run's own store as ROIS")
    if not results.config.gans:
        raise DataError(path.name, "the run has no GANs", "Give another run, or a store of `lesionaug gan sample`")
    wanted = options.gans or results.config.gans[:1]
    unknown = [name for name in wanted if name not in results.config.gans]
    if unknown:
        raise ConfigError("--gan", f"the run has no {unknown[0]}", f"Choose among {', '.join(results.config.gans)}")
    steps = [step for step in results.steps if step.kind == "synthetic" and step.arm in wanted]
    missing = [step.name for step in steps if step.name not in results.done]
    if missing:
        raise DataError(path.name, f"{missing[0]} is not done", "Run `lesionaug run` again; it resumes")
    found = []
    for step in steps:
        about = {"gan": step.arm, "split": step.split, "seed": step.seed, "step_sha256": results.done[step.name]}
        found.append(_Source(step.name, about, lambda folder=path / step.folder / "rois": load_synthetic(folder)))  # type: ignore[misc]
    return found, results.config.image


def _synthetic(
    sources: list[_Source], rois: RoiBatch, most: int, seed: int, where: str, warnings: list[str]
) -> tuple[dict[str, list[list[Candidate]]], tuple[float, float], int]:
    """Synthetic images by class and source, in random order; the window and size they have."""
    queues: dict[str, list[list[Candidate]]] = {name: [] for name in rois.classes}
    seen: set[tuple[tuple[float, float], int]] = set()
    known = set(rois.lesion_ids)
    pixels: set[bytes] = set()
    collapsed: dict[str, str] = {}
    offered = left_out = 0
    for source in sources:
        store = source.load()
        if store.kind != rois.kind:
            raise DataError(
                where, f"its GAN learned from {store.kind} data, these ROIs are {rois.kind}", "Do not mix them"
            )
        if set(store.classes) != set(rois.classes):
            raise DataError(
                where, f"its classes are {', '.join(store.classes)}, those of the ROIs {', '.join(rois.classes)}",
                "Give images of the same classes",
            )  # fmt: skip
        seen.add((store.window_hu, store.images.shape[-1]))
        if not source.about:
            source.about.update(
                {"gan": store.details.get("gan"), "split": store.split, "seed": store.details.get("seed"),
                 "copies_rejected": store.details.get("copies_rejected")}
            )  # fmt: skip
            if not known & store.provenance.lesions:
                warnings.append("none of the real lesions is one that the GAN learned from: two data sets are compared")
        keep = _telling(store.images[:, 0].numpy(), store.window_hu, pixels)
        out = len(store.images) - len(keep)
        if 2 * out > len(store.images):  # more than half: whoever reads them learns nothing of the others either
            collapsed[source.name] = _SHOW_NOTHING.format(out, len(store.images), "synthetic")
            source.about["left_out"] = "collapsed"
            continue
        offered, left_out = offered + len(store.images), left_out + out
        for name in rois.classes:
            label = store.classes.index(name)
            members = [i for i in keep if int(store.labels[i]) == label]
            random.Random(f"{seed}|synthetic|{source.about}|{name}").shuffle(members)
            queues[name].append(
                [
                    Candidate(
                        "synthetic", name, store.images[i, 0].numpy().copy(), None, None, {**source.about, "index": i}
                    )
                    for i in members[:most]
                ]
            )
    if len(collapsed) == len(sources):
        rule = f"{next(iter(collapsed.values()))}: the GAN has not learned"
        raise DataError(where, rule, "Train it longer, e.g. with `lesionaug run --preset demo`")
    warnings += [
        f"{name}: {said}: this GAN is left out, and the others stand for it" for name, said in collapsed.items()
    ]
    _tell_of(left_out, offered, "synthetic", warnings)
    if len(seen) != 1:
        raise DataError(where, "its images have different windows or sizes", "Give images of one configuration")
    window, size = seen.pop()
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise DataError(where, f"images have {size} pixels per side, not {MIN_SIZE} .. {MAX_SIZE}", "Give others")
    return queues, window, size


def _telling(images: _Image, window: tuple[float, float], seen: set[bytes]) -> list[int]:
    """Images [N, S, S] that show anything and that no earlier one equals, as a study shows them.

    Args:
        images: In (0, 1), the range of the window.
        window: HU.
        seen: Hashes of earlier ones; those of these are added.
    """
    levels, keep = num_levels(window), []
    for i, image in enumerate(images):
        shown = quantise(image, levels)
        found = hashlib.sha256(shown.tobytes()).digest()
        if shown.min() < shown.max() and found not in seen:
            keep.append(i)
        seen.add(found)
    return keep


def _tell_of(out: int, of: int, what: str, warnings: list[str]) -> None:
    if out:
        warnings.append(f"{_SHOW_NOTHING.format(out, of, what)}: left out")


def _in_turn(parts: Sequence[Sequence[Candidate]], first: int) -> list[Candidate]:
    """The images of several sources, one of each in turn, beginning with one of them."""
    first %= len(parts)
    parts = [*parts[first:], *parts[:first]]
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def _choose(
    rois: RoiBatch,
    patches: _Image,
    made: dict[str, list[list[Candidate]]],
    options: StudyOptions,
) -> list[tuple[Candidate, bool]]:
    """Real and synthetic images with whether each is for practice."""
    rows = {name: _real_rows(rois, number, options.seed) for number, name in enumerate(rois.classes)}
    have_real, have_made = (
        [len(rows[name]) for name in rois.classes],
        [sum(map(len, made[name])) for name in rois.classes],
    )
    num_practice = options.num_practice or 0
    practice_real = spread((num_practice + 1) // 2, have_real)
    practice_made = spread(num_practice // 2, have_made)
    free_real = [have - used for have, used in zip(have_real, practice_real, strict=True)]
    free_made = [have - used for have, used in zip(have_made, practice_made, strict=True)]
    num_real, num_made = options.num_real, options.num_synthetic
    if num_real is None and num_made is None:
        num_real = num_made = min(DEFAULT_NUM, sum(free_real), sum(free_made))
    num_real, num_made = num_real or num_made or 0, num_made or num_real or 0
    for what, wanted, have, option in (
        ("real", num_real, sum(free_real), "--real"),
        ("synthetic", num_made, sum(free_made), "--fake"),
        ("practice", num_practice, sum(practice_real) + sum(practice_made), "--practice"),
    ):
        if have < wanted or (what != "practice" and wanted == 0):
            raise DataError(
                "images", f"{max(wanted, 1)} {what} ones are wanted, and {have} are there beside the practice",
                f"Give more of them, or a smaller {option}",
            )  # fmt: skip
    counts_real = spread(num_real, free_real)
    same = num_real == num_made and all(a <= b for a, b in zip(counts_real, free_made, strict=True))
    counts_made = counts_real if same else spread(num_made, free_made)
    used: list[tuple[int, bool]] = []
    chosen: list[tuple[Candidate, bool]] = []
    for i, name in enumerate(rois.classes):
        picked = rows[name][: counts_real[i]]
        rehearsed = rows[name][len(rows[name]) - practice_real[i] :]
        used += [(row, False) for row in picked] + [(row, True) for row in rehearsed]
        in_turn = _in_turn(made[name], sum(counts_made[:i]))  # goes on with the source after the last class's
        chosen += [(candidate, False) for candidate in in_turn[: counts_made[i]]]
        chosen += [(candidate, True) for candidate in in_turn[counts_made[i] :][: practice_made[i]]]
    labels = rois.labels.tolist()
    for row, practice in used:
        name, lesion, patient = rois.classes[labels[row]], rois.lesion_ids[row], rois.patient_ids[row]
        chosen.append((Candidate("real", name, patches[row], lesion, patient, {}), practice))
    return chosen


def _real_rows(rois: RoiBatch, label: int, seed: int) -> list[int]:
    """Lesions of a class in random order, every patient's first one before any second one."""
    rows = [i for i, found in enumerate(rois.labels.tolist()) if found == label]
    random.Random(f"{seed}|real|{rois.classes[label]}").shuffle(rows)
    before: Counter[str] = Counter()
    ranks = {}
    for row in rows:
        ranks[row] = before[rois.patient_ids[row]]
        before[rois.patient_ids[row]] += 1
    return sorted(rows, key=lambda row: ranks[row])


def _draw_real(rois: RoiBatch, window: tuple[float, float], size: int, image: ImageConfig) -> _Image:
    """The un-augmented ROIs of lesions, sampled as the networks see them: [N, S, S] in (0, 1)."""
    from lesionaug.augment.execute import augment
    from lesionaug.augment.plan import originals

    patches = augment(
        rois, originals(rois), size=size, window=window, a=image.a, antialias=image.antialias, border=image.border
    )
    return patches[:, 0].numpy()


def _write(
    folder: Path,
    truth_file: Path,
    rois: RoiBatch,
    chosen: list[tuple[Candidate, bool]],
    window: tuple[float, float],
    key: bytes,
    options: StudyOptions,
    warnings: list[str],
    provenance: dict[str, Any],
) -> NewStudy:
    levels = num_levels(window)
    images = quantise(np.stack([candidate.image for candidate, _ in chosen]), levels)
    counted = np.array([not practice for _, practice in chosen])
    origins = np.array([candidate.origin == "synthetic" for candidate, _ in chosen])
    check = encoding_check(images[counted], origins[counted], levels)
    warnings += check.warnings
    num_items = int(counted.sum())
    num_repeats = round((options.repeats or 0) * num_items)
    tasks = ["class", "origin"] if len(rois.classes) > 1 else ["origin"]
    study_id = secrets.token_hex(16)
    kinds = [(candidate.class_name, candidate.origin) for candidate, _ in chosen]
    practice = [item for item, (_, rehearsed) in enumerate(chosen) if rehearsed]
    slots = [
        slot_trials(key, slot, kinds, practice, tasks, num_repeats, options.order)
        for slot in range(options.num_readers)
    ]
    orders = {"schema": ORDERS_SCHEMA, "version": VERSION, "study_id": study_id, "slots": slots}
    truth = {
        "schema": TRUTH_SCHEMA,
        "version": VERSION,
        "study_id": study_id,
        "key": key.hex(),
        "items": [
            {
                "item": item,
                "origin": candidate.origin,
                "class": candidate.class_name,
                "lesion_id": candidate.lesion_id,
                "patient": candidate.patient,
                "source": candidate.source,
                "practice": practice,
                "cnn": None,
            }
            for item, (candidate, practice) in enumerate(chosen)
        ],
        "provenance": provenance | {"encoding_check": check.to_json(), "warnings": warnings},
    }
    content = {
        IMAGES: images.astype("<u2").tobytes(),
        ORDERS: json_text(orders).encode(),
        CONSENT: options.consent.encode(),
    }
    truth_bytes = json_text(truth).encode()
    study = {
        "schema": STUDY_SCHEMA,
        "version": VERSION,
        "study_id": study_id,
        "kind": rois.kind,
        "title": options.title,
        "design": {
            "tasks": tasks,
            "order": options.order,
            "scale": options.scale,
            "classes": list(rois.classes),
            "num_items": num_items,
            "num_practice": len(chosen) - num_items,
            "num_repeats": num_repeats,
            "repeat_fraction": options.repeats,
            "back": options.back,
            "size": images.shape[-1],
            "num_levels": levels,
            "window_hu": list(window),
            "value_range": [0, LARGEST_VALUE],
            "preset": options.preset,
            "num_readers": options.num_readers,
        },
        "display": {"zoom": _ZOOM, "smooth": False},
        "consent_sha256": hashlib.sha256(content[CONSENT]).hexdigest(),
        "truth_sha256": hashlib.sha256(truth_bytes).hexdigest(),
        "images_sha256": hashlib.sha256(content[IMAGES]).hexdigest(),
        "orders_sha256": hashlib.sha256(content[ORDERS]).hexdigest(),
        "versions": {"lesionaug": __version__, "numpy": np.__version__, "python": platform.python_version()},
    }
    _write_secret(truth_file, truth_bytes)
    try:
        with commit_directory(folder) as temporary:
            for name, written in content.items():
                write_bytes_atomic(temporary / name, written)
            write_bytes_atomic(temporary / STUDY, json_text(study).encode())
    except BaseException:
        truth_file.unlink(missing_ok=True)
        raise
    counts = Counter((candidate.origin, candidate.class_name) for candidate, practice in chosen if not practice)
    return NewStudy(
        folder, truth_file, rois.kind, dict(counts), len(chosen) - num_items, len(slots[0]), tuple(warnings)
    )


def _write_secret(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def consent_of(path: Path) -> str:
    """Read a consent text.

    Raises:
        DataError: It cannot be read, or is no UTF-8.
    """
    if not path.exists():
        raise DataError("--consent", f"the file {path.name} does not exist", "Give a text file that readers agree to")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("--consent", f"{path.name} must be a UTF-8 text file", "Save it as plain text") from error


def count_lines(counts: dict[tuple[str, str], int]) -> Iterable[str]:
    """The images of a study, a line for each origin."""
    for origin in ("real", "synthetic"):
        found = {name: count for (of, name), count in counts.items() if of == origin}
        parts = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
        yield f"{sum(found.values())} {origin}: {parts}"
