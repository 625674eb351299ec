"""Which checkpoints a training folder holds, and whether they are of the training that is meant."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from safetensors.torch import load_model
from transformers import PreTrainedModel

from traceformer.errors import ConfigurationChanged, NotFound, RunExists, Unreadable
from traceformer.plain_json import parse_json

__all__ = ["load_weights", "newest_checkpoint", "prepare_folder", "refuse_other_weights"]

_STATE = "trainer_state.json"  # what the Trainer writes last


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint; one that a kill cut short is passed over."""
    complete = (path.parent for path in folder.glob(f"checkpoints/checkpoint-*/{_STATE}") if _is_json(path))
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def prepare_folder(folder: Path, state: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Makes the folder ready: empty but for `state`, or holding what was begun with the same one.

    Raises:
        RunExists: it is not empty, and neither `resume` nor `overwrite` is meant, or it is no training's.
        ConfigurationChanged: it was begun with another state.
        Unreadable: what it was begun with cannot be read.
    """
    checkpoints = folder / "checkpoints"
    begun = checkpoints / "settings.json"
    if resume and begun.is_file():
        before = _settings(begun)
        changed = [name for name in state if state[name] != before.get(name)]
        if changed:
            raise ConfigurationChanged(
                f"{folder} was begun with other settings",
                why="; ".join(f"{name} was {before.get(name)!r}, not {state[name]!r}" for name in changed),
                hint="the settings that it was begun with, or another `out`",
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise RunExists(
                f"{folder} is not empty", hint="`resume=True` goes on with it, `overwrite=True` begins again"
            )
        if not begun.is_file() and (checkpoints.exists() or not (folder / "training.json").is_file()):
            raise RunExists(
                f"{folder} is not empty, and no training's",
                why="nothing in it is replaced",
                hint="choose another `out`",
            )
        for path in (*checkpoints.glob("checkpoint-*"), *(folder / "steps").glob("*checkpoint-*")):
            shutil.rmtree(path)
    checkpoints.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8", newline="\n")


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        stated = parse_json(path.read_bytes())
    except ValueError as error:
        raise Unreadable(f"{path} is not JSON", why=str(error), hint="`overwrite=True` begins again") from error
    if not isinstance(stated, dict):
        raise Unreadable(f"{path} holds no settings", hint="`overwrite=True` begins again")
    return cast(dict[str, Any], stated)


def refuse_other_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Refuses a checkpoint whose weights are not those of the model: the Trainer would load what fits.

    Raises:
        ConfigurationChanged: naming the missing and the unexpected weights, or the first of another shape.
    """
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    tied = set(model.all_tied_weights_keys)
    wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items() if name not in tied}
    if there != wanted:
        parts = {
            "missing": sorted(wanted.keys() - there),
            "unexpected": sorted(there.keys() - wanted),
            "of another shape": sorted(name for name in wanted.keys() & there if wanted[name] != there[name]),
        }
        raise ConfigurationChanged(
            f"{checkpoint} holds the weights of another model",
            why="; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names),
        )


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Gives the model the weights in a folder, all of them and no others.

    Raises:
        NotFound: there are none.
        ConfigurationChanged: what `refuse_other_weights` raises.
    """
    if not (folder / "model.safetensors").is_file():
        raise NotFound(f"no model.safetensors in {folder}", hint="`init` takes the folder of a trained model")
    refuse_other_weights(model, folder)
    load_model(model, folder / "model.safetensors", strict=False)  # tied weights are stored once


def _is_json(path: Path) -> bool:
    try:
        parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
