"""Workers in situations that training loops bring about: wrong arguments, unequal workers, changed parameters."""

from __future__ import annotations

import copy
import re
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import halfulp
from halfulp.workers import (
    ALDSGD,
    DPPF,
    DPSGD,
    METHODS,
    MGRAWA,
    Alone,
    AsyncEASGD,
    AsyncMGRAWA,
    Centre,
    DiLoCo,
    FedAdam,
    FedAvg,
    Graph,
    LocalSGD,
    Matchings,
    OneBitAdam,
    RandomPairs,
    SlowMo,
    WorkerLostError,
    inverse_mean_valley,
    message_error,
    ring,
    simulate,
)  # fmt: skip
from halfulp.workers.graphs import as_graphs
from halfulp.workers.pieces import put
from halfulp.workers.service import HEAD
from support import workers
from support.workers import served

Change = Callable[[nn.Sequential, Any, int], None]
"""What happens to (model, optimizer, worker) between two meetings."""


def sgd(params: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr)


def alone(method: Any = LocalSGD, **options: Any) -> Any:
    return method(sgd(workers.build().parameters()), group=Alone(), **options)


def outcome(
    make: Callable[[torch.optim.Optimizer, Any], Any], *,
    model: Callable[[int], nn.Sequential] = lambda rank: workers.build(), lr: Callable[[int], float] = lambda rank: 0.1,
    change: Change | None = None, size: int = 3,
) -> Any:  # fmt: skip
    """Return whether the workers' weights are equal after four steps, or raise what a worker raises."""

    def work(peers: Any) -> list[Tensor]:
        own = model(peers.rank)
        optimizer = make(sgd(own.parameters(), lr(peers.rank)), peers)
        workers.train(own, optimizer, peers.rank, 0, 1)
        if change is not None:
            change(own, optimizer, peers.rank)
        workers.train(own, optimizer, peers.rank, 1, 3)
        return [p.detach().clone() for p in own.parameters()]

    found = simulate(size, work)
    return all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("made", "error", "match"),
    [
        (lambda: alone(timeout=0), ValueError, "number of seconds above 0; got 0"),
        (lambda: alone(timeout="10"), ValueError, "number of seconds above 0; got '10'"),
        (lambda: alone(timeout=float("nan")), ValueError, "number of seconds above 0"),
        (lambda: OneBitAdam(workers.build().parameters(), group=Alone(), timeout=-1), ValueError, "seconds above 0"),
        (lambda: OneBitAdam(workers.build().parameters(), group=Alone(), freeze_step=1.5), ValueError, "got 1.5"),
        (lambda: alone(centre="bf16"), ValueError, "keeps no common weights with these messages: leave centre= out"),
        (lambda: alone(DPSGD, centre="8bit"), ValueError, "leave centre= out"),
        (lambda: alone(message="8bit", state="8bit"), ValueError, "no outer optimizer: leave state= out"),
        (lambda: alone(pull=0.5), TypeError, r"LocalSGD does not take \['pull'\]"),
        (lambda: DPPF(sgd(workers.build().parameters()), 0.1, 0.2, 0.3, group=Alone()), TypeError, "3 arguments by"),
        (lambda: alone(DiLoCo, outer=lambda params: 3), ValueError, "it returned 3"),
        (lambda: alone(DiLoCo, outer=lambda params: sgd(params[:1])), ValueError, "over all of the parameters"),
        (lambda: alone(MGRAWA, pull=2.0), ValueError, "pull must be at most 1, got 2.0"),
        (lambda: alone(MGRAWA, between=5.0), ValueError, "between must be at most 1, got 5.0"),
        (lambda: alone(FedAdam, tau=0.0), ValueError, "tau is above 0"),
        (lambda: alone(FedAvg).report(samples=-1), ValueError, "samples since the last meeting, got -1"),
        (lambda: alone(FedAvg).report(samples=float("inf")), ValueError, "samples since the last meeting, got inf"),
        (lambda: LocalSGD(sgd([torch.ones(2)]), group=Alone()), ValueError, "no parameter of the optimizer takes grad"),
        (lambda: Graph(0, []), ValueError, "at least 1; got 0"),
        (lambda: Graph(2.5, []), ValueError, "at least 1; got 2.5"),  # type: ignore[arg-type]
        (lambda: Graph(3, [(0, 1.0)]), ValueError, "two different workers"),  # type: ignore[list-item]
        (lambda: Matchings(Graph(1, [])), ValueError, "two workers or more; got 1 workers"),
        (lambda: as_graphs(Graph(4, []), 4), ValueError, "separate parts, which never agree"),
        (lambda: as_graphs([Graph(4, [(0, 1)]), Graph(4, [(2, 3)])], 4), ValueError, "separate parts"),
        (lambda: simulate(0, lambda peers: 1), ValueError, "at least 1; got 0"),
        (lambda: message_error(workers=0), ValueError, "at least 1; got 0"),
        (lambda: inverse_mean_valley(lambda w: 1.0, [{"a": torch.ones(1)}, {"b": torch.ones(1)}]), ValueError, "same"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(made: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        made()


def test_graphs_that_join_all_workers_by_turns_are_taken() -> None:
    turns = [Graph(4, [(0, 1), (2, 3)]), Graph(4, [(1, 2)])]
    assert [as_graphs(turns, 4).graph(meeting) for meeting in (1, 2, 3)] == [*turns, turns[0]]
    assert as_graphs(Graph(1, []), 1).graph(1).edges == frozenset()


# ---------------------------------------------------------------- unequal workers


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (lambda o, g: LocalSGD(o, every=2 + (g.rank == 1), group=g), {}, r"workers \[1\] have another method"),
        (
            lambda o, g: LocalSGD(o, every=lambda step: step % (1 + (g.rank == 1)) == 0, group=g), {},
            r"meeting 1: it is due after different numbers of steps, \[1, 2, 1\]",
        ),
        (lambda o, g: LocalSGD(o, message="bf16" if g.rank else "8bit", group=g), {}, r"workers \[1, 2\] have another"),
        (lambda o, g: DiLoCo(o, centre="bf16" if g.rank else None, min_size=0, group=g), {}, "have another method"),
        (lambda o, g: DiLoCo(o, state="bf16" if g.rank else None, min_size=0, group=g), {}, "have another method"),
        (lambda o, g: DiLoCo(o, outer=lambda p: sgd(p, 0.5 + g.rank), group=g), {}, "have another method"),
        (lambda o, g: DPSGD(o, graph=ring(3) if g.rank else Graph(3, [(0, 1), (1, 2)]), group=g), {}, "another method"),
        (lambda o, g: DPSGD(o, graph=RandomPairs(3, seed=g.rank), group=g), {}, "have another method"),
        (
            lambda o, g: LocalSGD(o, group=g),
            {"model": lambda rank: workers.build(torch.bfloat16 if rank == 1 else torch.float32)},
            r"workers \[1\] have another method, other arguments, or parameters of other names, shapes and dtypes",
        ),
        (
            lambda o, g: SlowMo(o, every=1, group=g), {"lr": lambda rank: 0.1 * (1 + rank)},
            r"meeting 2: workers \[[12, ]+\] have other common weights",
        ),
        (
            lambda o, g: LocalSGD(o, every=1, group=g),
            {"change": lambda model, optimizer, rank: model.to(torch.bfloat16 if rank == 1 else torch.float32)},
            r"meeting 2: workers \[1\] have other common weights, or other dtypes",
        ),
    ],
)  # fmt: skip
def test_unequal_workers_are_found(make: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        outcome(make, **options)


# ---------------------------------------------------------------- parameters that change between meetings


def replaced(model: nn.Sequential, optimizer: Any, rank: int) -> None:
    old, model[0].weight = model[0].weight, nn.Parameter(model[0].weight.detach().clone())
    (group,) = optimizer.param_groups
    group["params"] = [model[0].weight if p is old else p for p in group["params"]]


def unfrozen(model: nn.Sequential, optimizer: Any, rank: int) -> None:
    model[0].weight.requires_grad_(True)


def added(model: nn.Sequential, optimizer: Any, rank: int) -> None:
    optimizer.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


def removed(model: nn.Sequential, optimizer: Any, rank: int) -> None:
    optimizer.param_groups[0]["params"].pop()


def half_frozen(rank: int) -> nn.Sequential:
    model = workers.build()
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("method", [LocalSGD, DiLoCo], ids=lambda m: m.__name__)
@pytest.mark.parametrize(
    "change",
    [
        replaced,
        lambda model, optimizer, rank: model[0].weight.requires_grad_(False),
        lambda model, optimizer, rank: model.to(torch.bfloat16),
        lambda model, optimizer, rank: setattr(model[0].weight, "data", model[0].weight.data.t().contiguous().t()),
    ],
    ids=["replaced", "frozen", "cast", "laid out"],
)
def test_changed_parameters_are_followed(method: Any, change: Change) -> None:
    assert outcome(lambda o, g: method(o, every=1, group=g), change=change)


@pytest.mark.parametrize(
    ("change", "model"),
    [(unfrozen, half_frozen), (added, lambda rank: workers.build()), (removed, lambda rank: workers.build())],
)
def test_other_parameters_are_refused(change: Change, model: Callable[[int], nn.Sequential]) -> None:
    with pytest.raises(ValueError, match="added, removed, unfrozen, reshaped or moved"):
        outcome(lambda o, g: LocalSGD(o, every=1, group=g), model=model, change=change)


def test_groups_are_added_before_workers_meet() -> None:
    store = dist.HashStore()
    Centre({"w": torch.ones(2)}, store)
    for optimizer in (alone(), AsyncEASGD(sgd([("w", nn.Parameter(torch.ones(2)))]), store)):
        with pytest.raises(ValueError, match="add groups to that optimizer first"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


@pytest.mark.parametrize(("dtype", "message"), [(torch.float32, "8bit"), (torch.bfloat16, "fp32")], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_the_layout_of_weights_in_memory_does_not_matter(method: Any, dtype: torch.dtype, message: str) -> None:
    shapes = ((16, 40), (4, 3, 5, 5), (7,), (0, 4))

    def run(lay_out: Callable[[Tensor], Tensor]) -> list[list[Tensor]]:
        def work(peers: Any) -> list[Tensor]:
            generator = torch.Generator().manual_seed(peers.rank)
            params = [nn.Parameter(lay_out(torch.ones(shape, dtype=dtype))) for shape in shapes]
            inside = halfulp.SGD(params, lr=0.1, min_size=0)
            optimizer = method(inside, every=1, message=message, min_size=0, group=peers)
            for _ in range(2):
                for param in params:
                    param.grad = lay_out(torch.randn(param.shape, generator=generator).to(dtype))
                optimizer.report(loss=1.0 + peers.rank)
                optimizer.step()
            return [param.detach() for param in params]

        return simulate(3, work)

    plain, turned = run(lambda x: x), run(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1))
    assert all(torch.equal(a, b) for one, two in zip(plain, turned, strict=True) for a, b in zip(one, two, strict=True))


# ---------------------------------------------------------------- reports


@pytest.mark.parametrize(("reports", "wrong"), [([1.0, None], "[0, 1, 2]"), ([1.0, float("nan")], "[0, 1, 2]")])
def test_a_loss_counts_for_one_meeting(reports: list[float | None], wrong: str) -> None:
    def work(peers: Any) -> None:
        optimizer = ALDSGD(sgd(workers.build().parameters(), 0.0), every=1, group=peers)
        for loss in reports:
            optimizer.report(loss=loss)
            optimizer.step()

    with pytest.raises(ValueError, match=f"workers {re.escape(wrong)} reported none since the last meeting, or NaN"):
        simulate(3, work)


def test_a_client_without_samples_does_not_count() -> None:
    def work(peers: Any) -> float:
        weight = nn.Parameter(torch.zeros(2))
        optimizer = FedAvg(sgd([weight], 1.0), every=1, group=peers)
        weight.grad = torch.full((2,), -1.0 - peers.rank)
        optimizer.report(samples=10 * peers.rank)
        optimizer.step()
        return float(weight[0].detach())

    assert simulate(2, work) == [2.0, 2.0]


# ---------------------------------------------------------------- checkpoints


def content(x: Any) -> str:
    """Return a state dictionary as text, without the order of its keys."""
    return str([(k, content(v)) for k, v in sorted(x.items(), key=str)] if isinstance(x, dict) else x)


def optimizer_of(method: Any = DiLoCo, lr: float = 0.1, **options: Any) -> Any:
    return method(sgd(workers.build().parameters(), lr), every=1, group=Alone(), **options)


@pytest.mark.parametrize(
    ("saved", "here", "match"),
    [
        ({"method": LocalSGD}, {}, "the checkpoint has method 'LocalSGD'"),
        ({"outer": lambda p: halfulp.AdamW(p)}, {}, "outer optimizer has groups of"),
        ({"outer": lambda p: torch.optim.AdamW(p)}, {"outer": lambda p: sgd(p)}, "outer optimizer has groups of"),
        ({"method": LocalSGD, "message": "8bit"}, {"method": LocalSGD}, "give the same centre="),
    ],
)
def test_checkpoints_of_other_methods_change_nothing(saved: Any, here: Any, match: str) -> None:
    optimizer = optimizer_of(**here)
    before = content(optimizer.state_dict())
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(optimizer_of(lr=0.7, **saved).state_dict())
    assert content(optimizer.state_dict()) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norms", None), ("norms", torch.zeros(3)), ("steps", "a"), ("steps", -1), ("reference", None),
        ("reference", {}), ("pull", 3), ("pull", {"a": 1}), ("outer", 3), ("outer", {"a": 1}), ("rank", 1),
    ],
)  # fmt: skip
def test_damaged_checkpoints_change_nothing(key: str, value: Any) -> None:
    optimizer, other = optimizer_of(), optimizer_of(lr=0.7)
    for made in (optimizer, other):
        for param in made.trained.values():
            param.grad = torch.ones_like(param)
        made.step()
    saved, before = copy.deepcopy(other.state_dict()), content(optimizer.state_dict())
    saved["workers"][key] = value
    with pytest.raises(ValueError, match=r"checkpoint|state_dict|number of steps|averages"):
        optimizer.load_state_dict(saved)
    assert content(optimizer.state_dict()) == before


def test_an_inner_checkpoint_that_does_not_fit_leaves_the_outer_optimizer_as_it_was() -> None:
    optimizer = DiLoCo(halfulp.SGD(workers.build().parameters(), lr=0.1), every=1, group=Alone())
    before = content(optimizer.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    saved["workers"]["outer"]["param_groups"][0]["lr"] = 0.123
    del saved["param_groups"]
    with pytest.raises(ValueError, match="param_groups"):
        optimizer.load_state_dict(saved)
    assert content(optimizer.state_dict()) == before


def test_a_worker_that_resumes_alone_is_found() -> None:
    def work(peers: Any) -> None:
        model = workers.build()
        optimizer = LocalSGD(sgd(model.parameters()), every=1, group=peers)
        workers.train(model, optimizer, peers.rank, 0, 1)
        again = LocalSGD(sgd(model.parameters()), every=1, group=peers)
        if peers.rank == 1:
            again.load_state_dict(optimizer.state_dict())
        workers.train(model, again, peers.rank, 1, 1)

    with pytest.raises(ValueError, match=r"meeting [12]: workers \[1\] are at another meeting than worker 0"):
        simulate(2, work)


# ---------------------------------------------------------------- 1-bit Adam


def other_rate(optimizer: Any, step: int) -> None:
    optimizer.param_groups[0]["lr"] = 0.7


def ahead(optimizer: Any, step: int) -> None:
    optimizer.steps = 1


def not_finite(optimizer: Any, step: int) -> None:
    optimizer.param_groups[0]["params"][0].grad[0, 0] = float("nan")


def other_warm_up(optimizer: Any, step: int) -> None:
    optimizer.param_groups[1]["freeze_step"] = 2


def grown(optimizer: Any, step: int) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


@pytest.mark.parametrize(
    ("change", "at", "error", "match"),
    [
        (other_rate, 0, ValueError, r"workers \[1\] have another method, other arguments"),
        (ahead, 0, ValueError, r"workers \[1\] have another method, other arguments"),
        (not_finite, 0, FloatingPointError, r"workers \[1\] are not finite at step 1"),
        (not_finite, 2, FloatingPointError, r"workers \[1\] are not finite at step 3"),
        (other_warm_up, 2, ValueError, r"one for all groups, since all parameters are exchanged alike; got \[1, 2\]"),
        (grown, 0, ValueError, "added, removed, replaced, frozen or unfrozen"),
    ],
)
def test_one_bit_adam_finds_workers_that_do_not_fit(
    change: Callable[[Any, int], None], at: int, error: type[Exception], match: str
) -> None:
    """The signs are sent from step 2 on. Nothing is changed by a step that fails."""

    def work(peers: Any) -> None:
        model = workers.build()
        groups = [{"params": layer.parameters()} for layer in model if any(True for _ in layer.parameters())]
        optimizer = OneBitAdam(groups, lr=0.1, freeze_step=1, group=peers)
        for step in range(at + 1):
            for param in model.parameters():
                param.grad = torch.ones_like(param)
            before = content(optimizer.state_dict()), content(model.state_dict())
            if step == at and (peers.rank == 1 or change in (grown, other_warm_up)):
                change(optimizer, step)
                before = content(optimizer.state_dict()), content(model.state_dict())
            try:
                optimizer.step()
            except (ValueError, FloatingPointError):
                assert (content(optimizer.state_dict()), content(model.state_dict())) == before
                raise

    with pytest.raises(error, match=match):
        simulate(3, work)


# ---------------------------------------------------------------- asynchronous


def visitor(store: Any, made: Any = AsyncEASGD, **options: Any) -> tuple[nn.Parameter, Any]:
    weight = nn.Parameter(torch.ones(8, 64))
    return weight, made(sgd([("w", weight)], 1.0), store, **{"every": 1, **options})


@pytest.mark.parametrize(
    ("made", "error", "match"),
    [
        (lambda: served(staleness=1.5), ValueError, "number of pushes"),
        (lambda: served(seed="a"), ValueError, "seed must be an integer"),
        (lambda: Centre({}, dist.HashStore()), ValueError, "one tensor or more"),
        (lambda: Centre({"w": torch.tensor([float("nan")])}, dist.HashStore()), ValueError, r"finite; got \['w'\]"),
        (lambda: Centre({"w": torch.ones(2)}, None), TypeError, "a store of torch.distributed"),  # type: ignore[arg-type]
        (lambda: visitor(None), TypeError, "a store of torch.distributed"),
        (lambda: visitor(served()[0], every=1.5), ValueError, "number of steps, at least 1; got 1.5"),
        (lambda: visitor(served()[0], pull="a"), ValueError, "pull must be a number"),
        (lambda: visitor(served()[0], timeout=0), ValueError, "seconds above 0"),
        (lambda: visitor(served()[0], AsyncMGRAWA)[1].step(), ValueError, "there are none after the step"),
        (lambda: served()[1].load_state_dict({}), ValueError, "center's checkpoint is damaged"),
        (lambda: served()[1].load_state_dict({"version": -3, "centre": {}}), ValueError, "version|averages"),
    ],
)
def test_wrong_arguments_of_asynchronous_workers_are_refused(
    made: Callable[[], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        made()


def test_a_visitor_follows_replaced_parameters() -> None:
    store, centre = served()
    weight, optimizer = visitor(store, pull=0.5)
    other = optimizer.param_groups[0]["params"][0] = nn.Parameter(weight.detach().clone())
    other.grad = torch.full_like(other, -2.0)
    optimizer.step()
    centre.take_in()
    assert float(centre.values.read("w")[0, 0]) == float(other[0, 0].detach()) == 1.0


def test_a_centre_that_is_not_served_any_more_is_told_of() -> None:
    store, centre = served()
    weight, optimizer = visitor(store)
    centre.serve(idle=0.01)
    weight.grad = torch.ones_like(weight)
    with pytest.raises(WorkerLostError, match="not served any more"):
        optimizer.step()
    service = threading.Thread(target=centre.serve)  # it can be served again
    service.start()
    while store.check(["ended"]):
        time.sleep(0.001)
    optimizer.step()
    optimizer.leave()
    service.join(30)
    assert centre.version == 1


def test_the_service_waits_for_workers_that_come_later() -> None:
    store, centre = served()
    service = threading.Thread(target=centre.serve, kwargs={"workers": 2})
    service.start()
    for alive in (True, False):
        weight, optimizer = visitor(store)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.leave()
        service.join(0.3 if alive else 30.0)
        assert service.is_alive() == alive
    assert centre.version == 2


def test_leaving_twice_counts_once() -> None:
    store, _ = served()
    _, optimizer = visitor(store)
    optimizer.leave()
    optimizer.leave()
    assert store.add("left", 0) == 1
    with pytest.raises(RuntimeError, match="has left the center"):
        optimizer.visit()


@pytest.mark.parametrize(
    "sent",
    [
        b"zz", HEAD.pack(1, 0, 0.5, 0) + b"abc", HEAD.pack(1, 0, 0.5, -7), HEAD.pack(1, 0, 0.5, 1 << 60),
        HEAD.pack(1, 0, float("nan"), 0) + bytes(8 * 64 * 4),
        HEAD.pack(1, 0, 0.5, 1) + struct.pack("<d", float("inf")) + bytes(8 * 64 * 4),
    ],
)  # fmt: skip
def test_a_damaged_push_does_not_stop_the_centre(sent: bytes) -> None:
    store, centre = served()
    put(store, f"push/{store.add('pushes', 1)}", sent)
    weight, optimizer = visitor(store)
    weight.grad = torch.full_like(weight, -4.0)
    optimizer.step()
    assert centre.take_in() == 2
    assert (centre.version, centre.refused) == (1, 1)
    assert float(centre.values.read("w")[0, 0]) == 1.0
