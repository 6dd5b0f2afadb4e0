"""What guarded workers do with one file: say what it is, read its slices, or read its margins and cut the lesions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from lesionaug.data.slices import Finding, Lesion, Margin, SourceFile, cut_lesion
from lesionaug.data.sources.dicom_ct import CtSlice, last_multi_frame, read_ct_slices, why_skipped
from lesionaug.data.sources.dicom_file import EXPORT_AGAIN, read_dicom, reading
from lesionaug.data.sources.formats import FORMATS
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.guard import Step
from lesionaug.data.sources.nifti import NiftiVolume
from lesionaug.data.sources.recognise import Recognised, recognise
from lesionaug.errors import DataError

MOST_ANISOTROPY = 3.0  # of an axial slice; its pixels are square but for rare scanners


def recognise_file(source: SourceFile, shared: Given, step: Step) -> Iterator[Recognised]:
    """What a file is."""
    yield recognise(source)


def read_slices(source: SourceFile, shared: Given, step: Step) -> Iterator[CtSlice | Finding]:
    """The CT slices of a DICOM file, or why it has none."""
    dataset = read_dicom(source, pixels=True)
    with reading(source.name):
        reason = why_skipped(dataset, source.name)
        if reason is not None:
            yield Finding("info", source.name, f"skipped: {reason}")
            return
        slices = read_ct_slices(source, dataset, shared.options, step)
        if not slices:  # it says at its start that it is none of the margins that are read as such
            rule = "it states one SOP class in its meta information and another in its content"
            raise DataError(source.name, rule, EXPORT_AGAIN)
        yield from slices
        for note in dict.fromkeys(note for ct in slices for note in ct.notes):
            yield Finding("warning", source.name, note)


def read_volume(source: SourceFile, shared: Given, step: Step) -> Iterator[Finding]:
    """Read every slice of a NIfTI volume, to see whether they can be read; yields nothing."""
    options = shared.options
    volume = NiftiVolume.open(source, spacing_mm=options.spacing_mm, trust_voxels=options.trust_voxels)
    for index in range(volume.num_slices):
        volume.slice(index).load()
        step(index, volume.num_slices, "reading volumes")
    yield from ()


def read_lesions(source: SourceFile, format_name: str, shared: Given, step: Step) -> Iterator[list[Lesion | Finding]]:
    """The lesions of a margin file, those of one margin together, with the findings that came before them."""
    given = shared
    given.findings, given.step = [], step
    try:
        folders = tuple(PurePosixPath(source.name).parts[:-1])
        for read in FORMATS[format_name].load()(source, given):
            margin = replace(read, also_named=(*read.also_named, *folders))
            if given.leaves_out(margin.name, margin.also_named):
                given.note_left_out(margin.where, margin.source, margin.number)
                continue
            lesions = list(_cut(margin, given))
            yield [*given.findings, *lesions]
            given.findings.clear()
            step(0, 0, "drawing margins")
    finally:
        last_multi_frame.cache_clear()
        if given.findings:
            yield list(given.findings)


def _cut(margin: Margin, given: Given) -> Iterator[Lesion]:
    """Cut a margin's lesion (or lesions, with every_slice) out of the slices."""
    findings = given.findings
    if not margin.patient:
        findings.append(
            Finding(
                "error",
                margin.where,
                f"no patient is named ({given.options.patient_by or 'PatientID'} is empty), so lesions of one patient "
                "could not be kept together",
                "Give the files a PatientID (a made-up one will do); for pictures, name it with --pictures",
                "no patient id",
                margin.source,
                margin.number,
            )
        )
        return
    if margin.parts_missing and margin.slices:
        findings.append(
            Finding("info", margin.where, f"{margin.parts_missing} of its contours or frames have no slice here")
        )
    if not margin.slices:
        rule = f"none of its {margin.parts_missing} contours or frames has a slice here, so it is skipped"
        if not margin.parts_missing:
            rule = "it is empty on every slice here, so it is skipped"
        findings.append(
            Finding("warning", margin.where, rule, "", "no slice of it is in the source", margin.source, margin.number)
        )
        return
    without_masks = replace(margin, slices=[])
    for chosen in margin.slices if given.options.every_slice else [margin.largest()]:
        given.step(0, 0, "drawing margins")
        try:
            lesion = cut_lesion(without_masks, chosen)
        except DataError as error:
            findings.append(Finding.refused(error, margin.source, margin.number))
            continue
        if lesion.num_parts > 1:
            findings.append(
                Finding(
                    "warning",
                    margin.where,
                    f"its mask falls into {lesion.num_parts} separate parts, taken as one lesion",
                    "Give each lesion its own ROI or segment if they are several",
                )
            )
        across, down = lesion.spacing_mm
        if max(across / down, down / across) > MOST_ANISOTROPY:
            rule = f"its pixels are {across:g} mm wide and {down:g} mm high"
            findings.append(Finding("warning", margin.where, rule, "Check the spacing"))
        if lesion.outside_fraction > 0.5:
            findings.append(
                Finding(
                    "warning",
                    margin.where,
                    f"up to {lesion.outside_fraction:.0%} of an augmented patch can lie outside the slice",
                )
            )
        yield lesion
