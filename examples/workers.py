"""Workers that synchronize periodically, on real text: loss over bytes sent, their distances, and their valley.

Run with: torchrun --nproc-per-node 4 workers.py [STEPS]. Writes workers.png.
"""

import sys

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from _text import model, windows
from torch.func import functional_call

from halfulp import AdamW
from halfulp.workers import DPPF, DiLoCo, LocalSGD, inverse_mean_valley

STEPS, EVERY = int(sys.argv[1]) if len(sys.argv) > 1 else 200, 10
ARMS = {
    "local SGD, fp32": lambda inside: LocalSGD(inside, every=EVERY),
    "local SGD, 8 bits": lambda inside: LocalSGD(inside, every=EVERY, message="8bit"),
    "DiLoCo, 8 bits": lambda inside: DiLoCo(inside, every=EVERY, message="8bit", state="8bit"),
    "DPPF, 8 bits": lambda inside: DPPF(inside, pull=0.3, push=0.3, every=EVERY, message="8bit"),
}

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
text = windows(8 * size * STEPS).reshape(STEPS, size, 8, -1)[:, rank]
held_out = windows(8 * size * STEPS + 32)[-32:]


def loss_of(net, weights):
    with torch.no_grad():
        return float(functional_call(net, weights, (), {"input_ids": held_out, "labels": held_out}).loss)


figure, (left, middle) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
for name, make in ARMS.items():
    net = model()
    optimizer = make(AdamW(net.parameters(), lr=3e-3, state="8bit"))
    sent, losses, apart = [], [], []
    for batch in text:
        loss = net(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.met:
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            sent.append(optimizer.sent_bytes / 1e6)
            losses.append(float(mean) / size)
            apart.append(optimizer.distance)
    workers = [None] * size
    dist.all_gather_object(workers, {n: p.detach() for n, p in net.named_parameters()})
    if rank == 0:
        left.plot(sent, losses, label=name)
        middle.plot(apart, label=name)
        line = f"{name:18} loss {losses[-1]:.3f}, {sent[-1]:6.1f} MB sent by each worker, apart {apart[-1]:.2f}"
        if isinstance(optimizer, DPPF):  # with the other methods, all workers are equal after a meeting
            valley = inverse_mean_valley(lambda weights, net=net: loss_of(net, weights), workers, kappa=1.1)
            line += f", width of the valley {1 / valley:.2f}"
        print(line, flush=True)
if rank == 0:
    left.set(xlabel="MB sent by each worker", ylabel="training loss", xscale="log")
    middle.set(xlabel="meeting", ylabel="distance of a worker from the mean")
    left.legend()
    figure.savefig("workers.png")
dist.barrier()
dist.destroy_process_group()
