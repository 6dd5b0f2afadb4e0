"""Large results of the CPU lie in memory that is used again: never while anybody holds it, the system's to take."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import lesionaug as la
from lesionaug.augment import native

NUM, SIZE = 600, 64  # 9.4 MiB of float32
ROOM = NUM * SIZE * SIZE * 4
pytestmark = pytest.mark.skipif(
    native.native_module.result_memory(native.native_module.least_result) is None,
    reason="this system has no memory that it can take back",
)


def patches(value: float, num: int = NUM) -> torch.Tensor:
    """`num` patches of this one value."""
    image = torch.full((1, 1, 8, 8), value)
    matrix = torch.tensor([[[0.1, 0, 0.5], [0, 0.1, 0.5]]]).expand(num, 2, 3)
    return la.resample(image, matrix, SIZE, image_index=torch.zeros(num, dtype=torch.int64))


def lazily_freed() -> int:
    """Bytes of this process that the system may take."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("LazyFree:"))


def test_freed_memory_is_used_again():
    address = patches(1.0).data_ptr()
    again = patches(2.0)
    assert again.data_ptr() == address
    assert (again == 2.0).all()


def test_what_is_kept_is_the_systems_to_take():
    result = patches(1.0)
    held = lazily_freed()
    del result
    assert lazily_freed() - held >= ROOM


def test_living_results_do_not_share():
    first, second, third = patches(1.0), patches(2.0), patches(3.0)
    for result, value in ((first, 1.0), (second, 2.0), (third, 3.0)):
        assert (result == value).all()


@pytest.mark.parametrize("keep", [lambda t: t[5:7], lambda t: t.numpy()[5:7], lambda t: t.flatten().detach()[:9]])
def test_a_view_keeps_the_memory(keep):
    view = keep(patches(1.0))
    for value in (2.0, 3.0, 4.0):
        patches(value)
    assert bool((view == 1.0).all())


def test_much_smaller_results_do_not_hold_a_large_block():
    large = patches(1.0, 4 * NUM)
    begin, end = large.data_ptr(), large.data_ptr() + 4 * ROOM
    del large
    small = patches(2.0)
    assert not begin <= small.data_ptr() < end
    assert (small == 2.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_every_dtype(dtype):
    num = -(-native.native_module.least_result // (SIZE * SIZE * dtype.itemsize))
    image = torch.full((1, 1, 8, 8), 3.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    matrix = torch.eye(2, 3)[None].expand(num, 2, 3)
    options = {"window": (0.0, 6.0)} if dtype == torch.uint8 else {}
    result = la.resample(image, matrix, SIZE, image_index=torch.zeros(num, dtype=torch.int64), dtype=dtype, **options)
    assert result.dtype == dtype
    assert result.shape == (num, 1, SIZE, SIZE)
    assert result.is_contiguous()
    assert (result == (128 if dtype == torch.uint8 else 3)).all()
    assert result.data_ptr() % 64 == 0


def test_threads_do_not_meet():
    wrong = []

    def work(mine: int) -> None:
        for round_number in range(20):
            value = float(100 * mine + round_number)
            held = [patches(value) for _ in range(1 + round_number % 3)]
            wrong.extend(value for result in held if not (result == value).all())

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_process_writes_to_memory_of_its_own():
    mine = patches(1.0)
    patches(2.0)  # leaves a block
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # torch's own pool does not survive a fork
    try:
        child = os.fork()
        if child == 0:
            fine = bool((patches(3.0) == 3.0).all()) and bool((mine == 1.0).all())
            os._exit(0 if fine else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)
    assert (mine == 1.0).all()
    assert (patches(4.0) == 4.0).all()


def test_it_can_be_written_shared_and_saved(tmp_path):
    result = patches(1.0)
    result.add_(1.0)
    torch.save(result, tmp_path / "result.pt")
    assert torch.equal(torch.load(tmp_path / "result.pt", weights_only=True), result)
    assert (result.clone().share_memory_() == 2.0).all()
    assert np.array_equal(result.numpy(), np.full(result.shape, 2.0))
