"""Test an installed halfulp without extras: imports, a step in every kind of storage, a file, the command line.

    python tools/try_install.py

Prints which backend runs the steps. Falling back to the reference is reported, but is not a failure.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import halfulp
from halfulp.kernels import backends


def main() -> None:
    """Raise an error for whatever does not work."""
    torch.manual_seed(0)
    for state in ("fp32", "bf16", "8bit", "4bit"):
        model = torch.nn.Linear(256, 64)
        optimizer = halfulp.AdamW(model.parameters(), lr=1e-2, state=state)
        x, losses = torch.randn(32, 256), []
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        if not losses[-1] < losses[0] / 2:
            raise SystemExit(f"{state}: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
        with tempfile.TemporaryDirectory() as folder:
            halfulp.save_optimizer(optimizer, Path(folder) / "optimizer.safetensors")
            halfulp.load_optimizer(optimizer, Path(folder) / "optimizer.safetensors")
    for command in (["--version"], ["predict", "--help"]):
        subprocess.run([sys.executable, "-m", "halfulp", *command], check=True, capture_output=True)
    if "transformers" in sys.modules or "matplotlib" in sys.modules:
        raise SystemExit("an extra was imported")
    print(f"halfulp {halfulp.__version__}, torch {torch.__version__}, {sys.version.split()[0]}: {backends()['cpu']}")


if __name__ == "__main__":
    main()
