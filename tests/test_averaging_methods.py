"""Methods built on weight averages, against published figures and exact models; drop-ins, trainers, stalls."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel as TorchAveraged
from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn

from halfulp import averaging
from halfulp.averaging import (
    BEMA,
    EMA,
    LAWA,
    AveragedModel,
    ElasticReset,
    EMAPytorch,
    PostHocEMA,
    SlowWeights,
    SwitchEMA,
    Teacher,
    TemporalEnsemble,
    TemporaryTeachers,
)
from halfulp.numbers.rounding import round_to
from support.averages import net, walk


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("state", ["fp32", "bf16", "8bit"])
def test_switch_puts_the_average_into_the_model(state):
    model = net()
    ema = SwitchEMA(model, 0.9, state=state, switch_every=3)
    plain, other = EMA(net(), 0.9, state=state), net()
    for step in range(2):
        walk(model, step)
        ema.update()
        walk(other, step)
        plain.update(other)
    assert same(dict(ema.named_parameters()), dict(plain.named_parameters()))  # without switches, it is EMA
    walk(model, 2)
    ema.update()
    assert same(weights(model), dict(ema.named_parameters()))


@pytest.mark.parametrize("state", ["fp32", "bf16", "8bit"])
def test_elastic_reset(state):
    model = net()
    ema = ElasticReset(model, 0.9, every=4, state=state)
    start = dict(ema.named_parameters())
    for step in range(3):
        walk(model, step)
        ema.update()
    twin_model = copy.deepcopy(model)
    twin = EMA(twin_model, 0.9, state=state)
    twin.store.load(twin.store.validate(ema.store.state_dict()))
    twin.step = 3
    walk(model, 3)
    ema.update()
    walk(twin_model, 3)
    twin.update()
    assert same(weights(model), dict(twin.named_parameters()))
    assert same(dict(ema.named_parameters()), start)
    other = ElasticReset(net(5), 0.9, every=4, state=state)
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    other.reset()
    assert same(dict(other.named_parameters()), start)


def test_bema_recurrence_and_its_trap():
    model = net()
    start = weights(model)
    bema = BEMA(model, update_every=1, state="fp32")
    plain = BEMA(model, update_every=1, state="fp32", bias_power=None)
    zero = BEMA(model, update_every=1, state="fp32", bias_power=0.0)
    e = {n: p.double() for n, p in start.items()}
    for step in range(1, 11):
        walk(model, step)
        for b in (bema, plain, zero):
            b.update()
        for n, p in model.named_parameters():
            beta = (10 + step) ** -0.5
            e[n] = (1 - beta) * e[n] + beta * p.detach().double()
    for n, p in model.named_parameters():
        way = p.detach().double() - start[n].double()
        for b, alpha in ((bema, 20**-0.2), (plain, 0.0), (zero, 1.0)):
            torch.testing.assert_close(b.value(n).double(), e[n] + alpha * way, rtol=1e-5, atol=1e-6)
    live = weights(model)
    with bema.swap():
        assert not same(weights(model), live)
    assert same(weights(model), live)


@pytest.mark.parametrize(
    "options",
    [
        {"scaling": 0.5, "offset": 4.0},
        {"ema_power": 0.7, "bias_power": 0.4},
        {"burn_in": 3},
        {"burn_in": 2, "update_every": 2},
        {"start_state": "bf16"},
    ],
    ids=str,
)
def test_bema_follows_its_formula(options):
    of = {
        "ema_power": 0.5,
        "bias_power": 0.2,
        "scaling": 1.0,
        "offset": 10.0,
        "burn_in": 0,
        "update_every": 1,
    } | options
    model = net()
    name, live = "0.weight", model[0].weight.detach()
    start = average = live.double()
    bema = BEMA(model, state="fp32", **{"update_every": 1, **options})
    for step in range(1, 11):
        walk(model, step)
        bema.update()
        n = step - of["burn_in"]
        if n <= 0:
            start = average = live.double()
        elif n % of["update_every"] == 0:
            weight = (of["offset"] + of["scaling"] * n) ** -of["ema_power"]
            average = (1 - weight) * average + weight * live.double()
    if "start_state" in options:
        start = start.bfloat16().double()
    way = (live.double() - start) * (of["offset"] + of["scaling"] * n) ** -of["bias_power"]
    torch.testing.assert_close(bema.value(name).double(), average + way, rtol=1e-5, atol=1e-6)


def test_bias_correction_is_exact_on_a_quadratic():
    """mean(x_0 .. x_{T-1}) + (x_T - x_0) / (H h T) is the minimum of a quadratic under gradient descent."""
    h, curvature, minimum = 0.1, torch.tensor([0.5, 2.0]), torch.tensor([3.0, -1.0])
    x = {"x": torch.zeros(2)}
    swa = averaging.SWA(x, state="fp32")
    start = x["x"].clone()
    for _ in range(40):
        swa.update()
        x["x"] -= h * curvature * (x["x"] - minimum)
    found = swa.value("x") + (x["x"] - start) / (curvature * h * 40)
    torch.testing.assert_close(found, minimum, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("state", ["fp32", "bf16", "8bit"])
def test_lawa_is_the_mean_of_the_last_snapshots(state):
    model = net()
    lawa = LAWA(model, size=3, every=2, state=state, rounding="nearest")
    seen = []
    for step in range(1, 13):
        walk(model, step, 0.1)
        lawa.update()
        if step % 2 == 0:
            seen.append(dict(EMA(copy.deepcopy(model), state=state).named_parameters()))
    assert lawa.snapshots == 3
    for n, value in lawa.named_parameters():
        torch.testing.assert_close(value, sum(s[n] for s in seen[-3:]) / 3, rtol=1e-6, atol=1e-7)
    other = LAWA(net(4), size=3, every=2, state=state, rounding="nearest")
    other.load_state_dict(lawa.state_dict())
    assert same(dict(lawa.named_parameters()), dict(other.named_parameters()))


def test_lawa_divides_the_variance_by_its_size():
    generator = torch.Generator().manual_seed(0)
    live = {"w": torch.zeros(200, 200)}
    lawa = LAWA(live, size=5, every=1, state="8bit")
    for _ in range(7):
        live["w"].copy_(torch.randn(200, 200, generator=generator))
        lawa.update()
    assert float(lawa.value("w").var()) == pytest.approx(1 / 5, rel=0.03)


def test_temporal_ensemble_leaves_training_alone():
    def train(wrap):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        ensemble = TemporalEnsemble(model) if wrap else None
        generator = torch.Generator().manual_seed(3)
        for _ in range(5):
            x = torch.randn(16, 64, generator=generator)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            if ensemble is not None:
                ensemble.update()
                with ensemble.swap():
                    model.eval()(x)
                model.train()
        return weights(model)

    assert same(train(False), train(True))


def test_slow_weights_are_lookahead():
    """Golden figures of Lookahead around Adam after five steps (pytorch-optimizer's arithmetic)."""
    x = torch.tensor([[1.0, -2.0], [3.0, 0.5]], requires_grad=True)
    scale = torch.tensor([[1.0, 0.1], [0.01, 2.0]])
    slow, adam = SlowWeights({"x": x}, 0.5), torch.optim.Adam([x], lr=0.1)
    for _ in range(5):
        adam.zero_grad()
        (scale * x * x / 2).sum().backward()
        adam.step()
    slow.synchronize({"x": x}, 1)
    expected = torch.tensor([[0.753982, -1.751478], [2.75089, 0.263907]])
    torch.testing.assert_close(x.detach(), expected, rtol=0, atol=2e-6)


# -------------------------------------------------------------------- post hoc


def test_profile_products_are_integrals():
    for a, b in (((6.9, 100.0), (17.0, 300.0)), ((17.0, 300.0), (6.9, 100.0)), ((0.0, 50.0), (3.5, 50.0))):
        (ga, ta), (gb, tb) = a, b
        t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * min(ta, tb)
        p = (ga + 1) * t**ga / ta ** (ga + 1) * (gb + 1) * t**gb / tb ** (gb + 1)
        assert averaging.profile_product(a, b) == pytest.approx(float(p.mean()) * min(ta, tb), rel=1e-4)


def test_reconstruction_error_of_eight_snapshots():
    """Width 0.15 from 8 snapshots of 2 widths: 3.3 % (published figure); what was tracked comes back exactly."""
    gammas = [averaging.power_exponent(s) for s in (0.05, 0.10)]
    profiles = [(g, 250.0 * k) for k in range(1, 9) for g in gammas]
    plan = averaging.reconstruct_weights(profiles, (averaging.power_exponent(0.15), 2000.0))
    assert plan.error == pytest.approx(0.033, abs=0.004)
    assert sum(plan.weights) == pytest.approx(1.0)
    assert plan.norm1 > 1
    again = averaging.reconstruct_weights(profiles, (gammas[1], 2000.0))
    assert again.error < 1e-5
    assert again.weights[-1] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("state", "limit"), [("fp32", 0.02), ("bf16", 0.02), ("8bit", 0.05)])
