"""Files of nanochat traces: one JSON object per prompt and response, `{trace_id}.json`.

    trace = read_trace("traces/trace_20241102_143022_123456.json")
    trace.model_data.attention[0].array()    # (1, head, query, key)

1. Almost all of a trace is numbers, so reading leaves them alone: the text of each tensor's "data" is set aside
   and the small rest parsed. A tensor is parsed when its `array` is asked for; what is written again is copied.
2. Of a trace that is only listed, no more is read than what stands before its numbers.

`trace_writer.py` writes them.

A reader takes what the documentation shows and what the original code wrote: a timestamp that is not ISO, a response in
a second file `{trace_id}_metadata.json`, steps without model data.
"""

import codecs
import json
import math
import re
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.errors import NotFound, Unreadable
from traceformer.formats.rows import token_ids
from traceformer.plain_json import parse_json
from traceformer.shapes import Float

__all__ = ["SIDE_FILE", "Captures", "Tensor", "Trace", "TraceHead", "read_head", "read_skeleton", "read_trace"]

SIDE_FILE = "_metadata.json"
_BIG = ("tokens", "model_data", "intermediate_steps", "traceformer")  # what stands behind a trace's head
_OF_A_HEAD = frozenset(("trace_id", "timestamp", "prompt", "response", "category", "metadata"))
_HEAD_BYTES = 4096
_LONGEST = 2**31 - 1  # of an axis


@dataclass(frozen=True, slots=True)
class Tensor:
    """Numbers of a known shape, as the text of a file or in blocks that come one after the other, flat.

    `dtype` is what a nanochat trace calls it: `torch.float32`.
    """

    shape: tuple[int, ...]
    dtype: str
    text: bytes | None = None
    blocks: Callable[[], Iterable[Float[np.ndarray, "..."]]] = tuple

    @classmethod
    def of(cls, array: Float[np.ndarray, "..."], dtype: str | None = None) -> "Tensor":
        return cls(array.shape, dtype or f"torch.{array.dtype}", blocks=lambda: (array,))

    def array(self) -> Float[np.ndarray, "..."]:
        """Returns the numbers, float64 where the trace says so, else float32, which holds its other dtypes exactly.

        Raises:
            Unreadable: they are no numbers, or not as many as the shape says.
        """
        kind = np.float64 if self.dtype == "torch.float64" else np.float32
        if self.text is None:
            parts = [block.reshape(-1) for block in self.blocks()]
            return np.concatenate([*parts, np.zeros(0, kind)]).astype(kind, copy=False).reshape(self.shape)
        flat = self.text.translate(None, b"[] \n\r\t")
        if not flat.strip(b","):  # empty lists
            flat = b""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", DeprecationWarning)  # which is how it says that something is no number
                values = np.fromstring(flat, kind, sep=",") if flat else np.zeros(0, kind)  # pyright: ignore
        except (ValueError, DeprecationWarning) as error:
            raise Unreadable("a tensor's data are no numbers", why=str(error)) from error
        if values.size != math.prod(self.shape) or flat.count(b",") + bool(flat) != values.size:
            raise Unreadable(f"a tensor of shape {list(self.shape)} has {values.size} numbers")
        return values.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Captures:
    """What one moment of a generation shows of the model; layers are the model's numbers."""

    token_embeddings: Tensor | None = None
    output_logits: Tensor | None = None
    attention: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
    activations: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict[int, Mapping[str, Tensor]])

    def tensors(self) -> Iterator[Tensor]:
        yield from (tensor for tensor in (self.token_embeddings, self.output_logits) if tensor is not None)
        yield from self.attention.values()
        yield from (tensor for layer in self.activations.values() for tensor in layer.values())


