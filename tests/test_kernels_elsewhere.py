"""The C kernels on another architecture against the reference, bit for bit, if compiler and emulator are installed.

On Debian: ``apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from halfulp.kernels import native
from support.cpu_runs import assert_cpu_has_the_bits
from support.elsewhere import Elsewhere
from support.kernel_cases import AVERAGES, CASES, Case

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
pytestmark = [
    pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not())),
    pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"no {COMPILER} or {EMULATOR}"),
]


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    return Elsewhere(COMPILER, [EMULATOR], Path(tmp_path_factory.mktemp("arm")), [])


@pytest.mark.parametrize("case", [*CASES, *AVERAGES][::7], ids=lambda c: c.id)
def test_arm_has_the_bits_of_the_reference(case: Case, arm: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: arm)
    assert_cpu_has_the_bits(case)
