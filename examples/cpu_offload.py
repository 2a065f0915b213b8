"""CPU offload: 8-bit states, 16-bit remainders and the step in host memory; bf16 weights on the device."""

import torch
from _text import batches, model

from halfulp import AdamW
from halfulp.training import offload

device = "cuda" if torch.cuda.is_available() else "cpu"
net = model().to(device, torch.bfloat16)
optimizer = offload(AdamW(net.named_parameters(), lr=3e-3, state="8bit", master_weights="remainder16"))
for batch in batches(20):
    batch = batch.to(device)
    loss = net(input_ids=batch, labels=batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
print(f"loss {float(loss.detach()):.3f}, {optimizer.memory().total:,} bytes of state off the device")
