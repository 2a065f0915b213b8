"""Reader of pickles as plain data.

Nothing in a pickle is imported, called or changed. Names stay names, and calls and objects become records of their
arguments. Memory and time grow only with the length of the pickle.
"""

from __future__ import annotations

import pickle
import pickletools
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

__all__ = ["Name", "Record", "plain"]


class Name(NamedTuple):
    """A global name in a pickle."""

    module: str
    name: str


@dataclass(eq=False)
class Record:
    """An object described by a pickle: the callable, its arguments, and the state set on it afterwards."""

    kind: Any
    args: Any
    state: Any = None
    items: list[Any] = field(default_factory=list)


_MARK = object()
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "FLOAT", "BINFLOAT",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MAPPINGS = (Name("collections", "OrderedDict"), Name("builtins", "dict"))


def plain(source: bytes | IO[bytes]) -> Any:
    """Return the value of one pickle as numbers, strings, containers, :class:`Name` and :class:`Record`.

    A file is read to the end of the pickle.

    Raises
    ------
    pickle.UnpicklingError
        If the pickle is damaged or does what saved data never needs: nested tuples as keys, whose hashing may not
        finish, or values of other processes.

    Examples
    --------
    >>> import pickle
    >>> plain(pickle.dumps({"a": (1, 2.5)}))
    {'a': (1, 2.5)}
    >>> plain(pickle.dumps(print))
    Name(module='builtins', name='print')
    """
    machine = _Machine()
    try:
        bounded: Any = source if isinstance(source, bytes) else _Bounded(source)
        for opcode, argument, _ in pickletools.genops(bounded):
            if opcode.name == "STOP":
                return machine.pop()
            machine.do(opcode.name, argument)
    except pickle.UnpicklingError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise pickle.UnpicklingError(f"damaged pickle: {error}") from error
    raise pickle.UnpicklingError("damaged pickle: it has no end")


class _Bounded:
    """A file that never allocates more bytes than it has, whatever length a pickle claims for a string."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, at = file, file.tell()
        self.end = file.seek(0, 2)
        file.seek(at)
        self.readline, self.tell = file.readline, file.tell

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        return self.file.read(min(size, self.end - self.file.tell()))


class _Machine:
    """The stack and memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise pickle.UnpicklingError("damaged pickle: a mark where a value belongs")
        return value

    def marked(self) -> list[Any]:
        """Pop the last mark and return everything above it."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            if at == 0:
                raise pickle.UnpicklingError("damaged pickle: no mark")
            at -= 1
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def do(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            operation = getattr(self, f"_{name.lower()}", None)
            if operation is None:
                raise pickle.UnpicklingError(f"{name} has no business in saved data")
            operation(argument)

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    _empty_set = _empty_list

    def _dict(self, _: Any) -> None:
        items, made = self.marked(), dict[Any, Any]()
        _set(made, items)
        self.stack.append(made)

    def _list(self, _: Any) -> None:
        self.stack.append(self.marked())

    _frozenset = _list

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.marked()))

    def _tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def _tuple2(self, _: Any) -> None:
        last = self.pop()
        self.stack.append((self.pop(), last))

    def _tuple3(self, _: Any) -> None:
        last, middle = self.pop(), self.pop()
        self.stack.append((self.pop(), middle, last))

    def _append(self, _: Any) -> None:
        value = self.pop()
        _extend(self.stack[-1], [value])

    def _appends(self, _: Any) -> None:
        values = self.marked()  # before the container, which is below them
        _extend(self.stack[-1], values)

    _additems = _appends

    def _setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        _set(self.stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        items = self.marked()
        _set(self.stack[-1], items)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self.marked()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise pickle.UnpicklingError("damaged pickle: a global without a name")
        self.stack.append(Name(module, name))

    def _reduce(self, _: Any) -> None:
        arguments, kind = self.pop(), self.pop()
        self.stack.append({} if kind in _MAPPINGS and arguments == () else Record(kind, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        names, arguments, kind = self.pop(), self.pop(), self.pop()
        self.stack.append(Record(kind, (arguments, names)))

    def _build(self, _: Any) -> None:
        state = self.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state
        elif not isinstance(self.stack[-1], dict):  # attributes of an OrderedDict, which nothing reads
            raise pickle.UnpicklingError(
                f"attributes set on {str(self.stack[-1])[:60]!r} are not allowed in saved data"
            )

    def _persid(self, argument: str) -> None:
        self.stack.append(Record("persistent", argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(Record("persistent", self.pop()))


def _extend(place: Any, values: list[Any]) -> None:
    if isinstance(place, Record):
        place.items.extend(values)
    elif isinstance(place, list):
        place.extend(values)
    else:
        raise pickle.UnpicklingError(f"damaged pickle: nothing can be appended to a {type(place).__name__}")


def _set(place: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise pickle.UnpicklingError("damaged pickle: a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(place, Record):
            place.items.append((key, value))
        elif isinstance(place, dict) and _is_key(key):
            place[key] = value
        else:
            raise pickle.UnpicklingError(f"a key of kind {type(key).__name__} has no business in saved data")


def _is_key(key: Any) -> bool:
    kinds = (str, int, float, bytes, Name, Record, type(None))
    return isinstance(key, kinds) or (isinstance(key, tuple) and all(isinstance(k, kinds) for k in key))
