"""Random programs of user actions on a model and its average, against a slow model of the expected result.

Every action gives the bits of plain arithmetic or raises a clear error. A short sample always runs;
``HALFULP_AVERAGE_PROGRAMS=200`` runs 200.
"""

import copy
import pickle
import random

import pytest
import torch
from torch import nn

from halfulp.averaging import EMA
from support.seeds import FIRST, many

PROGRAMS = many("HALFULP_AVERAGE_PROGRAMS", 24)
ACTIONS = ("train", "train", "train", "freeze", "unfreeze", "replace", "resize", "save", "load", "swap", "fail",
           "stream", "deepcopy", "pickle", "cast", "resume", "read", "add", "remove")  # fmt: skip


class Program:
    """A model, its fp32 average, and beside them the exact averages in a dictionary."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False))
        for module in self.model:
            module.requires_grad_(self.random.random() < 0.7)
        self.model[0].requires_grad_(True)
        self.average = EMA(self.model, 0.75, state="fp32")
        self.exact = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        self.last = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.saved = None
        self.count = 0

    def params(self):
        return dict(self.model.named_parameters())

    def run(self, length=14):
        for _ in range(length):
            action = self.random.choice(ACTIONS)
            getattr(self, action)()
            self.check(action)

    def module(self):
        return self.model[self.random.randrange(len(self.model))]

    def check(self, action):
        params = self.params()
        self.follow()
        shown = dict(self.average.named_parameters())
        for name, value in self.exact.items():
            if name in params and params[name].shape == value.shape:
                assert torch.equal(shown[name], value.to(params[name].dtype)), (action, name)
            else:
                assert name not in shown, (action, name)  # resized or removed: shown again after the next update
        assert set(shown) <= set(self.exact), action
        state = self.average.averaged_state_dict()
        assert set(state) == set(params)
        for name, value in state.items():
            assert torch.equal(value, shown.get(name, params[name])), (action, name)

    def follow(self):
        """Averages go with their tensors to other names; a name whose tensor is gone keeps its average for the next."""
        places, moved = {id(p): n for n, p in self.params().items()}, {}
        for name, value in self.exact.items():
            if id(self.last.get(name)) in places:
                moved[places[id(self.last[name])]] = value
        for name, value in self.exact.items():
            if id(self.last.get(name)) not in places and name not in moved:
                moved[name] = value
        self.last = {
            **self.last,
            **{n: p for n, p in self.params().items() if id(p) in {id(t) for t in self.last.values()}},
        }
        self.last = {n: t for n, t in self.last.items() if n in moved}
        self.exact = moved

    # ------------------------------------------------------------ actions

    def train(self):
        with torch.no_grad():
            for p in self.params().values():
                if p.requires_grad:
                    p.add_(torch.randn_like(p))
        self.average.update()
        self.count += 1
        self.follow()
        params, weight = self.params(), torch.tensor(0.25)
        followed = {n for n in self.exact if n in params} | {n for n, p in params.items() if p.requires_grad}
        before, self.exact = self.exact, {}
        for name in followed:
            live = params[name].detach().float()
            old = before.get(name)
            old = live if old is None or old.shape != live.shape else old
            self.exact[name] = (old + (live - old) * weight).clone()
        self.last = {n: params[n] for n in self.exact}
        assert self.average.updates == self.count

    def freeze(self):
        self.module().requires_grad_(False)

    def unfreeze(self):
        self.module().requires_grad_(True)

    def replace(self):
        state = {k: torch.randn_like(v) for k, v in self.model.state_dict().items()}
        grad = {n: p.requires_grad for n, p in self.params().items()}
        self.model.load_state_dict(state, assign=True)
        for name, p in self.params().items():
            p.requires_grad_(grad[name])

    def resize(self):
        size = self.random.choice((5, 6, 7))
        self.model[-1] = nn.Linear(6, size, bias=False)

    def add(self):
        if len(self.model) < 5:
            self.model.insert(0, nn.Linear(6, 6)) if self.random.random() < 0.5 else self.model.insert(1, nn.Identity())

    def remove(self):
        if len(self.model) > 3:
            del self.model[0]

    def cast(self):
        self.model.to(self.random.choice((torch.float32, torch.bfloat16, torch.float16)))

    def save(self):
        self.follow()
        self.saved = copy.deepcopy((self.average.state_dict(), self.exact, self.count))

    def load(self):
        if self.saved is None:
            return
        self.follow()
        state, exact, count = copy.deepcopy(self.saved)
        params = self.params()
        stored = {n: self.average.store.state_of(n).shape for n in self.average.store}
        shapes = {n: p.shape for n, p in params.items()} | stored  # the next update notices that the model changed
        fits = all(shapes.get(n) == v.shape for n, v in exact.items())
        unknown = set(self.average.store) - set(exact) - set(state.get("frozen", ()))
        if fits and not unknown:
            self.average.load_state_dict(state)
            self.exact, self.count = exact, count
            self.last = {n: params[n] for n in exact if n in params}
        else:
            before = copy.deepcopy(self.average.state_dict())
            assert self.average.source.tensors().keys() == params.keys()
            with pytest.raises(ValueError, match=r"another model|expected"):
                self.average.load_state_dict(state)
            assert str(before) == str(self.average.state_dict())

    def resume(self):
        trained = [p for p in self.params().values() if p.requires_grad]
        if trained and all(n in self.params() and self.params()[n].shape == v.shape for n, v in self.exact.items()):
            fresh = EMA(self.model, 0.75, state="fp32")
            state = copy.deepcopy(self.average.state_dict())
            if set(fresh.store) - set(self.exact) <= set(state.get("frozen", ())):
                fresh.load_state_dict(state)
                self.average = fresh
                self.last = {n: self.params()[n] for n in self.exact}

    def _inside(self, keep):
        live = {n: p.detach().clone() for n, p in self.params().items()}
        shown = dict(self.average.named_parameters())
        with self.average.swap(keep=keep):
            for name, p in self.params().items():
                assert torch.equal(p, shown.get(name, live[name])), name
            yield
        for name, p in self.params().items():
            assert torch.equal(p, live[name]), name

    def swap(self):
        for _ in self._inside(self.random.choice(("device", "cpu"))):
            with pytest.raises(RuntimeError, match="swapped into"):
                self.average.update()

    def stream(self):
        for _ in self._inside("stream"):
            copied = copy.deepcopy(self.model)
        assert type(copied[0]._parameters) is dict or not list(copied[0].parameters())

    def fail(self):
        live = {n: p.detach().clone() for n, p in self.params().items()}
        keep = self.random.choice(("device", "cpu", "stream"))
        with pytest.raises(ZeroDivisionError), self.average.swap(keep=keep):
            raise ZeroDivisionError
        assert all(torch.equal(p, live[n]) for n, p in self.params().items())

    def read(self):
        self.average.memory()
        assert all(reason == "frozen" or self.exact for reason in self.average.left_out.values())

    def deepcopy(self):
        self.model, self.average, self.last = copy.deepcopy((self.model, self.average, self.last))
        assert self.average.model is self.model

    def pickle(self):
        self.model, self.average, self.last = pickle.loads(pickle.dumps((self.model, self.average, self.last)))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + PROGRAMS))
def test_a_program_leaves_the_exact_bits(seed):
    Program(seed).run()
