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
    """Whether memory ran out, on a GPU or on the host; or a recording of CUDA work broke off for that reason."""
    texts = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (torch.OutOfMemoryError, MemoryError, MemoryRanOut)):
            return True
        if any(text in str(cause) for text in texts):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
