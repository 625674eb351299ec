"""What patching and ablating have in common: the axes of a sweep, groups of texts of one length, and what is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from traceformer.analysis.effects import Axis, Effects, Swept, token_labels
from traceformer.errors import SelectionError, Unsupported, UsageError, check_whole
from traceformer.models.families import architecture_of
from traceformer.models.loaded import LoadedModel, n_embeddings_of
from traceformer.questions.effects_folder import EffectsFolder
from traceformer.shapes import Float64
from traceformer.sites import OUTPUTS, SITES, ArrayKey, Attention, Numbers, as_indices, expand_sites

if TYPE_CHECKING:
    from traceformer.capture.edits.started import Passes, Way

__all__ = [
    "Groups",
    "Kept",
    "Made",
    "SweepAxes",
    "check_model",
    "check_next_tokens",
    "edits_at_work",
    "key_of",
    "most_at_once",
    "positions_of_word",
    "sweep_axes",
    "write_texts",
]

EffectOf: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

_BYTES_AT_ONCE = 256 << 20
"""Of what is kept of texts that are swept together."""


def check_model(model: Any, batch_size: int) -> None:
    """Makes sure that this is a model, and how many texts may share its passes.

    Raises:
        UsageError: it is not, or they are none.
        Unsupported: an edit of single texts is at work on it, which rows of a sweep are not.
    """
    from traceformer.capture.edits.session import edits_of

    if not isinstance(model, LoadedModel):
        raise UsageError(f"{type(model).__name__} is no model", hint="load_model(MODEL) gives one")
    check_whole("batch_size", batch_size, 1)
    if any(edit.examples is not None for edit in edits_of(model.model)):
        raise Unsupported(
            "a sweep under edits of single texts", why="its passes read a text many times", hint="edits of all texts"
        )


def edits_at_work(model: LoadedModel, metric: Any, *, resume: bool) -> dict[str, Any]:
    """Returns what a folder of effects says of the edits at work, if there are any.

    Raises:
        UsageError: a sweep that a function decides cannot be gone on with: it might be another one.
    """
    from traceformer.capture.edits.session import check_resumed, edits_of

    edits = edits_of(model.model)
    if resume:
        check_resumed(edits)
        if callable(metric):
            why = "whether it is the same function cannot be told"
            raise UsageError("`resume` with a function as metric", why=why, hint="begin anew, in another folder")
    return {"edits": [edit.to_json() for edit in edits]} if edits else {}


def check_next_tokens(model: LoadedModel, needs: Sequence[str]) -> None:
    """Makes sure that a metric over the next tokens of a text is asked of a model that predicts them.

    Raises:
        Unsupported: it is no decoder.
    """
    if "targets" in needs and model.dims.arch != "dec":
        raise Unsupported(
            f"the loss of next tokens of {model.name}",
            why="it is no decoder: it sees the tokens that it would predict",
            hint="patching with a metric of the answer, or a function of the logits",
        )


def key_of(model: LoadedModel, site: str, attention: Attention = "self") -> ArrayKey:
    """Returns the array that a site means in the stack that reads the text.

    Raises:
        SelectionError: no such site, or one without layers.
        Unsupported: the model has no such place.
    """
    names = expand_sites([site])
    if site not in SITES or len(names) != 1:
        raise SelectionError(f"{site} is a group of sites", hint=f"one of {' '.join(names)}")
    if not SITES[site].per_layer or SITES[site].is_derived:
        near = "resid_post" if SITES[site].is_derived or site in ("final_norm", *OUTPUTS) else "resid_pre"
        raise SelectionError(
            f"{site} cannot be swept", why="it is not there once in each layer", hint=f'`site="{near}"`'
        )
    row = model.architecture or architecture_of(model.config)
    key = ArrayKey("dec" if model.dims.arch == "dec" else "enc", attention if SITES[site].of_attention else None, site)
    if not row.has(key):
        why = row.refused.get(str(key), "its family has no such place, or hides it")
        raise Unsupported(f"{model.name} has no {key}", why=why, hint="run `traceformer check` to see what it has")
    return key


@dataclass(frozen=True, slots=True)
class SweepAxes:
    """The axes of a sweep: their numbers, and what is touched of the others, where it is not all."""

    over: tuple[str, ...]
    chosen: Mapping[str, tuple[int, ...]]
    narrowed: Mapping[str, tuple[int, ...]]
    from_end: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(self.chosen[name]) for name in self.over)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.chosen.get("layer") or self.narrowed["layer"]

    def at(self, positions: tuple[int, ...]) -> "SweepAxes":
        """Returns the same axes of texts in which other positions are touched.

        Raises:
            SelectionError: an axis runs over positions, which are others.
        """
        name = "query" if "query" in {*self.chosen, *self.narrowed} else "position"
        if name not in self.chosen:
            return replace(self, narrowed={**self.narrowed, name: positions})
        if self.chosen[name] != positions:
            why = "it is not at the same positions in all texts"
            raise SelectionError(
                f"a sweep over each {name} of a word", why=why, hint=f"`over` without {name}: all at once"
            )
        return self

    def axes(self, tokens: Sequence[Sequence[str]]) -> tuple[Axis, ...]:
        """Returns the axes, with the tokens of the texts that are touched."""
        longest = max(map(len, tokens))

        def labels(name: str, numbers: Sequence[int]) -> tuple[str, ...]:
            if name in ("layer", "head"):
                return tuple(f"{name[0].upper()}{number}" for number in numbers)
            both = [token_labels(tokens, longest, from_end=from_end) for from_end in (False, True)]
            return tuple(both[number < 0][number] for number in numbers)

        return tuple(Axis(name, self.chosen[name], labels(name, self.chosen[name])) for name in self.over)


def sweep_axes(
    model: LoadedModel,
    key: ArrayKey,
    over: Sequence[str],
    *,
    layers: Numbers,
    heads: Numbers,
    positions: Numbers,
    longest: int,
    from_end: bool = False,
) -> SweepAxes:
    """Returns the axes of a sweep.

    Args:
        model: The model.
        key: What is touched.
        over: The names of axes; `layer`, and of the array's own `head`, `position`, `query`, `key`.
        layers: Which layers; all for None.
        heads: Which heads, of k and v their own; all for None.
        positions: Which positions, or queries; all for None.
        longest: The tokens of the longest text.
        from_end: Whether positions are counted from the ends of texts.

    Raises:
        SelectionError: the array has no such axis, or no such layer, head or position.
    """
    names = tuple({"kv_head": "head"}.get(axis, axis) for axis in SITES[key.site].axes[:-1])
    names = (*names, "key") if SITES[key.site].is_matrix else names
    if not isinstance(over, str | Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SelectionError(f"a sweep of {key.site} over {over!r}", hint=f"over some of {', '.join(names)}")
    over = [over] if isinstance(over, str) else over
    wrong = [name for name in over if name not in names]
    if wrong or not over or len(set(over)) != len(over):
        what = f"{wrong[0]!r}" if wrong else "no axis" if not over else "an axis twice"
        raise SelectionError(f"a sweep of {key.site} over {what}", hint=f"over some of {', '.join(names)}")
    dims = model.dims.stacks[key.stack]
    dims.refuse_uneven("sweeps")
    n_heads = dims.n_heads_of(SITES[key.site])
    tokens = range(-longest, 0) if from_end else range(longest)
    from traceformer.capture.gaps import layers_having

    having = layers_having(model.model, model.built, dims, key)
    every: dict[str, Sequence[int]] = {"layer": having}
    asked: dict[str, tuple[int, ...] | None] = {"layer": _within(layers, dims.n_layers, "layer")}
    lacking = [layer for layer in asked["layer"] or () if layer not in having]
    if lacking:
        raise SelectionError(
            f"layer {lacking[0]} has no {key.site}", hint=f"layers that have: {', '.join(map(str, having))}"
        )
    if "head" in names:
        every["head"], asked["head"] = range(n_heads), _within(heads, n_heads, "head")
    elif heads is not None:
        raise SelectionError(f"heads of {key.site}", why="it has none", hint='`site="z"` has')
    on_tokens = "query" if SITES[key.site].is_matrix else "position"
    every[on_tokens], asked[on_tokens] = tokens, _within(positions, longest, "position", signed=True)
    if "key" in names:
        every["key"], asked["key"] = tokens, None
    chosen = {name: asked[name] or tuple(every[name]) for name in over}
    narrowed = {name: own for name, own in asked.items() if name not in over and own is not None}
    if "layer" not in over:
        narrowed["layer"] = asked["layer"] or tuple(every["layer"])
    return SweepAxes(tuple(over), chosen, narrowed, from_end)


def _within(numbers: Numbers, available: int, what: str, *, signed: bool = False) -> tuple[int, ...] | None:
    """The numbers that are meant, None for all.

    Raises:
        SelectionError: one of them is not there; unlike a recording's they are not dropped, since all are looked at.
    """
    asked = as_indices(numbers)
    if asked is None:
        return None
    wrong = [number for number in asked if not (-available if signed else 0) <= number < available]
    if wrong or not asked:
        named = ", ".join(map(str, wrong)) or "nothing"
        raise SelectionError(f"{what} {named} requested", why=f"there are only {what}s 0-{available - 1}")
    return tuple(dict.fromkeys(asked))


def positions_of_word(model: LoadedModel, word: str, ids: Sequence[int]) -> tuple[int, ...]:
    """Returns the positions of the tokens of a text that contain a word, which it has once.

    Raises:
        SelectionError: it has none, or several.
        UsageError: there is no tokenizer to find it with.
    """
    from traceformer.capture.edits.positions import tokens_with

    if model.tokenizer is None:
        raise UsageError(f"`positions={word!r}`", why="there is no tokenizer to find words with", hint="numbers")
    return tuple(tokens_with(word, ids, model.tokenizer, name="positions"))


class Groups:
    """Texts in groups of one length, the longest first, so that whatever the lengths no row is padded.

    Args:
        lengths: What must be equal in a group: a length, or several.
        most: How many texts a group has at most.
    """

    def __init__(self, lengths: Sequence[tuple[int, ...]], most: int) -> None:
        order = sorted(range(len(lengths)), key=lambda number: (*(-each for each in lengths[number]), number))
        self._groups: list[list[int]] = []
        for number in order:
            last = self._groups[-1] if self._groups else None
            if last is None or lengths[last[0]] != lengths[number] or len(last) >= most:
                self._groups.append([])
            self._groups[-1].append(number)

    def pending(self, done: Sequence[bool]) -> list[list[int]]:
        """Returns the groups that are not done, whole, so that what comes of one does not depend on interruptions."""
        return [group for group in self._groups if not all(done[number] for number in group)]


def most_at_once(model: LoadedModel, passes: "Passes", length: int, batch_size: int, *, all_logits: bool) -> int:
    """Returns how many texts of this length may be swept together: so many that what is kept of them has room."""
    dims = model.dims.stacks[passes.stack]
    per_token = 4 * dims.n_layers * (dims.d_model or 1) * 6
    vocabulary = n_embeddings_of(model.model) if all_logits else 0
    return max(1, min(batch_size, _BYTES_AT_ONCE // max(1, length * (per_token + 8 * vocabulary))))


class Made(Protocol):
    """How a sweep was made: a `Sweeper`, or what several of them were."""

    @property
    def way(self) -> "Way": ...

    @property
    def compared(self) -> int: ...

    @property
    def error(self) -> float: ...


class Kept:
    """The metric of every text, in memory and, where there is a folder, there as well.

    Args:
        n_texts: How many texts there are.
        shape: That of the cells.
        effect_of: Makes effects of metrics (text, *cell), and those of the clean and of the corrupt texts.
        folder: Where they go.

    Attributes:
        metric: Of each text and cell; NaN where there is none.
        clean, corrupt: Of each text, untouched.
        done: Which texts are done.
    """

    def __init__(
        self, n_texts: int, shape: tuple[int, ...], effect_of: EffectOf, folder: EffectsFolder | None = None
    ) -> None:
        self.metric: Float64[np.ndarray, "pair *cell"] = np.full((n_texts, *shape), np.nan)
        self.clean: Float64[np.ndarray, "pair"] = np.full(n_texts, np.nan)
        self.corrupt: Float64[np.ndarray, "pair"] = np.full(n_texts, np.nan)
        self.done = [False] * n_texts
        self._effect_of, self._folder = effect_of, folder
        if folder is None:
            return
        for number in folder.done():
            found = folder.read(number)
            self.metric[number], self.clean[number], self.corrupt[number] = (
                found[name] for name in ("metric", "clean", "corrupt")
            )
            self.done[number] = True

    @property
    def effect(self) -> Float64[np.ndarray, "pair *cell"]:
        return self._effect_of(self.metric, self.clean, self.corrupt)

    def put(
        self,
        numbers: Sequence[int],
        metric: Float64[np.ndarray, "text *cell"],
        clean: Float64[np.ndarray, "text"],
        corrupt: Float64[np.ndarray, "text"] | None = None,
    ) -> None:
        """Keeps the metric of some texts, so that it would survive a crash where there is a folder."""
        self.take(numbers, metric, clean, corrupt)
        if self._folder is not None:
            write_texts(self._folder, numbers, self._effect_of, metric, clean, corrupt)

    def take(
        self,
        numbers: Sequence[int],
        metric: Float64[np.ndarray, "text *cell"],
        clean: Float64[np.ndarray, "text"],
        corrupt: Float64[np.ndarray, "text"] | None = None,
    ) -> None:
        """Keeps the metric of some texts in memory."""
        for i, number in enumerate(numbers):
            self.metric[number], self.clean[number] = metric[i], clean[i]
            if corrupt is not None:
                self.corrupt[number] = corrupt[i]
            self.done[number] = True

    def finished(self, about: Swept, axes: tuple[Axis, ...], pairs: Sequence[str], made: Made) -> Effects:
        """Returns the effects, once all is there, and says how they were measured."""
        from traceformer.capture.edits.started import WAYS

        about = replace(about, way=WAYS[made.way], compared=made.compared, error=made.error)
        if self._folder is not None:
            self._folder.finish(about)
        return Effects(axes, {"effect": self.effect}, self.clean, self.corrupt, tuple(pairs), about)


def write_texts(
    folder: EffectsFolder,
    numbers: Sequence[int],
    effect_of: EffectOf,
    metric: Float64[np.ndarray, "text *cell"],
    clean: Float64[np.ndarray, "text"],
    corrupt: Float64[np.ndarray, "text"] | None = None,
) -> None:
    """Writes the metric of some texts, and the effects that it makes, text by text."""
    corrupt = np.full(len(clean), np.nan) if corrupt is None else corrupt
    effect = effect_of(metric, clean, corrupt)
    for i, number in enumerate(numbers):
        ends = {"clean": clean[i, None], "corrupt": corrupt[i, None]}
        folder.write(number, {"metric": metric[i], "effect": effect[i], **ends})
