"""Plain PyTorch: bf16 autocast, gradient accumulation, clipping, a schedule. Only the import of AdamW changes."""

import torch
from _text import batches, model

from halfulp import AdamW

ACCUMULATE, STEPS = 2, 20
net = model()
optimizer = AdamW(net.parameters(), lr=3e-3, weight_decay=0.1, state="8bit")
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for i, batch in enumerate(batches(STEPS * ACCUMULATE)):
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(input_ids=batch, labels=batch).loss / ACCUMULATE
    loss.backward()
    if (i + 1) % ACCUMULATE == 0:
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
print(f"loss {float(loss.detach()) * ACCUMULATE:.3f}")
print(optimizer.memory())
