"""The phantom data set, in place of the paper's private one: made-up patients as real DICOM CT and DICOM SEG.

It stands where the paper's 182 slices cannot: for demos, tests and trying things out. It is a drawing, not a simulation
of physics, and no result on it says anything about patients. Here: who has which lesions, and the writing; the anatomy
is in `anatomy`, `vessels` and `painting`, the lesions in `lesions`, the scanner in `scanner`, the files in `dicom`,
and every number that one may want to change in `recipe`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from threadpoolctl import threadpool_limits

from lesionaug import __version__
from lesionaug.data.files import commit_directory
from lesionaug.data.phantom.anatomy import (
    HIGHEST_MM,
    LOWEST_MM,
    Geometry,
    Patient,
    cut_slice,
    draw_patient,
)
from lesionaug.data.phantom.dicom import COMMENT, SegmentMask, SliceFile, write_patient
from lesionaug.data.phantom.lesions import (
    LesionBody,
    PlacedLesion,
    draw_body,
    enlarged_host,
    paint_lesion,
    place_lesions,
)
from lesionaug.data.phantom.painting import paint_anatomy
from lesionaug.data.phantom.recipe import PhantomRecipe
from lesionaug.data.phantom.scanner import Scan, draw_scan, scan_slice
from lesionaug.data.phantom.shapes import SLICE_SIZE, Grid
from lesionaug.errors import ConfigError

GENERATOR = 5  # raise it with every change of a pixel: equal UIDs must mean equal files
PATIENTS_PER_LESION = 150 / 182
LARGEST_COUNT = 100_000
TRIES_FOR_A_SLICE = 40
_PLAN, _PATIENT = 0, 1  # the two families of random streams

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PhantomSummary:
    """What `write_phantom` wrote.

    Attributes:
        path: The folder.
        seed: Its seed.
        lesions: Number of lesions by class.
        num_patients: Patients (folders).
        num_several: Patients with two or three lesions.
        num_slices: CT slices.
    """

    path: Path
    seed: int
    lesions: dict[str, int]
    num_patients: int
    num_several: int
    num_slices: int


@dataclass(frozen=True)
class PatientPlan:
    """One patient to write: number from 1, class of each lesion, and what all randomness and UIDs come from.

    `one_slice` asks for all lesions on one slice; they get one each where they do not fit together.
    """

    number: int
    classes: tuple[str, ...]
    one_slice: bool
    seed: int
    recipe: PhantomRecipe
    uid_root: tuple[str, ...]

    @property
    def patient_id(self) -> str:
        """PatientID and folder name."""
        return f"PHANTOM-{self.number:04d}"


def _generator(seed: int, *key: int) -> Generator:
    return Generator(Philox(SeedSequence(seed, spawn_key=key)))


def plan_patients(
    lesions: Sequence[int] | None, seed: int, patients: int | None = None, recipe: PhantomRecipe | None = None
) -> list[PatientPlan]:
    """Share the lesions out among patients: most have one, some two, a few three; half of these share one slice.

    Args:
        lesions: Number of lesions of each class, in the recipe's order; None takes the recipe's counts.
        seed: 0 <= seed < 2**64.
        patients: Number of patients; by default 150 for every 182 lesions.
        recipe: What the phantom is made of; the default has cysts, metastases and hemangiomas.

    Raises:
        ConfigError: For counts, a seed or a number of patients that cannot be.
    """
    recipe = recipe or PhantomRecipe()
    names = tuple(recipe.classes)
    counts = [kind.count for kind in recipe.classes.values()] if lesions is None else [int(n) for n in lesions]
    if len(counts) != len(names):
        raise ConfigError(
            "--lesions",
            f"wants {len(names)} counts ({', '.join(names)}), got {len(counts)}",
            "Write for example --lesions 53 64 65",
        )
    if min(counts) < 0 or sum(counts) == 0 or max(counts) > LARGEST_COUNT:
        raise ConfigError(
            "--lesions",
            f"wants counts from 0 to {LARGEST_COUNT}, not all 0, got {' '.join(map(str, counts))}",
            "Write for example --lesions 53 64 65",
        )
    if not 0 <= seed < 2**64:
        raise ConfigError("--seed", f"wants a whole number from 0 to 2^64 - 1, got {seed}", "Choose a smaller seed")
    total = sum(counts)
    fewest = -(-total // 3)
    if patients is None:
        patients = max(fewest, round(total * PATIENTS_PER_LESION))
    if not fewest <= patients <= total:
        raise ConfigError(
            "--patients",
            f"{total} lesions, one to three a patient, need {fewest} to {total} patients, got {patients}",
            f"Choose a number from {fewest} to {total}, or leave it out",
        )
    rng = _generator(seed, _PLAN)
    left = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    rng.shuffle(left)
    groups: list[tuple[str, ...]] = []
    for size in _group_sizes(total, patients):
        group = [left.pop()]
        for _ in range(size - 1):  # of one kind more often than by chance, as in patients
            same = group[0] in left and rng.random() < 0.5
            group.append(left.pop(left.index(group[0])) if same else left.pop())
        groups.append(tuple(group))
    order = rng.permutation(len(groups))
    # Other counts under the same seed are other patients, so everything that shapes the data set names its UIDs.
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
    uid_root = (
        f"generator {GENERATOR}",
        f"seed {seed}",
        f"lesions {counts}",
        f"patients {patients}",
        f"recipe {digest}",
    )
    return [
        PatientPlan(number, groups[index], index % 2 == 0, seed, recipe, (*uid_root, f"patient {number}"))
        for number, index in enumerate(order, 1)
    ]


def _group_sizes(total: int, patients: int) -> list[int]:
    """Number of lesions of each patient, the larger first: a fifth of the surplus makes threes, the rest twos."""
    surplus = total - patients
    threes = min(surplus // 2, max(round(0.2 * surplus), surplus - patients))
    twos = surplus - 2 * threes
    return [3] * threes + [2] * twos + [1] * (patients - threes - twos)


def draw_patient_slices(plan: PatientPlan) -> tuple[list[SliceFile], list[SegmentMask], Scan]:
    """Draw one patient: the slices, the margins on them, and the scan they were taken with."""
    rng = _generator(plan.seed, _PATIENT, plan.number)
    recipe = plan.recipe
    patient = draw_patient(rng, recipe.tissue)
    scan = draw_scan(patient.half_width_mm, rng, recipe.scan)
    middle = SLICE_SIZE / 2
    grid = Grid(scan.spacing_mm, (middle + float(rng.normal(0, 6)), middle - 14 + float(rng.normal(0, 6))))
    bodies = [draw_body(name, recipe.classes[name], rng) for name in plan.classes]

    slices: list[SliceFile] = []
    masks: dict[int, SegmentMask] = {}
    for geometry, placed in _fill_slices(patient, grid, scan, bodies, plan, rng):
        enlarged = {recipe.host: enlarged_host(getattr(geometry, recipe.host), geometry, placed)}
        hu = paint_anatomy(geometry, rng, **enlarged)
        for lesion in placed:
            paint_lesion(hu, lesion, geometry, getattr(patient.hu, recipe.host), rng)
            mask = np.zeros((SLICE_SIZE, SLICE_SIZE), np.bool_)
            mask[lesion.box] = lesion.mask
            masks[id(lesion.body)] = SegmentMask(lesion.body.name, len(slices), mask)
        slices.append(SliceFile(scan_slice(hu, scan, rng), grid, geometry.z_mm))
    return slices, [masks[id(body)] for body in bodies], scan


def _fill_slices(
    patient: Patient, grid: Grid, scan: Scan, bodies: list[LesionBody], plan: PatientPlan, rng: Generator
) -> list[tuple[Geometry, list[PlacedLesion]]]:
    """Choose the slices and put the lesions on them: all on one, or each on its own, out of reach of the others."""
    thickness = scan.thickness_mm

    def attempt(z_mm: float, some: list[LesionBody]) -> tuple[Geometry, list[PlacedLesion]] | None:
        geometry = cut_slice(patient, grid, round(z_mm / thickness) * thickness, thickness)
        placed = place_lesions(some, geometry, getattr(geometry, plan.recipe.host), rng)
        return None if placed is None else (geometry, placed)

    def heights(body: LesionBody) -> tuple[float, float]:
        """A large lesion needs the middle of the organ."""
        shrink = 1 - 0.7 * min(1.0, body.diameter_mm / 100)
        return LOWEST_MM * shrink, HIGHEST_MM * shrink

    if len(bodies) > 1 and plan.one_slice:
        for _ in range(TRIES_FOR_A_SLICE // 4):
            found = attempt(float(rng.uniform(*heights(max(bodies, key=lambda body: body.diameter_mm)))), bodies)
            if found is not None:
                return [found]
    filled: list[tuple[Geometry, list[PlacedLesion]]] = []
    for body in bodies:
        apart = 1.0
        for _ in range(TRIES_FOR_A_SLICE):
            z_mm = float(rng.uniform(*heights(body)))
            near = [abs(z_mm - g.z_mm) < apart * (body.reach_mm + p[0].body.reach_mm) for g, p in filled]
            same = [abs(z_mm - g.z_mm) < 2 * thickness for g, _ in filled]
            apart *= 0.95  # two large lesions cannot be out of reach of each other; then a part of it must do
            if any(near) or any(same):
                continue
            found = attempt(z_mm, [body])
            if found is not None:
                filled.append(found)
                break
        else:
            raise AssertionError("one lesion always fits: its wanted depth is below the organ's largest")
    return filled


def _write_patient(plan: PatientPlan, folder: str) -> int:
    """Write one patient below `folder`; returns the number of slices. A function of its own, for worker processes."""
    # One BLAS thread: the same bits whatever the machine's number of cores, and no two pools in each other's way.
    with threadpool_limits(1):
        slices, segments, scan = draw_patient_slices(plan)
    write_patient(Path(folder) / plan.patient_id, slices, segments, scan, plan.number, plan.uid_root, plan.recipe.host)
    return len(slices)


def write_phantom(
    out: str | os.PathLike[str],
    lesions: Sequence[int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    patients: int | None = None,
    workers: int = 1,
    recipe: PhantomRecipe | None = None,
) -> PhantomSummary:
    """Write a phantom data set: a folder for each patient with CT slices and a segmentation, and README.txt.

    Nothing appears at `out` before all of it is written. The bytes depend on the seed, the counts, the recipe and the
    versions of lesionaug, NumPy, SciPy and highdicom, not on the number of workers.

    Args:
        out: The folder to create; it must not exist, its parent must.
        lesions: Number of lesions of each class; the default is the recipe's, whose default is the paper's.
        seed: 0 <= seed < 2**64.
        progress: Called with (patients done, patients in all, patient id).
        patients: Number of patients, from a third of the number of lesions to all of it; by default 150 for every 182.
        workers: Processes. More than one needs the caller's `if __name__ == "__main__":`, as they are spawned.
        recipe: Classes, contrasts and scanners; see `load_recipe`.

    Raises:
        ConfigError: When `out` exists, its parent does not, or a number cannot be.
    """
    target = Path(out)
    plans = plan_patients(lesions, seed, patients, recipe)
    if workers < 1:
        raise ConfigError("--workers", f"wants at least 1 process, got {workers}", "Write --workers 1")
    if target.exists() or target.is_symlink():
        raise ConfigError(str(out), "exists already, and a phantom never overwrites", "Name a new folder or remove it")
    if not target.parent.is_dir():
        raise ConfigError(str(out), "its parent folder does not exist", "Create the parent folder first")
    num_slices = 0
    with commit_directory(target) as folder:
        for done, (plan, written) in enumerate(_written(plans, str(folder), workers), 1):
            num_slices += written
            if progress is not None:
                progress(done, len(plans), plan.patient_id)
        counts = Counter(name for plan in plans for name in plan.classes)
        summary = PhantomSummary(
            path=target,
            seed=seed,
            lesions={name: counts[name] for name in plans[0].recipe.classes},
            num_patients=len(plans),
            num_several=sum(len(plan.classes) > 1 for plan in plans),
            num_slices=num_slices,
        )
        recipe_json = plans[0].recipe.model_dump_json(indent=1)
        (folder / "recipe.json").write_text(recipe_json + "\n", encoding="utf-8")
        (folder / "README.txt").write_text(_readme(summary), encoding="utf-8")
    return summary


def _written(plans: Sequence[PatientPlan], folder: str, workers: int) -> Iterator[tuple[PatientPlan, int]]:
    """Write all patients here or in `workers` processes; yields each as it is done."""
    if workers == 1:
        for plan in plans:
            yield plan, _write_patient(plan, folder)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        futures = {pool.submit(_write_patient, plan, folder): plan for plan in plans}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # on an error too: nobody may write into a folder that is being removed


def _readme(summary: PhantomSummary) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in summary.lesions.items())
    return f"""lesionaug phantom: synthetic, not patients
===========================================

Everything in this folder was drawn by a program. No image, outline, name, date or UID
comes from a person or a scanner. Results on it say nothing about patients, and must
be shown as results on a phantom.

Written by     lesionaug {__version__} (generator {GENERATOR}), `lesionaug phantom`
Seed           {summary.seed}
Patients       {summary.num_patients} ({summary.num_several} with two or three lesions)
CT slices      {summary.num_slices}
Lesions        {counts}

One folder a patient: ct-NNNN.dcm are CT Image Storage slices in portal venous phase
style, margins.seg.dcm is a binary DICOM SEG with one segment a lesion, whose
SegmentLabel is the class. Every file says so in its tags: SyntheticData YES,
Manufacturer "lesionaug phantom", ImageComments "{COMMENT}".
The dates 1900-01-01 are placeholders. recipe.json holds every number it was drawn with.

Next:  lesionaug data import THIS_FOLDER ROIS

Licence: made by a program from random numbers, without anybody's data. Use it as you
like (CC0 1.0); lesionaug itself is under the Apache License 2.0.
"""
