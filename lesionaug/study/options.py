"""What a reader study is to be: the options of `lesionaug study new`, their defaults and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lesionaug.errors import ConfigError, DataError
from lesionaug.experiment import paper
from lesionaug.study.files import MAX_CONSENT_BYTES, MAX_ITEMS, MAX_SLOTS

DEFAULT_NUM = 60  # real, and as many synthetic: two tasks of these take a reader about half an hour

CONSENT_TEXT = """\
You are asked to look at small images of lesions and to answer one or two questions about each.

Your answers, the time each one took, your notes, how you set the display, your code name and what you tell of your
experience are stored in a file on this computer and used to describe how readers see these images. Your name is not
asked for. Please write nothing into a note that could identify you or a patient.

Taking part is voluntary. You can pause or stop at any moment, without giving a reason.
"""


@dataclass(frozen=True)
class StudyOptions:
    """What a study is to be; None takes the default of the preset.

    Attributes:
        preset: "paper": 182 real and 120 synthetic images, two keys for the origin. The paper tells of no practice and
            no repeats, so it has none; that one task comes before the other is a reading.
        num_real: Real images that count; 60 by default, fewer where there are fewer.
        num_synthetic: Synthetic ones; as many as real ones by default.
        num_practice: Images before each task that do not count, half of them real.
        repeats: Share of the images that each task shows twice.
        order: "separate" or "combined".
        scale: "six-step" or "two-key".
        num_readers: How many may take part.
        back: "allow" or "lock".
        seed: Of the choice of images. The orders have a key of their own that is always random.
        title: Shown to readers.
        consent: What they agree to.
        gans: Kinds of GAN of a run to take images of; its first by default.
    """

    preset: Literal["paper"] | None = None
    num_real: int | None = None
    num_synthetic: int | None = None
    num_practice: int | None = None
    repeats: float | None = None
    order: Literal["separate", "combined"] = "separate"
    scale: Literal["six-step", "two-key"] | None = None
    num_readers: int = 8
    back: Literal["allow", "lock"] = "allow"
    seed: int = 0
    title: str = "Reader study of lesion images"
    consent: str = CONSENT_TEXT
    gans: tuple[str, ...] = ()


def settled(options: StudyOptions) -> StudyOptions:
    """The options with the defaults of their preset, checked."""
    printed = options.preset == "paper"
    values = dict(vars(options))
    for name, of_paper, default in (
        ("num_real", paper.EXPERT_NUM_REAL, None),
        ("num_synthetic", paper.EXPERT_NUM_SYNTHETIC, None),
        ("num_practice", 0, 10),
        ("repeats", 0.0, 0.1),
        ("scale", "two-key", "six-step"),
    ):
        if values[name] is None:
            values[name] = of_paper if printed else default
    settled = StudyOptions(**values)
    for option, value, low, high in (
        ("--real", settled.num_real, 1, MAX_ITEMS),
        ("--fake", settled.num_synthetic, 1, MAX_ITEMS),
        ("--practice", settled.num_practice, 0, MAX_ITEMS),
        ("--repeats", settled.repeats, 0, 1),
        ("--readers", settled.num_readers, 1, MAX_SLOTS),
        ("--seed", settled.seed, 0, (1 << 64) - 1),
    ):
        if value is not None and not low <= value <= high:
            raise ConfigError(option, f"it must lie in {low} .. {high}, got {value}", "Choose another number")
    if not (0 < len(settled.title) <= 200 and settled.title.isprintable()):
        raise ConfigError("--title", "a title has 1 .. 200 printable characters", "Choose another")
    if not settled.consent.strip() or len(settled.consent.encode()) > MAX_CONSENT_BYTES:
        raise ConfigError("--consent", f"the text must have 1 .. {MAX_CONSENT_BYTES} bytes", "Write another")
    return settled


def consent_of(path: Path) -> str:
    """Read a consent text.

    Raises:
        DataError: It cannot be read, or is no UTF-8.
    """
    if not path.exists():
        raise DataError("--consent", f"the file {path.name} does not exist", "Give a text file that readers agree to")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("--consent", f"{path.name} must be a UTF-8 text file", "Save it as plain text") from error
