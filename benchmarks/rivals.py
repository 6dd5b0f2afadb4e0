"""What others do with the same maps: each rival as it is best used, on equal cores.

A rival is left out where its package is not installed (`pip install .[bench]`). Loops over single images run in one
process per core, started before and fed through shared memory; libraries with threads of their own use those. Flips
are made from the base patch where the library has a flip, as ours are.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lesionaug as la
from lesionaug.augment.speed import LIKE_TORCH, SIZE, torch_parts

# Where `make bench` puts an OpenCV of the 4.x line, so that both lines are timed in one run, each in its processes.
OPENCV_4 = Path(sys.prefix) / "opencv-4"
PER_ROTATION = 16  # base, three flips, seven shifts, five scales
FLIPS = {1: 2, 2: 1, 3: 3}  # place in a rotation -> our flip bits


@dataclass
class Work:
    """Patches to make: `rotations` of every lesion's 30, so that a part has the mix of the whole.

    Attributes:
        rois: The lesions, on the CPU or a GPU.
        params: Rows, lesion-major, sixteen to a rotation.
        out: [N, 1, 64, 64] float32, in memory that child processes share.
    """

    rois: la.RoiBatch
    rotations: int
    threads: int
    params: la.AugmentationParams = field(init=False)
    out: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        chosen = list(range(self.rotations * PER_ROTATION))
        self.params = la.AugmentationPlan().sample(self.rois, seed=0, indices=chosen)
        self.out = torch.zeros((len(self.params), 1, SIZE, SIZE), device=self.rois.device)
        if self.rois.device.type == "cpu":
            self.out.share_memory_()

    @property
    def per_lesion(self) -> int:
        return self.rotations * PER_ROTATION

    def matrices(self) -> np.ndarray:
        """patch_to_image with flips folded in, [N, 2, 3] float64."""
        return self.params.patch_to_image(self.rois, SIZE).double().cpu().numpy()


@dataclass(frozen=True)
class Rival:
    """A library and how it is compared.

    Attributes:
        name: As in the table.
        module: What must be importable.
        package: Its distribution, whose version is noted.
        antialias: Whether it is compared with the antialiased or the plain fold.
        ours: Options under which `la.augment` computes the same thing.
        tolerance: Largest difference allowed, in parts of the range; None: it computes something else.
        rotations: How many of a lesion's 30 rotations are timed.
        make: From the work to a context that gives the call to time.
        note: What differs.
        cuda: Whether it runs on a GPU too.
        folder: Where the package lies when it is not the one installed.
    """

    name: str
    module: str
    package: str
    antialias: bool
    ours: dict[str, Any]
    tolerance: float | None
    rotations: int
    make: Callable[[Work], Any]
    note: str = ""
    cuda: bool = False
    folder: Path | None = None

    @property
    def installed(self) -> bool:
        return self.folder.exists() if self.folder else importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        path = [str(self.folder)] if self.folder else sys.path
        return next(iter(importlib.metadata.distributions(name=self.package, path=path))).version


def _worker(pipe: Any, setup: Callable[[], Any], call: Callable[[Any, int, int], None], first: int, last: int) -> None:
    state = setup()
    while pipe.recv():
        call(state, first, last)
        pipe.send(True)


@contextmanager
def _processes(
    work: Work, setup: Callable[[], Any], call: Callable[[Any, int, int], None]
) -> Iterator[Callable[[], None]]:
    """One process a core, each with its lesions; the call tells all to go and waits for them."""
    context = multiprocessing.get_context("fork")
    ends = np.linspace(0, len(work.rois), work.threads + 1).astype(int)
    children = []
    for first, last in itertools.pairwise(ends):
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, setup, call, int(first), int(last)), daemon=True)
        process.start()
        children.append((process, ours))

    def run() -> None:
        for _, pipe in children:
            pipe.send(True)
        for _, pipe in children:
            pipe.recv()

    try:
        yield run
    finally:
        for process, pipe in children:
            pipe.send(False)
            process.join(10)


def opencv_maps(matrices: np.ndarray) -> np.ndarray:
    """The maps [N, 2, 3] for OpenCV, whose points count from the centre of a pixel, not from its corner."""
    maps = matrices.copy()
    maps[:, :, 2] += maps[:, :, 0] / 2 + maps[:, :, 1] / 2 - 0.5
    return maps


def _opencv(work: Work, share_flips: bool, folder: Path | None = None) -> Any:
    images = [image.numpy() for image in work.rois.images]
    maps = opencv_maps(work.matrices())
    out = work.out[:, 0].numpy()

    def setup() -> Any:
        if folder:
            for name in [name for name in sys.modules if name.partition(".")[0] == "cv2"]:
                del sys.modules[name]
            sys.path.insert(0, str(folder))
        import cv2

        assert folder is None or Path(cv2.__file__).is_relative_to(folder), "another OpenCV was loaded before"
        cv2.setNumThreads(1)
        return cv2

    def call(cv2: Any, first: int, last: int) -> None:
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        codes = {1: 0, 2: 1, 3: -1}  # our order of flips: up-down, left-right, both
        for lesion in range(first, last):
            image = images[lesion]
            for k in range(work.per_lesion):
                n, v = lesion * work.per_lesion + k, k % PER_ROTATION
                if share_flips and v in codes:
                    cv2.flip(out[n - v], codes[v], dst=out[n])
                else:
                    cv2.warpAffine(
                        image, maps[n], (SIZE, SIZE), dst=out[n], flags=flags, borderMode=cv2.BORDER_REPLICATE
                    )

    return _processes(work, setup, call)


@contextmanager
def _torch(work: Work, given: bool = False) -> Iterator[Callable[[], None]]:
    parts = [(part, part.grid() if given else None) for part in torch_parts(work.rois, work.params)]

    def run() -> None:
        for part, ready in parts:
            work.out[part.rows] = part.sample(part.grid() if ready is None else ready)

    yield run


@contextmanager
def _kornia(work: Work) -> Iterator[Callable[[], None]]:
    import kornia

    inverse = np.zeros((len(work.params), 3, 3))
    inverse[:, :2], inverse[:, 2, 2] = work.matrices(), 1
    inverse[:, :2, 2] += inverse[:, :2, 0] / 2 + inverse[:, :2, 1] / 2 - 0.5  # its points are pixel centres too
    forward = torch.from_numpy(np.linalg.inv(inverse)[:, :2]).float().to(work.rois.device)

    def run() -> None:
        for i, image in enumerate(work.rois.images):
            part = slice(work.per_lesion * i, work.per_lesion * (i + 1))
            work.out[part] = kornia.geometry.warp_affine(
                image[None, None].expand(work.per_lesion, -1, -1, -1),
                forward[part],
                (SIZE, SIZE),
                mode="bicubic",
                padding_mode="border",
                align_corners=True,
            )

    yield run


def _loop(work: Work, one: Callable[[int, np.ndarray], np.ndarray]) -> Any:
    """One call per patch: `one(n, image)`."""
    images = [image.numpy() for image in work.rois.images]
    out = work.out[:, 0].numpy()

    def call(_: Any, first: int, last: int) -> None:
        for lesion in range(first, last):
            for n in range(lesion * work.per_lesion, (lesion + 1) * work.per_lesion):
                out[n] = one(n, images[lesion])

    return _processes(work, lambda: torch.set_num_threads(1), call)


def _pillow(work: Work) -> Any:
    from PIL import Image

    maps = work.matrices()

    def one(n: int, image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image)
        m = maps[n].ravel().tolist()
        return np.asarray(picture.transform((SIZE, SIZE), Image.Transform.AFFINE, m, resample=Image.Resampling.BICUBIC))

    return _loop(work, one)


def _skimage(work: Work) -> Any:
    from skimage.transform import warp

    maps = work.matrices()
    maps[:, :, 2] += maps[:, :, 0] / 2 + maps[:, :, 1] / 2 - 0.5
    full = np.zeros((len(maps), 3, 3))
    full[:, :2], full[:, 2, 2] = maps, 1

    def one(n: int, image: np.ndarray) -> np.ndarray:
        return warp(image, full[n], output_shape=(SIZE, SIZE), order=3, mode="edge", clip=False, preserve_range=True)

    return _loop(work, one)


def _scipy(work: Work) -> Any:
    from scipy import ndimage

    maps = work.matrices()
    maps[:, :, 2] += maps[:, :, 0] / 2 + maps[:, :, 1] / 2 - 0.5
    linear, offset = maps[:, ::-1, 1::-1], maps[:, ::-1, 2]
    coefficients: dict[int, np.ndarray] = {}

    def one(n: int, image: np.ndarray) -> np.ndarray:
        if id(image) not in coefficients:  # once per lesion, not per patch
            coefficients[id(image)] = ndimage.spline_filter(image, 3, np.float32, mode="nearest")
        return ndimage.affine_transform(
            coefficients[id(image)], linear[n], offset[n], (SIZE, SIZE), order=3, mode="nearest", prefilter=False
        )

    return _loop(work, one)


def _turned(work: Work) -> Iterator[tuple[int, int, float]]:
    """(lesion, first row, angle) of every rotation."""
    angles = work.params.angle.cpu().numpy()
    for lesion in range(len(work.rois)):
        for r in range(work.rotations):
            n = lesion * work.per_lesion + r * PER_ROTATION
            yield lesion, n, float(angles[n])


def _boxes(work: Work) -> np.ndarray:
    """(left, top, right, bottom) of every patch in its turned image, [N, 4]."""
    shift, side = work.params.shift.cpu().numpy(), work.params.side.cpu().numpy()[:, None]
    centers = work.rois.centers.cpu().numpy()[work.params.roi.cpu().numpy()]
    middle = centers - shift
    return np.concatenate([middle - side / 2, middle + side / 2], axis=1)


def _pillow_antialiased(work: Work) -> Any:
    from PIL import Image

    images = [Image.fromarray(image.numpy()) for image in work.rois.images]
    boxes = _boxes(work).tolist()
    rotations = list(_turned(work))
    out = work.out[:, 0].numpy()

    def call(_: Any, first: int, last: int) -> None:
        for lesion, n, angle in rotations:
            if not first <= lesion < last:
                continue
            turned = images[lesion].rotate(angle, Image.Resampling.BICUBIC)
            for v in range(PER_ROTATION):
                if v in FLIPS:
                    rows, columns = (slice(None, None, -1 if FLIPS[v] & bit else 1) for bit in (2, 1))
                    out[n + v] = out[n][rows, columns]
                else:
                    out[n + v] = turned.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=boxes[n + v])

    return _processes(work, lambda: None, call)


@contextmanager
def _torch_antialiased(work: Work) -> Iterator[Callable[[], None]]:
    """The image turned once a rotation at its own resolution, crops resized with antialias."""
    device = work.rois.device
    boxes = np.rint(_boxes(work)).astype(int).tolist()  # interpolate knows no fractions of a pixel
    rotations = list(_turned(work))
    images = [image[None, None] for image in work.rois.images]

    def run() -> None:
        for lesion, n, angle in rotations:
            image = images[lesion]
            c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
            theta = torch.tensor([[[c, -s, 0], [s, c, 0]]], dtype=torch.float32, device=device)
            grid = torch.nn.functional.affine_grid(theta, list(image.shape), align_corners=False)
            turned = torch.nn.functional.grid_sample(
                image, grid, mode="bicubic", padding_mode="border", align_corners=False
            )
            for v in range(PER_ROTATION):
                if v in FLIPS:
                    dims = [d for bit, d in ((2, 1), (1, 2)) if FLIPS[v] & bit]
                    work.out[n + v] = torch.flip(work.out[n], dims)
                else:
                    left, top, right, bottom = boxes[n + v]
                    crop = turned[:, :, max(top, 0) : bottom, max(left, 0) : right]
                    work.out[n + v] = torch.nn.functional.interpolate(
                        crop, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False
                    )[0]

    yield run


CV = "opencv-python-headless"
COARSE = "positions of 1/32 pixel"
RIVALS = [
    Rival("OpenCV warpAffine", "cv2", CV, False, LIKE_TORCH, 2e-2, 30, lambda w: _opencv(w, False)),
    Rival("OpenCV warpAffine + flip", "cv2", CV, False, LIKE_TORCH, 2e-2, 30, lambda w: _opencv(w, True)),
    Rival(
        "OpenCV 4 warpAffine + flip",
        "cv2",
        CV,
        False,
        LIKE_TORCH,
        2e-2,
        30,
        lambda w: _opencv(w, True, OPENCV_4),
        COARSE,
        folder=OPENCV_4,
    ),
    Rival("torch grid_sample", "torch", "torch", False, LIKE_TORCH, 5e-4, 30, _torch, cuda=True),
    Rival(
        "torch grid_sample, grids given",
        "torch",
        "torch",
        False,
        LIKE_TORCH,
        5e-4,
        30,
        lambda w: _torch(w, given=True),
        "half the work done before",
        cuda=True,
    ),
    Rival("Kornia warp_affine", "kornia", "kornia", False, LIKE_TORCH, 5e-4, 30, _kornia, cuda=True),
    Rival("Pillow transform", "PIL", "pillow", False, {**LIKE_TORCH, "a": -1.0}, 5e-4, 4, _pillow, "a = -1"),
    Rival("scikit-image warp", "skimage", "scikit-image", False, {**LIKE_TORCH, "a": -0.5}, 5e-4, 1, _skimage),
    Rival("SciPy affine_transform", "scipy", "scipy", False, {**LIKE_TORCH, "a": -0.5}, None, 2, _scipy, "B-spline"),
    Rival(
        "Pillow rotate, then resize",
        "PIL",
        "pillow",
        True,
        {"border": "renorm"},
        None,
        4,
        _pillow_antialiased,
        "two resamples",
    ),
    Rival(
        "torch grid_sample, then resize",
        "torch",
        "torch",
        True,
        {"border": "renorm"},
        None,
        4,
        _torch_antialiased,
        "two resamples, whole-pixel crops",
        cuda=True,
    ),
]
