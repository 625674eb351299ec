"""Projections made while the model runs: of each row a, what is kept is (a @ v) / |v| for some directions v."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from traceformer.errors import SelectionError, UsageError
from traceformer.models.dims import ModelDims
from traceformer.models.family import Architecture
from traceformer.sites import SITES, ArrayKey, ArraySpec, Selection, Stack, choose

__all__ = ["Projecting", "Traits", "plan_projection"]


@dataclass(frozen=True, slots=True)
class Traits:
    """What to project, and onto what.

    Attributes:
        vectors: By the trait's name, a vector for each layer; a lone one, whatever its layer, serves for any.
        site: The site to project, or its array's key where a model has it several times.
    """

    vectors: Mapping[str, Mapping[int | None, Float[np.ndarray, "d"]]]
    site: str = "resid_post"

    def at(self, name: str, layer: int) -> Float[np.ndarray, "d"] | None:
        """Returns the vector of a trait to use at a layer, or None."""
        own = self.vectors[name]
        return next(iter(own.values())) if len(own) == 1 else own.get(layer)


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

    def to_json(self) -> dict[str, Any]:
        digest = hashlib.sha256(b"".join(self.units[layer].numpy().tobytes() for layer in self.spec.layers))
        return {"site": str(self.source), "names": list(self.names), "digest": digest.hexdigest()}


def plan_projection(
    traits: Traits,
    selection: Selection,
    architecture: Architecture,
    dims: ModelDims,
    stacks: tuple[Stack, ...],
) -> Projecting:
    """Returns what is to be projected of a model: the selected layers, or else all that every trait has a vector for.

    Raises:
        SelectionError: the model lacks the site or has it twice, it is no row per layer, or no vector is for a layer.
        UsageError: a vector is of another width, zero, or not finite.
    """
    key = _source(traits.site, architecture, stacks)
    stack, n_layers = dims.stacks[key.stack], dims.stacks[key.stack].n_layers
    asked = selection.layers.get(key.stack)
    named = sorted({layer for own in traits.vectors.values() for layer in own if layer is not None})
    layers = choose(asked if asked is not None or not named else tuple(named), n_layers, "layers")
    if asked is None:
        layers = tuple(layer for layer in layers if all(traits.at(name, layer) is not None for name in traits.vectors))
        if not layers:
            raise SelectionError("the traits have no layer in common", hint="--layers says which")
    width = stack.d_mlp if SITES[key.site].axes[-1] == "d_mlp" else stack.d_model
    names = tuple(traits.vectors)
    units = {layer: torch.stack([_unit(traits, name, layer, width, key) for name in names]) for layer in layers}
    spec = ArraySpec(ArrayKey(key.stack, None, "projection"), layers, (), len(names))
    return Projecting(spec, key, names, units)


def _source(site: str, architecture: Architecture, stacks: tuple[Stack, ...]) -> ArrayKey:
    name = site.rsplit(".", 1)[-1]
    axes = SITES[name].axes if name in SITES else ()
    if len(axes) != 3 or axes[0] != "layer" or SITES[name].is_derived:
        of = [name for name, own in SITES.items() if own.axes == SITES["resid_post"].axes]
        raise SelectionError(f"{site!r} cannot be projected", hint=f"sites that can: {' '.join(of)}")
    found = [key for key in architecture.keys(name) if key.stack in stacks and site in (name, str(key))]
    if len(found) != 1:
        raise SelectionError(
            f"{site} is there {len(found)} times" if found else f"this model has no {site}",
            hint=" or ".join(f"--project-site {key}" for key in found),
        )
    return found[0]


def _unit(traits: Traits, name: str, layer: int, width: int, key: ArrayKey) -> Tensor:
    vector = traits.at(name, layer)
    if vector is None:
        own = ",".join(str(layer) for layer in traits.vectors[name])
        raise SelectionError(f"{name} has no vector for layer {layer}", hint=f"--layers {own}, which it has")
    if len(vector) != width:
        raise UsageError(f"the vectors of {name} are {len(vector)} wide", why=f"{key} is {width} wide")
    wide = vector.astype(np.float64)
    norm = np.linalg.norm(wide)
    if not np.isfinite(norm) or norm == 0:
        raise UsageError(f"the vector of {name} for layer {layer} is {'zero' if norm == 0 else 'not finite'}")
    return torch.from_numpy((wide / norm).astype(np.float32))
