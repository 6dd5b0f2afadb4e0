"""Philox4x32-10 (Salmon et al. 2011): random words from a seed and a counter alone (docs/definitions.md, section 3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lesionaug.augment import native

MASK32 = 0xFFFFFFFF


def check_seed(seed: int) -> int:
    """Return `seed` when it is a whole number in 0 .. 2^64 - 1.

    Raises:
        TypeError: When it is no whole number.
        ValueError: When it is outside.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in 0 .. 2^64 - 1, got {seed}")
    return int(seed)


def philox(counters: Tensor, seed: int) -> Tensor:
    """Four random 32-bit words for each counter.

    Args:
        counters: int64 [N, 4], four 32-bit words each (only the low 32 bits count).
        seed: 0 .. 2^64 - 1; its low and high 32 bits are the key.

    Returns:
        int64 [N, 4], words in 0 .. 2^32 - 1, on the counters' device.
    """
    if counters.ndim != 2 or counters.shape[1] != 4 or counters.dtype != torch.int64:
        raise ValueError(f"counters must be int64 [N, 4], got {counters.dtype} {list(counters.shape)}")
    counters = counters.contiguous()
    words = torch.empty_like(counters)
    if len(counters):
        native.backend(counters.device).philox(check_seed(seed), counters, words)
    return words
