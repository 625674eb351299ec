"""From the residual stream to logits: what stands behind a model's last block, read from its folder without torch.

The row of its family says what kind of norm that is, which settings of the config count, and where norm and token
embedding lie; the tests compare every family's readout with its own class.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from traceformer.errors import Unreadable, Unsupported
from traceformer.models.families import architecture_of, family_of, own_family
from traceformer.models.family import Architecture, Norm, ReadoutRow
from traceformer.models.outputs import refuse_without_logits
from traceformer.models.part import is_composite, text_config, text_prefix
from traceformer.models.weights import open_folder
from traceformer.shapes import Float32

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = [
    "HeldRows",
    "Readout",
    "ReadoutParts",
    "Rows",
    "epsilon_of",
    "find_readout",
    "open_readout",
    "readout_of",
    "readout_row_of",
]


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


class Rows(Protocol):
    """A matrix of which some rows are read at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, first: int, last: int) -> Float32[np.ndarray, "row d"]:
        """Returns the rows `first` .. `last` - 1."""
        ...


@dataclass(frozen=True, slots=True)
class Readout:
    """A model's own final norm, unembedding and softcap: logits = softcap(W (scale * P norm(x)) + b).

    Attributes:
        norm: None where there is no norm behind the last block.
        norm_weight, norm_bias: None where the norm has none.
        epsilon: Added to the variance.
        project_out: P, None for none (OPT-350m has one).
        scale: A number, 1 for most.
        unembedding: W, which is left where it is: on disk, or in the model.
        bias: b, None for none.
        softcap: c of c tanh(logits / c), None for none.
    """

    norm: Norm | None
    norm_weight: Float32[np.ndarray, "d_model"] | None
    norm_bias: Float32[np.ndarray, "d_model"] | None
    epsilon: float
    project_out: Float32[np.ndarray, "d_embed d_model"] | None
    scale: float
    unembedding: Rows
    bias: Float32[np.ndarray, "d_vocab"] | None
    softcap: float | None

    @property
    def d_vocab(self) -> int:
        return self.unembedding.shape[0]

    @property
    def d_model(self) -> int:
        return self.unembedding.shape[1] if self.project_out is None else self.project_out.shape[1]


@dataclass(frozen=True, slots=True)
class HeldRows:
    """A matrix of a model that is loaded."""

    tensor: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def rows(self, first: int, last: int) -> Float32[np.ndarray, "row d"]:
        return self.tensor[first:last].detach().float().cpu().numpy()


def readout_of(model: "LoadedModel") -> Readout:
    """Returns the readout of a model that is loaded.

    Raises:
        Unsupported: it predicts no next token, its family's readout is not known, or its weights are quantised.
    """
    from traceformer.models.placed import Weights
    from traceformer.models.quantised import refuse_codes

    if model.model.get_output_embeddings() is None:
        why = "it has no language-model head: it predicts no next token"
        raise Unsupported(f"the readout of {type(model.model).__name__}", why=why)
    config, tensors = model.config.to_dict(), Weights(model.model)
    parts = find_readout(tensors, config, where=model.name, architecture=model.architecture)
    names = (parts.norm_weight, parts.norm_bias, parts.project_out, parts.unembedding, parts.bias)
    refuse_codes({name: tensors[name] for name in names if name is not None}, "the readout")

    def read(name: str | None) -> Float32[np.ndarray, "..."] | None:
        return None if name is None else tensors[name].detach().float().cpu().numpy()

    return _assembled(parts, read, HeldRows(tensors[parts.unembedding]))


def open_readout(folder: Path, config: Mapping[str, Any], architecture: Architecture | None = None) -> Readout:
    """Returns what a model folder's config.json and weights say; the unembedding is not read yet.

    `architecture` is another row than its family's own.

    Raises:
        Unsupported: a family that is not known, or has no decoder.
        NotFound, Unreadable: the folder holds no safetensors weights, or not these.
    """
    readout_row_of(config, architecture)
    refuse_without_logits(config, "the readout")
    tensors = open_folder(folder)
    parts = find_readout(tensors, config, where=str(folder), architecture=architecture)

    def read(name: str | None) -> Float32[np.ndarray, "..."] | None:
        return None if name is None else tensors[name].read()

    return _assembled(parts, read, tensors[parts.unembedding])


