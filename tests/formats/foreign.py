"""Writes nanochat traces as they are documented and as the engine wrote them, with nothing of this project.

The numbers of a trace are a dense truth for every token; what a variant captured of it is cut out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, RESPONSE = [1, 4, 3, 2, 0], [2, 1, 5]
N, T = len(PROMPT), len(PROMPT) + len(RESPONSE)
LAYERS, HEADS, D, V = 2, 3, 4, 6
ACTIVATIONS = ("pre_attn_norm", "post_attn", "pre_mlp_norm", "post_mlp")


@dataclass
class Truth:
    """Everything about every token: (token, ...) arrays, and attention (layer, head, token, token)."""

    embeddings: np.ndarray
    logits: np.ndarray
    attention: np.ndarray
    activations: np.ndarray


def truth(seed: int = 0) -> Truth:
    random = np.random.default_rng(seed)
    attention = np.tril(random.random((LAYERS, HEADS, T, T)))
    return Truth(
        random.standard_normal((T, D)).astype(np.float32),
        random.standard_normal((T, V)).astype(np.float32),
        (attention / attention.sum(-1, keepdims=True)).astype(np.float32),
        random.standard_normal((LAYERS, len(ACTIVATIONS), T, D)).astype(np.float32),
    )


def tensor(array: np.ndarray, dtype: str = "torch.float32") -> dict[str, Any]:
    batch = array[None]
    return {"data": batch.tolist(), "shape": list(batch.shape), "dtype": dtype}


def captured(own: Truth, rows: slice, logits: slice, dtype: str = "torch.float32") -> dict[str, Any]:
    """What is captured where the tokens `rows` are run with all before them as keys."""
    return {
        "token_embeddings": tensor(own.embeddings[rows], dtype),
        "output_logits": tensor(own.logits[logits], dtype),
        "attention_weights": {
            f"layer_{layer}": tensor(own.attention[layer, :, rows, : rows.stop], dtype) for layer in range(LAYERS)
        },
        "layer_activations": {
            f"layer_{layer}": {
                name: tensor(own.activations[layer, i, rows], dtype) for i, name in enumerate(ACTIVATIONS)
            }
            for layer in range(LAYERS)
        },
    }


def head(trace_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "trace_id": trace_id,
        "timestamp": "2024-11-02T14:30:22.123456",
        "prompt": "The capital of France is",
        "response": " Paris.",
        "category": "geography",
        "metadata": {"model_source": "sft", "temperature": 0.6},
        "tokens": {"input_tokens": PROMPT, "output_tokens": RESPONSE},
        **changes,
    }


def documented(trace_id: str = "trace_documented", own: Truth | None = None, **changes: Any) -> dict[str, Any]:
    """The whole sequence's attention and activations, and the logits that predicted the response."""
    data = captured(own or truth(), slice(0, T), slice(N - 1, T - 1))
    return {**head(trace_id), "model_data": data, "intermediate_steps": None, **changes}


def of_the_prompt() -> dict[str, Any]:
    """What the documentation's own example has: squares over the prompt, logits of the response."""
    return {**documented("trace_prompt"), "model_data": captured(truth(), slice(0, N), slice(N - 1, T - 1))}


def original(folder: Path, *, steps: bool) -> Path:
    """Writes what the original code leaves: no response, a second file, the last step or steps without model data."""
    stamp = "20241102_143022_123456"
    own = truth()
    last = slice(T - 2, T - 1)  # the last token of the response is never run
    nothing = {"token_embeddings": None, "output_logits": None, "attention_weights": {}, "layer_activations": {}}
    data = {
        **head(f"trace_{stamp}", timestamp=stamp, response="", metadata={}),
        "model_data": nothing if steps else captured(own, last, last),
        "intermediate_steps": None,
    }
    if steps:
        places = [slice(0, N), *(slice(N + i, N + i + 1) for i in range(len(RESPONSE) - 1))]
        data["intermediate_steps"] = [{"step": step, **captured(own, rows, rows)} for step, rows in enumerate(places)]
    beside = {name: data[name] for name in ("trace_id", "timestamp", "prompt", "category", "metadata")}
    beside |= {
        "response": " Paris.",
        "generation_params": {"max_tokens": 3, "temperature": 0.6, "top_k": 50, "seed": 42},
    }
    write(folder / f"trace_{stamp}_metadata.json", beside)
    return write(folder / f"trace_{stamp}.json", data)


def write(path: Path, data: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        json.dump(data, file, **{"indent": 2, **options})
    return path
