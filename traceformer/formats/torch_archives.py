"""What torch saved, read without torch: containers of plain tensors in the archives that it writes since 1.6.

1. Such a file is a zip of `NAME/data.pkl`, a pickle, and `NAME/data/KEY`, the numbers of each storage, uncompressed.
2. The pickle is read as what it is, a list of instructions: `pickletools` says what each is, and the few that
   containers and tensors are made of are followed here. Nothing is imported and nothing is called, whatever it names.
3. A tensor is a part of a storage: where it begins, its shape and its strides, which have to lie within the storage.

`torch_files` reads the same with torch's own loader, and older files as well.
"""

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traceformer.errors import NotFound, Unreadable
from traceformer.formats.torch_files import more_than_tensors
from traceformer.shapes import Num
from traceformer.store.dtypes import decode

__all__ = ["read_torch_archive"]

_STORAGES: Mapping[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": np.uint16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
}
# What zipfile, pickletools and the instructions themselves raise where bytes are missing or changed.
_DAMAGED = (
    *(zipfile.BadZipFile, struct.error, EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError),
    *(NotImplementedError, RuntimeError, OSError),
)


def read_torch_archive(path: Path) -> Any:
    """Returns what a .pt file holds, its tensors as numpy arrays (bfloat16 as float32), its containers as they are.

    Raises:
        NotFound: no such file.
        Unreadable: it is none that torch writes today, not all of one, or holds more than tensors and containers.
    """
    if not path.is_file():
        raise NotFound(f"no file {path}")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip archive")
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except _MoreThanTensors as error:
        raise more_than_tensors(path, str(error)) from error
    except _DAMAGED as error:
        why = "" if isinstance(error, LookupError) else str(error).partition("\n")[0]
        hint = "files from before torch 1.6 are read once today's `torch.save` has written them again"
        raise Unreadable(f"{path} is no .pt file of today, or not all of one", why=why, hint=hint) from error


class _MoreThanTensors(Exception):
    """The pickle asks for something that is neither a container nor a tensor."""


class _Name(NamedTuple):
    """What a pickle would import."""

    module: str
    name: str


class _Storage(NamedTuple):
    """All numbers of a storage, and whether they are bfloat16's bits."""

    values: Num[np.ndarray, "number"]
    is_bfloat16: bool


def _read(archive: zipfile.ZipFile) -> Any:
    sizes = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} times a data.pkl")
    [pickled] = pickles
    folder = pickled.removesuffix("data.pkl")

    def content(name: str) -> bytes:
        if sizes[name].compress_type != zipfile.ZIP_STORED:  # torch never does, and it could grow without limit
            raise ValueError(f"{name} is compressed")
        return archive.read(name)

    order = content(f"{folder}byteorder").strip() if f"{folder}byteorder" in sizes else b"little"
    if order != b"little":
        raise ValueError(f"its byte order is {order.decode(errors='replace')}")
    storages: dict[str, _Storage] = {}

    def storage(kind: _Name, key: str) -> _Storage:
        if kind.module != "torch" or kind.name not in _STORAGES:
            raise _MoreThanTensors(f"it names {kind.module}.{kind.name}")
        if key not in storages:
            values = np.frombuffer(content(f"{folder}data/{key}"), np.dtype(_STORAGES[kind.name]))
            storages[key] = _Storage(values, kind.name == "BFloat16Storage")
        return storages[key]

    return _follow(content(pickled), storage)


def _follow(pickled: bytes, storage: Callable[[_Name, str], _Storage]) -> Any:
    """Returns what the instructions of a pickle make."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[opcode.name])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                value = stack.pop()
                _container(stack[-1], list).append(value)
            case "APPENDS":
                values = since_mark()
                _container(stack[-1], list).extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _container(stack[-1], dict)[key] = value
            case "SETITEMS":
                values = since_mark()
                _container(stack[-1], dict).update(zip(values[::2], values[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                module, _, name = str(argument).partition(" ")
                stack.append(_Name(module, name))
            case "BINPERSID":
                kind, of, key, _, _ = stack.pop()
                if kind != "storage" or not isinstance(of, _Name) or not isinstance(key, str):
                    raise ValueError("a storage that is none")
                stack.append(storage(of, key))
            case "REDUCE":
                arguments, made = stack.pop(), stack.pop()
                stack.append(_made(made, arguments))
            case "BUILD":  # what a state dict says of its modules' versions
                stack.pop()
                _container(stack[-1], dict)
            case "STOP":
                [value] = stack
                return value
            case other:
                raise _MoreThanTensors(f"it has the instruction {other}")
    raise EOFError("it ends in the middle")


def _container(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _MoreThanTensors("it gives a state to an object of another class")
    return value


def _made(what: Any, arguments: Any) -> Any:
    """What a call makes that a pickle asks for: an ordered dict, a tensor, or a parameter, which is a tensor."""
    match what:
        case _Name("collections", "OrderedDict"):
            if arguments:
                raise ValueError("an ordered dict of arguments")
            return {}
        case _Name("torch._utils", "_rebuild_tensor_v2"):
            storage, offset, shape, strides, *_ = arguments
            return _tensor(storage, offset, shape, strides)
        case _Name("torch._utils", "_rebuild_parameter"):
            return arguments[0]
        case _Name(module, name):
            raise _MoreThanTensors(f"it calls {module}.{name}")
        case _:
            raise _MoreThanTensors("it calls what it made itself")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Num[np.ndarray, "..."]:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or any(type(own) is not int for own in numbers):
        raise ValueError("a tensor that is none")
    values = storage.values
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # A tensor may repeat what a storage holds: a small file would then be a large array.
    if min(numbers) < 0 or math.prod(shape) > len(values) or (0 not in shape and last >= len(values)):
        raise ValueError("a tensor reaches beyond its storage")
    steps = [stride * values.itemsize for stride in strides]
    part = np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)
    return decode(np.array(part), "bfloat16") if storage.is_bfloat16 else part
