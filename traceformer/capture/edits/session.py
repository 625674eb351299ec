"""Edits at work: `with tf.edit(model, *edits):`.

1. Each edit is resolved to places of the model: arrays and layers. What the model or a donor lacks is refused at once,
   what texts lack before the first of them is read.
2. At each place the edits that are about it act in their order, on the texts, heads and positions that they name.
3. `record` and `generate` ask which edits are at work: a run states them, and what is proved of the model before its
   first batch is proved with them put aside. In the end they are told which edits touched nothing.
"""

import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from traceformer.capture.edits.changes import Change, Cut, Patch, Resample, Where, check_change, token_named_otherwise
from traceformer.capture.edits.columns import Columns, Texts
from traceformer.capture.edits.kinds import Edit
from traceformer.capture.edits.positions import NAMED, Position, meant, tokens_with
from traceformer.capture.edits.touching import Place, Touch, Touching, check_place
from traceformer.capture.gaps import layers_having
from traceformer.errors import SelectionError, Unsupported, UsageError
from traceformer.models.dims import ModelDims
from traceformer.models.families import architecture_of
from traceformer.models.family import Architecture
from traceformer.models.held import underneath
from traceformer.models.loaded import LoadedModel
from traceformer.sites import SITES, ArrayKey, Stack
from traceformer.store.run import Run

__all__ = [
    "Editing",
    "check_for_texts",
    "check_resumed",
    "edit",
    "edits_of",
    "examples_are",
    "unedited",
    "warn_of_untouched",
]


def edit(model: "LoadedModel | nn.Module", *edits: Edit) -> "Editing":
    """Returns the context manager in which a model runs edited: in `record`, in `generate`, and in your own calls.

        with tf.edit(model, tf.edits.zero("z", layer=2, head=3)):
            run = tf.record(model, texts)

    When the block ends, the model is what it was. Blocks may stand in each other; the outer one's edits act first.

    Raises:
        Unsupported: the model has no such place, or hides it.
        SelectionError: there is no such layer or head.
        UsageError: what is given is no edit, has another width than the place, or comes from a run of another model.
        NotRecorded: a run does not hold what is to be put there.
    """
    return Editing(model, edits)


