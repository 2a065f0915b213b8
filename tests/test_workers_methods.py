"""Known properties of each method of workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp
from halfulp.workers import (
    ALDSGD,
    DPPF,
    DPSGD,
    EASGD,
    LGRAWA,
    METHODS,
    MGRAWA,
    Alone,
    DiLoCo,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedYogi,
    Graph,
    LocalSGD,
    SlowMo,
    VarianceCorrected,
    simulate,
)  # fmt: skip
from halfulp.workers.valley import inverse_mean_valley
from support import workers

Make = Callable[[torch.optim.Optimizer, Any], Any]


def meet(
    make: Make,
    starts: Sequence[Tensor],
    meetings: int = 1,
    grads: Sequence[Sequence[Tensor]] | None = None,
    losses: Sequence[float] | None = None,
) -> list[list[list[Tensor]]]:
    """Weights (worker, meeting, tensor) of workers that do not train: their learning rate is zero."""
    size = len(starts)

    def work(peers: Any) -> list[list[Tensor]]:
        own = starts[peers.rank]
        params = [nn.Parameter(x.clone()) for x in (own if isinstance(own, (list, tuple)) else [own])]
        optimizer = make(torch.optim.SGD(params, lr=0.0), peers)
        seen = [[p.detach().clone() for p in params]]
        for _ in range(meetings):
            for i, p in enumerate(params):
                p.grad = torch.zeros_like(p) if grads is None else grads[peers.rank][i].clone()
            optimizer.report(loss=None if losses is None else losses[peers.rank])
            optimizer.step()
            seen.append([p.detach().clone() for p in params])
        return seen

    return simulate(size, work)


def spread(size: int = 4, *shape: int) -> list[Tensor]:
    return list(torch.randn(size, *(shape or (6, 5)), generator=torch.Generator().manual_seed(1)))


def stacked(found: list[list[list[Tensor]]]) -> Tensor:
    """(worker, meeting, ...) of the first tensor."""
    return torch.stack([torch.stack([tensors[0] for tensors in seen]) for seen in found])


# ---------------------------------------------------------------- pulls


def test_dppf_settles_at_the_width_push_over_pull() -> None:
    found = stacked(meet(lambda o, g: DPPF(o, pull=0.1, push=0.5, every=1, group=g), spread(), 40)).double()
    away = (found - found.mean(dim=0)).flatten(2).norm(dim=2)
    torch.testing.assert_close(away[:, -1], torch.full((4,), 5.0).double(), atol=6e-2, rtol=0)
    error = away.mean(dim=0) - 5.0
    assert float(error[35] / error[15]) == pytest.approx(0.9**20, rel=0.1)  # contraction 1 - pull


def test_dppf_without_push_is_soft_averaging() -> None:
    starts = spread()
    found = stacked(meet(lambda o, g: DPPF(o, pull=0.25, push=0.0, every=1, group=g), starts))
    mean = sum(starts) / 4
    for own, start in zip(found[:, 1], starts, strict=True):
        torch.testing.assert_close(own, 0.75 * start + 0.25 * mean)
    hard = stacked(meet(lambda o, g: DPPF(o, pull=1.0, push=0.0, every=1, group=g), starts))
    local = stacked(meet(lambda o, g: LocalSGD(o, every=1, group=g), starts))
    assert torch.equal(hard, local)


@pytest.mark.parametrize(
    ("method", "norms", "weights"),
    [
        (MGRAWA, [[1.0, 0.0], [3.0, 0.0]], [[0.75, 0.25], [0.75, 0.25]]),
        (MGRAWA, [[0.5, 0.5], [2.0, 1.0]], [[0.75, 0.25], [0.75, 0.25]]),
        (LGRAWA, [[1.0, 3.0], [3.0, 1.0]], [[0.75, 0.25], [0.25, 0.75]]),
        (LGRAWA, [[2.0, 2.0], [2.0, 2.0]], [[0.5, 0.5], [0.5, 0.5]]),
        (MGRAWA, [[2.0, 2.0], [2.0, 2.0]], [[0.5, 0.5], [0.5, 0.5]]),
    ],
)
def test_gradient_norms_weigh_the_workers(method: Any, norms: list[list[float]], weights: list[list[float]]) -> None:
    """Norms of two tensors at two workers; weights of the workers in each tensor's mean."""
    starts = [[torch.randn(4), torch.randn(3)] for _ in range(2)]
    grads = [
        [torch.tensor([n, 0.0, 0.0, 0.0])[: x.numel()] for n, x in zip(own, starts[0], strict=True)] for own in norms
    ]
    found = meet(lambda o, g: method(o, pull=0.5, between=0.0, every=1, group=g), starts, grads=grads)  # type: ignore[arg-type]
    for i in range(2):
        centre = weights[i][0] * starts[0][i] + weights[i][1] * starts[1][i]
        for worker in range(2):
            torch.testing.assert_close(found[worker][1][i], 0.5 * starts[worker][i] + 0.5 * centre)