def test_reconstructed_average_is_the_tracked_one(state, limit, tmp_path):
    """A model that travels: distances are relative to the way gone."""
    torch.manual_seed(0)
    start = torch.randn(64, 64)
    live = {"w": start.clone()}
    tracked = EMA(live, averaging.PowerLaw.of_width(0.15), state="fp32")
    folder = tmp_path if state == "8bit" else None
    posthoc = PostHocEMA(live, every=50, state=state, folder=folder)
    target = torch.randn(64, 64)
    for step in range(400):
        live["w"].copy_(start + (target - start) * (step / 400) + 0.05 * torch.randn(64, 64))
        tracked.update()
        posthoc.update()
    found, wanted = posthoc.reconstruct(0.15)["w"], tracked.value("w")
    assert float((found - wanted).norm() / (wanted - start).norm()) < limit
    other = PostHocEMA({"w": torch.zeros(64, 64)}, every=50, state=state, folder=folder)
    other.load_state_dict(copy.deepcopy(posthoc.state_dict()))
    assert torch.equal(other.reconstruct(0.15)["w"], found)
    assert len(list(tmp_path.iterdir())) == (16 if folder else 0)


# -------------------------------------------------------------------- merging


def test_slerp_keeps_the_norm_where_the_mean_shrinks():
    zero, x, y = ({"w": torch.tensor(v)} for v in ([1.0, 1.0], [3.0, 1.0], [1.0, 3.0]))
    middle = averaging.slerp(zero, x, y)["w"] - zero["w"]
    assert float(middle.norm()) == pytest.approx(2.0)
    assert float(((x["w"] + y["w"]) / 2 - zero["w"]).norm()) == pytest.approx(2 / math.sqrt(2))
    assert torch.equal(averaging.slerp(zero, x, y, 0.0)["w"], x["w"])
    torch.testing.assert_close(averaging.slerp(zero, x, y, 1.0)["w"], y["w"])
    twice = {"w": torch.tensor([5.0, 1.0])}
    torch.testing.assert_close(averaging.slerp(zero, x, twice)["w"], torch.tensor([4.0, 1.0]))  # parallel: linear
    with pytest.raises(ValueError, match="opposite"):
        averaging.slerp(zero, x, {"w": torch.tensor([-1.0, 1.0])})


