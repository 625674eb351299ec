"""TraceStorage: a folder of nanochat traces, one `{trace_id}.json` each."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.formats.nanochat_json.trace_writer import check_trace_id, write_trace
from traceformer.formats.nanochat_json.traces import (
    SIDE_FILE,
    Captures,
    Tensor,
    Trace,
    TraceHead,
    read_head,
    read_skeleton,
    read_trace,
)
from traceformer.plain_json import parse_json

__all__ = ["TraceStorage", "new_trace_id"]


class TraceStorage:
    """A folder of traces.

        storage = TraceStorage("traces")
        for trace_id in storage.list_traces(category="geography"):
            print(storage.load_trace_metadata(trace_id)["response"])

    Listing, filtering and `load_trace_metadata` read no more of a file than stands before its numbers. Every save
    writes the file whole, under another name, and renames it; numbers that it held before are copied, not parsed.
    A trace id is letters, digits, dots, dashes and underscores (UsageError); one that is not there raises NotFound.
    """

    def __init__(self, base_dir: str | Path = "traces") -> None:
        self.base_dir = Path(base_dir)
        self.base_dir.mkdir(parents=True, exist_ok=True)

    def path(self, trace_id: str) -> Path:
        """Returns where a trace lies, or would lie."""
        return self.base_dir / f"{check_trace_id(trace_id)}.json"

    # Making a trace by hand

    def create_trace(
        self, prompt: str, response: str, category: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Makes a trace without model data, and returns its id."""
        trace_id, timestamp = new_trace_id(self.base_dir)
        write_trace(
            self.path(trace_id), Trace(TraceHead(trace_id, timestamp, prompt, response, category, dict(metadata or {})))
        )
        return trace_id

    def save_activations(
        self,
        trace_id: str,
        token_embeddings: Any,
        output_logits: Any,
        attention_weights: Sequence[Any],
        layer_activations: Sequence[Mapping[str, Any]],
    ) -> None:
        """Puts model data into a trace: tensors (torch or numpy) of a batch of one, None where there is nothing.

        Args:
            trace_id: A trace that is there.
            token_embeddings: (1, position, d_model).
            output_logits: (1, position, d_vocab).
            attention_weights: Per layer (1, head, query, key).
            layer_activations: Per layer pre_attn_norm, post_attn, pre_mlp_norm and post_mlp, (1, position, d_model).
        """
        captures = {
            "token_embeddings": token_embeddings,
            "output_logits": output_logits,
            "attention_weights": attention_weights,
            "layer_activations": layer_activations,
        }
        self._rewrite(trace_id, model_data=_captures(captures))

    def save_tokens(self, trace_id: str, input_tokens: Sequence[int], output_tokens: Sequence[int]) -> None:
        """Puts token ids into a trace: the prompt's and the response's."""
        tokens = {"input_tokens": tuple(map(int, input_tokens)), "output_tokens": tuple(map(int, output_tokens))}
        self._rewrite(trace_id, **tokens)

    def save_intermediate_steps(self, trace_id: str, step_captures: Sequence[Mapping[str, Any]]) -> None:
        """Puts what was captured at each step into a trace, each as `save_activations` takes it, by those names."""
        self._rewrite(trace_id, steps=[_captures(step) for step in step_captures])

    def _rewrite(self, trace_id: str, **changes: Any) -> None:
        path = self.path(trace_id)
        write_trace(path, replace(read_trace(path), **changes))

    # Reading

    def load_trace(self, trace_id: str) -> dict[str, Any]:
        """Returns the whole nanochat trace: numbers in nested lists."""
        path = self.path(trace_id)
        head = read_head(path)
        try:
            data: dict[str, Any] = parse_json(path.read_bytes())
        except ValueError as error:
            raise Unreadable(f"{path} is not JSON", why=str(error)) from error
        return data | _told(head)

    def load_trace_metadata(self, trace_id: str) -> dict[str, Any]:
        """Returns trace_id, timestamp, prompt, response, category and metadata."""
        return _told(read_head(self.path(trace_id)))

    def load_trace_data(self, trace_id: str) -> dict[str, Any]:
        """Returns token_embeddings, output_logits, attention_weights and layer_activations."""
        return self.load_trace(trace_id)["model_data"]

    def list_traces(self, category: str | None = None) -> list[str]:
        """Returns the ids of all traces, or of those in a category, sorted; warns of files that are no traces."""
        names = {path.name for path in self.base_dir.glob("trace_*.json")}
        ids = sorted(
            name.removesuffix(".json")
            for name in names
            if not (name.endswith(SIDE_FILE) and name.replace(SIDE_FILE, ".json") in names)
        )
        return ids if category is None else [trace_id for trace_id in ids if self._category(trace_id) == category]

    def _category(self, trace_id: str) -> str | None:
        try:
            return read_head(self.path(trace_id)).category
        except (Unreadable, UsageError, NotFound) as error:
            warnings.warn(f"passed over: {error}", stacklevel=3)
            return None

    def get_trace_summary(self, trace_id: str) -> dict[str, Any]:
        """Returns what a trace is about and the shapes of its arrays, without their numbers."""
        path = self.path(trace_id)
        data = read_skeleton(path)
        metadata = _told(read_head(path))
        del metadata["metadata"]
        info: dict[str, Any] = {}
        for name, value in _object_in(data, "model_data", path).items():
            if isinstance(value, dict):
                is_tensor = "shape" in value
                info[name] = (
                    {"shape": value["shape"], "dtype": value.get("dtype")}
                    if is_tensor
                    else f"Dictionary with {len(value)} items"
                )
        tokens = _object_in(data, "tokens", path)
        for kind in ("input", "output"):
            info[f"{kind}_token_count"] = len(_list_in(tokens, f"{kind}_tokens", path))
        if steps := _list_in(data, "intermediate_steps", path):
            info["intermediate_steps_count"] = len(steps)
        return {"metadata": metadata, "data_info": info}


