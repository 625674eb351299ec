"""Answers that are ready to be made: to which prompts, how tokens are chosen, and how the run is laid out.

1. `prepare_answers` plans the run, and has the model proved on the prompts. Nothing is written.
2. `Answers.open` begins or resumes the run, or joins one that others write, too.
3. `Answers.record` goes shard by shard. A shard is one batch: the model's own `generate` runs it with a recorder around
   it, or, for a replay, runs it plainly, and one pass over each finished text is recorded.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import torch

from traceformer.capture.batches import run_batches
from traceformer.capture.compiled import kernel_stated
from traceformer.capture.edits.session import check_for_texts, edits_of, examples_are, unedited
from traceformer.capture.encoding import Encoded
from traceformer.capture.generation.described import (
    Generated,
    generation_configuration,
    generation_table,
    with_generation,
)
from traceformer.capture.generation.prompts import Prompts, ReadPrompt, complete, read_prompts, started
from traceformer.capture.generation.replay import check_replay
from traceformer.capture.generation.respond import Responder, Responses, keeps_a_cache
from traceformer.capture.generation.sampling import Choosing, Sampling, choosing_of
from traceformer.capture.pipeline import Pipeline, ShardSink
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.proofs.first import prove_first
from traceformer.capture.proofs.fit import fitted
from traceformer.capture.proofs.handed_on import HandedOn
from traceformer.capture.provenance import model_configuration, model_meta
from traceformer.capture.reduced import refuse_growing
from traceformer.capture.sharing import Sharing
from traceformer.capture.sight import triangles_of
from traceformer.errors import Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.outputs import why_no_output
from traceformer.progress import Counting, OnProgress, quiet
from traceformer.sites import Selection, Stack
from traceformer.store.layout import RunLayout
from traceformer.store.meta import RunMeta
from traceformer.store.place import Place, Storage, Writer

__all__ = ["Answers", "answers_of", "prepare_answers", "sampling_by"]


@dataclass(frozen=True, slots=True)
class Answers:
    """All that is known of answers before the first one is made.

    Attributes:
        model: The model, with the row by which it is recorded.
        plan: The arrays.
        prompts: What is to be answered, and how the run calls it.
        read: The prompts, as the model reads them.
        sampling: How tokens are chosen.
        choosing: The same in transformers' settings.
        sharing: Which prompts share a pass.
        layout: How the run is laid out.
        lengths: The most tokens that each example can have.
        batch_size: Prompts at a time.
        replay: Whether one pass over each finished text is recorded.
        meta: What the run states.
        configuration: What must agree for it to be resumed.
    """

    model: LoadedModel
    plan: Plan
    prompts: Prompts
    read: Sequence[ReadPrompt]
    sampling: Sampling
    choosing: Choosing
    sharing: Sharing
    layout: RunLayout
    lengths: Mapping[Stack, Sequence[int]]
    batch_size: int
    replay: bool
    meta: RunMeta
    configuration: Mapping[str, Any]

    def open(self, place: Place) -> Writer:
        """Returns the writer of the run; errors as `Place.open` raises them."""
        name = f"{self.model.name}_{self.prompts.name}_generated_n{self.layout.n_examples}"
        return place.open(name, self.layout, self.meta, self.configuration, self.lengths)

    def n_examples(self, shards: Iterable[int]) -> int:
        return sum(len(self.layout.shard_range(shard)) for shard in shards)

    def record(
        self,
        writer: Writer,
        shards: Iterable[int | None],
        counting: Counting,
        *,
        on_text: Callable[[str], None] | None = None,
        on_response: Callable[[Generated], None] = quiet,
    ) -> None:
        """Answers shards of prompts, and commits them.

        Args:
            writer: What `open` gave.
            shards: Which, in their order. None where the next one is not known yet: what is under way is settled then.
            counting: Told after every step.
            on_text: Given the text of a lone prompt's response as it is made.
            on_response: Given each response when it is complete.
        """

        def step(tokens: int) -> None:
            counting.tokens += tokens
            counting.tell("generating")

        responder = Responder(self.model, self.sampling, self.choosing, on_step=step, on_text=on_text)
        dtype = None if self.replay else getattr(torch, self.layout.dtype)
        answering = _Answering(self.model, self.plan, responder, self.sharing, dtype)
        with Pipeline(writer) as pipeline:
            for shard in shards:
                if shard is None:
                    pipeline.settle()
                    continue
                for response in self._answer_shard(answering, pipeline, shard, counting):
                    on_response(response)

    def _answer_shard(
        self, answering: "_Answering", pipeline: Pipeline, shard: int, counting: Counting
    ) -> list[Generated]:
        sampling, size = self.sampling, self.batch_size
        batch = self.read[shard * size : (shard + 1) * size]
        before, seed = counting.tokens, sampling.seed + shard
        parts = answering.respond(batch, seed, shard * size)
        made, rows = _completed(self.model, batch, parts, sampling, seed, self.prompts.category)
        counting.tokens = before + sum(len(each.tokens) for each in made)  # without padding and lost beams
        sink = pipeline.open_shard({stack: [row.length(stack) for row in rows] for stack in rows[0].ids})
        numbers = [shard * size + row // sampling.num_return_sequences for row in range(len(rows))]
        read_of = [started(self.model, self.read[number]).length("dec") for number in numbers]
        answering.fill(sink, parts, rows, size, numbers, read_of)
        table = generation_table(made, rows, self.layout.shard_range(shard), sampling, replay=self.replay)
        pipeline.close_shard(shard, sink, table)
        counting.examples += len(rows)
        counting.tell("generating")
        return made


def prepare_answers(
    model: LoadedModel,
    prompts: Prompts,
    selection: Selection,
    storage: Storage,
    *,
    sampling: Sampling,
    batch_size: int = 8,
    replay: bool = False,
    capture_steps: bool = False,
    progress: OnProgress = quiet,
) -> Answers:
    """Returns answers that are ready to be made; arguments and errors as of `answer`, and nothing is written."""
    if batch_size < 1:
        raise UsageError(f"`batch_size={batch_size}`", hint="give 1 or more")
    if model.dims.arch == "enc" or not model.model.can_generate():
        why = "it has no decoder" if model.dims.arch == "enc" else why_no_output("logits", model.model)
        raise Unsupported(f"{model.name} generates no text", why=why, hint="traceformer extract records it")
    if not replay and not keeps_a_cache(model):
        raise Unsupported(
            f"{model.name} cannot be observed while it generates",
            why=f"{type(model.model).__name__} is handed what it has read under a name of its own",
            hint="`replay=True` records a pass over prompt and response instead",
        )
    edits = edits_of(model.model)
    choosing = choosing_of(model, sampling)
    for name, instead in choosing.replaced.items():
        stated = getattr(model.model.generation_config, name)
        warnings.warn(f"{instead}, in place of {name}={stated} of {model.name}: the same numbers", stacklevel=3)
    replay = replay or sampling.is_searched or choosing.runs_more or "attn_scores" in selection.sites
    read = read_prompts(model, prompts, max_tokens=sampling.max_tokens)
    begun = [started(model, prompt) for prompt in read]
    prompt_lengths: dict[Stack, list[int]] = {stack: [row.length(stack) for row in begun] for stack in begun[0].ids}
    check_for_texts(model.model, prompt_lengths, lambda number: begun[number].ids, grows=True)
    with unedited(model.model):
        model = fitted(model, [each.row for each in read[:batch_size]], progress)
    plan = plan_arrays(selection, model.model, architecture=model.architecture)
    refuse_growing(plan)
    if plan.left_out:
        warnings.warn(f"{model.name} has no {', '.join(plan.left_out)}: left out", stacklevel=3)
    tokens = sum(prompt.row.length(stack) + sampling.max_tokens for prompt in read for stack in prompt.row.ids)
    sharing = Sharing(model.model)
    with unedited(model.model), HandedOn(model) as handed_on:
        is_padded_left = not replay and sharing.reads_behind_padding
        prove_first(model, plan, begun[:batch_size], tokens, to_continue=is_padded_left)
    if replay:
        check_replay(model, sharing, [each.row for each in read], sampling.max_tokens)
    most = _lengths(read, sampling)
    layout = RunLayout.plan(
        arch=model.dims.arch,
        arrays=plan.arrays,
        n_examples=len(read) * sampling.num_return_sequences,
        longest={stack: max(lengths) for stack, lengths in most.items()},
        mean={stack: fmean(lengths) for stack, lengths in most.items()},
        dtype=storage.dtype,
        rows_codec=storage.rows_codec,
        shard_examples=min(batch_size, len(read)) * sampling.num_return_sequences,
        triangles=triangles_of(model, plan, begun[:batch_size]) if not edits else frozenset(),
    )
    if not edits:
        layout = storage.once(layout, handed_on.aliases(layout.arrays))
    meta = replace(model_meta(model, plan), capture=tuple(selection.capture), batch_size=min(batch_size, len(read)))
    meta = with_generation(meta, model, prompts, sampling, choosing, replay=replay, capture_steps=capture_steps)
    configuration = model_configuration(model, plan) | generation_configuration(model, prompts, sampling, replay=replay)
    configuration |= kernel_stated(layout, model.model) if replay else {}
    return Answers(
        model,
        plan,
        prompts,
        read,
        sampling,
        choosing,
        sharing,
        layout,
        most,
        batch_size,
        replay,
        meta,
        configuration,
    )


def answers_of(
    load: Callable[[], LoadedModel], choose: Callable[[LoadedModel], Sampling], prompts: Prompts, **asked: Any
) -> Answers:
    """Returns answers of a model that is loaded here, a worker's part of them; else as `prepare_answers`."""
    model = load()
    return prepare_answers(model, prompts, sampling=choose(model), **asked)


