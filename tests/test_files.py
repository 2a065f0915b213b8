"""Files under attack: several writers, full disks, links, devices, and thousands of damaged or hostile files."""

from __future__ import annotations

import copy
import errno
import io
import json
import os
import pickle
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import halfulp
from halfulp.checkpoint.atomic import write_bytes
from halfulp.checkpoint.convert import convert_state_dict
from halfulp.checkpoint.files import read_file
from halfulp.checkpoint.movable import movable
from halfulp.checkpoint.pickles import Name, Record, plain
from halfulp.checkpoint.read import read_saved
from support.hostile_files import places
from support.seeds import FIRST, many

FILES = many("HALFULP_HOSTILE_FILES", 300)
"""How many mutants are read: tens of thousands by hand."""
SCRIPT = Path(__file__).parent / "support" / "hostile_files.py"


def stepped(rows: int) -> Any:
    p = torch.nn.Parameter(torch.ones(rows, 128))
    p.grad = torch.ones_like(p)
    optimizer = halfulp.AdamW([p], state="fp8")
    optimizer.step()
    return optimizer


# ---------------------------------------------------------------- writing


def test_writers_to_one_path_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "optimizer.safetensors"
    optimizers = [stepped(rows) for rows in (40, 640, 1000)]
    halfulp.save_optimizer(optimizers[0], path)
    stop, errors = threading.Event(), []

    def save(optimizer: Any) -> None:
        while not stop.is_set():
            try:
                halfulp.save_optimizer(optimizer, path)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=save, args=(o,)) for o in optimizers]
    for thread in threads:
        thread.start()
    try:
        seen = {len(read_file(path)["state"][0]["exp_avg"]) for _ in range(200)}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert seen <= {40, 640, 1000}
    assert os.listdir(tmp_path) == [path.name]


