"""Layers under torch.compile; the optimizer needs no compiling, its kernels are ready when it is imported."""

from _text import batches, model

from halfulp import AdamW

net = model()
for layer in net.model.layers:
    layer.compile()  # layers are alike: the compiler runs once
optimizer = AdamW(net.parameters(), lr=3e-3, state="8bit")
for batch in batches(20):
    loss = net(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"loss {float(loss.detach()):.3f}")
