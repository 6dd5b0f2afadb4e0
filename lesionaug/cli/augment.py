"""`lesionaug augment ROIS OUT`: the classic augmentations of a ROI store as arrays, or as a contact sheet (Fig. 3)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from cyclopts import App

    from lesionaug.data.rois import RoiBatch

_Window = Annotated[tuple[float, float] | None, Parameter(allow_leading_hyphen=True)]
_Flag = Annotated[bool, Parameter(negative=())]


def augment(
    rois: Path,
    out: Path,
    /,
    *,
    sheet: _Flag = False,
    per_lesion: int | None = None,
    seed: int = 0,
    size: int = 64,
    window: _Window = None,
    dtype: Literal["float32", "float16", "uint8"] = "float32",
    run: Path | None = None,
    split: int | None = None,
) -> None:
    """Write the classic augmentations of a ROI store, or draw them as a contact sheet.

    The arrays are safetensors files beside a manifest.json: each lesion's original and its augmentations in their
    nested order, so that any smaller group is the first rows of each lesion.

    Args:
        rois: ROI store, from `lesionaug data import`.
        out: Folder to create, or with --sheet the PNG file.
        sheet: Draw one lesion per class instead of writing arrays.
        per_lesion: Augmentations per lesion beside its original; all 480 of the plan by default.
        seed: Seed of the augmentations, 0 to 2^64 - 1.
        size: Pixels per side of a patch.
        window: LOW HIGH, the HU that become black and white; -160 240 by default.
        dtype: Type of the patches.
        run: With --split: a run of this store, whose folds are used.
        split: Take the training lesions of this split only, as the run's models do.
    """
    from lesionaug.augment.plan import AugmentationPlan
    from lesionaug.cli.progress import progress
    from lesionaug.data.rois import DEFAULT_WINDOW_HU
    from lesionaug.data.store import load_rois, manifest_sha256
    from lesionaug.errors import ConfigError

    window = DEFAULT_WINDOW_HU if window is None else window
    if (run is None) != (split is None):
        raise ConfigError("--run, --split", "one was given without the other", "Give both, or neither for all lesions.")
    if sheet:
        _write_sheet(rois, out, per_lesion, seed, size, window)
        return
    from lesionaug.augment.export import export_augmentations

    batch = load_rois(rois)
    if run is not None and split is not None:
        batch = _training_lesions(batch, run, split)
    with progress("Augmenting") as step:
        manifest = export_augmentations(
            batch,
            out,
            AugmentationPlan(),
            per_lesion=per_lesion,
            seed=seed,
            size=size,
            window=window,
            dtype=dtype,
            source={"manifest_sha256": manifest_sha256(rois)} | ({} if split is None else {"split": split}),
            progress=step,
        )
    print(
        f"{out}: {manifest['num_patches']:,} patches of {len(batch)} lesions ({batch.kind} data), "
        f"{1 + manifest['per_lesion']} per lesion, in {len(manifest['files'])} files"
    )


def _training_lesions(batch: RoiBatch, run: Path, split: int) -> RoiBatch:
    """The lesions that the models of one split of a run are trained on."""
    from lesionaug.data.folds import load_folds
    from lesionaug.errors import ConfigError

    folds = load_folds(run / "folds.json")
    if not 0 <= split < folds.num_folds:
        raise ConfigError("--split", f"the run has the splits 0 .. {folds.num_folds - 1}, not {split}", "Choose one.")
    ids = folds.train_ids(split)
    missing = set(ids) - set(batch.lesion_ids)
    if missing:
        raise ConfigError(
            "--run", f"its folds hold {len(missing)} lesions that the ROI store does not", "Name the run's own store."
        )
    return batch[[batch.lesion_ids.index(lesion_id) for lesion_id in ids]]


def _write_sheet(
    rois: Path, out: Path, per_lesion: int | None, seed: int, size: int, window: tuple[float, float]
) -> None:
    from lesionaug.augment.export import check_options, check_target
    from lesionaug.augment.plan import AugmentationPlan
    from lesionaug.augment.sheet import contact_sheet, figure_png
    from lesionaug.data.files import write_bytes_atomic
    from lesionaug.data.store import load_rois
    from lesionaug.errors import ConfigError

    if per_lesion is not None:
        raise ConfigError(
            "--per-lesion", "a contact sheet shows one lesion per class, whatever the group", "Leave it out"
        )
    if out.suffix.lower() != ".png":
        raise ConfigError(out.name, "the contact sheet is a PNG picture", f"Name it {out.stem or 'sheet'}.png")
    check_target(out)
    check_options(size, window, seed)
    batch = load_rois(rois)
    figure = contact_sheet(batch, AugmentationPlan(), seed=seed, window=window, size=size)
    write_bytes_atomic(out, figure_png(figure))
    print(f"{out}: contact sheet of the augmentation ({batch.kind} data)")


def register(app: App) -> None:
    """Add the command to `app`."""
    app.command(augment)
