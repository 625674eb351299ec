"""Writes .pt files as the Gemma capture documents them and as its code wrote them, with nothing of this project.

The numbers are a dense truth for every token of prompt and response; what a variant captured of it is cut out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROMPT, RESPONSE = ["The", "Ġcapital", "Ġof", "Ġis"], ["ĠParis", ".", "ĠThe"]
PROMPT_IDS, RESPONSE_IDS = [5, 9, 2, 7], [4, 1, 5]
N, T = len(PROMPT), len(PROMPT) + len(RESPONSE)
LAYERS, HEADS, KV_HEADS, D_HEAD, D, D_MLP = 2, 4, 2, 3, 6, 10
WIDTHS = {
    "q_proj": HEADS * D_HEAD,
    "k_proj": KV_HEADS * D_HEAD,
    "v_proj": KV_HEADS * D_HEAD,
    "up_proj": D_MLP,
    "gelu": D_MLP,
    "down_proj": D,
    "input": D,
    "after_attn": D,
    "output": D,
}
PARTS = {
    "attention": ("q_proj", "k_proj", "v_proj"),
    "mlp": ("up_proj", "gelu", "down_proj"),
    "residual": ("input", "after_attn", "output"),
}
OF_A_RESIDUAL = {"residual_in": "input", "after_attn": "after_attn", "residual_out": "output"}


@dataclass
class Truth:
    """Everything about every token: rows by name, (layer, token, width), and attention (layer, head, token, token)."""

    rows: dict[str, np.ndarray]
    attention: np.ndarray


def truth(seed: int = 0) -> Truth:
    random = np.random.default_rng(seed)
    attention = np.tril(random.random((LAYERS, HEADS, T, T)) + 0.1)
    attention = (attention / attention.sum(-1, keepdims=True)).astype(np.float16)
    rows = {name: random.standard_normal((LAYERS, T, width)).astype(np.float16) for name, width in WIDTHS.items()}
    return Truth(rows, attention)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def documented_internals(folder: Path, own: Truth, name: str = "1") -> list[Path]:
    """Per layer a file: texts and ids in prompt and response, lists of rows, residuals with an extra dimension."""
    return [save(folder / f"{name}_L{layer}.pt", _documented_layer(own, layer)) for layer in range(LAYERS)]


def _documented_layer(own: Truth, layer: int) -> dict[str, Any]:
    data: dict[str, Any] = {
        "prompt": {"text": "The capital of is", "tokens": PROMPT, "token_ids": PROMPT_IDS},
        "response": {"text": " Paris. The", "tokens": RESPONSE, "token_ids": RESPONSE_IDS},
    }
    for part, names in PARTS.items():
        data["prompt"][part] = {name: tensor(own.rows[name][layer, :N]) for name in names}
        if part == "residual":
            data["response"][part] = {name: tensor(own.rows[name][layer, N:, None]) for name in names}
        else:
            data["response"][part] = {
                name: [tensor(own.rows[name][layer, i : i + 1]) for i in range(N, T)] for name in names
            }
    square = own.attention[layer]
    data["prompt"]["attention"]["attn_weights"] = tensor(square[:, :N, :N])
    data["response"]["attention"]["attn_weights"] = [tensor(square[:, :size, :size]) for size in range(N, T)]
    return data


def original_internals(folder: Path, own: Truth, name: str = "1") -> list[Path]:
    """As the code wrote it: texts at the top, no ids, rows stacked, and each row that of the token before."""
    files: list[Path] = []
    for layer in range(LAYERS):
        data = _documented_layer(own, layer)
        for section, text, tokens in (
            ("prompt", "The capital of is", PROMPT),
            ("response", " Paris. The", RESPONSE),
        ):
            del data[section]["text"], data[section]["tokens"], data[section]["token_ids"]
            data |= {f"{section}_text": text, f"{section}_tokens": tokens}
        for part, names in PARTS.items():
            for each in names:
                data["response"][part][each] = tensor(own.rows[each][layer, N - 1 : T - 1, None])
        files.append(save(folder / f"{name}_L{layer}.pt", data))
    return files


def documented_residual(folder: Path, own: Truth, name: str = "1") -> Path:
    """A file of all layers: string keys, rows stacked, mean patterns as squares that grow."""
    mean = own.attention.astype(np.float32).mean(1).astype(np.float16)
    layers = range(LAYERS)
    return save(
        folder / f"{name}.pt",
        {
            section: {
                "text": text,
                "tokens": tokens,
                "token_ids": ids,
                "activations": {
                    str(layer): {name: tensor(own.rows[of][layer, span]) for name, of in OF_A_RESIDUAL.items()}
                    for layer in layers
                },
                "attention": {
                    f"layer_{layer}": tensor(mean[layer, :N, :N])
                    if section == "prompt"
                    else [tensor(mean[layer, :size, :size]) for size in range(N, T)]
                    for layer in layers
                },
            }
            for section, text, tokens, ids, span in (
                ("prompt", "The capital of is", PROMPT, PROMPT_IDS, slice(0, N)),
                ("response", " Paris. The", RESPONSE, RESPONSE_IDS, slice(N, T)),
            )
        },
    )


def original_residual(folder: Path, own: Truth, name: str = "1") -> Path:
    """As the code wrote it: integer keys, the last row of each pattern, and each row that of the token before."""
    path = documented_residual(folder, own, name)
    data = torch.load(path, weights_only=True)
    mean = own.attention.astype(np.float32).mean(1).astype(np.float16)
    for section in ("prompt", "response"):
        data[section]["activations"] = {int(layer): own for layer, own in data[section]["activations"].items()}
    for layer, names in data["response"]["activations"].items():
        for each, of in OF_A_RESIDUAL.items():
            names[each] = tensor(own.rows[of][layer, N - 1 : T - 1])
    data["response"]["attention"] = [
        {f"layer_{layer}": tensor(mean[layer, size - 1, :size]) for layer in range(LAYERS)} for size in range(N, T)
    ]
    return save(path, data)


def save(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, path)
    return path
