"""Training on several ranks has the bits of training on one: FSDP2, tensor parallelism, DDP, and checkpoints.

One launch of torchrun runs all cases. The tests compare its results with a run in this process.
"""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import halfulp
from halfulp.numbers import log as _log
from halfulp.testing.subject import thread_count
from support.distributed.cases import CASES, LOADED, build_model, collect, counted, optimizer_of, train
from support.optimizers import assert_same
from support.processes import torchrun

MORE = 3
"""Steps after loading."""
COLUMNS = [name for name, case in CASES.items() if case.arguments["block_size"] == 32]
"""Cases whose blocks no shard of the columns cuts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


def launch(folder: Path, ranks: int, name: str, *arguments: str) -> Path:
    """Run the worker under torchrun once; later calls find its results."""
    out = folder / name
    if not out.exists():
        out.mkdir()
        torchrun("worker", ranks, out, *arguments)
    return out


@cache
def alone(name: str, steps: int) -> dict[str, Any]:
    with thread_count(1):  # like the workers: the last bits of matrix products may depend on it
        model = build_model(CASES[name].dtype)
        optimizer = optimizer_of(CASES[name], model)
        watch = halfulp.StallMonitor(optimizer, sample=10**6, every=1)
        train(model, optimizer, 0, steps)
        return {**collect(model, optimizer), "counted": counted(watch)}


def assert_same_run(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert_same(
        *({k: v for k, v in run.items() if k not in ("bytes", "resets", "counted")} for run in (found, expected))
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_fsdp2_has_the_bits_of_one_process(folder: Path, ranks: int, name: str) -> None:
    save = ("--save", str(folder / "saved")) if ranks == 2 else ()
    out = launch(folder, ranks, f"fsdp{ranks}", "--steps", str(LOADED), *save)
    found, expected = torch.load(out / f"{name}.pt"), alone(name, LOADED)
    assert_same_run(found, expected)
    assert found["resets"] == expected["resets"]
    for slot, whole in expected["counted"].items():  # the ranks' monitors together counted the same
        assert whole[0] > 0
        if slot in CASES[name].whole:
            assert all(slot not in rank for rank in found["counted"]), "watched now: compare the counts"
        else:
            assert [sum(rank[slot][i] for rank in found["counted"]) for i in (0, 1)] == whole, slot
    if CASES[name].whole:  # each rank may hold a part of the vectors that Muon leaves to AdamW
        assert 0.9 * expected["bytes"] < found["bytes"] <= expected["bytes"]
    else:
        assert found["bytes"] < expected["bytes"] / ranks * 1.1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_checkpoint_of_two_ranks_goes_on_with_any_number(folder: Path, ranks: int, name: str) -> None:
    saved = folder / "saved"
    launch(folder, 2, "fsdp2", "--steps", str(LOADED), "--save", str(saved))
    out = launch(folder, ranks, f"loaded{ranks}", "--load", str(saved), "--steps", str(MORE))
    assert_same_run(torch.load(out / f"{name}.pt"), alone(name, LOADED + MORE))


@pytest.mark.parametrize("name", COLUMNS)
def test_tensor_parallel_shards_have_the_bits_of_one_process(folder: Path, name: str) -> None:
    out = launch(folder, 2, "tp", "--wrap", "tp", "--steps", str(LOADED), "--cases", ",".join(COLUMNS))
    assert_same_run(torch.load(out / f"{name}.pt"), alone(name, LOADED))


OFFLOADED = ["8bit-reset", "remainder16", "muon"]


@pytest.mark.parametrize("name", OFFLOADED)
def test_offloaded_shards_have_the_bits_of_one_process(folder: Path, name: str) -> None:
    """Offloaded after two steps; each rank copies its own part."""
    out = launch(folder, 2, "offload", "--offload", "--steps", str(LOADED), "--cases", ",".join(OFFLOADED))
    assert_same_run(torch.load(out / f"{name}.pt"), alone(name, LOADED))


@pytest.mark.parametrize("name", ["8bit-reset", "4bit"])
def test_ddp_has_the_bits_of_one_process(folder: Path, name: str) -> None:
    out = launch(folder, 2, "ddp", "--wrap", "ddp", "--steps", str(LOADED), "--cases", "8bit-reset,4bit")
    assert_same_run(torch.load(out / f"{name}.pt"), alone(name, LOADED))


def test_a_killed_fsdp2_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Killed with the checkpoint of step 6 written but not renamed: resumed from that of step 4."""
    name, ranks = "8bit-reset", 2
    kept = tmp_path / "kept"
    kept.mkdir()
    arguments = ("--cases", name, "--steps", str(LOADED + MORE), "--keep", str(kept))
    killed = torchrun("worker", ranks, tmp_path, *arguments, "--die", "6", succeeds=False)
    assert "Signal 9 (SIGKILL)" in killed.stderr, killed.stderr[-4000:]
    assert not (tmp_path / f"{name}.pt").exists()
    assert {found.name for found in kept.iterdir()} == {"2", "4", "6.tmp"}
    resumed = torchrun("worker", ranks, tmp_path, *arguments)
    assert "from step 4" in resumed.stdout
    assert_same_run(torch.load(tmp_path / f"{name}.pt"), alone(name, LOADED + MORE))


