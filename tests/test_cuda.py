"""What only a GPU can show: streams, no waiting, no allocation beyond the output, CUDA graphs. Run by `make gpu`."""

from __future__ import annotations

import itertools
import os

import pytest
import torch

import lesionaug as la
from tests.test_resample import _small_batch

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        if os.environ.get("LESIONAUG_REQUIRE_CUDA") == "1":
            pytest.fail("no CUDA device, and LESIONAUG_REQUIRE_CUDA=1 says there must be one")
        pytest.skip("no CUDA device")


def everything(rois, plan, dense, m):
    """One call of each public function that launches kernels, on tensors that are on the device already."""
    params = plan.sample(rois, seed=1)
    return [
        params.angle,
        params.patch_to_image(rois, 16),
        la.augment(rois, params, 16, window=(-160, 240)),
        la.augment(rois, la.originals(rois), 16),
        la.resample(dense, m, 16),
    ]


@pytest.fixture
def setting():
    rois, _ = _small_batch(torch.device("cuda"))
    dense = torch.rand(4, 2, 20, 30, device="cuda")
    m = torch.tensor([[[1.1, 0.2, 0.5], [-0.3, 0.9, 2.0]]], device="cuda").repeat(4, 1, 1)
    return rois, la.AugmentationPlan(n_rot=3), dense, m


def test_cuda_equals_the_cpu(setting):
    rois, plan, dense, m = setting
    on_gpu = everything(rois, plan, dense, m)
    on_cpu = everything(rois.to("cpu"), plan, dense.cpu(), m.cpu())
    assert torch.equal(on_gpu[0].cpu(), on_cpu[0]), "parameters must have the same bits"
    for a, b in zip(on_gpu[1:], on_cpu[1:], strict=True):
        scale = max(1.0, float(b.abs().max()), float(b.max() - b.min()))
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-5 * scale)
    order = plan.order(rois, seed=3)
    assert torch.equal(order.cpu(), plan.order(rois.to("cpu"), seed=3))


def test_work_goes_to_the_current_stream(setting):
    expected = everything(*setting)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    rois, plan, dense, m = setting
    late = torch.zeros_like(dense)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about 0.1 s: what does not queue behind it reads zeros
        late.copy_(dense)
        got = everything(rois, plan, late, m)
    stream.synchronize()
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_no_call_waits_for_the_device(setting):
    everything(*setting)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        everything(*setting)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_is_allocated_beyond_the_output(setting):
    rois, plan, dense, m = setting
    params = plan.sample(rois, seed=1)
    for call in (
        lambda: la.augment(rois, params, 64, window=(-160, 240)),
        lambda: la.resample(dense, m, 64),
        lambda: params.patch_to_image(rois, 64),
    ):
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = call()
        rounded = -(-out.numel() * out.element_size() // 512) * 512  # the allocator's unit
        assert torch.cuda.max_memory_allocated() - before == rounded
        del out


def test_a_cuda_graph_replays_on_new_values(setting):
    rois, plan, dense, m = setting
    params = plan.sample(rois, seed=1)
    pixels, out = dense.clone(), torch.empty(4, 2, 16, 16, device="cuda")
    patches = torch.empty(len(params), 1, 16, 16, device="cuda")

    def step():
        la.resample(pixels, m, 16, out=out)
        la.augment(rois, params, 16, out=patches)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    pixels.copy_(2 * dense)
    out.zero_()
    patches.zero_()
    graph.replay()
    assert torch.equal(out, la.resample(2 * dense, m, 16))
    assert torch.equal(patches, la.augment(rois, params, 16))


def test_batches_made_ahead_on_another_stream_equal_those_made_at_once(setting):
    rois, plan, _, _ = setting
    options = {"batch_size": 50, "seed": 5, "window": (-160, 240)}
    expected = [
        (x.clone(), label.clone())
        for x, label in itertools.islice(la.AugmentedBatches(rois, plan, prefetch=False, **options), 40)
    ]
    ahead = la.AugmentedBatches(rois, plan, **options)
    streams = []
    make = ahead._make

    def late(position):
        streams.append(torch.cuda.current_stream())
        torch.cuda._sleep(2_000_000)  # about 1 ms: who does not wait for the event reads what was there before
        return make(position)

    ahead._make = late
    sums = []
    for x, label in itertools.islice(ahead, 40):  # freed while work is pending: their memory is used again
        sums.append((x.double().sum(), label.sum()))
        torch.cuda._sleep(1_000_000)
    assert set(streams) == {ahead._stream}
    assert ahead._stream != torch.cuda.current_stream()
    for (total, labels), (x, label) in zip(sums, expected, strict=True):
        assert torch.equal(total, x.double().sum())
        assert torch.equal(labels, label.sum())
    del ahead._make
    state = ahead.state_dict()
    again = la.AugmentedBatches(rois, plan, **options)
    again.load_state_dict(state)
    assert torch.equal(next(again)[0], next(ahead)[0])


# The profiler of some releases warns of its own defaults.
@pytest.mark.filterwarnings("ignore::UserWarning:torch.profiler")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.profiler")
def test_a_batch_is_one_launch_and_waits_for_nothing(setting):
    rois, plan, _, _ = setting
    batches = la.AugmentedBatches(rois, plan, batch_size=16, prefetch=False)
    next(batches)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        next(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        next(batches)
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 1, [event.name for event in kernels]


def test_a_device_that_is_not_the_current_one(setting):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    rois, plan, dense, m = setting
    expected = everything(rois, plan, dense, m)
    with torch.cuda.device(0):
        got = everything(rois.to("cuda:1"), plan, dense.to("cuda:1"), m.to("cuda:1"))
    for a, b in zip(got, expected, strict=True):
        assert a.device.index == 1
        assert torch.equal(a.cpu(), b.cpu())


def test_the_doctor_checks_the_gpu():
    diagnosis = la.doctor()
    assert diagnosis.ok
    assert "cuda:0" in str(diagnosis)
