"""One process of a group of workers, one of which is killed.

``sync OUT RANK SIZE KILLED`` saves after each synchronization and starts from the save; at step 7, `KILLED` kills
itself. ``late OUT RANK``: worker 1 of two sleeps before the second exchange. ``serve OUT PORT`` and
``visit OUT PORT NUMBER KILLED`` do the same with asynchronous workers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import halfulp
from halfulp.workers import AsyncEASGD, Centre, DiLoCo, WorkerLostError
from halfulp.workers.group import Processes
from support import workers

STEPS, FATAL = 12, 7


def made(group: Any) -> tuple[torch.nn.Module, Any]:
    model = workers.build()
    inside = halfulp.AdamW(model.named_parameters(), lr=1e-2, state="8bit", min_size=0)
    return model, DiLoCo(inside, every=3, message="8bit", state="8bit", group=group, **workers.SMALL)


def sync(out: Path, rank: int, size: int, killed: int) -> None:
    store = dist.FileStore(str(out / f"store{killed}"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    model, optimizer = made(None)
    file = out / f"{rank}.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    found: dict[str, Any] = {"began": optimizer.steps}
    while optimizer.steps < STEPS:
        if rank == killed and optimizer.steps == FATAL:
            os.kill(os.getpid(), signal.SIGKILL)
        start = time.monotonic()
        try:
            workers.train(model, optimizer, rank, optimizer.steps, 1)
        except WorkerLostError as error:
            found.update(error=str(error), waited=time.monotonic() - start, meetings=optimizer.meetings)
            break
        if optimizer.met:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    (out / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # without waiting for killed workers


def late(out: Path, rank: int) -> None:
    store = dist.FileStore(str(out / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    peers, message = Processes(timeout=1.0), torch.zeros(8, dtype=torch.uint8)
    peers.exchange(message, None)
    dist.barrier()
    time.sleep(4 * rank)
    start = time.monotonic()
    try:
        peers.exchange(message, (0, 1))
    except WorkerLostError as error:
        found = {"error": str(error), "waited": time.monotonic() - start}
        (out / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)


def serve(out: Path, port: int) -> None:
    model = workers.build()
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    centre = Centre(dict(model.named_parameters()), store, message="8bit", **workers.SMALL)
    done = out / "done"
    centre.serve(idle=60, until=done.exists, workers=3)
    found = {name: centre.values.read(name) for name in centre.values}
    torch.save({"weights": found, "version": centre.version}, out / "centre.pt")
    (out / "saved").touch()
    time.sleep(1)


def visit(out: Path, port: int, number: int, killed: int) -> None:
    model = workers.build()
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    optimizer = AsyncEASGD(torch.optim.SGD(model.named_parameters(), lr=0.1), store, pull=0.3, every=4)
    for step in range(200):
        if number == killed and step == 50:
            (out / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        workers.train(model, optimizer, number, step, 1)
    optimizer.leave()
    lost = ""
    if number == 0:  # stays until the centre has ended
        while store.add("left", 0) < 2 or not (out / "killed").exists():  # the other workers may be slower
            time.sleep(0.1)
        time.sleep(1)
        (out / "done").touch()
        while not (out / "saved").exists():
            time.sleep(0.1)
        time.sleep(2)
        try:
            optimizer.visit()
        except WorkerLostError as error:
            lost = str(error)
    (out / f"visit{number}.json").write_text(json.dumps({"visits": optimizer.visits, "lost": lost}))


if __name__ == "__main__":
    kind, folder, *rest = sys.argv[1:]
    {"sync": sync, "late": late, "serve": serve, "visit": visit}[kind](Path(folder), *map(int, rest))
