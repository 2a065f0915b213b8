"""What all tests share. Triton reads this variable when it is first imported, whichever test does that."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
