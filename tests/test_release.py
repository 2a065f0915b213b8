"""Gradient release: the bits of ordinary steps, with any loops, hooks and wrappers around them."""

from __future__ import annotations

import copy
import gc
import io
import json
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import halfulp
from halfulp.averaging import EMA
from halfulp.numbers import log as _log
from halfulp.training import release_gradients
from support.optimizers import assert_same, weights_and_states
from support.processes import torchrun


class Net(nn.Module):
    """Layers, of which one is used twice; under a checkpoint where asked."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.last = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 4)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for _ in range(2):
            if self.reentrant is None:
                x = torch.tanh(self.twice(x))
            else:
                x = checkpoint(lambda y: torch.tanh(self.twice(y)), x, use_reentrant=self.reentrant)
        return self.last(x).square().mean()  # type: ignore[no-any-return]


BATCHES = torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(5))


def built(reentrant: bool | None = None, state: str = "8bit") -> tuple[Net, Any]:
    net = Net(reentrant)
    return net, halfulp.AdamW(net.named_parameters(), lr=1e-2, state=state, min_size=64)


def ordinary(
    steps: list[list[Tensor]], clip: Callable[[Net], None] = lambda net: None, reentrant: bool | None = None
) -> dict[str, Tensor]:
    """Each step out of the gradients of some batches."""
    net, optimizer = built(reentrant)
    for batches in steps:
        for batch in batches:
            net(batch).backward()
        clip(net)
        optimizer.step()
        optimizer.zero_grad()
    return weights_and_states(net, optimizer)


@pytest.mark.parametrize("asked", [False, True], ids=["no step()", "step()"])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("reentrant", [None, False, True], ids=["plain", "checkpoint", "re-entrant"])
def test_the_bits_are_those_of_a_step(reentrant: bool | None, accumulate: int, asked: bool) -> None:
    net, optimizer = built(reentrant)
    release_gradients(optimizer, accumulate=accumulate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for i, batch in enumerate(BATCHES, 1):
        net(batch).backward()
        if i % accumulate == 0:
            assert all(p.grad is None for p in net.parameters())
            if asked:
                optimizer.step()
            scheduler.step()  # without a warning of a skipped step
    parts = [list(part) for part in BATCHES.split(accumulate)]
    assert_same(weights_and_states(net, optimizer), ordinary(parts, reentrant=reentrant))


def test_two_passes_clip_exactly() -> None:
    net, optimizer = built()
    release = release_gradients(optimizer, max_norm=0.05, clip="two passes")
    for batch in BATCHES:
        loss = net(batch)
        loss.backward(retain_graph=True)
        assert all(p.grad is None for p in net.parameters())
        assert release.norm is not None
        loss.backward()
    norms: list[float] = []

    def clip(net: Net) -> None:
        norms.append(float(torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)))

    assert_same(weights_and_states(net, optimizer), ordinary([[b] for b in BATCHES], clip))
    assert max(norms) > 0.05  # clipping did happen
    assert release.norm is not None
    assert float(release.norm) == norms[-1]


def test_the_norm_of_the_step_before_clips() -> None:
    net, optimizer = built()
    release_gradients(optimizer, max_norm=0.05)
    for batch in BATCHES:
        net(batch).backward()
    before: list[Tensor] = []

    def clip(net: Net) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
        if before:
            torch.nn.utils.clip_grads_with_norm_(net.parameters(), 0.05, before[-1])
        before.append(norm)

    assert_same(weights_and_states(net, optimizer), ordinary([[b] for b in BATCHES], clip))


@pytest.mark.parametrize("how", ["frozen at first", "all but one", "group added"])
def test_layers_that_come_later(how: str) -> None:
    runs = []
    for released in (False, True):
        net, optimizer = built()
        extra = nn.Linear(16, 16)
        if how == "frozen at first":
            net.first.requires_grad_(False)
        elif how == "all but one":
            net.requires_grad_(False)
            net.last.requires_grad_(True)
        if released:
            release_gradients(optimizer)
        for i, batch in enumerate(BATCHES):
            if i == 2 and how == "frozen at first":
                net.first.requires_grad_(True)
            elif i == 2 and how == "all but one":
                net.requires_grad_(True)
                net.last.requires_grad_(False)
            elif i == 2:
                optimizer.add_param_group({"params": list(extra.named_parameters())})
            net(extra(batch)).backward()
            if not released:
                optimizer.step()
            if not released or i < 2:  # before the extra layer is added, nobody owns its gradients
                optimizer.zero_grad()
                extra.zero_grad()
        runs.append(weights_and_states(net, optimizer) | {k: v.detach() for k, v in extra.named_parameters()})
        assert how == "group added" or all(p.grad is None for p in net.parameters())
    assert_same(*runs)


def test_hooks_are_called_once_a_step() -> None:
    runs = []
    for released in (False, True):
        net, optimizer = built()
        ema = EMA(net, 0.5, state="fp32")
        ema.attach(optimizer)
        watch = halfulp.StallMonitor(optimizer, every=1)
        if released:
            release_gradients(optimizer)
        for batch in BATCHES:
            net(batch).backward()
            if not released:
                optimizer.step()
                optimizer.zero_grad()
        assert ema.updates == watch.steps == len(BATCHES)
        stalled = {m.slot: torch.tensor(m.stalled) for m in watch.measure()}
        runs.append(
            weights_and_states(net, optimizer) | {n: ema.value(n).clone() for n, _ in net.named_parameters()} | stalled
        )
    assert_same(*runs)


def alive_when_stepped(net: Net, optimizer: Any) -> int:
    """Most gradients that were alive right after the hook of a parameter."""
    seen: list[int] = []
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda _: seen.append(sum(q.grad is not None for q in net.parameters())))
    net(BATCHES[0]).backward()
    return max(seen)


def test_an_average_keeps_no_gradients_and_a_monitor_does(caplog: pytest.LogCaptureFixture) -> None:
    net, optimizer = built()
    EMA(net, 0.5).attach(optimizer)
    release_gradients(optimizer)
    assert alive_when_stepped(net, optimizer) == 0
    net, optimizer = built()
    watch = halfulp.StallMonitor(optimizer, every=1)
    release_gradients(optimizer)
    _log._said.clear()
    with caplog.at_level(logging.WARNING, "halfulp"):
        assert alive_when_stepped(net, optimizer) == 6
    assert watch.steps == 1
    assert "kept until the end of each backward pass" in caplog.text


class Tied(nn.Module):
    """A weight that is used under a re-entrant checkpoint, and again outside of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.layer, x.requires_grad_(), use_reentrant=True)
        return self.layer(y).square().mean()  # type: ignore[no-any-return]


