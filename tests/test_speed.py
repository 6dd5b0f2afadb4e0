"""`lesionaug bench`: the table is complete, and wrong use is said so."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from lesionaug.augment import speed
from lesionaug.cli import main


@pytest.fixture
def small(monkeypatch):
    """Three lesions instead of 62."""
    monkeypatch.setattr(speed, "fold", functools.partial(speed.fold, num_lesions=3))


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    return ended.value.code, capsys.readouterr()


def test_every_case_is_timed_beside_the_floor(small, capsys):
    code, printed = run(capsys, "--seconds", "0.01", "--json")
    assert code == 0
    found = json.loads(printed.out)
    assert found["threads"] == torch.get_num_threads()
    assert found["path"]
    rows = {row["name"]: row for row in found["results"]}
    assert next(iter(rows)).startswith("floor")
    assert {"one fold, antialiased (the default)", "a batch of 64", "torch grid_sample, plain bicubic"} <= set(rows)
    assert rows["one fold, plain bicubic"]["patches"] == 3 * 480
    assert all(row["seconds"] > 0 for row in rows.values())


def test_the_table_is_for_people(small, capsys):
    code, printed = run(capsys, "--seconds", "0.01")
    assert code == 0
    assert len(printed.out.splitlines()) == 2 + 7
    assert "100.0%" in printed.out.splitlines()[2]


def test_what_does_not_compute_the_same_is_not_compared(small, monkeypatch):
    monkeypatch.setitem(speed.LIKE_TORCH, "a", -0.5)
    with pytest.raises(RuntimeError, match="not the same computation"):
        list(speed.measure(torch.device("cpu"), 0.01))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--seconds", "0"], 2, "--seconds"),
        (["--threads", "0"], 2, "--threads"),
        (["--device", "tpu9"], 2, "--device"),
    ],
)
def test_wrong_use(capsys, arguments, code, says):
    got, printed = run(capsys, *arguments)
    assert got == code
    assert says in printed.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys):
    code, printed = run(capsys, "--device", "cuda")
    assert code == 4
    assert "no CUDA device" in printed.err
