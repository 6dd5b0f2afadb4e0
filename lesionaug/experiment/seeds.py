"""Seeds from names, and the check that no split tests whom it has trained on."""

from __future__ import annotations

import hashlib

from lesionaug.data.provenance import Provenance
from lesionaug.data.rois import RoiBatch


def derive_seed(name: str) -> int:
    """Make a seed from a task's name, so that neither schedule nor neighbours matter: 63 bits of its BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def check_split(train: RoiBatch, test: RoiBatch, split: int) -> None:
    """Refuse a split that would test a patient, or a copy of one, that it has trained on.

    Raises:
        DataError: Naming one such patient or lesion.
    """
    Provenance.of(train).check_apart(
        Provenance.of(test),
        f"split {split} of folds.json",
        "Take copies of a lesion out of the store, and start a new run folder; folds must not be edited",
    )
