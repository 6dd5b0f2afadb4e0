"""The phantom data set: made-up patients with liver lesions as real DICOM CT and DICOM SEG, marked synthetic."""

from lesionaug.data.phantom.dataset import PhantomSummary, write_phantom
from lesionaug.data.phantom.recipe import LesionRecipe, PhantomRecipe, ScanRecipe, TissueRecipe, load_recipe

__all__ = [
    "LesionRecipe",
    "PhantomRecipe",
    "PhantomSummary",
    "ScanRecipe",
    "TissueRecipe",
    "load_recipe",
    "write_phantom",
]
