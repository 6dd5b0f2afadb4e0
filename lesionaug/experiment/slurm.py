"""A script that carries out a run on a SLURM cluster by dask-jobqueue: one worker per job, and per GPU where asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lesionaug.data.files import check_new_file, write_text_atomic

_SCRIPT = '''"""Carry out a lesionaug run on SLURM. Written by `lesionaug run --slurm-script`; run it on the login node.

It asks SLURM for jobs, each one Dask worker, hands them the steps of the run, and lets them go when all is done. Store,
run folder and Python environment must be on a file system that every node sees. Stop it at any time: run it again, and
it goes on. Needs: pip install "lesionaug[full,cluster]"
"""

import subprocess
import sys

from dask_jobqueue import SLURMCluster

# --- What your cluster is like -------------------------------------------------------------------------------
JOBS = 4                  # workers, and so jobs, at the same time
PARTITION = None          # "gpu", for instance; None: the default one
ACCOUNT = None
WALLTIME = "04:00:00"     # a job that ends loses the step it was at, a GAN what it did since its last checkpoint
LIFETIME = "225m"         # below the wall time: then a worker leaves by itself, and a new job takes its place
MEMORY = "16GB"
GPU = {gpu!r:<21}# one GPU for each job; False trains on the CPU
INTERFACE = None          # network interface that the nodes see each other by, like "ib0"; None: the default one

# --- What is run ----------------------------------------------------------------------------------------------
ROIS = {rois!r}
RUN = {run!r}
MORE = {more!r}

RESOURCES = ["--resources", "GPU=1"] if GPU else []


def make_cluster() -> SLURMCluster:
    """One worker a job, one step a worker."""
    return SLURMCluster(
        queue=PARTITION,
        account=ACCOUNT,
        walltime=WALLTIME,
        memory=MEMORY,
        cores=1,
        processes=1,
        interface=INTERFACE,
        job_extra_directives=["--gres=gpu:1"] if GPU else [],
        worker_extra_args=["--lifetime", LIFETIME, "--lifetime-stagger", "5m", *RESOURCES],
        scheduler_options={{"dashboard_address": None}},
    )


if __name__ == "__main__":
    with make_cluster() as cluster:
        cluster.adapt(minimum_jobs=JOBS, maximum_jobs=JOBS)  # new jobs for those that have ended
        print("waiting for the first job to start", flush=True)
        cluster.wait_for_workers(1)
        device = ["--device", "cuda" if GPU else "cpu"]
        command = [sys.executable, "-m", "lesionaug", "run", ROIS, RUN, *MORE, *device]
        sys.exit(subprocess.run([*command, "--scheduler", cluster.scheduler_address], check=False).returncode)
'''


def write_slurm_script(target: Path, rois: Path, run: Path, more: Sequence[str], *, gpu: bool = True) -> None:
    """Write the script; what a cluster is like stands at its top, to be edited.

    Args:
        target: A file that does not exist yet.
        rois: ROI store.
        run: Folder of the run.
        more: Further options of `lesionaug run`.
        gpu: Whether each job asks for a GPU.

    Raises:
        DataError: The file exists, or its folder does not.
    """
    check_new_file(target)
    write_text_atomic(
        target, _SCRIPT.format(rois=str(rois.resolve()), run=str(run.resolve()), more=list(more), gpu=gpu)
    )
