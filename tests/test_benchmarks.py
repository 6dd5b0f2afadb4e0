"""What the results of benchmarks are used for: the table of the README, and whether CUDA counts as verified."""

from __future__ import annotations

import json
import re

import pytest
import torch

from benchmarks import sources, table, training_table
from lesionaug import environment
from lesionaug.augment import native
from tests.conftest import REPOSITORY


def row(rate, **more):
    return {"outputs_per_s": rate, "gb_per_s_written": rate * 16384 / 1e9, **more}


def rival(rate, antialias, note=""):
    return row(rate, antialias=antialias, equal=True, version="5.0+cpu", note=note)


FOUND = {
    "device": "AMD EPYC",
    "threads": 2,
    "torch": "2.13.0+cpu",
    "date": "2026-11-27",
    "file": "amd-epyc.json",
    "results": {
        "fold_antialiased": row(60_000),
        "fold_without_antialias": row(200_000),
        "fold_without_antialias_fresh_output": row(100_000),
        "rival[Slow]": rival(10_000, False),
        "rival[Fast]": rival(300_000, False, "coarse"),
        "rival[Two]": rival(20_000, True),
        "floor_writing_the_output": row(1_000_000),
    },
}


def test_the_table_holds_every_rival_those_that_win_too():
    cells = {cells[0]: cells[1:] for cells in table.table(FOUND)}
    assert list(cells) == [
        "",
        "**lesionaug, antialiased (the default)**",
        "Two (5.0)",
        "**lesionaug, plain bicubic**",
        "the same, a new result each time",
        "Fast (5.0, coarse)",
        "Slow (5.0)",
        "floor: writing the fold",
    ]
    assert cells["Slow (5.0)"] == ["2,976", "10,000", "0.16", "1.0 %", "20.0"]
    assert cells["Fast (5.0, coarse)"][-1] == "0.7"
    assert cells["Two (5.0)"][-1] == "3.0"
    assert cells["the same, a new result each time"][-1] == ""
    assert len({len(line) for line in table.text(table.table(FOUND)).splitlines()}) == 1


def test_what_stands_below_the_table():
    assert table.below_the_table(FOUND["results"]) == ""
    results = {
        "gradient[a]": {"over_forward": 1.52},
        "gradient[b]": {"over_forward": 2.31},
        "plan": {"median_s": 7.5e-4},
        "batches": {"median_s": 0.18},
        "batches_bare_operator": {"median_s": 0.2},
    }
    expected = (
        "A backward pass costs 1.5 to 2.3 forward passes; the parameters of the fold 0.75 ms on one core; a shuffled "
        "batch from `AugmentedBatches` 0.90 times `la.augment` of the same patches."
    )
    assert table.below_the_table(results) == expected
    assert table.markdown(FOUND | {"results": FOUND["results"] | results}).endswith(f"|\n\n{expected}")


def test_the_table_replaces_what_stands_between_the_marks_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    begin, end = table.MARKS["operator"]
    readme.write_text(f"before\n{begin}\nstale\n{end}\nafter\n")
    for _ in range(2):
        table.refresh(readme, FOUND)
        text = readme.read_text()
        assert text.startswith(f"before\n{begin}\nAMD EPYC, 2 threads")
        assert text.endswith(f"|\n{end}\nafter\n")
        assert "stale" not in text
        assert "make bench`\n(`benchmarks/results/amd-epyc.json`)" in text
    for wrong, message in (
        ("no marks", "no place is marked"),
        (f"{begin} alone", "marked once"),
        (end + begin, "marked"),
    ):
        readme.write_text(wrong)
        with pytest.raises(SystemExit, match=message):
            table.refresh(readme, FOUND)
        assert readme.read_text() == wrong


STEPS = {
    "cnn_step[ours]": {"outputs_per_s": 640.0, "median_s": 1.0, "floor_s": 0.5, "peak_gflops": 100.0},
    "cnn_step[dataloader]": {"outputs_per_s": 320.0, "median_s": 0.2, "floor_s": 0.02, "peak_gflops": 100.0},
    "cnn_lanes[grouped-bf16-16]": {"outputs_per_s": 1280.0, "median_s": 1.0, "floor_s": 0.8, "peak_gflops": 100.0},
    "gan_step[dcgan-ours]": {"outputs_per_s": 16.0, "median_s": 4.0, "floor_s": 1.0, "peak_gflops": 100.0},
    "gan_step[dcgan-dataloader]": {"outputs_per_s": 8.0, "median_s": 8.0, "floor_s": 1.0, "peak_gflops": 100.0},
    "training_batch[pool]": {"outputs_per_s": 1.0, "median_s": 0.001},
    "training_batch[fly]": {"outputs_per_s": 1.0, "median_s": 0.04},
}


