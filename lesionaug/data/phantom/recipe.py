"""Phantom, the numbers: what each class of lesion looks like, tissue values, the scanner. Everything one may change.

A class is not code but a `LesionRecipe`: every lesion is painted by the same steps (`lesions.py`), and a class says how
likely and how strong each ingredient is. So another class, or another contrast, is a few lines of TOML:

    [classes.hcc]
    like = "hemangioma"        # start from a class that is there
    count = 40
    hu = [70, 95]

    [classes.cyst]
    count = 0                  # leave a class out

    [tissue]
    liver_hu = [105, 6]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from lesionaug.errors import ConfigError
from lesionaug.settings import check_keys, merge, read_toml, validate

Pair = TypeVar("Pair", tuple[float, float], tuple[int, int])


def _rising(pair: Pair, info: ValidationInfo) -> Pair:
    low, high = pair
    if low > high:
        raise ValueError(f"{info.field_name} must be low, high, got {low}, {high}")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_rising)]
MeanSpread = tuple[float, Annotated[float, Field(ge=0.0)]]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LesionRecipe(_Frozen):
    """One class of lesions: ranges to draw from (low, high: uniform) and how likely each ingredient is.

    The defaults are what metastases and hemangiomas have in common: neither size nor ground tissue tells them apart.
    Lengths named `..._mm` are mm; `inner` is depth under the boundary in mean radii (0 at it, about 1 in the middle).

    Attributes:
        count: Lesions of this class.
        under_surface: How far the middle lies under the organ's surface, in radii (less where the organ is thinner).
        median_mm: Median diameter of the margin (log-normal, cut to 10.5-101 mm).
        spread: Standard deviation of its logarithm.
        elongation: Spread (one standard deviation) by which one axis exceeds the others, as a share.
        lobulation: Standard deviation of the bumps of its surface, as a share of the radius.
        lobes: Bumps around the circumference, about.
        hu: Of the lesion's ground tissue.
        below_liver_hu: The ground tissue is at least this much below the liver.
        grain_hu: Unevenness of the ground tissue, standard deviation.
        edge_mm: Width of the boundary.
        edge_share: Additional width as a share of the radius.
        ragged: How far the boundary wanders, standard deviation as a share of the radius (up to 1.5 mm).
        septum: Share with a thin wall across it.
        rim: Share with a rim.
        rim_thickness: Of the rim, inner.
        rim_hu: What the rim adds.
        rim_gaps: How broken the rim is: 0 even, 1 in pieces.
        necrosis: Share with a dead middle.
        necrosis_from: Where it begins, inner.
        necrosis_hu: Of the dead middle.
        cystic: Share that is dead almost to the boundary, with neither rim nor bright parts.
        nodules: Share with enhancing nodules under the boundary.
        num_nodules: How many, over the whole surface.
        nodule_size: Height under the boundary, as a share of the radius.
        nodule_flatness: Breadth over height.
        nodule_pool: How near to the blood pool they come: 0 the ground tissue, 1 the enhanced veins.
        fill: How far the enhancement has grown inwards at the time of the scan, 0 to 1.
        filled: Share of lesions below 22 mm that are filled altogether.
        spots: Share with dense spots within.
        num_spots: How many.
        spot_size: Radius as a share of the lesion's.
        spot_inner: Where they lie, inner.
        spot_pool: As `nodule_pool`.
        calcified: Share with a few small hard spots.
        at_vessel: Share that lie against a vessel.
    """

    count: Annotated[int, Field(ge=0, le=100_000)] = 0
    under_surface: Range = (0.5, 1.25)
    median_mm: Annotated[float, Field(ge=12, le=80)] = 33.0
    spread: Annotated[float, Field(ge=0, le=1)] = 0.5
    elongation: Annotated[float, Field(ge=0, le=0.6)] = 0.22
    lobulation: Annotated[float, Field(ge=0, le=0.2)] = 0.05
    lobes: Annotated[float, Field(ge=2, le=9)] = 4.0
    hu: Range = (40, 74)
    below_liver_hu: float = 16.0
    grain_hu: Range = (2, 6)
    edge_mm: Range = (1.0, 2.5)
    edge_share: Range = (0.0, 0.1)
    ragged: Annotated[float, Field(ge=0, le=0.3)] = 0.0
    septum: Share = 0.0
    rim: Share = 0.0
    rim_thickness: Range = (0.16, 0.34)
    rim_hu: Range = (14, 50)
    rim_gaps: Share = 0.3
    necrosis: Share = 0.0
    necrosis_from: Range = (0.45, 0.75)
    necrosis_hu: Range = (12, 40)
    cystic: Share = 0.0
    nodules: Share = 0.0
    num_nodules: Range = (6, 14)
    nodule_size: Range = (0.12, 0.26)
    nodule_flatness: Range = (1.2, 2.4)
    nodule_pool: Range = (0.7, 1.0)
    fill: Range = (0.0, 0.6)
    filled: Share = 0.0
    spots: Share = 0.0
    num_spots: Range = (2, 8)
    spot_size: Range = (0.08, 0.24)
    spot_inner: Range = (0.1, 0.7)
    spot_pool: Range = (0.3, 0.8)
    calcified: Share = 0.0
    at_vessel: Share = 0.2


class TissueRecipe(_Frozen):
    """Tissue values of the patients, HU: means and standard deviations over patients.

    Attributes:
        liver_hu: Of the liver.
        steatosis: Share of patients with a fatty liver.
        steatotic_hu: Their liver, low to high.
        vessel_hu: Mean of the enhanced veins.
        enhancement_hu: Spread of the enhancement, common to a patient's vessels.
    """

    liver_hu: MeanSpread = (111, 8)
    steatosis: Share = 0.1
    steatotic_hu: Range = (74, 94)
    vessel_hu: float = 166.0
    enhancement_hu: Annotated[float, Field(ge=0)] = 8.0


class ScanRecipe(_Frozen):
    """The scanners.

    Attributes:
        ge_share: Share of GE-like scanners, the others are Siemens-like.
        noise: Factor on the noise.
        thickness_mm: Slice thicknesses to choose from; empty takes each vendor's usual ones.
        exposure_mas: Low to high.
    """

    ge_share: Share = 0.5
    noise: Annotated[float, Field(ge=0, le=5)] = 1.0
    thickness_mm: tuple[Annotated[float, Field(ge=0.5, le=10)], ...] = ()
    exposure_mas: Annotated[tuple[int, int], AfterValidator(_rising)] = (140, 400)


CYST = LesionRecipe(
    count=53,
    median_mm=27,
    elongation=0.2,
    lobulation=0.045,
    lobes=3,
    hu=(0, 20),
    grain_hu=(0.5, 2),
    edge_mm=(0.4, 0.9),
    edge_share=(0, 0),
    septum=0.15,
    at_vessel=0.3,
)
METASTASIS = LesionRecipe(
    count=64,
    lobulation=0.05,
    edge_mm=(0.9, 2.2),
    edge_share=(0.0, 0.15),
    ragged=0.04,
    rim=0.3,
    rim_hu=(15, 60),
    rim_gaps=0.3,
    rim_thickness=(0.14, 0.26),
    necrosis=0.35,
    necrosis_from=(0.15, 0.75),
    necrosis_hu=(8, 36),
    cystic=0.22,
    spots=0.9,
    num_spots=(2.5, 5.0),
    spot_size=(0.23, 0.35),
    spot_inner=(0.26, 0.5),
    spot_pool=(0.9, 1.0),
    calcified=0.08,
)
HEMANGIOMA = LesionRecipe(
    count=65,
    lobulation=0.06,
    edge_mm=(0.8, 2.0),
    edge_share=(0.0, 0.12),
    ragged=0.03,
    necrosis=0.25,
    necrosis_from=(0.15, 0.6),
    necrosis_hu=(8, 36),
    nodules=0.9,
    num_nodules=(2, 4.0),
    nodule_size=(0.22, 0.33),
    nodule_flatness=(0.95, 1.5),
    nodule_pool=(0.9, 1.0),
    fill=(0.0, 0.25),
    filled=0.1,
)


class PhantomRecipe(_Frozen):
    """Everything about a phantom but its seed and its number of patients.

    Attributes:
        classes: The classes of lesions by name, in the order in which `--lesions` counts them.
        host: The organ that the lesions lie in.
        tissue: Tissue values.
        scan: The scanners.
    """

    classes: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9 _-]{0,39}$")], LesionRecipe] = {
        "cyst": CYST,
        "metastasis": METASTASIS,
        "hemangioma": HEMANGIOMA,
    }
    host: Literal["liver", "spleen"] = "liver"
    tissue: TissueRecipe = TissueRecipe()
    scan: ScanRecipe = ScanRecipe()


def load_recipe(path: Path) -> PhantomRecipe:
    """Read a recipe from TOML: what it does not name stays as it is; a new class says which one it is `like`.

    Raises:
        ConfigError: Unreadable file, unknown key, value out of range.
    """
    wanted = read_toml(path, "See docs/phantom.md for an example")
    base: dict[str, Any] = PhantomRecipe().model_dump(mode="json")
    classes = wanted.get("classes", {})
    if isinstance(classes, dict):
        for name, values in classes.items():
            if isinstance(values, dict) and ("like" in values or name not in base["classes"]):
                model = values.pop("like", None)
                if model not in base["classes"]:
                    rule = f"the new class {name!r} must say which class it is like, got like = {model!r}"
                    raise ConfigError(path.name, rule, f"Write like = one of {', '.join(base['classes'])}")
                base["classes"][name] = {**base["classes"][model], "count": 0}
    check_keys(wanted, base, path.name)
    return validate(PhantomRecipe, merge(base, wanted), path.name)
