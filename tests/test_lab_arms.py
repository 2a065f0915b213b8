"""The names of arms, their reset periods, and the configuration of a comparison."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from halfulp.cli import app
from halfulp.lab.arms import DEFAULT_ARMS, Arm, parse_arm, reset_period
from halfulp.lab.config import CompareConfig
from halfulp.lab.files import read_config, write_json
from halfulp.lab.scale import ScaleConfig

GOOD = {
    "fp32": Arm("fp32", "fp32", "nearest"),
    "fp32-reset": Arm("fp32", "fp32", "nearest", 0),
    "bf16-nearest": Arm("bf16", "bf16", "nearest"),
    "fp8-stochastic": Arm("fp8", "fp8", "stochastic"),
    "fp8-nearest-reset300": Arm("fp8", "fp8", "nearest", 300),
    "int8-stochastic-reset": Arm("int8", "int8", "stochastic", 0),
    "bf16+fp8-nearest": Arm("bf16", "fp8", "nearest"),
    "float8_e4m3fn+ufloat8_e4m4-stochastic": Arm("float8_e4m3fn", "ufloat8_e4m4", "stochastic"),
}

BAD = {
    "": "an arm is FORMAT-ROUNDING",
    "fp9-nearest": "Did you mean 'fp8'",
    "fp8": "write fp8-nearest or fp8-stochastic",
    "fp32-nearest": "write fp32 or fp32-reset",
    "fp8-up": "'up' is no rounding",
    "fp8-nearest-reset0": "as in reset300",
    "fp8-nearest-resetting": "as in reset300",
    "fp8-nearest-reset-300": "is no rounding",
    "a+b+c-nearest": "an arm is FORMAT-ROUNDING",
    "ufloat8_e4m4-nearest": "has no sign",
}


@pytest.mark.parametrize("text", GOOD)
def test_arm_is_read_and_written(text: str) -> None:
    assert parse_arm(text) == GOOD[text]
    assert parse_arm(text).name == text


@pytest.mark.parametrize("text", BAD)
def test_bad_arm_says_what_is_wrong(text: str) -> None:
    with pytest.raises(ValueError, match=BAD[text]):
        parse_arm(text)


def test_default_has_the_arms_that_the_paper_compares() -> None:
    needed = {"fp32", "fp32-reset", "bf16-nearest", "fp8-nearest", "fp8-nearest-reset", "fp8-stochastic"}
    assert needed | {"fp4-stochastic"} <= set(DEFAULT_ARMS)


def test_periods() -> None:
    texts = ("fp32-reset", "fp8-nearest-reset", "fp4-stochastic-reset", "bf16-nearest-reset", "bf16-nearest")
    arms = tuple(parse_arm(text) for text in texts)
    assert [reset_period(a, arms) for a in arms] == [300, 300, 200, 1000, None]  # fp32 is the control of the next one
    assert reset_period(arms[0], (arms[0], arms[2])) == 200
    assert reset_period(arms[0], arms[:1]) == 300
    assert reset_period(parse_arm("fp32+bf16-nearest-reset"), arms) == 1000
    assert reset_period(parse_arm("fp4-nearest-reset77"), arms) == 77


def test_config_round_trips_through_json(tmp_path: Path) -> None:
    config = CompareConfig(arms=("fp32", "fp4-stochastic"), seeds=(0, 1), lrs=(1e-3, 3e-3), steps=7)
    write_json(tmp_path / "config.json", dataclasses.asdict(config))
    assert read_config(tmp_path / "config.json", CompareConfig) == config
    assert len({spec.name for spec in config.runs()}) == len(config.runs()) == 8
    fixed = CompareConfig(arms=("fp32-reset", "fp4-nearest-reset50", "fp32")).with_periods()
    assert fixed.arms == ("fp32-reset50", "fp4-nearest-reset50", "fp32")
    assert [spec.period for spec in fixed.runs()] == [50, 50, None]


DAMAGED = {
    '{"colour": 1}': "unknown keys .'colour'.: it was written by another version",
    '{"factor": "8"}': "a value of another kind",
    '{"lrs": "a"}': "a value of another kind",
    '{"seeds": "2"}': "seeds is a whole number of at least 1, got '2'",
    "[]": "holds a list instead of a configuration",
    "null": "holds a NoneType instead of a configuration",
    "{": "is not valid JSON",
}


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_config_says_what_is_wrong(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=DAMAGED[text]):
        read_config(tmp_path / "config.json", ScaleConfig)


@pytest.mark.parametrize("text", ["{}", '{"factor": 8}', "null", "[]", '{"factor": "8"}'])
def test_a_folder_with_a_config_alone_is_not_resumed(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    done = CliRunner().invoke(app, ["compare", "--resume", str(tmp_path)])
    assert done.exit_code == 1
    assert isinstance(done.exception, ValueError)
    assert "tokens/ folder is gone" in str(done.exception) or "config.json" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arms": ()}, "at least one of its arms"),
        ({"arms": ("fp32", "fp32")}, "once each"),
        ({"steps": 0}, "steps is a whole number of at least 1, got 0"),
        ({"context": 1}, "context is a whole number of at least 2, got 1"),
        ({"lrs": (0.0,)}, "positive"),
        ({"betas": (0.9, 1.0)}, "between 0 and 1"),
        ({"hidden": 30, "heads": 4}, "does not split over 4 heads"),
        ({"model": "gpt"}, "llama, neox, mixtral"),
        ({"validation": 0}, "validation"),
    ],
)
def test_bad_config_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareConfig(**values)
