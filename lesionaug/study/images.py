"""The images of a reader study: real and synthetic ones that could be shown, and the choice among them."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lesionaug.data.rois import RoiBatch
from lesionaug.data.synthetic import SyntheticRois, load_synthetic
from lesionaug.errors import ConfigError, DataError
from lesionaug.experiment.config import ImageConfig
from lesionaug.experiment.results import load_run
from lesionaug.study.encoding import num_levels, quantise
from lesionaug.study.files import MAX_SIZE, MIN_SIZE
from lesionaug.study.options import DEFAULT_NUM, StudyOptions
from lesionaug.study.orders import spread

_SHOW_NOTHING = "{} of {} {} images are one grey or copies of others"
_Image = npt.NDArray[np.float32]


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
class Source:
    """One store of synthetic ROIs: its name, what the truth says of its images, and how to read it."""

    name: str
    about: dict[str, Any]
    load: Callable[[], SyntheticRois]


def find_sources(path: Path, store_hash: str, options: StudyOptions) -> tuple[list[Source], ImageConfig]:
    """The stores of synthetic ROIs of a folder, and how its GANs saw real ones."""
    if not (path / "run.json").exists():
        if options.gans:
            raise ConfigError("--gan", "this is a store of synthetic ROIs, of one GAN", "Leave it out")
        return [Source(path.name, {}, lambda: load_synthetic(path))], ImageConfig()
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
        found.append(Source(step.name, about, lambda folder=path / step.folder / "rois": load_synthetic(folder)))  # type: ignore[misc]
    return found, results.config.image


def synthetic_candidates(
    sources: list[Source], rois: RoiBatch, most: int, seed: int, where: str, warnings: list[str]
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


def choose(
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


def draw_real(
    rois: RoiBatch, window: tuple[float, float], size: int, image: ImageConfig, where: str, warnings: list[str]
) -> tuple[RoiBatch, _Image]:
    """The lesions that show anything, and their un-augmented ROIs as the networks see them: [N, S, S] in (0, 1).

    Raises:
        DataError: More than half show nothing.
    """
    from lesionaug.augment.execute import augment
    from lesionaug.augment.plan import originals

    patches = augment(
        rois, originals(rois), size=size, window=window, a=image.a, antialias=image.antialias, border=image.border
    )
    drawn = patches[:, 0].numpy()
    keep = _telling(drawn, window, set())
    out = len(drawn) - len(keep)
    if 2 * out > len(drawn):
        said = _SHOW_NOTHING.format(out, len(drawn), "real")
        raise DataError(
            where, f"{said}, as the GAN's window ({window[0]:g} .. {window[1]:g} HU) shows them",
            "See that they are in HU, or train with a window that fits them",
        )  # fmt: skip
    _tell_of(out, len(drawn), "real", warnings)
    return rois[keep], drawn[keep]
