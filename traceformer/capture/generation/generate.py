"""Prompts to a run.

1. `generate` takes what a person writes and makes values of it: a model, prompts, how tokens are chosen, a selection, a
   place.
2. `answer` plans the run. A shard is one batch: the model's own `generate` runs it with a recorder around it, or, for a
   replay, runs it plainly, and one pass over each finished text is recorded. Lengths are known then, and the rows go to
   the shard, which is written while the next batch runs.
3. When every shard is committed the run is finished, as an extraction's is.

Batches follow the order of the prompts and batch k is seeded with seed + k, so that an interrupted run resumes to
the same responses.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from traceformer.capture.batches import run_batches
from traceformer.capture.compiled import kernel_stated
from traceformer.capture.derived import LensTopK, Traits
from traceformer.capture.edits.session import (
    check_for_texts,
    check_resumed,
    edits_of,
    examples_are,
    unedited,
    warn_of_untouched,
)
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
from traceformer.capture.generation.sampling import Sampling, choosing_of
from traceformer.capture.pipeline import Pipeline, ShardSink
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.proofs.first import prove_first
from traceformer.capture.proofs.fit import fitted
from traceformer.capture.proofs.handed_on import HandedOn
from traceformer.capture.provenance import model_configuration, model_meta
from traceformer.capture.sharing import Sharing
from traceformer.capture.sight import triangles_of
from traceformer.errors import Unsupported, UsageError
from traceformer.models.load import as_loaded
from traceformer.models.loaded import LoadedModel
from traceformer.models.outputs import why_no_output
from traceformer.progress import Counting, OnProgress, quiet, watched
from traceformer.sites import Numbers, Selection, Stack
from traceformer.store.layout import RunLayout
from traceformer.store.names import Dtype
from traceformer.store.place import Place, Storage
from traceformer.store.run import Run
from traceformer.texts.chats import Message
from traceformer.texts.prompts import PromptSet, listed_prompts, load_prompts, one_prompt

__all__ = ["answer", "generate"]


def generate(
    model: str | Path | LoadedModel,
    prompts: str | Path | PromptSet | Sequence[str | Sequence[Message]],
    capture: str | Iterable[str] | Selection = "attn resid",
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    num_return_sequences: int | None = None,
    num_beams: int | None = None,
    stop: str | Iterable[str] = (),
    seed: int = 42,
    more: Mapping[str, Any] | None = None,
    chat: bool = False,
    category: str | None = None,
    layers: Numbers | Mapping[Stack, Numbers] = None,
    heads: Numbers | Mapping[Stack, Numbers] = None,
    hidden_layers: Numbers = None,
    project: Traits | None = None,
    lens_top_k: int | None = None,
    replay: bool = False,
    out: str | Path | None = None,
    dtype: Dtype = "float16",
    keep_duplicates: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    thumbnails: bool = False,
    batch_size: int = 8,
    progress: OnProgress | None = None,
) -> Run:
    """Returns a run of a model's answers to prompts, recorded token by token as the model's own `generate` makes them.

        run = tf.generate("byte", "The function returns", max_tokens=60)
        run.tokens.response[0]

    Without `out` the run lives in memory, and `run.save(path)` keeps it.

    What is left open, and everything that is not named here, is as the model's own generation_config.json says. Where
    that says nothing a response has up to 50 tokens, sampled at temperature 0.6 from the 50 likeliest.

    Args:
        model: A model that `load_model` gave, or what it takes: a name or a folder.
        prompts: A prompt, a list of them, a file of them (a `Path`), or a prompt set. Conversations, lists of messages,
            are answered in the model's chat template; one that ends with the assistant gets another such end.
        capture: As of `record`.
        max_tokens: The most tokens of a response.
        temperature: How freely to choose; 0 takes the most likely token.
        top_k: Choose among the k most likely tokens; 0 for all.
        top_p: Choose among the most likely tokens that have this probability together.
        num_return_sequences: Responses per prompt.
        num_beams: Search with this many beams.
        stop: Strings at which a response ends.
        seed: Of the first batch; batch k has seed + k.
        more: Further settings of transformers' GenerationConfig.
        chat: Put each prompt that is a text into the model's chat template, as a user's only message.
        category: A label for the responses.
        layers: As of `record`, and so `heads`, `hidden_layers`, `project`, `lens_top_k`.
        heads: The model's own numbers.
        hidden_layers: Which entries of `hidden`.
        project: Trait vectors.
        lens_top_k: How many likeliest next tokens of each layer.
        replay: Record one pass over each finished text instead; beams and several responses always are.
        out: As of `record`, and so `dtype`, `keep_duplicates`, `resume`, `overwrite`, `thumbnails`, `progress`.
        dtype: How values are stored.
        keep_duplicates: Store rows that are equal to another array's once more.
        resume: Go on with an interrupted run.
        overwrite: Replace a finished run.
        thumbnails: Draw all heads in small once the run is finished.
        batch_size: Prompts at a time.
        progress: Told how far it is.

    Raises:
        NotFound, Unreadable: a model or prompts that are not there, or not what they should be.
        UsageError: no prompt, or one that does not fit into the model's context.
        Unsupported: a model that generates no text, or not by its settings; a site that it has no place for; a replay
            that would give other numbers than the model had when it chose.
        RunExists, ConfigurationChanged: `out` is taken, or was begun differently.
        NumericError: logits that are no numbers, or a value that the stored dtype cannot hold.
        OutOfSpace: the disk or the memory is too small; what was committed stays.
    """
    derived = (*([] if project is None else [project]), *([] if lens_top_k is None else [LensTopK(lens_top_k)]))
    selection = Selection.of(
        () if derived and capture == "attn resid" else capture,
        layers=layers,
        heads=heads,
        hidden_layers=hidden_layers,
        derived=derived,
    )
    given = {
        **{"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p},
        **{"num_return_sequences": num_return_sequences, "num_beams": num_beams, "seed": seed},
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "more": dict(more or {}),
    }
    Sampling.of(None, **given)  # what makes no sense is said before the model is loaded
    folder = None if out is None else Path(out)
    place = Place(
        folder=folder,
        resume=resume,
        overwrite=overwrite,
        storage=Storage(dtype, keep_duplicates=keep_duplicates),
        thumbnails=thumbnails,
    )
    place.check()
    asked = Prompts((_set_of(prompts),), chat, category)
    with watched(progress) as shown:
        loaded = as_loaded(model, with_head=True)
        sampling = Sampling.of(loaded, **given)
        return answer(
            loaded, asked, selection, place, sampling=sampling, replay=replay, batch_size=batch_size, progress=shown
        )


def _set_of(prompts: str | Path | PromptSet | Sequence[str | Sequence[Message]]) -> PromptSet:
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, str):
        return one_prompt(prompts)
    return load_prompts(prompts) if isinstance(prompts, Path) else listed_prompts(prompts)


def answer(
    model: LoadedModel,
    prompts: Prompts,
    selection: Selection,
    place: Place,
    *,
    sampling: Sampling,
    batch_size: int = 8,
    replay: bool = False,
    capture_steps: bool = False,
    progress: OnProgress = quiet,
    on_text: Callable[[str], None] | None = None,
    on_response: Callable[[Generated], None] = quiet,
) -> Run:
    """Returns the run of a model's answers.

    Args:
        model: A model that generates text.
        prompts: What to answer.
        selection: What to record.
        place: Where the run goes.
        sampling: How tokens are chosen.
        batch_size: Prompts at a time.
        replay: Whether to record one pass over each finished text. Beams, several responses, guidance (which makes
            passes of its own) and scores, which include those of future keys, always are.
        capture_steps: Whether exports write every step's own view as well.
        progress: Told how far it is.
        on_text: Given the text of a lone prompt's response as it is made.
        on_response: Given each response when it is complete.

    Raises:
        UsageError, SelectionError, Unsupported: as `plan_arrays`, `read_prompts` and `prove_first` raise them; nothing
            is written.
        RunExists, ConfigurationChanged, NumericError, OutOfSpace: as `generate` does.
    """
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
    if place.resume:
        check_resumed(edits)
    choosing = choosing_of(model, sampling)
    for name, instead in choosing.replaced.items():
        stated = getattr(model.model.generation_config, name)
        warnings.warn(f"{instead}, in place of {name}={stated} of {model.name}: the same numbers", stacklevel=2)
    replay = replay or sampling.is_searched or choosing.runs_more or "attn_scores" in selection.sites
    read = read_prompts(model, prompts, max_tokens=sampling.max_tokens)
    begun = [started(model, prompt) for prompt in read]
    prompt_lengths: dict[Stack, list[int]] = {stack: [row.length(stack) for row in begun] for stack in begun[0].ids}
    check_for_texts(model.model, prompt_lengths, lambda number: begun[number].ids, grows=True)
    with unedited(model.model):
        model = fitted(model, [each.row for each in read[:batch_size]], progress)
    plan = plan_arrays(selection, model.model, architecture=model.architecture)
    if plan.left_out:
        warnings.warn(f"{model.name} has no {', '.join(plan.left_out)}: left out", stacklevel=2)
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
        dtype=place.storage.dtype,
        shard_examples=min(batch_size, len(read)) * sampling.num_return_sequences,
        triangles=triangles_of(model, plan, begun[:batch_size]) if not edits else frozenset(),
    )
    if not edits:
        layout = place.storage.once(layout, handed_on.aliases(layout.arrays))
    name = f"{model.name}_{prompts.name}_generated_n{layout.n_examples}"
    meta = replace(model_meta(model, plan), capture=tuple(selection.capture), batch_size=min(batch_size, len(read)))
    meta = with_generation(meta, model, prompts, sampling, choosing, replay=replay, capture_steps=capture_steps)
    configuration = model_configuration(model, plan) | generation_configuration(model, prompts, sampling, replay=replay)
    configuration |= kernel_stated(layout, model.model) if replay else {}
    with place.open(name, layout, meta, configuration, most) as writer:
        total = sum(len(layout.shard_range(shard)) for shard in writer.pending)
        answers_all = total == layout.n_examples
        counting = Counting(progress, total, lambda: writer.bytes_written)

        def step(tokens: int) -> None:
            counting.tokens += tokens
            counting.tell("generating")

        responder = Responder(model, sampling, choosing, on_step=step, on_text=on_text)
        answering = _Answering(model, plan, responder, sharing, None if replay else getattr(torch, layout.dtype))
        with Pipeline(writer) as pipeline:
            for shard in writer.pending:
                batch = read[shard * batch_size : (shard + 1) * batch_size]
                before, seed = counting.tokens, sampling.seed + shard
                parts = answering.respond(batch, seed, shard * batch_size)
                made, rows = _completed(model, batch, parts, sampling, seed, prompts.category)
                counting.tokens = before + sum(len(each.tokens) for each in made)  # without padding and lost beams
                sink = pipeline.open_shard({stack: [row.length(stack) for row in rows] for stack in rows[0].ids})
                numbers = [shard * batch_size + row // sampling.num_return_sequences for row in range(len(rows))]
                read_of = [prompt_lengths["dec"][number] for number in numbers]
                answering.fill(sink, parts, rows, batch_size, numbers, read_of)
                table = generation_table(made, rows, layout.shard_range(shard), sampling, replay=replay)
                pipeline.close_shard(shard, sink, table)
                counting.examples += len(rows)
                counting.tell("generating")
                for response in made:
                    on_response(response)
        if answers_all:
            warn_of_untouched(model.model)
        counting.tell("finishing")
        return place.finish(writer, lambda done, of: counting.tell(f"drawing {done} of {of}"))


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
