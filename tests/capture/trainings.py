"""Trainings on disk: folders of checkpoints, each a tiny byte-level model with weights of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["write_checkpoint", "write_training"]


def write_checkpoint(folder: Path, seed: int, *, tokenizer: bool = True, **changes: Any) -> Path:
    """Writes a model of one layer and two heads, as `save_pretrained` does."""
    import torch
    from transformers import AutoModelForCausalLM

    from traceformer.bytelm.presets import build_config
    from traceformer.bytelm.tokenizer import ByteTokenizer

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16, **changes}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(build_config("tiny", "dense", initializer_range=0.5, **sizes))
    model.save_pretrained(folder)
    if tokenizer:
        ByteTokenizer(model_max_length=128).save_pretrained(folder)
    return folder


def write_training(folder: Path, steps: Sequence[int]) -> Path:
    """Writes checkpoints of these steps, named as Hugging Face's Trainer names them."""
    for step in steps:
        write_checkpoint(folder / f"checkpoint-{step}", seed=step)
    return folder
