"""Checks of saved optimizers: real files of every kind, and hostile files."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import halfulp
from halfulp import cli
from halfulp.checkpoint.movable import movable
from halfulp.checkpoint.read import find_optimizers, read_saved
from halfulp.cli import app


def trained(dtype: torch.dtype = torch.bfloat16, steps: int = 300) -> torch.optim.Optimizer:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    optimizer = torch.optim.AdamW([weight])
    for _ in range(steps):
        weight.grad = torch.randn(64, 64, generator=generator).to(dtype)
        optimizer.step()
    return optimizer


def ours(state: str, rounding: str, steps: int = 300) -> halfulp.AdamW:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = halfulp.AdamW([weight], state=state, rounding=rounding, min_size=0)
    for _ in range(steps):
        weight.grad = torch.randn(64, 64, generator=generator)
        optimizer.step()
    return optimizer


@pytest.fixture(scope="module")
def bf16() -> torch.optim.Optimizer:
    return trained()


def test_bf16_states_of_torch_cannot_fall(bf16: torch.optim.Optimizer) -> None:
    first, second = movable(bf16.state_dict())
    assert (first.slot, second.slot) == ("exp_avg", "exp_avg_sq")
    assert first.verdict == "moves"
    assert second.can_fall == 0.0  # 1 - 0.999 is below a quarter of bfloat16's spacing
    assert second.verdict == "stuck: rises at best, cannot fall"
    assert (second.beta, second.assumed, second.elements) == (0.999, False, 4096)


def test_fp32_states_move() -> None:
    assert [r.verdict for r in movable(trained(torch.float32, 3).state_dict())] == ["moves", "moves"]


@pytest.mark.parametrize(("state", "rounding"), [("bf16", "nearest"), ("bf16", "stochastic"), ("fp8", "nearest"),
                                                 ("fp8", "stochastic"), ("fp4", "nearest")])  # fmt: skip
def test_the_share_that_gets_through_is_what_the_next_steps_show(state: str, rounding: str) -> None:
    """The judgement from the stored values alone, against the monitor over the steps that follow.

    The judgement takes the stored value for the mean of the squared gradient, which it is only on average.
    """
    optimizer = ours(state, rounding, 600)
    row = next(r for r in movable(optimizer.state_dict()) if r.slot == "exp_avg_sq")
    weight = optimizer.param_groups[0]["params"][0]
    mean = float(optimizer.state_tensor(weight, "exp_avg_sq").mean())
    generator = torch.Generator().manual_seed(7)
    with halfulp.StallMonitor(optimizer, sample=10**6, every=1) as watch:
        for _ in range(20):
            weight.grad = torch.randn(64, 64, generator=generator) * mean**0.5
            optimizer.step()
        stalled = next(r.stalled for r in watch.table().rows if r.slot == "exp_avg_sq")
    assert row.gets_through == pytest.approx(1 - stalled, abs=0.03)


def test_a_torch_file_and_what_lies_around_it(bf16: torch.optim.Optimizer, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": {}, "optimizers": [bf16.state_dict()], "step": 3}, path)
    ((place, found),) = find_optimizers(read_saved(path))
    assert place == "optimizers[0]"
    assert movable(found) == movable(bf16.state_dict())


def test_safetensors_ours_and_loose(bf16: torch.optim.Optimizer, tmp_path: Path) -> None:
    halfulp.save_optimizer(bf16, tmp_path / "a.safetensors")
    ((_, found),) = find_optimizers(read_saved(tmp_path / "a.safetensors"))
    assert movable(found) == movable(bf16.state_dict())
    (entries,) = bf16.state.values()
    save_file({f"layer.weight.{k}": entries[k] for k in ("exp_avg", "exp_avg_sq")}, tmp_path / "b.safetensors")
    ((_, found),) = find_optimizers(read_saved(tmp_path / "b.safetensors"))
    rows = movable(found)
    assert [r.assumed for r in rows] == [True, True]
    assert [r.can_fall for r in rows] == [r.can_fall for r in movable(bf16.state_dict())]


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_folder_of_the_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(64, 64, dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.inner(x.bfloat16()) - labels).square().mean()}

    data = [{"x": torch.randn(64), "labels": torch.zeros(64)} for _ in range(16)]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=4, save_steps=4, report_to=[], use_cpu=True,
    )  # fmt: skip
    transformers.Trainer(model=Model(), args=args, train_dataset=data).train()
    ((_, found),) = find_optimizers(read_saved(tmp_path / "checkpoint-4"))
    assert {(r.slot, r.format) for r in movable(found)} == {("exp_avg", "bfloat16"), ("exp_avg_sq", "bfloat16")}


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_distributed_checkpoint(bf16: torch.optim.Optimizer, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"optim": bf16.state_dict(), "model": {"w": torch.zeros(3)}}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    ((place, found),) = find_optimizers(read_saved(tmp_path / "dcp"))
    assert place == "optim"
    assert movable(found) == movable(bf16.state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_saved_optimizers_of_torchao(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = pytest.importorskip("torchao.optim", exc_type=ImportError)
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = getattr(peer, name)([weight])
    for _ in range(20):
        weight.grad = torch.randn(64, 64)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    ((_, found),) = find_optimizers(read_saved(tmp_path / "optimizer.pt"))
    rows = movable(found)
    assert [r.slot for r in rows] == ["exp_avg", "exp_avg_sq"]
    assert all(r.scale_moves and 0 <= r.gets_through <= 1 for r in rows)
    assert rows[1].verdict == "codes stand, block scales move"


@pytest.mark.parametrize("state", ["fp8", "fp4", "int8", "int4", "8bit", "4bit", "fp16"])
def test_every_format_of_ours_is_judged(state: str) -> None:
    rows = movable(ours(state, "nearest", 30).state_dict())
    assert [r.slot for r in rows] == ["exp_avg", "exp_avg_sq"]
    for row in rows:
        assert 0.0 <= row.can_fall <= 1.0
        assert 0.0 <= row.gets_through <= 1.0


# ---------------------------------------------------------------- the command


def test_the_command(bf16: torch.optim.Optimizer, tmp_path: Path) -> None:
    torch.save(bf16.state_dict(), tmp_path / "optimizer.pt")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "optimizer.pt")], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "stuck: rises at best, cannot fall" in result.output
    assert "exp_avg_sq is bfloat16, nearest" in result.output


def check_of(folder: Path, *saved: torch.optim.Optimizer) -> str:
    """What the command says of some optimizers in one file, on one line."""
    torch.save([optimizer.state_dict() for optimizer in saved], folder / "optimizer.pt")
    result = CliRunner().invoke(app, ["check", str(folder / "optimizer.pt")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def adamw(*tensors: torch.Tensor) -> torch.optim.Optimizer:
    params = [torch.nn.Parameter(t) for t in tensors]
    optimizer = torch.optim.AdamW(params)
    for step in range(300):
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(p.dtype)
        optimizer.step()
    return optimizer


def test_a_verdict_says_of_how_much_it_is(tmp_path: Path) -> None:
    """Of 640 elements in norms nothing is advised for the whole; of all of a slot it is."""
    few = check_of(tmp_path, adamw(torch.zeros(640, dtype=torch.bfloat16), torch.zeros(512, 256)))
    assert "640 of 131,712 elements of exp_avg_sq are bfloat16, nearest" in few
    assert "all other states, 99.8% of the elements, can still move" in few
    assert "keep them in fp32" not in few
    many = check_of(tmp_path, adamw(torch.zeros(64, 64, dtype=torch.bfloat16)))
    assert "exp_avg_sq is bfloat16, nearest" in many
    advice = many[many.index("optimizer = halfulp.AdamW") :]
    first, second = advice.split("; ")[:2]
    model = torch.nn.Linear(64, 64, bias=False)
    names = {"halfulp": halfulp, "model": model, "saved": trained().state_dict()}
    exec(f"{first}\n{second}", names)  # the suggested code runs
    assert names["optimizer"].state[model.weight]["step"] == 300  # type: ignore[attr-defined]


def test_every_optimizer_of_a_file_is_judged_and_what_is_not_is_named(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    rows = torch.optim.Adafactor([weight])
    weight.grad = torch.randn(64, 64)
    rows.step()
    said = check_of(tmp_path, rows, adamw(torch.zeros(64, 64)), trained())
    assert [f"optimizer.pt: [{i}]" in said for i in range(3)] == [True] * 3
    assert (
        "[0] is not judged: the optimizer has made no step, or keeps no averages that are known here; row_var" in said
    )
    both = trained()
    both.state[both.param_groups[0]["params"][0]]["row_var"] = torch.ones(64)
    said = check_of(tmp_path, both)
    assert "not judged: row_var (" in said
    assert "not judged: exp_avg" not in said


@pytest.mark.parametrize(
    ("columns", "left_out"),
    [
        (60, "tensors, zero, rounding, elements, decay, can fall"),
        (80, "tensors, zero, rounding, elements"),
        (100, "tensors, zero, rounding"),
        (None, ""),  # a pipe
    ],
)
def test_the_verdict_is_there_at_every_width(
    columns: int | None, left_out: str, bf16: torch.optim.Optimizer, tmp_path: Path
) -> None:
    torch.save(bf16.state_dict(), tmp_path / "optimizer.pt")
    env = {"COLUMNS": None if columns is None else str(columns)}
    result = CliRunner().invoke(app, ["check", str(tmp_path / "optimizer.pt")], env=env)
    assert result.exit_code == 0, result.output
    table = [line for line in result.output.splitlines() if line[:1] in set("┃│┏┡└")]
    assert len({len(line) for line in table}) == 1
    assert len(table[0]) <= (columns or len(table[0]))
    head = [cell.strip() for cell in table[1].split("┃")[1:-1]]
    gone = [heading for heading in left_out.split(", ") if heading]
    assert head == [h for h in ("slot", "format", "rounding", "decay", "tensors", "elements", "zero", "can fall",
                                "gets through", "verdict") if h not in gone]  # fmt: skip
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table if line.startswith("│")]
    assert (cells[0][0], cells[0][-1]) == ("exp_avg", "moves")
    assert " ".join(row[-1] for row in cells[1:]) == "stuck: rises at best, cannot fall"
    assert cells[1][head.index("gets through")] == f"{movable(bf16.state_dict())[1].gets_through:.1%}"
    assert ("no room for" in result.output) is bool(gone)
    assert left_out in " ".join(result.output.split())


def test_names_of_many_tensors_fold(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(30)]
    live = {name: torch.full((4, 4), 1.01) for name in names}
    torch.save(live, tmp_path / "live.pt")
    torch.save({name: torch.ones(4, 4, dtype=torch.bfloat16) for name in names}, tmp_path / "average.pt")
    arguments = ["check", str(tmp_path / "average.pt"), "--live", str(tmp_path / "live.pt")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "60"})
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if line[:1] == "│"]
    assert "".join(row[0] for row in rows) == "".join(names)
    assert sum(row[-1] == "frozen" for row in rows) == 30


BAD = {
    "missing": (lambda p: None, "no file or folder"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "noise": (lambda p: p.write_bytes(bytes(range(200)) * 20), "is neither a torch checkpoint"),
    "text": (lambda p: p.write_text("hello, I am a log file\n" * 50), r"nor safetensors: it begins with b'hello"),
    "json": (lambda p: p.write_text('{"a": 1}\n' * 50), "nor safetensors: it begins with"),
    "json like safetensors": (lambda p: p.write_text("[1, 2, 3{}]"), "nor safetensors: it begins with"),
    "one byte": (lambda p: p.write_bytes(b"P"), "nor safetensors: it begins with b'P'"),
    "pickled numbers": (lambda p: p.write_bytes(b"\x80\x02K\x01."), "damaged"),
    "model only": (lambda p: torch.save({"weight": torch.zeros(3)}, p), "no optimizer state"),
    "no step": (
        lambda p: torch.save(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))]).state_dict(), p),
        "no step",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_end_with_a_message(name: str, tmp_path: Path) -> None:
    write, message = BAD[name]
    path = tmp_path / "optimizer.pt"
    write(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        movable(find_optimizers(read_saved(path))[0][1])


def test_a_truncated_file_and_an_empty_folder(bf16: torch.optim.Optimizer, tmp_path: Path) -> None:
    path = tmp_path / "optimizer.pt"
    torch.save(bf16.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"truncated|damaged"):
        read_saved(path)
    for folder in ("checkpoint-500", "checkpoint-1000"):
        (tmp_path / "run" / folder).mkdir(parents=True)
        torch.save(bf16.state_dict(), tmp_path / "run" / folder / "optimizer.pt")
    with pytest.raises(ValueError, match="holds 2 saved optimizers, checkpoint-1000, checkpoint-500: name one of them"):
        read_saved(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no optimizer"):
        read_saved(tmp_path / "empty")


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def hostile_file(folder: Path, marker: Path, how: str) -> Path:
    path = folder / "optimizer.pt"
    if how == "torch":
        torch.save({"state": {0: {"exp_avg": Hostile(marker)}}, "param_groups": []}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Hostile(marker)))
    else:
        import torch.distributed.checkpoint as dcp

        path = folder / "dcp"
        content = Hostile(marker) if how == "dcp object" else 3
        dcp.save({"optim": {"state": {}, "param_groups": [], "extra": content}}, checkpoint_id=path, no_dist=True)
        if how == "dcp metadata":
            (path / ".metadata").write_bytes(pickle.dumps(Hostile(marker)))
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["torch", "pickle", "dcp metadata", "dcp object"])
def test_hostile_files_run_nothing(how: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = hostile_file(tmp_path, marker, how)
    with pytest.raises(ValueError, match="nothing in it was executed"):
        read_saved(path)
    assert not marker.exists()
    if how == "torch":  # the file is hostile indeed: a careless load runs its code
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["torch", "pickle", "dcp metadata", "dcp object"])
@pytest.mark.parametrize("command", ["check", "check --live", "convert"])
def test_no_command_runs_what_is_in_a_file(command: str, how: str, tmp_path: Path) -> None:
    marker, out = tmp_path / "executed", tmp_path / "out.safetensors"
    path = str(hostile_file(tmp_path, marker, how))
    arguments = {"check": [path], "check --live": [path, "--live", path], "convert": [path, str(out)]}[command]
    result = CliRunner().invoke(app, [command.split()[0], *arguments])
    assert result.exit_code != 0
    assert "nothing in it was executed" in f"{result.output} {result.exception}"
    assert not marker.exists()
    assert not out.exists()


def test_a_file_in_place_of_a_folder_ends_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("not a folder")
    command = [sys.executable, "-m", "halfulp", "check", str(tmp_path / "file.txt" / "below")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert "halfulp: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hostile_file_on_the_command_line(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = hostile_file(tmp_path, marker, "torch")
    done = subprocess.run(
        [sys.executable, "-m", "halfulp", "check", str(path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 2
    assert "nothing in it was executed" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not marker.exists()


NOT_VALID: dict[str, tuple[str, float]] = {
    "NaN": ("exp_avg", float("nan")), "infinite": ("exp_avg_sq", float("inf")), "negative": ("exp_avg_sq", -1.0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", NOT_VALID)
def test_values_that_no_step_makes_are_named(how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Even a single one of them, which no sample finds. Such a state does not "still move"."""
    slot, value = NOT_VALID[how]
    moments = {"exp_avg": torch.ones(100, 100, dtype=dtype), "exp_avg_sq": torch.ones(100, 100, dtype=dtype)}
    moments[slot][3, 1] = value
    saved = {"state": {0: {"step": torch.tensor(9.0), **moments}}, "param_groups": [{"params": [0]}]}
    assert [r.slot for r in movable(saved) if r.verdict == "damaged, or diverged"] == [slot]
    torch.save(saved, tmp_path / "a.pt")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "a.pt")])
    assert f"{slot} has values that are not finite, or negative second moments" in result.output
    assert "every state can still move" not in result.output


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["average", "live"])
def test_a_diverged_average_does_not_move(which: str, value: float, tmp_path: Path) -> None:
    for name in ("average", "live"):
        weight = torch.full((8, 8), 1.0 if name == "live" else 0.5)
        weight[2, 2] = value if name == which else 1.0
        torch.save({"w": weight}, tmp_path / f"{name}.pt")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "average.pt"), "--live", str(tmp_path / "live.pt")])
    assert "w: not finite in one of the files" in result.output
    assert "still move" not in result.output


def test_an_interrupt_ends_with_its_exit_code_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before typer looks for one, while it builds its commands."""
    monkeypatch.setattr(cli, "app", lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")
