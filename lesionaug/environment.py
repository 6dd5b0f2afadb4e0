"""`lesionaug.doctor`: what was built, what runs here, and a kernel checked against references."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import sys
from dataclasses import asdict, dataclass

EXTRAS = (
    "cyclopts",
    "dask",
    "highdicom",
    "jinja2",
    "matplotlib",
    "nibabel",
    "pillow",
    "pydantic",
    "pydicom",
    "pyjpegls",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "python-gdcm",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "starlette",
    "statsmodels",
    "threadpoolctl",
    "uvicorn",
)
TOLERANCE = 1e-5  # of the range of the values, docs/definitions.md section 2


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Attributes:
        name: What was looked at.
        status: "ok", "warn" (works, but not as it could) or "fail".
        detail: What was found.
        fix: What to do about it, empty where nothing is to be done.
    """

    name: str
    status: str
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found; print it, or take `as_dict()`."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(finding.status != "fail" for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """The findings as plain data, for JSON."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}

    def __str__(self) -> str:
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.status:4}  {finding.name:12}  {finding.detail}")
            if finding.fix:
                lines.append(f"{'':20}-> {finding.fix}")
        return "\n".join(lines)

    __repr__ = __str__


def doctor() -> Diagnosis:
    """Look at the installation and the machine, and check the kernels of every device that is here."""
    return Diagnosis((*_versions(), *_build(), *_kernels()))


def versions() -> dict[str, str]:
    """Versions that a number can depend on, to be saved beside results."""
    from lesionaug import __version__

    found = {"lesionaug": __version__, "python": platform.python_version()}
    for name in ("numpy", "scikit-learn", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # scikit-learn comes with an extra
            found[name] = importlib.metadata.version(name)
    return found


def _versions() -> list[Finding]:
    import torch

    found = versions()
    findings = [
        Finding("lesionaug", "ok", f"{found['lesionaug']}, Python {found['python']}, {platform.platform()}"),
        Finding("torch", "ok", f"{found['torch']}, {torch.get_num_threads()} CPU threads"),
    ]
    missing = []
    for name in EXTRAS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        fix = 'pip install "lesionaug[full]" (the backend alone works without)'
        findings.append(Finding("extras", "warn", f"not installed: {', '.join(missing)}", fix))
    else:
        findings.append(Finding("extras", "ok", "all installed"))
    return findings


def _build() -> list[Finding]:
    import torch

    try:
        from lesionaug import _native
    except ImportError as error:
        return [Finding("kernels", "fail", f"cannot be imported: {error}", "pip install .")]
    built = f"CUDA for {_native.cuda_archs}" if _native.cuda_archs else "no CUDA"
    findings = [Finding("kernels", "ok", f"CPU and {built}, {_native.compiler}")]
    if _native.cuda_archs:
        if _native.cuda_verified:
            findings.append(Finding("CUDA", "ok", f"CUDA verified on {_native.cuda_verified}"))
        else:
            fix = "run `make gpu` in a checkout on this machine and send its result file to the developers"
            here = torch.cuda.is_available()
            detail = "CUDA unverified: these kernels have not been shown right on a GPU yet; the plain ones are taken"
            findings.append(Finding("CUDA", "warn" if here else "ok", detail, fix if here else ""))
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        if _native.cuda_archs:
            findings.append(Finding("GPU", "ok", f"{names}, torch built for CUDA {torch.version.cuda}"))
        else:
            fix = "reinstall with nvcc on the PATH: LESIONAUG_CUDA=ON pip install ."
            findings.append(Finding("GPU", "warn", f"{names}, but the kernels were built without CUDA", fix))
    elif torch.version.cuda:
        findings.append(Finding("GPU", "ok", "none that torch can use; everything runs on the CPU"))
    else:
        findings.append(Finding("GPU", "ok", "none: this torch is a CPU build; everything runs on the CPU"))
    return findings


def _kernels() -> list[Finding]:
    if "lesionaug._native" not in sys.modules:
        return []
    import torch

    from lesionaug import _native

    devices = ["cpu"]
    if torch.cuda.is_available() and _native.cuda_archs:
        devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    findings = []
    for device in devices:
        try:
            error, turned = _kernel_errors(device)
        except Exception as problem:  # a doctor reports what breaks, whatever it is
            findings.append(
                Finding(device, "fail", f"the resampling kernel did not run: {problem}", "reinstall lesionaug")
            )
            continue
        right = turned and error <= TOLERANCE
        detail = (
            f"largest difference from grid_sample {error:.1e}, a quarter turn is {'exact' if turned else 'NOT exact'}"
        )
        findings.append(
            Finding(device, "ok" if right else "fail", detail, "" if right else "please report this as a bug")
        )
    return findings


def _kernel_errors(device: str) -> tuple[float, bool]:
    """Largest difference from torch's grid_sample in float64, and whether a quarter turn is exact."""
    import torch

    from lesionaug.augment.resample import resample

    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 48, 40, generator=generator)
    turn = torch.tensor([[[0.8, -0.3, 12.25], [0.3, 0.8, 3.5]]], dtype=torch.float64)
    ours = resample(image.to(device), turn.to(device), 32, a=-0.75, antialias=False, border="replicate").cpu()
    centre = torch.arange(32, dtype=torch.float64) + 0.5
    points = torch.stack([*torch.meshgrid(centre, centre, indexing="xy"), torch.ones(32, 32, dtype=torch.float64)], -1)
    grid = 2 * (points @ turn[0].T) / torch.tensor([40.0, 48.0], dtype=torch.float64) - 1
    theirs = torch.nn.functional.grid_sample(
        image.double(), grid[None], mode="bicubic", padding_mode="border", align_corners=False
    )
    quarter = torch.tensor([[[0.0, -1.0, 40.0], [1.0, 0.0, 0.0]]])
    square = image[:, :, :40].contiguous()
    turned = resample(square.to(device), quarter.to(device), 40).cpu()
    return float((ours - theirs).abs().max()), bool((turned == torch.rot90(square, 1, (2, 3))).all())