def test_grawa_averages_norms_over_meetings_and_pulls_between() -> None:
    decay, weight = 0.5, nn.Parameter(torch.zeros(2))
    optimizer = LGRAWA(torch.optim.SGD([weight], lr=0.0), every=2, decay=decay, between=0.4, group=Alone())
    for norm in (7.0, 1.0, 7.0, 3.0):
        weight.grad = torch.tensor([norm, 0.0])
        optimizer.step()
    assert optimizer.norms.tolist() == [decay * (1 - decay) * 1.0 + (1 - decay) * 3.0]
    weight.data.add_(1.0)  # the last mean was 0
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.8, 0.8])  # 0.4 in two steps


def test_a_method_without_its_figures_says_so() -> None:
    weight = nn.Parameter(torch.zeros(2))
    for method, match in ((LGRAWA, "there are none after the step"), (ALDSGD, "follows the worker of least loss")):
        optimizer = method(torch.optim.SGD([weight], lr=0.0), every=1, group=Alone())
        with pytest.raises(ValueError, match=match):
            optimizer.step()


def test_easgd_pulls_workers_and_centre_together() -> None:
    """Against its two lines, from a centre at the common start."""
    beta, weights, centre = 0.8, torch.zeros(4), 0.0
    drift = torch.tensor([1.0, 2.0, 3.0, 6.0])

    def work(peers: Any) -> tuple[float, float]:
        weight = nn.Parameter(torch.zeros(1))
        optimizer = EASGD(torch.optim.SGD([weight], lr=1.0), beta=beta, every=1, group=peers)
        for _ in range(7):
            weight.grad = -drift[peers.rank].reshape(1)
            optimizer.step()
        return float(weight.detach()), float(optimizer.reference.read("0"))

    for _ in range(7):
        weights = weights + drift
        weights, centre = weights - beta / 4 * (weights - centre), centre + beta * (float(weights.mean()) - centre)
    for rank, (own, shared) in enumerate(simulate(4, work)):
        assert own == pytest.approx(float(weights[rank]), rel=1e-5)
        assert shared == pytest.approx(centre, rel=1e-5)


def test_leaders_without_pull_are_d_psgd() -> None:
    graphs = [Graph(4, [(0, 1), (1, 2), (2, 3), (3, 0)]), Graph(4, [(0, 2), (2, 1), (1, 3)])]
    starts, losses = spread(), [3.0, 1.0, 2.0, 4.0]
    plain = meet(lambda o, g: DPSGD(o, graph=graphs, every=1, group=g), starts, 4)
    led = meet(
        lambda o, g: ALDSGD(o, c1=0.0, c2=0.0, p1=0.0, p2=0.0, graph=graphs, every=1, group=g), starts, 4, None, losses
    )
    assert torch.equal(stacked(plain), stacked(led))
    mean = stacked(plain).double().mean(dim=0)
    torch.testing.assert_close(mean[-1], mean[0], atol=1e-6, rtol=0)


def test_leaders_are_those_of_least_loss_and_highest_degree() -> None:
    """Against the published three lines on one meeting of a path with a hub."""
    graph, losses = Graph(4, [(0, 1), (1, 2), (1, 3)]), [3.0, 1.5, 0.5, 4.0]
    starts = spread()
    found = stacked(meet(
        lambda o, g: ALDSGD(o, c1=0.3, c2=0.1, p1=0.2, p2=0.15, graph=graph, every=1, group=g), starts, 1, None, losses
    ))[:, 1]  # fmt: skip
    best, highest = [1, 2, 2, 1], [1, 1, 1, 1]
    for i, x in enumerate(starts):
        y = x + graph.share * sum(starts[j] - x for j in graph.circle(i))
        b, h = starts[best[i]], starts[highest[i]]
        y = 0.6 * y + 0.3 * b + 0.1 * h
        y = y - 0.2 * (y - b) - 0.15 * (y - h)
        torch.testing.assert_close(found[i], y, atol=1e-6, rtol=1e-5)


def test_identical_workers_stay_where_they_are() -> None:
    start = torch.randn(8, 8)
    for method in METHODS:
        options = {"message": "4bit", "min_size": 0} if method not in (DPSGD, ALDSGD) else {}
        if method is VarianceCorrected:
            continue  # its eps
        found = stacked(meet(
            lambda o, g, m=method, more=options: m(o, every=1, group=g, **more), [start] * 4, 2,
            [[torch.ones(8, 8)]] * 4, [1.0] * 4,
        ))  # fmt: skip
        torch.testing.assert_close(found, start.expand_as(found), atol=1e-6, rtol=0, msg=method.__name__)


