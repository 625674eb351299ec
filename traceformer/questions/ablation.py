"""An ablation made ready in one process: what is ablated, the texts as the model reads them, and what a group comes to.

`ablate` says what is done with it; workers have one each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from traceformer.analysis.effects import Axis, Swept
from traceformer.errors import SelectionError, UsageError, check_whole
from traceformer.models.loaded import LoadedModel
from traceformer.questions.effects_folder import EffectsFolder
from traceformer.questions.sweeps import (
    Groups,
    check_model,
    check_next_tokens,
    edits_at_work,
    key_of,
    most_at_once,
    sweep_axes,
    write_texts,
)
from traceformer.shapes import Float64
from traceformer.sites import SITES, ArrayKey, Attention, Numbers, as_head
from traceformer.store.files import canonical, sha256
from traceformer.texts.load import Texts

if TYPE_CHECKING:
    from torch import Tensor

    from traceformer.capture.edits.pairing import ReadText
    from traceformer.capture.edits.started import Way
    from traceformer.capture.edits.sweeping import Values
    from traceformer.capture.edits.touching import Place

    Sums: TypeAlias = Mapping[Place, Tensor]

__all__ = ["Ablated", "Ablation", "AblationPlan", "Asked", "How", "differences"]

How: TypeAlias = Literal["zero", "mean", "resample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is ablated, and on which texts: arguments of `ablate`."""

    texts: Texts
    site: str | Sequence[str] = "z"
    how: How = "mean"
    metric: "str | Callable[[Any], Any]" = "loss"
    over: Sequence[str] | None = None
    together: Sequence[str] = ()
    draws: int = 0
    layers: Numbers = None
    heads: Numbers = None
    positions: Numbers = None
    attention: Attention = "self"
    seed: int = 0
    limit: int | None = None
    split: str | None = None
    batch_size: int = 16
    resume: bool = False

    def check(self) -> None:
        """Makes sure of what can be told without a model.

        Raises:
            UsageError: it makes no sense.
        """
        if not callable(self.metric) and self.metric != "loss":
            why = "it needs an answer"
            raise UsageError(f"the metric {self.metric} of an ablation", why=why, hint="loss, or a function")
        check_whole("draws", self.draws, 0)
        check_whole("seed", self.seed, 0)
        check_whole("batch_size", self.batch_size, 1)
        if self.together and not (self.layers is self.heads is self.positions is None):
            raise UsageError("`together` and layers, heads or positions", why="it says which heads, in all positions")


class AblationPlan(NamedTuple):
    """What is known of an ablation before any of its passes.

    Attributes:
        about: What will be done.
        axes: What its cells run over.
        names: The texts'.
        settings: What else must be the same to go on with it.
        groups: The numbers of texts that are read together.
        n_tokens: How many tokens all texts have.
    """

    about: Swept
    axes: tuple[Axis, ...]
    names: tuple[str, ...]
    settings: Mapping[str, Any]
    groups: Groups
    n_tokens: int


class Ablated(NamedTuple):
    """What a group of texts came to, and how: of texts touched and untouched, and as `Made` has it."""

    metric: Float64[np.ndarray, "text *cell"]
    untouched: Float64[np.ndarray, "text"]
    way: "Way"
    compared: int
    error: float