def test_warp():
    start = {"w": torch.zeros(2)}
    runs = [{"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])}]
    merged = averaging.warp(start, runs)["w"]
    torch.testing.assert_close(merged, torch.full((2,), 0.3 * math.sqrt(2)))
    torch.testing.assert_close(averaging.warp(start, runs, eta=0.5)["w"], torch.full((2,), 0.5 * math.sqrt(2)))
    assert torch.equal(averaging.liti(start, runs[0], 1.0)["w"], runs[0]["w"])
    with pytest.raises(ValueError, match="different form"):
        averaging.liti(start, {"v": torch.zeros(2)})


# -------------------------------------------------------------------- teachers


@pytest.mark.parametrize("state", ["fp32", "bf16", "8bit"])
def test_teacher_is_the_average_and_does_not_disturb_the_student(state):
    student = net()
    teacher = Teacher(student, 0.9, state=state).eval()
    ema, shadow = EMA(net(), 0.9, state=state), net()
    x = torch.randn(8, 64)
    loss = (student(x) - teacher(x)).square().mean()
    loss.backward()  # the teacher's forward pass came in between
    for step in range(3):
        walk(student, step, 0.1)
        walk(shadow, step, 0.1)
        teacher.update()
        ema.update(shadow)
    expected = copy.deepcopy(student).eval()
    ema.copy_to(expected)
    assert torch.equal(teacher(x), expected(x))
    other = Teacher(net(7), 0.9, state=state).eval()
    other.load_state_dict(copy.deepcopy(teacher.state_dict()))
    assert torch.equal(other(x), teacher(x))


def test_teacher_forward_that_fails_leaves_nothing():
    teacher = Teacher(net(), 0.9)
    with pytest.raises(RuntimeError):
        teacher(torch.ones(2, 3))
    assert teacher(torch.ones(2, 64)).shape == (2, 64)


def test_temporary_teachers():
    student = net()
    teachers = TemporaryTeachers(student, state="fp32")
    seen = []
    for step in range(3):
        walk(student, step, 0.1)
        seen.append(weights(student))
        teachers.update()
    name = "0.weight"
    torch.testing.assert_close(teachers.active.value(name), sum(s[name] for s in seen) / 3)
    first = teachers.active.value(name).clone()
    teachers.switch()
    walk(student, 9, 0.1)
    teachers.update()
    assert torch.equal(teachers.active.value(name), student[0].weight)  # a copy, bit for bit
    assert torch.equal(teachers.teachers[0].value(name), first)
    other = TemporaryTeachers(net(3), state="fp32")
    other.load_state_dict(copy.deepcopy(teachers.state_dict()))
    assert other.turn == 1
    assert torch.equal(other.active.value(name), teachers.active.value(name))


# -------------------------------------------------------------------- drop-ins


@pytest.mark.parametrize(
    "functions",
    [{}, {"avg_fn": get_ema_avg_fn(0.9)}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}],
    ids=["swa", "avg_fn", "multi_avg_fn"],
)
@pytest.mark.parametrize("use_buffers", [False, True])
def test_dropin_for_torch(functions, use_buffers):
    model = net()
    theirs = TorchAveraged(model, use_buffers=use_buffers, **functions)
    ours = AveragedModel(model, use_buffers=use_buffers, state="fp32", **functions)
    for step in range(6):
        walk(model, step, 0.1)
        model(torch.randn(16, 64))
        for averaged in (theirs, ours):
            averaged.update_parameters(model)
    mine, wanted = ours.state_dict(), theirs.state_dict()
    assert set(mine) == set(wanted) | {"halfulp"}
    for key in wanted:
        if not key.endswith("num_batches_tracked"):  # torch averages this integer too; ours stays live
            torch.testing.assert_close(mine[key], wanted[key], rtol=1e-5, atol=1e-6)
    x = torch.randn(4, 64)
    theirs.eval()
    ours.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    loaded = AveragedModel(net(4), use_buffers=use_buffers, state="fp32", **functions)
    loaded.load_state_dict(wanted)
    for a, b in zip(loaded.parameters(), theirs.module.parameters(), strict=False):
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=0)
    assert int(loaded.n_averaged) == int(theirs.n_averaged)


