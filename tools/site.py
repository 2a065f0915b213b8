"""Pages of the site that come from elsewhere: README, project files, notebooks, and the reference from docstrings.

MkDocs calls :func:`on_config` and :func:`on_files` (``hooks`` in mkdocs.yml).

    pip install -e ".[docs]" && mkdocs serve
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import halfulp

sys.path.insert(0, str(Path(__file__).parent))
import notebooks

ROOT = Path(__file__).resolve().parents[1]
PROJECT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
HOMES = {  # the page of each public name; unlisted names are optimizers
    "storage": "Format Quantizer Scaling Every Planned Staggered Measured ResetSchedule get_format register_format "
    "round_to resize_states",
    "checkpoints": "convert_state_dict save_optimizer load_optimizer check_roundtrip",
    "monitor": "StallMonitor GradientSample",
    "theory": "stall_probability stall_curve plan_reset",
    "training": "fp32_params fp32_state_dict fp32_weights load_fp32_state_dict Lookahead LowPass AutoDrop "
    "warmup_stable_decay linear_to_zero refined scale_adam",
    "rules": "HyperOptimizer optimizer adagc clip_coordinates clip_global",
}
MORE = {  # public names of modules, listed after those of the package
    "monitor": ["monitor.MonitorTable", "monitor.Row", "monitor.Measure", "monitor.log_to"],
    "theory": ["theory.advice.advise"],
    "training": [
        "training.release_gradients",
        "training.offload",
        "training.main_grads",
        "training.trainers.groups_by_name",
        "training.trainers.TrainerFactory",
    ],
    "rules": ["rules.base.Rule", "rules.slots.StateSlot", "rules.slots.Drive", "testing.check_optimizer"],
}
SHADOWED = {"meeting": "meeting.meeting"}
"""Functions named like their module, which the page would otherwise describe instead."""
TITLES = {"storage": "Storage and resets", "averaging": "Averages of weights", "rules": "Rules and transforms"}


def reference() -> dict[str, list[str]]:
    """Return the dotted names on each page of the reference. Every public name is on one."""
    placed = {name for names in HOMES.values() for name in names.split()}
    pages = {"optimizers": ["engine.optimizer.RuleOptimizer", *(c.__name__ for c in halfulp.optim.OPTIMIZERS)]}
    pages |= {page: [*names.split(), *MORE.get(page, ())] for page, names in HOMES.items()}
    pages["averaging"] = [f"averaging.{name}" for name in halfulp.averaging.__all__]
    pages["workers"] = [f"workers.{SHADOWED.get(name, name)}" for name in halfulp.workers.__all__ if name != "METHODS"]
    missing = set(halfulp.__all__) - placed - set(pages["optimizers"]) - {"OPTIMIZERS"}
    if missing:
        raise ValueError(f"tools/site.py: no page of the reference has {', '.join(sorted(missing))}")
    return pages


def project_page(name: str) -> str:
    """Return a file of the top folder, with links adjusted to the docs folder."""
    text = (ROOT / name).read_text()
    text = re.sub(r"\]\(docs/", "](", text)
    for file, page in PROJECT.items():
        text = text.replace(f"]({file}", f"]({page}")
    return re.sub(r"\[([^\]]*)\]\(CITATION\.cff\)", r"`\1`", text)


def on_config(config: Any) -> Any:
    """Append pages that the navigation does not name after the guides, so that all are reachable."""
    named = re.findall(r"[\w/-]+\.md", json.dumps(config["nav"]))
    guides = next(part["Guides"] for part in config["nav"] if "Guides" in part)
    guides += [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in named]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs."""
    from mkdocs.structure.files import File

    optimizers = {c.__name__ for c in halfulp.optim.OPTIMIZERS}  # their methods are those of RuleOptimizer
    pages = {page: project_page(name) for name, page in PROJECT.items()}
    for page, names in reference().items():
        bare = "\n    options: {members: []}"
        body = "\n\n".join(f"::: halfulp.{name}{bare if name in optimizers else ''}" for name in names)
        pages[f"reference/{page}.md"] = f"# {TITLES.get(page, page.capitalize())}\n\n{body}\n"
    for path in notebooks.FOLDER.glob("*.ipynb"):
        text = notebooks.markdown(json.loads(path.read_text()))
        pages[f"notebooks/{path.stem}.md"] = f"{text}\n[This notebook]({path.name}) as a file.\n"
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files
