"""What a model itself returns of a text that runs alone, unpadded; nothing of the package stands in between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["OwnOutputs", "answer_of", "calls_attention_function", "in_place", "loaded_plainly", "own_outputs"]

Arrays = Mapping[str, Sequence[np.ndarray]]
WITHOUT_EMBEDDING = ("falcon_mamba", "mamba", "mamba2", "rwkv")
"""Types whose hidden states begin behind the first block and end with the last one's output twice, as it is and normed
(transformers 5.23): as many as of others, and each of another place."""


@dataclass(frozen=True, slots=True)
class OwnOutputs:
    """Arrays per layer of one text: hidden states by stack, patterns by stack and kind (`dec.cross`), and logits."""

    hidden: Arrays
    patterns: Arrays
    logits: np.ndarray | None


def loaded_plainly(model: Any, folder: Path) -> tuple[Any, Any]:
    """Returns the model of a folder as transformers loads it, and with eager attention, which alone returns patterns.

    Of a class that has no eager attention it is the same twice.
    """
    plain = type(model).from_pretrained(folder).float().eval()
    try:  # loaded with it, since not every class can be told so later
        return plain, type(model).from_pretrained(folder, attn_implementation="eager").float().eval()
    except ValueError:
        return plain, plain


def own_outputs(plain: Any, eager: Any, ids: Mapping[str, Sequence[int]]) -> OwnOutputs:
    """Returns hidden states and logits under a model's own attention, and patterns under eager attention."""
    inputs = _inputs(ids)
    with torch.inference_mode():
        output = plain(**inputs, output_hidden_states=True)
        attended = eager(**inputs, output_attentions=True)
        if plain.config.model_type in WITHOUT_EMBEDDING:
            *blocks, _, normed = output.hidden_states
            output.hidden_states = (plain.get_input_embeddings()(inputs["input_ids"]), *blocks, normed)
    names = {"enc": "encoder_", "dec": "decoder_"} if len(ids) == 2 else dict.fromkeys(ids, "")
    hidden = {  # cut, since some models give the rows of their own padding, too
        stack: [rows[: len(ids[stack])] for rows in _arrays(output, f"{own}hidden_states")]
        for stack, own in names.items()
    }
    patterns = {f"{stack}.self": _arrays(attended, f"{own}attentions") for stack, own in names.items()}
    patterns["dec.cross"] = _arrays(attended, "cross_attentions") if len(ids) == 2 else []
    if getattr(plain.config, "attention_window", None) is not None:
        first = "enc" if "enc" in ids else "dec"
        patterns[f"{first}.self"] = [in_place(banded, len(ids[first])) for banded in patterns[f"{first}.self"]]
    logits = getattr(output, "logits", None)
    return OwnOutputs(hidden, patterns, None if logits is None else logits[0].float().numpy())


def in_place(banded: np.ndarray, length: int) -> np.ndarray:
    """(head, query, key) of what a Longformer returns: (head, query, keys from half a window before to half behind)."""
    whole, reach = np.zeros((len(banded), length, length), banded.dtype), banded.shape[2] // 2
    for query in range(length):
        for key in range(max(0, query - reach), min(length, query + reach + 1)):
            whole[:, query, key] = banded[:, query, key - query + reach]
    return whole


def answer_of(model: Any, prompt: Sequence[int], tokens: int) -> tuple[list[int], np.ndarray]:
    """Returns the tokens that the model's own `generate` adds to a prompt, each the likeliest, and their logits."""
    ids = torch.tensor([[*prompt]])
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
    whole: list[int] = made.sequences[0].tolist()
    answer = whole[1:] if model.config.is_encoder_decoder else whole[len(prompt) :]
    return answer, torch.stack([step[0] for step in made.logits]).float().numpy()


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


def _arrays(output: Any, name: str) -> list[np.ndarray]:
    """The entries of an output, of the one text; none where it has no such output."""
    return [each[0].float().numpy() for each in getattr(output, name, None) or () if isinstance(each, torch.Tensor)]