def test_dropin_for_ema_pytorch():
    library = pytest.importorskip("ema_pytorch")
    model = net()
    arguments = {"beta": 0.99, "update_after_step": 3, "update_every": 2, "min_value": 0.1}
    theirs = library.EMA(model, **arguments)
    ours = EMAPytorch(model, state="fp32", **arguments)
    for step in range(20):
        walk(model, step, 0.1)
        theirs.update()
        ours.update()
    mine, wanted = ours.state_dict(), theirs.state_dict()
    assert set(wanted) == set(mine) - {"halfulp"}
    for key in wanted:
        torch.testing.assert_close(mine[key].float(), wanted[key].float(), rtol=1e-4, atol=1e-5)
    loaded = EMAPytorch(net(4), state="fp32", **arguments)
    loaded.load_state_dict(wanted)
    for n, p in theirs.ema_model.named_parameters():
        assert torch.equal(loaded.ema.value(n), p.detach())


# -------------------------------------------------------------------- stall


@pytest.mark.parametrize(
    ("rounding", "decay", "step"),
    [("stochastic", 0.999, 1e-3), ("stochastic", 0.99, 1e-3), ("nearest", 0.99, 0.03), ("nearest", 0.9, 1e-3)],
)
def test_predicted_stall_of_a_walk(rounding, decay, step):
    """Against a plain simulation in float64 on the bf16 grid, averaged over mantissas."""
    torch.manual_seed(0)
    mantissa = 2 ** torch.rand(4000, dtype=torch.float64)
    offset = torch.zeros_like(mantissa)
    unit = 2.0**-7
    stored = torch.round(mantissa / unit) * unit
    live = stored.clone()
    due = stalled = 0
    steps = 6000 if decay > 0.99 else 3000
    for n in range(steps):
        live += step * mantissa * torch.randn_like(live)
        change = (live - stored) * (1 - decay) / unit
        shift = torch.round(change) if rounding == "nearest" else torch.floor(change + torch.rand_like(live))
        stored += shift * unit
        if n > steps // 2:
            due += live.numel()
            stalled += int((shift == 0).sum())
        offset += shift
    predicted = averaging.walk_stall("bf16", decay, step, rounding).stalled
    assert stalled / due == pytest.approx(predicted, abs=0.03)


