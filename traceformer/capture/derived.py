"""What is computed from rows while the model runs, in place of these: projections onto directions, and the logit lens.

`Traits` and `LensTopK` say what is wanted; a selection carries them. Their `plan` gives what does it for one model:

1. `Projecting`: of each row a, (a @ v) / |v| for some directions v.
2. `Lensing`: of each row of the residual stream, the k likeliest next tokens. Rows go through the model's own final
   norm, projection and scale, in float32 whatever the model runs in, and are multiplied by its own unembedding, some
   rows and some tokens of the vocabulary at a time, so that no more than 64 MiB of logits is ever there. Each block,
   with bias and softcap, updates what is kept of each row: the k largest logits, and the logarithm of the sum of all
   exponentials. A token's probability is exp(its logit - that logarithm), as of the softmax over the vocabulary.

`analysis/lens.py` reads the same out of a stored residual stream, without torch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from traceformer.capture.gaps import layers_having
from traceformer.errors import SelectionError, Unsupported, UsageError
from traceformer.models.dims import ModelDims
from traceformer.models.family import Architecture
from traceformer.models.placed import Weights
from traceformer.models.quantised import refuse_codes
from traceformer.models.readout import ReadoutParts, find_readout
from traceformer.shapes import Float, Float32, Int64
from traceformer.sites import SITES, ArrayKey, ArraySpec, Selection, Stack, choose

__all__ = ["LensTopK", "Lensing", "ModelPlace", "Projecting", "Traits"]

_WORDS = 8192
_ROWS = 2048


class ModelPlace(NamedTuple):
    """Where rows are seen: a model, its family's row, and its sizes."""

    model: PreTrainedModel
    architecture: Architecture
    dims: ModelDims


@dataclass(frozen=True, slots=True)
class Traits:
    """What to project, and onto what.

    Attributes:
        vectors: By the trait's name, a vector for each layer; a lone one, whatever its layer, serves for any.
        site: The site to project, or its array's key where a model has it several times.
    """

    vectors: Mapping[str, Mapping[int | None, Float[np.ndarray, "d"]]]
    site: str = "resid_post"
    needs_head: ClassVar[bool] = False

    def at(self, name: str, layer: int) -> Float[np.ndarray, "d"] | None:
        """Returns the vector of a trait to use at a layer, or None."""
        own = self.vectors[name]
        return next(iter(own.values())) if len(own) == 1 else own.get(layer)

    def plan(self, selection: Selection, stacks: Sequence[Stack], place: ModelPlace) -> "Projecting":
        """Returns what projects a model's rows: at the selected layers, or else all that every trait has a vector for.

        Raises:
            SelectionError: the model lacks the site or has it twice, it is no row per layer, or no vector is for a
                layer.
            UsageError: a vector is of another width, zero, or not finite.
        """
        key = _source(self.site, place.architecture, stacks)
        stack = place.dims.stacks[key.stack]
        asked = selection.layers.get(key.stack)
        named = sorted({layer for own in self.vectors.values() for layer in own if layer is not None})
        layers = choose(asked if asked is not None or not named else tuple(named), stack.n_layers, "layers")
        if asked is None:
            layers = tuple(layer for layer in layers if all(self.at(name, layer) is not None for name in self.vectors))
            if not layers:
                raise SelectionError("the traits have no layer in common", hint="`layers` says which")
        having = layers_having(place.model, place.architecture, stack, key)
        if not set(layers) & set(having):
            lacking = f"{key.site} of layers {', '.join(map(str, layers))}"
            raise SelectionError(lacking, why="it is not there", hint=f"layers: {', '.join(map(str, having))}")
        layers = tuple(layer for layer in layers if layer in having)
        width = stack.width_of(SITES[key.site])
        names = tuple(self.vectors)
        units = {layer: torch.stack([_unit(self, name, layer, width, key) for name in names]) for layer in layers}
        spec = ArraySpec(ArrayKey(key.stack, None, "projection"), layers, (), len(names))
        return Projecting(spec, key, names, units)


