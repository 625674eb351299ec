"""From the residual stream to logits: what stands behind a model's last block, read from its folder without torch.

A row says what kind of norm that is and which settings of the config count; where the norm and the token embedding lie
is in `models/families.py`, whose paths `open_readout` is given. To add a family, add a row; the tests compare it
with the family's own class.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32

from traceformer.errors import Unreadable, Unsupported
from traceformer.models.weights import StoredTensor, open_folder

__all__ = ["READOUTS", "Norm", "Readout", "ReadoutParts", "ReadoutRow", "find_readout", "open_readout"]

Norm: TypeAlias = Literal["layer", "rms", "rms_plus_one", "rms_bare"]


@dataclass(frozen=True, slots=True)
class ReadoutRow:
    """What a family does behind its last block.

    Attributes:
        norm: LayerNorm, RMSNorm, Gemma's RMSNorm times 1 + w, or one without weights.
        epsilon: The config's name of the number that the norm adds to the variance (none if it has no name there), and
            the family's default.
        softcap: The config's name of the bound c of logits c tanh(x / c), and the family's default.
        scaled: Whether the stream is divided by sqrt(d_model) behind the norm, where the config says so (T5).
    """

    norm: Norm = "rms"
    epsilon: tuple[str, float] = ("rms_norm_eps", 1e-6)
    softcap: tuple[str, float | None] = ("", None)
    scaled: bool = False


_SOFTCAP = "final_logit_softcapping"
_LLAMA = ReadoutRow()
_GPT2 = ReadoutRow("layer", ("layer_norm_epsilon", 1e-5))
_T5 = ReadoutRow("rms", ("layer_norm_epsilon", 1e-6))

READOUTS: Mapping[str, ReadoutRow] = {
    "bart": ReadoutRow("layer"),  # post-norm: nothing stands between the last block and the head
    "bloom": _GPT2,
    "byte_sparse": _LLAMA,
    "gemma": ReadoutRow("rms_plus_one"),
    "gemma2": ReadoutRow("rms_plus_one", softcap=(_SOFTCAP, 30.0)),
    "gemma3_text": ReadoutRow("rms_plus_one", softcap=(_SOFTCAP, None)),
    "gpt2": _GPT2,
    "gpt_neox": ReadoutRow("layer", ("layer_norm_eps", 1e-5)),
    "gpt_oss": ReadoutRow("rms", ("rms_norm_eps", 1e-5)),
    "gptj": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": ReadoutRow("rms", ("rms_norm_eps", 1e-5)),
    "mpt": _GPT2,
    "mt5": _T5,
    "nanochat": ReadoutRow("rms_bare", softcap=(_SOFTCAP, 15.0)),
    "olmo2": ReadoutRow("rms", ("rms_norm_eps", 1e-5)),
    "opt": ReadoutRow("layer", ("", 1e-5)),
    "phi3": ReadoutRow("rms", ("rms_norm_eps", 1e-5)),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "t5": replace(_T5, scaled=True),
}


@dataclass(frozen=True, slots=True)
class ReadoutParts:
    """What a readout is made of: the settings that `Readout` has, and for its tensors their names in a model.

    Attributes:
        norm_weight, norm_bias, project_out, bias: None where the model has none.
    """

    norm: Norm | None
    norm_weight: str | None
    norm_bias: str | None
    epsilon: float
    project_out: str | None
    scale: float
    unembedding: str
    bias: str | None
    softcap: float | None


@dataclass(frozen=True, slots=True)
class Readout:
    """A model's own final norm, unembedding and softcap: logits = softcap(W (scale * P norm(x)) + b).

    Attributes:
        norm: None where there is no norm behind the last block.
        norm_weight, norm_bias: None where the norm has none.
        epsilon: Added to the variance.
        project_out: P, None for none (OPT-350m has one).
        scale: A number, 1 for most.
        unembedding: W, which is left on disk.
        bias: b, None for none.
        softcap: c of c tanh(logits / c), None for none.
    """

    norm: Norm | None
    norm_weight: Float32[np.ndarray, "d_model"] | None
    norm_bias: Float32[np.ndarray, "d_model"] | None
    epsilon: float
    project_out: Float32[np.ndarray, "d_embed d_model"] | None
    scale: float
    unembedding: StoredTensor
    bias: Float32[np.ndarray, "d_vocab"] | None
    softcap: float | None

    @property
    def d_vocab(self) -> int:
        return self.unembedding.shape[0]

    @property
    def d_model(self) -> int:
        return self.unembedding.shape[1] if self.project_out is None else self.project_out.shape[1]


def open_readout(folder: Path, config: Mapping[str, Any], *, final_norm: str | None, token_embed: str) -> Readout:
    """Returns what a model folder's config and weights say; the unembedding is not read yet.

    Args:
        folder: Where the weights lie.
        config: Its config.json.
        final_norm: The path of the norm behind the last block, as the architecture row has it.
        token_embed: The path of the token embedding, which is the unembedding where these are tied.

    Raises:
        Unsupported: a family without a row here.
        NotFound, Unreadable: the folder holds no safetensors weights, or not these.
    """
    _row_of(config)
    tensors = open_folder(folder)
    parts = find_readout(tensors, config, final_norm=final_norm, token_embed=token_embed, where=str(folder))

    def read(name: str | None) -> Float32[np.ndarray, "..."] | None:
        return None if name is None else tensors[name].read()

    bias = read(parts.bias)
    return Readout(
        parts.norm,
        read(parts.norm_weight),
        read(parts.norm_bias),
        parts.epsilon,
        read(parts.project_out),
        parts.scale,
        tensors[parts.unembedding],
        None if bias is None else bias.reshape(-1),
        parts.softcap,
    )


def find_readout(
    tensors: Collection[str], config: Mapping[str, Any], *, final_norm: str | None, token_embed: str, where: str
) -> ReadoutParts:
    """Returns which of a model's tensors, given by name, are its readout; other arguments as of `open_readout`.

    Raises:
        Unsupported: a family without a row here.
        Unreadable: a tensor is missing, or may be several; `where` says of what.
    """
    row = _row_of(config)

    def find(path: str) -> str | None:
        return _at(tensors, path)

    weight = bias = None
    if final_norm is not None and row.norm != "rms_bare":
        weight, bias = find(f"{final_norm}.weight"), find(f"{final_norm}.bias")
        if weight is None:
            raise Unreadable(f"{where} holds no {final_norm}.weight", why="the final norm needs it")
    own_head = [find(name) for name in ("lm_head.weight", "embed_out.weight")]
    tied = [find(name) for name in (f"{token_embed}.weight", "shared.weight")]
    unembedding = next((found for found in (*own_head, *tied) if found is not None), None)
    if unembedding is None:
        raise Unreadable(f"{where} holds neither lm_head.weight nor {token_embed}.weight")
    softcap = config.get(*row.softcap)
    # T5's config says it under either name; its models before 1.1 do not say it and are scaled.
    scaled = row.scaled and config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    return ReadoutParts(
        None if final_norm is None else row.norm,
        weight,
        bias,
        float(config.get(*row.epsilon)),  # pyright: ignore[reportArgumentType]
        find("project_out.weight"),
        float(config["d_model"]) ** -0.5 if scaled else 1.0,
        unembedding,
        find("final_logits_bias") or find("lm_head.bias"),
        None if softcap is None else float(softcap),
    )


def _row_of(config: Mapping[str, Any]) -> ReadoutRow:
    family = str(config.get("model_type"))
    if family not in READOUTS:
        raise Unsupported(
            f"no readout is known of model type {family!r}",
            why=f"known are {', '.join(READOUTS)}",
            hint="add a row to traceformer/models/readout.py",
        )
    return READOUTS[family]


def _at(tensors: Collection[str], path: str) -> str | None:
    """The tensor at a path from the base model, whose own name stands before it in some files, not in others."""
    found = [name for name in tensors if re.fullmatch(r"(?:[a-z_]+\.){0,2}" + re.escape(path), name)]
    if len(found) > 1:
        raise Unreadable(f"several tensors may be {path}", why=", ".join(sorted(found)))
    return found[0] if found else None
