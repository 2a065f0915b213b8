"""Setup shared by all tests."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from halfulp.numbers import log
from halfulp.testing.subject import thread_count

os.environ.setdefault("TRITON_INTERPRET", "1")
"""Triton reads this when it is first imported, by whichever test."""

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # threads of several workers on one core spin while they wait for each other
    THREADS = max(1, (os.cpu_count() or 1) // WORKERS)
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # of child processes
    torch.set_num_threads(THREADS)

settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the record of logged messages, so that each test logs them again."""
    monkeypatch.setattr(log, "_said", set())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from more, and the last bits of matrix products may follow their number."""
    with thread_count(1):
        yield
