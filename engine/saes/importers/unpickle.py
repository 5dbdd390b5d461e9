"""Reading `torch.save` files without executing anything that they contain.

A pickle is a program that imports and calls what it names. Here every name but OrderedDict becomes a stub class, and calling a
stub only records its arguments. Tensors are rebuilt from these stubs afterwards, by this module's own code.
"""

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._classes: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) not in self._classes:
            self._classes[module, name] = type("Named", (Stub,), {"module": module, "name": name})
        return self._classes[module, name]

    def persistent_load(self, identifier: Any) -> Stub:
        return _Storage(identifier)


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
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            value = _Unpickler(archive.read(member)).load()
            value = _Tensors(archive, member.removesuffix("data.pkl")).resolve(value, _ROUNDS) if tensors else value
            return unwrapped(value) if isinstance(value, dict) else value
    except FileNotFoundError:
        raise ValueError(f"found no file {path}, expected a torch.save file") from None
    except zipfile.BadZipFile as error:
        if path.read_bytes()[:1] == _PICKLE:
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
            f"({type(error).__name__}: {error}). Copy it again, or save the SAE's state_dict() with torch.save"
        ) from None


class _Tensors:
    """Turns the stubs of tensors into tensors."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}
        # {id of a value: (the value, what it became)}; the value is kept, because the id of a freed one is used again.
        self._done: dict[int, tuple[Any, Any]] = {}
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
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
        dtype = _STORAGES.get(kind.name if isinstance(kind, type) and issubclass(kind, Stub) else "")
        if dtype is None:
            raise ValueError(f"a tensor has the storage {named(kind) or kind!r}, expected plain numbers")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        # Out-of-range sizes and strides raise here.
        return torch.as_strided(self._storages[key], tuple(size), tuple(stride), int(offset))
