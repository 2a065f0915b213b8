"""Lookahead and low-pass filtering around optimizers of this library and of torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp
from halfulp.training import Wrapper
from support.distributed import cases, wrapped
from support.processes import torchrun

Make = Callable[[Any], torch.optim.Optimizer]
BASES: dict[str, Make] = {
    "torch SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "torch AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "halfulp AdamW": lambda p: halfulp.AdamW(p, lr=1e-2, state="fp8", min_size=0),
}
WRAPPERS: dict[str, Callable[[torch.optim.Optimizer], Wrapper]] = {
    "lookahead": lambda o: halfulp.Lookahead(o, 3),
    "lookahead bf16": lambda o: halfulp.Lookahead(o, 3, state="bf16", min_size=0),
    "low pass": lambda o: halfulp.LowPass(o, 0.01, samples=2, growth=3.0, steps=10),
}


def build() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4))


def loss_of(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(64, 16, generator=generator)
    return nn.functional.mse_loss(model(x), x[:, :4].sin())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, steps: int) -> list[float]:
    losses = []
    for step in range(first, first + steps):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure).detach()))
    return losses


def bits(model: nn.Module) -> list[Tensor]:
    return [
        p.detach().clone().view(torch.int32 if p.dtype == torch.float32 else torch.int16) for p in model.parameters()
    ]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_trains_and_resumes_with_the_same_bits(wrapper: str, base: str) -> None:
    model, other = build(), build()
    optimizer = WRAPPERS[wrapper](BASES[base](model.parameters()))
    losses = train(model, optimizer, 0, 40)
    assert losses[-1] < 0.7 * losses[0]
    saved = torch.load(_saved(optimizer.state_dict()), weights_only=True)
    other.load_state_dict(model.state_dict())
    resumed = WRAPPERS[wrapper](BASES[base](other.parameters()))
    resumed.load_state_dict(saved)
    assert train(model, optimizer, 40, 8) == train(other, resumed, 40, 8)
    assert same(bits(model), bits(other))


def _saved(state_dict: dict[str, Any]) -> Any:
    import io

    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_is_an_optimizer_like_any_other(wrapper: str) -> None:
    """Schedulers, hooks, groups, deepcopy."""
    model = build()
    optimizer = WRAPPERS[wrapper](torch.optim.SGD(model[0].parameters(), lr=0.1))
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.05})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    seen = []
    optimizer.register_step_post_hook(lambda o, a, k: seen.append(o))
    start = bits(model)
    train(model, optimizer, 0, 1)
    scheduler.step()
    assert [g["lr"] for g in optimizer.optimizer.param_groups] == [0.05, 0.025]
    assert seen == [optimizer]
    assert not any(torch.equal(x, y) for x, y in zip(start, bits(model), strict=True))
    twin_model, twin = copy.deepcopy((model, optimizer))
    assert train(model, optimizer, 1, 4) == train(twin_model, twin, 1, 4)
    assert same(bits(model), bits(twin_model))


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = build()
    optimizer = halfulp.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), 2)
    with pytest.raises(TypeError, match=r"takes a torch\.optim\.Optimizer, got list"):
        halfulp.Lookahead(list(model.parameters()))  # type: ignore[arg-type]
    hookless = type("Accelerated", (torch.optim.SGD,), {"__init__": lambda self: None})()
    for wrap in (halfulp.Lookahead, halfulp.LowPass, halfulp.training.offload):
        with pytest.raises(TypeError, match=r"hooks of step\(\), which Accelerated does not"):
            wrap(hookless)
    with pytest.raises(ValueError, match="no 'lookahead'"):
        optimizer.load_state_dict(optimizer.optimizer.state_dict())
    saved = halfulp.Lookahead(torch.optim.SGD(model.parameters(), lr=0.3), 2, state="bf16", min_size=0).state_dict()
    with pytest.raises(ValueError, match="saved as 'bfloat16', this wrapper has 'float32'"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.1
    for arguments in ({"k": 0}, {"alpha": 0.0}, {"alpha": 1.5}):
        with pytest.raises(ValueError, match="got k="):
            halfulp.Lookahead(optimizer.optimizer, **arguments)
    for arguments in ({"gamma": -1.0}, {"samples": 0}, {"growth": 2.0}, {"keep": "stream"}):
        with pytest.raises(ValueError, match="got"):
            halfulp.LowPass(optimizer.optimizer, **arguments)


# ---------------------------------------------------------------- Lookahead


def test_a_parameter_of_another_shape_is_refused_before_anything_changes() -> None:
    optimizer = halfulp.Lookahead(halfulp.SGD([torch.nn.Parameter(torch.ones(4))], lr=1.0), 1)
    p = optimizer.param_groups[0]["params"][0] = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"parameter 0 .* shape, \(3,\)"):
        optimizer.step()
    assert p.tolist() == [1.0] * 3
    assert optimizer.steps == 0


def test_lookahead_around_adam_follows_pytorch_optimizer() -> None:
    """Weights after five steps on sum(a * W**2) / 2, k 5, alpha 0.5: a float64 run of pytorch_optimizer 4.1.0."""
    expected = torch.tensor([[0.753982, -1.751478], [2.75089, 0.263907]])
    for adam in (halfulp.Adam, torch.optim.Adam):
        w = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        optimizer = halfulp.Lookahead(adam([w], lr=0.1), 5, 0.5)
        for _ in range(5):
            w.grad = torch.tensor([[1.0, 0.1], [0.01, 2.0]]) * w.detach()
            optimizer.step()
        torch.testing.assert_close(w.detach(), expected, rtol=0, atol=2e-6)


def test_lookahead_goes_half_way_every_third_step() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = halfulp.Lookahead(halfulp.SGD([p], lr=1.0), 3, 0.5)
    seen = []
    for _ in range(6):
        p.grad = -torch.ones(3)
        optimizer.step()
        seen.append(p.detach()[0].item())
    assert seen == [1.0, 2.0, 1.5, 2.5, 3.5, 3.0]


def test_lookahead_that_goes_all_the_way_is_the_optimizer_inside() -> None:
    models = [build(), build()]
    train(models[0], torch.optim.SGD(models[0].parameters(), lr=0.1), 0, 7)
    train(models[1], halfulp.Lookahead(torch.optim.SGD(models[1].parameters(), lr=0.1), 3, 1.0), 0, 7)
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_lookahead_lowers_the_variance_of_sgd_as_predicted() -> None:
    """Zhang et al., proposition 2: on a noisy quadratic of curvature a at rate r, with A = 1 - a r."""
    a, r, k, alpha = 0.5, 0.4, 5, 0.5
    w = nn.Parameter(torch.zeros(4000))
    optimizer = halfulp.Lookahead(torch.optim.SGD([w], lr=r), k, alpha)
    generator, found = torch.Generator().manual_seed(0), []
    for step in range(40 * k):
        w.grad = a * (w.detach() - torch.randn(4000, generator=generator))
        optimizer.step()
        if step > 20 * k and (step + 1) % k == 0:
            found.append(w.detach().pow(2).mean().item())
    shrink = 1 - a * r
    moved, stays = alpha**2 * (1 - shrink ** (2 * k)), 2 * alpha * (1 - alpha) * (1 - shrink**k)
    sgd = a * a * r * r / (1 - shrink**2)
    assert sum(found) / len(found) == pytest.approx(moved / (moved + stays) * sgd, rel=0.03)


def test_slow_weights_take_the_bytes_they_say_and_frozen_weights_none() -> None:
    model = build()
    model[2].weight.requires_grad_(False)
    frozen = model[2].weight.detach().clone()
    optimizer = halfulp.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), 2, state="8bit", min_size=0)
    train(model, optimizer, 0, 4)
    entries = optimizer.state_dict()["lookahead"]["slow"]
    assert set(entries) == {"0", "1", "3"}
    stored = sum(v.nbytes for e in entries.values() for v in e.values() if torch.is_tensor(v))
    assert stored == optimizer.memory().total
    assert torch.equal(model[2].weight, frozen)


def test_layers_that_thaw_get_slow_weights_from_where_they_stand() -> None:
    """BAdam's blocks come and go; and what was saved then is loaded into a wrapper that has not seen them."""

    def make(model: nn.Module) -> halfulp.Lookahead:
        inside = halfulp.BAdam(model.named_parameters(), lr=1e-2, period=3, state="8bit", min_size=0)
        return halfulp.Lookahead(inside, 2, state="bf16", min_size=0)

    model, other = build(), build()
    optimizer = make(model)
    assert set(optimizer.slow.store) == {"2.weight", "2.bias"}
    start = [p.detach().clone() for p in model[0].parameters()]
    train(model, optimizer, 0, 3)
    assert all(torch.equal(p, s) for p, s in zip(model[0].parameters(), start, strict=True))
    train(model, optimizer, 3, 2)
    assert set(optimizer.slow.store) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    other.load_state_dict(model.state_dict())
    resumed = make(other)
    resumed.load_state_dict(optimizer.state_dict())
    assert train(model, optimizer, 5, 6) == train(other, resumed, 5, 6)
    assert same(bits(model), bits(other))


