"""The phantom data set, in place of the paper's private one: made-up patients as real DICOM CT and DICOM SEG.

It stands where the paper's 182 slices cannot: for demos, tests and trying things out. It is a drawing, not a simulation
of physics, and no result on it says anything about patients. Here: who has which lesions, and the writing; the anatomy
is in `phantom_anatomy`, the lesions in `phantom_lesions`, the scanner in `phantom_scan`, the files in `phantom_dicom`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.random import Generator, Philox, SeedSequence

from lesionaug import __version__
from lesionaug.data.files import commit_directory
from lesionaug.data.phantom_anatomy import Geometry, draw_geometry, draw_patient, paint_anatomy
from lesionaug.data.phantom_dicom import COMMENT, SegmentMask, SliceFile, write_patient
from lesionaug.data.phantom_lesions import (
    CLASSES,
    PlacedLesion,
    draw_shape,
    enlarged_liver,
    paint_lesion,
    place_lesions,
)
from lesionaug.data.phantom_scan import Scan, draw_scan, scan_slice
from lesionaug.data.phantom_shapes import SLICE_SIZE, Grid
from lesionaug.errors import ConfigError

GENERATOR = 1  # raise it with every change of a pixel: equal UIDs must mean equal files
PATIENTS_PER_LESION = 150 / 182
LARGEST_COUNT = 100_000
TRIES_FOR_ONE_SLICE = 10
LEVEL_RANGE_MM = 90.0  # from the dome of the liver (level 0) down to the kidneys (level 1)
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
        num_two_lesions: Patients with two lesions.
        num_slices: CT slices.
    """

    path: Path
    seed: int
    lesions: dict[str, int]
    num_patients: int
    num_two_lesions: int
    num_slices: int


@dataclass(frozen=True)
class PatientPlan:
    """One patient to write: number from 1, class of each lesion, and what all randomness and UIDs come from.

    `one_slice` asks for two lesions on one slice; they get one each where they do not fit together.
    """

    number: int
    classes: tuple[str, ...]
    one_slice: bool
    seed: int
    uid_root: tuple[str, ...]


def _generator(seed: int, *key: int) -> Generator:
    return Generator(Philox(SeedSequence(seed, spawn_key=key)))


