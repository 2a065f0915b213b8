"""What all tests share."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("TRITON_INTERPRET", "1")
"""Triton reads this when it is first imported, whichever test does that."""

settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")
