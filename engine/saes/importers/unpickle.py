"""Reading `torch.save` files without executing anything that they contain, in time and memory that their size bounds.

A pickle is a program that imports and calls what it names. Here every name but OrderedDict becomes a stub class, and calling a
stub only records its arguments. Tensors are rebuilt from these stubs afterwards, by this module's own code.

A short program can also stand for a huge object: what it names again and again is one object for Python, and many for whoever
walks through it, such as the hash of a tuple of tuples that is a key. So keys are plain, the object has a bounded number of parts
however often each is named, and no tensor is larger than the numbers that the file holds.
"""

import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from seedscope.engine.saes.importers.files import read_member, require_file, require_honest
from seedscope.engine.saes.importers.values import shown

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
_PICKLE = b"\x80"  # how a pickle begins
_ROUNDS = 100  # levels of nested containers that are followed; real modules have fewer than ten
MOST_PARTS = (
    2_000_000  # of an object, each counted as often as it is named; a state dict with an optimizer has thousands
)
LONGEST_PICKLE = 2**26  # bytes of the program; the numbers of tensors are not in it
LONGEST_KEY = 8  # entries of a tuple that is a key
MOST_LEVELS = 200  # of an object
MOST_REPEATED = (
    2**26
)  # bytes that a tensor may take beyond the numbers it is made of: those that are one number, repeated


class Stub:
    """Stands for an object that a pickle would have made: its class by name, its arguments, and as attributes its state."""

    module = name = ""
    arguments: tuple[Any, ...]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Stub":
        self = super().__new__(cls)
        self.__dict__["arguments"] = args
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `__new__` has kept the arguments."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore the items of subclasses of dict."""

    def append(self, value: Any) -> None:
        """Ignore the entries of subclasses of list."""

    def extend(self, values: Any) -> None:
        """Ignore the entries of subclasses of list."""


def named(value: Any) -> str:
    """`module.name` of the class that a stub or stub class stands for, "" for anything else."""
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.module}.{kind.name}" if issubclass(kind, Stub) else ""


class _Storage(Stub):
    """The storage of a tensor's numbers; its one argument is (.., kind, key, ..)."""


_STEPS: dict[int, Any] = dict(pickle._Unpickler.dispatch)  # what each step of a pickle does


def _set_item(unpickler: Any) -> None:
    _require_plain(unpickler.stack[-2])
    _STEPS[pickle.SETITEM[0]](unpickler)


def _set_items(unpickler: Any) -> None:
    for key in unpickler.stack[::2]:
        _require_plain(key)
    _STEPS[pickle.SETITEMS[0]](unpickler)


def _make_dict(unpickler: Any) -> None:
    for key in unpickler.stack[::2]:
        _require_plain(key)
    _STEPS[pickle.DICT[0]](unpickler)


def _refuse(unpickler: Any) -> None:
    raise ValueError("it holds a set or an array of bytes, which no SAE has")


class _Unpickler(pickle._Unpickler):  # in Python: its steps can be checked
    dispatch: ClassVar[dict[int, Any]] = _STEPS | {
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dict,
        **{step[0]: _refuse for step in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8)},
    }

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._classes: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("collections", "OrderedDict"):
            return _Ordered
        if (module, name) not in self._classes:
            self._classes[module, name] = type("Named", (Stub,), {"module": module, "name": name})
        return self._classes[module, name]

    def persistent_load(self, identifier: Any) -> Stub:
        return _Storage(identifier)


class _Ordered(OrderedDict[Any, Any]):
    """An OrderedDict that is made empty, or of pairs with plain keys."""

    def __init__(self, *pairs: Any) -> None:
        super().__init__()
        for key, value in pairs[0] if pairs else ():
            _require_plain(key)
            self[key] = value


def _require_plain(key: Any) -> None:
    """Raise ValueError for a key that is neither plain nor a short tuple of plain ones: hashing it could take for ever."""
    entries = key if isinstance(key, tuple) and len(key) <= LONGEST_KEY else (key,)
    if not all(entry is None or isinstance(entry, str | bytes | int | float) for entry in entries):
        raise ValueError(f"a key of the type {type(key).__name__}, expected a name or a number")


def _require_bounded(value: Any) -> None:
    """Raise ValueError for an object with more than MOST_PARTS parts, or nested in itself; without walking through all of them.

    A part counts as often as it is named. Objects of classes may name what they are parts of, and count as one then.
    """
    counts: dict[int, int] = {}
    kept: list[Any] = []  # so that no id is used again
    open_ids: set[int] = set()
    stack: list[tuple[Any, list[Any] | None]] = [(value, None)]
    while stack:
        part, parts = stack.pop()
        if parts is not None:  # all parts are counted
            open_ids.discard(id(part))
            counts[id(part)] = n = 1 + sum(counts.get(id(each), 1) for each in parts)
            if n > MOST_PARTS:
                raise ValueError(f"an object of more than {MOST_PARTS:,} parts, each counted as often as it is named")
            continue
        if id(part) in counts or not isinstance(part, dict | list | tuple | Stub):
            continue
        if id(part) in open_ids:
            if isinstance(part, Stub):
                continue
            raise ValueError("an object that is nested in itself")
        if len(open_ids) > MOST_LEVELS:
            raise ValueError(f"an object of more than {MOST_LEVELS} levels")
        open_ids.add(id(part))
        kept.append(part)
        inner = (
            list(part.values())
            if isinstance(part, dict)
            else list(vars(part).values() if isinstance(part, Stub) else part)
        )
        stack.append((part, inner))
        stack += [(each, None) for each in inner]


