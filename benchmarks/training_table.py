"""What a training step costs on this machine, as a table for the terminal and for docs/gans.md."""

from __future__ import annotations

from typing import Any

NETWORKS = {"cnn_step[": "CNN", "cnn_lanes[": "CNN", "gan_step[dcgan-": "DCGAN", "gan_step[acgan-": "ACGAN"}
HOWS = {  # what a training step is timed as, by how its result is named
    "ours": "lesionaug",
    "bf16": "lesionaug, bfloat16",
    "graphs": "lesionaug, CUDA graphs",
    "graphs-bf16": "lesionaug, CUDA graphs, bfloat16",
    "plain": "plain loop, the same computation",
    "dataloader": "plain loop over a DataLoader",
}
CNN_STEPS, DCGAN_STEPS = 1_500_000, 33_200  # of the paper's main experiment: 45 classifiers and 9 DCGANs


def rows_of(results: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(network, how, result) of every training step that was timed, in the order of `NETWORKS`."""
    rows = []
    for start, network in NETWORKS.items():
        for name, row in results.items():
            if name.startswith(start):
                how = name.removeprefix(start).removesuffix("]")
                if how not in HOWS:  # lanes: form-precision-number
                    form, precision, lanes = how.split("-")
                    said = f"lesionaug, {lanes} lanes, {form}" + (", bfloat16" if precision == "bf16" else "")
                else:
                    said = HOWS[how]
                rows.append((network, said, row))
    return rows


def table(results: dict[str, Any]) -> list[list[str]]:
    """Cells: network and how, ms a step of one network, images/s, share of the floor, and over the DataLoader's."""
    rows = rows_of(results)
    loaders = {network: row["outputs_per_s"] for network, how, row in rows if how == HOWS["dataloader"]}
    cells = [["", "ms a step", "images/s", "of the FLOP floor", "over the DataLoader"]]
    for network, how, row in rows:
        name = f"{network}, {how}"
        cells.append(
            [
                f"**{name}**" if how == HOWS["ours"] else name,
                f"{64e3 / row['outputs_per_s']:,.2f}",
                f"{row['outputs_per_s']:,.0f}",
                f"{100 * row['floor_s'] / row['median_s']:.0f} %",
                f"{row['outputs_per_s'] / loaders[network]:.2f}",
            ]
        )
    return cells


def below_the_table(results: dict[str, Any]) -> str:
    """What the data cost, and what the rates come to over the paper's main experiment."""
    rows = rows_of(results)

    def hours(hows: set[str] | None) -> float:
        best = {
            network: max(
                row["outputs_per_s"] for name, how, row in rows if name == network and (not hows or how in hows)
            )
            for network in ("CNN", "DCGAN")
        }
        return (64 * CNN_STEPS / best["CNN"] + 64 * DCGAN_STEPS / best["DCGAN"]) / 3600

    pool, fly = (1e3 * results[f"training_batch[{data}]"]["median_s"] for data in ("pool", "fly"))
    step = min(64e3 / row["outputs_per_s"] for network, _, row in rows if network == "DCGAN")
    return (
        f"A batch of 64 from the pool costs {pool:.2f} ms, one augmented for the step {fly:.2f} ms "
        f"({100 * fly / step:.1f} % of the fastest DCGAN step). At these rates the paper's main experiment "
        f"({CNN_STEPS:,} of the CNN, {DCGAN_STEPS:,} of DCGANs) takes {hours(None):,.2f} hours in the fastest way, "
        f"{hours({HOWS['dataloader']}):,.2f} over a DataLoader."
    )


def about(found: dict[str, Any]) -> str:
    """What stands above the table."""
    peak = next(row["peak_gflops"] for _, _, row in rows_of(found["results"]))
    return (
        f"{found['device']}, {found['threads']} threads, torch {found['torch']}, {found['date']}, `make bench`\n"
        f"(`benchmarks/results/{found['file']}`): steps of 64 images at the paper's widths, in lanes per network.\n"
        f"The floor is the step's floating-point operations at the {peak:,.0f} GFLOP/s of one large matrix product."
    )
