"""Drop-ins for torch, ema-pytorch and diffusers, compared with the originals if these are installed."""

import copy
import inspect
import io
import json
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel as TorchAveraged
from torch.optim.swa_utils import update_bn

from halfulp.averaging import AveragedModel, EMAModel, EMAPytorch, Teacher
from support.averages import net, walk


def averaged(cls=AveragedModel, steps=3, **options):
    model = net()
    made = cls(model, **options)
    for step in range(steps):
        walk(model, step, 0.1)
        made.update_parameters(model)
    return model, made


LOADER = [torch.randn(16, 64, generator=torch.Generator().manual_seed(k)) for k in range(3)]


@pytest.mark.parametrize("use_buffers", [False, True])
def test_update_bn_as_of_torch(use_buffers):
    (_, theirs), (_, ours) = (
        averaged(cls, use_buffers=use_buffers, **options)
        for cls, options in ((TorchAveraged, {}), (AveragedModel, {"state": "fp32"}))
    )
    for made in (theirs, ours):
        update_bn(LOADER, made)
        made.eval()
    torch.testing.assert_close(ours(LOADER[0]), theirs(LOADER[0]), rtol=1e-4, atol=1e-5)
    wanted = theirs.state_dict()
    for key, value in ours.state_dict().items():
        if key != "halfulp":
            torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-6)
    again = AveragedModel(net(5), use_buffers=use_buffers, state="fp32")
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again.eval()(LOADER[0]), ours(LOADER[0]))


def kept(made):
    return {n: t.clone() for n, t in made.module.state_dict().items()}


WAYS = {
    "pickle": lambda made: pickle.loads(pickle.dumps(made)),
    "deepcopy": copy.deepcopy,
    "torch.save": lambda made: torch.load(saved(made), weights_only=False),
}


def saved(made):
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("state", ["fp32", "bf16", "8bit"])
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_goes_on_alone(way, state):
    model, made = averaged(state=state)
    before = kept(made)
    twin = WAYS[way](made)
    assert all(torch.equal(t, before[n]) for n, t in kept(twin).items())
    walk(model, 9, 0.1)
    for one in (twin, made):
        assert torch.equal(one.module[0].weight, before["0.weight"])
        one.update_parameters(model)
    assert all(torch.equal(t, kept(made)[n]) for n, t in kept(twin).items())
    x = LOADER[0]
    assert torch.equal(twin.eval()(x), made.eval()(x))


def test_a_copy_of_the_module_is_a_plain_model():
    _, made = averaged(state="8bit")
    plain = copy.deepcopy(made.module)
    assert type(plain[0]._parameters) is dict
    assert torch.equal(plain.eval()(LOADER[0]), made.eval()(LOADER[0]))
    with torch.no_grad():
        plain[0].weight.zero_()
    plain.load_state_dict({n: torch.ones_like(t) for n, t in plain.state_dict().items()})
    assert bool((made.module[0].weight != 1).any())


def test_modules_and_parameters_of_the_average():
    model, made = averaged(state="8bit")
    assert isinstance(made, nn.Module)
    assert made.training
    made.eval()
    assert not made.module[1].training
    assert model.training  # a separate model
    assert [n for n, _ in made.named_parameters()] == [f"module.{n}" for n, _ in model.named_parameters()]
    assert not any(p.requires_grad for p in made.parameters())
    holder = nn.ModuleDict({"ema": made})
    other = nn.ModuleDict({"ema": AveragedModel(net(4), state="8bit")})
    other.load_state_dict(holder.state_dict())
    assert torch.equal(other["ema"].module[0].weight, made.module[0].weight)
    x = LOADER[0].clone().requires_grad_()
    made(x).sum().backward()  # gradients of the input, as with torch's average
    assert bool(x.grad.any())


def test_loading_the_second_model_sets_the_average():
    _, made = averaged(state="fp32")
    made.module.load_state_dict({n: torch.full_like(t, 2) for n, t in made.module.state_dict().items()})
    assert bool((made.ema.value("0.weight") == 2).all())


def test_other_dtypes_of_the_second_model():
    _, made = averaged(state="8bit")
    exact = made.ema.value("0.weight")
    made.to(torch.bfloat16)
    assert torch.equal(made.module[0].weight, exact.bfloat16())
    assert made.eval()(LOADER[0].bfloat16()).dtype == torch.bfloat16
    assert torch.equal(made.ema.value("0.weight"), exact)
    with pytest.raises(RuntimeError, match="cannot be set"):
        made.module[0].weight = nn.Parameter(exact)


# -------------------------------------------------------------------- ema-pytorch


def test_arguments_and_methods_of_ema_pytorch():
    theirs = pytest.importorskip("ema_pytorch").EMA
    wanted = list(inspect.signature(theirs.__init__).parameters)
    ours = list(inspect.signature(EMAPytorch.__init__).parameters)
    assert ours[: len(wanted)] == wanted  # in the same order
    methods = [n for n in vars(theirs) if not n.startswith("_")]
    assert [n for n in methods if not hasattr(EMAPytorch, n)] == []


