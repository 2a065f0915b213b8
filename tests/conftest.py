"""Setup shared by all tests."""

import os

import pytest
from hypothesis import HealthCheck, settings

from halfulp.numbers import log

os.environ.setdefault("TRITON_INTERPRET", "1")
"""Triton reads this when it is first imported, by whichever test."""

settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the record of logged messages, so that each test logs them again."""
    monkeypatch.setattr(log, "_said", set())