@pytest.mark.parametrize(
    ("rounding", "decay", "step", "updates"),
    [("nearest", 0.99, 0.03, 100), ("nearest", 0.99, 0.01, 2000), ("nearest", 0.999, 0.05, 2000),
     ("stochastic", 0.999, 1e-3, 300), ("stochastic", 0.999, 1e-3, 3000), ("stochastic", 0.9999, 1e-4, 2000)],
)  # fmt: skip
def test_predicted_walk_from_a_copy(rounding, decay, step, updates):
    """Stalled share, share of the way and distance, against a simulation whose spacing follows the stored value."""
    torch.manual_seed(0)
    start = 2 ** torch.rand(3000, dtype=torch.float64)
    stored, live, exact, moved = torch.round(start * 128) / 128, start.clone(), start.clone(), 0
    for _ in range(updates):
        live += step * start * torch.randn_like(live)
        exact += (live - exact) * (1 - decay)
        unit = torch.exp2(torch.frexp(stored)[1] - 8.0)
        change = (live - stored) * (1 - decay) / unit
        shift = torch.round(change) if rounding == "nearest" else torch.floor(change + torch.rand_like(live))
        stored += shift * unit
        moved += int((shift != 0).sum())
    found = averaging.walk_stall("bf16", decay, step, rounding, updates=updates)
    assert 1 - found.stalled == pytest.approx(moved / updates / 3000, rel=0.12)
    way = exact - start
    gone = float(((stored - start) * way).sum() / way.square().sum())
    spread = float((stored - exact).norm() / way.norm()) / 3000**0.5  # of independent noise, projected
    assert gone == pytest.approx(found.gone, abs=0.05 if rounding == "nearest" else 3 * spread)
    distance = float(((stored - exact) / start).square().mean().sqrt())
    assert distance == pytest.approx(found.distance, rel=0.08)


@pytest.mark.parametrize(("state", "rounding"), [("bf16", "nearest"), ("8bit", "stochastic"), ("fp8", "stochastic")])
def test_prediction_for_an_average_is_what_is_measured(state, rounding):
    torch.manual_seed(0)
    model = nn.Linear(192, 256, bias=False)  # the largest weights are 0.072 and do not cross a power of two
    decay, step, updates = 0.995, 1e-3, 600
    ema, exact = EMA(model, decay, state=state, rounding=rounding), EMA(model, decay, state="fp32")
    start = exact.value("weight")
    found = averaging.predict(ema, decay, step, updates)["weight"]
    with averaging.watch(ema) as measured:
        for _ in range(updates):
            with torch.no_grad():
                model.weight.add_(torch.randn_like(model.weight), alpha=step)
            ema.update()
            exact.update()
    wanted, way = exact.value("weight"), exact.value("weight") - start
    assert 1 - measured["weight"].fraction == pytest.approx(1 - found.stalled, rel=0.2)
    assert measured["weight"].step == pytest.approx(step, rel=0.1)
    assert 1 - measured["weight"].predicted == pytest.approx(1 - measured["weight"].fraction, rel=0.2)
    distance = (ema.value("weight") - wanted).square().mean().sqrt() / start.square().mean().sqrt()
    assert float(distance) == pytest.approx(found.distance, rel=0.15)
    gone = float(((ema.value("weight") - start) * way).sum() / way.square().sum())
    assert gone == pytest.approx(found.gone, abs=0.05)