PAIRS = {
    "plain": {},
    "warm-up": {"beta": 0.99, "update_after_step": 3, "update_every": 2, "min_value": 0.1},
    "copied": {"param_or_buffer_names_no_ema": {"0.weight", "1.running_mean"}},
    "ignored": {"ignore_names": {"0.bias"}, "ignore_startswith_names": {"3."}},
    "frozen": {"beta": 1.0},
    "switch": {"update_model_with_ema_every": 4},
    "hare": {"update_model_with_ema_every": 4, "update_model_with_ema_beta": 0.5},
    "without the model": {"include_online_model": False},
    "lazy": {"lazy_init_ema": True},
    "without effect": {"use_foreach": True, "coerce_dtype": True, "allow_different_devices": True},
}


@pytest.mark.parametrize("case", PAIRS)
def test_runs_of_ema_pytorch(case):
    theirs = pytest.importorskip("ema_pytorch").EMA
    arguments = {"beta": 0.9, "update_after_step": 2, "update_every": 1, **PAIRS[case]}
    models = [net(), net()]
    pair = [theirs(models[0], **arguments), EMAPytorch(models[1], state="fp32", **arguments)]
    for step in range(14):
        for model, ema in zip(models, pair, strict=True):
            walk(model, step, 0.1)
            model[1].running_mean.add_(0.25)
            ema.update()
    mine, wanted = pair[1].state_dict(), pair[0].state_dict()
    assert set(wanted) == set(mine) - {"halfulp"}
    for key in wanted:
        torch.testing.assert_close(mine[key].float(), wanted[key].float(), rtol=1e-4, atol=1e-5)
    for ema in pair:
        assert ema.eval() is ema.ema_model
    torch.testing.assert_close(pair[1](LOADER[0]), pair[0](LOADER[0]), rtol=1e-3, atol=1e-4)
    loaded = EMAPytorch(net(4), state="fp32", **arguments)
    loaded.load_state_dict(wanted)
    for n, p in pair[0].ema_model.named_parameters():
        assert torch.equal(dict(loaded.ema_model.named_parameters())[n], p.detach())
    twin = pickle.loads(pickle.dumps(pair[1]))
    assert torch.equal(twin(LOADER[0]), pair[1](LOADER[0]))


def test_a_second_model_that_is_handed_in():
    student, second = net(), net(3)
    start = second[0].weight.detach().clone()
    ema = EMAPytorch(student, ema_model=second, state="fp32", update_after_step=0, update_every=1)
    assert ema.ema_model is second
    assert torch.equal(second[0].weight, start)
    ema.update()
    assert torch.equal(second[0].weight, student[0].weight)
    with pytest.raises(ValueError, match="differ in"):
        EMAPytorch(student, ema_model=nn.Linear(2, 2))
    with pytest.raises(TypeError, match="a module"):
        EMAPytorch({"w": torch.ones(2)})


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_teacher_of_weights_that_cannot_be_copied():
    student = nn.utils.weight_norm(nn.Linear(64, 64))
    teacher = Teacher(student, 0.5, state="fp32")
    x = torch.randn(2, 64)
    assert torch.equal(teacher(x), student(x).detach())
    walk(student, 1, 0.1)
    teacher.update()
    plain = nn.utils.weight_norm(nn.Linear(64, 64))
    plain.load_state_dict(teacher.ema.averaged_state_dict())
    assert torch.equal(teacher(x), plain(x).detach())


# -------------------------------------------------------------------- diffusers


def params(model):
    return list(model.parameters())


def reference(kind, step, after=0, power=2 / 3, gamma=1.0, decay=0.9, low=0.0):
    """The published schedule of diffusers, written down anew."""
    step = step - after - 1
    if step <= 0:
        return 0.0
    value = 1 - (1 + step / gamma) ** -power if kind == "warmup" else (1 + step) / (10 + step)
    return max(low, min(value, decay))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 11 / 20),
        ({"decay": 0.3}, 0.3),
        ({"min_decay": 0.6}, 0.6),
        ({"min_value": 0.6}, 0.6),
        ({"update_after_step": 3}, 8 / 17),
        ({"use_ema_warmup": True}, 1 - 11 ** (-2 / 3)),
        ({"use_ema_warmup": True, "inv_gamma": 2.0, "power": 1.0}, 5 / 6),
    ],
    ids=str,
)
def test_decays_of_diffusers(options, expected):
    ema = EMAModel(params(net(0)), **options)
    assert ema.get_decay(11) == pytest.approx(expected)
    assert ema.get_decay(1) == 0.0


