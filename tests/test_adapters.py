"""Foreign optimizers: fakes that store states as the libraries do, and the libraries themselves if installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import halfulp
from halfulp.libraries import adapter_for
from halfulp.monitor import StallMonitor
from halfulp.numbers.formats import dynamic_levels

DYNAMIC = {signed: torch.tensor(dynamic_levels(signed)) for signed in (True, False)}
LINEAR4 = torch.linspace(0, 1, 17)[1:]
DYNAMIC4 = torch.tensor([-0.8875, -0.6625, -0.4375, -0.2125, -0.0775, -0.0325, -0.0055, 0.0, 0.0055, 0.0325, 0.0775,
                         0.2125, 0.4375, 0.6625, 0.8875, 1.0])  # fmt: skip


def nearest(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return torch.searchsorted((levels[1:] + levels[:-1]) / 2, x.contiguous()).to(torch.uint8)


def blocks(x: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.flatten().reshape(-1, size)
    scale = x.abs().amax(-1)
    return x / scale.clamp_min(1e-12).unsqueeze(-1), scale


def wrapper(name: str) -> type:
    """A tensor subclass that holds other tensors, as torchao's states are."""

    def new(cls: type, shape: torch.Size) -> torch.Tensor:
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16)

    def dispatch(cls: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)

    return type(
        name,
        (torch.Tensor,),
        {"__new__": new, "__init__": lambda self, shape: None, "__torch_dispatch__": classmethod(dispatch)},
    )


