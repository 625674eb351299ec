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
from typing import Any

import torch

from traceformer.capture.batches import run_batches
from traceformer.capture.derived import LensTopK, Traits
from traceformer.capture.generation.described import (
    Generated,
    generation_configuration,
    generation_table,
    with_generation,
)
from traceformer.capture.generation.prompts import Prompts, ReadPrompt, complete, read_prompts
from traceformer.capture.generation.respond import Responder, Responses
from traceformer.capture.generation.sampling import Sampling
from traceformer.capture.pipeline import Pipeline, ShardSink
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.provenance import model_configuration, model_meta
from traceformer.capture.tokenizing import Encoded
from traceformer.errors import Unsupported, UsageError
from traceformer.models.load import as_loaded
from traceformer.models.loaded import LoadedModel
from traceformer.progress import Counting, OnProgress, quiet, watched
from traceformer.sites import Numbers, Selection, Stack
from traceformer.store.layout import RunLayout
from traceformer.store.names import Dtype
from traceformer.store.place import Place, Storage, finished
from traceformer.store.run import Run
from traceformer.texts.chats import Message
from traceformer.texts.prompts import PromptSet, listed_prompts, load_prompts, one_prompt

__all__ = ["answer", "generate"]


def generate(
    model: str | Path | LoadedModel,
    prompts: str | Path | PromptSet | Sequence[str | Sequence[Message]],
    capture: str | Iterable[str] | Selection = "attn resid",
    *,
    max_tokens: int = 50,
    temperature: float = 0.6,
    top_k: int = 50,
    top_p: float | None = None,
    num_return_sequences: int = 1,
    num_beams: int = 1,
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
    resume: bool = False,
    overwrite: bool = False,
    batch_size: int = 8,
    progress: OnProgress | None = None,
) -> Run:
    """Returns a run of a model's answers to prompts, recorded token by token as the model's own `generate` makes them.

        run = tf.generate("byte", "The function returns", max_tokens=60)
        run.tokens.response[0]

    Without `out` the run lives in memory, and `run.save(path)` keeps it.

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
        out: As of `record`, and so `dtype`, `resume`, `overwrite`, `progress`.
        dtype: How values are stored.
        resume: Go on with an interrupted run.
        overwrite: Replace a finished run.
        batch_size: Prompts at a time.
        progress: Told how far it is.

    Raises:
        NotFound, Unreadable: a model or prompts that are not there, or not what they should be.
        UsageError: no prompt, or one that does not fit into the model's context.
        Unsupported: a model that generates no text, or a site that it has no place for.
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
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    sampling = Sampling(
        max_tokens, temperature, top_k, top_p, num_return_sequences, num_beams, stops, seed, dict(more or {})
    )
    folder = None if out is None else Path(out)
    place = Place(folder=folder, resume=resume, overwrite=overwrite, storage=Storage(dtype))
    place.check()
    asked = Prompts((_set_of(prompts),), chat, category)
    with watched(progress) as shown:
        loaded = as_loaded(model, with_head=True)
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
        replay: Whether to record one pass over each finished text. Beams, several responses and scores, which
            include those of future keys, always are.
        capture_steps: Whether exports write every step's own view as well.
        progress: Told how far it is.
        on_text: Given the text of a lone prompt's response as it is made.
        on_response: Given each response when it is complete.

    Raises:
        UsageError, SelectionError, Unsupported: as `plan_arrays` and `read_prompts` raise them; nothing is written.
        RunExists, ConfigurationChanged, NumericError, OutOfSpace: as `generate` does.
    """
    if batch_size < 1:
        raise UsageError(f"`batch_size={batch_size}`", hint="give 1 or more")
    if model.dims.arch == "enc" or not model.model.can_generate():
        raise Unsupported(
            f"{model.name} generates no text", why="it has no decoder", hint="traceformer extract records encoders"
        )
    replay = replay or sampling.is_searched or "attn_scores" in selection.sites
    plan = plan_arrays(selection, model.model)
    if plan.left_out:
        warnings.warn(f"{model.name} has no {', '.join(plan.left_out)}: left out", stacklevel=2)
    read = read_prompts(model, prompts, max_tokens=sampling.max_tokens)
    most = _lengths(read, sampling)
    layout = RunLayout.plan(
        arch=model.dims.arch,
        arrays=plan.arrays,
        n_examples=len(read) * sampling.num_return_sequences,
        longest={stack: max(lengths) for stack, lengths in most.items()},
        mean={stack: fmean(lengths) for stack, lengths in most.items()},
        dtype=place.storage.dtype,
        shard_examples=min(batch_size, len(read)) * sampling.num_return_sequences,
    )
    name = f"{model.name}_{prompts.name}_generated_n{layout.n_examples}"
    meta = replace(model_meta(model, plan), capture=tuple(selection.capture), batch_size=min(batch_size, len(read)))
    meta = with_generation(meta, model, prompts, sampling, replay=replay, capture_steps=capture_steps)
    configuration = model_configuration(model, plan) | generation_configuration(model, prompts, sampling, replay=replay)
    with place.open(name, layout, meta, configuration, most) as writer:
        total = sum(len(layout.shard_range(shard)) for shard in writer.pending)
        counting = Counting(progress, total, lambda: writer.bytes_written)
        answering = _Answering(
            model, plan, sampling, None if replay else getattr(torch, layout.dtype), counting, on_text
        )
        with Pipeline(writer) as pipeline:
            for shard in writer.pending:
                batch = read[shard * batch_size : (shard + 1) * batch_size]
                responses = answering.respond(batch, sampling.seed + shard)
                made, rows = _completed(model, batch, responses, sampling, sampling.seed + shard, prompts.category)
                sink = pipeline.open_shard({stack: [row.length(stack) for row in rows] for stack in rows[0].ids})
                answering.fill(sink, responses, rows, batch_size)
                table = generation_table(made, rows, layout.shard_range(shard), sampling, replay=replay)
                pipeline.close_shard(shard, sink, table)
                counting.examples += len(rows)
                counting.tell("generating")
                for response in made:
                    on_response(response)
        counting.tell("finishing")
        return finished(writer)


