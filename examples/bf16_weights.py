"""bf16 weights that train like fp32 ones: 16-bit remainders, gradients accumulated in fp32, fp32 weights for export."""

import torch
from _text import batches, model

from halfulp import AdamW, fp32_state_dict, fp32_weights
from halfulp.training import main_grads

net = model().bfloat16()
main_grads(net.parameters())
optimizer = AdamW(net.named_parameters(), lr=6e-3, state="8bit", master_weights="remainder16")
for step, batch in enumerate(batches(40)):
    loss = net(input_ids=batch, labels=batch).loss
    (loss / 2).backward()
    if step % 2:
        optimizer.step()
        optimizer.zero_grad()
with torch.no_grad(), fp32_weights(net, optimizer):
    exact = net(input_ids=batch, labels=batch).loss
weights = fp32_state_dict(net, optimizer)
print(f"loss {float(loss.detach()):.3f}, in fp32 {float(exact):.3f}; {len(weights)} tensors to export")
print(f"{optimizer.memory().bytes_per_parameter:.2f} bytes a parameter beside bf16 weights")
