"""Layers under torch.compile. The optimizer needs no compilation: its kernels are ready on import."""

from _text import batches, model

from halfulp import AdamW

net = model()
for layer in net.model.layers:
    layer.compile()  # all layers are alike, so the compiler runs once
optimizer = AdamW(net.parameters(), lr=3e-3, state="8bit")
for batch in batches(20):
    loss = net(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"loss {float(loss.detach()):.3f}")
