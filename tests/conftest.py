"""Fixtures every test can use."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def own_configuration(tmp_path_factory):
    """A folder for what the package keeps of a user (the pseudonym key), away from that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real medical files beside the checkout; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not (folder / "MANIFEST.md").exists():
        pytest.skip("the real files of ../shared/data are not on this machine")
    return folder


# Where operator tests run: the CPU loops, the CUDA kernels' source on the CPU, and a real GPU; "-tiled": the kernels of
# resample_tiled.cu instead of those of resample_cuda.cu, for the modules whose `device` fixture asks for them.
DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param("emulated", id="emulated"),
    pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
]
TILED_DEVICES = [
    pytest.param("emulated-tiled", id="emulated-tiled"),
    pytest.param("cuda-tiled", id="cuda-tiled", marks=pytest.mark.gpu),
]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """A torch device to run an operator test on."""
    return open_device(request.param, monkeypatch)


def open_device(name: str, monkeypatch):
    """The device called `name`, with the backend that belongs to it."""
    import torch

    from lesionaug.augment import native

    kind, _, path = name.partition("-")
    if kind == "cuda":
        if not torch.cuda.is_available():
            if os.environ.get("LESIONAUG_REQUIRE_CUDA") == "1":
                pytest.fail("no CUDA device, and LESIONAUG_REQUIRE_CUDA=1 says there must be one")
            pytest.skip("no CUDA device")
        device = torch.device("cuda", torch.cuda.current_device())
        monkeypatch.setattr(native.backend(device), "path", path or "plain")
        return device
    if kind == "emulated":
        _emulate_cuda(monkeypatch, native, path or "plain")
    return torch.device("cpu")


@pytest.fixture
def checks_values(request, device) -> bool:
    """Whether the device's kernels raise for bad values by themselves; CUDA gives patches of NaN instead."""
    return request.node.callspec.params["device"] == "cpu"


def _emulate_cuda(monkeypatch, native, path: str) -> None:
    """Answer for the CPU with the CUDA backend over the emulated module."""
    from lesionaug import _native_emulated

    class Emulated(native.CudaBackend):
        module = _native_emulated

        def current(self):
            return nullcontext()

        def stream(self):
            return 0

    import torch

    emulated = Emulated(torch.device("cpu"))
    emulated.path = path
    monkeypatch.setattr(native, "backend", lambda device: emulated)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Nothing may open a connection to another machine."""
    import socket

    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
