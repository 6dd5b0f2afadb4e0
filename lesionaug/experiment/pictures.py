"""The pictures of a report that need pixels: random ROIs, and the augmentation sheet (Fig. 3), kept in RUN/pictures."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionaug.augment.sheet import contact_sheet, figure_png, random_lesions
from lesionaug.data.files import write_bytes_atomic, write_json_atomic
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.errors import DataError
from lesionaug.experiment.figures import roi_figure
from lesionaug.experiment.results import load_config, load_info

PICTURES_SCHEMA = 1
ROIS_PER_CLASS = 8
_NAMES = {"rois": "rois.png", "sheet": "augmentation.png"}


@dataclass(frozen=True)
class Pictures:
    """Pictures of a run's own store: PNG bytes by name ("rois", "sheet"), and what pictures.json says of them."""

    png: dict[str, bytes]
    info: dict[str, Any]


def write_pictures(run_dir: str | os.PathLike[str], store: str | os.PathLike[str]) -> Path:
    """Draw the ROI page and the contact sheet of a run's store into RUN/pictures.

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
    folder = run / "pictures"
    folder.mkdir(exist_ok=True)
    hashes = {}
    drawn = random_lesions(rois, ROIS_PER_CLASS, seed)
    for name, figure in pages.items():
        png = figure_png(figure)
        write_bytes_atomic(folder / _NAMES[name], png)
        hashes[name] = hashlib.sha256(png).hexdigest()
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
        },
    )
    return folder


def read_pictures(run_dir: Path, store_sha256: str) -> Pictures | None:
    """The pictures of an earlier `write_pictures`, or None where there are none that belong to this store.

    A picture whose bytes are not those that were noted (a write that was cut short) counts as absent.
    """
    folder = run_dir / "pictures"
    try:
        info = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
        png = {name: (folder / file).read_bytes() for name, file in _NAMES.items()}
        if info["schema"] != PICTURES_SCHEMA or info["manifest_sha256"] != store_sha256:
            return None
        if any(hashlib.sha256(content).hexdigest() != info["sha256"][name] for name, content in png.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Pictures(png, info)