@pytest.mark.parametrize(
    ("name", "rule"),
    [("Muon", "muon"), ("SOAP", "soap"), ("Adafactor", "adafactor"), ("AdamW", None), ("SGD", None)],
)
def test_states_that_are_whole_on_every_rank_are_said_once(
    name: str, rule: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Rules that need all elements; one rank of two, whose peer is torch's stand-in."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    _log._said.clear()
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        params = [torch.nn.Parameter(DTensor.from_local(torch.ones(64, 128), mesh, [Shard(0)])) for _ in range(2)]
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(halfulp, name)(params, lr=0.01, state="bf16", min_size=0, **options)
        with caplog.at_level(logging.WARNING, logger="halfulp"):
            shapes = {row.shape for row in optimizer.memory().rows if row.slot in ("exp_avg", "momentum_buffer")}
    finally:
        torch.distributed.destroy_process_group()
    said = [m for m in caplog.messages if "whole on every rank" in m]
    if rule is None:
        assert (said, shapes) == ([], {(64, 128)})
    else:
        assert len(said) == 1
        assert f"{name}: rule {rule!r} needs all elements of a sharded parameter" in said[0]
        assert shapes <= {(128, 128)}


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the worker of FSDP1 found, of both ranks."""
    folder = tmp_path_factory.mktemp("flat")
    torchrun("flat", 2, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize(
    ("name", "size", "dtype"),
    [
        ("8bit", 2.1, "torch.uint8"), ("8bit-nearest", 2.1, "torch.uint8"), ("4bit", 1.1, "torch.uint8"),
        ("bf16", 4.1, "torch.bfloat16"), ("min_size", 2.1, "torch.uint8"), ("fp32", 8.0, "torch.float32"),
        ("remainder16", 4.1, "torch.uint8"), ("master", 6.1, "torch.uint8"),
    ],
)  # fmt: skip
def test_flat_parameters_of_fsdp1_are_quantized_and_resumed(
    flat: list[dict[str, Any]], name: str, size: float, dtype: str, original: bool
) -> None:
    for found in (rank[f"{name}-{original}"] for rank in flat):
        assert found["bytes"] <= size
        assert found["dtypes"] == [dtype]
        assert found["same"]
        if found["saved"]:  # whole state dictionaries may exist only on the first rank
            assert found["saved"] == ["0.bias", "0.weight", "2.bias", "2.weight"]


@pytest.mark.parametrize(("name", "warned"), [("SOAP", True), ("LAMB", True), ("Lion", False)])
def test_rules_of_whole_parameters_warn_of_flat_ones(flat: list[dict[str, Any]], name: str, warned: bool) -> None:
    for rank in flat:
        assert [m.split(":")[0] for m in rank[name] if "FSDP1" in m] == [name] * warned
