"""The paper's numbers agree with one another, and the paper preset with them."""

from __future__ import annotations

import pytest

from lesionaug.experiment import paper
from lesionaug.experiment.config import preset


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


def test_the_paper_preset_is_the_paper() -> None:
    config = preset("paper")
    assert config.classic_groups == paper.CLASSIC_GROUP_SIZES
    assert config.folds.num_folds == paper.NUM_FOLDS
    assert config.plan.n_augmentations == paper.AUGMENTATIONS_PER_LESION
    assert config.classifier.epochs == paper.CNN_EPOCHS
    assert config.cnn.channels == paper.CNN_CHANNELS
    assert config.reductions == []
