"""What is proved of a model before its first batch, always, on the texts that it is about to read.

1. The shortest and the longest text of that batch, cut to `_MOST` tokens or fewer, run together as the batch will. Of
   the first, the middle and the last layer the residual stream and, if anything of it is recorded, attention are kept.
2. The claims of `stream` and `attention` about these are tested on the shorter, padded text: what blocks add to the
   stream, and patterns as the softmax of q k under a mask made of positions alone.
3. The shorter text runs alone, and must be what it was: nothing comes from padding or from the other text. A decoder's
   other text is given its first tokens: as far as both are the same they must be so in all, since nothing comes from a
   later token. Where there is one text, all its tokens but the last run beside it.
4. If not, further passes tell why: chance, where the same text gives other numbers; rounding, where as much comes of
   the last bits of what enters the blocks; a later token, in whose place stands another one; another text, as long as
   the first; or padding, which is no fault.
   Such a model's texts run one by one from then on (`sharing.keep_apart`).

It costs two passes of few tokens, `_SHARE` of the run's where that leaves enough, and a few products in three layers.
It proves what it names, on these tokens; `check` proves every site in every layer.
Where a user's hooks change what modules give (a planted direction), claims about sums are left out.
Below float32 passes of other shapes round otherwise, and a layer passes that on: only what the first attention shows is
compared there. A quantised model rounds one pass by all of its tokens: there, claims are tested alone.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from traceformer.capture.batches import BatchInputs
from traceformer.capture.encoding import Encoded
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.proofs.place import Reference, Rounding, Scene, error_between
from traceformer.capture.proofs.tested import Arrays, Errors, Kept, is_exact, prove, tolerance_of
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.capture.sharing import Lengths, keep_apart
from traceformer.capture.sinks import Spans
from traceformer.errors import Unsupported
from traceformer.models.behaviour import evaluating
from traceformer.models.dims import ModelDims
from traceformer.models.family import Architecture
from traceformer.models.loaded import LoadedModel
from traceformer.models.part import text_part
from traceformer.sites import ArrayKey, ArraySpec, Selection, Stack

__all__ = ["prove_first", "try_padding"]

_Inputs: TypeAlias = Callable[[Sequence[Encoded]], tuple[dict[str, Any], dict[Stack, list[Span]]]]

_MOST, _FEWEST = 64, 24  # tokens of a text
_ALIKE = 8
_SHARE = 0.02 / 6.5  # of a run's tokens: with another text beside it, most of it again, and the claims, 2 % of the run

_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_ATTENTION = ("q", "k", "v", "z", "attn_scores", "attn_pattern")
_COMPARED = ("resid_pre", "resid_post", "attn_out", "attn_pattern")

# What padding, a neighbour or a later token does is far more than what rounding does; below float32 less of it shows.
_FAR, _FAR_OF_FEW_BITS = 10, 3


_LIBRARIES = ("traceformer", "transformers", "torch", "accelerate", "peft")
"""Whose hooks watch, or move weights, and change no numbers."""


class _Fact(NamedTuple):
    """What did not hold, by how much, and by how much rounding explains."""

    words: str
    error: float
    tolerance: float


def prove_first(
    model: LoadedModel, plan: Plan, rows: Sequence[Encoded], tokens: int, *, to_continue: bool = False
) -> None:
    """Proves of a model what can be proved cheaply, and has its texts run one by one if padding changes its numbers.

    Args:
        model: The model.
        plan: What is about to be recorded.
        rows: The first batch.
        tokens: How many tokens the run has in all.
        to_continue: Whether batches are padded as `generate` takes them.

    Raises:
        Unsupported: a fact does not hold.
    """
    if not rows:
        return
    row, sites = model.built, {spec.key.site for spec in plan.arrays}
    inputs = BatchInputs(model)
    of_attention = sites & {*_ATTENTION} or any(spec.site.is_of_patterns for spec in plan.arrays)
    kept = (*_STREAM, *(_ATTENTION if of_attention else ()))
    with _trial(
        model.model, row, model.dims, rows[0], kept, inputs.to_continue if to_continue else inputs.to_run
    ) as of:
        failed = of.prove(*_two_of(rows, tokens))
    if failed is not None:
        rounding = f"rounding explains {failed.tolerance:.0e}"
        raise Unsupported(
            f"{model.name}: it does not hold that {failed.words}",
            why=f"it is off by {failed.error:.1e}, where {rounding}; nothing was recorded",
            hint=f"`traceformer check {model.source}` says what holds",
        )


def try_padding(
    model: PreTrainedModel, row: Architecture, dims: ModelDims, rows: Sequence[Encoded], inputs: _Inputs
) -> None:
    """Has a model's texts run one by one from now on if its numbers change with padding, and with nothing else.

    Args:
        model: The model.
        row: Its architecture.
        dims: Its sizes.
        rows: Texts of different lengths.
        inputs: Makes a batch of such.
    """
    shortest, longest = _two_of(rows, _MOST * len(rows))
    stack: Stack = "dec" if "dec" in rows[0].ids else "enc"
    has_stream = row.has(ArrayKey(stack, None, "resid_pre"))
    if longest is not None:
        sites = ("resid_pre", "resid_post") if has_stream else ("attn_pattern",)
        with _trial(model, row, dims, rows[0], sites, inputs) as trial:
            trial.try_padding(shortest, longest)


@contextmanager
def _trial(
    model: PreTrainedModel,
    row: Architecture,
    dims: ModelDims,
    example: Encoded,
    sites: Sequence[str],
    inputs: _Inputs,
) -> "Generator[_Trial]":
    """Observes these sites in the first, the middle and the last layer of the stacks that the example has."""
    sink, stacks = _Keeping(), tuple(example.ids)
    depths: dict[Stack, int] = {stack: dims.stacks[stack].n_layers for stack in stacks}
    layers: dict[Stack, tuple[int, ...] | None] = {
        stack: _few_layers(depth, dims.stacks[stack].attention_layers) for stack, depth in depths.items()
    }
    every = plan_arrays(Selection(("all",), layers=layers), model, stacks=stacks, architecture=row).arrays
    specs = [spec for spec in every if spec.key.site in sites]
    with torch.inference_mode(), evaluating(model), Recorder(model, specs, sink, row) as recorder:
        yield _Trial(model, row, dims, recorder, sink, inputs)


def _few_layers(depth: int, attending: Sequence[int]) -> tuple[int, ...]:
    """The first, the middle and the last layer, and where none of these has attention, the first one that has."""
    few = {0, depth // 2, depth - 1}
    return tuple(sorted(few if not attending or few & {*attending} else {*few, attending[0]}))


def _two_of(rows: Sequence[Encoded], tokens: int) -> tuple[Encoded, Encoded | None]:
    """The shortest text of a batch and the longest, cut so that one is shorter; None where there is no second."""
    most = min(_MOST, max(_FEWEST, int(tokens * _SHARE)))
    ordered = sorted(rows, key=lambda row: [*row.lengths.values()])
    longest = ordered[-1].cut(dict.fromkeys(ordered[-1].ids, most))
    if len(rows) == 1:
        return longest, None
    return ordered[0].cut({stack: max(1, 3 * n // 4) for stack, n in longest.lengths.items()}), longest


class _Keeping:
    """A batch sink that keeps each row's arrays."""

    def __init__(self) -> None:
        self.kept = Kept({})

    def begin(self, rows: Sequence[int], spans: Spans) -> None:
        self.kept = Kept(spans)

    def end(self) -> None:
        pass

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        self.kept.rows(spec, layer, rows)

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: Tensor) -> None:
        self.kept.square(spec, layer, example, queries, keys, block)


