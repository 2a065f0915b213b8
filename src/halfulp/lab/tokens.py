"""Tokenization and batches: bytes or BPE tokens, and the tokens of each step."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfulp.checkpoint.atomic import write_bytes
from halfulp.lab.files import read_json, write_json
from halfulp.lab.text import Corpus

__all__ = ["Tokens", "bpe_size", "prepare_tokens"]

BPE_SPECIAL = "<|end|>"


def bpe_size(tokenizer: str) -> int | None:
    """Return the vocabulary size of ``bpe:SIZE``, or ``None`` for ``bytes``. Raise ``ValueError`` for anything else."""
    if tokenizer == "bytes":
        return None
    kind, _, size = tokenizer.partition(":")
    if kind != "bpe" or not size.isdigit() or not 300 <= int(size) <= 65535:
        raise ValueError(f"a tokenizer is 'bytes' or 'bpe:SIZE' with a size from 300 to 65535; got {tokenizer!r}")
    return int(size)


def prepare_tokens(corpus: Corpus, tokenizer: str, context: int, folder: Path) -> dict[str, Any]:
    """Write ``train.npy``, ``validation.npy`` and ``tokens.json`` to a folder that every arm reads.

    Documents are joined by a separator, token 0 (the byte 0, which text does not contain).
    """
    size = bpe_size(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = _bytes(corpus) if size is None else _bpe(corpus, size, folder)
    for name, array in arrays.items():
        if len(array) <= context + 1:
            raise ValueError(
                f"too little text: {name} has {len(array)} tokens, and a sequence takes {context + 1}. Give more text "
                "or a shorter context"
            )
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_bytes(folder / f"{name}.npy", buffer.getvalue())
    info = {
        "tokenizer": tokenizer,
        "vocab": 256 if size is None else size,
        **{f"{name}_tokens": len(array) for name, array in arrays.items()},
    }
    write_json(folder / "tokens.json", info)
    return info


def _bytes(corpus: Corpus) -> dict[str, npt.NDArray[np.uint16]]:
    joined = {"train": corpus.train, "validation": corpus.validation}
    return {
        name: np.frombuffer("\0".join(texts).encode(), np.uint8).astype(np.uint16) for name, texts in joined.items()
    }


def _bpe(corpus: Corpus, size: int, folder: Path) -> dict[str, npt.NDArray[np.uint16]]:
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("bpe needs the tokenizers package: pip install 'halfulp[lab]'") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[BPE_SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus.train, trainer)
    write_bytes(folder / "tokenizer.json", tokenizer.to_str().encode())
    arrays = {}
    for name, texts in (("train", corpus.train), ("validation", corpus.validation)):
        parts = [np.asarray([*e.ids, 0], np.uint16) for e in tokenizer.encode_batch(texts)]
        arrays[name] = np.concatenate(parts)
    return arrays


class Tokens:
    """The tokens that :func:`prepare_tokens` has written to a folder, in sequences of `context` and their targets."""

    def __init__(self, folder: Path, context: int) -> None:
        self.vocab: int = read_json(folder / "tokens.json")["vocab"]
        self.context = context
        self._train = np.load(folder / "train.npy", mmap_mode="r")
        self._validation = np.load(folder / "validation.npy", mmap_mode="r")

    def batch(self, seed: int, step: int, size: int) -> Tensor:
        """Return the sequences of a step, ``(size, context + 1)`` int64. They are a pure function of seed and step."""
        generator = np.random.Generator(np.random.Philox(key=[seed, step]))
        starts = generator.integers(0, len(self._train) - self.context - 1, size)
        return self._gather(self._train, starts)

    def validation(self, count: int) -> Tensor:
        """Return `count` sequences spread evenly over the validation text."""
        last = len(self._validation) - self.context - 1
        return self._gather(self._validation, np.linspace(0, last, min(count, last + 1)).astype(np.int64))

    def _gather(self, array: Any, starts: npt.NDArray[np.int64]) -> Tensor:
        rows = np.stack([array[s : s + self.context + 1] for s in starts])
        return torch.from_numpy(rows.astype(np.int64))
