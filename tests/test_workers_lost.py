"""Workers that die, come late, or come back; asynchronous workers; and 1-bit Adam."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import halfulp
from halfulp.workers import Alone, AsyncEASGD, AsyncLGRAWA, AsyncMGRAWA, Centre, OneBitAdam, WorkerLostError, simulate
from halfulp.workers.one_bit import pack_signs, unpack_signs
from support import workers
from support.distributed import killed
from support.processes import environment
from support.workers import served

# ---------------------------------------------------------------- killed


def start(*arguments: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "support.distributed.killed", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_worker_is_told_of_and_the_last_meeting_is_where_all_go_on(tmp_path: Path) -> None:
    runs = [start("sync", tmp_path, rank, 3, 1) for rank in range(3)]
    assert [run.wait(240) for run in runs] == [0, -9, 0]
    for rank in (0, 2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert f"worker {rank}: exchange" in found["error"]
        assert "Start all workers again from their checkpoints of the last meeting" in found["error"]
        assert found["waited"] < 20
        assert found["meetings"] == 2
    again = [start("sync", tmp_path, rank, 3, -1) for rank in range(3)]
    assert [run.wait(240) for run in again] == [0, 0, 0]

    def straight(peers: Any) -> dict[str, Tensor]:
        model, optimizer = killed.made(peers)
        workers.train(model, optimizer, peers.rank, 0, killed.STEPS)
        return model.state_dict()

    for rank, expected in enumerate(simulate(3, straight)):
        assert json.loads((tmp_path / f"{rank}.json").read_text())["began"] == 6
        model = torch.load(tmp_path / f"{rank}.pt", weights_only=True)["model"]
        assert all(torch.equal(x, model[name]) for name, x in expected.items())


@pytest.mark.slow
def test_a_late_worker_is_told_of_after_the_time_out(tmp_path: Path) -> None:
    runs = [start("late", tmp_path, rank) for rank in range(2)]
    assert [run.wait(120) for run in runs] == [0, 0]
    for rank in range(2):  # the late one finds the other gone
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert f"exchange 2 with workers [{1 - rank}]" in found["error"]
        assert found["waited"] < 4


@pytest.mark.slow
def test_asynchronous_workers_go_on_without_one_that_is_killed(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = [start("serve", tmp_path, port), *(start("visit", tmp_path, port, number, 1) for number in range(3))]
    assert [run.wait(240) for run in runs] == [0, 0, -9, 0]
    found = [json.loads((tmp_path / f"visit{number}.json").read_text()) for number in (0, 2)]
    assert [x["visits"] for x in found] == [50, 50]
    assert "the process that serves the center does not answer" in found[0]["lost"]
    saved = torch.load(tmp_path / "centre.pt", weights_only=True)
    assert 100 <= saved["version"] <= 112
    model, before = workers.build(), loss_of(workers.build())
    model.load_state_dict(saved["weights"])
    alone = workers.build()
    workers.train(alone, torch.optim.SGD(alone.parameters(), lr=0.1), 0, 0, 200)
    assert loss_of(model) < loss_of(alone) + 0.1 * (before - loss_of(alone))


def loss_of(model: nn.Module) -> float:
    x = torch.cat([workers.batch(9, step) for step in range(20)])
    return float(nn.functional.mse_loss(model(x), x[:, :4].sin()).detach())


# ---------------------------------------------------------------- asynchronous


def worker(store: dist.Store, made: Any = AsyncEASGD, **options: Any) -> tuple[nn.Parameter, Any]:
    weight = nn.Parameter(torch.full((8, 64), 9.0))
    return weight, made(torch.optim.SGD([("w", weight)], lr=1.0), store, **{"every": 1, **options})


def step(weight: nn.Parameter, optimizer: Any, by: float) -> None:
    weight.grad = torch.full_like(weight, -by)
    optimizer.step()


def test_worker_and_centre_go_towards_each_other() -> None:
    store, centre = served()
    weight, optimizer = worker(store, pull=0.25)
    assert float(weight.detach().abs().max()) == 0.0  # it starts from the centre
    step(weight, optimizer, 8.0)
    assert centre.take_in() == 1
    assert float(weight[0, 0].detach()) == 6.0
    assert float(centre.values.read("w")[0, 0]) == 2.0
    late, _ = worker(store)
    assert float(late[0, 0].detach()) == 2.0  # so does one that comes later or comes back
    assert centre.take_in() == 0


@pytest.mark.parametrize("message", ["bf16", "8bit", "4bit"])
def test_pushes_in_low_bits_bring_the_centre_to_the_workers(message: str) -> None:
    store, centre = served(message=message, min_size=0)
    weights = [worker(store, pull=0.3) for _ in range(3)]
    target = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(24):
        for weight, optimizer in weights:
            weight.grad = 0.4 * (weight.detach() - target)
            optimizer.step()
        centre.take_in()
    assert float((centre.values.read("w") - target).abs().max()) < 0.02


def test_stale_pushes_are_refused_and_numbers_that_are_not_used_are_given_up() -> None:
    store, centre = served(staleness=2)
    weight, optimizer = worker(store, pull=0.5)
    others = [worker(store, pull=0.5) for _ in range(3)]
    optimizer._store.add("pushes", 1)  # reserved by a worker that was killed before it sent
    for other, its in others:
        step(other, its, 1.0)
    version, start = optimizer._centre()
    assert version == 0
    optimizer._centre = lambda: (version, start)  # as it sees the centre when the others' pushes come first
    step(weight, optimizer, 64.0)
    assert centre.take_in(patience=0.0) == 4
    assert (centre.version, centre.refused) == (3, 1)
    assert float(centre.values.read("w").max()) == 1.5  # half of each distance, and nothing of the stale one
    assert centre._missing == {}


def test_flat_workers_count_more_at_the_centre() -> None:
    store, centre = served()
    seen = []
    for by in (1.0, 3.0):
        weight, optimizer = worker(store, AsyncMGRAWA, pull=0.5)
        step(weight, optimizer, by)
        centre.take_in()
        seen.append(float(centre.values.read("w")[0, 0]))
    assert seen[0] == pytest.approx(1.0)  # the only worker
    assert seen[1] == pytest.approx(1.0 + 0.25 * 3.0)  # a third of the other's weight; it started from 1


@pytest.mark.parametrize("made", [AsyncMGRAWA, AsyncLGRAWA])
def test_shares_are_of_the_model_or_of_each_tensor(made: Any) -> None:
    """Gradients of 1 and 2 in one worker, of 3 and 2 in the other."""
    store = dist.HashStore()
    centre = Centre({"a": torch.zeros(8, 64), "b": torch.zeros(8, 64)}, store)
    size = (8 * 64) ** 0.5
    norms = torch.tensor([[1.0, 2.0], [3.0, 2.0]], dtype=torch.float64) * size
    expected = torch.zeros(2, dtype=torch.float64)
    for number, gradients in enumerate(([1.0, 2.0], [3.0, 2.0]), 1):
        weights = {name: nn.Parameter(torch.full((8, 64), 9.0)) for name in ("a", "b")}
        optimizer = made(torch.optim.SGD(weights.items(), lr=1.0), store, pull=0.5, every=1)
        for weight, by in zip(weights.values(), gradients, strict=True):
            weight.grad = torch.full_like(weight, -by)
        optimizer.step()
        centre.take_in()
        inverse = 1 / (norms[:number] if made is AsyncLGRAWA else norms[:number].sum(dim=1, keepdim=True))
        expected += inverse[-1] / inverse.sum(dim=0) * torch.tensor(gradients)
        for name, value in zip(("a", "b"), expected.tolist(), strict=True):
            assert float(centre.values.read(name)[0, 0]) == pytest.approx(value, rel=1e-6)


def test_the_service_ends_when_all_have_left() -> None:
    store, centre = served()
    thread = threading.Thread(target=centre.serve)
    thread.start()
    weight, optimizer = worker(store)
    for _ in range(5):
        step(weight, optimizer, 1.0)
    optimizer.leave()
    thread.join(30)
    assert not thread.is_alive()
    assert centre.version == 5
    began = time.monotonic()
    centre.serve(idle=0.2)  # nobody comes
    assert time.monotonic() - began < 5


def test_a_centre_is_saved_and_goes_on() -> None:
    store, centre = served(centre="bf16", min_size=0)
    weight, optimizer = worker(store)
    step(weight, optimizer, 1.0)
    centre.take_in()
    other, again = served(centre="bf16", min_size=0)
    again.load_state_dict(centre.state_dict())
    assert again.version == 1
    assert torch.equal(worker(other)[0], again.values.read("w"))
    with pytest.raises(ValueError, match="another model"):
        again.load_state_dict({"version": 1, "centre": {}})


def test_what_does_not_fit_the_centre_is_refused() -> None:
    store, _ = served()
    with pytest.raises(ValueError, match="name them alike"):
        AsyncEASGD(torch.optim.SGD([nn.Parameter(torch.zeros(8, 64))], lr=1.0), store)
    with pytest.raises(ValueError, match="pull is a share"):
        worker(store, pull=0.0)
    with pytest.raises(ValueError, match="by name"):
        served(message=halfulp.get_format("bf16"))
    with pytest.raises(WorkerLostError, match="never started"):
        worker(dist.HashStore(), timeout=0.1)
    weight, optimizer = worker(store)
    weight.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="nothing was pushed"):
        step(weight, optimizer, 1.0)


# ---------------------------------------------------------------- 1-bit Adam


@pytest.mark.parametrize("shape", [(3,), (8,), (5, 7), ()])
def test_signs_are_bits(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    packed = pack_signs(x)
    assert packed.numel() == (x.numel() + 7) // 8
    assert torch.equal(unpack_signs(packed, x.shape), torch.where(x >= 0, 1.0, -1.0))
    assert torch.equal(unpack_signs(pack_signs(torch.zeros(3)), torch.Size([3])), torch.ones(3))


def test_what_one_bit_leaves_out_is_sent_later() -> None:
    """Sum of what was sent = sum of the momenta - last error; vectors of one magnitude are sent exactly."""
    weight = nn.Parameter(torch.zeros(40, 3))
    optimizer = OneBitAdam([weight], lr=0.0, betas=(0.0, 0.9), freeze_step=1, state="fp32", group=Alone())
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    sent, inputs = torch.zeros(40, 3), torch.zeros(40, 3)
    for _ in range(20):
        weight.grad = torch.randn(40, 3)
        inputs += weight.grad
        optimizer.step()
        sent += optimizer.state_tensor(weight, "exp_avg")
    left = optimizer.left_out["own"].read("0") + optimizer.left_out["mean"].read("0")
    torch.testing.assert_close(sent, inputs - left, atol=1e-4, rtol=1e-4)
    assert float(left.abs().max()) > 0.1


def test_a_vector_of_one_magnitude_is_sent_exactly() -> None:
    """Its momentum has the decay of its group. A step that only creates states (as DCP makes) does not count."""
    signs, decays = torch.where(torch.randn(40, 3) > 0, 0.5, -0.5), (0.0, 0.5)
    weights = [nn.Parameter(torch.zeros(40, 3)) for _ in decays]
    groups = [{"params": [w], "betas": (beta, 0.9)} for w, beta in zip(weights, decays, strict=True)]
    optimizer = OneBitAdam(groups, freeze_step=1, state="fp32", group=Alone())
    for lr, grad in ((0.0, torch.zeros(40, 3)), (0.1, torch.zeros(40, 3)), (0.1, signs)):
        for weight, group in zip(weights, optimizer.param_groups, strict=True):
            weight.grad, group["lr"] = grad, lr
        optimizer.step()
    assert optimizer.steps == 2
    for weight, beta in zip(weights, decays, strict=True):
        assert torch.equal(optimizer.state_tensor(weight, "exp_avg"), signs * (1 - beta))
    assert not any(bool(store.read(name).any()) for store in optimizer.left_out.values() for name in "01")
    with pytest.raises(ValueError, match="number of warm-up steps, at least 1"):
        OneBitAdam(weights, freeze_step=0, group=Alone())


def train_adam(peers: Any, steps: int, freeze: int, saved: Any = None, **options: Any) -> Any:
    model = workers.build()
    optimizer = OneBitAdam(model.parameters(), lr=0.01, freeze_step=freeze, group=peers, **options)
    first = 0
    if saved is not None:
        model.load_state_dict(saved[peers.rank][0])
        optimizer.load_state_dict(saved[peers.rank][1])
        first = optimizer.steps
    losses = workers.train(model, optimizer, peers.rank, first, steps - first)
    return model.state_dict(), optimizer.state_dict(), losses, optimizer.sent_bytes


def test_one_bit_adam_is_adam_without_bias_correction_at_first() -> None:
    found = simulate(4, lambda peers: train_adam(peers, 3, 100, state="fp32"))
    model = workers.build()
    m = [torch.zeros_like(p) for p in model.parameters()]
    v = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(3):
        model.zero_grad()
        for rank in range(4):
            x = workers.batch(rank, step)
            (nn.functional.mse_loss(model(x), x[:, :4].sin()) / 4).backward()
        for p, a, b in zip(model.parameters(), m, v, strict=True):
            a.lerp_(p.grad, 0.1)
            b.lerp_(p.grad.square(), 0.001)
            p.data -= 0.01 * a / (b.sqrt() + 1e-8)
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(found[0][0][name], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("errors", ["fp32", "8bit"])
def test_one_bit_adam_trains_agrees_and_resumes(errors: str) -> None:
    options = {"state": "8bit", "min_size": 0, "errors": errors}
    whole = simulate(4, lambda peers: train_adam(peers, 24, 10, **options))
    for other in whole[1:]:
        assert all(torch.equal(x, other[0][name]) for name, x in whole[0][0].items())
    assert sum(whole[0][2][-4:]) < 0.9 * sum(whole[0][2][8:12])
    half = simulate(4, lambda peers: train_adam(peers, 16, 10, **options))
    again = simulate(4, lambda peers: train_adam(peers, 24, 10, half, **options))
    assert all(torch.equal(x, again[2][0][name]) for name, x in whole[2][0].items())
    frozen = (whole[0][3] - half[0][3]) / 8  # bytes a step
    assert frozen < 0.06 * (half[0][3] - 6 * frozen) / 10