@dataclass(frozen=True, slots=True)
class TraceHead:
    """What a trace is about, without its tokens and numbers; the timestamp is ISO 8601."""

    trace_id: str
    timestamp: str
    prompt: str
    response: str
    category: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace. `further` is what a nanochat trace has no place for, by the name of an array: `dec.self.q`."""

    head: TraceHead
    input_tokens: tuple[int, ...] = ()
    output_tokens: tuple[int, ...] = ()
    model_data: Captures = field(default_factory=Captures)
    steps: Iterable[Captures] | None = None
    further: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def read_head(path: Path) -> TraceHead:
    """Returns what a trace is about, reading only as far as its tokens and numbers.

    Raises:
        NotFound, Unreadable: there is no such file, or it is no trace.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, size = "", _HEAD_BYTES
    try:
        with path.open("rb", buffering=0) as file:
            while True:
                part = file.read(size)
                text += decoder.decode(part, final=not part)
                try:
                    return _head(_members_before_numbers(text), path)
                except json.JSONDecodeError as error:
                    if not part:
                        raise Unreadable(f"{path} is no trace", why=str(error)) from None
                    size *= 8
    except FileNotFoundError:
        raise NotFound(f"no trace {path}") from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path} is not UTF-8", why=str(error)) from None
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise Unreadable(f"{path} is no trace", why=str(error)) from None


def _members_before_numbers(text: str) -> dict[str, Any]:
    """Returns the object's first members; a JSONDecodeError means that the text ends too early, or is no JSON."""
    decoder, found = json.JSONDecoder(), dict[str, Any]()
    position = _behind(text, 0, "{")
    while True:
        name, position = decoder.raw_decode(text, _behind(text, position, ""))
        position = _behind(text, position, ":")
        if name in _BIG and found.keys() >= _OF_A_HEAD:
            return found
        found[name], position = decoder.raw_decode(text, _behind(text, position, ""))
        separator = text[_behind(text, position, "") :][:1]
        if separator == "}":
            return found
        position = _behind(text, position, ",")


def _behind(text: str, position: int, expected: str) -> int:
    """Returns where the text goes on behind white space and what is expected."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    if not text.startswith(expected, position) or position + len(expected) >= len(text):
        raise json.JSONDecodeError(f"expected {expected or 'more'}", text, position)
    return position + len(expected)


def _head(data: Mapping[str, Any], path: Path) -> TraceHead:
    if not isinstance(data.get("trace_id"), str) or not isinstance(data.get("prompt"), str):
        raise Unreadable(f"{path} is no trace", why="it has no trace_id and prompt")
    metadata = data.get("metadata")
    return _with_side_file(
        TraceHead(
            data["trace_id"],
            _iso(str(data.get("timestamp", ""))),
            data["prompt"],
            str(data.get("response") or ""),
            data.get("category"),
            metadata if isinstance(metadata, dict) else {},
        ),
        path,
    )


def _iso(timestamp: str) -> str:
    """The original code wrote `20241102_143022_123456` where its documentation has ISO 8601."""
    if re.fullmatch(r"\d{8}_\d{6}_\d{6}", timestamp):
        return datetime.strptime(timestamp, "%Y%m%d_%H%M%S_%f").isoformat(timespec="microseconds")
    return timestamp


def _with_side_file(head: TraceHead, path: Path) -> TraceHead:
    """The original code left the response out of the trace, and wrote it into a second file."""
    beside = path.with_name(path.stem + SIDE_FILE)
    if head.response or not beside.is_file():
        return head
    try:
        data = parse_json(beside.read_text(encoding="utf-8"))
    except ValueError:
        return head
    if not isinstance(data, dict) or not isinstance(data.get("response"), str):
        return head
    settings = data.get("generation_params")
    more = {"generation_params": settings} if isinstance(settings, dict) else {}
    return replace(head, response=data["response"], metadata={**head.metadata, **more})


def read_trace(path: Path) -> Trace:
    """Returns a trace; its tensors are parsed when they are asked for.

    Raises:
        NotFound: there is no such file.
        Unreadable: it is no trace, or holds several sequences.
    """
    data = read_skeleton(path)
    head = _head(data, path)
    tokens = data.get("tokens") or {}
    steps = data.get("intermediate_steps")
    try:
        return Trace(
            head,
            token_ids(tokens.get("input_tokens"), str(path)),
            token_ids(tokens.get("output_tokens"), str(path)),
            _captures(data.get("model_data") or {}, path),
            None if steps is None else tuple(_captures(step, path) for step in steps),
            {name: _tensor(tensor, path) for name, tensor in (data.get("traceformer") or {}).get("arrays", {}).items()},
        )
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"{path} is no trace", why=f"{type(error).__name__}: {error}") from error


def read_skeleton(path: Path) -> dict[str, Any]:
    """Returns the JSON object with a Tensor's text in place of each "data" that another member follows.

    Raises as `read_trace` does.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"no trace {path}") from None
    mark = uuid.uuid4().hex
    texts: dict[str, bytes] = {}
    rest: list[bytes] = []
    position = 0
    # Within a string the quotes would be escaped, so this is always the name of a member.
    for match in re.finditer(rb'"data"\s*:\s*(?=\[)', content):
        end = _end_of_numbers(content, match.end())
        if match.end() >= position and end is not None:
            name = f"{mark}{len(texts)}"
            texts[name] = content[match.end() : end]
            rest += [content[position : match.end()], f'"{name}"'.encode()]
            position = end
    rest.append(content[position:])
    try:
        data = parse_json(b"".join(rest))
    except ValueError as error:
        raise Unreadable(f"{path} is not JSON", why=str(error)) from error
    if not isinstance(data, dict):
        raise Unreadable(f"{path} is no trace", why="it is no JSON object")
    try:
        return {name: _with_texts(value, texts, parse=name not in _BIG) for name, value in data.items()}
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path} is no trace", why=str(error)) from error


