"""Averages of weights: exact arithmetic, swapping, checkpoints, and comparison with torch's averages."""

import contextlib
import copy
import io
import math
import pickle
import weakref
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import halfulp
import halfulp.averaging.store as store_module
from halfulp.averaging import EMA, LAWA, SWA, Cosine, Linear, MeanTeacher, PowerLaw, Ramp, Uniform, Warmup
from halfulp.averaging.store import AverageStore
from halfulp.engine.sharding import Part
from support.optimizers import assert_same

FORMATS = ["fp32", "bf16", "fp16", "8bit", "int8", "fp8", "4bit"]


class Net(nn.Module):
    """Two matrices, a batch norm, and a tied output: everything a swap has to get right."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first = nn.Linear(64, 96, dtype=dtype)
        self.norm = nn.BatchNorm1d(96, dtype=dtype)
        self.second = nn.Linear(96, 64, dtype=dtype)
        self.tied = nn.Linear(64, 96, bias=False, dtype=dtype)
        self.tied.weight = self.first.weight

    def forward(self, x):
        return self.tied(self.second(self.norm(self.first(x))))


def make(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return Net(dtype)


@torch.no_grad()
def walk(model, step, size=0.01):
    """A step that every process would make alike."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.add_(torch.randn(p.shape, generator=generator).to(p.dtype) * size)
    model.norm.running_mean.add_(0.5)
    model.norm.num_batches_tracked.add_(1)


def bits(tensor):
    return tensor.detach().reshape(-1).view(torch.uint8).clone()


def snapshot(model):
    return {n: bits(t) for n, t in model.state_dict().items()}


def test_fp32_average_is_the_plain_recurrence_to_the_bit():
    model = make()
    ema = EMA(model, 0.99, state="fp32")
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    weight = torch.tensor(1 - 0.99, dtype=torch.float64).float()
    for step in range(20):
        walk(model, step)
        ema.update()
        for n, p in model.named_parameters():
            expected[n] = expected[n] + (p.detach() - expected[n]) * weight
    for n, average in ema.named_parameters():
        assert torch.equal(average, expected[n])


def test_bf16_nearest_average_is_rounded_by_torch_to_the_bit():
    model = make()
    ema = EMA(model, 0.9, state="bf16", rounding="nearest", min_size=0)
    expected = {n: p.detach().bfloat16() for n, p in model.named_parameters()}
    weight = torch.tensor(1 - 0.9, dtype=torch.float64).float()
    for step in range(20):
        walk(model, step)
        ema.update()
        for n, p in model.named_parameters():
            old = expected[n].float()
            expected[n] = (old + (p.detach() - old) * weight).bfloat16()
    for n, average in ema.named_parameters():
        assert torch.equal(average, expected[n].float())


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_fp32_average_follows_torch(decay):
    model = make()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    theirs.update_parameters(model)
    ours = EMA(model, decay, state="fp32")
    for step in range(50):
        walk(model, step)
        theirs.update_parameters(model)
        ours.update()
    for (_, a), b in zip(ours.named_parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-6, atol=1e-7)


def test_swa_is_the_mean():
    model = make()
    swa = SWA(model, state="fp32")
    seen = []
    for step in range(7):
        walk(model, step, 0.1)
        swa.update()
        seen.append({n: p.detach().double() for n, p in model.named_parameters()})
    for n, average in swa.named_parameters():
        mean = torch.stack([s[n] for s in seen]).mean(0)
        torch.testing.assert_close(average.double(), mean, rtol=1e-6, atol=1e-6)


def distance(ema, other):
    pairs = list(zip(ema.parameters(), other.parameters(), strict=True))
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)) ** 0.5


def test_nearest_bf16_is_frozen_and_stochastic_is_not():
    """Weights leave for a new place: an average of decay 0.999 has to follow by 1 - 0.999**n of the way."""
    torch.manual_seed(0)
    model = nn.Linear(128, 128)
    start = model.weight.detach().clone()
    emas = {r: EMA(model, 0.999, state="bf16", rounding=r) for r in ("nearest", "stochastic")}
    with torch.no_grad():
        model.weight.add_(0.3 * start)
    for _ in range(300):
        for ema in emas.values():
            ema.update()
    gone = {r: float(((e.value("weight") - start) / (0.3 * start)).mean()) for r, e in emas.items()}
    assert abs(gone["nearest"]) < 0.01
    assert gone["stochastic"] == pytest.approx(1 - 0.999**300, rel=0.05)