def test_a_share_that_comes_after_the_step_is_an_error() -> None:
    net = Tied()
    release_gradients(halfulp.AdamW(net.parameters()))
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        net(BATCHES[0].clone()).backward()


def test_a_pass_that_failed_leaves_nothing_behind() -> None:
    net, optimizer = built()
    release_gradients(optimizer)

    def fail(_: Tensor) -> None:
        raise ArithmeticError

    handle = net.last.weight.register_post_accumulate_grad_hook(fail)
    with pytest.raises(ArithmeticError):
        net(BATCHES[0]).backward()
    handle.remove()
    steps = {n: optimizer.state.get(p, {}).get("step", 0) for n, p in net.named_parameters()}
    net(BATCHES[1]).backward()
    assert all(optimizer.state[p]["step"] == steps[n] + 1 for n, p in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())


def test_removed_it_is_as_before() -> None:
    net, optimizer = built()
    release = release_gradients(optimizer)
    net(BATCHES[0]).backward()
    release.remove()
    assert "step" not in vars(optimizer)
    assert "add_param_group" not in vars(optimizer)
    for batch in BATCHES[1:]:
        net(batch).backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert_same(weights_and_states(net, optimizer), ordinary([[b] for b in BATCHES]))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "sums over the model": (lambda: release_gradients(halfulp.AMSGD(Net().parameters(), lr=1e-3)), "sums over"),
    "another library": (lambda: release_gradients(torch.optim.AdamW(Net().parameters())), "optimizers of halfulp"),
    "accumulate": (lambda: release_gradients(built()[1], accumulate=0), "accumulate must be at least 1"),
    "norm": (lambda: release_gradients(built()[1], max_norm=-1.0), "max_norm positive"),
    "clip": (lambda: release_gradients(built()[1], clip="later"), "clip must be"),  # type: ignore[arg-type]
    "two passes without norm": (lambda: release_gradients(built()[1], clip="two passes"), "needs max_norm"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_go(name: str) -> None:
    ask, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        ask()


def test_a_closure_is_refused() -> None:
    net, optimizer = built()
    release_gradients(optimizer)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: net(BATCHES[0]))


