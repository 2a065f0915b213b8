"""The tensors that an average follows when its model changes, and the reads that a streaming swap serves."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from halfulp.averaging import BEMA, EMA, LAWA, ElasticReset, PostHocEMA, Teacher
from support.wrapped import Wrapper


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(30, 64), nn.Linear(64, 64), nn.Linear(64, 64))


def fill(model, value):
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)


def replaced(model):
    model.load_state_dict({k: torch.ones_like(v) for k, v in model.state_dict().items()}, assign=True)


def resized(model):
    model[0] = nn.Embedding(50, 64)


def pruned(model):
    prune.l1_unstructured(model[1], "weight", 0.0)


def added(model):
    model.append(nn.Linear(64, 8))


def removed(model):
    del model[2]


def tied(model):
    model[2].weight = model[1].weight


def frozen(model):
    model[1].requires_grad_(False)


def parametrized(model):
    parametrizations.orthogonal(model[1])


CHANGES = {
    replaced: (None, 0), resized: ("changed shape", 1), pruned: (None, 0), added: (None, 2), removed: ("dropped", 0),
    tied: ("dropped", 0), frozen: (None, 0), parametrized: (None, 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", [EMA, BEMA, LAWA, ElasticReset])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_average_follows_the_model(change, kind, caplog):
    warning, began = CHANGES[change]
    model = net()
    options = {"every": 1, "size": 2} if kind is LAWA else {"update_every": 1} if kind is BEMA else {"decay": 0.5}
    average = kind(model, state="fp32", **options)
    average.update()
    change(model)
    for _ in range(40):
        fill(model, 1.0)
        average.update()
    parameters = {id(p) for p in model.parameters()}
    assert {id(t) for t in average.live.values()} == parameters
    assert sum(step > 0 for step in average.began.values()) == began
    assert (warning in caplog.text) if warning else not [r for r in caplog.records if r.levelno >= 30]
    for name, tensor in average.named_parameters():
        if kind is not BEMA:  # BEMA adds a share of the distance moved
            torch.testing.assert_close(tensor, torch.ones_like(tensor), msg=name)
    fill(model, 3.0)
    state = average.averaged_state_dict()
    assert set(state) == set(model.state_dict())
    with average.swap():
        inside = {n: t.clone() for n, t in model.state_dict().items()}
    for name, tensor in state.items():
        assert torch.equal(tensor, inside[name]), name
    assert all(bool((p == 3).all()) for p in model.parameters())
    other = kind(model, state="fp32", **options)
    other.load_state_dict(average.state_dict())
    assert set(other.live) == set(average.live)


NOW = {
    EMA: {"decay": 0.0}, ElasticReset: {"decay": 0.0}, BEMA: {"ema_power": 0.0, "bias_power": None, "update_every": 1},
    LAWA: {"size": 1, "every": 1},
}  # fmt: skip
"""Options with which an average is the weights of its last update."""


@pytest.mark.parametrize("kind", NOW)
def test_an_update_from_another_model_is_of_that_model_alone(kind):
    """A pre-trained or unwrapped model may be given once; the next update is of the average's own model again."""
    model, other = net(), net()
    fill(model, 1.0)
    fill(other, 2.0)
    average = kind(model, state="fp32", **NOW[kind])
    for given, wanted in ((None, 1.0), (other, 2.0), (None, 1.0), (model, 1.0), (other, 2.0), (model, 1.0)):
        average.update(given)
        assert {name: float(t.mean()) for name, t in average.named_parameters()} == dict.fromkeys(average.live, wanted)


def test_reading_before_the_next_update_says_that_the_model_changed(caplog):
    model = net()
    average = EMA(model, 0.5, state="fp32")
    fill(model, 1.0)
    resized(model)
    state = average.averaged_state_dict()
    assert torch.equal(state["0.weight"], model[0].weight)
    assert "0.weight has changed since" in caplog.text