_OneText = Mapping[Any, Tensor]
"""The arrays of one text, by key and layer."""


class _Trial:
    """A model that is being observed, and how its batches are made."""

    def __init__(
        self,
        model: PreTrainedModel,
        row: Architecture,
        dims: ModelDims,
        recorder: Recorder,
        sink: _Keeping,
        inputs: _Inputs,
    ) -> None:
        self._model, self._row, self._dims = model, row, dims
        self._recorder, self._sink, self._inputs = recorder, sink, inputs
        self._is_exact = is_exact(model)
        self._largest_score, self._rounding = 1.0, 0.0

    def prove(self, text: Encoded, other: Encoded | None) -> _Fact | None:
        """Returns a fact that does not hold, if there is one."""
        alike = self._alike(text, other)
        beside = self._beside(text, other, alike)
        together = [text] if beside is None else [text, beside]
        whole, *rest = self._run(together)
        if any(bool(each.isnan().any()) for each in whole.values()):
            return None  # where it is stored, its place is named
        scores = [each for (key, _), each in whole.items() if key.site == "attn_scores"]
        self._largest_score = max([1.0, *(each.abs().max().item() for each in scores)])
        failed = None if _has_hooks(self._model) else self._claims(text, whole)
        if failed is not None or self._recorder.sharing.quantised is not None:
            return failed
        begin_alike = not alike or self._differ(whole, rest[0], most=alike) is None
        if begin_alike and (other is None or self._differ(whole, self._alone(text)) is None):
            return None
        return self._reason(text, other, whole)

    def try_padding(self, text: Encoded, other: Encoded) -> None:
        """Has texts run one by one if another one, and padding, change a text's numbers, and that is no fault."""
        whole, *_ = self._run([text, other])
        if self._differ(whole, self._alone(text)):
            self._reason(text, other, whole)

    def _claims(self, text: Encoded, arrays: _OneText) -> _Fact | None:
        """The claim that is furthest from holding, if one does not."""
        errors: Errors = {}
        kept: Arrays = {place: [tensor] for place, tensor in arrays.items()}
        reference = Reference(None, {}, {})
        ids: Mapping[Stack, Tensor] = {stack: torch.tensor(own) for stack, own in text.ids.items()}
        prove(
            Scene(self._model, self._row, self._dims, (ids,), kept, reference),
            self._recorder.arrays,
            errors,
        )
        dtype = self._model.dtype
        facts = [
            _Fact(f"{key} {fact}", error, tolerance_of(rounding, dtype, self._largest_score))
            for (key, fact, rounding), error in errors.items()
        ]
        return max(
            (fact for fact in facts if not fact.error <= fact.tolerance),
            key=lambda fact: fact.error,
            default=None,
        )

    def _reason(self, text: Encoded, other: Encoded | None, whole: _OneText) -> _Fact | None:
        """Tells why a text's numbers were not the same again: a fact that does not hold, or None for padding alone."""
        alone = self._alone(text)
        again = self._differ(self._alone(text), alone)
        if again is not None:
            return again._replace(words="a text's numbers are the same each time")
        with self._last_bits_changed(text):
            rounded = self._differ(self._alone(text), alone)
        self._rounding = 0.0 if rounded is None else rounded.error
        if self._is_causal(text):
            longest = text if other is None else other  # the shortest may be one token, which no other one follows
            ahead = self._differ(
                self._alone(_with_another_last(longest)), self._alone(longest), most=longest.length("dec") - 1
            )
            if ahead is not None:
                return ahead._replace(words="a decoder's token changes with no later one")
        if other is not None and self._differ(whole, alone) is not None:
            beside = other.cut(text.lengths)
            # Texts may begin alike: backwards the other is another one.
            beside = replace(beside, ids={stack: ids[::-1] for stack, ids in beside.ids.items()})
            leak = self._differ(self._run([text, beside])[0], alone) if beside.lengths == text.lengths else None
            if leak is not None:
                return leak._replace(words="a text's numbers change with no other text in its batch")
        keep_apart(self._model)
        return None

    @contextmanager
    def _last_bits_changed(self, row: Encoded) -> Generator[None]:
        """Changes what enters the blocks by as much as its dtype can tell apart, up and down."""
        base: Any = text_part(self._model)
        step = torch.finfo(self._model.dtype).eps

        def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            rows: Tensor = args[0] if args else kwargs["hidden_states"]
            signs = torch.ones_like(rows)
            signs[..., ::2] = -1
            changed = rows * (1 + step * signs)
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        with ExitStack() as undo:
            for stack in row.ids:
                for block in base.get_submodule(self._row.stacks[stack].blocks):
                    undo.callback(block.register_forward_pre_hook(change, with_kwargs=True).remove)
            yield

    def _differ(self, one: _OneText, two: _OneText, *, most: int | None = None) -> _Fact | None:
        """How far two runs are apart, if further than rounding; `most` is how many of the decoder's tokens count."""
        rounding = Rounding.BATCH if self._is_exact else Rounding.MODEL
        explained = max(tolerance_of(rounding, self._model.dtype, self._largest_score), self._rounding)
        tolerance = (_FAR if self._is_exact else _FAR_OF_FEW_BITS) * explained
        worst = 0.0
        for (key, layer), tensor in one.items():
            if key.site not in _COMPARED or not (self._is_exact or self._is_of_first_mixing(key, layer)):
                continue
            there = two[key, layer]
            axes = (-2, -1) if key.site == "attn_pattern" else (-2,)
            for axis in axes:
                of_decoder = (key.key_stack if axis == -1 else key.token_stack) == "dec"
                size = most if of_decoder and most is not None else tensor.shape[axis]
                tensor, there = tensor.narrow(axis, 0, size), there.narrow(axis, 0, size)
            worst = max(worst, error_between(tensor, there))
        return None if worst <= tolerance else _Fact("", worst, tolerance)

    def _is_of_first_mixing(self, key: ArrayKey, layer: int | None) -> bool:
        """Whether an array is of what first joins tokens, or before: below float32, layers behind it round otherwise.

        Where the first layer has no attention, that is the whole of its block.
        """
        attends = 0 in self._dims.stacks[key.stack].attention_layers
        return layer == 0 and key.site in ("resid_pre", "attn_out", *(() if attends else ("resid_post",)))

    def _parts(self, rows: Sequence[Encoded]) -> list[list[int]]:
        return self._recorder.sharing.parts(range(len(rows)), [row.lengths for row in rows])

    def _alone(self, row: Encoded) -> _OneText:
        [arrays] = self._run([row])
        return arrays

    def _run(self, rows: Sequence[Encoded]) -> list[_OneText]:
        """Returns each row's arrays in one pass of them all, or in one each where they may not share it."""
        found: dict[int, _OneText] = {}
        for part in self._parts(rows):
            inputs, spans = self._inputs([rows[index] for index in part])
            self._sink.begin(part, spans)
            self._recorder.run(spans, **inputs)
            for place, index in enumerate(part):
                found[index] = {key: each[place] for key, each in self._sink.kept.arrays.items()}
        return [found[index] for index in range(len(rows))]

    def _alike(self, text: Encoded, other: Encoded | None) -> int:
        """How many tokens of the decoder a text and what runs beside it begin with; 0 where nothing follows of that."""
        if not self._is_causal(text) or (other is not None and "enc" in text.ids):
            return 0
        most = text.length("dec") - 1
        begun: dict[Stack, int] = {**text.lengths, "dec": max(most, 1)}
        together: list[Lengths] = [text.lengths, begun if other is None else other.lengths]
        share_a_pass = len(self._recorder.sharing.parts([0, 1], together)) == 1
        return (most if other is None else min(most, _ALIKE)) * share_a_pass

    @staticmethod
    def _beside(text: Encoded, other: Encoded | None, alike: int) -> Encoded | None:
        """What runs beside a text: another one that begins like it, or its own beginning; None for nothing."""
        if not alike:
            return other
        if other is None:
            return text.cut({**text.lengths, "dec": alike})
        return replace(other, ids={"dec": text.ids["dec"][:alike] + other.ids["dec"][alike:]})

    def _is_causal(self, row: Encoded) -> bool:
        """Whether there is a decoder, and its attention does not say itself that it looks both ways."""
        if "dec" not in row.ids:
            return False
        own = self._row.stacks["dec"]
        attending = self._dims.stacks["dec"].attention_layers
        if not attending:
            return True
        path = f"{own.blocks}.{attending[0]}.{own.attention.module}".removesuffix(".")
        return getattr(text_part(self._model).get_submodule(path), "is_causal", True) is not False


def _has_hooks(model: PreTrainedModel) -> bool:
    """Whether a user's hook may add what no module does, as a planted direction: then sums are not what modules say."""
    hooks = (
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())  # pyright: ignore[reportPrivateUsage]
    )
    return any(getattr(hook, "__module__", "").partition(".")[0] not in _LIBRARIES for hook in hooks)


def _with_another_last(row: Encoded) -> Encoded:
    *before, last = row.ids["dec"]
    return replace(row, ids={**row.ids, "dec": [*before, last - 1 if last else 1]})
