"""The results of `make bench` on this machine as tables: in the terminal, and in files between their two marks.

    python -m benchmarks.table [README.md docs/gans.md]

Without files it prints only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import training_table
from benchmarks.sources import RESULTS

MARKS = {  # what stands between two marks
    "operator": ("<!-- make bench: begin -->", "<!-- make bench: end -->"),
    "training": ("<!-- make bench, training: begin -->", "<!-- make bench, training: end -->"),
}
FRESH, STORED = "the same, a new result each time", "the same from int16 with a window"
SECTIONS = (  # ours, what it is called, what else is shown of it, and whether its rivals are antialiased
    (
        "fold_antialiased",
        "lesionaug, antialiased (the default)",
        {"fold_antialiased_fresh_output": FRESH, "fold_int16_windowed": STORED},
        True,
    ),
    ("fold_without_antialias", "lesionaug, plain bicubic", {"fold_without_antialias_fresh_output": FRESH}, False),
)
FOLD = 29760  # patches
FLOOR = "floor_writing_the_output"
Row = tuple[str, dict[str, Any], float | None]


def rows_of(results: dict[str, Any]) -> list[Row]:
    """(name, result, how many times as long as ours it takes), ours first, then its rivals from fast to slow."""
    rows: list[Row] = []
    # On a GPU every result of ours is there once for each implementation.
    end = next((end for end in ("", "[tiled]", "[plain]") if f"fold_antialiased{end}" in results), "")
    for main, title, others, antialias in SECTIONS:
        if main + end not in results:
            continue
        fastest = results[main + end]["outputs_per_s"]
        rows.append((title, results[main + end], None))
        rows += [(what, results[name + end], None) for name, what in others.items() if name + end in results]
        rivals = [
            (name.removeprefix("rival[").removesuffix("]"), row)
            for name, row in results.items()
            if name.startswith("rival[") and row["antialias"] == antialias
        ]
        for name, row in sorted(rivals, key=lambda pair: -pair[1]["outputs_per_s"]):
            about = ", ".join(part for part in (row["version"].split("+")[0], row["note"]) if part)
            rows.append((f"{name} ({about})", row, fastest / row["outputs_per_s"]))
    return rows


def table(found: dict[str, Any]) -> list[list[str]]:
    """Cells: what, ms a fold, patches/s, GB/s written, share of the floor, how many times as long as ours."""
    results = found["results"]
    floor = results[FLOOR]["outputs_per_s"]
    cells = [["", "ms a fold", "patches/s", "GB/s", "of the floor", "ours is faster by"]]
    for name, row, ratio in rows_of(results):
        rate = row["outputs_per_s"]
        cells.append(
            [
                f"**{name}**" if name.startswith("lesionaug") else name,
                f"{1e3 * FOLD / rate:,.0f}",
                f"{rate:,.0f}",
                f"{row['gb_per_s_written']:.2f}",
                f"{100 * rate / floor:.1f} %",
                "" if ratio is None else f"{ratio:.1f}",
            ]
        )
    gb = results[FLOOR]["gb_per_s_written"]
    cells.append(["floor: writing the fold", f"{1e3 * FOLD / floor:,.0f}", f"{floor:,.0f}", f"{gb:.2f}", "100 %", ""])
    return cells


def below_the_table(results: dict[str, Any]) -> str:
    """What stands below the table: gradients, the plan, batches."""
    said = []
    gradients = [row["over_forward"] for name, row in results.items() if name.startswith("gradient[")]
    if gradients:
        said.append(f"A backward pass costs {min(gradients):.1f} to {max(gradients):.1f} forward passes")
    if "plan" in results:
        said.append(f"the parameters of the fold {1e3 * results['plan']['median_s']:.2f} ms on one core")
    if "batches" in results:
        share = results["batches"]["median_s"] / results["batches_bare_operator"]["median_s"]
        said.append(f"a shuffled batch from `AugmentedBatches` {share:.2f} times `la.augment` of the same patches")
    shuffled = results.get("batch_of_64[cpu-out-shuffled]")
    if shuffled:
        said.append(f"64 shuffled patches alone {1e3 * shuffled['median_s']:.1f} ms")
    return "; ".join(said) + "." if said else ""


def markdown(found: dict[str, Any]) -> str:
    """The block of README.md."""
    about = (
        f"{found['device']}, {found['threads']} threads, torch {found['torch']}, {found['date']}, `make bench`\n"
        f"(`benchmarks/results/{found['file']}`): one fold, 29,760 patches of 64x64 float32 from 62 lesions."
    )
    return block(about, table(found), below_the_table(found["results"]))


def training_markdown(found: dict[str, Any]) -> str:
    """The block of docs/gans.md."""
    results = found["results"]
    return block(training_table.about(found), training_table.table(results), training_table.below_the_table(results))


def block(above: str, cells: list[list[str]], below: str) -> str:
    """A table in Markdown, and what is said above and below it."""
    lines = [above, "", "| " + " | ".join(cells[0]) + " |", "|---" + "|--:" * (len(cells[0]) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in cells[1:]]
    return "\n".join([*lines, "", below] if below else lines)


def text(cells: list[list[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        first, *others = (cell.replace("**", "") for cell in row)
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join(lines)


def refresh(file: Path, found: dict[str, Any]) -> None:
    """Put each table between its two marks in `file`; what stands outside them is left as it is.

    Raises:
        SystemExit: No marks, or marks that do not make a place.
    """
    whole = file.read_text()
    there = {name: marks for name, marks in MARKS.items() if any(mark in whole for mark in marks)}
    if not there:
        raise SystemExit(f"{file.name}: no place is marked for a table, as by {' and '.join(MARKS['operator'])}")
    for name, (begin, end) in there.items():
        if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(begin) > whole.index(end):
            raise SystemExit(f"{file.name}: the table's place must be marked once by {begin} and {end}")
        made = markdown(found) if name == "operator" else training_markdown(found)
        before, rest = whole.split(begin)
        whole = f"{before}{begin}\n{made}\n{end}{rest.split(end)[1]}"
    file.write_text(whole)


def main(arguments: list[str]) -> None:
    from benchmarks.conftest import machine, slug

    file = RESULTS / f"{slug(machine(torch.device('cpu'))['device'])}.json"
    found = json.loads(file.read_text()) | {"file": file.name}
    print(text(table(found)))
    if training_table.rows_of(found["results"]):
        print(text(training_table.table(found["results"])))
        print(training_table.below_the_table(found["results"]))
    if found["rivals_missing"]:
        print(f"not installed, so not compared: {', '.join(found['rivals_missing'])}")
    for readme in arguments:
        if found["rivals_missing"]:
            raise SystemExit(f"{readme} is left as it is")
        refresh(Path(readme), found)
        print(f"written to {readme}")


if __name__ == "__main__":
    main(sys.argv[1:])
