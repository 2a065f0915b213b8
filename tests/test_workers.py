"""Workers that synchronize from time to time: what they send, whom it reaches, and the result."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halfulp
from halfulp.engine.sharding import Part
from halfulp.engine.storage import StorageOptions
from halfulp.workers import DPSGD, Alone, Graph, LocalSGD, Matchings, RandomPairs, complete, ring, simulate
from halfulp.workers.graphs import as_graphs
from halfulp.workers.group import WorkerLostError
from halfulp.workers.message import Layout, MessageOptions
from support import workers
from support.processes import torchrun

# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("message", ["fp32", "bf16", "8bit", "4bit", "fp8"])
def test_everyone_decodes_the_bits_that_the_sender_does(message: str) -> None:
    values = {"a": torch.randn(40, 100), "b": torch.randn(7), "c": torch.randn(3, 5, 2)}
    options = MessageOptions(message, storage=StorageOptions(min_size=0))
    layouts = [Layout({n: Part(x) for n, x in values.items()}, 2, options) for _ in range(2)]
    sent = layouts[0].encode(values, torch.tensor([1.5, -2.0]), sender=3, meeting=9)
    assert layouts[1].figures(sent).tolist() == [1.5, -2.0]
    for name, x in values.items():
        one, other = (layout.decode(sent, name) for layout in layouts)
        assert torch.equal(one, other)
        assert torch.equal(one, x) == (message == "fp32")
    for change in ({"sender": 2, "meeting": 9}, {"sender": 3, "meeting": 8}):
        again = layouts[0].encode(values, torch.zeros(2), **change)
        assert torch.equal(layouts[0].decode(again, "a"), layouts[0].decode(sent, "a")) == (message == "fp32")


def test_a_shard_is_sent_with_the_bits_of_the_whole() -> None:
    whole, options = torch.randn(12, 300), MessageOptions("8bit", storage=StorageOptions(min_size=0))
    layout = Layout({"w": Part(whole)}, 0, options)
    expected = layout.decode(layout.encode({"w": whole}, torch.zeros(0), 1, 1), "w")
    part = Part(whole[5:9], 5 * 300, 300)
    shard = Layout({"w": part}, 0, options)
    assert torch.equal(shard.decode(shard.encode({"w": part.tensor}, torch.zeros(0), 1, 1), "w"), expected[5:9])


def test_rounding_of_messages_is_unbiased_and_independent_between_senders() -> None:
    x = torch.randn(64, 128)
    layout = Layout({"w": Part(x)}, 0, MessageOptions("8bit", storage=StorageOptions(min_size=0)))
    errors = torch.stack([
        layout.decode(layout.encode({"w": x}, torch.zeros(0), sender, 1), "w") - x for sender in range(64)
    ])  # fmt: skip
    one, mean = errors[0].square().mean().sqrt(), errors.mean(dim=0).square().mean().sqrt()
    assert 0.9 < float(mean / one * 8) < 1.1  # decreases as the square root of 64


# ---------------------------------------------------------------- graphs


@pytest.mark.parametrize(
    ("graph", "consensus"),
    [(ring(4), 1 / 3), (complete(5), 0.0), (Graph(3, [(0, 1), (1, 2)]), 0.5), (ring(6), 3 / 5)],
)
def test_consensus_follows_from_the_spectral_gap(graph: Graph, consensus: float) -> None:
    """(largest - second smallest) / (largest + second smallest) eigenvalue of the Laplacian; rings: 2 - 2 cos."""
    assert graph.consensus == pytest.approx(consensus, abs=1e-9)
    mixing = np.eye(graph.size) - graph.share * graph.laplacian
    around = mixing - 1 / graph.size
    assert np.abs(np.linalg.eigvalsh(around)).max() == pytest.approx(consensus, abs=1e-9)


def test_pairs_and_matchings_are_the_same_for_everyone_and_meet_their_probabilities() -> None:
    for meeting in range(1, 20):
        pairs = RandomPairs(7).graph(meeting).edges
        assert pairs == RandomPairs(7).graph(meeting).edges
        assert sorted(x for edge in pairs for x in edge) != list(range(7))  # one worker is idle
        assert len(pairs) == 3
    graph = Graph(5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (1, 3)])
    matchings = Matchings(graph, 0.5)
    assert frozenset().union(*(m.edges for m in matchings.matchings)) == graph.edges
    assert sum(matchings.probabilities) <= 0.5 * len(matchings.matchings) + 1e-9
    active = np.mean([
        [m.edges <= matchings.graph(k).edges for m in matchings.matchings] for k in range(1, 401)
    ], axis=0)  # fmt: skip
    assert active == pytest.approx(matchings.probabilities, abs=0.1)
    assert matchings.consensus < 1
    drawn = [[Matchings(graph, 0.5, seed).graph(k).edges for k in range(1, 21)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert Matchings(graph, 1.0).probabilities == (1.0,) * len(matchings.matchings)


def pull_together(graphs: Any, meetings: int, size: int, **options: Any) -> tuple[list[float], float]:
    """Distance from the mean before each meeting and at the end, without training; and how far the mean went."""
    start = torch.randn(size, 8, 64, generator=torch.Generator().manual_seed(0))

    def work(peers: Any) -> list[Tensor]:
        weight = nn.Parameter(start[peers.rank].clone())
        optimizer = DPSGD(torch.optim.SGD([weight], lr=0.0), graph=graphs, group=peers, **options)
        seen = [weight.detach().clone()]
        for _ in range(meetings):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            seen.append(weight.detach().clone())
        return seen

    weights = torch.stack([torch.stack(seen) for seen in simulate(size, work)]).double()
    mean = weights.mean(dim=0)
    away = (weights - mean).square().sum(dim=(0, 2, 3)).sqrt().tolist()
    return away, float((mean[-1] - mean[0]).abs().max())


@pytest.mark.parametrize("graph", [ring(6), Graph(4, [(0, 1), (1, 2), (2, 3)]), complete(3)])
def test_gossip_contracts_as_its_graph_says_and_keeps_the_mean(graph: Graph) -> None:
    away, moved = pull_together(graph, 14, graph.size)
    for before, after in pairwise(away):
        assert after <= graph.consensus * before + 1e-5 * away[0]
    if graph.consensus > 0:
        assert away[14] / away[10] == pytest.approx(graph.consensus**4, rel=0.1)  # only the slowest direction is left
    assert moved < 1e-5


def test_matchings_contract_in_the_mean_as_predicted() -> None:
    matchings = Matchings(ring(6), 0.5)
    away, moved = pull_together(matchings, 16, 6)
    assert (away[16] / away[0]) ** (1 / 16) <= matchings.consensus + 0.05
    assert moved < 1e-5


@pytest.mark.parametrize("message", ["bf16", "8bit", "4bit"])
def test_rounded_gossip_keeps_the_mean(message: str) -> None:
    away, moved = pull_together("ring", 12, 4, message=message, min_size=0)
    assert moved < 1e-5
    assert away[-1] < 0.35 * away[0]


# ---------------------------------------------------------------- the core


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


def test_a_mean_at_every_step_is_synchronous_sgd() -> None:
    def work(peers: Any) -> nn.Module:
        model = workers.build()
        workers.train(model, LocalSGD(sgd(model.parameters()), every=1, group=peers), peers.rank, 0, 5)
        return model

    found, model = simulate(4, work), workers.build()
    optimizer = sgd(model.parameters())
    for step in range(5):
        optimizer.zero_grad()
        for rank in range(4):
            x = workers.batch(rank, step)
            (nn.functional.mse_loss(model(x), x[:, :4].sin()) / 4).backward()
        optimizer.step()
    for own, expected in zip(found[0].parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", workers.CASES)
def test_bits_agree_and_resume(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    def whole(peers: Any) -> dict[str, Tensor]:
        return workers.run(name, peers, peers.rank, 6, dtype)

    def resumed(peers: Any) -> dict[str, Tensor]:
        def made() -> tuple[nn.Module, Any]:
            model = workers.build(dtype)
            inside = halfulp.AdamW(model.named_parameters(), lr=1e-2, state="8bit", min_size=0)
            return model, workers.CASES[name](inside, peers)

        model, optimizer = made()
        workers.train(model, optimizer, peers.rank, 0, 4)
        file = tmp_path / f"{peers.rank}.pt"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        saved = torch.load(file, weights_only=True)
        model, optimizer = made()
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        workers.train(model, optimizer, peers.rank, 4, 2)
        return {n: p.detach().clone() for n, p in model.named_parameters()}

    first, second = simulate(4, whole), simulate(4, resumed)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a[n], b[n]) for n in a)
    agree = [all(torch.equal(first[0][n], other[n]) for n in other) for other in first[1:]]
    assert all(agree) == (name in workers.COMMON)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    out = tmp_path_factory.mktemp("workers")
    torchrun("workers", 4, out)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(4)]


def test_processes_have_the_bits_of_threads(processes: list[dict[str, dict[str, Tensor]]]) -> None:
    for name in workers.CASES:
        expected = simulate(4, lambda peers, name=name: workers.run(name, peers, peers.rank))  # type: ignore[misc]
        for found, wanted in zip(processes, expected, strict=True):
            assert all(torch.equal(found[name][n], wanted[n]) for n in wanted), name


@pytest.mark.parametrize("name", workers.SHARDED)
def test_a_worker_of_two_processes_has_the_bits_of_one(
    name: str, processes: list[dict[str, dict[str, Tensor]]]
) -> None:
    """Two workers of two processes each, FSDP2 or DDP inside, against two threads."""
    expected = simulate(2, lambda peers: workers.run_inside(name, workers.build(), peers, peers.rank))
    for rank, found in enumerate(processes):
        for n, wanted in expected[rank // 2].items():
            assert torch.equal(found[f"sharded {name}"][n], wanted), (rank, n)
            assert torch.equal(found[f"replicated {name}"][n], wanted), (rank, n)


def test_the_plain_mean_is_torchs_periodic_averager(processes: list[dict[str, dict[str, Tensor]]]) -> None:
    """Its first average follows the second step (``warmup_steps=1``), then every second one."""

    def work(peers: Any) -> nn.Module:
        model = workers.build()
        optimizer = LocalSGD(sgd(model.parameters()), every=lambda steps: steps in (2, 4, 6), group=peers)
        workers.train(model, optimizer, peers.rank, 0, 6)
        return model

    for model, found in zip(simulate(4, work), processes, strict=True):
        for name, own in model.named_parameters():
            torch.testing.assert_close(own, found["averager"][name], rtol=1e-6, atol=1e-7)


def test_eight_bits_train_as_thirty_two_and_send_a_quarter() -> None:
    def work(message: str) -> list[tuple[float, int]]:
        def one(peers: Any) -> tuple[float, int]:
            model = workers.build()
            optimizer = LocalSGD(sgd(model.parameters()), every=4, message=message, group=peers, **workers.SMALL)
            losses = workers.train(model, optimizer, peers.rank, 0, 60)
            return sum(losses[-10:]) / 10, optimizer.sent_bytes

        return simulate(4, one)

    full, low = work("fp32"), work("8bit")
    assert low[0][0] == pytest.approx(full[0][0], rel=0.02)
    assert low[0][1] < 0.45 * full[0][1]  # including the headers and scales of these small tensors


# ---------------------------------------------------------------- what is refused


def test_what_a_worker_cannot_do_is_said() -> None:
    def made(**options: Any) -> Any:
        return LocalSGD(sgd(workers.build().parameters()), **{"group": Alone(), **options})

    with pytest.raises(ValueError, match="every is a number of steps"):
        made(every=0)
    with pytest.raises(ValueError, match="leave graph= out"):
        made(graph="ring")
    with pytest.raises(ValueError, match="unknown state format"):
        made(message="9bit")
    with pytest.raises(TypeError, match="save its state_dict"):
        copy.deepcopy(made())
    with pytest.raises(RuntimeError, match="init_process_group"):
        made(group=None)
    with pytest.raises(ValueError, match="two different workers"):
        Graph(3, [(0, 3)])
    with pytest.raises(ValueError, match="3 workers, the process group 4"):
        as_graphs(ring(3), 4)
    with pytest.raises(ValueError, match="connected graph"):
        Matchings(Graph(4, [(0, 1), (2, 3)]))


@pytest.mark.parametrize(
    ("differ", "error", "match"),
    [
        ("arguments", ValueError, r"workers \[2\] have another method, other arguments"),
        ("weights", ValueError, r"workers \[2\] have other common weights, or other dtypes, than worker 0"),
        ("nan", FloatingPointError, r"weights of workers \[2\] are not finite at meeting 1"),
        ("ends", WorkerLostError, "another worker ended"),
    ],
)
def test_workers_that_do_not_fit_are_found_by_all(differ: str, error: type[Exception], match: str) -> None:
    def work(peers: Any) -> Exception | None:
        odd, model = peers.rank == 2, workers.build()
        before = copy.deepcopy(model.state_dict())
        if odd and differ == "weights":
            before["0.weight"] += 1e-3
            model.load_state_dict(before)
        try:
            inside = torch.optim.SGD(model.parameters(), lr=0.0)
            optimizer = LocalSGD(inside, every=1, message="8bit", seed=int(odd and differ == "arguments"), group=peers)
            if odd and differ == "ends":
                raise KeyboardInterrupt
            if odd and differ == "nan":
                next(model.parameters()).data[0, 0] = float("nan")
            workers.train(model, optimizer, peers.rank, 0, 1)
        except KeyboardInterrupt:
            raise
        except Exception as found:
            if differ != "arguments":
                assert optimizer.meetings == 0
            same = all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
            assert same or (odd and differ == "nan")
            return found
        return None

    if differ == "ends":
        with pytest.raises(KeyboardInterrupt):
            simulate(4, work)
        return
    for found in simulate(4, work):
        assert isinstance(found, error)
        assert re.search(match, str(found)), found


def test_a_checkpoint_of_another_worker_is_refused() -> None:
    def work(peers: Any) -> dict[str, Any]:
        return LocalSGD(sgd(workers.build().parameters()), message="8bit", group=peers).state_dict()

    saved = simulate(2, work)

    def load(peers: Any) -> None:
        optimizer = LocalSGD(sgd(workers.build().parameters()), message="8bit", group=peers)
        with pytest.raises(ValueError, match="loads the checkpoint that it saved"):
            optimizer.load_state_dict(saved[1 - peers.rank])
        optimizer.load_state_dict(saved[peers.rank])

    simulate(2, load)
    with pytest.raises(ValueError, match="start as many"):
        LocalSGD(sgd(workers.build().parameters()), message="8bit", group=Alone()).load_state_dict(saved[0])


def test_accelerate_takes_it_like_any_other_optimizer() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = workers.build()
    optimizer = LocalSGD(sgd(model.parameters()), every=2, message="8bit", group=Alone())
    data = torch.utils.data.DataLoader(torch.randn(64, 8), batch_size=8)
    model, prepared, data = accelerator.prepare(model, optimizer, data)
    for x in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(x).square().mean())
            prepared.step()
            prepared.zero_grad()
    assert (optimizer.steps, optimizer.meetings) == (4, 2)
    assert "workers" in prepared.state_dict()
