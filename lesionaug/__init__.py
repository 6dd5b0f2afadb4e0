"""lesionaug: batched augmentation of lesion ROIs and the experiment of Frid-Adar et al. 2018 around it.

Names are loaded on first use, so that `import lesionaug` and `lesionaug --help` take milliseconds, not torch's second.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesionaug.augment.batches import AugmentedBatches
    from lesionaug.augment.execute import augment
    from lesionaug.augment.plan import AugmentationParams, AugmentationPlan, originals
    from lesionaug.augment.resample import resample
    from lesionaug.data.rois import RoiBatch
    from lesionaug.data.store import load_rois
    from lesionaug.environment import doctor

__version__ = "0.1.0"

_HOME = {
    "AugmentationParams": "lesionaug.augment.plan",
    "AugmentationPlan": "lesionaug.augment.plan",
    "AugmentedBatches": "lesionaug.augment.batches",
    "RoiBatch": "lesionaug.data.rois",
    "augment": "lesionaug.augment.execute",
    "doctor": "lesionaug.environment",
    "load_rois": "lesionaug.data.store",
    "originals": "lesionaug.augment.plan",
    "resample": "lesionaug.augment.resample",
}

__all__ = [
    "AugmentationParams",
    "AugmentationPlan",
    "AugmentedBatches",
    "RoiBatch",
    "__version__",
    "augment",
    "doctor",
    "load_rois",
    "originals",
    "resample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lesionaug' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """`lesionaug.augment` is the function, whatever was imported first; its folder is reached by from-imports."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "augment" and isinstance(value, ModuleType)):  # what importing the folder would bind
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
