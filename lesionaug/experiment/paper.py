"""Every number of the paper (Frid-Adar et al. 2018, arXiv 1803.01229), once, each with the place it is printed at.

They are reference values to print beside ours and defaults of the `paper` preset; nothing here is ever a result.
Section numbers are the paper's. "Inferred" and "not printed" mark what the paper leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass

# --- Section II-A, data set: 182 portal-phase CT slices of Sheba Medical Center, 2009-2014 (private) ------------------
CLASSES = ("cyst", "metastasis", "hemangioma")
CLASS_COUNTS = (53, 64, 65)
NUM_LESIONS = 182
LESION_DIAMETER_MM = (10.0, 102.0)
SLICE_THICKNESS_MM = (1.25, 5.0)
TUBE_VOLTAGE_KVP = 120
TUBE_CURRENT_MAS = (140, 400)

# --- Sections II-A and III-A, regions of interest and classic augmentation --------------------------------------------
ROI_SIZE = 64  # pixels per side after the resize
ROI_SIDE_PER_DIAMETER = 1.4  # not printed: measured on Fig. 3, a margin of 0.2 d on each side
N_ROT = 30
N_FLIP = 3  # up-down, left-right, both
N_TRANS = 7
N_SCALE = 5
AUGMENTATIONS_PER_LESION = 480  # = N_ROT (1 + N_FLIP + N_TRANS + N_SCALE): the kinds are not composed with each other
ROTATION_DEG = (0.0, 180.0)
SHIFT_LIMIT_PX = 4.0  # p = min(4, 0.1 d)
SHIFT_LIMIT_PER_DIAMETER = 0.1
SCALE_MARGIN_PER_DIAMETER = (0.1, 0.4)  # s, the margin added on each side (reading of Fig. 3: zoom-out only)

# --- Section II-B and Fig. 2, classification network ------------------------------------------------------------------
CNN_CHANNELS = (32, 64, 128)
CNN_KERNEL = 3
CNN_POOL = 2
CNN_DENSE = 256
CNN_DROPOUT = 0.5
CNN_PARAMETERS = 1_273_347  # printed as "approximately 1.3M"; exact for valid padding and three classes

# --- Section II-B, training of the classification network -------------------------------------------------------------
CNN_BATCH_SIZE = 64
CNN_LEARNING_RATE = 0.001
CNN_MOMENTUM = 0.9  # "Nesterov momentum"; the value is not printed
CNN_EPOCHS = 150

# --- Section III-B and Fig. 5, DCGAN ----------------------------------------------------------------------------------
GAN_NOISE_SIZE = 100
GAN_NOISE_RANGE = (-1.0, 1.0)  # uniform; section IV-B.2 once says normal
GAN_GENERATOR_SHAPES = ((4, 4, 1024), (8, 8, 512), (16, 16, 256), (32, 32, 128), (64, 64, 1))
GAN_DISCRIMINATOR_CHANNELS = (64, 128, 256, 512)  # not printed; inferred
GAN_KERNEL = 5
GAN_STRIDE = 2
GAN_LEAKY_SLOPE = 0.2
GAN_WEIGHT_STD = 0.02
GENERATOR_PARAMETERS = 18_848_640  # not printed; follows from Fig. 5 without biases
DISCRIMINATOR_PARAMETERS = 4_312_449  # not printed; follows from the inferred channels

# --- Sections III-B (DCGAN) and III-C (ACGAN), training of the GANs ---------------------------------------------------
GAN_BATCH_SIZE = 64
GAN_LEARNING_RATE = 0.0002
GAN_ADAM_BETAS = (0.5, 0.999)
GAN_EPOCHS = 70
ACGAN_LEARNING_RATE = 0.0001
ACGAN_EPOCHS = 50

# --- Sections IV-A (folds) and IV-B (groups), protocol ----------------------------------------------------------------
NUM_FOLDS = 3
FOLD_SIZES_PRINTED = (63, 63, 62)  # their sum is 188, not 182
CLASSIC_GROUP_SIZES = (0, 500, 1000, 2000, 3000, 5000, 7500, 10000, 15000)  # images added per fold
CLASSIC_OPTIMUM = 5000  # section IV-B: the smallest group at saturation
SYNTHETIC_GROUP_SIZES = (
    300,
    1500,
    3000,
    6000,
    9000,
    12000,
)  # images added per fold on top of the optimum, the same number per class
SYNTHETIC_OPTIMUM = 3000  # section IV-B.2: 5000 + 3000 = 8000 per fold

# --- Section IV-E, the bag-of-visual-words baseline -------------------------------------------------------------------
BOVW_PATCH = 11
BOVW_PCA_COMPONENTS = 10
BOVW_WORDS = 750
BOVW_MI_THRESHOLD = 0.35


@dataclass(frozen=True)
class PrintedResult:
    """A result as the paper prints it.

    Attributes:
        name: The paper's name of the method.
        where: Table of the paper.
        correct: Correctly classified lesions of 182 (printed, or derived from the printed weighted sensitivity).
        weighted_sensitivity_pct: "Sensitivity" of the abstract; identical to the total accuracy.
        weighted_specificity_pct: Specificities averaged with the class sizes as weights.
        confusion: Rows true, columns predicted, in the order of `CLASSES`; None where it is not printed.
        sensitivity_pct: Per class as printed (rounded here, truncated there: compare within 0.1), or None.
        specificity_pct: Per class as printed, or None.
    """

    name: str
    where: str
    correct: int
    weighted_sensitivity_pct: float
    weighted_specificity_pct: float
    confusion: tuple[tuple[int, int, int], ...] | None = None
    sensitivity_pct: tuple[float, float, float] | None = None
    specificity_pct: tuple[float, float, float] | None = None


CNN_AUG = PrintedResult(
    name="CNN-AUG",
    where="Tables I and V",
    correct=143,
    weighted_sensitivity_pct=78.6,
    weighted_specificity_pct=88.4,
    confusion=((52, 1, 0), (2, 44, 18), (0, 18, 47)),
    sensitivity_pct=(98.1, 68.7, 72.3),
    specificity_pct=(98.4, 83.9, 84.6),
)
CNN_AUG_GAN = PrintedResult(
    name="CNN-AUG-GAN",
    where="Tables II and V",
    correct=156,
    weighted_sensitivity_pct=85.7,
    weighted_specificity_pct=92.4,
    confusion=((53, 0, 0), (2, 52, 10), (1, 13, 51)),
    sensitivity_pct=(100.0, 81.2, 78.5),
    specificity_pct=(97.7, 89.0, 91.4),
)
BOVW_MI = PrintedResult(
    name="BoVW-MI",
    where="Table V",
    correct=142,
    weighted_sensitivity_pct=78.0,
    weighted_specificity_pct=88.3,
    sensitivity_pct=(96.3, 75.0, 66.1),
    specificity_pct=(96.9, 82.2, 87.2),
)
DCGAN = PrintedResult("DCGAN", "Table IV", 156, 85.7, 92.4)
ACGAN = PrintedResult("ACGAN", "Table IV", 148, 81.3, 90.0)
ACGAN_DISCRIMINATOR = PrintedResult("ACGAN discriminator", "Table IV", 144, 79.1, 88.8)

TABLE_I_CONFUSION = CNN_AUG.confusion
TABLE_II_CONFUSION = CNN_AUG_GAN.confusion
TABLE_IV = (DCGAN, ACGAN, ACGAN_DISCRIMINATOR)
TABLE_V = (CNN_AUG_GAN, CNN_AUG, BOVW_MI)

# --- Fig. 8, correct of 182, digitised (every point lies within 0.15 of a whole count) --------------------------------
FIGURE_8_CLASSIC_CORRECT = (104, 130, 136, 141, 141, 143, 143, 142, 142)  # beside CLASSIC_GROUP_SIZES
FIGURE_8_SYNTHETIC_CORRECT = (147, 152, 156, 156, 155, 155)  # beside SYNTHETIC_GROUP_SIZES


@dataclass(frozen=True)
class PrintedExpert:
    """One radiologist of Table III.

    Attributes:
        name: As in the table.
        class_correct: Images whose class was right, of `EXPERT_NUM_IMAGES`.
        real_or_synthetic_correct: Images whose origin was right.
        class_real_pct: Class accuracy on the real images alone.
        class_synthetic_pct: Class accuracy on the synthetic images alone.
    """

    name: str
    class_correct: int
    real_or_synthetic_correct: int
    class_real_pct: float
    class_synthetic_pct: float


# --- Section IV-D and Table III, expert assessment --------------------------------------------------------------------
EXPERT_NUM_REAL = 182
EXPERT_NUM_SYNTHETIC = 120
EXPERT_NUM_IMAGES = 302
EXPERTS = (PrintedExpert("Expert 1", 235, 189, 78.0, 77.5), PrintedExpert("Expert 2", 209, 177, 69.2, 69.2))
EXPERTS_AGREED = 222
EXPERTS_BOTH_CORRECT = 185
