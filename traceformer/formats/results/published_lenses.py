"""Lenses that others fitted and published, as `Translators`; and ours as others read them.

- A Jacobian lens is one .pt file of a dict: `J` with a matrix per layer (its number, from 0, of the block whose output
  is translated), `n_prompts`, `source_layers`, `d_model`, and what is known of it in `metadata`, if anything. J's first
  axis is that of the last block's output, before the final norm: h' = J h. The last layer has none. So write it
  anthropics/jacobian-lens, whose files are published as neuronpedia/jacobian-lens, and TransformerLens 4.3, whose
  register names these. It is read without torch.
- The `tuned-lens` package saves a folder of `config.json` and `params.pt`, a state dict with `I.weight` and
  `I.bias`: h' = h + weight h + bias, of which the identity is put within W here. Its I counts `hidden_states`, so that
  0 is the embedding, which no layer leaves, and I is layer I - 1. torch's own loader reads it, weights only.

Neither says what weights its model had: who applies them knows the model by its name, if they state one, and by widths.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.analysis.translators import Translators
from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.formats.torch_archives import read_torch_archive
from traceformer.models.weights import read_json
from traceformer.shapes import Float32, Shaped

__all__ = ["is_published", "read_published_lens", "write_jacobian_lens"]

_CONFIG, _PARAMETERS = "config.json", "params.pt"
_LINEAR = "linear_tuned_lens"
_STATED = ("model_name", "model_revision", "corpus", "target_layer", "estimator", "fit_dtype")


def is_published(path: Path) -> bool:
    """Returns whether a path is one of a lens that others may have published: a folder, or a .pt file."""
    return path.is_dir() or path.suffix == ".pt"


def read_published_lens(path: Path) -> Translators:
    """Returns the translators in a published Jacobian lens, or in a folder that `tuned-lens` saved.

    Raises:
        NotFound: there is none.
        Unreadable: it holds something else, not all of it, or NaN or inf; a pickle that runs code; or matrices that do
            not fit what it says of them.
    """
    return _read_tuned_lens(path) if path.is_dir() else _read_jacobian_lens(path)


def _read_jacobian_lens(path: Path) -> Translators:
    found = read_torch_archive(path)
    if isinstance(found, dict) and "J" not in found and "jacobian_sum" in found:
        why = "it holds sums over the prompts that were read so far"
        raise Unreadable(f"{path} is a fit that was not finished", why=why, hint="the file that its fit ends with")
    if not isinstance(found, dict) or not isinstance(found.get("J"), dict) or not found["J"]:
        why = "a dict with the matrices of layers under J is read"
        raise Unreadable(f"{path} holds no Jacobian lens", why=why)
    matrices, d_model = found["J"], found.get("d_model")
    layers = _layers_of(matrices, path)
    if type(d_model) is not int or d_model < 1:
        raise Unreadable(f"{path} says that its rows are {d_model!r} wide")
    listed = found.get("source_layers")
    if listed is not None and (not isinstance(listed, list) or {*map(str, listed)} != {*map(str, layers)}):
        raise Unreadable(f"{path} has matrices of layers {_told(layers)}", why=f"it lists {listed}")
    metadata = found.get("metadata") or {}
    stated = {name: metadata.get(name) for name in _STATED} if isinstance(metadata, dict) else {}
    about = {name: value for name, value in stated.items() if isinstance(value, str | int)}
    if type(found.get("n_prompts")) is int:
        about["n_prompts"] = found["n_prompts"]
    where = [f"{path}, layer {layer}" for layer in layers]
    weights = _stacked([_checked(matrices[own], (d_model, d_model), at) for own, at in zip(layers, where, strict=True)])
    _refuse_no_numbers(weights, where)
    biases, name = np.zeros((len(layers), d_model), np.float32), about.pop("model_name", None)
    model = name if isinstance(name, str) else None
    return Translators("jacobian", layers, weights, biases, model, about={"format": "J", **about})


def _layers_of(matrices: Mapping[Any, Any], path: Path) -> tuple[int, ...]:
    if any(type(layer) is not int or layer < 0 for layer in matrices):
        raise Unreadable(f"{path}: matrices of {', '.join(map(repr, matrices))}", why="each is named by its layer")
    return tuple(sorted(matrices))


def _read_tuned_lens(folder: Path) -> Translators:
    from traceformer.formats.torch_files import read_torch_file

    if not (folder / _CONFIG).is_file() or not (folder / _PARAMETERS).is_file():
        raise NotFound(f"no lens in {folder}", why=f"`tuned-lens` saves a {_CONFIG} and a {_PARAMETERS}")
    config = read_json(folder / _CONFIG)
    kind = config.get("lens_type", _LINEAR)
    if kind != _LINEAR:
        raise Unreadable(f"{folder} holds a lens of type {kind!r}", why=f"what is read is {_LINEAR!r}")
    d_model, depth = (config.get(name) for name in ("d_model", "num_hidden_layers"))
    if type(d_model) is not int or type(depth) is not int or d_model < 1 or depth < 2:
        raise Unreadable(f"{folder / _CONFIG} says d_model {d_model!r} and num_hidden_layers {depth!r}")
    state = read_torch_file(folder / _PARAMETERS)
    if not isinstance(state, dict) or depth > len(state):
        why = f"its {_CONFIG} tells of {depth} translators"
        raise Unreadable(f"{folder / _PARAMETERS} does not hold what belongs to it", why=why)
    wanted = {f"{number}.{name}" for number in range(depth) for name in ("weight", "bias")}
    needed = wanted if config.get("bias", True) else {name for name in wanted if name.endswith("weight")}
    if not needed <= set(state) <= wanted:
        names = sorted(map(str, set(state) ^ needed))[:4]
        why = f"its {_CONFIG} tells of {depth} translators; what is missing or too much: {', '.join(names)}"
        raise Unreadable(f"{folder / _PARAMETERS} does not hold what belongs to it", why=why)
    matrices, vectors = ([state.get(f"{i + 1}.{name}") for i in range(depth - 1)] for name in ("weight", "bias"))
    where = [f"{folder / _PARAMETERS}, translator {layer + 1}" for layer in range(depth - 1)]
    weights = _stacked([_checked(own, (d_model, d_model), at) for own, at in zip(matrices, where, strict=True)])
    none = np.zeros(d_model, np.float32)
    biases = _stacked(
        [_checked(none if own is None else own, (d_model,), at) for own, at in zip(vectors, where, strict=True)]
    )
    _refuse_no_numbers(weights, where)
    _refuse_no_numbers(biases, where)
    weights += np.eye(d_model, dtype=np.float32)
    model, revision = (config.get(f"base_model_{name}") for name in ("name_or_path", "revision"))
    about = {"format": "tuned-lens", "n_layers": depth, **({"model_revision": revision} if revision else {})}
    name = model if isinstance(model, str) else None
    return Translators("tuned", tuple(range(depth - 1)), weights, biases, name, about=about)


def _checked(values: Any, shape: tuple[int, ...], where: str) -> Shaped[np.ndarray, "..."]:
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.floating):
        raise Unreadable(f"{where}: no floating-point numbers")
    if values.shape != shape:
        raise Unreadable(f"{where}: shape {_by(values)} where {' x '.join(map(str, shape))} should be")
    return values


def _stacked(values: list[Shaped[np.ndarray, "..."]]) -> Float32[np.ndarray, "layer ..."]:
    """Arrays of one shape, whose sizes are known to be within their file, as one in float32."""
    stacked = np.empty((len(values), *values[0].shape), np.float32)
    for at, own in enumerate(values):
        with np.errstate(over="ignore", invalid="ignore"):
            stacked[at] = own
    return stacked


def _refuse_no_numbers(values: Float32[np.ndarray, "layer ..."], where: list[str]) -> None:
    for own, at in zip(values, where, strict=True):
        if not np.isfinite(own).all():
            raise Unreadable(f"{at}: it holds NaN or inf")


def _by(values: Shaped[np.ndarray, "..."]) -> str:
    return " x ".join(map(str, values.shape)) or "a single number"


def _told(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))


def write_jacobian_lens(translators: Translators, path: Path) -> None:
    """Writes a Jacobian lens as others publish theirs: a .pt file of float32 matrices, which appears whole or not.

    Raises:
        UsageError: they are of another kind, or add something, for which the format has no place.
        OutOfSpace: the disk is full.
    """
    from traceformer.formats.torch_files import Part, write_torch_file

    if translators.kind != "jacobian":
        raise UsageError(
            f"a {translators.kind} lens in {path}",
            why="the published format with that ending is one of Jacobian lenses",
            hint="a name that ends in .safetensors",
        )
    if translators.biases.any():
        raise UsageError(f"translators with biases in {path}", why="the format has none", hint="a .safetensors file")
    metadata = {name: value for name, value in translators.about.items() if isinstance(value, str | int | float)}
    metadata["estimator"] = "jacobian_lens"
    # Others refuse a model of another name, and a folder is called otherwise elsewhere.
    if translators.model is not None and not os.path.isdir(translators.model):
        metadata["model_name"] = translators.model
    texts = translators.about.get("n_prompts", translators.about.get("texts", 0))
    matrices = {layer: Part(weights) for layer, weights in zip(translators.layers, translators.weights, strict=True)}
    value = {
        "J": matrices,
        "n_prompts": texts if isinstance(texts, int) else 0,
        "source_layers": list(translators.layers),
        "d_model": translators.d_model,
        "metadata": metadata,
    }
    write_torch_file(path, value, "float32")