class FakeAdam(torch.optim.Optimizer):
    """Adam's moments in fp32, encoded by `pack` into the entries and decoded by `unpack` before the next step."""

    def __init__(self, params: Any, block: int = 256, **extra: Any) -> None:
        super().__init__(params, {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, **extra})
        self.block = block

    def moments(self, step: int) -> tuple[float, float]:
        return 0.9, 0.99

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                self.start(p, state)
            m, v = self.unpack(p, state)
            self.count(state)
            b1, b2 = self.moments(self.now(state))
            g = p.grad.float()
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            p.sub_((1e-3 * m / (v.sqrt() + 1e-8)).to(p.dtype))
            self.pack(p, state, m, v)

    def start(self, p: torch.Tensor, state: dict[Any, Any]) -> None:
        state["step"] = 0
        self.pack(p, state, torch.zeros(p.shape), torch.zeros(p.shape))

    def count(self, state: dict[Any, Any]) -> None:
        state["step"] += 1

    def now(self, state: dict[Any, Any]) -> int:
        return int(state["step"])

    def pack(self, p: torch.Tensor, state: dict[Any, Any], m: torch.Tensor, v: torch.Tensor) -> None:
        raise NotImplementedError

    def unpack(self, p: torch.Tensor, state: dict[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError


class FakeBitsAndBytes(FakeAdam):
    optimizer_name = "adam"

    def pack(self, p, state, m, v):  # type: ignore[no-untyped-def]
        for which, x, signed in (("1", m, True), ("2", v, False)):
            y, scale = blocks(x, 256)
            state[f"state{which}"] = nearest(y, DYNAMIC[signed]).reshape(p.shape)
            state[f"absmax{which}"], state[f"qmap{which}"] = scale, DYNAMIC[signed]

    def unpack(self, p, state):  # type: ignore[no-untyped-def]
        return tuple(
            (state[f"qmap{w}"][state[f"state{w}"].long()].reshape(-1, 256) * state[f"absmax{w}"][:, None]).reshape(
                p.shape
            )
            for w in "12"
        )


class FakeTorchAO8(FakeAdam):
    kind, size = "OptimState8bit", 256

    def levels(self, signed: bool) -> torch.Tensor:
        return DYNAMIC[signed]

    def pack(self, p, state, m, v):  # type: ignore[no-untyped-def]
        for key, x, signed in (("exp_avg", m, True), ("exp_avg_sq", v, False)):
            held = wrapper(self.kind)(p.shape)
            y, held.scale = blocks(x, self.size)
            held.signed, held.block_size, held.qmap = signed, self.size, self.levels(signed)
            held.codes = self.encode(y, held.qmap).reshape(p.shape if self.kind != "OptimState4bit" else (-1,))
            state[key] = held

    def encode(self, y: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return nearest(y, levels)

    def decode(self, held: Any) -> torch.Tensor:
        return held.qmap[held.codes.long()].reshape(-1, self.size)

    def unpack(self, p, state):  # type: ignore[no-untyped-def]
        return tuple(
            (self.decode(state[k]) * state[k].scale[:, None]).reshape(p.shape) for k in ("exp_avg", "exp_avg_sq")
        )


class FakeTorchAO4(FakeTorchAO8):
    kind, size = "OptimState4bit", 128

    def levels(self, signed: bool) -> torch.Tensor:
        return DYNAMIC4 if signed else LINEAR4

    def encode(self, y: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        codes = nearest(y, levels).flatten()
        return codes[0::2] << 4 | codes[1::2]

    def decode(self, held: Any) -> torch.Tensor:
        return held.qmap[torch.stack([held.codes >> 4, held.codes & 15], -1).long()].reshape(-1, self.size)


class FakeTorchAOFp8(FakeTorchAO8):
    kind = "OptimStateFp8"

    def encode(self, y: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return y.to(torch.float8_e4m3fn)

    def decode(self, held: Any) -> torch.Tensor:
        return held.codes.float().reshape(-1, self.size)


class FakeOptimi(FakeAdam):
    def __init__(self, params: Any) -> None:
        super().__init__(params, beta1=0.9, beta2=0.99, kahan_sum=True, decouple_wd=True, step=0)
        for group in self.param_groups:
            del group["betas"]

    def moments(self, step: int) -> tuple[float, float]:
        return tuple((b**step - b) / (b**step - 1) for b in (0.9, 0.99))  # type: ignore[return-value]

    def count(self, state: dict[Any, Any]) -> None:
        self.param_groups[0]["step"] += 1

    def now(self, state: dict[Any, Any]) -> int:
        return int(self.param_groups[0]["step"])

    def start(self, p: torch.Tensor, state: dict[Any, Any]) -> None:
        self.pack(p, state, torch.zeros(p.shape), torch.zeros(p.shape))

    def pack(self, p, state, m, v):  # type: ignore[no-untyped-def]
        state.update(exp_avg=m.bfloat16(), exp_avg_sq=v.bfloat16(), kahan_comp=torch.zeros_like(p))

    def unpack(self, p, state):  # type: ignore[no-untyped-def]
        return state["exp_avg"].float(), state["exp_avg_sq"].float()


FakeOptimi.__name__ = "AdamW"


class FakeHeavyBall(FakeOptimi):
    def __init__(self, params: Any) -> None:
        FakeAdam.__init__(self, params, step=0)

    def pack(self, p, state, m, v):  # type: ignore[no-untyped-def]
        inner = state.setdefault(0, {})
        inner |= {
            "step": torch.tensor(self.param_groups[0]["step"]),
            "is_initialized": {0},
            "update_by_adam_exp_avg_0": m.bfloat16(),
            "update_by_adam_exp_avg_sq_0": v.bfloat16(),
        }

    def unpack(self, p, state):  # type: ignore[no-untyped-def]
        return state[0]["update_by_adam_exp_avg_0"].float(), state[0]["update_by_adam_exp_avg_sq_0"].float()


class FakeFlash(FakeAdam):
    def pack(self, p, state, m, v):  # type: ignore[no-untyped-def]
        y, scale = blocks(m, 32)
        state["exp_avg::quantized"] = torch.round(127 * 2 * y / (1 + y.abs())).to(torch.int8).reshape(p.shape)
        state["exp_avg::scales"] = scale.half()
        y, scale = blocks(v.sqrt(), 32)
        state["exp_avg_sq::quantized"] = torch.round(255 * y).to(torch.uint8).reshape(p.shape)
        state["exp_avg_sq::scales"] = scale.half()

    def unpack(self, p, state):  # type: ignore[no-untyped-def]
        y = state["exp_avg::quantized"].float().reshape(-1, 32) / 127
        m = y / (2 - y.abs()) * state["exp_avg::scales"].float()[:, None]
        root = (
            state["exp_avg_sq::quantized"].float().reshape(-1, 32) / 255 * state["exp_avg_sq::scales"].float()[:, None]
        )
        return m.reshape(p.shape), root.square().reshape(p.shape)


FAKES = {
    "bitsandbytes": FakeBitsAndBytes,
    "torchao": FakeTorchAO8,
    "torchao 4 bit": FakeTorchAO4,
    "torchao fp8": FakeTorchAOFp8,
    "optimi": FakeOptimi,
    "heavyball": FakeHeavyBall,
    "pytorch-optimizer": FakeFlash,
}


UNKNOWN = {"optimi": "compensated", "heavyball": "not computed here"}
"""Why the monitor cannot say how far 16-bit weights should have moved."""


def drive(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()


@pytest.mark.parametrize("name", FAKES)
def test_fakes_are_recognised_and_decoded(name: str) -> None:
    weight = torch.nn.Parameter(torch.randn(32, 64, dtype=torch.bfloat16))
    optimizer = FAKES[name]([weight])
    with StallMonitor(optimizer, sample=10**6, every=1) as watch:
        drive(optimizer, weight, 30)
        table = watch.table()
        rows = {r.slot: r for r in table.rows}
        readers = {r.slot: r for w in watch._watches.values() for r in w.binding.readers}
        assert adapter_for(optimizer, optimizer.state[weight]).name == name.split()[0]
        assert set(rows) == {"exp_avg", "exp_avg_sq"}
        for slot, value in zip(
            ("exp_avg", "exp_avg_sq"), optimizer.unpack(weight, optimizer.state[weight]), strict=True
        ):
            read = readers[slot].read()[0]
            assert torch.allclose(read, value.flatten().double(), rtol=1e-6, atol=0.0)
    for row in rows.values():
        assert row.format != "float32"
        assert 0.0 < row.stalled < 1.0
        assert row.ratio == pytest.approx(1.0, abs=0.1)  # 30 steps: little has been lost yet
    if name in UNKNOWN:
        assert all(row.weights_moved is None for row in rows.values())
        assert UNKNOWN[name] in str(table).partition("not watched: movement of 16-bit weights")[2]
    else:
        assert all(row.weights_moved is not None for row in rows.values())
        assert "movement of 16-bit weights" not in str(table)


@pytest.mark.parametrize("name", FAKES)
def test_the_verdict_names_a_cure(name: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(32, 64, dtype=torch.bfloat16))
    optimizer = FAKES[name]([weight])
    with StallMonitor(optimizer, every=1) as watch:
        drive(optimizer, weight, 5)
        row = next(r for r in watch.table().rows if r.slot == "exp_avg_sq")
    worse = halfulp.monitor.Row(**{**vars(row), "ratio": 29.4, "stalled": 0.96})
    assert worse.verdict.startswith(
        f"exp_avg_sq is {row.format}, {row.rounding}: 96% of updates stall, v is 29x too large; use "
    )


def test_a_state_without_a_law_is_skipped_with_its_reason() -> None:
    class Strange(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 1.0})

        def step(self, closure: Any = None) -> None:
            for p in self.param_groups[0]["params"]:
                self.state[p]["memory"] = p.detach().clone()

    weight = torch.nn.Parameter(torch.zeros(8, 8))
    with StallMonitor(Strange([weight]), every=1) as watch:
        drive(watch.optimizer, weight, 2)
    assert "Strange gives it no law" in watch.skipped["parameter 0", "memory"]
    assert not watch.table().rows


REAL = {
    "torchao 8 bit": ("torchao.optim", lambda m, p: m.AdamW8bit(p), ("dynamic8", "udynamic8")),
    "torchao 4 bit": ("torchao.optim", lambda m, p: m.AdamW4bit(p), ("dynamic4", "linear4 (1/16 to 1)")),
    "torchao fp8": ("torchao.optim", lambda m, p: m.AdamWFp8(p), ("float8_e4m3fn", "float8_e4m3fn")),
    "bitsandbytes": ("bitsandbytes", lambda m, p: m.optim.AdamW8bit(p), ("dynamic8", "udynamic8")),
    "bitsandbytes paged": ("bitsandbytes", lambda m, p: m.optim.PagedAdamW8bit(p), ("dynamic8", "udynamic8")),
    "optimi": ("optimi", lambda m, p: m.AdamW(p, lr=1e-3), ("bfloat16", "bfloat16")),
    "pytorch-optimizer flash": ("pytorch_optimizer", lambda m, p: m.FlashAdamW(p), ("companded8", "companded8")),
    "pytorch-optimizer": ("pytorch_optimizer", lambda m, p: m.StableAdamW(p), ("bfloat16", "bfloat16")),
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore")
def test_real_peers_are_watched_without_changing_a_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, make, formats = REAL[name]
    peer = pytest.importorskip(module, exc_type=ImportError)
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)  # the same arithmetic; the compiler takes minutes

    def run(watching: bool) -> tuple[torch.nn.Parameter, StallMonitor | None]:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(64, 128).bfloat16())
        optimizer = make(peer, [weight])
        watch = StallMonitor(optimizer, every=1) if watching else None
        drive(optimizer, weight, 25)
        return weight, watch

    (watched, watch), (plain, _) = run(True), run(False)
    assert torch.equal(watched, plain)
    assert watch is not None
    rows = {r.slot: r for r in watch.table().rows}
    assert (rows["exp_avg"].format, rows["exp_avg_sq"].format) == formats
    for row in rows.values():
        assert row.ratio == pytest.approx(1.0, abs=0.05)
