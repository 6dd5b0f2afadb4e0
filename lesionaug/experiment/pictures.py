"""The pictures of a report that need pixels: random ROIs, the augmentation sheet (Fig. 3), and synthetic ROIs (Fig. 6).

They are kept in RUN/pictures, because a run does not know where its store is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionaug.augment.sheet import contact_sheet, figure_png, random_lesions
from lesionaug.data.files import write_bytes_atomic, write_json_atomic
from lesionaug.data.own_files import parse_json
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.data.synthetic import load_synthetic
from lesionaug.errors import DataError
from lesionaug.experiment.figures import figure_svg, roi_figure
from lesionaug.experiment.protocol import synthetic_name
from lesionaug.experiment.protocol_figures import figure_pdf, synthetic_grid_figure
from lesionaug.experiment.results import RunResults, load_config, load_info, load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lesionaug.data.rois import RoiBatch

PICTURES_SCHEMA = 2
ROIS_PER_CLASS = 8
GRID_COLUMNS = 8
GRID_SPLIT = 0
_NAMES = {"rois": "rois", "sheet": "augmentation", "synthetic": "synthetic"}
REDUCED_GANS = "Reduced GANs: see the reductions at the top of the report."
GAN_NAMES = {"dcgan": "DCGAN", "acgan": "ACGAN"}


@dataclass(frozen=True)
class Pictures:
    """Pictures of a run's own store.

    Attributes:
        files: (name, ending) -> bytes; the names are "rois", "sheet" and "synthetic", the endings png, svg and pdf.
        info: What pictures.json says of them.
    """

    files: dict[tuple[str, str], bytes]
    info: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are there."""
        return tuple(name for name in _NAMES if (name, "png") in self.files)


def file_name(name: str) -> str:
    """A picture's file, without its ending."""
    return _NAMES[name]


def write_pictures(run_dir: str | os.PathLike[str], store: str | os.PathLike[str]) -> Path:
    """Draw the ROI page, the contact sheet and, where a run has synthetic ROIs, the grid of them into RUN/pictures.

    Window, plan, border and seed are the run's, so the sheet shows what its networks saw. Nothing is written when the
    store is not the one the run was made from.

    Args:
        run_dir: The run.
        store: The ROI store.

    Returns:
        The folder of the pictures.

    Raises:
        DataError: Another store than the run's, or an unreadable run or store.
    """
    run = Path(run_dir)
    config, info = load_config(run), load_info(run)
    wanted = info["store"]["manifest_sha256"]
    found = manifest_sha256(Path(store))
    if found != wanted:
        raise DataError(
            "--rois",
            f"this store ({found[:12]}) is not the one the run was made from ({wanted[:12]})",
            "Give the store of this run; pictures of other lesions would not belong in its report",
        )
    rois = load_rois(Path(store))
    results = load_run(run)
    window, seed = config.image.window_hu, config.plan.seed
    pages = {
        "rois": roi_figure(rois, window=window, per_class=ROIS_PER_CLASS, seed=seed),
        "sheet": contact_sheet(
            rois,
            config.plan.build(),
            seed=seed,
            window=window,
            size=config.cnn.image_size,
            antialias=config.image.antialias,
            a=config.image.a,
            border=config.image.border,
        ),
    }
    made = _synthetic_steps(results)
    if made:
        pages["synthetic"] = _grid(results, rois, made)
    folder = run / "pictures"
    folder.mkdir(exist_ok=True)
    hashes = {}
    drawn = random_lesions(rois, ROIS_PER_CLASS, seed)
    for name, figure in pages.items():
        contents = {"png": figure_png(figure), "svg": figure_svg(figure).encode(), "pdf": figure_pdf(figure)}
        for ending, content in contents.items():
            write_bytes_atomic(folder / f"{_NAMES[name]}.{ending}", content)
            hashes[f"{_NAMES[name]}.{ending}"] = hashlib.sha256(content).hexdigest()
    write_json_atomic(
        folder / "pictures.json",
        {
            "schema": PICTURES_SCHEMA,
            "kind": rois.kind,
            "manifest_sha256": found,
            "window_hu": list(window),
            "seed": seed,
            "sha256": hashes,
            "lesions": {name: [rois.lesion_ids[i] for i in chosen] for name, chosen in drawn},
            "synthetic": {name: results.done[name] for name in made.values()},
        },
    )
    return folder