def test_slow_weights_of_two_levels_are_rounded_independently() -> None:
    w = nn.Parameter(torch.linspace(0.5, 1, 8192).reshape(64, 128))
    inside = halfulp.Lookahead(torch.optim.SGD([w], lr=0.0), 1, 0.5, state="bf16")
    outside = halfulp.Lookahead(inside, 1, 0.5, state="bf16")
    errors = []
    for lookahead in (inside, outside):
        lookahead.slow.store.write({"0": w.detach()}, 1)
        errors.append((lookahead.slow.store.read("0") - w.detach()).flatten() > 0)
    assert 0.4 < (errors[0] == errors[1]).float().mean() < 0.8  # two of three, since a chance is not always a half


# ---------------------------------------------------------------- low-pass filtering


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep", ["device", "cpu"])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype, keep: Any) -> None:
    values = torch.randn(300, generator=torch.Generator().manual_seed(1)).to(dtype)
    values[:4] = torch.tensor([0.0, -0.0, torch.finfo(dtype).smallest_normal / 4, torch.finfo(dtype).max])
    w = nn.Parameter(values.reshape(3, 100).clone())
    optimizer = halfulp.LowPass(torch.optim.SGD([w], lr=0.1), 0.1, keep=keep)
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    with optimizer.perturbed():
        assert (w != values.reshape(3, 100)).float().mean() > 0.9
    assert torch.equal(w.detach().view(kind), values.reshape(3, 100).view(kind))
    with pytest.raises(ZeroDivisionError), optimizer.perturbed():
        raise ZeroDivisionError
    assert torch.equal(w.detach().view(kind), values.reshape(3, 100).view(kind))


