"""The Triton kernels against attention written out, in Triton's interpreter where there is no GPU (invariant 19)."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from layer_calls import call
from packaging.version import Version
from places import ROOT
from torch.overrides import TorchFunctionMode

from namm_transfer import NAMM, EvictionPolicy, NammTransferError, kernel_choice, policies
from namm_transfer.cache import device
from namm_transfer.cache.device import Block, Part, Spans
from namm_transfer.cache.layer import MemoryLayer
from namm_transfer.scorers import DEEP, FEATURES
from namm_transfer.statistics import QuerySum, Spectrum

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed; it exists for Linux only"),
    pytest.mark.skipif(
        find_spec("triton") is not None
        and not torch.cuda.is_available()
        and Version(version("triton")) < Version("3.8"),
        reason="needs a GPU: the interpreter of Triton 3.6 does not run with numpy 2.4",
    ),
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAST_TWO = QuerySum("sum", lambda seen, length: (max(0, length - 2), seen == 0))
ALL = QuerySum("sum", lambda seen, length: (0, False))


class Case:
    """A block of queries of two sequences over stored tokens: ``before`` older ones and the block's own.

    The second sequence has fewer tokens, in front of which are padding slots, and its block is two queries shorter.
    Positions have holes.
    """

    def __init__(self, before, new, dim=32, group=1, kv_heads=2, dtype=torch.float32, window=None, sharp=1.0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        stored = before + new

        def random(heads, tokens, width):
            return torch.randn(2, heads, tokens, width, generator=generator).to(DEVICE, dtype)

        query, keys, values = random(kv_heads * group, new, dim) * sharp, random(kv_heads, stored, dim), None
        values = random(kv_heads, stored, dim)
        seen = [2 * before + 3, before]
        lengths = [new, max(new - 2, 0)]
        positions = torch.full((2, kv_heads, stored), -1, dtype=torch.int32)
        for b in range(2):
            older = before if b == 0 else before // 2
            for head in range(kv_heads):
                drawn = torch.randperm(seen[b], generator=generator)[:older].sort().values
                positions[b, head, before - older : before] = drawn
            positions[b, :, before : before + lengths[b]] = seen[b] + torch.arange(lengths[b])
        self.part = Part(keys, values, positions.to(DEVICE), Spans.dense(torch.arange(kv_heads, device=DEVICE)), new)
        self.block = Block(query, seen, lengths, kv_heads, dim**-0.5, window)

    def weights(self):
        """Softmax weights of every query head, (batch, kv_heads, group, new, stored) float64; zero without a key."""
        queries = self.block.queries.double().unflatten(1, (self.block.kv_heads, -1))
        scores = queries @ self.part.keys.double().transpose(-1, -2)[:, :, None] * self.block.scaling
        at = torch.tensor(self.block.seen, device=DEVICE)[:, None] + torch.arange(queries.shape[3], device=DEVICE)
        distance = at[:, None, :, None] - self.part.positions[:, :, None]
        visible = (self.part.positions[:, :, None] >= 0) & (distance >= 0)
        if self.block.window is not None:
            visible &= distance < self.block.window
        return scores.masked_fill(~visible[:, :, None], -torch.inf).softmax(-1).nan_to_num(0)

    def attend(self):
        """The kernels' output and log-sum-exp, and the output written out; real queries only."""
        out, lse = device.attend(self.block, [self.part])
        expected = (self.weights() @ self.part.values.double()[:, :, None]).flatten(1, 2)
        for b, length in enumerate(self.block.lengths):
            out[b, :, length:] = expected[b, :, length:] = 0
        return out, lse, expected

    def fold(self, statistic, lse, state, rounding="float32"):
        """The statistic by the kernels and by `observe` of the weights written out."""
        rounded = self.weights().float().to(getattr(torch, rounding))
        weights = (rounded[:, :, 0] if rounded.shape[2] == 1 else rounded.mean(2)).float()
        for b, length in enumerate(self.block.lengths):
            weights[b, :, length:] = 0
        mine, other = ({name: tensor.clone() for name, tensor in state.items()} for _ in range(2))
        device.fold(statistic, mine, self.block, lse, self.part, rounding)
        statistic.observe(other, weights, self.block.seen, self.block.lengths)
        return mine, other

    def state(self, rows=0):
        """A state of stored tokens that is not zero: (batch, kv_heads, rows, stored), or without the rows."""
        shape = [*self.part.positions.shape]
        shape[2:2] = [rows] * (rows > 0)
        state = torch.rand(shape, generator=torch.Generator().manual_seed(9)).to(DEVICE)
        state[..., self.part.keys.shape[2] - self.part.own :] = 0
        return state


TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.mark.parametrize(
    "sizes",
    [
        dict(before=0, new=1),
        dict(before=40, new=3, window=7),
        dict(before=64, new=64, kv_heads=1),
        dict(before=30, new=35, dim=256, kv_heads=1),
        dict(before=70, new=20, dim=80, group=3),
        dict(before=150, new=5, dim=64, group=2, dtype=torch.bfloat16),
        dict(before=33, new=17, dim=128, dtype=torch.float16, window=20),
        dict(before=20, new=6, group=7, sharp=30.0),
        dict(before=20, new=6, sharp=0.0),
    ],
    ids=str,
)
def test_attention_and_sums_are_those_written_out(sizes):
    """Head dims from 32 to 256, groups, windows, padding slots, full tiles; very peaked rows and rows all of ties."""
    case, largest = Case(**sizes), max(1, sizes.get("sharp", 1))  # float32 scores are as exact as they are large
    out, lse, expected = case.attend()
    scale = expected.abs().max()
    assert (out - expected).abs().max() <= TOLERANCE[out.dtype] * scale * largest
    for statistic in (ALL, LAST_TWO):
        mine, other = case.fold(statistic, lse, {"sum": case.state()})
        torch.testing.assert_close(mine["sum"], other["sum"], atol=3e-6 * largest, rtol=3e-6 * largest)


@pytest.mark.parametrize("programs", [1, 24])
def test_tokens_divided_among_programs_are_one_softmax(programs, monkeypatch):
    """Also where a program sees nothing at all."""
    monkeypatch.setattr(device, "_PROGRAMS", programs)
    monkeypatch.setattr(device, "_LEAST_SPLIT", 1)
    for window in (None, 4):
        out, lse, expected = Case(before=200, new=4, window=window).attend()
        assert (out - expected).abs().max() <= 2e-6 * expected.abs().max()
        assert bool(lse[0].isfinite().all())


