"""Lightning: configure_optimizers() returns a halfulp optimizer."""

import lightning
from _text import model, rows
from torch.utils.data import DataLoader

from halfulp import AdamW


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def training_step(self, batch, index):  # type: ignore[no-untyped-def]
        loss = self.net(**batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> AdamW:
        return AdamW(self.parameters(), lr=3e-3, state="8bit")


trainer = lightning.Trainer(
    max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)  # fmt: skip
trainer.fit(Module(), DataLoader(rows(160), batch_size=8))
print(f"loss {float(trainer.callback_metrics['loss']):.3f}")