def plan_patients(lesions: Sequence[int], seed: int, patients: int | None = None) -> list[PatientPlan]:
    """Share the lesions out among patients: one each, two for as many as needed; half of the pairs share a slice.

    Args:
        lesions: Number of cysts, metastases and hemangiomas.
        seed: 0 <= seed < 2**64.
        patients: Number of patients; by default 150 for every 182 lesions.

    Raises:
        ConfigError: For counts, a seed or a number of patients that cannot be.
    """
    counts = [int(count) for count in lesions]
    if len(counts) != len(CLASSES):
        raise ConfigError(
            "--lesions",
            f"wants {len(CLASSES)} counts ({', '.join(CLASSES)}), got {len(counts)}",
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
    fewest = (total + 1) // 2
    if patients is None:
        patients = max(fewest, round(total * PATIENTS_PER_LESION))
    if not fewest <= patients <= total:
        raise ConfigError(
            "--patients",
            f"{total} lesions, one or two a patient, need {fewest} to {total} patients, got {patients}",
            f"Choose a number from {fewest} to {total}, or leave it out",
        )
    rng = _generator(seed, _PLAN)
    left = [name for name, count in zip(CLASSES, counts, strict=True) for _ in range(count)]
    rng.shuffle(left)
    groups: list[tuple[str, ...]] = []
    for _ in range(total - patients):
        first = left.pop()
        same = first in left and rng.random() < 0.5
        second = left.pop(left.index(first)) if same else left.pop()
        groups.append((first, second))
    groups += [(name,) for name in left]
    order = rng.permutation(len(groups))
    # Other counts under the same seed are other patients, so everything that shapes the data set names its UIDs.
    uid_root = (f"generator {GENERATOR}", f"seed {seed}", f"lesions {counts}", f"patients {patients}")
    return [
        PatientPlan(number, groups[index], index % 2 == 0, seed, (*uid_root, f"patient {number}"))
        for number, index in enumerate(order, 1)
    ]


def draw_patient_slices(plan: PatientPlan) -> tuple[list[SliceFile], list[SegmentMask], Scan]:
    """Draw one patient: the slices, the margins on them, and the scan they were taken with."""
    rng = _generator(plan.seed, _PATIENT, plan.number)
    patient = draw_patient(rng)
    scan = draw_scan(patient, rng)
    middle = SLICE_SIZE / 2
    grid = Grid(scan.spacing_mm, (middle + float(rng.normal(0, 6)), middle - 14 + float(rng.normal(0, 6))))
    shapes = [draw_shape(name, rng) for name in plan.classes]
    level = float(rng.uniform(0, 1))

    drawn: list[tuple[Geometry, float, list[PlacedLesion]]] = []
    if len(shapes) > 1 and plan.one_slice:
        for _ in range(TRIES_FOR_ONE_SLICE):
            geometry = draw_geometry(patient, grid, level, rng)
            placed = place_lesions(shapes, geometry, rng)
            if placed is not None:
                drawn = [(geometry, level, placed)]
                break
    if not drawn:
        step = float(rng.uniform(0.2, 0.5)) * (1 if level < 0.5 else -1)
        for number, shape in enumerate(shapes):
            here = level + number * step
            geometry = draw_geometry(patient, grid, here, rng)
            placed = place_lesions([shape], geometry, rng)
            if placed is None:
                raise AssertionError("one lesion always fits: its wanted depth is below the liver's largest")
            drawn.append((geometry, here, placed))

    slices: list[SliceFile] = []
    masks: dict[int, SegmentMask] = {}
    for geometry, here, placed in drawn:
        hu = paint_anatomy(geometry, enlarged_liver(geometry, placed), rng)
        for lesion in placed:
            paint_lesion(hu, lesion, geometry, scan, rng)
            mask = np.zeros((SLICE_SIZE, SLICE_SIZE), np.bool_)
            mask[lesion.box] = lesion.mask
            masks[id(lesion.shape)] = SegmentMask(lesion.shape.name, len(slices), mask)
        position_z = round(-here * LEVEL_RANGE_MM / scan.thickness_mm) * scan.thickness_mm
        slices.append(SliceFile(scan_slice(hu, geometry, scan, rng), grid, position_z))
    return slices, [masks[id(shape)] for shape in shapes], scan


def _write_patient(plan: PatientPlan, folder: str) -> int:
    """Write one patient below `folder`; returns the number of slices. A function of its own, for worker processes."""
    slices, segments, scan = draw_patient_slices(plan)
    write_patient(Path(folder) / f"PHANTOM-{plan.number:04d}", slices, segments, scan, plan.number, plan.uid_root)
    return len(slices)


def write_phantom(
    out: str | os.PathLike[str],
    lesions: Sequence[int] = (53, 64, 65),
    seed: int = 0,
    progress: Progress | None = None,
    *,
    patients: int | None = None,
    workers: int = 1,
) -> PhantomSummary:
    """Write a phantom data set: a folder for each patient with CT slices and a segmentation, and README.txt.

    Nothing appears at `out` before all of it is written. The bytes depend on the seed, the counts and the versions of
    lesionaug, NumPy, SciPy and highdicom, not on the number of workers.

    Args:
        out: The folder to create; it must not exist, its parent must.
        lesions: Number of cysts, metastases and hemangiomas; the default is the paper's.
        seed: 0 <= seed < 2**64.
        progress: Called with (patients done, patients in all, patient id).
        patients: Number of patients, from half the number of lesions to all of it; by default 150 for every 182.
        workers: Processes. More than one needs the caller's `if __name__ == "__main__":`, as they are spawned.

    Raises:
        ConfigError: When `out` exists, its parent does not, or a number cannot be.
    """
    target = Path(out)
    plans = plan_patients(lesions, seed, patients)
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
                progress(done, len(plans), f"PHANTOM-{plan.number:04d}")
        counts = Counter(name for plan in plans for name in plan.classes)
        summary = PhantomSummary(
            path=target,
            seed=seed,
            lesions={name: counts[name] for name in CLASSES},
            num_patients=len(plans),
            num_two_lesions=sum(len(plan.classes) == 2 for plan in plans),
            num_slices=num_slices,
        )
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
Patients       {summary.num_patients} ({summary.num_two_lesions} with two lesions)
CT slices      {summary.num_slices}
Lesions        {counts}

One folder a patient: ct-NNNN.dcm are CT Image Storage slices in portal venous phase
style, margins.seg.dcm is a binary DICOM SEG with one segment a lesion, whose
SegmentLabel is the class. Every file says so in its tags: SyntheticData YES,
Manufacturer "lesionaug phantom", ImageComments "{COMMENT}".
The dates 1900-01-01 are placeholders.

Next:  lesionaug data import THIS_FOLDER ROIS

Licence: made by a program from random numbers, without anybody's data. Use it as you
like (CC0 1.0); lesionaug itself is under the Apache License 2.0.
"""