def test_the_folder_is_flushed_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut may leave the folder without the new name, and the file without its content."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(number: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    def renamed(*names: Any) -> None:
        done.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    write_bytes(tmp_path / "a", b"content")
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_errors_of_the_disk_leave_the_old_file(
    where: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    if where == "open":
        monkeypatch.setattr("builtins.open", fail)
    else:
        monkeypatch.setattr(os, where, fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


FULL = """
import resource, signal, sys
from pathlib import Path
from halfulp.checkpoint.atomic import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_bytes(Path(sys.argv[1]), bytes(1_000_000))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the size of files")
def test_a_file_that_has_no_room_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "OSError\n"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_names_as_long_as_names_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "store" / "a", tmp_path / "a"
    real.parent.mkdir()
    link.symlink_to(real)
    for content in (b"first", b"second"):  # the first write creates the file that the link points to
        write_bytes(link, content)
        assert link.is_symlink()
        assert real.read_bytes() == content


def special(folder: Path, kind: str) -> Path:
    path = folder / "optimizer.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="has none of these")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_special_files_are_neither_read_nor_written(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # socket names must be short
    path = special(Path(), kind)
    before = path.lstat()
    with pytest.raises(OSError, match="not a regular file"):
        halfulp.save_optimizer(stepped(4), path)
    with pytest.raises((ValueError, FileNotFoundError)):
        read_saved(path)
    with pytest.raises((ValueError, FileNotFoundError)):
        halfulp.load_optimizer(stepped(4), path)
    assert path.lstat() == before


# ---------------------------------------------------------------- reading


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures and limits memory in /proc")
def test_mutants_load_or_are_refused(tmp_path: Path) -> None:
    """Memory and time are bounded, nothing is executed, no class has other attributes afterwards."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(FIRST), str(FILES), str(tmp_path)],
        capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failures"] == []
    assert sum(found["counts"].values()) == FILES
    kinds = {name.partition(":")[0] for name in found["counts"]}
    assert len(kinds) == 11
    assert all(found["counts"].get(f"{kind}: refused") for kind in kinds)
    assert sum(n for name, n in found["counts"].items() if name.endswith("loaded")) > FILES / 20


def test_plain_pickles_come_back() -> None:
    value = {"a": [1, -(2**70), 2.5, None, True, "ü"], (1, "b"): ((), {"c": {}}), 3: [[]]}
    for protocol in range(6):
        assert plain(pickle.dumps(value, protocol)) == value


def test_objects_become_records_and_nothing_is_called() -> None:
    found = plain(pickle.dumps({"size": torch.Size((2, 3)), "dtype": torch.float32, "call": print}))
    assert found["dtype"] == Name("torch", "float32")
    assert found["call"] == Name("builtins", "print")
    assert isinstance(found["size"], Record)
    assert (found["size"].kind, found["size"].args) == (Name("torch", "Size"), ((2, 3),))


def nested(depth: int) -> bytes:
    """A dictionary whose key is a tuple of two tuples of two tuples ...: 2^depth of them are hashed."""
    return b"}" + b")" + b"2\x86" * depth + b"Ns."


BAD_PICKLES = {
    "attributes of a class": b"cpathlib\nPurePath\nN}X\x04\x00\x00\x00nameNs\x86b.",
    "attributes of a function": b"cos\nsystem\n}X\x04\x00\x00\x00nameNsb.",
    "a key that takes for ever": b"\x80\x02" + nested(80),
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x020.",
    "a memo far away": b"\x80\x02Nr\xff\xff\xff\x7fj\xfe\xff\xff\x7f.",
    "a string longer than the file": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x00abc.",
    "values of other processes": b"\x80\x05\x97.",
    "an extension": b"\x80\x02\x82\x01.",
    "nothing": b"",
}


@pytest.mark.parametrize("name", BAD_PICKLES)
def test_bad_pickles_are_refused(name: str) -> None:
    with pytest.raises(pickle.UnpicklingError):
        plain(io.BytesIO(BAD_PICKLES[name]))


def test_a_string_of_a_pickle_that_claims_more_than_the_file_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\x80\x05\x96" + (1 << 50).to_bytes(8, "little") + b"abc.")
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError):
        plain(file)


VALUES: tuple[Any, ...] = (None, -1, 2**70, float("nan"), "x", [[]], {"a": {}}, torch.ones(3))


@pytest.mark.parametrize("library", ["halfulp", "torch"])
def test_a_value_of_another_type_anywhere_is_refused_or_does_no_harm(library: str) -> None:
    """Each value of a state dictionary is replaced by each of VALUES; a reader gives a clear error, or a result."""

    def make(ours: bool) -> tuple[torch.nn.Parameter, Any]:
        p = torch.nn.Parameter(torch.ones(4, 128))
        p.grad = torch.ones_like(p)
        options: dict[str, Any] = {"state": "8bit", "min_size": 0} if ours else {}
        return p, (halfulp.AdamW if ours else torch.optim.AdamW)([("a.weight", p)], **options)

    _, source = make(library == "halfulp")
    source.step()
    saved = source.state_dict()
    count, refused = len(list(places(saved))), 0
    for number in range(count):
        for value in VALUES:
            for read in ("movable", "convert", "load"):
                damaged = copy.deepcopy(saved)
                parent, key = list(places(damaged))[number]
                parent[key] = value
                p, optimizer = make(True)
                try:
                    if read == "movable":
                        movable(damaged)
                        continue
                    optimizer.load_state_dict(
                        convert_state_dict(damaged, to=optimizer) if read == "convert" else damaged
                    )
                    optimizer.step()
                except ValueError:
                    refused += 1
                    assert torch.equal(p.detach(), torch.ones(4, 128)), f"{key!r} = {value!r} is refused too late"
    assert refused > count


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("old", "new"),
    [(b"__0_0.distcp", b"../0_0.dist."), (b"__0_0.distcp", b"/etc/passwd."), (b"float32", b"float33")],
)
def test_metadata_that_leads_elsewhere_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "dcp"
    dcp.save({"state": {"a": torch.ones(3)}}, checkpoint_id=folder)
    (tmp_path / "0_0.dist.").write_bytes((folder / "__0_0.distcp").read_bytes())
    assert torch.equal(read_saved(folder)["state"]["a"], torch.ones(3))
    metadata = folder / ".metadata"
    assert old in metadata.read_bytes()
    metadata.write_bytes(metadata.read_bytes().replace(old, new))
    with pytest.raises(ValueError, match="nothing in it was executed"):
        read_saved(folder)


def test_tensors_that_claim_more_than_is_stored_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="claims 1099511627776 elements, and 4 bytes"):
        read_saved(tmp_path / "a.pt")
