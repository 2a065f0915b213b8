"""A training run of one client with its own checkpoints: killed in the middle, or resumed and compared.

``worker.py CLIENT FOLDER kill`` kills itself with SIGKILL in step ``KILLED``, two steps after the last checkpoint.
``worker.py CLIENT FOLDER resume`` continues from that checkpoint, runs once more without interruption, and saves the
parameters and states of both in ``FOLDER/resumed.pt`` and ``FOLDER/whole.pt``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from halfulp import AdamW
from halfulp.training.trainers import TrainerFactory

STEPS, SAVED, KILLED = 10, 4, 6
"""The number of steps in all, before the checkpoint, and of the killed run."""
OPTIONS: dict[str, Any] = {
    "lr": 1e-2, "weight_decay": 0.1, "state": "8bit", "rounding": "stochastic", "reset": 3, "min_size": 64,
}  # fmt: skip


class Net(nn.Module):
    """Two layers and a loss, called like a transformers model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.layers(x), y)}


def data() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randn(STEPS * 4, 2, 32, generator=generator)
    return [{"x": x, "y": y} for x, y in pairs]


def collect(net: nn.Module, optimizer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, param in net.named_parameters():
        found[name] = param.detach().clone()
        for key, value in optimizer.state[param].items():
            found[f"{name}/{key}"] = value.clone() if torch.is_tensor(value) else value
    return found


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hf_trainer(folder: Path, kill: bool, resume: bool) -> dict[str, Any]:
    """Save checkpoints by Trainer, in ``folder/checkpoint-4``."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Killer(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if kill and state.global_step == KILLED:
                die()

    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=SAVED,
        report_to="none", use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        Net(), arguments, train_dataset=data(), optimizer_cls_and_kwargs=(TrainerFactory, OPTIONS), callbacks=[Killer()]
    )
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}") if resume else None)
    return collect(trainer.model, trainer.optimizer.optimizer)


def accelerate(folder: Path, kill: bool, resume: bool) -> dict[str, Any]:
    """Save checkpoints by ``Accelerator.save_state``."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net = Net()
    optimizer = AdamW(net.named_parameters(), **OPTIONS)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    net, optimizer, schedule, batches = accelerator.prepare(net, optimizer, schedule, DataLoader(data(), batch_size=4))
    done = 0
    if resume:
        accelerator.load_state(str(folder / "saved"))
        batches, done = accelerator.skip_first_batches(batches, SAVED), SAVED
    for batch in batches:
        accelerator.backward(net(**batch)["loss"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        done += 1
        if done == SAVED:
            accelerator.save_state(str(folder / "saved"))
        if kill and done == KILLED:
            die()
    return collect(net, optimizer.optimizer)


def lightning(folder: Path, kill: bool, resume: bool) -> dict[str, Any]:
    """Save checkpoints by ``ModelCheckpoint``. Lightning restarts a plain loader, so batches follow the step."""
    from lightning import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    batches = list(DataLoader(data(), batch_size=4))

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return self.net(**batches[self.global_step])["loss"]

        def on_train_batch_end(self, *args: Any) -> None:
            if kill and self.global_step == KILLED:
                die()

        def configure_optimizers(self) -> Any:
            optimizer = AdamW(self.named_parameters(), **OPTIONS)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=SAVED, save_top_k=-1)
    trainer = Trainer(
        max_steps=STEPS, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[saver],
    )  # fmt: skip
    module = Module()
    trainer.fit(module, DataLoader(data(), batch_size=4), ckpt_path=folder / f"step={SAVED}.ckpt" if resume else None)
    return collect(module.net, trainer.optimizers[0])


CLIENTS = {"hf_trainer": hf_trainer, "accelerate": accelerate, "lightning": lightning}


def main() -> None:
    client, folder, what = CLIENTS[sys.argv[1]], Path(sys.argv[2]), sys.argv[3]
    if what == "kill":
        client(folder / "run", True, False)
    else:
        torch.save(client(folder / "run", False, True), folder / "resumed.pt")
        torch.save(client(folder / "other", False, False), folder / "whole.pt")


if __name__ == "__main__":
    main()
