"""Hugging Face Trainer: the factory form, with bf16 states for the embedding and 8 bits elsewhere."""

import tempfile

from _text import model, rows
from transformers import Trainer, TrainingArguments

from halfulp import StallMonitor
from halfulp.training.trainers import TrainerFactory

arguments = TrainingArguments(
    tempfile.mkdtemp(), max_steps=20, per_device_train_batch_size=8, learning_rate=3e-3, logging_steps=5,
    report_to="none", use_cpu=True, disable_tqdm=True,
)  # fmt: skip
options = {"lr": 3e-3, "weight_decay": 0.1, "state": "8bit", "overrides": {"*embed*": {"state": "bf16"}}}
trainer = Trainer(model(), arguments, train_dataset=rows(160), optimizer_cls_and_kwargs=(TrainerFactory, options))
trainer.create_optimizer()
with StallMonitor(trainer.optimizer) as watch:
    trainer.train()
print(watch.table())
print(f"loss {trainer.state.log_history[-1]['train_loss']:.3f}")