def _assembled(
    parts: ReadoutParts, read: Callable[[str | None], Float32[np.ndarray, "..."] | None], unembedding: Rows
) -> Readout:
    bias = read(parts.bias)
    return Readout(
        parts.norm,
        read(parts.norm_weight),
        read(parts.norm_bias),
        parts.epsilon,
        read(parts.project_out),
        parts.scale,
        unembedding,
        None if bias is None else bias.reshape(-1),
        parts.softcap,
    )


def find_readout(
    tensors: Collection[str], config: Mapping[str, Any], *, where: str, architecture: Architecture | None = None
) -> ReadoutParts:
    """Returns which of a model's tensors, given by name, are its readout.

    Raises:
        Unsupported: a family that is not known, or has no decoder.
        Unreadable: a tensor is missing, or may be several; `where` says of what.
    """
    row, built = readout_row_of(config, architecture)
    stack = built.stacks["dec"]
    final_norm, token_embed = stack.final_norm, stack.token_embed
    prefix = text_prefix(tensors, token_embed, stack.blocks) if is_composite(config) else None
    config = text_config(config)

    def find(path: str) -> str | None:
        return _tensor_at(tensors, path)

    def find_in_part(path: str) -> str | None:
        if prefix is None:
            return find(path)
        return f"{prefix}{path}" if f"{prefix}{path}" in tensors else None

    weight = bias = None
    if final_norm is not None and not row.norm.endswith("bare"):
        weight, bias = find_in_part(f"{final_norm}.weight"), find_in_part(f"{final_norm}.bias")
        if weight is None:
            raise Unreadable(f"{where} holds no {final_norm}.weight", why="the final norm needs it")
    own_head = [find(name) for name in ("lm_head.weight", "embed_out.weight", "output_projection.weight")]
    tied = [find_in_part(f"{token_embed}.weight"), find("shared.weight")]
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
        epsilon_of(config, row),
        find("project_out.weight"),
        _number(config, "d_model") ** -0.5 if scaled else _logit_scale(row, config),
        unembedding,
        find("final_logits_bias") or find("lm_head.bias"),
        None if softcap is None else _number(config, *row.softcap),
    )


def epsilon_of(config: Mapping[str, Any], row: ReadoutRow) -> float:
    """Returns what the norms of a family add to the variance.

    Raises:
        Unreadable: the config says it, and not as a number.
    """
    return _number(config, *row.epsilon)


def _logit_scale(row: ReadoutRow, config: Mapping[str, Any]) -> float:
    """The number that logits are multiplied by: as well the rows that the unembedding multiplies, before a bias."""

    def said(name: str, default: float) -> float:
        return default if config.get(name) is None else _number(config, name)

    return said(*row.logit_scale) / said(*row.logit_divisor)


def readout_row_of(
    config: Mapping[str, Any], architecture: Architecture | None = None
) -> tuple[ReadoutRow, Architecture]:
    """Returns what the row of a family says of its readout, and how it is built, or another row that has a readout.

    Raises:
        Unsupported: the family is not known, or predicts no next token with a norm and a matrix.
    """
    config = text_config(config)
    if architecture is not None and architecture.readout is not None:
        return architecture.readout, architecture
    if architecture is not None and own_family(config) is None:
        raise Unsupported(
            f"no readout of model type {config['model_type']!r}",
            why="what stands behind the last block is known of families with a row; its own was found by watching it",
            hint="`like=FAMILY` when it is recorded takes that of another family, if it holds",
        )
    family = family_of(config)
    if family.readout is None:
        why = "its head has layers of its own" if "dec" in family.stacks else "it predicts no next token"
        raise Unsupported(f"no readout of model type {config['model_type']!r}", why=why)
    return family.readout, architecture_of(config)


def _number(config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable(f"the config's {name} is {value!r}", why="a number is needed")
    return float(value)


def _tensor_at(tensors: Collection[str], path: str) -> str | None:
    """Returns the name of the tensor at a path from the base model, whose own name stands before it in some files.

    Raises:
        Unreadable: several may be meant.
    """
    found = [name for name in tensors if re.fullmatch(r"(?:[a-z_]+\.){0,2}" + re.escape(path), name)]
    if len(found) > 1:
        raise Unreadable(f"several tensors may be {path}", why=", ".join(sorted(found)))
    return found[0] if found else None
