"""Files of probes: a .safetensors file with the weights of each layer, and what they reach, in its metadata."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from traceformer.analysis.probes import Fitted, Probe, Probes, Scores
from traceformer.errors import Unreadable
from traceformer.formats.tensor_files import write_tensor_file
from traceformer.formats.whole import appearing_whole, check_ending, refuse_to_replace
from traceformer.models.weights import open_file
from traceformer.plain_json import parse_json
from traceformer.store.files import free_space
from traceformer.store.objects.path import disk_path

__all__ = ["check_probe_file", "open_probes", "write_probes"]

_FORMAT = "traceformer probes 1"
_ABOUT = "probes"
_TENSORS = ("weights", "bias", "mean", "scale")


def check_probe_file(path: str | Path, *, overwrite: bool) -> Path:
    """Returns the path of a file that probes can be written to.

    Raises:
        UsageError: its name does not end in .safetensors, or is a place in a bucket.
        RunExists: something is there, and `overwrite` is False.
    """
    path = disk_path(path)
    check_ending(path, "probes")
    refuse_to_replace(path, overwrite=overwrite)
    return path


def write_probes(probes: Probes, path: str | Path, overwrite: bool = False) -> None:
    """Writes a .safetensors file.

    Raises:
        UsageError, RunExists: as `check_probe_file` does.
        OutOfSpace: the disk is full.
    """
    path = check_probe_file(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{number}.{name}": np.ascontiguousarray(getattr(probe, name))
        for number, probe in enumerate(probes.probes)
        for name in _TENSORS
    }
    told = {
        "format": _FORMAT,
        "classes": list(probes.classes),
        "counts": list(probes.counts),
        "about": asdict(probes.about),
        "probes": [
            {name: getattr(probe, name) for name in ("layer", "head", "passes", "converged")}
            | {"scores": asdict(probe.scores)}
            for probe in probes.probes
        ],
    }
    with free_space(path.parent), appearing_whole(path) as part:
        write_tensor_file(part, tensors, {_ABOUT: json.dumps(told)})  # of two names, the order would differ each time


def open_probes(path: str | Path) -> Probes:
    """Returns the probes that `Probes.save` wrote.

    Raises:
        NotFound: there is no such file.
        Unreadable: it is no such file, or damaged.
    """
    from safetensors.numpy import load_file

    path = Path(path)
    tensors, metadata = open_file(path)
    if _ABOUT not in metadata:
        raise Unreadable(f"{path} is no file of probes", hint="what `Probes.save` wrote")
    kinds = {tensor.dtype for tensor in tensors.values()} - {"F64"}
    if kinds:
        raise Unreadable(f"{path}: its weights are {min(kinds)}", why="those of probes are F64")
    try:
        return _read(parse_json(metadata[_ABOUT]), load_file(path))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"{path}: its probes are not as they are written", why=str(error)) from error


def _read(told: Any, tensors: dict[str, np.ndarray]) -> Probes:
    """Makes probes of what a file says.

    Raises:
        KeyError, TypeError, ValueError: something is missing, or of another type or shape.
    """
    if told["format"] != _FORMAT:
        raise ValueError(f"their format is {told['format']!r}")
    if not isinstance(told["classes"], list) or not isinstance(told["counts"], list):
        raise TypeError("classes and their counts are lists")
    classes, counts = tuple(told["classes"]), tuple(told["counts"])
    if len(classes) < 2 or len(counts) != len(classes) or len({type(name) for name in classes}) != 1:
        raise ValueError("classes and their counts do not agree")
    if not isinstance(classes[0], bool | int | str) or not all(type(count) is int for count in counts):
        raise ValueError("classes are words, whole numbers or booleans")
    probes: list[Probe] = []
    for number, own in enumerate(told["probes"]):
        weights, bias, mean, scale = (tensors[f"{number}.{name}"] for name in _TENSORS)
        if not all(np.isfinite(values).all() for values in (weights, bias, mean, scale)) or not (scale > 0).all():
            raise ValueError(f"the weights of probe {number} are no finite numbers")
        if weights.ndim != 2 or (bias.shape, mean.shape, scale.shape) != (
            (len(classes),),
            (weights.shape[1],),
            (weights.shape[1],),
        ):
            raise ValueError(f"the weights of probe {number} are of other shapes than its classes")
        if len(weights) != len(classes):
            raise ValueError(f"probe {number} has weights for {len(weights)} classes")
        probes.append(
            Probe(
                _numbered(own["layer"], "layer"),
                _numbered(own["head"], "head"),
                weights,
                bias,
                mean,
                scale,
                _made(Scores, own["scores"]),
                _typed(own["passes"], int, "passes"),
                _typed(own["converged"], bool, "converged"),
            )
        )
    if not probes:
        raise ValueError("there are none")
    return Probes(classes, counts, tuple(probes), _made(Fitted, told["about"]))


def _numbered(value: Any, name: str) -> int | None:
    if value is None or (type(value) is int and 0 <= value < 10**6):
        return value
    raise TypeError(f"{name} is {value!r}")


def _made(kind: Any, told: Any) -> Any:
    """A flat dataclass of what a file says of it."""
    hints = get_type_hints(kind)
    return kind(**{own.name: _typed(told[own.name], hints[own.name], own.name) for own in fields(kind)})


def _typed(value: Any, kind: Any, name: str) -> Any:
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
    else:
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if float in kinds and type(value) is int:
            value = float(value)
        if type(value) in kinds:
            return value
    raise TypeError(f"{name} is {value!r}")
