"""Optimizers in forked, spawned and killed processes. This is a script, since pytest's own process must not be forked.

``python children.py fork THREADS_USED STEPPED IMPORTED``, ``spawn``, ``loader``, ``threads``, or ``kill SEED COUNT
FOLDER``.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

PATIENCE = 120.0


def parameters() -> list[torch.nn.Parameter]:
    """Return parameters so small that torch runs no operation in parallel, but enough that a step in C is parallel."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(100, 100, generator=generator)) for _ in range(60)]
    for p in params:
        p.grad = torch.randn(100, 100, generator=generator)
    return params


def stepped(steps: int) -> bytes:
    """Return the weights after some steps."""
    import halfulp

    params = parameters()
    optimizer = halfulp.AdamW(params, lr=0.1)
    for _ in range(steps):
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in params]).numpy().tobytes()


def wait(pid: int) -> int:
    """Return the exit status of a child, which is killed if it hangs."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise SystemExit("the child hangs")


def fork(threads_used: bool, steps_before: int, imported: bool) -> None:
    """Check that a child and its child make the same steps as the parent, with the same bits."""
    torch.set_num_threads(2)
    if imported:
        import halfulp  # noqa: F401 - what is tested is that it is there
    if threads_used:
        x = torch.randn(4_000_000)
        (x + x).sum()
    if steps_before:
        stepped(steps_before)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(PATIENCE / 2, exit=True)
        inner = os.fork()
        if inner:
            status = os.waitpid(inner, 0)[1]
            os.write(writing, b"." if status == 0 else b"!")
            os._exit(0 if stepped(2) else 1)
        os._exit(0 if stepped(2) else 1)
    os.close(writing)
    assert wait(pid) == 0
    assert os.read(reading, 1) == b"."


def bits_in_child(queue: Any) -> None:
    """Put the bits into the queue. This is the target of a process."""
    queue.put(stepped(2))


def same_bits(method: str) -> None:
    """Check that a child started by multiprocessing has the bits of the parent."""
    torch.set_num_threads(2)
    x = torch.randn(4_000_000)
    (x + x).sum()
    context = torch.multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=bits_in_child, args=(queue,))
    child.start()
    found = queue.get(timeout=PATIENCE)
    child.join()
    assert found == stepped(2)


class Stepping(torch.utils.data.Dataset[int]):
    """A data set that makes optimizer steps, like one that refines its items by optimization."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return len(stepped(1 + index % 2))


def loader() -> None:
    """Make steps in the workers of a DataLoader while the parent makes its own."""
    torch.set_num_threads(2)
    x = torch.randn(4_000_000)
    (x + x).sum()
    for item in torch.utils.data.DataLoader(Stepping(), num_workers=2, batch_size=1):
        assert int(item) == len(stepped(1))


def kill(seed: int, count: int, folder: Path) -> None:
    """Kill a process at a random moment while it saves repeatedly. The file is always one of the two, and complete."""
    import halfulp
    from halfulp.checkpoint.files import read_file

    torch.set_num_threads(1)
    path = folder / "optimizer.safetensors"
    optimizers = []
    for rows in (64, 1000):
        p = torch.nn.Parameter(torch.ones(rows, 128))
        p.grad = torch.ones_like(p)
        optimizers.append(halfulp.AdamW([p], state="fp8"))
        optimizers[-1].step()
    halfulp.save_optimizer(optimizers[0], path)
    rng = random.Random(seed)
    seen: dict[int, int] = {}
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            while True:
                for optimizer in optimizers:
                    halfulp.save_optimizer(optimizer, path)
        before = path.stat().st_ino
        while path.stat().st_ino == before:  # until the child has started, however slow the machine is
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        rows = len(read_file(path)["state"][0]["exp_avg"])
        seen[rows] = seen.get(rows, 0) + 1
    left = len(list(folder.iterdir())) - 1
    print(json.dumps({"kills": count, "seen": seen, "temporary files left": left}))


def threads() -> None:
    """Check that the first steps of four optimizers in four threads, and two more, have the bits of the reference."""
    import gc
    import threading

    import halfulp

    torch.set_num_threads(1)

    def make(state: str, seed: int, backend: str | None) -> tuple[halfulp.AdamW, torch.nn.Parameter]:
        p = torch.nn.Parameter(torch.randn(64, 128, generator=torch.Generator().manual_seed(seed)))
        p.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(seed + 9))
        return halfulp.AdamW([p], lr=0.1, state=state, seed=seed, min_size=0, backend=backend), p

    for state in ("int8", "8bit", "4bit", "fp4", "int4", "fp8"):
        together = [make(state, seed, None) for seed in range(4)]
        barrier = threading.Barrier(4)

        def first(optimizer: halfulp.AdamW, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            optimizer.step()

        running = [threading.Thread(target=first, args=(optimizer,)) for optimizer, _ in together]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        gc.collect()  # tables made by threads that lost the race are gone now
        for seed, (optimizer, p) in enumerate(together):
            alone, q = make(state, seed, "reference")
            for _ in range(2):
                optimizer.step()
            for _ in range(3):
                alone.step()
            if not torch.equal(p, q):
                raise SystemExit(f"{state}: bits of a thread differ from the reference")


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "fork":
        fork(*(int(a) for a in rest))  # type: ignore[arg-type]
    elif what == "loader":
        loader()
    elif what == "threads":
        threads()
    elif what == "kill":
        kill(int(rest[0]), int(rest[1]), Path(rest[2]))
    else:
        same_bits(what.removesuffix("_child"))
