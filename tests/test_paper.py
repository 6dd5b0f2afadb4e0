"""The paper's numbers agree with one another, and the paper preset with them."""

from __future__ import annotations

import pytest

from lesionaug.experiment import paper
from lesionaug.experiment.config import preset

TABLES = (*paper.TABLE_IV, *paper.TABLE_V)


def test_counts_add_up() -> None:
    assert sum(paper.CLASS_COUNTS) == paper.NUM_LESIONS
    assert paper.N_ROT * (1 + paper.N_FLIP + paper.N_TRANS + paper.N_SCALE) == paper.AUGMENTATIONS_PER_LESION
    assert paper.EXPERT_NUM_REAL + paper.EXPERT_NUM_SYNTHETIC == paper.EXPERT_NUM_IMAGES
    for printed in (paper.CNN_AUG, paper.CNN_AUG_GAN):
        assert printed.confusion is not None
        assert tuple(sum(row) for row in printed.confusion) == paper.CLASS_COUNTS
        assert sum(printed.confusion[i][i] for i in range(3)) == printed.correct


@pytest.mark.parametrize("printed", [*paper.TABLE_IV, *paper.TABLE_V], ids=lambda printed: printed.name)
def test_weighted_sensitivity_is_the_accuracy(printed: paper.PrintedResult) -> None:
    assert 100 * printed.correct / paper.NUM_LESIONS == pytest.approx(printed.weighted_sensitivity_pct, abs=0.1)


def test_figure_8_fits_the_tables() -> None:
    classic = dict(zip(paper.CLASSIC_GROUP_SIZES, paper.FIGURE_8_CLASSIC_CORRECT, strict=True))
    synthetic = dict(zip(paper.SYNTHETIC_GROUP_SIZES, paper.FIGURE_8_SYNTHETIC_CORRECT, strict=True))
    best = max(classic.values())
    assert min(size for size, correct in classic.items() if correct == best) == paper.CLASSIC_OPTIMUM
    assert classic[paper.CLASSIC_OPTIMUM] == paper.CNN_AUG.correct
    assert synthetic[paper.SYNTHETIC_OPTIMUM] == max(synthetic.values()) == paper.CNN_AUG_GAN.correct


def test_experts_as_printed() -> None:
    for expert, class_pct, origin_pct in zip(paper.EXPERTS, (77.8, 69.2), (62.5, 58.6), strict=True):
        assert 100 * expert.class_correct / paper.EXPERT_NUM_IMAGES == pytest.approx(class_pct, abs=0.1)
        assert 100 * expert.real_or_synthetic_correct / paper.EXPERT_NUM_IMAGES == pytest.approx(origin_pct, abs=0.1)


def test_results_as_printed() -> None:
    """Typed from the paper a second time, so that a slip in either place shows."""
    assert paper.CNN_AUG.confusion == ((52, 1, 0), (2, 44, 18), (0, 18, 47))
    assert paper.CNN_AUG.sensitivity_pct == (98.1, 68.7, 72.3)
    assert paper.CNN_AUG.specificity_pct == (98.4, 83.9, 84.6)
    assert paper.CNN_AUG_GAN.confusion == ((53, 0, 0), (2, 52, 10), (1, 13, 51))
    assert paper.CNN_AUG_GAN.sensitivity_pct == (100.0, 81.2, 78.5)
    assert paper.CNN_AUG_GAN.specificity_pct == (97.7, 89.0, 91.4)
    assert paper.BOVW_MI.confusion is None
    assert paper.BOVW_MI.sensitivity_pct == (96.3, 75.0, 66.1)
    assert paper.BOVW_MI.specificity_pct == (96.9, 82.2, 87.2)
    weighted = {p.name: (p.weighted_sensitivity_pct, p.weighted_specificity_pct, p.correct) for p in TABLES}
    assert weighted == {
        "DCGAN": (85.7, 92.4, 156),
        "ACGAN": (81.3, 90.0, 148),
        "ACGAN discriminator": (79.1, 88.8, 144),
        "CNN-AUG-GAN": (85.7, 92.4, 156),
        "CNN-AUG": (78.6, 88.4, 143),
        "BoVW-MI": (78.0, 88.3, 142),
    }


def test_figure_8_as_digitised() -> None:
    assert paper.CLASSIC_GROUP_SIZES == (0, 500, 1000, 2000, 3000, 5000, 7500, 10000, 15000)
    assert paper.FIGURE_8_CLASSIC_CORRECT == (104, 130, 136, 141, 141, 143, 143, 142, 142)
    assert paper.SYNTHETIC_GROUP_SIZES == (300, 1500, 3000, 6000, 9000, 12000)
    assert paper.FIGURE_8_SYNTHETIC_CORRECT == (147, 152, 156, 156, 155, 155)


def test_the_experts_parts_as_printed() -> None:
    first, second = paper.EXPERTS
    assert (first.class_correct, first.real_or_synthetic_correct) == (235, 189)
    assert (second.class_correct, second.real_or_synthetic_correct) == (209, 177)
    assert (first.class_real_pct, first.class_synthetic_pct) == (78.0, 77.5)
    assert (second.class_real_pct, second.class_synthetic_pct) == (69.2, 69.2)
    assert (paper.EXPERTS_AGREED, paper.EXPERTS_BOTH_CORRECT) == (222, 185)


def test_the_paper_preset_is_the_paper() -> None:
    config = preset("paper")
    assert config.classic_groups == paper.CLASSIC_GROUP_SIZES
    assert config.folds.num_folds == paper.NUM_FOLDS
    assert config.plan.n_augmentations == paper.AUGMENTATIONS_PER_LESION
    assert config.classifier.epochs == paper.CNN_EPOCHS
    assert config.cnn.channels == paper.CNN_CHANNELS
    assert config.reductions == []
