"""Consecutive windows of one long file, as byte-level models are measured on."""

from pathlib import Path
from typing import Any

from traceformer.capture.encoding import Encoded
from traceformer.errors import NotFound, Unreadable, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.sites import Stack
from traceformer.texts.windows import Part

__all__ = ["check_length", "file_windows"]


_BYTES_PER_TOKEN = 8  # to begin with; more are read until there are enough tokens


def file_windows(loaded: LoadedModel, path: Path, length: int, count: int, part: Part = "validation") -> list[Encoded]:
    """Returns the first `count` windows of `length` tokens each of a file, one after the other.

    For a tokenizer whose tokens are bytes, the windows are the file's very bytes. Other tokenizers read it as UTF-8,
    and put their special tokens into each window. `validation` is the last tenth of the file, as in the
    byte-transformer thesis; where that is too short, fewer windows are returned.

    Raises:
        NotFound: no such file.
        UsageError: the model cannot read windows of that length.
        Unreadable: the file has not one window in that part.
        Unsupported: the model's tokenizer cannot cut windows.
    """
    if not path.is_file():
        raise NotFound(f"no file {path}", hint="`data_path` takes one file; `dataset` takes folders and data sets")
    stack = check_length(loaded, length)
    size = path.stat().st_size
    start, stop = {"validation": (size * 9 // 10, size), "train": (0, size * 9 // 10), "all": (0, size)}[part]
    with path.open("rb") as file:
        file.seek(start)
        if _tokens_are_bytes(loaded.reader()):
            data = file.read(min(count * length, stop - start))
            windows = [list(data[first : first + length]) for first in range(0, len(data) - length + 1, length)]
        else:
            most, data = 0, b""
            windows: list[list[int]] = []
            while len(windows) < count and most < stop - start:
                most = 2 * most or count * length * _BYTES_PER_TOKEN
                data += file.read(min(most, stop - start) - len(data))
                windows = _text_windows(loaded.reader(), data, length)[:count]
    if not windows:
        what = {"validation": "the last tenth of ", "train": "the first nine tenths of ", "all": ""}[part]
        raise Unreadable(
            f"{what}{path} has no {length} tokens",
            why=f"it holds {stop - start} bytes",
            hint="a smaller `seq_length`" + ("" if part == "all" else ', or `split="all"`'),
        )
    return [Encoded({stack: ids}, {stack: loaded.reader().convert_ids_to_tokens(ids)}, offsets=None) for ids in windows]


def check_length(loaded: LoadedModel, length: int) -> Stack:
    """Returns the stack that reads windows of so many tokens.

    Raises:
        UsageError: it cannot read as many.
    """
    stack: Stack = "dec" if loaded.dims.arch == "dec" else "enc"
    n_ctx = loaded.dims.stacks[stack].n_ctx
    if n_ctx and length > n_ctx:
        raise UsageError(f"`seq_length={length}`", why=f"{loaded.name} reads {n_ctx} tokens", hint=f"{n_ctx} or less")
    return stack


def _tokens_are_bytes(tokenizer: Any) -> bool:
    """Whether token i is byte i: asked of printable ASCII, and of a character of two bytes."""
    text = bytes(range(0x21, 0x7F)).decode() + "é"
    return tokenizer(text, add_special_tokens=False)["input_ids"] == list(text.encode())


def _text_windows(tokenizer: Any, data: bytes, length: int) -> list[list[int]]:
    if not tokenizer.is_fast:
        raise Unsupported("the model's tokenizer cannot cut windows", why="it is not a fast one", hint="`dataset`")
    text = data.lstrip(bytes(range(0x80, 0xC0))).decode(errors="replace")
    windows = tokenizer(text, truncation=True, max_length=length, return_overflowing_tokens=True)["input_ids"]
    return [window for window in windows if len(window) == length]