@pytest.mark.parametrize("state", ["bf16", "8bit", "fp8", "int8", "4bit"])
def test_stochastic_rounding_keeps_the_mean(state):
    """Over many seeds the stored average is the exact one on average."""
    torch.manual_seed(1)
    live = {"w": torch.randn(64, 64)}
    exact, total, runs = None, torch.zeros(64, 64, dtype=torch.float64), 64
    for seed in range(runs):
        ema = EMA({"w": live["w"].clone()}, 0.9, state=state, seed=seed)
        exact = ema.value("w").double()
        for k in range(3):
            target = {"w": live["w"] * (1 + 0.2 * k)}
            ema.update(target)
            exact = exact + (target["w"].double() - exact) * 0.1
        total += ema.value("w").double()
    error, spread = (total / runs - exact), exact.abs().mean()
    assert float(error.mean().abs() / spread) < 2e-3
    assert float(error.square().mean().sqrt() / spread) < {"bf16": 2e-3, "4bit": 0.12}.get(state, 0.03)


@pytest.mark.parametrize("keep", ["device", "cpu", "stream"])
@pytest.mark.parametrize("state", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swap_there_and_back(keep, state, dtype):
    model = make(dtype=dtype)
    ema = EMA(model, 0.5, state=state, min_size=0)
    for step in range(3):
        walk(model, step, 0.1)
        ema.update()
    model.eval()
    before, stored = snapshot(model), copy.deepcopy(ema.state_dict())
    x = torch.randn(4, 64, dtype=dtype)
    reference = copy.deepcopy(model)
    ema.copy_to(reference)
    with ema.swap(keep=keep), torch.no_grad():
        got = model(x)
        with pytest.raises(RuntimeError, match="swap"):
            ema.update()
        with pytest.raises(RuntimeError, match="swap"):
            ema.state_dict()
    with torch.no_grad():
        assert torch.equal(got, reference(x))
        assert not torch.equal(got, model(x))
    assert_same(before, snapshot(model))
    after = ema.state_dict()
    for name, entries in stored["averages"].items():
        for key, value in entries.items():
            now = after["averages"][name][key]
            assert torch.equal(value, now) if isinstance(value, torch.Tensor) else value == now


CHANGES = {
    "a step": lambda model: stepped(halfulp.AdamW(model.parameters(), lr=0.1), model),
    "a step of torch": lambda model: stepped(torch.optim.SGD(model.parameters(), lr=0.1), model),
    "load_state_dict": lambda model: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}),
}