def test_frozen_weights_are_followed_when_they_are_unfrozen():
    model = net()
    model[0].requires_grad_(False)
    average, everything = EMA(model, 0.5), EMA(model, 0.5, frozen="average")
    assert average.left_out == {"0.weight": "frozen"}
    assert not everything.left_out
    assert "0.weight" not in {row.parameter for row in average.memory().rows}
    saved = copy.deepcopy(average.state_dict())
    model[0].requires_grad_(True)
    average.update()
    assert average.began == dict.fromkeys(average.live, 0)
    assert not average.left_out
    late = EMA(model, 0.5)  # built when everything is trained, loaded with an earlier save
    late.load_state_dict(saved)
    assert late.left_out == {"0.weight": "frozen"}
    late.update()
    assert torch.equal(late.value("0.weight"), average.value("0.weight"))
    model[0].requires_grad_(False)
    early = EMA(model, 0.5)  # built when it is frozen, loaded with a save that averages it
    early.load_state_dict(average.state_dict())
    assert torch.equal(early.value("0.weight"), average.value("0.weight"))
    with pytest.raises(ValueError, match="frozen='average'"):
        EMA(model.requires_grad_(False))


def test_resumed_streams_are_those_of_the_model_whatever_was_unfrozen_when():
    runs = []
    for resumed in (False, True):
        model = net()
        model[1].requires_grad_(False)
        average = EMA(model, 0.9, state="8bit", min_size=0)
        for step in range(8):
            with torch.no_grad():
                for k, p in enumerate(model.parameters()):
                    p.add_(0.01 * (k + step))
            if step == 3:
                model[1].requires_grad_(True)
            average.update()
            if resumed and step == 5:
                state = copy.deepcopy(average.state_dict())
                average = EMA(model, 0.9, state="8bit", min_size=0)
                average.load_state_dict(state)
        runs.append({n: average.value(n) for n in average.live})
    assert all(torch.equal(value, runs[1][n]) for n, value in runs[0].items())


def test_post_hoc_says_that_snapshots_are_of_another_model():
    model = net()
    tracked = PostHocEMA(model, every=1)
    tracked.update()
    added(model)
    tracked.update()
    with pytest.raises(ValueError, match="of other tensors"):
        tracked.reconstruct(0.1)


class Mine(nn.Module):
    """A model that has an attribute by the name of a wrapper's."""

    def __init__(self):
        super().__init__()
        self.module, self.weight = nn.Linear(8, 8, bias=False), nn.Parameter(torch.ones(8, 8))


def test_names_that_look_like_those_of_wrappers():
    model = Mine()
    average = EMA(model, 0.5, state="fp32")
    assert set(average.live) == {"weight", "module.weight"}
    assert set(average.averaged_state_dict()) == set(model.state_dict())
    compiled = torch.compile(model, backend="eager")
    assert set(EMA(compiled, 0.5).live) == {"weight", "module.weight"}
    assert set(EMA(compiled, 0.5).averaged_state_dict()) == set(model.state_dict())


BAD = {
    "meta": (lambda: nn.Linear(4, 4, device="meta"), "meta device"),
    "lazy": (lambda: nn.LazyLinear(4), "not initialized"),
    "float64": (lambda: nn.Linear(4, 4, dtype=torch.float64), r"torch\.float64"),
    "frozen": (lambda: nn.Linear(4, 4).requires_grad_(False), "frozen"),
}