def _told(head: TraceHead) -> dict[str, Any]:
    """The fields of a head as they are: `asdict` would copy them, however deep they nest."""
    return {field.name: getattr(head, field.name) for field in fields(head)}


def _object_in(data: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """The object under a name of a trace; an empty one where there is none."""
    value = data.get(name) or {}
    if not isinstance(value, dict):
        raise Unreadable(f"{path} is no trace", why=f"its {name} are no JSON object")
    return value


def _list_in(data: dict[str, Any], name: str, path: Path) -> list[Any]:
    """The list under a name of a trace; an empty one where there is none."""
    value = data.get(name) or []
    if not isinstance(value, list):
        raise Unreadable(f"{path} is no trace", why=f"its {name} are no list")
    return value


def new_trace_id(folder: Path) -> tuple[str, str]:
    """Returns `trace_{time}` for a new trace in a folder, and the time as ISO 8601."""
    now = datetime.now()
    while True:
        trace_id = now.strftime("trace_%Y%m%d_%H%M%S_%f")
        if not (folder / f"{trace_id}.json").exists() and not (folder / trace_id).exists():
            return trace_id, now.isoformat(timespec="microseconds")
        now += timedelta(microseconds=1)


def _captures(data: Mapping[str, Any]) -> Captures:
    attention, activations = data.get("attention_weights") or (), data.get("layer_activations") or ()
    return Captures(
        _tensor(data.get("token_embeddings")),
        _tensor(data.get("output_logits")),
        dict(_present(enumerate(attention))),
        {layer: dict(_present(own.items())) for layer, own in enumerate(activations) if own},
    )


def _present(items: Any) -> Iterator[tuple[Any, Tensor]]:
    for name, value in items:
        tensor = _tensor(value)
        if tensor is not None:
            yield name, tensor


def _tensor(value: Any) -> Tensor | None:
    """A torch tensor or an array as it is written: bfloat16, which numpy does not know, as the float32 that it is."""
    if value is None:
        return None
    dtype = str(value.dtype)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if dtype == "torch.bfloat16" else value).numpy()
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.floating) or array.shape[:1] != (1,):
        raise UsageError(
            f"an array of {dtype} and shape {list(array.shape)}",
            why="a trace holds floats of one sequence, a batch of 1",
        )
    return Tensor.of(array, dtype if dtype.startswith("torch.") else None)