def test_nearest_is_frozen_for_as_long_as_predicted():
    found = averaging.walk_stall("bf16", 0.9999, 1e-3, "nearest")
    assert found.stalled > 0.999
    assert found.frozen_for > 1e5  # (reach / step)**2: reach is 27 weights


def test_watch_counts_what_stalls():
    model = nn.Linear(128, 128)
    emas = {r: EMA(model, 0.999, state="bf16", rounding=r) for r in ("nearest", "stochastic")}
    stored = emas["nearest"].value("weight").clone()
    with torch.no_grad():
        model.weight.mul_(1.05)
    with averaging.watch(emas["nearest"]) as frozen, averaging.watch(emas["stochastic"]) as moving:
        for ema in emas.values():
            ema.update()
    exact = stored + (model.weight.detach() - stored) * torch.tensor(0.001)
    due = exact != stored
    lost = due & (round_to(exact, "bf16") == stored)
    assert (frozen["weight"].due, frozen["weight"].stalled) == (int(due.sum()), int(lost.sum()))
    assert frozen["weight"].fraction > 0.999
    assert moving["weight"].fraction < 0.999
    assert emas["nearest"].counts is None


def test_check_pair_tells_a_frozen_average():
    model = net()
    live = {n: t.clone() for n, t in model.state_dict().items()}
    average = {f"module.{n}": (t * 0.98).bfloat16() if t.is_floating_point() else t for n, t in live.items()}
    rows = {r.name: r for r in averaging.check_pair(average, live, decay=0.9999)}
    assert rows["0.weight"].verdict == "frozen"
    wide = {n: t.float() for n, t in average.items()}
    assert {r.name: r for r in averaging.check_pair(wide, live)}["0.weight"].verdict == "moves"
    assert averaging.check_pair(live, live)[0].verdict == "equal"
    with pytest.raises(ValueError, match="no floating-point tensor"):
        averaging.check_pair({"a": torch.ones(1)}, {"b": torch.ones(1)})


def test_check_pair_reads_what_others_and_we_save():
    """ema-pytorch's one file, timm's and torchvision's keys, and our own codes with their rounding."""
    model = nn.Linear(64, 96, bias=False)
    saved = {}
    for state, rounding in (("bf16", "nearest"), ("8bit", "nearest"), ("8bit", "stochastic"), ("fp32", "nearest")):
        torch.manual_seed(0)
        nn.init.uniform_(model.weight, -0.1, 0.1)
        ema = EMA(model, 0.9999, state=state, rounding=rounding)
        with torch.no_grad():
            model.weight.mul_(1.02)
        saved[state, rounding] = ema.state_dict()
    live = model.state_dict()
    half = {"weight": saved["bf16", "nearest"]["averages"]["weight"]["average"]}
    one_file = {**{f"ema_model.{n}": t for n, t in half.items()}, **{f"online_model.{n}": t for n, t in live.items()}}
    cases = [
        (one_file, one_file, "frozen", "bfloat16", None),
        ({"state_dict": live, "state_dict_ema": half}, {"state_dict": live, "state_dict_ema": half}, "frozen",
         "bfloat16", None),
        ({"model": live, "model_ema": {f"module.{n}": t for n, t in half.items()}}, live, "frozen", "bfloat16", None),
        (saved["bf16", "nearest"], live, "frozen", "bfloat16", "nearest"),
        (saved["8bit", "nearest"], live, "frozen", "linear8", "nearest"),
        ({"model": live, "ema": saved["8bit", "stochastic"]}, {"model": live}, "moves", "linear8", "stochastic"),
        (saved["fp32", "nearest"], live, "moves", "float32", "nearest"),
    ]  # fmt: skip
    for average, other, verdict, fmt, rounding in cases:
        (row,) = averaging.check_pair(average, other, decay=0.9999)
        assert (row.verdict, row.dtype, row.rounding) == (verdict, fmt, rounding)
        assert row.gap == pytest.approx(0.02 / 1.02, rel=0.1)
    (row,) = averaging.check_pair(saved["8bit", "stochastic"], live, decay=0.9999)
    update = 1e-4 * (live["weight"] - ema.value("weight")).abs().mean()
    assert row.movable == pytest.approx(float(update) / 2.0**-10, rel=0.05)  # the spacing below 0.125: 0.125 / 128