@pytest.mark.parametrize("case", BAD)
def test_tensors_that_cannot_be_followed_are_named(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        EMA(make())


@pytest.mark.parametrize("cast", [torch.float64, "meta"])
def test_a_model_that_becomes_something_else_is_refused(cast):
    model = nn.Linear(8, 8)
    average = EMA(model, 0.5)
    model.to(cast)
    with pytest.raises(ValueError, match="now"):
        average.update()


def test_the_negative_bit_is_resolved():
    z = torch.complex(torch.zeros(64, 64), torch.ones(64, 64))
    live = {"w": z.conj().imag}
    assert live["w"].is_neg()
    average = EMA(live, 0.5, state="fp32")
    average.update()
    assert bool((average.value("w") == -1).all())
    with average.swap():
        assert bool((live["w"] == -1).all())


def test_weights_that_share_memory_come_back():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight.data = model[0].weight.data
    average = EMA(model, 0.5, state="fp32")
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    average.update()
    before = model[0].weight.clone()
    with average.swap():
        assert not torch.equal(model[0].weight, before)
    assert torch.equal(model[0].weight, before)


# -------------------------------------------------------------------- modules with special ways of reading weights


class Reads(nn.Module):
    """Reads the weight of a child without calling it."""

    def __init__(self):
        super().__init__()
        self.child = nn.Linear(64, 64)

    def forward(self, x):
        return nn.functional.linear(x, self.child.weight.t(), self.child.bias)


MODULES = {
    "linear": lambda: nn.Linear(64, 64),
    "attention": lambda: nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True),
    "lstm": lambda: nn.LSTM(64, 64, 2, batch_first=True),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(64, 64)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(64, 64)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(64, 64)),
    "parent": Reads,
    "tied": lambda: net_tied(),
}


def net_tied():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    return model


def out(model, x):
    y = model(x)
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("case", MODULES)
def test_every_read_is_of_the_average(case):
    torch.manual_seed(0)
    model = MODULES[case]().eval()
    average, teacher = EMA(model, 0.5, state="fp32"), Teacher(model, 0.5, state="fp32").eval()
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        average.update()
        teacher.update()
        live = out(model, x)
        with average.swap():
            wanted = out(model, x)
        with average.swap(keep="stream"):
            found = out(model, x)
        assert torch.equal(found, wanted)
        assert not torch.equal(wanted, live)
        assert torch.equal(out(teacher, x), wanted)
        assert torch.equal(out(model, x), live)


def test_a_stream_that_cannot_serve_every_read_is_refused():
    held = nn.Linear(8, 8)
    held.also = [held.weight]
    compiled = torch.compile(nn.Linear(8, 8), backend="eager")
    for model, message in ((held, "also holds weight as 'also'"), (compiled, "compiled")):
        average = EMA(model, 0.5)
        with pytest.raises(ValueError, match=message):
            average.swap_in(keep="stream")
        assert not average.swapped


def test_casts_that_autocast_remembers_are_forgotten():
    model = nn.Linear(64, 64)
    average = EMA(model, 0.5, state="fp32")
    x = torch.randn(2, 64)
    fill(model, 1.0)
    average.update()
    with torch.autocast("cpu", torch.bfloat16):
        live = model(x)
        with average.swap():
            inside = model(x)
        again = model(x)
    assert torch.equal(live, again)
    assert not torch.equal(live, inside)


def quantized(module, trainable):
    """As torchao's quantize_ does: the weight keeps its shape and dtype, but its memory is not its values."""
    module.weight = nn.Parameter(Wrapper(module.weight.detach().clone()), requires_grad=trainable)


@pytest.mark.parametrize("cls", [EMA, BEMA, LAWA, ElasticReset])
@pytest.mark.parametrize("then", ["update", "swap", "read"])
def test_frozen_weights_that_were_quantized_are_averaged_no_more(cls, then, caplog):
    model = net()
    average = cls(model)
    average.update()
    quantized(model[1], trainable=False)
    if then == "update":
        average.update()
    elif then == "swap":
        with average.swap():
            pass
    else:
        average.averaged_state_dict()
    average.update()
    assert "1.weight" not in dict(average.named_parameters())
    assert "['1.weight'] to average any more" in caplog.text


@pytest.mark.parametrize("cls", [EMA, BEMA, LAWA, ElasticReset])
def test_trainable_weights_that_were_quantized_are_refused(cls):
    model = net()
    average = cls(model)
    average.update()
    before = {name: value.clone() for name, value in average.named_parameters()}
    quantized(model[1], trainable=True)
    with pytest.raises(ValueError, match=r"1\.weight cannot be averaged: it is a .*, whose memory is not its values"):
        average.update()
    assert all(torch.equal(average.value(name), value) for name, value in before.items() if name != "1.weight")
