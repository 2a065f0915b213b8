"""Runs under torchrun: a script as it stands, then ends as the other workers do."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from support.distributed.cases import end_process

if __name__ == "__main__":
    del sys.argv[0]  # the script's own arguments
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as python does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")
    end_process()
