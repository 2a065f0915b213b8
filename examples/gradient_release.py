"""Gradient release: each parameter is stepped as soon as its gradient is ready, and the gradient is freed."""

from _text import batches, model

from halfulp import AdamW
from halfulp.training import release_gradients

net = model()
optimizer = AdamW(net.parameters(), lr=3e-3, state="8bit")
release_gradients(optimizer)
for batch in batches(20):
    loss = net(input_ids=batch, labels=batch).loss
    loss.backward()  # this trains
print(f"loss {float(loss.detach()):.3f}, gradients alive: {sum(p.grad is not None for p in net.parameters())}")
