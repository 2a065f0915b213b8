"""The lab's text: its sources, splits and tokens, and errors for bad input."""

from __future__ import annotations

import json
import os
import platform
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfulp.lab.text import load_corpus
from halfulp.lab.tokens import Tokens, bpe_size, prepare_tokens

TEXTS = ["first document, " * 40, "second: äöü €\n" * 40, "third\n" * 100, "last one" * 10]


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_default_is_the_library_of_this_python_without_its_tests() -> None:
    corpus = load_corpus()
    root = sysconfig.get_paths()["stdlib"]
    out = {"test", "tests", "idlelib", "encodings", "site-packages", "dist-packages", "__pycache__"}
    names, size = [], 0
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in out]
        for file in files:
            data = Path(folder, file).read_bytes()
            if file.endswith(".py") and data.strip() and b"\0" not in data:
                try:
                    data.decode()
                except UnicodeDecodeError:
                    continue
                names.append(Path(folder, file).relative_to(root).as_posix())
                size += len(data)
    assert corpus.info["source"] == f"standard library of Python {platform.python_version()}"
    assert corpus.info["documents"] == len(names) > 300
    assert corpus.info["bytes"] == size > 5e6
    held_back = sum(len(t.encode()) for t in corpus.validation) / size
    assert 0.01 < held_back <= 0.05


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet", "strings"])
def test_documents_of_every_kind(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    if kind == "folder":
        path.mkdir()
        for i, text in enumerate(TEXTS):
            (path / f"{i}.txt").write_text(text)
        (path / "9.bin").write_bytes(bytes(range(256)))
        (path / ".hidden").write_text("not read")
    elif kind == "parquet":
        path = path.with_suffix(".parquet")
        write_parquet(path, {"id": [1, 2, 3, 4], "content": TEXTS})
    else:
        path = path.with_suffix(".jsonl")
        rows = [json.dumps(t if kind == "strings" else {"id": 1, "text": t}) for t in TEXTS]
        path.write_text("\n".join([rows[0], "", *rows[1:]]))
    corpus = load_corpus(path)
    assert corpus.train + corpus.validation == TEXTS
    assert corpus.validation == TEXTS[3:]
    assert corpus.info["documents"] == 4
    assert corpus.info["bytes"] == sum(len(t.encode()) for t in TEXTS)


def test_one_document_is_cut_at_its_last_twentieth(tmp_path: Path) -> None:
    path = tmp_path / "text.md"
    path.write_text("0123456789" * 100)
    corpus = load_corpus(path)
    assert (corpus.train, corpus.validation) == ([("0123456789" * 100)[:950]], ["0123456789" * 5])


def test_field_can_be_chosen_and_reading_stops(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": "wrong", "body": "b" * 1000}) for _ in range(10)))
    corpus = load_corpus(path, text_key="body", max_mb=0.003)
    assert corpus.train + corpus.validation == ["b" * 1000] * 3


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\\ud800b"}')
    corpus = load_corpus(path)
    assert "".join(corpus.train + corpus.validation) == "a?b"


def test_huggingface_dataset_from_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "mine"
    folder.mkdir()
    write_parquet(folder / "train.parquet", {"text": TEXTS})
    corpus = load_corpus(dataset=str(folder))
    assert corpus.train + corpus.validation == TEXTS
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"cannot load .*none"):
        load_corpus(dataset=str(tmp_path / "none"))


def _bad_source(kind: str, root: Path) -> Path:
    path = root / "x"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "binary folder":
        path.mkdir()
        (path / "a.txt").write_bytes(b"\xff\xfe\x00\x01" * 50)
    elif kind == "empty file":
        path.touch()
    elif kind == "blank file":
        path.write_text(" \n" * 50)
    elif kind == "binary file":
        path.write_bytes(bytes(range(256)))
    elif kind == "bad line":
        path = path.with_suffix(".jsonl")
        path.write_text('{"text": "fine"}\n{"text": ')
    elif kind == "no field":
        path = path.with_suffix(".jsonl")
        path.write_text('{"words": "fine", "id": 3}')
    elif kind == "number":
        path = path.with_suffix(".jsonl")
        path.write_text('{"text": 3}')
    elif kind == "no row":
        path = path.with_suffix(".jsonl")
        path.write_text("[1, 2]")
    elif kind == "no parquet":
        path = path.with_suffix(".parquet")
        path.write_text("not really")
    elif kind == "no column":
        path = path.with_suffix(".parquet")
        write_parquet(path, {"words": ["a"]})
    return path


BAD_SOURCES = {
    "missing": (FileNotFoundError, "no such file or folder"),
    "empty folder": (ValueError, "the folder is empty"),
    "binary folder": (ValueError, "none of its 1 files is UTF-8 text"),
    "empty file": (ValueError, "is empty"),
    "blank file": (ValueError, "every document is empty"),
    "binary file": (ValueError, "not UTF-8 text but binary"),
    "bad line": (ValueError, "line 2: not JSON"),
    "no field": (ValueError, "its fields are words, id"),
    "number": (ValueError, "'text' holds int, not text"),
    "no row": (ValueError, "neither an object nor a string"),
    "no parquet": (ValueError, "is not a parquet file"),
    "no column": (ValueError, "its fields are words"),
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_bad_source_says_what_is_wrong(kind: str, tmp_path: Path) -> None:
    error, message = BAD_SOURCES[kind]
    with pytest.raises(error, match=message):
        load_corpus(_bad_source(kind, tmp_path))


def test_path_and_dataset_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        load_corpus(tmp_path, "some/set")


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.txt").write_text(f"Document {i}: " + " ".join(str(i * k) for k in range(200)))
    return folder


def test_bytes_are_the_text_itself(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = load_corpus(corpus_folder)
    info = prepare_tokens(corpus, "bytes", 16, tmp_path / "tokens")
    for name, texts in (("train", corpus.train), ("validation", corpus.validation)):
        stored = np.load(tmp_path / "tokens" / f"{name}.npy")
        assert stored.astype(np.uint8).tobytes() == "\0".join(texts).encode()
        assert info[f"{name}_tokens"] == len(stored)


def test_bpe_decodes_to_the_text(corpus_folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    corpus = load_corpus(corpus_folder)
    info = prepare_tokens(corpus, "bpe:320", 16, tmp_path / "tokens")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokens" / "tokenizer.json"))
    stored = np.load(tmp_path / "tokens" / "train.npy")
    assert info["vocab"] == 320 > stored.max()
    documents = " ".join(map(str, stored.tolist())).split(" 0 ")
    decoded = [tokenizer.decode([int(t) for t in d.removesuffix(" 0").split()]) for d in documents]
    assert decoded == corpus.train


@pytest.mark.parametrize("text", ["words", "bpe", "bpe:12", "bpe:99999", "bpe:x"])
def test_bad_tokenizer_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="'bytes' or 'bpe:SIZE'"):
        bpe_size(text)


def test_too_little_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short text here")
    with pytest.raises(ValueError, match="train has 14 tokens, and a sequence takes 17"):
        prepare_tokens(load_corpus(tmp_path / "a.txt"), "bytes", 16, tmp_path / "tokens")


def test_batches_follow_from_seed_and_step(corpus_folder: Path, tmp_path: Path) -> None:
    prepare_tokens(load_corpus(corpus_folder), "bytes", 16, tmp_path / "tokens")
    tokens, again = (Tokens(tmp_path / "tokens", 16) for _ in range(2))
    batches = {(seed, step): tokens.batch(seed, step, 4) for seed in (0, 1) for step in (1, 2, 50)}
    assert len({b.numpy().tobytes() for b in batches.values()}) == len(batches)
    assert all((again.batch(*key, 4) == b).all() for key, b in batches.items())
    stream = np.load(tmp_path / "tokens" / "train.npy").astype(np.uint8).tobytes()
    assert all(bytes(row.tolist()) in stream for b in batches.values() for row in b)
    checks = tokens.validation(5)
    assert checks.shape == (5, 17)
    assert len({row.numpy().tobytes() for row in checks}) == 5