@pytest.mark.parametrize("rounding", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("sizes", "seen", "lengths"),
    [
        (dict(before=32, new=32, group=2), [64, 32], [32, 32]),  # whole hops
        (dict(before=64, new=64, kv_heads=1), [128, 64], [64, 64]),  # tiles of new tokens alone
        (dict(before=40, new=4, window=9), [100, 44], [4, 4]),  # inside a hop, and one that becomes complete
        (dict(before=20, new=1, sharp=20.0), [47, 20], [1, 0]),  # one query that ends a hop; nothing at all
    ],
    ids=str,
)
def test_spectra_are_those_of_weights_written_out(sizes, seen, lengths, rounding):
    case = Case(**sizes)
    shift = torch.tensor([new - old for new, old in zip(seen, case.block.seen, strict=True)], dtype=torch.int32)
    real = case.part.positions >= 0
    case.part.positions.add_(shift.to(DEVICE)[:, None, None]).masked_fill_(~real, -1)
    case.block = Block(case.block.queries, seen, lengths, case.block.kv_heads, case.block.scaling, case.block.window)
    for b, length in enumerate(lengths):
        first = case.part.keys.shape[2] - case.part.own
        case.part.positions[b, :, first : first + length] = seen[b] + torch.arange(length, device=DEVICE)
    _, lse, _ = case.attend()
    dtype = getattr(torch, rounding)
    state = {"spectrum": case.state(17), "tail": case.state(16).to(dtype)}
    if any(number % 16 for number in [*seen, *lengths]):
        state["pending"] = case.state(16).to(dtype)
    mine, other = case.fold(Spectrum(), lse, state, rounding)
    tolerance = 1e-6 if rounding == "float32" else 8e-3
    for name in ("spectrum", "tail"):
        torch.testing.assert_close(mine[name], other[name], atol=tolerance, rtol=tolerance)
    assert not torch.equal(mine["spectrum"], state["spectrum"])
    for b, (count, length) in enumerate(zip(seen, lengths, strict=True)):
        inside = (count + length) % 16
        if inside:
            pair = (some["pending"][b, :, :inside].float() for some in (mine, other))
            torch.testing.assert_close(*pair, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("lengths", [[40], [37, 21]], ids=str)
@pytest.mark.parametrize(
    "name", ["namm-head", "namm-layer", "h2o", "tova", "snapkv:window=9", "l2", "full"], ids=lambda name: name[:10]
)
def test_a_layer_decides_as_the_reference_does(name, lengths, random_namm, monkeypatch):
    """A prompt, single tokens from pages, longer calls; ragged rows and heads, grouped queries, a sliding window."""
    kind, _, options = name.partition(":")
    if kind.startswith("namm"):
        policy = random_namm(update_interval=32, selection=kind.removeprefix("namm-"))
    else:
        policy = policies.make(f"{kind}:{options},update_interval=32" if options else f"{kind}:update_interval=32")
    window = 9 if len(lengths) > 1 else None
    runs = []
    for kernels in ("torch", "triton"):
        monkeypatch.setenv(kernel_choice.VARIABLE, kernels)
        generator, layer, outputs = torch.Generator().manual_seed(1), MemoryLayer(policy, 0, 1), []
        counts, new = lengths, max(lengths)
        for following in (1, 1, 4, 20, 1):
            tensors = (2 * torch.randn(len(counts), heads, new, 8, generator=generator) for heads in (6, 3, 3))
            outputs.append(call(layer, *(tensor.to(DEVICE) for tensor in tensors), counts, window))
            counts, new = [following] * len(counts), following
        runs.append((layer, outputs))
    (reference, expected), (layer, outputs) = runs
    for mine, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-4)
    assert torch.equal(layer.positions, reference.positions)
    assert layer.paged == reference.paged == (name == "namm-head")
    for mine, other in zip(layer.groups, reference.groups, strict=True):
        assert mine.state.keys() == other.state.keys()
        for state in mine.state.keys() - {"pending"}:
            real = (mine.positions >= 0).view(*mine.positions.shape[:2], *[1] * (mine.state[state].dim() - 3), -1)
            pair = (some.state[state].where(real, 0) for some in (mine, other))
            torch.testing.assert_close(*pair, atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize("tokens", [1, 63, 128, 300])
@pytest.mark.parametrize("scorer", ["published", "deep"])
def test_the_scorers_kernel_scores_as_torch_does(scorer, tokens, random_namm, monkeypatch):
    """Backward attention over fewer tokens than a block, a whole block, and several."""
    namm = random_namm().to(DEVICE)
    if scorer == "deep":
        namm = NAMM.from_vector(
            torch.randn(DEEP.size, generator=torch.Generator().manual_seed(2)) / 3,
            mean=torch.full((17,), -5.0), var=torch.ones(17), scorer="deep",
        ).to(DEVICE)  # fmt: skip
    x = torch.randn(2, 3, tokens, FEATURES, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    found = []
    for kernels in ("torch", "triton"):
        monkeypatch.setenv(kernel_choice.VARIABLE, kernels)
        with torch.no_grad():
            found.append(namm.score(x))
    torch.testing.assert_close(found[1], found[0], atol=1e-5 * float(found[0].abs().max()), rtol=0)
    assert tokens < 3 or not torch.equal(*found)  # the kernel has run


WAITS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "cpu"}


class Waits(TorchFunctionMode):
    """Fails where the host would wait for a device: a tensor's numbers are read, or a list is copied to it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        assert name not in WAITS, name
        assert name != "tensor", args
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("selection", ["head", "layer"])
def test_no_step_between_updates_waits_for_the_device(selection, random_namm, monkeypatch):
    policy = random_namm(update_interval=32, selection=selection)
    monkeypatch.setenv(kernel_choice.VARIABLE, "triton")
    layer, generator = MemoryLayer(policy, 0, 1), torch.Generator().manual_seed(1)

    def step(new):
        tensors = (2 * torch.randn(2, heads, new, 8, generator=generator) for heads in (6, 3, 3))
        call(layer, *(tensor.to(DEVICE) for tensor in tensors), [new, new], None)

    step(40)
    step(1)  # the first step after an update looks at its pages once
    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: launched.append(grid)

    nothing = SimpleNamespace(attend=Kernel(), combine=Kernel(), fold_spectrum=Kernel())
    monkeypatch.setattr(device, "_kernels", lambda: nothing)
    with Waits():
        for _ in range(20):
            step(1)
    assert layer.paged == (selection == "head")
    assert len(launched) >= 40


@pytest.mark.parametrize("selection", ["head", "layer"])
def test_an_update_waits_for_the_device_once(selection, random_namm, monkeypatch):
    """The host needs the number of tokens that each head keeps, and nothing else."""
    monkeypatch.setenv(kernel_choice.VARIABLE, "triton")
    policy = random_namm(update_interval=32, selection=selection).to(DEVICE)
    layer, waits = MemoryLayer(policy, 0, 1), []

    class Counts(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") in WAITS and not (args and args[0].dtype == torch.float32):
                waits.append(func)
            return func(*args, **(kwargs or {}))

    generator = torch.Generator().manual_seed(1)
    tensors = (2 * torch.randn(2, heads, 128, 8, generator=generator) for heads in (6, 3, 3))
    evict = MemoryLayer.evict

    def counted(self, window=None):
        with Counts():
            evict(self, window)

    monkeypatch.setattr(MemoryLayer, "evict", counted)
    call(layer, *(tensor.to(DEVICE) for tensor in tensors), [128, 128], None)
    assert len(layer.sequences[0].history) == 4
    assert len(waits) == 4


class Observing(policies.H2O):
    """Overrides `observe`, as a policy of somebody else's may."""

    def observe(self, state, weights, tokens_seen, query_lengths):
        state["mass"] += weights.amax(2)


def test_a_policy_with_an_observe_of_its_own_is_shown_the_weights(monkeypatch):
    assert policies.H2O().computed_statistic is not None
    assert Observing().statistic is not None
    assert Observing().computed_statistic is None
    assert issubclass(Observing, EvictionPolicy)
    shown = policies.H2O()
    shown.observe = print
    assert shown.computed_statistic is None
    monkeypatch.setenv(kernel_choice.VARIABLE, "triton")
    q = torch.zeros(1, 2, 3, 8)
    assert device.serves(policies.H2O(), q, q, q)
    assert not device.serves(Observing(), q, q, q)
    assert not device.serves(policies.H2O(), q.double(), q.double(), q.double())
    monkeypatch.setenv(kernel_choice.VARIABLE, "cuda")
    with pytest.raises(NammTransferError, match="expected auto, triton or torch"):
        device.serves(policies.H2O(), q, q, q)


def test_autograd_goes_through_the_reference(monkeypatch):
    monkeypatch.setenv(kernel_choice.VARIABLE, "triton")
    layer = MemoryLayer(policies.H2O(update_interval=16), 0, 1)
    q, k, v = (torch.randn(1, 2, 20, 8, requires_grad=True) for _ in range(3))
    call(layer, q, k, v, [20], None).sum().backward()
    assert v.grad.abs().max() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux only")
def test_the_kernels_compile_for_a_gpu(tmp_path):
    """Triton's compiler refuses code that its interpreter runs; it needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, str(ROOT / "tests" / "compiled_kernels.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["attend", "combine", "fold_sum", "fold_spectrum", "scorer"]