def stepped(optimizer, model):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.parametrize("state", ["fp32", "8bit"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_swapped_in_is_said(change, state, caplog):
    """The live weights come back, and what was changed meanwhile is lost."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    average = EMA(model, 0.9, state=state, min_size=0)
    live = [p.detach().clone() for p in model.parameters()]
    with average.swap():
        pass
    assert not caplog.messages
    with average.swap():
        CHANGES[change](model)
    assert all(map(torch.equal, model.parameters(), live))
    (said,) = caplog.messages
    assert said.startswith("0.weight and 3 others was changed while the average was swapped in")
    assert said.endswith("in the average now") == (state == "fp32")


def test_two_averages_come_out_in_the_order_in_which_they_went_in():
    """Crossed, the second would give back the first one's average in place of the live weights."""
    model = nn.Linear(64, 64)
    first, second = EMA(model, 0.9), EMA(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1)
    first.update()
    second.update()
    live, expected = model.weight.detach().clone(), first.value("weight").to(model.weight)
    first.swap_in()
    second.swap_in()
    with pytest.raises(RuntimeError, match="another average was swapped in after this one"):
        first.swap_out()
    second.swap_out()
    assert torch.equal(model.weight, expected)
    first.swap_out()
    assert torch.equal(model.weight, live)


@pytest.mark.parametrize("outer", ["device", "cpu", "stream"])
@pytest.mark.parametrize("inner", ["device", "cpu", "stream"])
def test_two_averages_at_once_give_every_weight_back(outer, inner):
    """What cannot be nested is refused before it touches a weight."""
    model = make()
    first, second = EMA(model, 0.9, state="8bit", min_size=0), EMA(model, 0.5)
    walk(model, 0)
    first.update()
    second.update()
    live, around, within = snapshot(model), first.averaged_state_dict(), second.averaged_state_dict()
    possible = "stream" not in (outer, inner)
    with first.swap(keep=outer):
        refused = pytest.raises(RuntimeError, match="cannot be nested: use keep='device'")
        with contextlib.nullcontext() if possible else refused, second.swap(keep=inner):
            assert_same(within, model.state_dict())
        assert_same(around, model.state_dict())
    assert_same(live, snapshot(model))
    with second.swap(keep=inner):
        assert_same(within, model.state_dict())
    assert_same(live, snapshot(model))


def test_swap_comes_back_after_an_error():
    model = make()
    ema = EMA(model, 0.5)
    before = snapshot(model)
    walk(model, 0)
    live = snapshot(model)
    for keep in ("device", "stream"):
        with pytest.raises(RuntimeError, match=r"mat1|shape|size"), ema.swap(keep=keep):
            model(torch.ones(2, 3))
        assert_same(live, snapshot(model))
    assert before.keys() == live.keys()


def test_stream_never_holds_the_model(monkeypatch):
    model = make()
    ema = EMA(model, 0.5, state="8bit", min_size=0)
    alive, most, read = weakref.WeakSet(), [0], EMA._value

    def counted(self, name):
        value = read(self, name)
        alive.add(value.untyped_storage())
        most[0] = max(most[0], sum(storage.nbytes() for storage in alive))
        return value

    monkeypatch.setattr(EMA, "_value", counted)
    with ema.swap(keep="stream"):
        model(torch.ones(2, 64))
        assert all(p.isnan().all() for p in ema.live.values())  # a tensor kept from before does not silently mix models
    assert 0 < most[0] <= 4 * (64 * 96 + 96)  # the largest module, never all of them


def test_no_memory_where_the_average_has_the_weights_dtype():
    model = make(dtype=torch.bfloat16)
    ema = EMA(model, 0.5, state="bf16", min_size=0)
    ema.swap_in()
    assert set(ema._swap.exchange) == set(ema.live)
    ema.swap_out()


@pytest.mark.parametrize("state", FORMATS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_resumed_average_has_the_same_bits(state, rounding):
    straight, resumed = make(), make()
    options = {"decay": Warmup(0.99), "state": state, "rounding": rounding, "update_every": 2, "update_after_step": 3}
    one, two = EMA(straight, **options), EMA(resumed, **options)
    for step in range(12):
        walk(straight, step)
        one.update()
        walk(resumed, step)
        two.update()
        if step == 6:
            file = io.BytesIO()
            torch.save({"ema": two.state_dict(), "model": resumed.state_dict()}, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            resumed = make(seed=5)
            resumed.load_state_dict(saved["model"])
            two = EMA(resumed, seed=9, **options)
            two.load_state_dict(saved["ema"])
    assert one.state_dict().keys() == two.state_dict().keys()
    for name, entries in one.state_dict()["averages"].items():
        for key, value in entries.items():
            other = two.state_dict()["averages"][name][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert (one.step, one.updates) == (two.step, two.updates) == (12, 4)


@pytest.mark.parametrize("scale", ["pow2", "fp32"])
@pytest.mark.parametrize("state", ["8bit", "dynamic8", "fp8", "float8_e3m4", "float8_e5m2", "4bit", "int4"])
def test_the_largest_weight_may_grow_with_either_sign(state, scale):
    """Across a power of two, where a grid that ends earlier below zero than above would hold it back."""
    weights = {"w": torch.full((32, 128), 0.12) * torch.tensor([1.0, -1.0]).repeat(16).unsqueeze(1)}
    ema = EMA(weights, 0.99, state=state, scale=scale)
    weights["w"] *= 2.0
    for _ in range(300):
        ema.update()
    wanted = 0.24 - 0.12 * 0.99**300
    for sign in (0, 1):
        found = float(ema.value("w")[sign::2].mean()) * (1, -1)[sign]
        assert found == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("state", FORMATS)
def test_a_copy_in_the_middle_goes_on_alone(state):
    """What the backends keep from update to update stays with the original."""
    model = make()
    one = EMA(model, 0.9, state=state)
    walk(model, 0)
    one.update()
    two = copy.deepcopy(one)
    kept = {n: one.value(n) for n in one.live}
    with torch.no_grad():
        for tensor in two.live.values():
            tensor.add_(1.0)
        next(iter(two.live.values())).flatten()[0] = torch.inf
    two.update()
    assert two.store.skipped
    assert not one.store.skipped
    for n, value in kept.items():
        assert torch.equal(one.value(n), value)
        assert not torch.equal(two.value(n), value)
    walk(model, 1)
    one.update()
    again = EMA(model, 0.9, state=state)
    again.load_state_dict(two.state_dict())
    again.update(two.model)
    two.update()
    for n in kept:
        assert torch.equal(again.value(n), two.value(n))


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("state", ["fp32", "bf16", "8bit"])
def test_row_shards_have_the_bits_of_the_whole(state, difference, monkeypatch):
    """Rows that know where they begin, as a process of FSDP2 holds them."""
    firsts = {}
    monkeypatch.setattr(store_module, "local_part", lambda t: Part(t.data, firsts.get(id(t), 0)))
    torch.manual_seed(0)
    whole = torch.randn(48, 256)
    steps = [whole + 0.1 * k * torch.randn(48, 256) for k in range(5)]
    cuts = [(0, 20), (20, 48)]
    pieces = [[step[low:high].clone() for low, high in cuts] for step in steps]
    for of_step in pieces:
        for (low, _), piece in zip(cuts, of_step, strict=True):
            firsts[id(piece)] = low * 256
    options = {"state": state, "difference": difference}
    alone = AverageStore({"w": steps[0]}, **options)
    stores = [AverageStore({"w": piece}, **options) for piece in pieces[0]]
    for n in range(1, 5):
        alone.update({"w": steps[n]}, 0.9, n, {"w": steps[n - 1]} if difference else None)
        for k, store in enumerate(stores):
            store.update({"w": pieces[n][k]}, 0.9, n, {"w": pieces[n - 1][k]} if difference else None)
    assert torch.equal(torch.cat([store.read("w") for store in stores]), alone.read("w"))


@pytest.mark.parametrize("state", ["fp32", "bf16", "8bit"])
def test_difference_is_the_same_average(state):
    model = make()
    direct, stored = EMA(model, 0.9, state="fp32"), EMA(model, 0.9, state=state, difference=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    stored.attach(optimizer)
    x = torch.randn(32, 64)
    for _ in range(30):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        direct.update()
    assert distance(stored, direct) < {"fp32": 1e-6, "bf16": 1e-3, "8bit": 0.01}[state]
    stored.detach()
    with pytest.raises(RuntimeError, match="before_step"):
        stored.update()


class Around:
    """As DeepSpeed's and Accelerate's wrappers: an optimizer inside, and no hooks of its own."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    def step(self):
        self.optimizer.step()


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_attached_average_moves_once_a_step(wrapped, caplog):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    outer = Around(optimizer) if wrapped else optimizer
    ema = EMA(model, 0.9, state="fp32")
    ema.attach(outer)
    with pytest.raises(RuntimeError, match="attached to this optimizer already"):
        ema.attach(optimizer)
    copies = [copy.deepcopy(ema), pickle.loads(pickle.dumps(ema))]
    halfulp.numbers.log._said.clear()
    outer.step()
    assert ema.updates == 1
    assert [c.updates for c in copies] == [0, 0]
    assert "twice" not in caplog.text
    ema.update()
    assert "it moves twice a step" in caplog.text
    ema.detach()
    ema.attach(outer)
    outer.step()
    assert ema.updates == 3
    with pytest.raises(TypeError, match="got NoneType"):
        ema.attach(None)


def test_buffers():
    model = make()
    live, averaged = EMA(model, 0.5), EMA(model, 0.5, buffers="average")
    start = model.norm.running_mean.clone()
    walk(model, 0)
    live.update()
    averaged.update()
    assert "norm.running_mean" not in live.live
    with live.swap():
        assert torch.equal(model.norm.running_mean, start + 0.5)
    with averaged.swap():
        assert torch.equal(model.norm.running_mean, start + 0.25)
        assert int(model.norm.num_batches_tracked) == 1
    assert averaged.store.state_of("norm.running_mean").quantizer.format.is_float32
    assert torch.equal(averaged.averaged_state_dict()["norm.running_mean"], start + 0.25)


def test_averaged_state_dict_loads_into_the_model():
    model = make()
    ema = EMA(model, 0.5, state="8bit", ignore=["second.bias"])
    walk(model, 0)
    ema.update()
    other = make(seed=3)
    other.load_state_dict(ema.averaged_state_dict())
    assert torch.equal(other.tied.weight, other.first.weight)
    assert torch.equal(other.first.weight, ema.value("first.weight"))
    assert torch.equal(other.second.bias, model.second.bias)


def test_names_of_wrapped_models():
    model = make()
    ema = EMA(model, 0.5, state="fp32")

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    walk(model, 0)
    ema.update(Wrapper(model))
    assert ema.updates == 1
    assert set(EMA(Wrapper(model), 0.5).live) == set(ema.live)


def test_memory():
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(2)))
    expected = {"fp32": 4, "bf16": 2, "8bit": 1 + 1 / 128}
    for state, size in expected.items():
        ema = EMA(model, state=state)
        assert ema.memory().bytes_per_parameter == pytest.approx(size, abs=0.02)
        stored = sum(
            t.nbytes for e in ema.store.state_dict().values() for t in e.values() if isinstance(t, torch.Tensor)
        )
        assert stored == ema.memory().total


@pytest.mark.parametrize(
    ("kind", "options", "moved"), [(EMA, {"decay": 0.5}, 2.0), (LAWA, {"size": 1, "every": 1}, 3.0)]
)
def test_not_finite_weights_leave_their_stretch_alone(kind, options, moved):
    """Whether the average moves towards the weights or copies them."""
    live = {"w": torch.ones(2, 256)}
    average = kind(live, state="8bit", min_size=0, **options)
    live["w"].fill_(3.0)
    live["w"][1, 200] = float("nan")
    average.update()
    expected = torch.full((2, 256), moved)
    expected[1, 128:] = 1.0
    assert torch.equal(average.value("w"), expected)
    assert average.store.skipped == {"w": 128}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: EMA(m, 1.5), "between 0 and 1"),
        (lambda m: EMA(m, state="fp9"), "unknown state format"),
        (lambda m: EMA(m, state="ufloat8_e4m4"), "has no sign"),
        (lambda m: EMA(m, state={"average": "fp8"}), "format name"),
        (lambda m: EMA(m, rounding="up"), "is 'nearest' or 'stochastic', got 'up'"),
        (lambda m: EMA(m, update_every=0), "update_every"),
        (lambda m: EMA(m, buffers="copy"), "buffers is"),
        (lambda m: EMA(m, ignore=["nothing"]), "does not have"),
        (lambda m: EMA({"w": torch.ones(3, dtype=torch.int64)}), "nothing to average"),
        (lambda m: EMA(m).swap_out(), "not swapped in"),
        (lambda m: EMA(m).swap_in(keep="disk"), "keep is"),
        (lambda m: EMA({"w": torch.ones(3)}).swap_in(keep="stream"), "modules"),
        (lambda m: EMA(m).update({"w": torch.ones(3)}), "is averaged, and is not among"),
        (lambda m: EMA(m).load_state_dict({}), "lacks"),
        (lambda m: EMA(m).load_state_dict(EMA(m, state="bf16").state_dict()), r"storage .*copy_from"),
        (lambda m: EMA(m).load_state_dict(SWA(m).state_dict()), "kind"),
        (lambda m: EMA(m).load_state_dict(EMA(nn.Linear(2, 2)).state_dict()), "another model"),
    ],
)
def test_bad_input_is_explained(call, message):
    with pytest.raises((ValueError, RuntimeError, KeyError), match=message):
        call(make())


def test_a_refused_checkpoint_changes_nothing():
    model = make()
    ema = EMA(model, 0.5)
    saved = copy.deepcopy(ema.state_dict())
    saved["averages"]["first.weight"]["average"] = torch.zeros(3, dtype=torch.uint8)
    before = copy.deepcopy(ema.state_dict())
    with pytest.raises(ValueError, match=r"first\.weight"):
        ema.load_state_dict(saved)
    for name, entries in before["averages"].items():
        assert torch.equal(entries["average"], ema.state_dict()["averages"][name]["average"])


def test_schedules():
    assert [Ramp(0.99)(n) for n in (1, 10**6)] == [2 / 11, 0.99]
    assert [MeanTeacher(0.99)(n) for n in (1, 2, 1000)] == [0.0, 0.5, 0.99]
    assert [Uniform()(n) for n in (1, 4)] == [0.0, 0.75]
    assert Uniform(counts_start=True)(1) == 0.5
    assert [Linear(0.5, 1.0, 11)(n) for n in (1, 6, 11, 99)] == [0.5, 0.75, 1.0, 1.0]
    assert [Cosine(0.5, 1.0, 11)(n) for n in (1, 6, 11, 99)] == pytest.approx([0.5, 0.75, 1.0, 1.0])
    assert Warmup(0.9999)(1) == 0.0
    assert Warmup(0.9999)(8) == pytest.approx(1 - 8 ** (-2 / 3))
    assert PowerLaw(0.0)(4) == 0.75
    slow = Warmup(0.9, inv_gamma=2.0, power=1.0, min_decay=0.5)  # 1 - (1 + (n - 1) / 2) ** -1
    assert [slow(n) for n in (1, 2, 3, 11, 1000)] == pytest.approx([0.0, 0.5, 0.5, 5 / 6, 0.9])
    assert [Linear(0.5, 1.0, 1)(n) for n in (0, 1, 2)] == [0.5, 0.5, 1.0]
    assert [Cosine(0.5, 1.0, 1)(n) for n in (0, 1, 2)] == [0.5, 0.5, 1.0]


def test_schedules_by_default():
    assert [schedule()(10**9) for schedule in (Warmup, Ramp, MeanTeacher, Cosine)] == [0.9999, 0.9999, 0.999, 1.0]
    assert [Cosine()(n) for n in (1, 9_999, 10_000)] == pytest.approx([0.996, 1.0, 1.0], abs=1e-9)
    assert Cosine()(9_999) < 1.0
    with pytest.raises(FrozenInstanceError):
        MeanTeacher().decay = 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Ramp(1.1), "between 0 and 1"),
        (lambda: MeanTeacher(-0.1), "between 0 and 1"),
        (lambda: Warmup(2.0), "between 0 and 1"),
        (lambda: Warmup(inv_gamma=0.0), "are positive, got 0.0"),
        (lambda: Warmup(power=0.0), "are positive, got 1.0 and 0.0"),
        (lambda: Linear(0.5, 1.5, 3), "between 0 and 1"),
        (lambda: Linear(0.5, 0.9, 0), "at least one update"),
        (lambda: Cosine(steps=0), "at least one update"),
        (lambda: PowerLaw(-0.1), "gamma is at least 0"),
        (lambda: halfulp.averaging.half_life(True), "between 0 and 1"),
        (lambda: halfulp.averaging.half_life("0.9"), "between 0 and 1"),
        (lambda: halfulp.averaging.power_exponent(0.0), "relative width"),
        (lambda: halfulp.averaging.power_exponent(0.289), "relative width"),
    ],
)
def test_what_is_no_schedule_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ends_of_decays_and_widths():
    assert [halfulp.averaging.half_life(decay) for decay in (0.0, 0.5, 1.0)] == [0.0, 1.0, math.inf]
    assert halfulp.averaging.power_exponent(12**-0.5) == pytest.approx(0.0, abs=1e-9)  # that of the uniform mean


@pytest.mark.parametrize(("sigma", "gamma"), [(0.05, 16.9722), (0.10, 6.9372), (0.15, 3.5579), (0.25, 0.7198)])
def test_published_exponents_of_power_profiles(sigma, gamma):
    assert PowerLaw.of_width(sigma).gamma == pytest.approx(gamma, abs=1e-4)
    assert PowerLaw(gamma).sigma == pytest.approx(sigma, abs=1e-5)


def test_power_profile_run_step_by_step():
    """Weights of a run of 2000 steps at sigma 0.1: mean position 0.88811, spread 0.1000 (published figures)."""
    profile, weights = PowerLaw.of_width(0.1), torch.zeros(2000, dtype=torch.float64)
    for n in range(1, 2001):
        weights *= profile(n)
        weights[n - 1] += 1 - profile(n)
    position = torch.arange(1, 2001, dtype=torch.float64) / 2000
    mean = float((weights * position).sum())
    assert float(weights.sum()) == pytest.approx(1.0)
    assert mean == pytest.approx(0.88811, abs=3e-4)
    assert float((weights * (position - mean) ** 2).sum()) ** 0.5 == pytest.approx(0.1, abs=2e-4)


def test_scaled_decay_follows_the_batch():
    """f = x**2 / 2, lr 1e-3, decay 0.999, 800 steps: 0.8085; a batch of 8 with decay**8: 0.8067, unchanged: 0.9695."""

    def run(lr, decay, steps):
        x = e = 1.0
        for _ in range(steps):
            x -= lr * x
            e += (x - e) * (1 - decay)
        return e

    assert run(1e-3, 0.999, 800) == pytest.approx(0.8085, abs=1e-4)
    assert run(8e-3, halfulp.averaging.scale_decay(0.999, 8), 100) == pytest.approx(0.8067, abs=1e-4)
    assert run(8e-3, 0.999, 100) == pytest.approx(0.9695, abs=1e-4)
    assert halfulp.averaging.half_life(0.99) == pytest.approx(69.0, abs=0.05)