def _end_of_numbers(content: bytes, start: int) -> int | None:
    """Returns where a list of numbers ends, if another member of the same object follows it."""
    following = content.find(b'"', start)
    last = content.rfind(b"]", start, max(following, start)) + 1
    if following < 0 or not last or content[last:following].strip() != b"," or b"{" in content[start:last]:
        return None
    return last


def _with_texts(value: Any, texts: Mapping[str, bytes], *, parse: bool) -> Any:
    if isinstance(value, dict):
        return {name: _with_texts(own, texts, parse=parse) for name, own in value.items()}
    if isinstance(value, list):
        return [_with_texts(own, texts, parse=parse) for own in value]
    if isinstance(value, str) and value in texts:
        return parse_json(texts[value]) if parse else texts[value]
    return value


def _captures(data: Mapping[str, Any], path: Path) -> Captures:
    logits, embeddings = data.get("output_logits"), data.get("token_embeddings")
    attention, activations = data.get("attention_weights") or {}, data.get("layer_activations") or {}
    return Captures(
        None if embeddings is None else _tensor(embeddings, path, axes=3),
        None if logits is None else _tensor(logits, path, axes=3),
        {_layer(name, path): _tensor(tensor, path, axes=4) for name, tensor in attention.items() if tensor is not None},
        {
            _layer(name, path): {
                kind: _tensor(tensor, path, axes=3) for kind, tensor in own.items() if tensor is not None
            }
            for name, own in activations.items()
            if own is not None
        },
    )


def _layer(name: str, path: Path) -> int:
    match = re.fullmatch(r"layer_(\d{1,6})", name)
    if not match:
        raise Unreadable(f"{path} has {name!r} where a layer should be", hint="layer_0, layer_1, ...")
    return int(match[1])


def _tensor(data: Mapping[str, Any], path: Path, axes: int | None = None) -> Tensor:
    shape = tuple(data["shape"])
    if shape[:1] != (1,) or not all(type(size) is int and 0 <= size <= _LONGEST for size in shape):
        raise Unreadable(f"{path} has a tensor of shape {list(shape)}", why="a trace holds one sequence, a batch of 1")
    if axes is not None and len(shape) != axes:
        raise Unreadable(f"{path} has a tensor of shape {list(shape)}", why=f"it should have {axes} axes")
    text = data["data"]
    return Tensor(shape, str(data.get("dtype", "torch.float32")), text=text if isinstance(text, bytes) else _text(text))


def _text(data: Any) -> bytes:
    return json.dumps(data).encode()
