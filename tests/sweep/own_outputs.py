"""What a model itself returns of a text that runs alone, unpadded; nothing of the package stands in between."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["OwnOutputs", "answer_of", "calls_attention_function", "own_outputs"]

Arrays = Mapping[str, Sequence[np.ndarray]]


@dataclass(frozen=True, slots=True)
class OwnOutputs:
    """Arrays per layer of one text: hidden states by stack, patterns by stack and kind (`dec.cross`), and logits."""

    hidden: Arrays
    patterns: Arrays
    logits: np.ndarray | None


def own_outputs(model: Any, ids: Mapping[str, Sequence[int]]) -> OwnOutputs:
    """Returns hidden states and logits under the model's own attention, and patterns under eager attention."""
    inputs = _inputs(ids)
    with torch.inference_mode():
        plain = model(**inputs, output_hidden_states=True)
        with _eager(model) as is_eager:
            eager = model(**inputs, output_attentions=True) if is_eager else plain
    names = {"enc": "encoder_", "dec": "decoder_"} if len(ids) == 2 else dict.fromkeys(ids, "")
    hidden = {stack: _arrays(plain, f"{own}hidden_states") for stack, own in names.items()}
    patterns = {f"{stack}.self": _arrays(eager, f"{own}attentions") for stack, own in names.items()}
    patterns["dec.cross"] = _arrays(eager, "cross_attentions") if len(ids) == 2 else []
    logits = getattr(plain, "logits", None)
    return OwnOutputs(hidden, patterns, None if logits is None else logits[0].float().numpy())


def answer_of(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    """Returns the tokens that the model's own `generate` adds to a prompt, each the likeliest."""
    ids = torch.tensor([[*prompt]])
    with torch.inference_mode():
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1, max_new_tokens=tokens
        )[0].tolist()
    return whole[1:] if model.config.is_encoder_decoder else whole[len(prompt) :]


def calls_attention_function(model: Any, ids: Mapping[str, Sequence[int]]) -> bool:
    """Returns whether a pass of the model comes through transformers' attention function."""
    calls: list[str] = []

    def counted(module: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(type(module).__name__)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("counted", counted)
    AttentionMaskInterface.register("counted", sdpa_mask)
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = {number: config._attn_implementation_internal for number, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = "counted"
        with torch.inference_mode():
            model(**_inputs(ids))
    except Exception:  # what cannot run so does not call it, or has called it before
        pass
    finally:
        for number, config in configs.items():
            config._attn_implementation_internal = before[number]
    return bool(calls)


def _inputs(ids: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    both = len(ids) == 2
    return {
        "decoder_input_ids" if both and stack == "dec" else "input_ids": torch.tensor([[*row]])
        for stack, row in ids.items()
    }


@contextmanager
def _eager(model: Any) -> Iterator[bool]:
    """Has the model attend eagerly in the block, if it can."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
    except (ValueError, RuntimeError, AttributeError):
        yield False
        return
    try:
        yield True
    finally:
        model.set_attn_implementation(before)


def _arrays(output: Any, name: str) -> list[np.ndarray]:
    """The entries of an output, of the one text; none where it has no such output."""
    return [each[0].float().numpy() for each in getattr(output, name, None) or () if isinstance(each, torch.Tensor)]
