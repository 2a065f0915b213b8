"""Keep fp32 weights and states in the memory of the CPU, and only a working copy of the weights on the device."""

import torch
from _text import batches, model

from halfulp import AdamW

device = "cuda" if torch.cuda.is_available() else "cpu"
master = dict(model().named_parameters())
optimizer = AdamW(master.items(), lr=3e-3, state="8bit")  # steps in C, on the CPU
net = model().to(device, torch.bfloat16)
for batch in batches(20):
    batch = batch.to(device)
    loss = net(input_ids=batch, labels=batch).loss
    loss.backward()
    with torch.no_grad():
        for name, working in net.named_parameters():
            master[name].grad = working.grad.float().cpu()
        optimizer.step()
        for name, working in net.named_parameters():
            working.copy_(master[name])
    net.zero_grad()
print(f"loss {float(loss.detach()):.3f}, {optimizer.memory().total:,} bytes of state off the device")