@dataclass(frozen=True, slots=True)
class LensTopK:
    """The wish for the `k` likeliest next tokens after each of the decoder's selected layers."""

    k: int
    needs_head: ClassVar[bool] = True

    def plan(self, selection: Selection, stacks: Sequence[Stack], place: ModelPlace) -> "Lensing":
        """Returns what reads a model's residual stream out while it runs.

        Raises:
            Unsupported: there is no decoder, it does not run, or no readout is known of the model.
            Unsupported: weights that it reads are quantised.
            UsageError: the model's vocabulary is smaller, or `k` is less than one.
        """
        model = place.model
        if "dec" not in place.architecture.stacks:
            raise Unsupported("the logit lens of an encoder", why="it predicts no next token")
        if "dec" not in stacks:
            raise Unsupported("the logit lens of an encoder alone", why="the decoder runs only with `targets`")
        if model.get_output_embeddings() is None:
            raise Unsupported("the logit lens of a model without an unembedding", why="it has no language-model head")
        tensors = Weights(model)
        where, row = type(model).__name__, place.architecture
        readout = find_readout(tensors, model.config.to_dict(), where=where, architecture=row)
        used = (readout.norm_weight, readout.norm_bias, readout.project_out, readout.unembedding, readout.bias)
        tensors = {name: tensors[name] for name in used if name is not None}
        refuse_codes(tensors, "the logit lens")
        d_vocab = len(tensors[readout.unembedding])
        if not 1 <= self.k <= d_vocab:
            raise UsageError(f"the {self.k} likeliest tokens", why=f"the model has {d_vocab}", hint="`lens_top_k=5`")
        layers = choose(selection.layers.get("dec"), place.dims.stacks["dec"].n_layers, "layers")
        ids, probabilities = (
            ArraySpec(ArrayKey("dec", None, site), layers, (), self.k) for site in ("lens_topk", "lens_topk_prob")
        )
        return Lensing((ids, probabilities), ArrayKey("dec", None, "resid_post"), readout, tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Projecting:
    """The array that projections are recorded as, of which other array, and the unit vectors of each layer."""

    spec: ArraySpec
    source: ArrayKey
    names: tuple[str, ...]
    units: Mapping[int, Float32[Tensor, "direction d"]]
    _on_device: dict[tuple[int, torch.device], Tensor] = field(
        default_factory=dict[tuple[int, torch.device], Tensor], repr=False
    )

    @property
    def specs(self) -> tuple[ArraySpec]:
        return (self.spec,)

    def of(self, layer: int, rows: Tensor) -> Mapping[ArrayKey, Float32[Tensor, "... direction"]]:
        """Returns the projections of one layer's rows, computed on the rows' device in float32."""
        place = layer, rows.device
        if place not in self._on_device:
            self._on_device[place] = self.units[layer].to(rows.device)
        return {self.spec.key: rows.float() @ self._on_device[place].T}

    @property
    def settings(self) -> Mapping[str, Any]:
        digest = hashlib.sha256(b"".join(self.units[layer].numpy().tobytes() for layer in self.spec.layers))
        return {"projection": {"site": str(self.source), "names": list(self.names), "digest": digest.hexdigest()}}


def _source(site: str, architecture: Architecture, stacks: Sequence[Stack]) -> ArrayKey:
    name = site.rsplit(".", 1)[-1]
    axes = SITES[name].axes if name in SITES else ()
    if len(axes) != 3 or axes[0] != "layer" or axes[-1] not in ("d_model", "d_mlp"):
        of = [name for name, own in SITES.items() if own.axes == SITES["resid_post"].axes]
        raise SelectionError(f"{site!r} cannot be projected", hint=f"sites that can: {' '.join(of)}")
    found = [key for key in architecture.keys(name) if key.stack in stacks and site in (name, str(key))]
    if len(found) != 1:
        raise SelectionError(
            f"{site} is there {len(found)} times" if found else f"this model has no {site}",
            hint=" or ".join(f'`project_site="{key}"`' for key in found),
        )
    return found[0]


def _unit(traits: Traits, name: str, layer: int, width: int, key: ArrayKey) -> Tensor:
    vector = traits.at(name, layer)
    if vector is None:
        own = ",".join(str(layer) for layer in traits.vectors[name])
        raise SelectionError(f"{name} has no vector for layer {layer}", hint=f'`layers="{own}"`, which it has')
    if len(vector) != width:
        raise UsageError(f"the vectors of {name} are {len(vector)} wide", why=f"{key} is {width} wide")
    wide = vector.astype(np.float64)
    norm = np.linalg.norm(wide)
    if not np.isfinite(norm) or norm == 0:
        raise UsageError(f"the vector of {name} for layer {layer} is {'zero' if norm == 0 else 'not finite'}")
    return torch.from_numpy((wide / norm).astype(np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Lensing:
    """The two arrays that the lens is recorded as, of which other array, and the model's readout, on its device."""

    specs: tuple[ArraySpec, ArraySpec]
    source: ArrayKey
    readout: ReadoutParts
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def top_k(self) -> int:
        return self.specs[0].width

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"lens top k": self.top_k}

    def of(self, layer: int, rows: Float[Tensor, "batch position d_model"]) -> Mapping[ArrayKey, Tensor]:
        """Returns ids and probabilities of the likeliest next tokens, (batch, position, k), the likeliest first.

        They are worked out where the unembedding is.
        """
        rows = rows.to(self.tensors[self.readout.unembedding].device)
        parts = [self._likeliest(self._normed(part)) for part in rows.flatten(0, 1).split(_ROWS)]
        found = (torch.cat(each).unflatten(0, rows.shape[:2]) for each in zip(*parts, strict=True))
        return {spec.key: values for spec, values in zip(self.specs, found, strict=True)}

    def _tensor(self, name: str | None) -> Float32[Tensor, "..."] | None:
        return None if name is None else self.tensors[name].float()

    def _normed(self, rows: Float[Tensor, "row d_model"]) -> Float32[Tensor, "row d_embed"]:
        own, rows = self.readout, rows.float()
        if own.norm is not None:
            if own.norm.startswith("layer"):
                rows = rows - rows.mean(dim=1, keepdim=True)
            rows = rows / (rows.square().mean(dim=1, keepdim=True) + own.epsilon).sqrt()
            weight, bias = self._tensor(own.norm_weight), self._tensor(own.norm_bias)
            if weight is not None:
                rows = rows * (weight + 1 if own.norm.endswith("plus_one") else weight)
            if bias is not None:
                rows = rows + bias
        project_out = self._tensor(own.project_out)
        return (rows if project_out is None else rows @ project_out.T) * own.scale

    def _likeliest(
        self, rows: Float32[Tensor, "row d_embed"]
    ) -> tuple[Int64[Tensor, "row k"], Float32[Tensor, "row k"]]:
        unembedding, bias = self.tensors[self.readout.unembedding], self._tensor(self.readout.bias)
        top = rows.new_empty((len(rows), 0))
        ids = torch.empty((len(rows), 0), dtype=torch.int64, device=rows.device)
        total = rows.new_full((len(rows), 1), -torch.inf)
        for first in range(0, len(unembedding), _WORDS):
            words = slice(first, first + _WORDS)
            logits = rows @ unembedding[words].float().T
            if bias is not None:
                logits += bias.flatten()[words]
            if self.readout.softcap is not None:
                logits.div_(self.readout.softcap).tanh_().mul_(self.readout.softcap)
            total = torch.logaddexp(total, logits.logsumexp(dim=1, keepdim=True))
            largest, places = logits.topk(min(self.top_k, logits.shape[1]))
            top, ids = torch.cat([top, largest], dim=1), torch.cat([ids, places + first], dim=1)
            top, order = top.topk(min(self.top_k, top.shape[1]))
            ids = ids.gather(1, order)
        return ids, (top - total).exp()
