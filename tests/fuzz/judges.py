"""What is wrong with an answer, in words, or nothing: told by another way to read the same bytes, or by the seeds."""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "commands",
    "directions",
    "head_tables",
    "nothing_known",
    "probes",
    "prompts",
    "published_lenses",
    "same_unless_named",
    "same_unless_resealed",
    "texts",
    "translators",
    "weights",
    "words",
]


def nothing_known(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """There is no other way to tell."""
    return ""


def same_unless_named(*names: str) -> Callable[[Path, Path, Any, Any], str]:
    """Returns the judge for files under a checksum: whatever is not refused is what was there, but for these files."""

    def judge(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
        return "" if any(path.name in names for path in _changed(folder, seeds)) else _difference(read, intact)

    return judge


def same_unless_resealed(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """Whatever can be read of a damaged run is what was there; with a new seal it says whatever it says."""
    changed = _changed(folder, seeds)
    if any(path.name == "meta.json" or path.parent.name == "commits" for path in changed):
        return ""
    return _difference({**read, "ok": None}, {**intact, "ok": None})


def probes(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """safetensors reads the same weights."""
    from safetensors.numpy import load_file

    for name, own in read.items():
        if isinstance(own, Exception):
            continue
        tensors = load_file(folder / name)
        for number, probe in enumerate(own):
            if not np.array_equal(probe.weights, tensors[f"{number}.weights"]):
                return f"{name} has other weights"
    return ""


def _changed(folder: Path, seeds: Path) -> list[Path]:
    files = [path for path in seeds.rglob("*") if path.is_file()]
    found = [(path, folder / path.relative_to(seeds)) for path in files]
    return [path for path, own in found if not own.is_file() or own.read_bytes() != path.read_bytes()]


def _difference(read: dict[str, Any], intact: dict[str, Any]) -> str:
    if read.keys() != intact.keys():
        return f"other things were read: {sorted(map(str, read.keys() ^ intact.keys()))[:3]}"
    for name, own in read.items():
        if not _same(own, intact[name]):
            return f"{name} is another"
    return ""


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return one == other


def directions(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """numpy and safetensors read the same vectors."""
    from safetensors.numpy import load_file

    for name, own in read.items():
        if isinstance(own, Exception) or not name.endswith((".npy", ".safetensors")):
            continue
        path = folder / name
        if name.endswith(".npy"):
            values = np.load(path, allow_pickle=False)
            found = [*values] if values.ndim == 2 and len(values) > 1 else [values.reshape(-1)]
        else:
            tensors = load_file(path)
            found = [tensors[key].reshape(-1) for key in tensors]
        with np.errstate(all="ignore"):
            expected = sorted(np.asarray(vector).reshape(-1).astype(np.float32).tobytes() for vector in found)
        if sorted(vector.tobytes() for vector in own.by_layer.values()) != expected:
            return f"{name} has other vectors"
    return ""


def head_tables(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """The csv module and float() find the same layers, heads and entropies."""
    for name, own in read.items():
        if isinstance(own, Exception):
            continue
        rows = [*csv.DictReader(io.StringIO((folder / name).read_text("utf-8-sig"), newline=""))]
        if [(str(row.layer), str(row.head)) for row in own.rows] != [
            (str(int(row["layer"])), str(int(row["head"]))) for row in rows
        ]:
            return f"{name} has other heads"
        if "entropy" in own.values:
            cells = [float(row["entropy"]) if (row["entropy"] or "").strip() else math.nan for row in rows]
            if not np.array_equal(own.values["entropy"], cells, equal_nan=True):
                return f"{name} has other entropies"
    return ""


def prompts(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """json finds the same texts; ids are unique and safe."""
    for name, own in read.items():
        if isinstance(own, Exception):
            continue
        ids = [prompt.prompt_id for prompt in own.prompts]
        if len({*ids}) != len(ids) or not all(re.fullmatch(r"[A-Za-z0-9._-]+", each) for each in ids):
            return f"{name} has unsafe ids"
        told = (folder / name).read_bytes().decode("utf-8-sig")
        lines = [line.removesuffix("\r") for line in told.split("\n")]
        if name.endswith(".json"):
            expected = [entry["text"] for entry in json.loads(told)["prompts"]]
        elif name.endswith(".jsonl"):
            expected = [json.loads(line)["text"] for line in lines if line.strip()]
        else:
            expected = [line for line in lines if line.strip()]
        if [prompt.text for prompt in own.prompts] != expected:
            return f"{name} has other texts"
    return ""


def texts(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """A plain reading of the same bytes gives the same texts; ids are never told twice."""
    for name, own in read.items():
        if isinstance(own, Exception):
            continue
        if name == "targets":
            told = (folder / "lines.txt").read_bytes().split(b"\n")[:3]  # no more are read
            if own != [line.removesuffix("\r") for line in b"\n".join(told).decode("utf-8-sig").split("\n")]:
                return "other targets"
            continue
        found = [text for _, text in own]
        if len({example for example, _ in own}) != len(own):
            return f"{name} has an id twice"
        if name.endswith((".txt", ".jsonl")):
            lines = (folder / name).read_bytes().decode("utf-8-sig").split("\n")
            if name.endswith(".jsonl"):
                rows = [json.loads(line) for line in lines if line.strip()]
                columns = [*rows[0]]
                column = "text" if "text" in columns else None
                lines = [row.get(column) for row in rows] if column else found
            if found != [
                line for line in (line and line.removesuffix("\r") for line in lines) if line and line.strip()
            ]:
                return f"{name} has other texts"
    return ""


def weights(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """safetensors reads the same tensors, and all lie inside the folder."""
    from safetensors.numpy import load_file

    for place, own in read.items():
        if isinstance(own, Exception):
            continue
        there: dict[str, Any] = {}
        for path in (folder / place).glob("*.safetensors"):
            there |= load_file(path)
        for name, values in own.items():
            if name not in there:
                return f"{name} is in no file of {place}"
            if not np.array_equal(values, there[name].astype(np.float32), equal_nan=True):
                return f"{name} of {place} is another"
    return ""


def words(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """int() and range() find the same numbers."""
    for what, own in read.items():
        kind, _, word = what.partition(" ")
        if isinstance(own, Exception):
            continue
        if kind == "indices":
            expected: set[int] = set()
            for part in word.replace(",", " ").split():
                first, dash, last = part[1:].partition("-")
                start = int(part[0] + first)
                expected.update(range(start, int(last) + 1) if dash else [start])
            if own != tuple(sorted(expected)):
                return f"{word!r} is read as {own}"
        else:
            numbers = [int(number) for number in re.split(r"[LlHh]", word) if number]
            if [number for number in own if number is not None] != numbers:
                return f"{word!r} is read as {own}"
    return ""


def commands(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """An exit code of the table, and a message with it."""
    line, code, _, err = read
    if code not in (0, 1, 2, 3, 4, 5):
        return f"{line} ends with {code}"
    if "Traceback" in err:
        return f"{line} shows a traceback"
    if code not in (0, 1) and "error:" not in err:
        return f"{line} ends with {code} and says nothing"
    return ""


def published_lenses(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """torch, where it reads the file too, reads the same matrices."""
    import pickle

    import torch

    own = read["lens.pt"]
    if isinstance(own, Exception):
        return ""
    try:
        theirs = torch.load(folder / "lens.pt", weights_only=True)
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
    ):
        return ""
    for layer, matrix in zip(own.layers, own.weights, strict=True):
        if not np.array_equal(matrix, theirs["J"][layer].detach().float().numpy()):
            return f"lens.pt has other numbers of layer {layer}"
    return ""


def translators(folder: Path, seeds: Path, read: Any, intact: Any) -> str:
    """safetensors reads the same matrices and vectors, and json the same layers."""
    from safetensors import safe_open

    for name, own in read.items():
        if isinstance(own, Exception):
            continue
        with safe_open(folder / name, "numpy") as file:
            told = json.loads(file.metadata()["traceformer"])
            found = [file.get_tensor(each).astype(np.float32) for each in ("weights", "biases")]
        if [*own.layers] != told["layers"] or own.kind != told["kind"]:
            return f"{name} has other layers, or is of another kind"
        if not all(map(np.array_equal, (own.weights, own.biases), found)):
            return f"{name} has other numbers"
    return ""
