"""What a training asks of its device: the precision it computes in, and whether its memory ran out."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from lesionaug.errors import MemoryRanOut


def precision(bf16: bool, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Bfloat16 where it is wanted; a context for each pass, since weights change between them."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the host."""
    texts = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError, MemoryRanOut)) or any(
        text in str(error) for text in texts
    )
