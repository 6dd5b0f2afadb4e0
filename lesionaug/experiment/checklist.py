"""CLAIM, the checklist for artificial intelligence in medical imaging: what this report answers, and what it cannot.

Items and numbers are those of 2020 (Mongan, Moy, Kahn: Radiology: Artificial Intelligence 2(2):e200029), the topics in
our own words; the update of 2024 (Tejani et al., 6(4):e240300) rewords and adds some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lesionaug.experiment.readings import show_value

if TYPE_CHECKING:
    from lesionaug.experiment.numbers import ReportNumbers
    from lesionaug.experiment.results import RunResults

AUTHORS = "To be filled in by the authors."
_PHANTOM = {
    7: "A synthetic CT phantom written by this software; no patients.",
    12: "Not applicable: phantom data, no patients.",
    18: "Not applicable: the phantom's margins are exact by construction.",
    34: "Not applicable: phantom data, no patients.",
}


@dataclass(frozen=True)
class Item:
    """One item.

    Attributes:
        number: Of CLAIM 2020.
        part: Of the manuscript.
        topic: What is asked, in few words.
        answer: What this run says of it.
        section: Id of the section of the report where it stands, or None.
        answered: False where the authors have to.
    """

    number: int
    part: str
    topic: str
    answer: str
    section: str | None
    answered: bool


def checklist(results: RunResults, numbers: ReportNumbers) -> Sequence[Item]:
    """Every item, answered from the run where it can be."""
    config = results.config
    seeds = f"{len(config.seeds)} training seed{'s' if len(config.seeds) > 1 else ''}"
    length = config.classifier.steps
    trained = f"{length} steps" if length is not None else f"{config.classifier.epochs} epochs"
    networks = ["A convolutional network", *(f"{kind.upper()}s" for kind in config.gans)]
    networks += ["bags of visual words"] if config.bovw is not None else []
    rule = {
        "paper": "The smallest classic group with the most correct test lesions: it sees the test folds.",
        "nested": "The classic group by validation inside the training folds of each split; the number of synthetic "
        "images on the test folds, as in the paper.",
    }[config.choice]
    versions = ", ".join(f"{name} {value}" for name, value in sorted(results.info.get("versions", {}).items()))
    phantom = results.kind == "phantom"
    robust = [f"{seeds}, every test fold"]
    robust += [f"the controls {show_value(config.used_controls)}"] if config.used_controls else []
    answers: dict[int, tuple[str, str | None]] = {
        6: ("To compare classic with synthetic augmentation in training a lesion classifier.", "summary"),
        9: (
            f"One bicubic resampling from the slice to {config.cnn.image_size} x {config.cnn.image_size} pixels, HU "
            f"window {show_value(config.image.window_hu)}; the mean of the training images is subtracted.",
            "methods",
        ),
        10: ("One square region around each lesion's margin.", "rois"),
        13: ("Lesions without pixels, size or class are not in a store; its import report lists them.", "data"),
        20: (
            f"{results.folds.num_folds}-fold cross validation, stratified by class and grouped by patient, "
            f"seed {config.folds.seed}.",
            "data",
        ),
        21: ("By patient; GANs, means, dictionaries and maps see the training folds of their split only.", "data"),
        22: (f"{'; '.join(networks)}. Sizes are in the configuration.", "run"),
        23: (versions or "The versions are in the run's files.", "run"),
        24: ("Random from recorded seeds: Glorot (classifier), N(0, 0.02) (GANs); nothing is pre-trained.", "run"),
        25: (
            f"Nested groups of classic augmentation, {trained}; all values stand in the configuration.",
            "methods",
        ),
        26: (f"{rule} Every model is used as it is after its last step.", "accuracy"),
        27: ("None: each model answers alone.", None),
        28: ("Accuracy, sensitivity and specificity of each class, weighted and macro averages.", "methods-compared"),
        29: (
            "Wilson 95 % intervals, exact McNemar tests with Holm's adjustment, bootstrap over patients, spread over "
            "seeds.",
            "pairs",
        ),
        30: (f"{'; '.join(robust)}.", "controls"),
        31: (
            "Maps of the classifiers' features; no saliency maps."
            if config.embedding is not None
            else "None in this run.",
            "maps" if config.embedding is not None else None,
        ),
        32: ("None: all results are of cross validation on one data set.", None),
        35: ("Confusion matrices, and all methods beside each other.", "confusion"),
        36: ("All with 95 % intervals.", "methods-compared"),
        37: ("Which classes are mistaken for each other. Single lesions are for the authors to look at.", "confusion"),
        38: ("What this report is not; the weak points of each comparison stand beside it.", "methods"),
        41: ("The whole configuration; every file is named.", "run"),
    }  # fmt: skip
    if numbers.missing:
        answers[35] = ("Incomplete: steps of this run are missing.", "confusion")
    if phantom:
        answers |= {number: (text, "data") for number, text in _PHANTOM.items()}
    items = []
    for part, number, topic in _ITEMS:
        text, section = answers.get(number, (AUTHORS, None))
        items.append(Item(number, part, topic, text, section, number in answers))
    return items


_ITEMS = (
    ("Title and abstract", 1, "Named as a study of AI, with the kind of technology"),
    ("Title and abstract", 2, "Structured summary"),
    ("Introduction", 3, "Background, intended use and clinical role"),
    ("Introduction", 4, "Objectives and hypotheses"),
    ("Methods: design", 5, "Prospective or retrospective"),
    ("Methods: design", 6, "Goal of the study"),
    ("Methods: data", 7, "Sources of the data"),
    ("Methods: data", 8, "Who was eligible, where and when"),
    ("Methods: data", 9, "Preprocessing"),
    ("Methods: data", 10, "Which parts of the data were used"),
    ("Methods: data", 11, "Definitions of data elements"),
    ("Methods: data", 12, "De-identification"),
    ("Methods: data", 13, "Missing data"),
    ("Methods: reference standard", 14, "Its definition"),
    ("Methods: reference standard", 15, "Why it was chosen"),
    ("Methods: reference standard", 16, "Who annotated, with which qualification"),
    ("Methods: reference standard", 17, "Tools of annotation"),
    ("Methods: reference standard", 18, "Variability between and within readers"),
    ("Methods: partitions", 19, "Intended sample size and how it was found"),
    ("Methods: partitions", 20, "How data were divided"),
    ("Methods: partitions", 21, "Level at which the parts are disjoint"),
    ("Methods: model", 22, "Detailed description"),
    ("Methods: model", 23, "Software and versions"),
    ("Methods: model", 24, "Initial parameters"),
    ("Methods: training", 25, "Training and augmentation"),
    ("Methods: training", 26, "How the final model was selected"),
    ("Methods: training", 27, "Ensembles"),
    ("Methods: evaluation", 28, "Measures of performance"),
    ("Methods: evaluation", 29, "Significance and uncertainty"),
    ("Methods: evaluation", 30, "Robustness and sensitivity"),
    ("Methods: evaluation", 31, "Explainability"),
    ("Methods: evaluation", 32, "External data"),
    ("Results: data", 33, "Flow of patients"),
    ("Results: data", 34, "Demographic and clinical characteristics"),
    ("Results: model", 35, "Performance in each part of the data"),
    ("Results: model", 36, "Diagnostic accuracy and its precision"),
    ("Results: model", 37, "Failures"),
    ("Discussion", 38, "Limitations, bias, generalisability"),
    ("Discussion", 39, "Meaning for practice"),
    ("Other", 40, "Registration"),
    ("Other", 41, "Where the protocol is"),
    ("Other", 42, "Funding"),
)
