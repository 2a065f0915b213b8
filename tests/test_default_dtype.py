"""``torch.set_default_dtype``, as scripts for bfloat16 models use it, changes no bit."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest

SCRIPT = """
import hashlib, json, sys
import torch
torch.set_default_dtype(getattr(torch, sys.argv[1]))
import halfulp
from halfulp import averaging
from halfulp.monitor import GradientSample
from halfulp.checkpoint.selftest import check_roundtrip
from halfulp.theory.simulation import simulate

def wave(t):
    return torch.cos(torch.arange(64 * 32, dtype=torch.float32) * (t + 1)).reshape(64, 32)

def steps(make):
    p = torch.nn.Parameter(wave(9))
    optimizer = make([("w", p)])
    for t in range(3):
        p.grad = wave(t)
        optimizer.step()
    return p, optimizer

def stepped(make):
    p, optimizer = steps(make)
    return [p, *(s.read() for s in optimizer.states(p))]

def watched():
    p = torch.nn.Parameter(wave(9))
    optimizer = halfulp.AdamW([p], state="bf16", rounding="nearest")
    with halfulp.StallMonitor(optimizer, every=1) as watch, GradientSample(optimizer, min_size=16) as sample:
        for t in range(4):
            p.grad = wave(t) if t != 2 else None
            optimizer.step()
    return [[(r.slot, r.updates, r.stalled, r.lag) for r in watch.table().rows], *sample.gradients().values()]

def averaged():
    model = torch.nn.Linear(32, 64, bias=False, dtype=torch.float32)
    model.weight.data.copy_(wave(9))
    found = []
    for state in ("8bit", "bf16", "4bit"):
        ema = averaging.EMA(model, decay=0.9, state=state)
        for t in range(3):
            model.weight.data.mul_(0.9)
            ema.update()
        found += [v for _, v in ema.named_parameters()]
    return found

def simulated():
    quantizer = halfulp.Quantizer("fp8", rounding="stochastic")
    return [[(s.stalled, s.ratio) for s in simulate(quantizer, beta=0.99, steps=5, coordinates=256)]]

def codebooks():
    def make(params):
        return halfulp.AdamW(params, state="dynamic8", backend="reference")
    return stepped(make)

def planned():
    return [[halfulp.plan_reset(f, beta=0.99, rounding="nearest").period for f in ("fp8", "int8", "dynamic8")]]

def loaded():
    p, optimizer = steps(lambda params: halfulp.AdamW(params, state="fp8"))
    torch_optimizer = torch.optim.AdamW([("w", p)])
    torch_optimizer.load_state_dict(halfulp.convert_state_dict(optimizer.state_dict(), to=torch_optimizer))
    check_roundtrip(optimizer)
    return [torch_optimizer.state[p]["exp_avg"]]

def said(value):
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.detach().contiguous().flatten().view(torch.uint8).tolist()]
    return value.tolist() if hasattr(value, "tolist") else value

def digest(values):
    return hashlib.sha256(json.dumps([said(v) for v in values]).encode()).hexdigest()

cases = {c.__name__: lambda c=c: stepped(lambda params: c(params, min_size=0)) for c in halfulp.optim.OPTIMIZERS}
cases |= {f.__name__: f for f in (watched, averaged, simulated, codebooks, planned, loaded)}
print(json.dumps({name: digest(case()) for name, case in cases.items()}))
"""


@cache
def digests(dtype: str) -> dict[str, str]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT, dtype], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_default_dtype_changes_no_bit(dtype: str) -> None:
    expected, got = digests("float32"), digests(dtype)
    assert len(expected) > 35
    assert [name for name in expected if expected[name] != got[name]] == []