def _lengths(prompts: Sequence[ReadPrompt], sampling: Sampling) -> dict[Stack, list[int]]:
    """The most tokens that each response and its prompt can have; an encoder-decoder's response has a start token."""
    [stack] = prompts[0].row.ids
    lengths = [prompt.row.length(stack) for prompt in prompts for _ in range(sampling.num_return_sequences)]
    if stack == "enc":
        return {"enc": lengths, "dec": [1 + sampling.max_tokens] * len(lengths)}
    return {"dec": [length + sampling.max_tokens for length in lengths]}


class _Answering:
    """One model answering batch after batch: observed token by token in a dtype, or, without one, replayed."""

    def __init__(
        self,
        model: LoadedModel,
        plan: Plan,
        sampling: Sampling,
        observed_in: torch.dtype | None,
        counting: Counting,
        on_text: Callable[[str], None] | None,
    ) -> None:
        self._model, self._plan, self._observed_in, self._counting = model, plan, observed_in, counting
        self._responder = Responder(model, sampling, on_step=self._step, on_text=on_text)

    def respond(self, prompts: Sequence[ReadPrompt], seed: int) -> Responses:
        before, rows = self._counting.tokens, [prompt.row for prompt in prompts]
        if self._observed_in is None:
            responses = self._responder.plain(rows, seed)
        else:
            responses = self._responder.observed(rows, seed, self._plan, self._observed_in)
        self._counting.tokens = before + sum(map(len, responses.tokens))  # without padding and lost beams
        return responses

    def fill(self, sink: ShardSink, responses: Responses, rows: Sequence[Encoded], batch_size: int) -> None:
        """Hands over what was observed, or records one pass over each finished text, as many at a time as prompts."""
        if responses.memory is None:
            batches = [range(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
            run_batches(self._model, self._plan, rows, batches, sink)
            return
        sink.begin(range(len(rows)), responses.spans)
        responses.memory.pour(sink, responses.spans)
        sink.end()

    def _step(self, tokens: int) -> None:
        self._counting.tokens += tokens
        self._counting.tell("generating")


def _completed(
    model: LoadedModel,
    prompts: Sequence[ReadPrompt],
    responses: Responses,
    sampling: Sampling,
    seed: int,
    category: str | None,
) -> tuple[list[Generated], list[Encoded]]:
    """Returns each response, and each whole row, prompt and response."""
    each = sampling.num_return_sequences
    made: list[Generated] = []
    rows: list[Encoded] = []
    for number, tokens in enumerate(responses.tokens):
        prompt = prompts[number // each]
        row, text = complete(model, prompt, tokens)
        rows.append(row)
        name = prompt.example_id if each == 1 else f"{prompt.example_id}-{number % each}"
        made.append(Generated(prompt, number % each, tokens, text, seed, name, category))
    return made, rows