def test_check_pair_refuses_differences():
    ema = EMA(nn.Linear(64, 96), 0.999, state="8bit", difference=True)
    with pytest.raises(ValueError, match="difference"):
        averaging.check_pair(ema.state_dict(), {})


def test_check_command_recognises_a_frozen_average(tmp_path):
    from typer.testing import CliRunner

    from halfulp.cli import app

    live = {f"{n}.weight": torch.randn(64, 64) for n in "ab"}
    torch.save({"state_dict": live}, tmp_path / "live.pt")
    torch.save({f"module.{n}": (t * 0.98).bfloat16() for n, t in live.items()}, tmp_path / "average.pt")
    torch.save({n: t * 0.98 for n, t in live.items()}, tmp_path / "fine.pt")
    for name, text in (("average.pt", "2 of 2 tensors are frozen"), ("fine.pt", "the average can still move")):
        found = CliRunner().invoke(app, ["check", str(tmp_path / name), "--live", str(tmp_path / "live.pt")])
        assert found.exit_code == 0, found.output
        assert text in found.output


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: SwitchEMA(m, switch_every=-1), "switch_every"),
        (lambda m: ElasticReset(m, every=-1), "every is"),
        (lambda m: ElasticReset(m, difference=True).reset(), "difference"),
        (lambda m: BEMA(m, ema_power=-1.0), "powers"),
        (lambda m: BEMA(m, difference=True), "difference"),
        (lambda m: LAWA(m, size=0), "size and every"),
        (lambda m: PostHocEMA(m, sigmas=()), "sigmas"),
        (lambda m: PostHocEMA(m).plan(0.1), "no snapshots"),
        (lambda m: PostHocEMA(m).snapshot(), "before the first update"),
        (lambda m: averaging.power_exponent(0.5), "relative width"),
        (lambda m: Teacher(m, buffers="mine"), "buffers"),
        (lambda m: TemporaryTeachers(m, count=1), "at least 2"),
        (lambda m: AveragedModel(m, avg_fn=lambda a, x, n: a + x).update_parameters(m), None),
        (lambda m: EMAPytorch(m, ema_model=m), "the first one"),
        (lambda m: AveragedModel(m).load_state_dict({}), "n_averaged"),
        (lambda m: averaging.walk_stall("linear8", 0.999, 1e-3), "absmax_ratio"),
        (lambda m: averaging.walk_stall("bf16", 0.999, 0.0), "positive"),
        (lambda m: averaging.walk_stall("bf16", 0.999, 1e-3, updates=0), "at least 1"),
        (lambda m: averaging.predict(averaging.EMA(m, difference=True), 0.999, 1e-3), "difference"),
        (lambda m: averaging.scale_decay(0.9, 0.0), "ratio"),
        (lambda m: SlowWeights({"w": torch.ones(2)}, 2.0), "alpha"),
        (lambda m: averaging.warp({}, []), "no runs"),
    ],
)
def test_bad_input_is_explained(call, message):
    if message is None:
        averaged = AveragedModel(net(), avg_fn=lambda a, x, n: a + x)
        averaged.update_parameters(net())
        with pytest.raises(ValueError, match="weighted mean"):
            averaged.update_parameters(net())
        return
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(net())
