"""Files of translators: one .safetensors file with `weights` (layer, d_model, d_model) and `biases` (layer, d_model).

What is known of them is JSON, under one name of the header's metadata, so that the same translators are the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.analysis.translators import KINDS, HeldOut, Kind, Translators
from traceformer.errors import Unreadable, UsageError
from traceformer.formats.results.published_lenses import is_published, read_published_lens, write_jacobian_lens
from traceformer.formats.tensor_files import write_tensor_file
from traceformer.formats.whole import appearing_whole, check_ending, refuse_to_replace
from traceformer.models.weights import StoredTensor, open_file
from traceformer.plain_json import parse_json
from traceformer.shapes import Float32
from traceformer.store.files import free_space
from traceformer.store.objects.path import disk_path

__all__ = ["check_lens_file", "open_lens", "write_translators"]

_FORMAT = "traceformer translators 1"
_ABOUT = "traceformer"
_STATED: Mapping[str, tuple[type, ...]] = {
    "model": (str, type(None)),
    "model_weights": (str, type(None)),
    "d_vocab": (int, type(None)),
    "about": (dict,),
}


def write_translators(translators: Translators, path: "str | PathLike[str]", overwrite: bool = False) -> None:
    """Writes a .safetensors file, which appears whole or not at all; or a .pt file of a Jacobian lens.

    Raises:
        UsageError: its name ends otherwise, or is a place in a bucket.
        RunExists: something is there, and `overwrite` is False.
        OutOfSpace: the disk is full.
    """
    path = check_lens_file(path, translators.kind, overwrite=overwrite)
    if path.suffix == ".pt":
        return write_jacobian_lens(translators, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"weights": np.ascontiguousarray(translators.weights), "biases": np.ascontiguousarray(translators.biases)}
    told = json.dumps({"format": _FORMAT, **translators.to_json(), "sha256": _digest(**tensors)})
    with free_space(path.parent), appearing_whole(path) as part:
        write_tensor_file(part, tensors, {_ABOUT: told})


def check_lens_file(path: "str | PathLike[str]", kind: Kind, *, overwrite: bool) -> Path:
    """Returns the path of a file that a lens of a kind can be written to.

    Raises:
        UsageError: its name ends in what no such lens is written in, or is a place in a bucket.
        RunExists: something is there, and `overwrite` is False.
    """
    path = disk_path(Path(path) if not isinstance(path, str) else path)
    if path.suffix == ".pt" and kind != "jacobian":
        why = "files of that ending are those that others read a Jacobian lens from"
        raise UsageError(f"a {kind} lens in {path}", why=why, hint="a name that ends in .safetensors")
    check_ending(path, f"a {kind} lens", (".safetensors", ".pt") if kind == "jacobian" else (".safetensors",))
    refuse_to_replace(path, overwrite=overwrite)
    return path


def open_lens(path: "str | PathLike[str]") -> Translators:
    """Returns the translators in a file that `Translators.save` wrote.

        open_lens("byte-lens.safetensors").to_frame()

    Raises:
        NotFound: no such file.
        Unreadable: it is no .safetensors file, or not all of one, or holds something else; or matrices and vectors that
            do not fit one another, hold NaN or inf, or are not those that were written.
    """
    if not str(path):
        raise UsageError("a lens at ''", why="an empty name is that of no file", hint="the file or folder of a lens")
    path = Path(path)
    if is_published(path):
        return read_published_lens(path)
    tensors, metadata = open_file(path)
    if _ABOUT not in metadata:
        raise Unreadable(f"{path} holds no translators", why=f"its metadata has no {_ABOUT!r}")
    return _read(tensors, metadata[_ABOUT], path)


def _read(tensors: Mapping[str, StoredTensor], told: str, path: Path) -> Translators:
    try:
        about = parse_json(told)
        if about["format"] != _FORMAT:
            raise Unreadable(f"{path} is of format {about['format']!r}", why=f"what is read is {_FORMAT!r}")
        kind, layers, known, held_out = _known(about)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"{path}: what it says of its translators is damaged", why=str(error)) from error
    weights, biases = (_tensor(tensors, name, path) for name in ("weights", "biases"))
    n, d_model = len(layers), biases.shape[-1]
    if biases.shape != (n, d_model) or weights.shape != (n, d_model, d_model):
        shapes = f"{weights.shape} and {biases.shape}"
        raise Unreadable(f"{path}: matrices and vectors of shapes {shapes}", why=f"it names {n} layers")
    if about.get("sha256") not in (None, _digest(weights, biases)):
        raise Unreadable(
            f"{path}: its matrices and vectors are not those that were written", why="their sha256 differs"
        )
    return Translators(kind, layers, weights, biases, **known, held_out=held_out)


def _digest(weights: Float32[np.ndarray, "..."], biases: Float32[np.ndarray, "..."]) -> str:
    digest = hashlib.sha256()
    for values in (weights, biases):
        digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.hexdigest()


def _known(about: Mapping[str, Any]) -> tuple[Kind, tuple[int, ...], dict[str, Any], HeldOut | None]:
    """Kind, layers, what is known of the model, and how well they do.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, OverflowError: it is not what `to_json` gives.
    """
    kind, layers = about["kind"], tuple(about["layers"])
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}")
    if not layers or any(type(layer) is not int for layer in layers) or sorted({*layers}) != [*layers]:
        raise ValueError(f"layers {layers}")
    known = {name: about[name] for name in _STATED}
    wrong = [name for name, types in _STATED.items() if type(known[name]) not in types]
    if wrong:
        raise ValueError(f"{wrong[0]} {known[wrong[0]]!r}")
    if about["held_out"] is None:
        return kind, layers, known, None
    held_out = HeldOut.from_json(about["held_out"])
    columns = (held_out.kl, held_out.top1, held_out.logit_kl, held_out.logit_top1, held_out.chosen)
    if any(len(column) != len(layers) for column in columns):
        raise ValueError(f"figures of other layers than {layers}")
    return kind, layers, known, held_out


def _tensor(tensors: Mapping[str, StoredTensor], name: str, path: Path) -> Float32[np.ndarray, "..."]:
    if name not in tensors or 0 in tensors[name].shape:
        raise Unreadable(f"{path} holds no {name}")
    values = tensors[name].read()
    if not np.isfinite(values).all():
        raise Unreadable(f"{path}: its {name} hold NaN or inf")
    return values