class Editing:
    """The edits of one `with` block.

    Args:
        model: A model that `load_model` gave, or one of transformers.
        edits: What is done, in its order.
        architecture: Another row than the model's own.

    Attributes:
        edits: What is done, in its order.
    """

    def __init__(
        self, model: "LoadedModel | nn.Module", edits: Sequence[Edit], architecture: Architecture | None = None
    ) -> None:
        if not isinstance(model, LoadedModel | nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"{type(model).__name__} is no model at hand", hint="`model = tf.load_model(...)`, and edit that"
            )
        strange = [each for each in edits if not isinstance(each, Edit)]  # pyright: ignore[reportUnnecessaryIsInstance]
        if strange:
            raise UsageError(f"{type(strange[0]).__name__} is no edit", hint="tf.edits.zero(...), tf.edits.add(...)")
        self.edits: tuple[Edit, ...] = tuple(edits)
        self._loaded = model if isinstance(model, LoadedModel) else None
        self._model = underneath(model.model if isinstance(model, LoadedModel) else model)
        own = model.architecture if isinstance(model, LoadedModel) else None
        self._row = architecture or own or architecture_of(self._model.config)
        self._dims = ModelDims.of(self._model)
        self._at: defaultdict[Place, list[Edit]] = defaultdict(list)
        for each in self.edits:
            _check_source(each, self._loaded)
            places = self._places(each)
            if places:
                _warn_of_rounding(each, places[0][0], self._model.dtype)
            for place in places:
                self._at[place].append(each)
        self._columns = Columns(self._model, tuple(self._row.stacks))
        self._examples: Sequence[int] | None = None
        self._prompts: Sequence[int] | None = None
        self._found: dict[tuple[str, tuple[int, ...]], Sequence[int]] = {}
        self._touched: set[Edit] = set()
        self._is_aside = False
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        touches: dict[Place, Touch] = {place: self._touch(*place) for place in self._at}
        with ExitStack() as undo:
            if touches:
                undo.enter_context(self._columns)
                undo.enter_context(Touching(self._model, touches, self._row))
            _at_work.setdefault(self._model.base_model, []).append(self)
            undo.callback(_at_work[self._model.base_model].remove, self)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        self._examples = self._prompts = None

    def _places(self, edit: Edit) -> list[Place]:
        site, stacks = SITES[edit.site], self._row.stacks
        stack: Stack = edit.stack or list(stacks)[-1]
        if stack not in stacks:
            raise SelectionError(f"no stack {stack!r}", why=f"this model has only {', '.join(stacks)}")
        dims = self._dims.stacks[stack]
        key = ArrayKey(stack, edit.attention if site.of_attention else None, edit.site)
        numbers: Sequence[int | None] = [None]
        if site.per_layer:
            having = layers_having(self._model, self._row, dims, key) if self._row.has(key) else range(dims.n_layers)
            numbers = having if edit.layers is None else _within(edit.layers, dims.n_layers, "layer")
            lacking = [number for number in numbers if number not in having]
            if lacking:
                raise SelectionError(
                    f"layer {lacking[0]} has no {edit.site}", hint=f"layers that have: {', '.join(map(str, having))}"
                )
        elif edit.layers is not None and edit.site != "hidden":  # which is refused with what would work
            raise SelectionError(f"{edit.site} has no layers", hint="layer=None")
        for number in numbers:
            own = dims.at(number)
            n_heads = own.n_heads_of(site)
            if edit.heads is not None:
                _within(edit.heads, n_heads, "kv_head" if "kv_head" in site.axes else "head")
            check_place(self._model, self._row, key, number)
            if edit.change is not None:
                check_change(edit.change, key, number, edit.heads or range(n_heads), own.width_of(site))
        return [(key, number) for number in numbers]

    def _touch(self, key: ArrayKey, layer: int | None) -> Touch:
        edits = self._at[key, layer]

        def touch(tensor: Tensor) -> Tensor:
            if self._is_aside:
                return tensor
            for each in edits:
                tensor = self._edited(tensor, each, key, layer)
            return tensor

        return touch

    def _edited(self, tensor: Tensor, edit: Edit, key: ArrayKey, layer: int | None) -> Tensor:
        """One edit of one place: the very tensor where it changes nothing."""
        new: Tensor | None = None
        for row in range(len(tensor)):
            picked = self._picked(tensor, edit, (key, layer), row)
            if picked is None:
                continue
            where, index = picked
            if edit.change is not None:
                self._touched.add(edit)
            part = (tensor if new is None else new)[index]
            part = part.to(torch.promote_types(part.dtype, torch.float32))
            changed = self._change(edit, row)(part, where)
            if changed is part:
                continue
            if changed.shape != part.shape:
                raise UsageError(
                    f"an edit of {key} makes {tuple(changed.shape)} of {tuple(part.shape)}",
                    hint="return a tensor of the same shape",
                )
            new = tensor.clone() if new is None else new
            new[index] = changed.to(new.dtype)
            if not bool(new[index].isfinite().all()) and bool(part.isfinite().all()):
                raise UsageError(f"an edit of {key} makes NaN or infinity", hint="finite numbers of its dtype")
        return tensor if new is None else new

    def _picked(self, tensor: Tensor, edit: Edit, place: Place, row: int) -> tuple[Where, Any] | None:
        """What an edit is about in one row of a place's tensor, and where that lies in it; None where it is nothing."""
        (key, layer), site = place, SITES[place[0].site]
        example = self._example(row, len(tensor))
        if edit.examples is not None and example not in edit.examples:
            return None
        nothing = torch.empty(0, dtype=torch.long)
        if site.is_per_example:
            return Where(key, layer, (), example, nothing, nothing), row
        texts = self._texts(key.token_stack)
        at = texts.columns_of(tensor.shape[-2], of_keys=key.site in ("k", "v"))[row]
        columns = self._meant(edit.position, at, row, key.token_stack).nonzero()[:, 0]
        if not len(columns):
            return None
        keys = self._texts(key.key_stack).columns_of(tensor.shape[-1], of_keys=True)[row] if site.is_matrix else nothing
        index = (row, columns.to(tensor.device))
        if not {"head", "kv_head"} & set(site.axes):
            return Where(key, layer, (), example, at[columns], keys), index
        heads = range(tensor.shape[1]) if edit.heads is None else edit.heads
        by_head = torch.tensor(list(heads), device=tensor.device)[:, None]
        return Where(key, layer, tuple(heads), example, at[columns], keys), (row, by_head, index[1])

    def _change(self, edit: Edit, row: int) -> Change:
        if edit.change is not None:
            return edit.change

        def keys(where: Where) -> Tensor:
            chosen = self._meant(edit.keys, where.keys, row, where.key.key_stack)
            if bool(chosen.any()):
                self._touched.add(edit)
            return chosen

        return Cut(keys, bool(edit.settings["renormalise"]))

    def _texts(self, stack: Stack) -> Texts:
        texts = self._columns.texts.get(stack)
        if texts is None:
            raise Unsupported("a pass without input_ids or inputs_embeds", hint="call the model with its tokens")
        return texts

    def _example(self, row: int, batch: int) -> int:
        if self._examples is None:
            return row
        return self._examples[row // (batch // len(self._examples))]  # several responses lie side by side

    def _meant(self, position: Any, at: Tensor, row: int, stack: Stack) -> Tensor:
        texts = self._texts(stack)
        batch = len(texts.lengths)
        length, grows = texts.lengths[row], texts.grows
        if self._prompts is not None and stack == list(self._row.stacks)[-1]:
            length, grows = self._prompts[row // (batch // len(self._prompts))], True

        def find(word: str) -> Sequence[int]:
            ids = None if texts.ids is None else texts.ids[row]
            if ids is not None:
                ids = ids[-length:] if texts.so_far[row, 0] < 0 else ids[:length]
            return self._tokens_with(word, None if ids is None else ids.tolist())

        return meant(position, at, length, grows=grows, find=find)

    def _tokens_with(self, word: str, ids: Sequence[int] | None) -> Sequence[int]:
        """The positions of the tokens of a text that contain a word."""
        tokenizer = None if self._loaded is None else self._loaded.tokenizer
        if tokenizer is None or ids is None:
            raise UsageError(
                f"`position={word!r}`",
                why="there is no tokenizer to find words with" if tokenizer is None else "no token ids were given",
                hint="positions by number; or edit what tf.load_model gave",
            )
        asked = (word, tuple(ids))
        if asked not in self._found:
            self._found[asked] = tokens_with(word, ids, tokenizer)
        return self._found[asked]

    def check_texts(self, lengths: "Lengths", ids_of: "IdsOf", *, grows: bool) -> None:
        """Refuses positions that texts do not have; see `check_for_texts`."""
        for (key, _), edits in self._at.items():
            for each in edits:
                places: list[tuple[Position, Stack]] = [(each.position, key.token_stack), (each.keys, key.key_stack)]
                for position, stack in places:
                    if position is None or stack not in lengths:
                        continue
                    numbers = each.examples or range(len(lengths[stack]))
                    if isinstance(position, str) and position not in NAMED:
                        for number in numbers:
                            self._tokens_with(position, ids_of(number)[stack])
                    is_open = grows and stack == list(self._row.stacks)[-1]
                    for length in {lengths[stack][number] for number in numbers}:
                        meant(position, torch.arange(length), length, grows=is_open, find=lambda _: ())
        self._touched.clear()

    def untouched(self) -> list[Edit]:
        """Returns the edits that changed nothing since texts were checked: no text had their positions."""
        return [each for each in self.edits if each not in self._touched]


_at_work: "weakref.WeakKeyDictionary[nn.Module, list[Editing]]" = weakref.WeakKeyDictionary()


def edits_of(model: Any) -> tuple[Edit, ...]:
    """Returns the edits that are at work on a model, in their order."""
    return tuple(each for editing in _at_work.get(model.base_model, ()) for each in editing.edits)


@contextmanager
def unedited(model: Any) -> Generator[None]:
    """While it lasts, the edits of a model change nothing."""
    at_work = list(_at_work.get(model.base_model, ()))
    before = [editing._is_aside for editing in at_work]  # pyright: ignore[reportPrivateUsage]
    for editing in at_work:
        editing._is_aside = True  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        for editing, was_aside in zip(at_work, before, strict=True):
            editing._is_aside = was_aside  # pyright: ignore[reportPrivateUsage]


def examples_are(model: Any, numbers: Sequence[int], prompts: Sequence[int] | None = None) -> None:
    """Tells the edits of a model which texts the next passes read.

    Args:
        model: The model.
        numbers: The number of each row in its data set.
        prompts: The tokens of each row's prompt in the decoder, where a pass reads a whole response.
    """
    for editing in _at_work.get(model.base_model, ()):
        editing._examples, editing._prompts = list(numbers), prompts  # pyright: ignore[reportPrivateUsage]


Lengths: TypeAlias = Mapping[Stack, Sequence[int]]
IdsOf: TypeAlias = Callable[[int], Mapping[Stack, Sequence[int]]]


def check_for_texts(model: Any, lengths: Lengths, ids_of: IdsOf, *, grows: bool = False) -> None:
    """Refuses edits at work of what the texts that will be read do not have, before the first one is.

    Args:
        model: The model.
        lengths: The tokens of each text, or of each prompt, by stack.
        ids_of: Returns the token ids of a text, by its number; asked only where a word is to be found in it.
        grows: Whether texts are prompts, which responses follow.

    Raises:
        UsageError: an edit is about responses where there are none, or about a text that is not there.
        SelectionError: a text has no such position, or not this word once.
    """
    edits, n_texts = edits_of(model), len(next(iter(lengths.values())))
    beyond = [number for each in edits for number in each.examples or () if number >= n_texts]
    if beyond:
        raise UsageError(f"an edit of text {beyond[0]}", why=f"there are {n_texts}, counted from 0")
    if not grows and any("response" in (each.position, each.keys) for each in edits):
        raise UsageError('`position="response"`', why="texts that are read have no response", hint="edit `tf.generate`")
    for editing in _at_work.get(model.base_model, ()):
        editing.check_texts(lengths, ids_of, grows=grows)


def warn_of_untouched(model: Any) -> None:
    """Tells which edits at work changed nothing since `check_for_texts`: no text reached their positions."""
    for editing in _at_work.get(model.base_model, ()):
        for each in editing.untouched():
            warnings.warn(f"{each} edited nothing: no text that was read has such a position", stacklevel=3)


def check_resumed(edits: Sequence[Edit]) -> None:
    """Refuses to go on with a run whose edits cannot be told from others.

    Raises:
        UsageError: an edit is a function.
    """
    if any(not each.is_told for each in edits):
        raise UsageError(
            "`resume` of a run that a function edits",
            why="whether it is the same function cannot be told",
            hint="record it anew, or put its numbers into tf.edits.patch or tf.edits.add",
        )


def _within(numbers: Sequence[int], n: int, what: str) -> Sequence[int]:
    outside = [number for number in numbers if not 0 <= number < n]
    if outside:
        raise SelectionError(f"{what} {outside[0]} requested", why=f"there are only {what}s 0-{n - 1}")
    return numbers


def _warn_of_rounding(edit: Edit, key: ArrayKey, dtype: torch.dtype) -> None:
    """Tells that what a run puts there was rounded when it was kept: q and k beside patterns by recipe are not."""
    run = getattr(edit.change, "run", None) or getattr(edit.change, "source", None)
    if not isinstance(edit.change, Patch | Resample) or not isinstance(run, Run):
        return
    spec = run.layout.spec(key)
    stored = run.dtype if spec is None else run.layout.stored(spec)
    if stored == "q8":
        warnings.warn(
            f"{run.name} keeps activations in a byte each: {edit.kind} puts rounded numbers there; "
            'record the donor with `rows_codec="exact"`',
            stacklevel=4,
        )
        return
    best = torch.float32 if dtype == torch.float64 else dtype  # a run keeps no more
    stored = run.dtype if stored == "sqrt8" else stored
    if torch.finfo(getattr(torch, stored)).eps > torch.finfo(best).eps:
        name = str(best).removeprefix("torch.")
        warnings.warn(
            f"{run.name} keeps {stored}, and the model computes in {name}: {edit.kind} puts rounded numbers there; "
            f'record the donor with `dtype="{name}"`',
            stacklevel=4,
        )


def _check_source(edit: Edit, loaded: LoadedModel | None) -> None:
    """Refuses a run of another model, where both say which they are."""
    run = getattr(edit.change, "run", None) or getattr(edit.change, "source", None)
    if not isinstance(run, Run) or loaded is None:
        return
    digest = run.about.model_weights
    if digest is not None and digest != loaded.digest:
        raise UsageError(
            f"{run.name} is a run of another model",
            why=f"its weights are those of {run.about.model or 'a model that is not named'}, not of {loaded.source}",
            hint="record the donor with this model",
        )
    differing = token_named_otherwise(run, getattr(edit.change, "example", 0), loaded.tokenizer)
    if differing is not None:
        raise UsageError(
            f"{run.name} was read by another tokenizer",
            why=f"its token {differing[0]} is {differing[1]!r}, of {loaded.source} {differing[2]!r}",
            hint="record the donor with this model and its tokenizer",
        )