def _synthetic_steps(results: RunResults) -> dict[str, str]:
    """Kind of GAN -> its step of synthetic ROIs in the split that is shown, where it is done."""
    names = {kind: synthetic_name(kind, GRID_SPLIT, results.seeds[0]) for kind in results.config.gans}
    return {kind: name for kind, name in names.items() if name in results.done}


def _grid(results: RunResults, rois: RoiBatch, made: Mapping[str, str]) -> Figure:
    """Training lesions at random and the first synthetic ROIs of every GAN, class by class."""
    from lesionaug.augment.execute import augment
    from lesionaug.augment.plan import originals
    from lesionaug.data.folds import split_lesions

    config = results.config
    train = split_lesions(rois, results.folds, GRID_SPLIT)[0]
    real = {}
    for name, chosen in random_lesions(train, GRID_COLUMNS, config.plan.seed):
        one = train[chosen].to("cpu")
        patches = augment(
            one, originals(one), size=config.cnn.image_size, window=config.image.window_hu,
            antialias=config.image.antialias, a=config.image.a, border=config.image.border,
        )  # fmt: skip
        real[name] = patches[:, 0].numpy()
    synthetic: dict[str, dict[str, Any]] = {}
    for kind, step in made.items():
        store = load_synthetic(results.path / results.step(step).folder / "rois")
        images, labels = store.images[:, 0].numpy(), store.labels.numpy()
        synthetic[GAN_NAMES[kind]] = {
            name: images[labels == store.classes.index(name)][:GRID_COLUMNS] for name in real
        }  # fmt: skip
    note = (
        f"Split {GRID_SPLIT}, seed {results.seeds[0]}: training lesions drawn at random (seed {config.plan.seed}) and "
        "the first images of every GAN, none picked; one grey window for all."
    )
    if reduced_gans(results):
        note += " " + REDUCED_GANS
    return synthetic_grid_figure(real, synthetic, columns=GRID_COLUMNS, kind=results.kind, note=note)


def reduced_gans(results: RunResults) -> bool:
    """Whether a GAN of the run is trained otherwise than the paper's."""
    from lesionaug.experiment.config import preset

    config, full = results.config, preset("paper")
    return any(config.gan(kind) != full.gan(kind) for kind in config.gans)


def pictures_are_whole(run_dir: str | os.PathLike[str]) -> bool:
    """Whether `write_pictures` would add nothing: all are there, the grid of the run's synthetic ROIs included."""
    results = load_run(Path(run_dir))
    found = read_pictures(results)
    return found is not None and ("synthetic" in found.names or not _synthetic_steps(results))


def read_pictures(results: RunResults) -> Pictures | None:
    """The pictures of an earlier `write_pictures`, or None where there are none that belong to the run's store.

    Pictures whose bytes are not those that were noted (a write that was cut short) count as absent, and so does a grid
    of other synthetic ROIs than the run has now.
    """
    folder = results.path / "pictures"
    try:
        info = parse_json((folder / "pictures.json").read_text(encoding="utf-8"))
        if (
            info["schema"] != PICTURES_SCHEMA
            or info["manifest_sha256"] != results.info["store"]["manifest_sha256"]
        ):  # fmt: skip
            return None
        now = {name: results.done[name] for name in _synthetic_steps(results).values()}
        files = {}
        for name, stem in _NAMES.items():
            if f"{stem}.png" not in info["sha256"] or (name == "synthetic" and info["synthetic"] != now):
                continue
            for ending in ("png", "svg", "pdf"):
                content = (folder / f"{stem}.{ending}").read_bytes()
                if hashlib.sha256(content).hexdigest() != info["sha256"][f"{stem}.{ending}"]:
                    return None
                files[name, ending] = content
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Pictures(files, info)