def test_without_noise_it_is_the_optimizer_inside() -> None:
    models = [build(), build()]
    plain = train(models[0], torch.optim.SGD(models[0].parameters(), lr=0.1, momentum=0.9), 0, 6)
    inside = torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=0.9)
    assert train(models[1], halfulp.LowPass(inside, 0.0), 0, 6) == plain
    assert same(bits(models[0]), bits(models[1]))


def test_noise_has_the_deviation_of_its_row_and_is_normal() -> None:
    from scipy import stats

    matrix = nn.Parameter(torch.stack([torch.full((4000,), 0.5), torch.full((4000,), -2.0)]).reshape(2, 40, 100))
    vector = nn.Parameter(torch.full((4000,), 0.25))
    optimizer = halfulp.LowPass(torch.optim.SGD([matrix, vector], lr=0.1), 0.01)
    before = [p.detach().clone() for p in (matrix, vector)]
    with optimizer.perturbed():
        noise = [(p.detach() - b).reshape(-1, 4000) for p, b in zip((matrix, vector), before, strict=True)]
    rows = [noise[0][0] / (0.01 * 0.5 * 4000**0.5), noise[0][1] / (0.01 * 2 * 4000**0.5)]
    rows.append(noise[1][0] / (0.01 * 0.25 * 4000**0.5))
    for row in rows:
        assert stats.kstest(row.double().numpy(), "norm").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack(rows)) - torch.eye(3)).max() < 0.06


def test_one_inside_another_has_noise_of_its_own() -> None:
    """Two independent draws: deviations add up as squares, and no part of one is in the other."""
    w = nn.Parameter(torch.ones(4000))
    inside = halfulp.LowPass(torch.optim.SGD([w], lr=0.1), 1e-4)
    outside = halfulp.LowPass(inside, 1e-4)
    found = []
    for optimizer in (inside, outside):
        with optimizer.perturbed():
            found.append(w.detach().clone() - 1)
    assert abs(torch.corrcoef(torch.stack(found))[0, 1]) < 0.06  # 4 / sqrt(4000)


def test_gradients_are_those_of_the_smoothed_loss() -> None:
    """On x'Hx / 2 the mean of perturbed gradients is Hx, and that of the loss f + tr(H S) / 2."""
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(6, 6, generator=generator)
    hessian, start = root @ root.T, torch.randn(6, generator=generator)
    x = nn.Parameter(start.clone())
    optimizer = halfulp.LowPass(torch.optim.SGD([x], lr=1.0), 0.1, samples=4000)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = x @ hessian @ x / 2
        loss.backward()
        return loss.detach()

    loss = optimizer.step(closure)
    deviation = 0.1 * start.norm()
    noise_of_mean = deviation * hessian.norm(dim=1) / 4000**0.5
    assert ((start - x.detach() - hessian @ start).abs() < 4 * noise_of_mean).all()
    smoothed = start @ hessian @ start / 2 + hessian.trace() * deviation**2 / 2
    assert float(loss) == pytest.approx(float(smoothed), rel=0.01)


def test_parts_of_a_batch_see_draws_of_their_own_as_published() -> None:
    """Against the published loop, written out with the noise that the wrapper draws."""
    model, twin = build(), build()
    optimizer = halfulp.LowPass(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.05)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        for part in range(2):
            with optimizer.perturbed():
                shifted = [p.detach().clone() for p in model.parameters()]
                (loss_of(model, 2 * step + part) / 2).backward()
            kept = [p.detach().clone() for p in twin.parameters()]
            for p, value in zip(twin.parameters(), shifted, strict=True):
                p.data.copy_(value)
            (loss_of(twin, 2 * step + part) / 2).backward()
            for p, value in zip(twin.parameters(), kept, strict=True):
                p.data.copy_(value)
        for o in (optimizer, sgd):
            o.step()
            o.zero_grad()
        assert same(bits(model), bits(twin))


def test_the_radius_grows_along_half_a_cosine() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = halfulp.LowPass(torch.optim.SGD([w], lr=0.0), 5e-4, growth=15.0, steps=4)
    found = []
    for _ in range(6):
        found.append(optimizer.radius)
        optimizer.step()
    rise = [0.0, (1 - 0.5**0.5) / 2, 0.5, (1 + 0.5**0.5) / 2, 1.0, 1.0]
    assert found == pytest.approx([5e-4 * (1 + 14 * r) for r in rise])


# ---------------------------------------------------------------- sharded models


def test_sharded_models_have_the_bits_of_one_process(tmp_path: Path) -> None:
    """Noise, its removal, slow weights in bf16; FSDP2 on two ranks with rows that do not divide."""
    torchrun("wrapped", 2, tmp_path / "found.pt")
    found, alone = torch.load(tmp_path / "found.pt"), wrapped.run(cases.build_model())
    for key in ("start", "noisy", "restored", "end"):
        assert same(found[key], alone[key]), key
    assert same(found["restored"], found["start"])
    assert not same(found["noisy"], found["start"])
    assert found["angles"] == pytest.approx(alone["angles"], abs=1e-4)


def test_the_monitor_watches_the_optimizer_inside() -> None:
    tables = []
    for wrap in (lambda o: o, lambda o: halfulp.LowPass(halfulp.Lookahead(o, 99), 0.0)):
        model = build()
        optimizer = wrap(halfulp.AdamW(model.parameters(), lr=1e-2, state="fp8", rounding="nearest", min_size=0))
        watch = halfulp.StallMonitor(optimizer, every=1)
        train(model, optimizer, 0, 8)
        tables.append([(row.slot, row.updates, row.stalled) for row in watch.table().rows])
    assert tables[0] == tables[1]
    assert {slot for slot, updates, stalled in tables[0] if updates > 0 and stalled > 0} == {"exp_avg", "exp_avg_sq"}, (
        tables
    )


@pytest.mark.parametrize("wrapper", [halfulp.Lookahead, halfulp.LowPass])
def test_a_loop_that_passes_the_wrapper_by_is_told(wrapper, caplog, monkeypatch):
    monkeypatch.setattr("halfulp.numbers.log._said", set())
    w = torch.nn.Parameter(torch.ones(4))
    inside = torch.optim.SGD([w], lr=0.1)
    optimizer = wrapper(inside)
    w.grad = torch.ones(4)
    optimizer.step()
    told = "no backward pass of this step was inside perturbed()"
    assert (told in caplog.text) == (wrapper is halfulp.LowPass)
    assert "does not see" not in caplog.text
    inside.step()
    assert "the training loop has to call step() of the wrapper" in caplog.text


def test_low_pass_that_draws_noise_says_nothing(caplog, monkeypatch):
    monkeypatch.setattr("halfulp.numbers.log._said", set())
    w = torch.nn.Parameter(torch.ones(4))
    optimizer = halfulp.LowPass(torch.optim.SGD([w], lr=0.1))
    with optimizer.perturbed():
        w.square().sum().backward()
    optimizer.step()

    def closure():
        loss = w.square().sum()
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    assert not caplog.records


NESTED: dict[str, Callable[[Any], Any]] = {
    "two of a kind": lambda o: halfulp.Lookahead(halfulp.Lookahead(o, k=2), k=3),
    "three of a kind": lambda o: halfulp.Lookahead(halfulp.Lookahead(halfulp.Lookahead(o, k=2), k=2), k=2),
    "one between": lambda o: halfulp.Lookahead(halfulp.LowPass(halfulp.Lookahead(o, k=2)), k=3),
}


@pytest.mark.parametrize("how", NESTED)
def test_wrappers_in_wrappers_resume_with_the_same_bits(how: str) -> None:
    """Each has an entry of its own, though they have the same key."""
    models, optimizers = [], []
    for _ in range(2):
        models.append(build())
        optimizers.append(NESTED[how](halfulp.AdamW(models[-1].parameters(), lr=1e-2)))
    train(models[0], optimizers[0], 0, 5)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for net, optimizer in zip(models, optimizers, strict=True):
        train(net, optimizer, 5, 7)
    assert same(bits(models[0]), bits(models[1]))
