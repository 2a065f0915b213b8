"""Runs an unchanged script under torchrun, then ends like the other workers."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from support.distributed.cases import end_process

if __name__ == "__main__":
    del sys.argv[0]  # the script's own arguments
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as python does for scripts
    runpy.run_path(sys.argv[0], run_name="__main__")
    end_process()