def test_a_scaled_loss_is_refused_before_any_step() -> None:
    """At the first backward pass. A scaler that has been updated before is that of another model."""
    net, optimizer = built()
    release_gradients(optimizer)
    before = weights_and_states(net, optimizer)
    dead = weakref.proxy(Net())  # isinstance() of it is an error
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="before a GradScaler could unscale them"):
            scaler.scale(net(BATCHES[0])).backward()
        assert_same(weights_and_states(net, optimizer), before)
    optimizer.zero_grad()
    other = nn.Linear(16, 4)
    scaler.scale(other(BATCHES[0]).sum()).backward()
    scaler.step(torch.optim.SGD(other.parameters()))
    scaler.update()
    for batch in BATCHES:
        net(batch).backward()
    assert_same(weights_and_states(net, optimizer), ordinary([[b] for b in BATCHES]))
    del dead


def test_a_second_release_is_refused_and_changes_nothing() -> None:
    net, optimizer = built()
    other = nn.Linear(16, 4)
    release = release_gradients(optimizer)
    shared = halfulp.AdamW([*other.parameters(), *net.parameters()])
    for again in (optimizer, shared):
        with pytest.raises(ValueError, match="released already"):
            release_gradients(again)
    elsewhere = release_gradients(halfulp.AdamW(other.parameters()))
    with pytest.raises(ValueError, match="released already"):
        elsewhere.optimizer.add_param_group({"params": net.first.weight})
    assert len(elsewhere.optimizer.param_groups) == 1
    elsewhere.remove()
    net(BATCHES[0]).backward()
    other(BATCHES[0]).sum().backward()
    assert [optimizer.state[p]["step"] for p in net.parameters()] == [1] * 6
    assert other.weight.grad is not None
    release.remove()
    release_gradients(shared)


@pytest.mark.parametrize("removed", [False, True], ids=["released", "removed"])
@pytest.mark.parametrize("dropped", ["model, optimizer and release", "optimizer and release"])
def test_nothing_is_kept_in_memory(dropped: str, removed: bool) -> None:
    """Whoever drops all three gets the memory back, and a model that stays goes on being trained."""
    net, optimizer = built()
    release = release_gradients(optimizer)
    net(BATCHES[0]).backward()
    if removed:
        release.remove()
    alive = [weakref.ref(x) for x in (net, optimizer, release, net.first.weight)]
    kept = net if dropped == "optimizer and release" else None
    del net, optimizer, release
    gc.collect()
    if kept is None:
        assert [x() for x in alive] == [None] * 4
    else:
        before = kept.first.weight.detach().clone()
        kept(BATCHES[1]).backward()
        assert torch.equal(kept.first.weight, before) == removed


def test_copies_and_files_of_a_model_have_no_release() -> None:
    net, optimizer = built()
    release_gradients(optimizer)
    net(BATCHES[0]).backward()
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        before = other.first.weight.detach().clone()
        other(BATCHES[1]).backward()
        assert torch.equal(other.first.weight, before)
        assert other.first.weight.grad is not None
        release_gradients(halfulp.AdamW(other.parameters()))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_replicas_of_ddp_stay_together(tmp_path: Path) -> None:
    torchrun("release", 2, tmp_path)
    found = json.loads((tmp_path / "0.json").read_text())
    assert found == json.loads((tmp_path / "1.json").read_text())
    assert found["released"] == found["ordinary"]
    assert found["accumulated"] == found["accumulated, ordinary"]