class Ablation:
    """An ablation that is ready.

    Args:
        model: A model that predicts tokens.
        asked: What is ablated, and on which texts.

    Attributes:
        plan: What it will be.

    Raises:
        UsageError, SelectionError, Unsupported, NotFound, Unreadable: as `ablate` raises them.
    """

    def __init__(self, model: LoadedModel, asked: Asked) -> None:
        from traceformer.capture.edits.metrics import metric_named
        from traceformer.capture.edits.started import Passes
        from traceformer.capture.edits.sweeping import Sweeper

        check_model(model, asked.batch_size)
        metric = metric_named(asked.metric)
        check_next_tokens(model, metric.needs)
        self._keys = _keys_of(model, asked.site, asked.attention)
        self._passes = Passes(model)
        self._read, names = _read(model, asked.texts, asked.limit, asked.split)
        if asked.how == "resample" and len(self._read) == 1:
            raise UsageError('`how="resample"` of one text', why="there is no other one to draw", hint='`how="mean"`')
        over = asked.over
        if over is None:
            over = ("layer", "head") if SITES[self._keys[0].site].axes[1] != "position" else ("layer",)
        longest = max(map(len, self._read))
        self._axes = sweep_axes(
            model,
            self._keys[0],
            over,
            layers=asked.layers,
            heads=asked.heads,
            positions=asked.positions,
            longest=longest,
        )
        together = (asked.together,) if isinstance(asked.together, str) else tuple(dict.fromkeys(asked.together))
        self._groups = _groups(model, self._keys[0], together, asked.draws, asked.seed)
        self._causal = model.dims.arch == "dec"
        self._sweeper = Sweeper(self._passes, metric, asked.batch_size)
        self._donors = _donors(len(self._read), asked.seed) if asked.how == "resample" else []
        self._folder: EffectsFolder | None = None
        most = most_at_once(model, self._passes, longest, asked.batch_size, all_logits=True)
        shown = self._axes.axes([text.tokens for text in self._read])
        if self._groups:
            shown = (Axis("group", tuple(range(len(self._groups))), tuple(self._groups)),)
        digest = sha256(canonical([list(text.ids) for text in self._read]).encode())
        edits = edits_at_work(model, asked.metric, resume=asked.resume)
        self.plan = AblationPlan(
            about=Swept(
                verb="ablate",
                model=model.source_and_adapter,
                digest=model.digest,
                sites=tuple(map(str, self._keys)),
                metric=metric.name,
                how=asked.how,
                position=metric.position,
                seed=asked.seed if asked.how == "resample" or asked.draws else None,
            ),
            axes=shown,
            names=tuple(names),
            settings={"texts": digest, "narrowed": self._axes.narrowed, **edits},
            groups=Groups([(len(text),) for text in self._read], most),
            n_tokens=sum(map(len, self._read)),
        )

    def sums(self, numbers: Sequence[int]) -> "Sums":
        """Returns what all tokens of a group of texts add up to at each place: (1, [head,] 1, width)."""
        from traceformer.models.precision import wide

        with self._passes.evaluating():
            found = self._activations([self._read[number].ids for number in numbers])
        return {place: wide(tensor).sum(dim=(0, -2), keepdim=True).cpu() for place, tensor in found.items()}

    def measured(self, means: "Sums | None", folder: Path | None, numbers: Sequence[int]) -> Ablated:
        """Returns what a group of texts comes to; where there is a folder, it is written there, too.

        Args:
            means: What takes the place of what is ablated, where it is means.
            folder: A folder of effects that was begun.
            numbers: The texts.
        """
        import torch

        from traceformer.capture.edits.metrics import Goal
        from traceformer.capture.edits.sweeping import grid_of, grid_of_groups

        group, compared = [self._read[number] for number in numbers], self._sweeper.compared
        if self._groups:
            grid = grid_of_groups([*self._groups.values()])
        else:
            axes, positions = self._axes, range(len(group[0]))
            grid = grid_of(axes.over, axes.chosen, axes.narrowed, positions, causal=self._causal)
        with self._passes.evaluating():
            ids = torch.tensor([list(text.ids) for text in group], device=self._passes.device)
            donors = [self._read[self._donors[number]] for number in numbers] if self._donors else []
            values = self._values(group, donors, means)
            found = self._sweeper.sweep(ids, grid, values, Goal(targets=ids[:, 1:]))
        metric, untouched = found.metric.numpy(), found.untouched.numpy()
        if folder is not None:
            self._folder = self._folder or EffectsFolder.joined(folder)
            write_texts(self._folder, numbers, differences, metric, untouched)
        sweeper = self._sweeper
        return Ablated(metric, untouched, sweeper.way, sweeper.compared - compared, sweeper.error)

    @property
    def _layers(self) -> list[int]:
        return sorted(set(self._axes.layers))

    def _activations(self, texts: Sequence[Sequence[int]]) -> "dict[Place, Tensor]":
        """What is at the ablated places in a pass over texts of one length."""
        import torch

        found: dict[Place, Tensor] = {}

        def keep(place: "Place") -> "Callable[[Tensor], Tensor]":
            def touch(tensor: "Tensor") -> "Tensor":
                found[place] = tensor.clone()
                return tensor

            return touch

        ids = torch.tensor([list(ids) for ids in texts], device=self._passes.device)
        self._passes.whole(ids, 0, {(key, layer): keep((key, layer)) for key in self._keys for layer in self._layers})
        return found

    def _values(self, texts: "Sequence[ReadText]", donors: "Sequence[ReadText]", means: "Sums | None") -> "Values":
        """What takes the place of what is ablated: means, what it is in donors, or zeros where there are neither."""
        import torch

        from traceformer.capture.edits.sweeping import Values

        if means is not None:
            placed = {place: mean.to(self._passes.dtype).to(self._passes.device) for place, mean in means.items()}
            return Values(self._keys, placed)
        length = len(texts[0])
        if not donors:
            like = self._activations([texts[0].ids[:1]])
            return Values(self._keys, {place: torch.zeros_like(tensor) for place, tensor in like.items()})
        rows: list[dict[Place, Tensor]] = []
        for text in donors:
            places = self._activations([text.ids])
            around = torch.arange(length, device=self._passes.device) % len(text)
            rows.append({place: tensor.index_select(-2, around) for place, tensor in places.items()})
        return Values(self._keys, {place: torch.cat([row[place] for row in rows]) for place in rows[0]})


