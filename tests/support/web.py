"""A page in a headless browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def browser() -> str:
    """Return a Chromium on the path. Without one the test is skipped, unless HALFULP_REQUIRE_BROWSER is set."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        found = shutil.which(name)
        if found:
            return found
    if os.environ.get("HALFULP_REQUIRE_BROWSER"):
        pytest.fail("no chromium or google-chrome on the path, and HALFULP_REQUIRE_BROWSER is set")
    pytest.skip("no chromium or google-chrome on the path")


def dump(page: Path, profile: Path, *flags: str) -> tuple[str, str]:
    """Return the rendered DOM and the console output of a page."""
    done = subprocess.run(
        [
            browser(), *FLAGS, f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0",
            "--virtual-time-budget=2000", *flags, "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr
