"""Damaged and hostile files of every kind that the library reads, made from sound files by seeded mutations.

As a script (``python hostile_files.py SEED COUNT FOLDER``), it reads that many files in one process of bounded memory,
and prints the counts as JSON. Every result other than a load or a clear error is listed under ``failures``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import pickle
import pickletools
import random
import resource
import shutil
import signal
import struct
import sys
import time
import types
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

import halfulp
from halfulp.checkpoint.files import load_optimizer
from halfulp.checkpoint.movable import movable
from halfulp.checkpoint.read import find_optimizers, read_saved
from halfulp.lab.config import CompareConfig
from halfulp.lab.files import read_config, read_jsonl

MEMORY = 2 << 30
"""The address space in bytes that reading may use beyond that of the process at the start."""
SECONDS = 20.0
"""The longest time for one file."""
INTEGERS = (0, 1, -1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**64)
NAMES = (
    ("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("builtins", "setattr"), ("builtins", "set"),
    ("torch", "load"), ("torch", "Tensor"), ("torch.nn", "Module"), ("pathlib", "PosixPath"), ("pathlib", "PurePath"),
    ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("torch", "float32"), ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_FileSystemWriter"),
    ("torch.distributed.checkpoint.filesystem", "FileSystemReader"),
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("halfulp.checkpoint.files", "write_file"), ("subprocess", "Popen"),
)  # fmt: skip
JUNK: tuple[Any, ...] = (
    None, True, "", "a" * 300, "../../etc/passwd", "/dev/zero", "\0", 0, -1, 2**31, 2**63, 2**70, 1e308, float("nan"),
    [], {}, [[]], {"tensor": "0"}, {"tensor": "99"}, {"map": []}, {"map": [[{"tuple": [1]}, 2]]},
    {"map": [[{"list": [1]}, 2]]}, {"what": 1}, {"tuple": [1, 2], "list": []},
)  # fmt: skip


# ---------------------------------------------------------------- sound files


def sound_files(folder: Path) -> dict[str, Path]:
    """One small sound file, or folder, of each kind."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 66), torch.nn.Linear(66, 2))
    made: dict[str, Path] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {
        "8bit": halfulp.AdamW(model.named_parameters(), state="8bit", min_size=64),
        "4bit": halfulp.Lion(model.parameters(), state="4bit", min_size=64),
        "torch": torch.optim.AdamW(model.parameters()),
    }
    for name, optimizer in optimizers.items():
        model(torch.randn(4, 64)).square().sum().backward()
        optimizer.step()
        made[f"ours {name}"] = folder / f"{name}.safetensors"
        halfulp.save_optimizer(optimizer, made[f"ours {name}"])
        made[f"zip {name}"] = folder / f"{name}.pt"
        torch.save({"optimizer": optimizer.state_dict(), "step": 3}, made[f"zip {name}"])
    made["legacy"] = folder / "legacy.pt"
    torch.save(optimizers["torch"].state_dict(), made["legacy"], _use_new_zipfile_serialization=False)
    from safetensors.torch import save_file

    made["loose"] = folder / "loose.safetensors"
    first = next(iter(optimizers["torch"].state.values()))
    save_file({f"layer.weight.{k}": v for k, v in first.items() if v.ndim}, made["loose"])
    made["dcp"] = folder / "dcp"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"optim": optimizers["8bit"].state_dict(), "extra": [1, (2, "x")]}, checkpoint_id=made["dcp"])
    made["json"] = folder / "config.json"
    made["json"].write_text(json.dumps(dataclasses.asdict(CompareConfig(steps=10))))
    made["jsonl"] = folder / "rows.jsonl"
    made["jsonl"].write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n')
    return made


