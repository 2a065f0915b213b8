"""Loss by the format of one part of an optimizer's memory, on paired seeds: a byte model of one module's source.

    python benchmarks/stored_parts.py lookahead|micro_adam [--steps 400] [--seeds 3]

The part is the slow weights (``lookahead``) or the error feedback (``micro_adam``). The script prints the mean loss of
the last 50 steps for each format, and its difference to fp32 with the standard error over the seeds.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import halfulp

Make = Callable[[nn.Module], Any]
SMALL: dict[str, Any] = {"min_size": 0, "block_size": 32}


def lookahead(state: str) -> Make:
    """Return a builder of Lookahead with slow weights in a format, around AdamW in fp32."""
    return lambda m: halfulp.Lookahead(halfulp.AdamW(m.parameters(), lr=1e-2, state="fp32"), state=state, **SMALL)


def micro_adam(state: str) -> Make:
    """Return a builder of MicroAdam with the error in a format and the window in bf16; ``"dropped"`` keeps no error."""
    formats: Any = "fp32" if state in ("fp32", "dropped") else {"error": state, "window": "bf16"}

    def make(model: nn.Module) -> Any:
        optimizer = halfulp.MicroAdam(model.parameters(), lr=1e-2, density=0.05, state=formats, **SMALL)
        if state == "dropped":
            optimizer.register_step_post_hook(lambda o, args, kwargs: o.reset_state(["error"]))
        return optimizer

    return make


ARMS: dict[str, dict[str, Make]] = {
    "lookahead": {s: lookahead(s) for s in ("fp32", "bf16", "8bit", "fp8", "int8", "4bit")},
    "micro_adam": {s: micro_adam(s) for s in ("fp32", "8bit", "int4", "fp4", "dropped")},
}


def run(make: Make, seed: int, steps: int) -> float:
    """Return the mean loss of the last 50 steps."""
    data = torch.tensor([min(b, 127) for b in inspect.getsource(argparse).encode()[:20_000]])
    inputs, targets = torch.stack([data[:-2], data[1:-1]], 1), data[2:]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(128, 16), nn.Flatten(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 128))
    optimizer, losses = make(model), []
    for step in range(steps):
        index = torch.randint(len(targets), (128,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[index]), targets[index])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-50:]) / 50


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=sorted(ARMS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    arms = ARMS[given.part].items()
    found = {s: torch.tensor([run(make, seed, given.steps) for seed in range(given.seeds)]) for s, make in arms}
    for state, losses in found.items():
        apart = losses - found["fp32"]
        error = apart.std() / given.seeds**0.5 if given.seeds > 1 else torch.tensor(float("nan"))
        print(f"{state:8} {losses.mean():.4f}  {apart.mean():+.4f} +- {error:.4f}")


if __name__ == "__main__":
    main()
