"""Accelerate: prepare() wraps the optimizer like any other."""

from _text import model, rows
from accelerate import Accelerator
from torch.utils.data import DataLoader

from halfulp import AdamW

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
net = model()
optimizer = AdamW(net.parameters(), lr=3e-3, state="8bit")
net, optimizer, data = accelerator.prepare(net, optimizer, DataLoader(rows(320), batch_size=8))
for batch in data:
    with accelerator.accumulate(net):
        loss = net(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
print(f"loss {loss.item():.3f}")
