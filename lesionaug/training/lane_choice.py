"""How many lanes are fastest on this machine, and in which form: measured once, and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch

from lesionaug.data.files import write_json_atomic
from lesionaug.errors import EnvironmentProblem
from lesionaug.models.cnn import CnnConfig
from lesionaug.training.classifier import ClassifierConfig
from lesionaug.training.lanes import LANE_FORMS, LaneForm, time_lanes

COUNTS = (1, 4, 8, 16, 24, 32)
_SECONDS = 0.3  # for each count and form


@dataclass(frozen=True)
class LaneChoice:
    """One way to train many classifiers at once.

    Attributes:
        form: See `train_lanes`.
        num_lanes: At a time.
        samples_per_s: Images that all lanes together are trained on in a second.
    """

    form: LaneForm
    num_lanes: int
    samples_per_s: float


def measure_lanes(
    cnn: CnnConfig,
    config: ClassifierConfig,
    num_classes: int,
    device: torch.device,
    *,
    counts: Sequence[int] = COUNTS,
    seconds: float = _SECONDS,
) -> list[LaneChoice]:
    """Time training steps of every form and number of lanes; those that memory does not suffice for are left out."""
    found: list[LaneChoice] = []
    for form in LANE_FORMS:
        for count in counts:
            try:
                rate = time_lanes(form, count, config, cnn=cnn, num_classes=num_classes, device=device, seconds=seconds)
            except EnvironmentProblem:
                continue
            except RuntimeError as error:
                if not found:
                    raise
                # A library may lack a kernel for one form; the others are as good as they are.
                warnings.warn(f"lanes, {form}, {count} at a time, do not run here: {error}", stacklevel=2)
                break
            found.append(LaneChoice(form, count, rate))
    return found


def fastest_lanes(cnn: CnnConfig, config: ClassifierConfig, num_classes: int, device: torch.device) -> LaneChoice:
    """The fastest way on this machine; measured at the first call and read from the user's cache folder afterwards.

    Raises:
        EnvironmentProblem: Memory does not suffice for a single network.
    """
    file, key = _cache_file(), _key(cnn, config, num_classes, device)
    known: dict[str, dict[str, object]] = {}
    # A cache that cannot be read or written costs the time of measuring again, and no more.
    with contextlib.suppress(OSError, ValueError):
        read = json.loads(file.read_text(encoding="utf-8"))
        known = read if isinstance(read, dict) else {}
    with contextlib.suppress(KeyError, TypeError, ValueError):
        kept = LaneChoice(**known[key])  # type: ignore[arg-type]
        if kept.form in get_args(LaneForm) and 1 <= kept.num_lanes <= max(COUNTS):
            return kept
    measured = measure_lanes(cnn, config, num_classes, device)
    if not measured:
        raise EnvironmentProblem(
            "batch_size",
            f"memory does not suffice for a step of {config.batch_size} images",
            "Use a smaller batch, or close what else uses the device",
        )
    best = max(measured, key=lambda choice: choice.samples_per_s)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(file, {**known, key: asdict(best)})
    return best


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lesionaug" / "lanes.json"


def _key(cnn: CnnConfig, config: ClassifierConfig, num_classes: int, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = [name, torch.__version__, cnn.model_dump(mode="json"), config.batch_size, config.bf16, num_classes]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
