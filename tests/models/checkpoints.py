"""A base directory as nanochat leaves one: tiny random checkpoints and a tokenizer, written without this project."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

FIXTURES = Path(__file__).parent / "fixtures"
SIZES = {"sequence_len": 48, "vocab_size": 349, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 32}


def random_weights(seed: int = 0, **sizes: int) -> "dict[str, torch.Tensor]":
    """Returns weights under nanochat's names; the embedding in bfloat16, as nanochat trains it."""
    import torch

    own = {**SIZES, **sizes}
    d, kv = own["n_embd"], own["n_embd"] // own["n_head"] * own["n_kv_head"]
    shapes = {"transformer.wte.weight": (own["vocab_size"], d), "lm_head.weight": (own["vocab_size"], d)}
    for layer in range(own["n_layer"]):
        block = f"transformer.h.{layer}"
        shapes |= {f"{block}.attn.c_{name}.weight": (n, d) for name, n in (("q", d), ("k", kv), ("v", kv))}
        shapes |= {f"{block}.attn.c_proj.weight": (d, d)}
        shapes |= {f"{block}.mlp.c_fc.weight": (4 * d, d), f"{block}.mlp.c_proj.weight": (d, 4 * d)}
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].bfloat16()
    return weights


Writer = Callable[..., Path]


@pytest.fixture
def base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty base directory with nanochat's pickled tokenizer."""
    base = tmp_path / "nanochat"
    (base / "tokenizer").mkdir(parents=True)
    shutil.copy(FIXTURES / "tokenizer.pkl", base / "tokenizer")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    return base


@pytest.fixture
def write_checkpoint(base_dir: Path) -> Writer:
    """Writes a checkpoint as nanochat does, and returns the file of its weights."""

    def write(
        folder: str = "chatsft_checkpoints",
        tag: str = "d3",
        step: int = 650,
        *,
        weights: "Mapping[str, torch.Tensor] | None" = None,
        compiled: bool = True,
        **config: Any,
    ) -> Path:
        import torch

        place = base_dir / folder / tag
        place.mkdir(parents=True, exist_ok=True)
        prefix = "_orig_mod." if compiled else ""
        own = random_weights() if weights is None else weights
        torch.save({prefix + name: tensor for name, tensor in own.items()}, place / f"model_{step:06d}.pt")
        meta = {"step": step, "val_loss": 1.5, "model_config": {**SIZES, **config}}
        (place / f"meta_{step:06d}.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")
        return place / f"model_{step:06d}.pt"

    return write
