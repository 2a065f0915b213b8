"""Figures sent to loggers and trainers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from halfulp.monitor import StallMonitor, lightning_callback, log_to, trainer_callback


def watched_run(logger: Any, **options: Any) -> StallMonitor:
    weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight])
    watch = StallMonitor(optimizer, every=2)
    log_to(watch, logger, **options)
    for _ in range(8):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    watch.close()
    return watch


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, float], int]] = []


class TensorBoard(Recorder):
    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.seen.append(({name: value}, step))


class WandB(Recorder):
    def log(self, values: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.seen.append((values, step))


class MLflow(Recorder):
    def log_metrics(self, values: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.seen.append((values, step))


@pytest.mark.parametrize("kind", [TensorBoard, WandB, MLflow, "function"])
def test_every_logger_hears_the_same_figures(kind: Any) -> None:
    logger = Recorder() if kind == "function" else kind()
    watch = watched_run((lambda v, s: logger.seen.append((v, s))) if kind == "function" else logger, every=2)
    steps = sorted({step for _, step in logger.seen})
    assert steps == [4, 8]
    last: dict[str, float] = {}
    for values, step in logger.seen:
        if step == 8:
            last.update(values)
    measures = {m.slot: m for m in watch.measure()}
    assert last["halfulp/exp_avg_sq/stalled"] == measures["exp_avg_sq"].stalled
    assert last["halfulp/exp_avg/ratio"] == measures["exp_avg"].ratio
    assert "halfulp/weights/stalled" in last
    assert all(math.isfinite(v) for v in last.values())


def test_what_is_no_logger_is_refused() -> None:
    with pytest.raises(TypeError, match="SummaryWriter"):
        watched_run(3)


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = torch.nn.Linear(64, 64)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.inner(x) - labels).square().mean()}

    data = [{"x": torch.randn(64), "labels": torch.zeros(64)} for _ in range(32)]
    callback = trainer_callback(every=2)
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=6, logging_steps=2,
        report_to=["a reporter"], save_strategy="no", use_cpu=True,
    )  # fmt: skip
    heard: list[dict[str, float]] = []

    class Reporter(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            heard.append(dict(logs))

    monkeypatch.setattr(
        transformers.trainer, "get_reporting_integration_callbacks", lambda names: [Reporter] * len(names)
    )
    trainer = transformers.Trainer(model=Model(), args=args, train_dataset=data, callbacks=[callback])
    trainer.train()
    measured = [entry for entry in heard if "loss" in entry]
    assert len(measured) == 3
    assert all("halfulp/exp_avg_sq/stalled" in entry for entry in measured)  # although reporters come first in the list
    assert callback.table is not None
    assert callback.table.steps == 6
    assert {r.parameter for r in callback.table.rows} == {"inner.weight", "inner.bias"}
    assert any("halfulp/exp_avg_sq/stalled" in entry for entry in trainer.state.log_history)


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(64, 64)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return self.inner(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    callback = lightning_callback(every=2)
    trainer = lightning.Trainer(
        max_steps=6, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(32, 64), batch_size=4))
    assert [t.steps for t in callback.tables] == [6]
    assert {r.parameter for r in callback.tables[0].rows} == {"inner.weight", "inner.bias"}
    assert "halfulp/exp_avg_sq/stalled" in trainer.callback_metrics


def test_without_lightning_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match="pip install lightning"):
        lightning_callback()