def sampling_by(given: Mapping[str, Any], model: LoadedModel) -> Sampling:
    """Returns how a model chooses tokens by what is given; a function of a module's own, which can be pickled."""
    return Sampling.of(model, **given)


def _lengths(prompts: Sequence[ReadPrompt], sampling: Sampling) -> dict[Stack, list[int]]:
    """The most tokens that each response and its prompt can have; an encoder-decoder's response has a start token."""
    [stack] = prompts[0].row.ids
    lengths = [prompt.row.length(stack) for prompt in prompts for _ in range(sampling.num_return_sequences)]
    if stack == "enc":
        return {"enc": lengths, "dec": [1 + sampling.max_tokens] * len(lengths)}
    return {"dec": [length + sampling.max_tokens for length in lengths]}


class _Part(NamedTuple):
    """Prompts of a batch that are answered together, by their numbers in it, and the responses to them."""

    numbers: Sequence[int]
    responses: Responses


class _Answering:
    """One model answering batch after batch: observed token by token in a dtype, or, without one, replayed.

    Prompts of a batch that would change each other's numbers are answered apart, each with the batch's seed.
    """

    def __init__(
        self,
        model: LoadedModel,
        plan: Plan,
        responder: Responder,
        sharing: Sharing,
        observed_in: torch.dtype | None,
    ) -> None:
        self._model, self._plan, self._observed_in = model, plan, observed_in
        self._responder, self._sharing = responder, sharing

    def respond(self, prompts: Sequence[ReadPrompt], seed: int, first: int) -> list[_Part]:
        rows = [prompt.row for prompt in prompts]
        parts: list[_Part] = []
        for numbers in self._responder.apart(rows, self._sharing):
            together = [rows[number] for number in numbers]
            examples_are(self._model.model, [first + number for number in numbers])
            if self._observed_in is None:
                responses = self._responder.plain(together, seed)
            else:
                responses = self._responder.observed(together, seed, self._plan, self._observed_in)
            parts.append(_Part(numbers, responses))
        return parts

    def fill(
        self,
        sink: ShardSink,
        parts: Sequence[_Part],
        rows: Sequence[Encoded],
        batch_size: int,
        numbers: Sequence[int],
        prompts: Sequence[int],
    ) -> None:
        """Hands over what was observed, or records one pass over each finished text, as many at a time as prompts."""
        if self._observed_in is None:
            batches = [range(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
            run_batches(self._model, self._plan, rows, batches, sink, numbers=numbers, prompts=prompts)
            return
        for numbers, responses in parts:
            assert responses.memory is not None
            sink.begin(numbers, responses.spans)
            responses.memory.pour(sink, responses.spans)
            sink.end()


def _completed(
    model: LoadedModel,
    prompts: Sequence[ReadPrompt],
    parts: Sequence[_Part],
    sampling: Sampling,
    seed: int,
    category: str | None,
) -> tuple[list[Generated], list[Encoded]]:
    """Returns each response, and each whole row, prompt and response, in the order of the prompts."""
    each = sampling.num_return_sequences
    tokens_of = {
        (number, sequence): part.responses.tokens[index * each + sequence]
        for part in parts
        for index, number in enumerate(part.numbers)
        for sequence in range(each)
    }
    made: list[Generated] = []
    rows: list[Encoded] = []
    for (number, sequence), tokens in sorted(tokens_of.items()):
        prompt = prompts[number]
        row, text = complete(model, prompt, tokens)
        rows.append(row)
        name = prompt.example_id if each == 1 else f"{prompt.example_id}-{sequence}"
        made.append(Generated(prompt, sequence, tokens, text, seed, name, category))
    return made, rows
