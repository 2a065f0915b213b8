"""A model under torch.compile; the optimizer needs no compiling, its kernels are ready when it is imported."""

import torch
from _text import batches, model

from halfulp import AdamW

net = model()
step = torch.compile(lambda batch: net(input_ids=batch, labels=batch).loss)
optimizer = AdamW(net.parameters(), lr=3e-3, state="8bit")
for batch in batches(20):
    loss = step(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"loss {float(loss.detach()):.3f}")