def test_variance_is_brought_back() -> None:
    """16 independent models: a factor of the root of 16; equal ones: 1."""
    starts = spread(16, 64, 64)
    found = stacked(meet(lambda o, g: VarianceCorrected(o, every=1, group=g), starts))[0, 1]
    mean = torch.stack(starts).mean(dim=0)
    factor = (found - found.mean()) / (mean - mean.mean())
    assert float(factor.std() / factor.mean()) < 1e-3
    assert float(factor.mean()) == pytest.approx(4.0, rel=0.01)
    assert float(found.var()) == pytest.approx(1.0, rel=0.02)
    same = stacked(meet(lambda o, g: VarianceCorrected(o, every=1, group=g), starts[:1] * 4))[0, 1]
    torch.testing.assert_close(same, starts[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("h", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("kappa", [1.5, 2.0])
def test_valleys_of_a_bowl_have_their_radius(h: float, kappa: float) -> None:
    def bowl(weights: Any) -> float:
        return float(0.5 * h * sum(x.square().sum() for x in weights.values()) + 3.0)

    corners = [{"x": x, "y": -x[:2]} for x in torch.randn(2, 4)]
    models = [*corners, *({n: -x for n, x in c.items()} for c in corners)]
    assert 1 / inverse_mean_valley(bowl, models, kappa) == pytest.approx(math.sqrt(2 * (kappa - 1) * 3.0 / h), rel=1e-4)


def test_a_valley_without_an_edge_has_no_radius() -> None:
    """The search ends where it is told to: a flat loss never rises, and a wide bowl not by then."""
    models = [{"x": torch.ones(2)}, {"x": -torch.ones(2)}]
    assert inverse_mean_valley(lambda weights: 1.0, models) == 0.0

    def bowl(weights: Any) -> float:
        return float(1e-4 * weights["x"].square().sum() + 1.0)

    assert inverse_mean_valley(bowl, models, furthest=10.0) == 0.0
    assert 1 / inverse_mean_valley(bowl, models) == pytest.approx(100.0, rel=1e-4)


# ---------------------------------------------------------------- outer optimizers

RATE = 0.05


def changes(make: Make, rounds: int = 5) -> tuple[list[Tensor], Tensor]:
    """Common weights after each round of workers that go their own constant ways, and the mean way of a round."""
    ways = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(2))

    def work(peers: Any) -> list[Tensor]:
        weight = nn.Parameter(torch.ones(6, 8))
        optimizer = make(torch.optim.SGD([weight], lr=RATE), peers)
        seen = []
        for step in range(2 * rounds):
            weight.grad = ways[peers.rank] * (1 + step // 2)
            optimizer.step()
            if optimizer.met:
                seen.append(weight.detach().clone())
        return seen

    found = simulate(4, work)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    return found[0], ways.mean(dim=0) * RATE * 2


def check(make: Make, step: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """`step` takes the centre and minus the mean change."""
    found, way = changes(make)
    centre = torch.ones(6, 8)
    for i, own in enumerate(found):
        centre = step(centre, way * (1 + i), i)
        torch.testing.assert_close(own, centre, atol=2e-5, rtol=2e-5)


def test_diloco_of_rate_one_is_local_sgd() -> None:
    outer, _ = changes(lambda o, g: DiLoCo(o, lr=1.0, momentum=0.0, every=2, group=g))
    local, _ = changes(lambda o, g: LocalSGD(o, every=2, group=g))
    for a, b in zip(outer, local, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


def test_diloco_is_nesterov_on_the_mean_change() -> None:
    reference = torch.nn.Parameter(torch.ones(6, 8))
    sgd = torch.optim.SGD([reference], lr=0.7, momentum=0.9, nesterov=True)

    def step(centre: Tensor, grad: Tensor, _: int) -> Tensor:
        reference.grad = grad
        sgd.step()
        return reference.detach().clone()

    check(lambda o, g: DiLoCo(o, every=2, group=g), step)


def test_diloco_takes_any_optimizer_with_states_in_any_format() -> None:
    def make(state: str) -> Make:
        return lambda o, g: DiLoCo(
            o, every=2, outer=lambda p: halfulp.AdamW(p, lr=0.1, state=state, min_size=0), group=g
        )

    reference = torch.nn.Parameter(torch.ones(6, 8))
    adam = torch.optim.AdamW([reference], lr=0.1)

    def step(centre: Tensor, grad: Tensor, _: int) -> Tensor:
        reference.grad = grad
        adam.step()
        return reference.detach().clone()

    check(make("fp32"), step)
    full, low = changes(make("fp32"))[0], changes(make("8bit"))[0]
    assert 0 < float((full[-1] - low[-1]).abs().max()) < 0.1 * float((full[-1] - 1).abs().max())


def test_outer_gradients_keep_changes_below_the_resolution_of_the_weights() -> None:
    """One of four workers moves by one unit in the last place: the gradient is a quarter of it."""
    unit = 2.0**-23

    def work(peers: Any) -> float:
        weight = nn.Parameter(torch.ones(2, 3))
        optimizer = DiLoCo(torch.optim.SGD([weight], lr=1.0), lr=4.0, momentum=0.0, every=1, group=peers)
        weight.grad = torch.full_like(weight, -unit if peers.rank == 2 else 0.0)
        optimizer.step()
        return float(weight[0, 0].detach())

    assert simulate(4, work) == [1.0 + unit] * 4


def test_slowmo_is_its_two_lines() -> None:
    state = {"u": torch.zeros(6, 8)}

    def step(centre: Tensor, grad: Tensor, _: int) -> Tensor:
        state["u"] = 0.5 * state["u"] + grad / RATE
        return centre - 0.9 * RATE * state["u"]

    check(lambda o, g: SlowMo(o, lr=0.9, momentum=0.5, every=2, group=g), step)


@pytest.mark.parametrize(("method", "kind"), [(FedAdagrad, "sum"), (FedAdam, "ema"), (FedYogi, "yogi")])
def test_federated_optimizers_are_as_published(method: Any, kind: str) -> None:
    beta1, beta2, tau, state = 0.8, 0.9, 0.05, {"m": torch.zeros(6, 8), "v": torch.full((6, 8), 0.05**2)}

    def step(centre: Tensor, grad: Tensor, _: int) -> Tensor:
        delta, v = -grad, state["v"]
        state["m"] = beta1 * state["m"] + (1 - beta1) * delta
        square = delta * delta
        state["v"] = {
            "sum": v + square, "ema": beta2 * v + (1 - beta2) * square,
            "yogi": v - (1 - beta2) * square * torch.sign(v - square),
        }[kind]  # fmt: skip
        return centre + 0.3 * state["m"] / (state["v"].sqrt() + tau)

    check(lambda o, g: method(o, lr=0.3, betas=(beta1, beta2), tau=tau, every=2, group=g), step)


def test_fedavg_counts_drawn_clients_by_their_samples() -> None:
    starts, samples = spread(), [10, 20, 30, 40]

    def work(peers: Any) -> tuple[list[bool], Tensor]:
        weight = nn.Parameter(torch.zeros(6, 5))
        optimizer = FedAvg(torch.optim.SGD([weight], lr=1.0), participation=0.5, every=1, group=peers)
        drawn = []
        for _ in range(6):
            drawn.append(optimizer.takes_part)
            weight.grad = -starts[peers.rank]
            optimizer.report(samples=samples[peers.rank])
            optimizer.step()
        return drawn, weight.detach()

    found = simulate(4, work)
    rounds = list(zip(*(drawn for drawn, _ in found), strict=True))
    assert all(sum(drawn) == 2 for drawn in rounds)
    assert len(set(rounds)) > 1
    expected = torch.zeros(6, 5)
    for drawn in rounds:
        weights = torch.tensor([n * part for n, part in zip(samples, drawn, strict=True)]).float()
        expected += sum(w * x for w, x in zip(weights / weights.sum(), starts, strict=True))
    for _, own in found:
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_every_method_trains_in_low_bits_and_resumes_with_the_same_bits(method: Any, tmp_path: Path) -> None:
    gossip = method.method.gossip
    common = method.method.centre == "outer" or method in (LocalSGD, VarianceCorrected)

    def made(peers: Any) -> tuple[nn.Module, Any]:
        model = workers.build()
        inside = torch.optim.SGD(model.parameters(), lr=0.2)
        low = ({} if gossip else {"centre": "bf16"}) | ({"state": "8bit"} if method.method.outer else {})
        rate = {"lr": 0.05} if method in (FedAdam, FedAdagrad, FedYogi) else {}
        return model, method(inside, every=2, message="8bit", group=peers, **low, **rate, **workers.SMALL)

    def whole(peers: Any) -> tuple[list[float], list[Tensor]]:
        model, optimizer = made(peers)
        losses = workers.train(model, optimizer, peers.rank, 0, 12)
        file = tmp_path / f"{peers.rank}.pt"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        losses += workers.train(model, optimizer, peers.rank, 12, 2)
        return losses, [p.detach() for p in model.parameters()]

    def resumed(peers: Any) -> list[Tensor]:
        model, optimizer = made(peers)
        saved = torch.load(tmp_path / f"{peers.rank}.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        workers.train(model, optimizer, peers.rank, 12, 2)
        return [p.detach() for p in model.parameters()]

    first = simulate(4, whole)
    for (losses, own), other in zip(first, simulate(4, resumed), strict=True):
        assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
    if common:
        for _, own in first[1:]:
            assert all(torch.equal(a, b) for a, b in zip(own, first[0][1], strict=True))
