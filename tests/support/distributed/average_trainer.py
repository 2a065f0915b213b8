"""Hugging Face's Trainer with a weight average, and its model sharded by transformers' FSDP2, under torchrun.

``average_trainer.py OUT FOLDER`` makes four steps from the model in FOLDER/model, with a checkpoint after the second.
OUT gets the whole weights after each step, and the Trainer's average and its loss.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import DistributedConfig, LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from halfulp.averaging import trainer_callback, whole
from support.distributed.cases import leave

STEPS, SAVED = 4, 2
OPTIONS = {"decay": 0.9, "state": "8bit"}


def build() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=65, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2,
        )
    )  # fmt: skip


class Weights(TrainerCallback):
    """Records the whole weights after each step."""

    def __init__(self) -> None:
        self.after: dict[str, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after[str(state.global_step)] = whole(kwargs["model"].state_dict())


def examples() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(65, (2 * STEPS, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": x, "labels": x} for x in ids]


def main() -> None:
    out, folder = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo")
    model = LlamaForCausalLM.from_pretrained(
        folder / "model", distributed_config=DistributedConfig(fsdp_size=dist.get_world_size())
    )
    assert all(isinstance(p, DTensor) for p in model.parameters())
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=1, report_to=[], save_steps=SAVED,
        use_cpu=True, disable_tqdm=True, logging_steps=100, dataloader_pin_memory=False, save_only_model=True,
        lr_scheduler_type="constant", eval_strategy="steps", eval_steps=STEPS,
    )  # fmt: skip
    weights, callback = Weights(), trainer_callback(**OPTIONS)
    trainer = Trainer(
        model, arguments, train_dataset=examples(), eval_dataset=examples()[:2], callbacks=[weights, callback],
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.5}),
    )  # fmt: skip
    trainer.train()
    (loss,) = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    found = {"after": weights.after, "average": whole(callback.average.state_dict()), "loss": loss}
    if dist.get_rank() == 0:
        torch.save(found, out)
    leave()


if __name__ == "__main__":
    main()
