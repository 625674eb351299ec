"""The checkpoints of one training: which step each is of, and how it is loaded.

1. A folder of folders that are named after a step, as Hugging Face's Trainer (`checkpoint-500`), `traceformer train`
   (`steps/checkpoint-500`) and others (`step500`, `iter_500`) leave them.
2. The folder of one nanochat model, or its name (`nanochat:base:d12`).
3. Revisions of one model of the Hub, as Pythia's are (`step1000`).
4. Whatever else, told step by step.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from traceformer.errors import NotFound, UsageError, check_whole

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = ["AskedCheckpoints", "Checkpoint", "find_checkpoints"]

AskedCheckpoints: TypeAlias = str | Path | Sequence[str | Path] | Mapping[int, str | Path]
"""A folder of checkpoints; some of them, or revisions; or what is to be loaded of each step."""

_NAMED = re.compile(r"(?:global[-_]?step|step|checkpoint|ckpt|iteration|iter)s?[-_]?0*(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_INSIDE = ("", "steps", "checkpoints")
"""Where the checkpoints of a training's folder may lie."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model after `step` steps of its training: what `load_model` takes, and the revision of it.

    `tokenizer` is a folder that has the tokenizer, where the checkpoint's own has none.
    """

    step: int
    source: str
    revision: str | None = None
    tokenizer: Path | None = None

    def __str__(self) -> str:
        return self.source if self.revision is None else f"{self.source} {self.revision}"

    def load(self, **settings: Any) -> "LoadedModel":
        """Returns the model, loaded as `load_model` does with these settings, and raises what it raises."""
        from traceformer.models.load import load_model
        from traceformer.models.tokenizer import load_tokenizer

        own = None if self.tokenizer is None else load_tokenizer(str(self.tokenizer), self.tokenizer)
        source = Path(self.source) if Path(self.source).is_dir() else self.source  # a folder is never a built-in model
        return load_model(source, own, revision=self.revision, **settings)


def find_checkpoints(of: AskedCheckpoints, model: str | None = None) -> tuple[Checkpoint, ...]:
    """Returns the checkpoints that are meant, by step.

        find_checkpoints("models/tiny-dense-pydoc")
        find_checkpoints(["step0", "step512", "step1000"], model="EleutherAI/pythia-70m")
        find_checkpoints({0: "my/first", 500: "my/second"})

    Args:
        of: A folder that holds them; a list of folders; a list of revisions; or a folder or revision of each step.
        model: Whose revisions they are: a name of the Hub.

    Raises:
        NotFound: the folder is not there, or holds no checkpoint.
        UsageError: a name does not tell its step, or two are of one step.
    """
    if isinstance(of, Mapping):
        for step, name in of.items():
            check_whole("step", step, 0)
            _check_name(name)
        return _in_order([_checkpoint(step, name, model) for step, name in of.items()])
    if isinstance(of, str | Path):
        if model is None:
            return _of_nanochat(of) if _is_nanochat(of) else _in_folder(Path(of))
        of = [of]
    for name in of:
        _check_name(name)
    return _in_order([_checkpoint(_step_of(str(name)), name, model) for name in of])


def _check_name(name: Any) -> None:
    """Makes sure that a checkpoint is named, and not given in another way, such as the model itself."""
    if not isinstance(name, str | Path):
        raise UsageError(f"{type(name).__name__} names no checkpoint", hint="its folder, or the name of a revision")


def _checkpoint(step: int, name: str | Path, model: str | None) -> Checkpoint:
    if model is not None:
        return Checkpoint(step, model, str(name))
    if str(name).startswith("nanochat:"):
        return Checkpoint(step, str(name))
    folder = Path(name)
    if not folder.is_dir():
        raise NotFound(
            f"no checkpoint {name}", why="there is no such folder", hint="revisions need `model`, whose they are"
        )
    return Checkpoint(step, str(folder), tokenizer=_tokenizer_of(folder))


def _step_of(name: str) -> int:
    """The step that a folder or a revision is named after."""
    last = re.split(r"[\\/:]", name.rstrip("\\/"))[-1]
    named, numbers = _NAMED.findall(last), _NUMBER.findall(last)
    found = named if len(named) == 1 else numbers
    if len(found) != 1:
        why = "it has several numbers" if found else "it has no number"
        hint = f"a name with its step, or in Python {{STEP: {name!r}, ...}}"
        raise UsageError(f"of which step is {last!r}?", why=why, hint=hint)
    return int(found[0])


def _in_folder(folder: Path) -> tuple[Checkpoint, ...]:
    if not folder.is_dir():
        hint = "revisions of a model on the Hub need `model`, whose they are"
        raise NotFound(f"no folder {folder}", why="checkpoints lie in a folder, or are names of revisions", hint=hint)
    for place in (folder / inside for inside in _INSIDE):
        named = [path for path in (place.iterdir() if place.is_dir() else ()) if _is_checkpoint(path)]
        if named:
            return _in_order(
                [Checkpoint(_step_of(path.name), str(path), tokenizer=_tokenizer_of(path)) for path in named]
            )
    wanted = "folders such as checkpoint-500 or step500, each with a config.json"
    raise NotFound(
        f"no checkpoints in {folder}",
        why=f"it should hold {wanted}",
        hint='a training that keeps the models of some steps: `keep_steps="log"`',
    )


def _is_checkpoint(path: Path) -> bool:
    is_model = (path / "config.json").is_file() or (path / "adapter_config.json").is_file()
    return is_model and _NAMED.fullmatch(path.name) is not None


def _tokenizer_of(folder: Path) -> Path | None:
    """The nearest folder above that has a tokenizer, where this one has none: a training saves it once, at its end."""
    from traceformer.models.tokenizer import tokenizer_lies_in

    if tokenizer_lies_in(folder):
        return None
    above = [place for place in list(folder.absolute().parents)[:2] if (place / "config.json").is_file()]
    return next((place for place in above if tokenizer_lies_in(place)), None)


def _is_nanochat(of: str | Path) -> bool:
    return str(of).startswith("nanochat:") or (Path(of).is_dir() and any(Path(of).glob("model_*.pt")))


def _of_nanochat(of: str | Path) -> tuple[Checkpoint, ...]:
    from traceformer.models.nanochat import checkpoints_of

    return _in_order([Checkpoint(each.step, str(each)) for each in checkpoints_of(str(of))])


def _in_order(found: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
    if not found:
        raise UsageError("no checkpoints", hint="a folder of them, or names of revisions")
    ordered = sorted(found, key=lambda checkpoint: checkpoint.step)
    for one, other in itertools.pairwise(ordered):
        if one.step == other.step:
            raise UsageError(f"two checkpoints of step {one.step}", why=f"{one} and {other}", hint="one of them")
    return tuple(ordered)
