"""Weights by the paths of modules from the base model: of a folder without torch, or of a model that is loaded.

A linear module is a matrix that rows are multiplied by, (d_in, d_out). Files hold it the other way round, but for those
of families whose modules do as well (GPT-2's Conv1D), which their queries' projection shows: it reads the stream.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np

from traceformer.errors import Unreadable
from traceformer.models.dims import ModelDims, StackDims
from traceformer.models.family import Architecture
from traceformer.models.part import is_composite, text_config, text_prefix
from traceformer.models.readout import HeldRows, Rows
from traceformer.models.weights import StoredTensor, open_folder
from traceformer.shapes import Float32

__all__ = ["HeldModules", "ModuleWeights", "Projection", "decoder_dims", "stored_modules"]


class Projection(NamedTuple):
    """A linear layer: x @ weight + bias."""

    weight: Float32[np.ndarray, "d_in d_out"]
    bias: Float32[np.ndarray, "d_out"] | None


class ModuleWeights(Protocol):
    """Where weights are: in a folder, or in a model at hand."""

    def linear(self, path: str) -> Projection:
        """Returns what a linear module multiplies rows by, and adds."""
        ...

    def vector(self, path: str) -> Float32[np.ndarray, "..."] | None:
        """Returns a tensor, `layers.0.norm.weight`, None where there is none."""
        ...

    def rows(self, path: str) -> Rows:
        """Returns a module's table of embeddings."""
        ...


def decoder_dims(config: Mapping[str, Any]) -> StackDims:
    """Returns the sizes of a decoder, of its config.json."""
    return ModelDims.from_config(SimpleNamespace(**text_config(config))).stacks["dec"]


def stored_modules(folder: Path, config: Mapping[str, Any], row: Architecture) -> ModuleWeights:
    """Returns the weights of a decoder in a folder, read when asked for.

    Raises:
        NotFound, Unreadable: the folder holds no safetensors weights.
    """
    tensors, stack = open_folder(folder), row.stacks["dec"]
    names = _by_path(tensors)
    if is_composite(config):
        prefix = text_prefix(tensors, stack.token_embed, stack.blocks)
        names = {name.removeprefix(prefix): [name] for name in tensors if name.startswith(prefix)}
    found = _Stored(tensors, names, str(folder), input_first=False)
    query, latent = stack.attention.q_proj, stack.attention.q_latent
    reading = None if query is None else query.path if latent is None else latent.down
    name = None if reading is None else found.find(f"{stack.blocks}.0.{reading}.weight")
    d_model = decoder_dims(config).d_model
    return found if name is None else replace(found, input_first=tensors[name].shape[-1] != d_model)


def _by_path(names: Iterable[str]) -> Mapping[str, list[str]]:
    """The tensors that may be meant by a path from the base model: its own name stands before it in some files."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split(".")
        for first in range(min(3, len(parts))):
            found[".".join(parts[first:])].append(name)
    return found


@dataclass(frozen=True, slots=True)
class _Stored:
    """Tensors in files, whose names may have that of the base model in front."""

    tensors: Mapping[str, StoredTensor]
    names: Mapping[str, list[str]]
    folder: str
    input_first: bool

    def linear(self, path: str) -> Projection:
        weight = self._weight(path).read()
        return Projection(weight if self.input_first else weight.T, self.vector(f"{path}.bias"))

    def vector(self, path: str) -> Float32[np.ndarray, "..."] | None:
        name = self.find(path)
        return None if name is None else self.tensors[name].read()

    def rows(self, path: str) -> Rows:
        return self._weight(path)

    def _weight(self, path: str) -> StoredTensor:
        name = self.find(f"{path}.weight")
        if name is None:
            raise Unreadable(f"{self.folder} holds no {path}.weight", why="its family has one, unquantised")
        return self.tensors[name]

    def find(self, path: str) -> str | None:
        found = self.names.get(path, [])
        if len(found) > 1:
            raise Unreadable(f"several tensors may be {path}", why=", ".join(sorted(found)))
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class HeldModules:
    """Modules of a model that is loaded, whatever is in them: codes, or an adapter."""

    base: Any

    def linear(self, path: str) -> Projection:
        from traceformer.models.quantised import weights_of

        return Projection(weights_of(self.base.get_submodule(path)).cpu().numpy(), self.vector(f"{path}.bias"))

    def vector(self, path: str) -> Float32[np.ndarray, "..."] | None:
        from traceformer.models.placed import onloaded

        module, _, name = path.rpartition(".")
        try:
            own = self.base.get_submodule(module)
        except AttributeError:  # torch's, of a path at which no module is
            return None
        with onloaded(own):
            tensor = getattr(own, name, None)
            return None if tensor is None else tensor.detach().float().cpu().numpy()

    def rows(self, path: str) -> Rows:
        from traceformer.models.placed import onloaded

        own = self.base.get_submodule(path)
        with onloaded(own):
            return HeldRows(own.weight)