def unwrapped(state: dict[Any, Any]) -> dict[Any, Any]:
    """A state dict without the prefix that torch.compile (`_orig_mod.`) or data parallelism (`module.`) puts before every name."""
    return {_WRAPPED.sub("", name) if isinstance(name, str) else name: value for name, value in state.items()}


def read(path: Path) -> Any:
    """The object in a `torch.save` file, with its tensors; objects of other classes are stubs.

    Raises ValueError naming the file where it is no complete `torch.save` file.
    """
    return _load(path, tensors=True)


def peek(path: Path) -> Any:
    """As `read`, but tensors are stubs too, so that no weights are read."""
    return _load(path, tensors=False)


def _load(path: Path, *, tensors: bool) -> Any:
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            require_honest(archive, path)
            (member,) = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if archive.getinfo(member).file_size > LONGEST_PICKLE:
                raise ValueError(
                    f"its pickle has {archive.getinfo(member).file_size:,} bytes, expected at most {LONGEST_PICKLE:,}"
                )
            value = _Unpickler(bytes(read_member(archive, member))).load()
            _require_bounded(value)
            value = _Tensors(archive, member.removesuffix("data.pkl")).resolve(value, _ROUNDS) if tensors else value
            return unwrapped(value) if isinstance(value, dict) else value
    except FileNotFoundError:
        raise ValueError(f"found no file {path}, expected a torch.save file") from None
    except zipfile.BadZipFile as error:
        with open(path, "rb") as file:
            is_pickle = file.read(1) == _PICKLE
        if is_pickle:
            raise ValueError(
                f"{path} is a pickle or a torch.save file in the form of before PyTorch 1.6, expected the form of today, which is "
                "read without running it. If you trust it, save it again: torch.save(torch.load(path, weights_only=True), path)"
            ) from None
        raise ValueError(
            f"{path} is not a complete torch.save file ({error}). Copy it again, or save the SAE's state_dict() with torch.save"
        ) from None
    except Exception as error:  # a hostile stream can fail in any way; none of them may pass as something else
        raise ValueError(
            f"{path} is not a complete torch.save file that can be read without running it "
            f"({type(error).__name__}: {str(error)[:200]}). Copy it again, or save the SAE's state_dict() with torch.save"
        ) from None


class _Tensors:
    """Turns the stubs of tensors into tensors."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}
        # {id of a value: (the value, what it became)}; the value is kept, because the id of a freed one is used again.
        self._done: dict[int, tuple[Any, Any]] = {}
        if f"{folder}byteorder" in archive.namelist() and read_member(archive, f"{folder}byteorder") != b"little":
            raise ValueError("written on a big-endian machine")

    def resolve(self, value: Any, rounds: int) -> Any:
        """The value with tensors in place of their stubs, containers changed in place, down to so many levels."""
        if id(value) in self._done or not rounds:
            return self._done.get(id(value), (value, value))[1]
        name = named(value) if isinstance(value, Stub) else ""
        result: Any
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            result = self._tensor(*value.arguments[:4])
        elif name in ("torch._utils._rebuild_parameter", "torch._tensor._rebuild_from_type_v2"):
            inner = value.arguments[0] if name.endswith("parameter") else value.arguments[2][0]
            result = self.resolve(inner, rounds - 1)
        else:
            self._done[id(value)] = value, value  # before its items: they may refer back to it
            result = value
            if isinstance(value, dict):
                value.update({key: self.resolve(item, rounds - 1) for key, item in value.items()})
            elif isinstance(value, list):
                value[:] = [self.resolve(item, rounds - 1) for item in value]
            elif isinstance(value, tuple):
                result = tuple(self.resolve(item, rounds - 1) for item in value)
            elif isinstance(value, Stub):
                value.__dict__.update({key: self.resolve(item, rounds - 1) for key, item in value.__dict__.items()})
        self._done[id(value)] = value, result
        return result

    def _tensor(self, storage: Stub, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        _, kind, key, *_ = storage.arguments[0]
        if not isinstance(key, str):
            raise ValueError(f"a tensor is stored under a {type(key).__name__}, expected a name")
        dtype = _STORAGES.get(kind.name if isinstance(kind, type) and issubclass(kind, Stub) else "")
        if dtype is None:
            raise ValueError(f"a tensor has the storage {shown(named(kind) or kind)}, expected plain numbers")
        if key not in self._storages:
            data = read_member(self._archive, f"{self._folder}data/{key}")
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        numbers = self._storages[key]
        n = math.prod(int(each) for each in size)
        if (n - len(numbers)) * numbers.element_size() > MOST_REPEATED:
            raise ValueError(f"a tensor of {n:,} numbers that are made of {len(numbers):,}")
        # Out-of-range sizes and strides raise here.
        return torch.as_strided(numbers, tuple(size), tuple(stride), int(offset))
