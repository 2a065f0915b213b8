"""Random programs of user actions on an optimizer, against a slow model that keeps each parameter's states separately.

Every action gives the bits of the rule and the quantizer, or raises a clear error and changes nothing. A short sample
always runs; ``HALFULP_OPTIMIZER_PROGRAMS=200`` runs 200.
"""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp
from halfulp.numbers.single import all_fp32
from support.seeds import FIRST, many

PROGRAMS = many("HALFULP_OPTIMIZER_PROGRAMS", 24)
ACTIONS = (
    "train", "train", "train", "train", "freeze", "unfreeze", "replace", "resize", "save", "load", "deepcopy", "pickle",
    "cast", "resume", "add_group", "remove_group", "schedule", "fail", "reset", "clear", "foreign",
)  # fmt: skip
STATES = ("fp32", "8bit", "int8", "bf16", {"exp_avg": "8bit", "exp_avg_sq": "fp32"})
NAMES = ("AdamW", "Lion", "SGD")
Known = dict[str, Any]


class Program:
    """An optimizer, and beside it what each parameter and its states must be."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.cls = getattr(halfulp, self.random.choice(NAMES))
        state = self.random.choice(STATES[:4] if self.cls is not halfulp.AdamW else STATES)
        self.options: dict[str, Any] = {
            "lr": 0.01, "weight_decay": 0.1, "state": state, "rounding": "nearest", "param_rounding": "nearest",
            "min_size": 0, "block_size": 32, **({"momentum": 0.9} if self.cls is halfulp.SGD else {}),
        }  # fmt: skip
        self.params = [
            nn.Parameter(torch.randn(6, 40)),
            nn.Parameter(torch.randn(50)),
            nn.Parameter(torch.randn(3, 33)),
        ]
        groups = [{"params": self.params[:2]}, {"params": self.params[2:], "weight_decay": 0.0}]
        self.optimizer = self.cls(groups, **self.options)
        self.schedule_: Any = None
        self.values = [p.detach().clone() for p in self.params]
        self.states: list[Known | None] = [None] * len(self.params)
        self.saved: Any = None

    def run(self, length: int = 16) -> None:
        for _ in range(length):
            action = self.random.choice(ACTIONS)
            getattr(self, action)()
            self.check(action)

    def listed(self) -> list[tuple[dict[str, Any], int]]:
        """Group of each parameter, and its number here."""
        places = {p: i for i, p in enumerate(self.params)}
        return [(g, places[p]) for g in self.optimizer.param_groups for p in g["params"]]

    def check(self, action: str) -> None:
        for group, i in self.listed():
            p, known = self.params[i], self.states[i]
            assert torch.equal(p.detach(), self.values[i]), (action, i)
            entries = self.optimizer.state.get(p)
            if known is None:
                assert not entries, (action, i)
                continue
            assert entries["step"] == known["step"], (action, i)
            for slot, _, quantizer in self.optimizer.slot_storage(group, p):
                values, age = known[slot.name]
                assert torch.equal(self.optimizer.state_tensor(p, slot.name), values), (action, i, slot.name)
                assert entries[f"{slot.name}_age"] == age, (action, i, slot.name)
                assert quantizer.bytes(p.shape) == sum(
                    entries[k].numel() * entries[k].itemsize for k in (slot.name, f"{slot.name}_scale") if k in entries
                )

    def expected(self, group: dict[str, Any], i: int, grad: Tensor) -> None:
        """One step of one parameter, by the rule on decoded values."""
        p = self.params[i]
        rule, slots = self.optimizer.active_rule(group, p), self.optimizer.slot_storage(group, p)
        known = self.states[i] or {"step": 0, **{s.name: (torch.zeros(p.shape), 0) for s, _, _ in slots}}
        ages = {"step": known["step"] + 1, **{s.name: known[s.name][1] + 1 for s, _, _ in slots}}
        low = any(not q.format.is_float32 for _, _, q in slots)
        scalars = all_fp32(rule.scalars({**group, "bound_update": group["bound_update"] and low}, ages))
        old = {s.name: known[s.name][0] for s, _, _ in slots}
        new, updated = rule.apply(self.values[i].float(), [grad.float()], old, scalars)
        assert new is not None
        self.values[i] = new.to(p.dtype)
        stored = {s.name: q.dequantize(*q.quantize(updated[s.name]), p.shape).clone() for s, _, q in slots}
        self.states[i] = {"step": ages["step"], **{name: (x, ages[name]) for name, x in stored.items()}}

    def some(self) -> int:
        return self.random.choice([i for _, i in self.listed()])

    # ------------------------------------------------------------ actions

    def train(self) -> None:
        for group, i in self.listed():
            p = self.params[i]
            p.grad = torch.randn(p.shape).to(p.dtype) if p.requires_grad and self.random.random() < 0.8 else None
            if p.grad is not None:
                self.expected(group, i, p.grad)
        self.optimizer.step()

    def fail(self) -> None:
        """An evaluation of the closure ends in an error: nothing was stepped."""

        def closure() -> float:
            for p in self.params:
                p.grad = torch.ones_like(p)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            self.optimizer.step(closure)

    def freeze(self) -> None:
        self.params[self.some()].requires_grad_(False)

    def unfreeze(self) -> None:
        self.params[self.some()].requires_grad_(True)

    def put(self, i: int, new: nn.Parameter) -> None:
        for group in self.optimizer.param_groups:
            group["params"] = [new if p is self.params[i] else p for p in group["params"]]

    def replace(self) -> None:
        """By hand, as modules do that make parameters of their own: its states begin anew."""
        i = self.some()
        new = nn.Parameter(torch.randn_like(self.params[i]))
        self.put(i, new)
        self.params[i], self.values[i], self.states[i] = new, new.detach().clone(), None

    def resize(self) -> None:
        i = self.some()
        old, known = self.params[i], self.states[i]
        count = self.random.randrange(1, 8)
        rows = [self.random.randrange(-1, len(old)) for _ in range(count)]
        if old.ndim == 1:  # the blocks of a vector would change
            return
        new = nn.Parameter(torch.randn(count, *old.shape[1:]).to(old.dtype))
        halfulp.resize_states(self.optimizer, old, new, rows=rows)
        self.params[i], self.values[i] = new, new.detach().clone()
        if known is not None:
            taken = {k: v for k, v in known.items() if k != "step"}
            for name, (values, age) in taken.items():
                fresh = torch.stack([values[r] if r >= 0 else torch.zeros(old.shape[1:]) for r in rows])
                known[name] = (fresh, age)

    def cast(self) -> None:
        dtype = self.random.choice((torch.float32, torch.bfloat16, torch.float16))
        i = self.some()
        self.params[i].data = self.params[i].data.to(dtype)
        self.params[i].grad = None
        self.values[i] = self.values[i].to(dtype)

    def reset(self) -> None:
        i = self.some()
        self.optimizer.reset_state(params=[self.params[i]])
        if (known := self.states[i]) is not None:
            self.states[i] = {k: v if k == "step" else (torch.zeros_like(v[0]), 0) for k, v in known.items()}

    def clear(self) -> None:
        self.optimizer.state.clear()
        self.states = [None] * len(self.params)

    def foreign(self) -> None:
        """A state dictionary of another library is refused, with the way out, and changes nothing."""
        other = torch.optim.AdamW([nn.Parameter(torch.ones_like(self.params[i])) for _, i in self.listed()])
        with pytest.raises(ValueError, match="convert_state_dict"):
            self.optimizer.load_state_dict(other.state_dict())

    def add_group(self) -> None:
        if len(self.optimizer.param_groups) < 4:
            new = nn.Parameter(torch.randn(4, 32))
            self.optimizer.add_param_group({"params": [new], "lr": 0.02})
            self.params.append(new)
            self.values.append(new.detach().clone())
            self.states.append(None)
            self.schedule_ = None

    def remove_group(self) -> None:
        if len(self.optimizer.param_groups) > 1:
            gone = self.optimizer.param_groups.pop(self.random.randrange(len(self.optimizer.param_groups)))
            for p in gone["params"]:
                i = next(i for i, own in enumerate(self.params) if own is p)
                self.optimizer.state.pop(p, None)
                self.states[i] = None
            self.schedule_ = None

    def schedule(self) -> None:
        """A scheduler takes over from another, or goes on."""
        if self.schedule_ is None or self.random.random() < 0.3:
            lrs = torch.optim.lr_scheduler
            made = [lambda o: lrs.ExponentialLR(o, 0.9), lambda o: lrs.OneCycleLR(o, 0.02, total_steps=90)]
            for group in self.optimizer.param_groups:
                group.pop("initial_lr", None)
            self.schedule_ = self.random.choice(made)(self.optimizer)
        self.schedule_.step()

    def structure(self) -> list[tuple[Any, ...]]:
        return [(*(tuple(p.shape) for p in g["params"]),) for g in self.optimizer.param_groups]

    def save(self) -> None:
        rates = [g["lr"] for g in self.optimizer.param_groups]
        known = [self.states[i] for _, i in self.listed()]
        self.saved = copy.deepcopy((self.optimizer.state_dict(), known, self.structure(), rates))

    def load(self) -> None:
        if self.saved is None:
            return
        state_dict, known, structure, rates = copy.deepcopy(self.saved)
        there, here = (list(map(len, shapes)) for shapes in (structure, self.structure()))
        pairs = zip(sum(structure, ()), sum(self.structure(), ()), known, strict=False)
        if there != here or any(a != b for a, b, states in pairs if states is not None):
            with pytest.raises(ValueError, match=r"groups of|expected|entries"):
                self.optimizer.load_state_dict(state_dict)
            return
        self.optimizer.load_state_dict(state_dict)
        for (_, i), states in zip(self.listed(), known, strict=True):
            self.states[i] = states
        assert [g["lr"] for g in self.optimizer.param_groups] == rates
        self.schedule_ = None

    def resume(self) -> None:
        """Another process: new parameters of the same values, a new optimizer, and the state dictionary."""
        groups = [{"params": list(g["params"])} for g in self.optimizer.param_groups]
        fresh = self.cls(groups, **self.options)
        fresh.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        self.optimizer, self.schedule_ = fresh, None

    def deepcopy(self) -> None:
        self.schedule_ = None
        self.params, self.optimizer = copy.deepcopy((self.params, self.optimizer))

    def pickle(self) -> None:
        self.schedule_ = None
        self.params, self.optimizer = pickle.loads(pickle.dumps((self.params, self.optimizer)))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # programs without a step before it
@pytest.mark.parametrize("seed", range(FIRST, FIRST + PROGRAMS))
def test_a_program_leaves_the_exact_bits(seed: int) -> None:
    Program(seed).run()
