"""Trainers and libraries that use the optimizers and averages: the examples of the page, and what it claims.

Packages that the extra ``dev`` does not install have a stand-in (``support/standins.py``). The tests of others are
skipped where these are missing.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfulp
from halfulp import workers
from halfulp.averaging import EMA, EMAModel, trainer_callback
from halfulp.training.trainers import TrainerFactory, groups_by_name
from support import standins
from support import workers as worker_runs
from support.pages import run_blocks

pytestmark = pytest.mark.filterwarnings("ignore")  # trainers warn of things outside this library
PAGE = Path(__file__).resolve().parents[1] / "docs" / "in-your-trainer.md"
SENTENCES = [" ".join(str((i + j) % 64) for j in range(16)) for i in range(32)]


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("accelerate", "lightning", "trl", "peft", "sentence_transformers", "diffusers"):  # of the extra `dev`
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    standins.install(monkeypatch)
    run_blocks(PAGE)


def test_the_command_of_the_page_for_sd_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    standins.install(monkeypatch)
    train_util = importlib.import_module("library.train_util")
    command = re.search(r"^accelerate launch train_network.py(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    parser = argparse.ArgumentParser()
    train_util.add_optimizer_arguments(parser)
    args = parser.parse_args(shlex.split(command[1].replace("\\\n", " ")))
    name, _, optimizer = train_util.get_optimizer(args, [nn.Parameter(torch.zeros(64, 64))])
    assert name == "halfulp.optim.AdamW"
    expected = {"lr": 1e-4, "state": "8bit", "weight_decay": 0.01}
    assert {key: optimizer.defaults[key] for key in expected} == expected


# ---------------------------------------------------------------- models


def llama() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **sizes))


def words() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(64)}, unk_token="0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made


def arguments(cls: Any, folder: Path) -> Any:
    """Return arguments under which the first of two checkpoints counts as the best."""
    return cls(
        str(folder), max_steps=4, learning_rate=1e-2, eval_strategy="steps", eval_steps=2, save_steps=2, use_cpu=True,
        load_best_model_at_end=True, greater_is_better=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip


def sft(folder: Path, adapter: bool, **options: Any) -> Any:
    trl = pytest.importorskip("trl")
    transformers, datasets = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"text": text} for text in SENTENCES])
    lora = pytest.importorskip("peft").LoraConfig(r=8, target_modules=["q_proj", "v_proj"]) if adapter else None
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words(), pad_token="0", eos_token="63")
    return trl.SFTTrainer(
        llama(), arguments(trl.SFTConfig, folder), train_dataset=data, eval_dataset=data, processing_class=tokenizer,
        peft_config=lora, **options,
    )  # fmt: skip


def sentences(folder: Path, loss: str = "MultipleNegativesRankingLoss", **options: Any) -> Any:
    library = pytest.importorskip("sentence_transformers")
    parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    datasets = pytest.importorskip("datasets")
    torch.manual_seed(0)
    modules = [parts.StaticEmbedding(words(), embedding_dim=64), parts.Dense(64, 64)]
    model = library.SentenceTransformer(modules=modules, device="cpu")
    columns: dict[str, Any] = {"anchor": SENTENCES[:16], "positive": SENTENCES[16:]}
    if loss == "SoftmaxLoss":
        made = losses.SoftmaxLoss(model, sentence_embedding_dimension=64, num_labels=2)
        columns["label"] = [0, 1] * 8
    else:
        made = getattr(losses, loss)(model)
    data = datasets.Dataset.from_dict(columns)
    given = arguments(library.SentenceTransformerTrainingArguments, folder)
    return library.SentenceTransformerTrainer(model, given, data, data, made, **options)


TRAINERS = {
    "TRL": lambda folder, **options: sft(folder, False, **options),
    "TRL with an adapter": lambda folder, **options: sft(folder, True, **options),
    "sentence-transformers": sentences,
}

# ---------------------------------------------------------------- trainers


@pytest.mark.parametrize("name", TRAINERS)
def test_the_average_of_the_best_checkpoint_is_in_the_model(name: str, tmp_path: Path) -> None:
    """States have 8 bits, evaluations use the average, and the trained model has that of the best checkpoint."""
    average = trainer_callback(decay=0.5, state="8bit", min_size=256)
    options = {"state": "8bit", "min_size": 256}
    trainer = TRAINERS[name](tmp_path, callbacks=[average], optimizer_cls_and_kwargs=(TrainerFactory, options))
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, halfulp.AdamW)
    assert optimizer.defaults["lr"] == 1e-2
    assert optimizer.memory().bytes_per_parameter < 2.2
    assert average.average.step == 4 - 2  # of the best checkpoint, the first
    found = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert found[0] > found[1]
    assert trainer.evaluate()["eval_loss"] == found[0]
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, average.average.value(n).to(p)) for n, p in trained.items())


def test_weights_of_losses_are_trained(tmp_path: Path) -> None:
    options = {"state": "8bit", "overrides": {"loss.*": {"state": "fp32"}, "1.linear.weight": {"state": "bf16"}}}
    trainer = sentences(tmp_path, "SoftmaxLoss", optimizer_cls_and_kwargs=(TrainerFactory, options))
    before = trainer.loss.classifier.weight.clone()
    trainer.train()
    assert not torch.equal(before, trainer.loss.classifier.weight)
    names = [n for group in trainer.optimizer.param_groups for n in group["param_names"]]
    assert sorted(names) == [
        "0.embedding.weight", "1.linear.bias", "1.linear.weight", "loss.0.classifier.bias", "loss.0.classifier.weight",
    ]  # fmt: skip


# ---------------------------------------------------------------- PEFT


def adapted() -> nn.Module:
    peft = pytest.importorskip("peft")
    model: nn.Module = peft.get_peft_model(llama(), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    return model


def backward(model: nn.Module) -> None:
    tokens = torch.arange(16)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()


def test_averages_of_adapters_are_saved_and_loaded(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = adapted()
    optimizer = halfulp.AdamW(groups_by_name(model), lr=1e-2, state="8bit", min_size=256)
    average = EMA(model, decay=0.5, state="8bit", min_size=256)
    for _ in range(3):
        backward(model)
        optimizer.step()
        average.update()
    with average.swap():
        model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(llama(), tmp_path / "adapter", is_trainable=True)
    trained = {n: p for n, p in again.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all(torch.equal(p, average.value(n).to(p)) for n, p in trained.items())
    resumed = EMA(again, decay=0.5, state="8bit", min_size=256)
    resumed.load_state_dict(average.state_dict())
    assert all(torch.equal(resumed.value(n), average.value(n)) for n in trained)


def test_optimizers_of_peft_group_ours_like_torchs() -> None:
    library = pytest.importorskip("peft.optimizers")
    options = {"state": "8bit", "min_size": 256}
    groups = [
        library.create_loraplus_optimizer(adapted(), cls, lr=2e-4, loraplus_lr_ratio=16, **more).param_groups
        for cls, more in ((halfulp.AdamW, options), (torch.optim.AdamW, {}))
    ]
    found, expected = ([(len(g["params"]), g["lr"], g["weight_decay"]) for g in side] for side in groups)
    assert found == expected
    model = adapted()
    optimizer = library.create_riemannian_optimizer(model, halfulp.AdamW, lr=2e-4, **options)
    backward(model)
    optimizer.step()
    assert isinstance(optimizer, halfulp.AdamW)
    assert optimizer.memory().bytes_per_parameter < 2.2


# ---------------------------------------------------------------- diffusers


def unet() -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )  # fmt: skip


def averaged(model: Any, *averages: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        with torch.no_grad():
            for param in model.parameters():
                param.add_(torch.randn(param.shape, generator=generator), alpha=0.01)
        for average in averages:
            average.step(model.parameters())


@pytest.mark.parametrize("state", ["fp32", "8bit"])
def test_averages_of_diffusers_and_ours_read_each_others_files(state: str, tmp_path: Path) -> None:
    """In fp32, the averages are the same bits too."""
    theirs = pytest.importorskip("diffusers.training_utils").EMAModel
    model = unet()
    options = {"decay": 0.99, "use_ema_warmup": True, "power": 0.75}
    files = {"model_cls": type(model), "model_config": model.config}
    one, other = (
        EMAModel(model.parameters(), state=state, **options, **files),
        theirs(model.parameters(), **options, **files),
    )
    for average in (one, other):  # the first step copies; diffusers rounds there, if the weights have moved
        average.step(model.parameters())
    averaged(model, one, other)
    assert one.cur_decay_value == other.cur_decay_value
    if state == "fp32":
        assert all(torch.equal(a, b) for a, b in zip(one.shadow_params, other.shadow_params, strict=True))
    one.save_pretrained(tmp_path / "ours")
    other.save_pretrained(tmp_path / "theirs")
    for saved, again in (
        (one, theirs.from_pretrained(tmp_path / "ours", type(model))),
        (other, EMAModel.from_pretrained(tmp_path / "theirs", type(model))),
        (one, EMAModel.from_pretrained(tmp_path / "ours", type(model))),
    ):
        assert all(torch.equal(a, b) for a, b in zip(again.shadow_params, saved.shadow_params, strict=True))
        expected, found = saved.state_dict(), again.state_dict()
        assert {k: found[k] for k in options} == {k: expected[k] for k in options}
        assert found["optimization_step"] == 6


@pytest.mark.parametrize("options", [{"state": "bf16"}, {"state": "8bit", "min_size": 0}, {"state": "fp32"}], ids=str)
def test_a_training_script_of_diffusers_resumes_our_averages(options: dict[str, Any], tmp_path: Path) -> None:
    """Its hooks call ``from_pretrained`` without options, and give the result to the average that it made."""
    model = unet()
    model.conv_in.weight.requires_grad_(False)
    files = {"model_cls": type(model), "model_config": model.config}
    one, other = (EMAModel(model.parameters(), seed=3, **options, **files) for _ in range(2))
    averaged(model, one)
    one.save_pretrained(tmp_path / "unet_ema")
    loaded = EMAModel.from_pretrained(tmp_path / "unet_ema", type(model))
    other.load_state_dict(loaded.state_dict())
    averaged(model, one, other)
    assert all(torch.equal(a, b) for a, b in zip(one.shadow_params, other.shadow_params, strict=True))


# ---------------------------------------------------------------- torchft


class Manager:
    """What torchft's classes ask of its manager, which averages over workers. None of them is lost."""

    _use_async_quorum = False

    def __init__(self, peers: Any) -> None:
        self.peers = peers

    def allreduce(self, tensor: Tensor, should_quantize: bool = False) -> Any:
        one, other = self.peers.exchange(tensor.detach().clone(), None)
        tensor.copy_((one + other) / 2)
        return self

    def wait(self) -> None: ...

    def should_commit(self) -> bool:
        return True

    def current_step(self) -> int:
        return 0

    def _nothing(self, *args: Any, **kwargs: Any) -> None: ...

    start_quorum = allow_state_dict_read = disallow_state_dict_read = register_state_dict_fn = _nothing


