"""Whether training in bfloat16 costs accuracy: the same classifiers in float32 and in bfloat16, seed by seed.

    python -m benchmarks.bf16_parity ROIS [--seeds 5] [--group 1000] [--steps 500] [--preset quick] [--device cuda]

Each seed trains one classifier per fold in each precision, from the same initial weights, order and dropout, and tests
it on the fold it has not seen. bfloat16 is no default before this shows no loss on the device in question.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from scipy import stats

from lesionaug.data.folds import make_folds, split_lesions
from lesionaug.data.store import load_rois
from lesionaug.experiment.config import preset
from lesionaug.experiment.groups import build_pool, classic_groups
from lesionaug.experiment.machine import device_name
from lesionaug.experiment.seeds import check_split, derive_seed
from lesionaug.training.classifier import predict_probabilities, train_classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rois", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--group", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--device", default="cpu")
    wanted = parser.parse_args()
    config, rois = preset(wanted.preset), load_rois(wanted.rois)
    folds = make_folds(rois, config.folds.num_folds, config.folds.seed)
    (group,) = classic_groups((wanted.group,), folds.num_folds, len(rois), config.plan.n_augmentations)
    size, plan, image = config.cnn.image_size, config.plan, config.image
    warm_up = {"num_classes": len(rois.classes), "cnn": config.cnn, "seed": 0, "device": wanted.device}
    for bf16 in (False, True):  # libraries choose their kernels once, and not on the first one's time
        how = config.classifier.model_copy(update={"steps": 10, "bf16": bf16})
        train_classifier(torch.rand(64, 1, size, size), torch.arange(64) % len(rois.classes), how, **warm_up)
    correct = torch.zeros(wanted.seeds, 2, dtype=torch.int64)
    seconds = [0.0, 0.0]
    for split in range(folds.num_folds):
        train, test = (side.to(wanted.device) for side in split_lesions(rois, folds, split))
        check_split(train, test, split)
        images, labels = build_pool(train, group.per_lesion, size=size, plan=plan, image=image).group(group.per_lesion)
        shown, truth = build_pool(test, 0, size=size, plan=plan, image=image).group(0)
        for seed in range(wanted.seeds):
            for i, bf16 in enumerate((False, True)):
                how = config.classifier.model_copy(update={"steps": wanted.steps, "bf16": bf16})
                started = time.perf_counter()
                trained = train_classifier(
                    images, labels, how, num_classes=len(rois.classes), cnn=config.cnn,
                    seed=derive_seed(f"parity-{split}-{seed}"), device=wanted.device,
                )  # fmt: skip
                seconds[i] += time.perf_counter() - started
                predicted = predict_probabilities(trained, shown).argmax(1)
                correct[seed, i] += (predicted == truth.cpu()).sum()
                print(f"split {split}, seed {seed}, {'bfloat16' if bf16 else 'float32'} done", flush=True)
    differences = 100.0 * (correct[:, 1] - correct[:, 0]).double().numpy() / len(rois)
    low, high = stats.t.interval(0.95, wanted.seeds - 1, differences.mean(), stats.sem(differences))
    print(
        f"\n{device_name(wanted.device)}, torch {torch.__version__}, {rois.kind} lesions, preset {wanted.preset}, "
        f"group {group.size}, {wanted.steps} steps, {len(rois)} lesions tested per seed"
    )
    for i, name in enumerate(("float32", "bfloat16")):
        counts = ", ".join(str(count) for count in correct[:, i].tolist())
        rate = 100 * correct[:, i].sum().item() / (wanted.seeds * len(rois))
        print(f"{name}: {counts} correct, {rate:.1f} %, {seconds[i]:.0f} s")
    print(f"difference {differences.mean():+.1f} points, 95 % interval over seeds {low:+.1f} to {high:+.1f}")


if __name__ == "__main__":
    main()
