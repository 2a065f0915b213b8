"""Averages in Hugging Face's ``Trainer`` and in Lightning: evaluation, saving, resuming and export."""

import logging
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from halfulp.averaging import EMA, lightning_callback, trainer_callback

transformers = pytest.importorskip("transformers")
lightning = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")
NAME = "net.weight"


def halves(model):
    """An average that is easy to follow by hand."""
    return EMA(model, 0.5, state="fp32")


def follow(weights, steps, average=None):
    """The average of a list of weights, in plain arithmetic."""
    average = weights[0] if average is None else average
    for w in weights[1 : steps + 1]:
        average = average + (w - average) * 0.5
    return average


# -------------------------------------------------------------------- the Trainer


class Model(nn.Module):
    """Notes the weights that each evaluation sees, and fails in one if asked to."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(64, 64)
        self.seen, self.fail = [], False

    def forward(self, x, labels=None):
        if not self.training:
            self.seen.append(self.net.weight.detach().clone())
            if self.fail:
                raise ZeroDivisionError("in an evaluation")
        return {"loss": (self.net(x) - 1).square().mean(), "logits": self.net(x)}


DATA = [{"x": torch.randn(64, generator=torch.Generator().manual_seed(i)), "labels": 0} for i in range(16)]


class Record(transformers.TrainerCallback):
    """The live weights after each step."""

    def __init__(self):
        self.weights = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append(model.net.weight.detach().clone())

    on_step_end = on_train_begin


def hf(folder, callback, model=None, evaluation=DATA[:4], init=None, callbacks=(), **arguments):
    model = Model() if model is None and init is None else model
    record = Record()
    defaults = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "learning_rate": 0.05}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True,
        logging_steps=100, dataloader_pin_memory=False, **{**defaults, **arguments},
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=DATA, eval_dataset=evaluation, callbacks=[callback, record, *callbacks],
        model_init=init,
    )  # fmt: skip
    return trainer, record


def test_trainer_evaluates_the_average_and_hands_it_over(tmp_path):
    callback = trainer_callback(halves)
    trainer, record = hf(tmp_path, callback, evaluation={"a": DATA[:4], "b": DATA[4:8], "c": DATA[8:12]})
    trainer.train()
    model, average = trainer.model, callback.average
    assert average.updates == 4
    for step, seen in ((2, model.seen[:3]), (4, model.seen[3:6])):
        assert all(torch.equal(w, follow(record.weights, step)) for w in seen)
    assert torch.equal(model.net.weight, average.value(NAME))  # the evaluated weights
    model.seen.clear()
    trainer.evaluate(DATA[:4])
    trainer.predict(DATA[:4])
    assert len(model.seen) == 2
    assert all(torch.equal(w, average.value(NAME)) for w in model.seen)
    trainer.save_model(tmp_path / "final")
    assert torch.equal(load_file(tmp_path / "final" / "model.safetensors")[NAME], average.value(NAME))
    live = load_file(tmp_path / "checkpoint-4" / "model.safetensors")[NAME]
    assert torch.equal(live, record.weights[4])


def test_trainer_does_not_use_an_average_that_never_moved(tmp_path, caplog):
    """Its weights are those that training began with."""
    callback = trainer_callback(lambda model: EMA(model, 0.5, update_every=3))
    trainer, record = hf(tmp_path, callback, max_steps=2, eval_steps=1)
    trainer.train()
    assert [torch.equal(w, live) for w, live in zip(trainer.model.seen, record.weights[1:], strict=True)] == [
        True,
        True,
    ]
    assert torch.equal(trainer.model.net.weight, record.weights[2])
    assert "never moved in 2 steps" in caplog.text


def test_trainer_leaves_the_model_alone_without_evaluate(tmp_path):
    callback = trainer_callback(halves, evaluate=False)
    trainer, record = hf(tmp_path, callback)
    trainer.train()
    assert torch.equal(trainer.model.net.weight, record.weights[4])
    assert all(any(torch.equal(w, live) for live in record.weights) for w in trainer.model.seen)
    assert torch.equal(callback.average.value(NAME), follow(record.weights, 4))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_trainer_resumes_from_the_folder_it_is_told(tmp_path, elsewhere):
    callback = trainer_callback(decay=0.9, state="8bit")
    trainer, _ = hf(tmp_path / "one", callback)
    trainer.train()
    expected = callback.average.value(NAME)
    saved = tmp_path / "one" / "checkpoint-2"
    if elsewhere:
        saved = saved.rename(tmp_path / "moved")
    again = trainer_callback(decay=0.9, state="8bit")
    trainer, _ = hf(tmp_path / "two", again)
    trainer.train(resume_from_checkpoint=str(saved))
    assert again.average.updates == 4
    assert torch.equal(again.average.value(NAME), expected)


def test_trainer_says_that_a_checkpoint_has_no_average(tmp_path, caplog):
    trainer, _ = hf(tmp_path / "one", trainer_callback(halves, name="other"))
    trainer.train()
    callback = trainer_callback(halves)
    trainer, _ = hf(tmp_path / "two", callback)
    trainer.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))
    assert "begins anew" in caplog.text
    assert callback.average.updates == 2


@pytest.mark.parametrize("stopping", [False, True])
def test_the_best_model_has_the_best_metric(tmp_path, stopping):
    callback = trainer_callback(halves)
    early = [transformers.EarlyStoppingCallback(1)] if stopping else []
    trainer, _ = hf(
        tmp_path, callback, max_steps=8, learning_rate=0.9, load_best_model_at_end=True, callbacks=early,
        metric_for_best_model="loss", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    assert (trainer.state.global_step < 8) == stopping
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    assert torch.equal(trainer.model.net.weight, callback.average.value(NAME))


def test_an_error_in_an_evaluation_leaves_the_live_weights(tmp_path):
    trainer, record = hf(tmp_path, trainer_callback(halves))
    trainer.model.fail = True
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert torch.equal(trainer.model.seen[0], follow(record.weights, 2))
    assert torch.equal(trainer.model.net.weight, record.weights[2])


def test_a_second_training_goes_on(tmp_path, caplog):
    callback = trainer_callback(halves)
    trainer, record = hf(tmp_path, callback)
    trainer.train()
    first = callback.average
    trainer.train()
    assert callback.average is first
    assert first.updates == 8
    assert torch.equal(record.weights[5], record.weights[4])  # the second training started from the live weights
    live = [*record.weights[:5], *record.weights[6:]]
    assert torch.equal(first.value(NAME), follow(live, 8))
    with torch.no_grad():
        trainer.model.net.weight.zero_()
    trainer.train()
    assert "were changed since the last training" in caplog.text
    assert not record.weights[10].any()


def test_hyperparameter_search_begins_anew_with_each_model(tmp_path, caplog):
    callback = trainer_callback(halves)
    trainer, _ = hf(tmp_path, callback, init=lambda trial=None: Model())
    for _ in range(2):  # as a hyper-parameter search does for each trial
        trainer.train()
        assert callback.average.updates == 4
        assert callback.average.model is trainer.model
    assert "begins anew: the trainer has another model" in caplog.text


# -------------------------------------------------------------------- Lightning


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(64, 64)
        self.seen, self.after, self.fail = [], [], False

    def training_step(self, batch, index):
        return self.net(batch).square().mean()

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.after.append(self.net.weight.detach().clone())

    def validation_step(self, batch, index):
        self.seen.append(self.net.weight.detach().clone())
        if self.fail:
            raise ZeroDivisionError("in an evaluation")
        self.log("val", (self.net(batch) - 1).square().mean())

    def on_validation_epoch_end(self):
        self.seen.append(self.net.weight.detach().clone())  # metrics over the epoch are computed in this hook

    def test_step(self, batch, index):
        self.seen.append(self.net.weight.detach().clone())
        self.log("test", (self.net(batch) - 1).square().mean())

    def predict_step(self, batch, index):
        self.seen.append(self.net.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(8, 64), batch_size=2)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(2, 64), batch_size=2)

    test_dataloader = predict_dataloader = val_dataloader


def fabric(folder, callbacks, epochs=2, **options):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"num_sanity_val_steps": 0, "enable_checkpointing": False, **options}
    return lightning.Trainer(max_epochs=epochs, callbacks=callbacks, default_root_dir=folder, **quiet, **options)


def test_lightning_validates_the_average_and_hands_it_over(tmp_path):
    module, callback = Module(), lightning_callback(halves)
    start = module.net.weight.detach().clone()
    trainer = fabric(tmp_path, [callback], num_sanity_val_steps=2)
    trainer.fit(module)
    weights = [start, *module.after]
    assert torch.equal(module.seen[0], start)  # the sanity check
    assert all(torch.equal(w, follow(weights, 4)) for w in module.seen[2:4])
    assert all(torch.equal(w, follow(weights, 8)) for w in module.seen[4:6])
    module.seen.clear()
    trainer.test(module, verbose=False)
    trainer.predict(module)
    trainer.validate(module, verbose=False)
    assert all(torch.equal(w, follow(weights, 8)) for w in module.seen)
    assert torch.equal(module.net.weight, follow(weights, 8))


def test_lightning_does_not_use_an_average_that_never_moved(tmp_path):
    module, callback = Module(), lightning_callback(lambda model: EMA(model, 0.5, update_every=100))
    fabric(tmp_path, [callback], epochs=1).fit(module)
    assert all(torch.equal(w, module.after[-1]) for w in (*module.seen, module.net.weight))


def test_lightning_goes_on_in_a_second_fit(tmp_path):
    module, callback = Module(), lightning_callback(halves)
    start = module.net.weight.detach().clone()
    trainer = fabric(tmp_path, [callback], 1)
    trainer.fit(module)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module)
    straight = Module()
    fabric(tmp_path, [], 2).fit(straight)
    assert torch.equal(module.after[-1], straight.after[-1])  # training continued with the live weights
    assert callback.average.updates == 8
    assert torch.equal(module.net.weight, follow([start, *module.after], 8))


def test_lightning_says_that_another_module_begins_anew(tmp_path, caplog):
    callback = lightning_callback(halves)
    fabric(tmp_path, [callback], 1).fit(Module())
    fabric(tmp_path, [callback], 1).fit(Module())
    assert "begins anew" in caplog.text
    assert callback.average.updates == 4


def test_lightning_resumes_two_averages(tmp_path):
    def callbacks():
        return [
            lightning_callback(decay=0.5, state="8bit"),
            lightning_callback(decay=0.9, state="bf16", evaluate=False, name="slower"),
        ]

    def run(epochs, resume=None):
        module, made = Module(), callbacks()
        trainer = fabric(tmp_path, made, epochs, accumulate_grad_batches=2)
        trainer.fit(module, ckpt_path=resume)
        return trainer, module, [c.average for c in made]

    _, _, expected = run(3)
    trainer, _, _ = run(2)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    _, _, found = run(3, tmp_path / "saved.ckpt")
    for a, b in zip(found, expected, strict=True):
        assert a.updates == b.updates == 6
        assert torch.equal(a.value(NAME), b.value(NAME))


def test_a_lightning_checkpoint_has_what_was_measured(tmp_path):
    module, callback = Module(), lightning_callback(halves)
    start = module.net.weight.detach().clone()
    best = lightning.callbacks.ModelCheckpoint(tmp_path, monitor="val", save_top_k=1)
    trainer = fabric(tmp_path, [callback, best], 3, enable_checkpointing=True)
    trainer.fit(module)
    weights = [start, *module.after]
    saved = torch.load(best.best_model_path, weights_only=False)
    step = saved["global_step"]
    assert torch.equal(saved["state_dict"][NAME], follow(weights, step))
    assert float(trainer.test(module, ckpt_path="best", verbose=False)[0]["test"]) == pytest.approx(
        float(best.best_model_score), rel=1e-6
    )
    other = Module()
    again = lightning_callback(halves)
    fabric(tmp_path, [again], 3).fit(other, ckpt_path=best.best_model_path)
    if step < 12:
        assert torch.equal(other.after[0], module.after[step])  # training continued with the live weights
    assert torch.equal(again.average.value(NAME), follow(weights, 12))


def test_an_error_in_lightning_leaves_the_live_weights(tmp_path):
    module, callback = Module(), lightning_callback(halves)
    module.fail = True
    with pytest.raises(ZeroDivisionError):
        fabric(tmp_path, [callback]).fit(module)
    assert torch.equal(module.net.weight, module.after[-1])


def test_lightning_warns_of_files_with_live_weights(tmp_path, caplog):
    files = lightning.callbacks.ModelCheckpoint(tmp_path, save_weights_only=True)
    fabric(tmp_path, [lightning_callback(halves), files], 1, enable_checkpointing=True).fit(Module())
    assert "save_weights_only=True" in caplog.text


def test_callbacks_are_pickled_with_their_average(tmp_path):
    callback = lightning_callback(decay=0.5, state="8bit")
    fabric(tmp_path, [callback], 1).fit(Module())
    for made in (callback, trainer_callback(decay=0.5)):
        twin = pickle.loads(pickle.dumps(made))
        assert type(twin).__name__ == type(made).__name__
        assert twin.options == made.options
        if made.average is not None:
            assert torch.equal(twin.average.value(NAME), made.average.value(NAME))


@pytest.mark.parametrize("make", [trainer_callback, lightning_callback])
def test_options_beside_make_are_refused(make):
    with pytest.raises(ValueError, match="no use of"):
        make(halves, decay=0.9)


@pytest.mark.parametrize(
    ("options", "message"), [({"evaluate": False}, "are called"), ({"name": "slower"}, "would both be evaluated")]
)
def test_two_averages_of_a_trainer_must_be_told_apart(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        hf(tmp_path, trainer_callback(halves), callbacks=[trainer_callback(halves, **options)])[0].train()
    if "name" in options:  # Lightning itself refuses equal names
        with pytest.raises(ValueError, match=message):
            fabric(tmp_path, [lightning_callback(halves), lightning_callback(halves, **options)], 1).fit(Module())
