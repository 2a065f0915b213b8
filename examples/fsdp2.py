"""FSDP2: shard the model, then build the optimizer. Run with: torchrun --nproc-per-node 2 fsdp2.py"""

import torch.distributed as dist
from _text import batches, model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from halfulp import AdamW

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
net = model()
for layer in net.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(net, mesh=mesh)
optimizer = AdamW(net.parameters(), lr=3e-3, state="8bit")
for batch in batches(20):
    mine = batch.chunk(dist.get_world_size())[dist.get_rank()]
    loss = net(input_ids=mine, labels=mine).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
if dist.get_rank() == 0:
    print(f"loss {float(loss.detach()):.3f}, {optimizer.memory().total:,} bytes of state on this rank")
dist.destroy_process_group()
