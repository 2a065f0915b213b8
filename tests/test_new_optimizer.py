"""A new optimizer is one declaration, and then appears in every list, stub, test matrix and page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DECLARATION = '''
"""One declaration, as CONTRIBUTING.md asks for."""
from __future__ import annotations

from dataclasses import dataclass

from halfulp.rules.adam import EXP_AVG
from halfulp.rules.base import Rule
from halfulp.rules.hyper import HyperParameters
from halfulp.rules.transforms import with_weight_decay


@dataclass(frozen=True)
class EmaSGDHyper(HyperParameters):
    """Hyper-parameters of EmaSGD.

    Parameters
    ----------
    betas
        Decay of the average.
    """

    lr: float = 5.0
    betas: tuple[float] = (0.9,)


def _update(param, grad, states, c):
    average = states["exp_avg"] + (grad - states["exp_avg"]) * c["weight"]
    return param - average * c["lr"], {"exp_avg": average}


EMA_SGD = with_weight_decay(
    Rule(
        "ema_sgd", lambda h: (EXP_AVG,), lambda h, ages: {"lr": float(h["lr"]), "weight": 1 - h["betas"][0]}, _update,
        title="EmaSGD", hyper=EmaSGDHyper, summary="steps along the average of the gradient", source="Nobody, 2026",
    )
)
'''
SCRIPT = """
import json, pickle, sys
from pathlib import Path
import halfulp.rules

folder, root = map(Path, sys.argv[1:])
halfulp.rules.__path__.append(str(folder))
sys.path[:0] = [str(root / name) for name in ("tests", "benchmarks", "tools")]
import torch
import halfulp, optimizers_page, stubs, test_matrix

test_matrix.SETTINGS["EmaSGD"] = {"lr": 2.0}
test_matrix.test_trains_and_resumes("EmaSGD", "fp8", "stochastic")
made = halfulp.EmaSGD([torch.nn.Parameter(torch.ones(4, 4))], betas=(0.5,))
print(json.dumps({
    "list": halfulp.EmaSGD in halfulp.optim.OPTIMIZERS,
    "names": "EmaSGD" in halfulp.__all__ and "EmaSGD" in dir(halfulp),
    "doc": halfulp.EmaSGD.__doc__,
    "copy": type(pickle.loads(pickle.dumps(made))).__name__,
    "matrix": "EmaSGD" in test_matrix.NAMES,
    "stubs": [text() for text in stubs.STUBS.values()],
    "page": "\\n".join(optimizers_page.body(root / "docs" / "results")),
    "tables": optimizers_page.tables_page(root / "docs" / "results"),
    "passed": halfulp.testing.check_optimizer(halfulp.EmaSGD, skip=["trains"]).passed,
}))
"""


def test_a_declaration_is_found_everywhere(tmp_path: Path) -> None:
    (tmp_path / "ema_sgd.py").write_text(DECLARATION)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), str(ROOT)]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["list"]
    assert found["names"]
    assert found["matrix"]
    assert found["copy"] == "EmaSGD"
    assert found["doc"].startswith("EmaSGD: steps along the average of the gradient.\n\nNobody, 2026.\n")
    assert "betas\n    Decay of the average.\n" in found["doc"]
    assert "from halfulp.optim import EmaSGD as EmaSGD" in found["stubs"][0]
    assert "class EmaSGD(HyperOptimizer):" in found["stubs"][1]
    assert "        betas: tuple[float] = (0.9,),\n" in found["stubs"][1]
    assert "`EmaSGD`" in found["page"]
    assert "| `EmaSGD` | contributed | steps along the average of the gradient | Nobody, 2026 |" in found["tables"]
    assert "\n| EmaSGD | " in found["tables"]
    assert {"resume", "same_bits", "threads", "elementwise"} <= set(found["passed"])
