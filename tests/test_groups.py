"""Nested classic groups: counts per fold, nesting, and that the pool is what `augment` gives."""

from __future__ import annotations

import pytest
import torch

from lesionaug.augment.execute import augment
from lesionaug.augment.plan import originals
from lesionaug.data.rois import RoiBatch
from lesionaug.errors import ConfigError
from lesionaug.experiment import paper
from lesionaug.experiment.config import ImageConfig, PlanConfig
from lesionaug.experiment.groups import build_pool, classic_groups

PLAN = PlanConfig(n_rot=3)  # 48 augmentations
IMAGE = ImageConfig()


def lesions(count: int = 4) -> RoiBatch:
    generator = torch.Generator().manual_seed(3)
    images = [torch.randint(-100, 200, (60 + i, 64), generator=generator, dtype=torch.int16) for i in range(count)]
    names = [f"lesion-{i}" for i in range(count)]
    centers = [[32.0, 30.0 + i / 2] for i in range(count)]
    return RoiBatch.from_images(
        images, centers, [18.0 + i for i in range(count)], labels=[0, 1] * (count // 2), lesion_ids=names
    )


def test_the_papers_groups() -> None:
    groups = classic_groups(paper.CLASSIC_GROUP_SIZES, 3, 182, 480)
    # round(3 n / 182): the notes on the paper give about 82 augmentations per lesion at 5000
    assert [group.per_lesion for group in groups] == [0, 8, 16, 33, 49, 82, 124, 165, 247]
    assert not any(group.capped for group in groups)


def test_a_group_beyond_the_plan_is_capped_and_says_so() -> None:
    groups = classic_groups((0, 1000, 5000), 3, 24, 480)
    assert [(group.per_lesion, group.capped) for group in groups] == [(0, False), (125, False), (480, True)]


def test_two_sizes_that_are_one_group_are_refused_with_the_largest_possible_size() -> None:
    with pytest.raises(
        ConfigError, match=r"with 51 lesions, groups 10000 and 15000 .* same 480 .*\. Leave one out.* 8160"
    ):
        classic_groups(paper.CLASSIC_GROUP_SIZES, 3, 51, 480)
    with pytest.raises(ConfigError, match="groups 0 and 10 would be the same 0 augmentations"):
        classic_groups((0, 10), 3, 182, 480)


def test_smaller_groups_are_prefixes_of_larger_ones() -> None:
    rois = lesions()
    large = build_pool(rois, 9, size=32, plan=PLAN, image=IMAGE)
    small = build_pool(rois, 4, size=32, plan=PLAN, image=IMAGE)
    assert torch.equal(large.images[:5], small.images)  # adding images changes none that were there
    images, labels = large.group(4)
    assert images.shape == (20, 1, 32, 32)
    assert torch.equal(images, small.group(4)[0])
    assert labels.tolist() == [0, 1, 0, 1] * 5
    assert images.data_ptr() == large.images.data_ptr()  # a view: 490 MB are not copied per group
    with pytest.raises(ValueError, match=r"0 \.\. 9"):
        large.group(10)


def test_the_pool_is_the_originals_and_the_plans_first_augmentations() -> None:
    rois = lesions()
    pool = build_pool(rois, 6, size=32, plan=PLAN, image=IMAGE)
    window = IMAGE.window_hu
    assert torch.equal(pool.images[0], augment(rois, originals(rois), size=32, window=window))
    plan = PLAN.build()
    order = plan.order(rois, seed=PLAN.seed)
    whole = augment(rois, plan.sample(rois, seed=PLAN.seed, indices=order[:, :6]), size=32, window=window)
    assert torch.equal(pool.images[1:].transpose(0, 1).flatten(0, 1), whole)
    assert pool.images.min() >= 0
    assert pool.images.max() <= 1
    full = augment(rois, plan.sample(rois, seed=PLAN.seed), size=32, window=window).view(4, len(plan), 1, 32, 32)
    for lesion in range(4):
        for place in range(6):
            assert torch.equal(pool.images[1 + place, lesion], full[lesion, int(order[lesion, place])])


@pytest.mark.parametrize(
    "changed", [{"antialias": False}, {"border": "replicate"}, {"window_hu": (-50.0, 150.0)}, {"a": -0.75}], ids=str
)
def test_the_pool_follows_the_image_settings(changed: dict[str, object]) -> None:
    """With patches coarser than the slice and lesions near its edge, every setting shows."""
    rois = lesions()
    edge = RoiBatch.from_images(
        [
            torch.randint(-100, 200, (64, 64), generator=torch.Generator().manual_seed(i), dtype=torch.int16)
            for i in range(2)
        ],
        [[8.0, 30.0], [32.0, 58.0]],
        [40.0, 36.0],
        lesion_ids=["edge-0", "edge-1"],
    )
    image = IMAGE.model_copy(update=changed)
    for batch in (rois, edge):
        pool = build_pool(batch, 1, size=16, plan=PLAN, image=image)
        settings = {"window": image.window_hu, "a": image.a, "antialias": image.antialias, "border": image.border}
        assert torch.equal(pool.images[0], augment(batch, originals(batch), size=16, **settings))  # type: ignore[arg-type]
    assert not torch.equal(pool.images, build_pool(edge, 1, size=16, plan=PLAN, image=IMAGE).images)


def test_a_lesions_augmentations_do_not_depend_on_its_company() -> None:
    rois = lesions()
    whole = build_pool(rois, 5, size=32, plan=PLAN, image=IMAGE)
    alone = build_pool(rois[[2]], 5, size=32, plan=PLAN, image=IMAGE)
    assert torch.equal(whole.images[:, 2], alone.images[:, 0])


def test_another_seed_gives_other_augmentations_of_the_same_originals() -> None:
    rois = lesions()
    first = build_pool(rois, 5, size=32, plan=PLAN, image=IMAGE)
    second = build_pool(rois, 5, size=32, plan=PLAN.model_copy(update={"seed": 1}), image=IMAGE)
    assert torch.equal(first.images[0], second.images[0])
    assert not torch.equal(first.images[1], second.images[1])


def test_the_number_of_augmentations_is_the_plans() -> None:
    for config in (PlanConfig(), PlanConfig(n_rot=2, n_flip=1, n_trans=0, n_scale=2)):
        assert len(config.build()) == config.n_augmentations