def _keys_of(model: LoadedModel, site: str | Sequence[str], attention: Attention) -> tuple[ArrayKey, ...]:
    """The arrays that are ablated at once.

    Raises:
        SelectionError: none, or some with heads and some without.
    """
    sites = (site,) if isinstance(site, str) else tuple(dict.fromkeys(site))
    keys = tuple(key_of(model, each, attention) for each in sites)
    if not keys or len({SITES[key.site].axes[1:-1] for key in keys}) > 1:
        raise SelectionError(
            f"ablating {' and '.join(sites) or 'nothing'}", why="what is ablated at once has the same axes"
        )
    if SITES[keys[0].site].is_matrix:
        raise SelectionError(f"ablating {sites[0]}", why="rows of it would no longer sum to 1", hint='`site="z"`')
    return keys


def _groups(
    model: LoadedModel, key: ArrayKey, together: Sequence[str], draws: int, seed: int
) -> dict[str, list[tuple[int, int]]]:
    """The heads that are ablated at once, and as many others for each draw; each group by its heads' names.

    Raises:
        SelectionError: no such head, or not enough others to draw from.
        UsageError: draws, and no heads.
    """
    if not together:
        if draws:
            raise UsageError("`draws` without `together`", why="how many heads to draw is not said")
        return {}
    if "head" not in SITES[key.site].axes:
        raise SelectionError(f"heads of {key.site}", why="it has none, or shares them", hint='`site="z"`')
    dims = model.dims.stacks[key.stack]
    every = [(layer, head) for layer in dims.attention_layers for head in range(dims.n_heads)]
    asked: list[tuple[int, int]] = []
    for name in together:
        head = as_head(name)
        if head not in every:
            why = f"{model.name} has L0H0 to L{dims.n_layers - 1}H{dims.n_heads - 1}"
            raise SelectionError(f"no head {name!r}", why=why, hint="such as L0H0")
        asked.append(head)
    others = [head for head in every if head not in asked]
    if draws and len(others) < len(asked):
        raise SelectionError(f"{len(asked)} other heads", why=f"there are {len(others)}", hint="fewer heads")
    random = np.random.default_rng(seed)
    drawn = [[others[i] for i in sorted(random.permutation(len(others))[: len(asked)])] for _ in range(draws)]
    # Those that are drawn twice are one group.
    return {" ".join(f"L{layer}H{head}" for layer, head in group): group for group in (asked, *drawn)}


def _read(model: LoadedModel, texts: Texts, limit: int | None, split: str | None) -> "tuple[list[ReadText], list[str]]":
    """The texts as the model reads them, and their names.

    Raises:
        UsageError: one has no next token.
    """
    from traceformer.capture.edits.pairing import read_text
    from traceformer.capture.encoding import Encoder
    from traceformer.texts.cells import Chat
    from traceformer.texts.load import load_texts

    source = load_texts(texts, limit=limit, split=split)
    encoder = Encoder(model, "auto", 64)
    read: list[ReadText] = []
    names: list[str] = []
    for example in source.examples:
        if example.kind is Chat:
            raise UsageError("ablating on conversations", hint="texts, or token ids")
        read.append(read_text(encoder, example.reading))
        names.append(example.example_id)
        if len(read[-1]) < 2:
            raise UsageError(f"the text {example.example_id} is one token", why="nothing comes next in it")
    return read, names


def differences(
    metric: Float64[np.ndarray, "text *cell"], untouched: Float64[np.ndarray, "text"], _: Float64[np.ndarray, "text"]
) -> Float64[np.ndarray, "text *cell"]:
    return metric - untouched.reshape(-1, *[1] * (metric.ndim - 1))


def _donors(count: int, seed: int) -> list[int]:
    """Another text for each text, drawn at random."""
    random = np.random.default_rng(seed)
    return [int((number + random.integers(1, count)) % count) for number in range(count)]