def test_the_table_of_training(tmp_path):
    assert training_table.table(STEPS)[1:] == [
        ["**CNN, lesionaug**", "100.00", "640", "50 %", "2.00"],
        ["CNN, plain loop over a DataLoader", "200.00", "320", "10 %", "1.00"],
        ["CNN, lesionaug, 16 lanes, grouped, bfloat16", "50.00", "1,280", "80 %", "4.00"],
        ["**DCGAN, lesionaug**", "4,000.00", "16", "25 %", "2.00"],
        ["DCGAN, plain loop over a DataLoader", "8,000.00", "8", "12 %", "1.00"],
    ]
    below = training_table.below_the_table(STEPS)
    assert "1.00 ms, one augmented for the step 40.00 ms (1.0 % of the fastest DCGAN step)" in below
    # 1.5 M steps of 50 ms and 33,200 of 4 s; of 200 ms and 8 s over a DataLoader
    assert "takes 57.72 hours in the fastest way, 157.11 over a DataLoader" in below
    docs = tmp_path / "gans.md"
    begin, end = table.MARKS["training"]
    docs.write_text(f"before\n{begin}\nstale\n{end}\nafter\n")
    table.refresh(docs, FOUND | {"results": STEPS})
    text = docs.read_text()
    assert text.startswith(f"before\n{begin}\nAMD EPYC, 2 threads")
    assert "| **CNN, lesionaug** | 100.00 |" in text
    assert text.endswith(f"{below}\n{end}\nafter\n")


def result_of_a_gpu(**changes):
    rows = {name: row(1, difference=2e-6) for name in sources.TILED}
    return {"device": "NVIDIA H100", "commit": "abc", "cuda_sha256": sources.cuda_hash(), "results": rows} | changes


def verified_by(tmp_path, *results):
    for i, result in enumerate(results):
        (tmp_path / f"{i}.json").write_text(json.dumps(result))
    return sources.verified(tmp_path)


def test_cuda_is_verified_by_a_result_of_the_same_sources_alone(tmp_path):
    assert verified_by(tmp_path) == ""
    wrong = {name: row(1, difference=1e-3) for name in sources.TILED}
    unknown = {name: row(1) for name in sources.TILED}
    for changes in (
        {"cuda_sha256": "0" * 64},
        {"cuda_sha256": None},
        {"commit": ""},
        {"results": {}},
        {"results": None},
        {"results": wrong},
    ):
        assert verified_by(tmp_path, result_of_a_gpu(**changes)) == ""
    (tmp_path / "0.json").write_text('{"damaged": <<<<<<< HEAD')
    assert sources.verified(tmp_path) == ""
    assert verified_by(tmp_path, result_of_a_gpu(results=unknown)) == ""
    assert verified_by(tmp_path, FOUND, result_of_a_gpu()) == "NVIDIA H100, commit abc"


def test_the_hash_is_of_the_cuda_sources_and_what_they_include(tmp_path, monkeypatch):
    for file in sources.SOURCES.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(sources, "SOURCES", tmp_path)
    first = sources.cuda_hash(), sources.source_hash()
    with (tmp_path / "tile_kernels.h").open("a") as file:
        file.write("// of the CPU")
    assert sources.cuda_hash() == first[0]
    assert sources.source_hash() != first[1]
    for name in ("resample.h", "geometry.h", "plan.h", "launch.h", "resample_tiled.cu"):
        before = sources.cuda_hash()
        with (tmp_path / name).open("a") as file:
            file.write("// changed")
        assert sources.cuda_hash() != before, name


def test_the_readme_and_the_doctor_say_whether_cuda_is_verified(monkeypatch):
    text = (REPOSITORY / "README.md").read_text()
    found = sources.verified()
    assert ("CUDA unverified" in text) == (not found)
    assert not found or f"CUDA verified on {found}" in text
    for where in ("", "NVIDIA H100, commit abc"):
        monkeypatch.setattr(native.native_module, "cuda_archs", "90")
        monkeypatch.setattr(native.native_module, "cuda_verified", where)
        monkeypatch.setattr(environment, "_kernels", list)
        said = str(environment.doctor())
        assert ("CUDA verified on NVIDIA H100, commit abc" in said) == bool(where)
        assert ("CUDA unverified" in said) == (not where)


@pytest.mark.parametrize("where, expected", [("", "plain"), ("NVIDIA H100, commit abc", "tiled")])
def test_the_tiled_kernels_are_taken_once_they_are_verified(monkeypatch, where, expected):
    monkeypatch.delenv("LESIONAUG_CUDA_PATH", raising=False)
    monkeypatch.setattr(native.native_module, "cuda_archs", "90")
    monkeypatch.setattr(native.native_module, "cuda_verified", where)
    assert native.CudaBackend(torch.device("cuda", 0)).path == expected
    monkeypatch.setenv("LESIONAUG_CUDA_PATH", "plain")
    assert native.CudaBackend(torch.device("cuda", 0)).path == "plain"


def test_the_module_knows_the_sources_it_was_built_from():
    assert native.native_module.cuda_sha256 == sources.cuda_hash()
    assert native.native_module.cuda_verified == sources.verified()


def test_make_gpu_runs_every_file_that_has_tests_for_a_gpu():
    listed = re.search(r"GPU_TESTS := \$\(addprefix tests/test_,([^)]*)\)", (REPOSITORY / "Makefile").read_text())
    assert listed
    wanted = set()
    for file in (REPOSITORY / "tests").glob("test_*.py"):
        text = file.read_text()
        if re.search(
            r"^pytestmark = pytest\.mark\.gpu|^@pytest\.mark\.gpu|^def test_\w+\([^)]*\bdevice\b", text, re.MULTILINE
        ):
            wanted.add(file.name.removeprefix("test_"))
    assert set(listed[1].replace("\\", " ").split()) == wanted