def sgd(params: Any) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr=0.5, momentum=0.5, nesterov=True)


def trained(peers: Any, wrap: Any) -> list[Tensor]:
    """Return the weights of one worker after three meetings."""
    model = worker_runs.build()
    inside = torch.optim.AdamW(model.parameters(), lr=1e-2)
    wrapped = wrap(model, inside, peers)
    optimizer, context = (inside, wrapped) if hasattr(wrapped, "__enter__") else (wrapped, nullcontext())
    generator = torch.Generator().manual_seed(peers.rank)
    with context:
        for _ in range(6):
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", ["LocalSGD", "DiLoCo"])
def test_workers_have_the_bits_of_torchft(name: str) -> None:
    theirs = getattr(pytest.importorskip("torchft.local_sgd"), name)

    def original(model: nn.Module, inside: Any, peers: Any) -> Any:
        if name == "LocalSGD":
            return theirs(Manager(peers), model, inside, sync_every=2)
        return theirs(Manager(peers), [model], inside, sgd(model.parameters()), sync_every=2)

    def ours(model: nn.Module, inside: Any, peers: Any) -> Any:
        if name == "LocalSGD":
            return workers.LocalSGD(inside, every=2, group=peers)
        return workers.DiLoCo(inside, outer=sgd, every=2, group=peers)

    expected, found = (
        workers.simulate(2, lambda peers, wrap=wrap: trained(peers, wrap))  # type: ignore[misc]
        for wrap in (original, ours)
    )
    for mine, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    assert not torch.equal(found[0][0], worker_runs.build()[0].weight)
