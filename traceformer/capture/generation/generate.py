"""Prompts to a run.

1. `generate` takes what a person writes and makes values of it: a model, prompts, how tokens are chosen, a selection, a
   place.
2. `answer` has it prepared (`answers`), and goes shard by shard. A shard is one batch, whose lengths are known when it
   is answered; it is written while the next batch runs.
3. When every shard is committed the run is finished, as an extraction's is.

Batches follow the order of the prompts and batch k is seeded with seed + k, so that an interrupted run resumes to
the same responses.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from traceformer.capture.derived import LensTopK, Traits
from traceformer.capture.edits.session import check_resumed, edits_of, warn_of_untouched
from traceformer.capture.generation.answers import answers_of, prepare_answers, sampling_by
from traceformer.capture.generation.described import Generated
from traceformer.capture.generation.prompts import Prompts
from traceformer.capture.generation.sampling import Sampling
from traceformer.capture.workers.driving import record_on
from traceformer.capture.workers.engine import Engine, Ray, as_engine, check_apart
from traceformer.errors import UsageError
from traceformer.models.load import as_loaded, load_model
from traceformer.models.loaded import LoadedModel
from traceformer.progress import Counting, OnProgress, quiet, watched
from traceformer.sites import Numbers, Selection, Stack
from traceformer.store.names import Dtype, RowsCodec
from traceformer.store.objects.path import as_path
from traceformer.store.place import Place, Storage
from traceformer.store.run import Run
from traceformer.texts.chats import Message
from traceformer.texts.prompts import PromptSet, listed_prompts, load_prompts, one_prompt

__all__ = ["answer", "answer_on", "generate"]


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
    rows_codec: RowsCodec = "exact",
    keep_duplicates: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    thumbnails: bool = False,
    batch_size: int = 8,
    engine: Engine = None,
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
        rows_codec: q8 stores activations in 0.53 of float16's bytes: see `record`.
        keep_duplicates: Store rows that are equal to another array's once more.
        resume: Go on with an interrupted run.
        overwrite: Replace a finished run.
        thumbnails: Draw all heads in small once the run is finished.
        batch_size: Prompts at a time.
        engine: As of `record`: workers answer, a batch of prompts at a time each.
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
    folder = None if out is None else as_path(out)
    place = Place(
        folder=folder,
        resume=resume,
        overwrite=overwrite,
        storage=Storage(dtype, keep_duplicates=keep_duplicates, rows_codec=rows_codec),
        thumbnails=thumbnails,
    )
    place.check()
    asked = Prompts((_set_of(prompts),), chat, category)
    workers = as_engine(engine)
    with watched(progress) as shown:
        if workers is not None:
            load = partial(load_model, check_apart(model), with_head=True)
            choose = partial(sampling_by, given)
            return answer_on(
                workers, load, choose, asked, selection, place, batch_size=batch_size, replay=replay, progress=shown
            )
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
    if isinstance(prompts, Path):
        return load_prompts(prompts)
    if not hasattr(prompts, "__len__"):
        raise UsageError(f"`prompts`: {type(prompts).__name__}", hint="text, a list of texts, or the path of a file")
    return listed_prompts(prompts)


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
    if place.resume:
        check_resumed(edits_of(model.model))
    answers = prepare_answers(
        model,
        prompts,
        selection,
        place.storage,
        sampling=sampling,
        batch_size=batch_size,
        replay=replay,
        capture_steps=capture_steps,
        progress=progress,
    )
    with answers.open(place) as writer:
        pending = writer.pending
        counting = Counting(progress, answers.n_examples(pending), lambda: writer.bytes_written)
        answers.record(writer, writer.claims(), counting, on_text=on_text, on_response=on_response)
        if len(pending) == answers.layout.n_shards:
            warn_of_untouched(model.model)
        counting.tell("finishing")
        return place.finish(writer, lambda done, of: counting.tell(f"drawing {done} of {of}"))


def answer_on(
    engine: Ray,
    load: Callable[[], LoadedModel],
    choose: Callable[[LoadedModel], Sampling],
    prompts: Prompts,
    selection: Selection,
    place: Place,
    *,
    batch_size: int = 8,
    replay: bool = False,
    capture_steps: bool = False,
    progress: OnProgress = quiet,
) -> Run:
    """Returns the run of answers that the workers of an engine have made together: those of one process.

    Args:
        engine: Which workers.
        load: Loads the model; called by each worker, so that it can be pickled.
        choose: How a model chooses tokens, likewise.
        prompts: What to answer.
        selection: What to record.
        place: Where the run goes: to a folder that all workers share.
        batch_size, replay, capture_steps, progress: As of `answer`.

    Raises:
        UsageError, SelectionError, Unsupported, RunExists, ConfigurationChanged, NumericError, OutOfSpace: as `answer`
            does, and as `record_on` does.
    """
    asked: dict[str, Any] = {"batch_size": batch_size, "replay": replay, "capture_steps": capture_steps}
    prepare = partial(answers_of, load, choose, prompts, selection=selection, storage=place.storage, **asked)
    return record_on(engine, prepare, place, progress)