# ---------------------------------------------------------------- mutations


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, duplicate, delete or overwrite bytes, without regard to their meaning."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(out)) if out else 0
        match rng.randrange(7):
            case 0 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = out[at : at + rng.randrange(1, 64)]
            case 3:
                del out[at : at + rng.randrange(1, 64)]
            case 4:
                out[at : at + 8] = struct.pack("<Q", rng.choice(INTEGERS) % 2**64)
            case 5:
                out[at : at + 4] = struct.pack("<I", rng.choice(INTEGERS) % 2**32)
            case 6:
                out[at:at] = rng.randbytes(rng.randrange(1, 16))
    return bytes(out)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Replace, drop, duplicate or nest one node of a JSON value."""
    found = list(places(value))
    if not found:
        return rng.choice(JUNK)
    parent, key = rng.choice(found)
    match rng.randrange(6):
        case 0 | 1:
            parent[key] = rng.choice(JUNK)
        case 2:
            parent[key] = rng.choice(INTEGERS)
        case 3:
            other, at = rng.choice(found)
            parent[key] = copy.deepcopy(other[at])
        case 4:
            del parent[key]
        case 5:
            parent[key] = [parent[key]]
    return value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in nested dictionaries and lists, with each of its keys."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """Change arguments of operations, names of globals, and the order of operations; insert calls and attributes."""
    ops = []
    with contextlib.suppress(ValueError):
        ops = [(op.name, arg, at) for op, arg, at in pickletools.genops(data)]
    if len(ops) < 3:
        return mutate_bytes(data, rng)
    ends = [at for _, _, at in ops[1:]] + [len(data)]
    pieces = [data[at:end] for (_, _, at), end in zip(ops, ends, strict=True)]
    i = rng.randrange(len(pieces) - 1)
    match rng.randrange(8):
        case 0:
            numbers = [k for k, (name, *_) in enumerate(ops) if name.startswith("BININT")]
            if numbers:
                pieces[rng.choice(numbers)] = pickle.dumps(rng.choice(INTEGERS), 2)[2:-1]
        case 1:
            words = [k for k, (name, *_) in enumerate(ops) if "UNICODE" in name]
            if words:
                word = rng.choice(("../x", "/etc/passwd", "__class__", "finish", "", "a" * 200, rng.choice(NAMES)[1]))
                pieces[rng.choice(words)] = pickle.dumps(word, 2)[2:-3]
        case 2:
            named = [k for k, (name, *_) in enumerate(ops) if name in ("GLOBAL", "STACK_GLOBAL")]
            if named:
                at, (module, name) = rng.choice(named), rng.choice(NAMES)
                drop = b"00" if ops[at][0] == "STACK_GLOBAL" else b""
                pieces[at] = drop + f"c{module}\n{name}\n".encode()
        case 3:
            del pieces[i]
        case 4:
            pieces.insert(i, pieces[rng.randrange(len(pieces) - 1)])
        case 5:
            pieces[i], pieces[i - 1] = pieces[i - 1], pieces[i]
        case 6:  # a class with attributes set, then dropped
            module, name = rng.choice(NAMES)
            pieces.insert(i, f"c{module}\n{name}\n".encode() + b"N}X\x06\x00\x00\x00finishNs\x86b0")
        case 7:  # a call whose result is dropped
            module, name = rng.choice(NAMES)
            pieces.insert(i, f"c{module}\n{name}\n".encode() + b"(X\x04\x00\x00\x00truetR0")
    return b"".join(pieces)


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change a safetensors file: its header, our own tree in it, or tensor bytes with a new checksum."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = rng.randrange(3)
    if kind == 0:
        header = mutate_json(header, rng)
    elif kind == 1 and "__metadata__" in header and "tree" in header["__metadata__"]:
        tree = mutate_json(json.loads(header["__metadata__"]["tree"]), rng)
        header["__metadata__"]["tree"] = "[" * 100_000 if rng.random() < 0.05 else json.dumps(tree)
    else:
        at = rng.randrange(max(1, len(body)))
        body = body[:at] + rng.choice((b"\xff", b"\x7f\xc0", b"\x00")) + body[at + 1 :]
        if isinstance(header, dict) and "__metadata__" in header:
            names = sorted(k for k in header if k != "__metadata__")
            crc = 0
            for name in names:
                start, end = header[name]["data_offsets"]
                crc = zlib.crc32(body[start:end], crc)
            header["__metadata__"]["crc32"] = str(crc)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Change the pickle or the members of a torch archive, and zip it again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    kind = rng.randrange(5)
    at = rng.randrange(len(members))
    if kind <= 2:
        members = [(n, mutate_pickle(d, rng) if n.endswith("data.pkl") else d) for n, d in members]
    elif kind == 3:
        members[at] = (members[at][0], mutate_bytes(members[at][1], rng))
    elif rng.random() < 0.5:
        del members[at]
    else:
        members.append((members[at][0], bytes(rng.choice((10, 10_000_000)))))
    out = io.BytesIO()
    pressed = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", pressed) as archive:
        warnings.simplefilter("ignore")  # warns of duplicate names
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def _text(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(mutate_json(json.loads(data), rng)).encode()


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "ours": mutate_safetensors,
    "loose": mutate_safetensors,
    "zip": mutate_zip,
    "legacy": mutate_bytes,
    "json": _text,
    "jsonl": mutate_bytes,
    "dcp": mutate_pickle,
}


def mutant(kind: str, sound: Path, target: Path, rng: random.Random) -> Path:
    """Write a mutation of a sound file or folder."""
    change = STRUCTURED[kind.split()[0]] if rng.random() < 0.75 else mutate_bytes
    if not sound.is_dir():
        path = target.with_suffix(sound.suffix)
        path.write_bytes(change(sound.read_bytes(), rng))
        return path
    shutil.copytree(sound, target)
    files = sorted(target.iterdir())
    chosen = target / ".metadata" if rng.random() < 0.75 else rng.choice(files)
    chosen.write_bytes((change if chosen.name == ".metadata" else mutate_bytes)(chosen.read_bytes(), rng))
    return target


# ---------------------------------------------------------------- reading them


def classes() -> dict[str, dict[str, Any]]:
    """Return the attributes of every class that a hostile file could try to change."""
    modules = [m for n, m in list(sys.modules.items()) if n.startswith(("torch.distributed.checkpoint", "pathlib"))]
    modules += [
        sys.modules[n] for n in ("collections", "enum", "torch", "torch._utils", "os", "halfulp.checkpoint.dcp")
    ]
    found = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, (type, types.FunctionType)):
                found[f"{value.__module__}.{value.__qualname__}"] = dict(vars(value))
    return found


def read_everything(kind: str, path: Path, optimizer: Any) -> str:
    """Read a file in every way available for its kind. Return ``"loaded"`` or ``"refused"``."""
    result = "refused"
    if kind == "json":
        with contextlib.suppress(ValueError):
            read_config(path, CompareConfig)
            result = "loaded"
        return result
    if kind == "jsonl":
        with contextlib.suppress(ValueError):
            read_jsonl(path)
            result = "loaded"
        return result
    with contextlib.suppress(ValueError, FileNotFoundError):
        for _, found in find_optimizers(read_saved(path)):
            movable(found)
            result = "loaded"
    with contextlib.suppress(ValueError, FileNotFoundError):
        for _, found in find_optimizers(read_saved(path)):
            halfulp.convert_state_dict(found, to=optimizer)
    if path.suffix == ".safetensors":
        for convert in (False, True):
            with contextlib.suppress(ValueError):
                load_optimizer(optimizer, path, convert=convert)
                optimizer.step()
    return result


def _fresh() -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 66), torch.nn.Linear(66, 2))
    optimizer = halfulp.AdamW(model.named_parameters(), state="8bit", min_size=64)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return optimizer


def _forbid(event: str, arguments: Any) -> None:
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "os.fork"):
        raise SystemExit(f"a file made this process do {event} {arguments!r}")


def main(seed: int, count: int, folder: Path) -> None:
    """Read `count` mutants and print the results."""
    sys.setrecursionlimit(1000)
    torch.set_num_threads(1)
    sound = sound_files(folder)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for kind, path in sound.items():
        if read_everything(kind, path, _fresh()) != "loaded":
            failures.append(f"the sound file of kind {kind} does not load")
    before = classes()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.addaudithook(_forbid)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.signal(signal.SIGPROF, signal.default_int_handler)
    slowest = 0.0
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        kind = rng.choice(list(sound))
        path = mutant(kind, sound[kind], folder / "mutant", rng)
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor, which others may use too
        signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                counts[f"{kind}: {read_everything(kind, path, _fresh())}"] += 1
        except BaseException as error:
            failures.append(f"{kind}, seed {seed}/{number}: {type(error).__name__}: {str(error)[:200]}")
            if isinstance(error, SystemExit):
                break
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.perf_counter() - began)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        if number % 200 == 199 or number == count - 1:
            after = classes()
            failures += [f"by {seed}/{number}: attributes of {n} were set" for n in before if after.get(n) != before[n]]
            if len(failures) > 20:
                break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"counts": counts, "failures": failures, "slowest": round(slowest, 2), "peak_mib": round(peak)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