@pytest.mark.parametrize("kind", ["plain", "warmup"])
def test_ema_model_is_the_recurrence_of_diffusers(kind):
    model = net()
    model[3].weight.requires_grad_(False)
    ema = EMAModel(params(model), decay=0.9, update_after_step=2, use_ema_warmup=kind == "warmup", state="fp32")
    shadow = [p.detach().clone() for p in params(model)]
    for step in range(1, 16):
        walk(model, step, 0.1)
        if step == 8:
            model[3].weight.requires_grad_(True)
            model[0].bias.requires_grad_(False)
        ema.step(model.parameters())
        decay = reference(kind, step, after=2)
        assert ema.cur_decay_value == decay
        for s, p in zip(shadow, params(model), strict=True):
            s.copy_(s - (1 - decay) * (s - p) if p.requires_grad and not (step == 8 and p is model[3].weight) else p)
    for mine, wanted in zip(ema.shadow_params, shadow, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)
    live = [p.detach().clone() for p in params(model)]
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    assert torch.equal(model[0].weight, ema.shadow_params[0])
    ema.restore(model.parameters())
    assert all(torch.equal(p, w) for p, w in zip(params(model), live, strict=True))
    with pytest.raises(RuntimeError, match="store"):
        ema.restore(model.parameters())


def test_ema_model_goes_on_from_its_state():
    runs = []
    for resumed in (False, True):
        model = net()
        ema = EMAModel(params(model), decay=0.9, state="8bit")
        for step in range(10):
            walk(model, step, 0.1)
            ema.step(model.parameters())
            if resumed and step == 5:
                file = io.BytesIO()
                torch.save(ema.state_dict(), file)
                file.seek(0)
                ema = EMAModel(params(model), state="8bit", seed=4)
                ema.load_state_dict(torch.load(file, weights_only=True))
        runs.append(ema.shadow_params)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    theirs = {k: v for k, v in ema.state_dict().items() if k != "halfulp"}  # what diffusers' own saves
    other = EMAModel(params(net(3)), state="fp32")
    alone = {key: value for key, value in ema.state_dict().items() if key != "shadow_params"}
    before = [x.clone() for x in other.shadow_params]
    with pytest.raises(ValueError, match="it has no shadow_params"):
        other.load_state_dict(alone)
    assert all(torch.equal(x, y) for x, y in zip(before, other.shadow_params, strict=True))
    other.load_state_dict(theirs)
    assert other.optimization_step == 10
    assert all(torch.equal(a, b) for a, b in zip(other.shadow_params, runs[0], strict=True))


class Config(nn.Linear):
    """What a diffusers model offers to EMAModel: a configuration, and files of it and of the weights."""

    def __init__(self, size):
        super().__init__(size, size)
        self.config = {"size": size}

    @classmethod
    def from_config(cls, config, return_unused_kwargs=False):
        if not isinstance(config, dict):
            config = json.loads((config / "config.json").read_text())
        made = cls(config["size"])
        rest = {k: v for k, v in config.items() if k != "size"}
        return (made, rest) if return_unused_kwargs else made

    def register_to_config(self, **values):
        self.config.update(values)

    def save_pretrained(self, path):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(self.config))
        torch.save(self.state_dict(), path / "weights.pt")

    @classmethod
    def from_pretrained(cls, path):
        made = cls.from_config(path)
        made.load_state_dict(torch.load(path / "weights.pt"))
        return made


@pytest.mark.parametrize("state", ["8bit", "bf16"])
def test_files_of_ema_model(tmp_path, state):
    model = Config(64)
    ema = EMAModel(params(model), decay=0.9, model_cls=Config, model_config=model.config, state="8bit", seed=7)
    for step in range(5):
        walk(model, step, 0.1)
        ema.step(model.parameters())
    ema.save_pretrained(tmp_path / "ema")
    plain = Config.from_pretrained(tmp_path / "ema")
    assert torch.equal(plain.weight, ema.shadow_params[0])
    again = EMAModel.from_pretrained(tmp_path / "ema", Config, state=state)
    assert (again.optimization_step, again.decay) == (5, 0.9)
    if state == "8bit":
        walk(model, 5, 0.1)
        for one in (ema, again):
            one.step(model.parameters())
        assert torch.equal(again.shadow_params[0], ema.shadow_params[0])  # the random bits are the same too
    else:
        assert torch.equal(again.shadow_params[0], plain.weight.detach().bfloat16().float())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: EMAModel(m.parameters(), decay=2.0), "between 0 and 1"),
        (lambda m: EMAModel(m.parameters()).step([m[0].weight]), "1 parameters were given"),
        (lambda m: EMAModel(iter(())), "nothing to average"),
        (lambda m: EMAModel(m.parameters()).save_pretrained("x"), "model_cls"),
        (lambda m: EMAModel(m.parameters()).load_state_dict({"use_ema_warmup": 1}), "True or False"),
        (lambda m: AveragedModel(m, avg_fn=min, multi_avg_fn=min), "not both"),
        (lambda m: EMAPytorch(m, lazy_init_ema=True, ema_model=m), "leave out ema_model"),
    ],
)
def test_bad_input_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call(net())
