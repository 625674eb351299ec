"""`traceformer generate`: its flags, the text as it is made, and what was recorded of it."""

import json as json_text
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from traceformer.cli.arguments import FOLDER_ON_DISK, Indices, count
from traceformer.cli.choices import (
    CHOOSE,
    HOW,
    MODEL,
    PROMPTS,
    RECORD,
    SEVERAL,
    WHERE,
    DerivedChoice,
    EngineChoice,
    Loading,
    PlaceChoice,
    sites_in,
)
from traceformer.cli.stopping import keeping
from traceformer.errors import UsageError
from traceformer.progress import LOADING, OnProgress, Progress, Totals, progress_shown
from traceformer.sites import Selection
from traceformer.store.names import TRACES
from traceformer.texts.shown import printable
from traceformer.units import amount_of_bytes, duration

if TYPE_CHECKING:
    from traceformer.capture.generation.described import Generated
    from traceformer.capture.generation.prompts import Prompts
    from traceformer.capture.generation.sampling import Sampling
    from traceformer.models.loaded import LoadedModel
    from traceformer.store.run import Run

__all__ = ["generate"]

_DEFAULT = ("attn", "token_embed", "norms", "attn_out", "mlp_out", "logits")  # what a nanochat trace holds
_OF_PROMPT_SETS = ("attn", "resid")  # what the Gemma capture keeps
_Indices = Annotated[Indices, Parameter(group=RECORD)]


@Parameter(name="*", group=PROMPTS)
@dataclass(frozen=True, slots=True, kw_only=True)
class PromptChoice:
    """What a model is to answer."""

    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True, metavar="TEXT")] = None
    """The prompt."""
    prompts: Annotated[Path | None, Parameter(metavar="FILE")] = None
    """A file of prompts: .txt (one per line), .jsonl (with text or messages), or .json (a prompt set)."""
    prompt_set: Annotated[str | None, Parameter(metavar="NAME|FILE")] = None
    """A prompt set by its name, or in a .json file."""
    all_prompt_sets: bool = False
    """Every prompt set that has a name."""
    category: Annotated[str | None, Parameter(metavar="LABEL")] = None
    """A label for the run's responses, to filter by."""
    chat: Annotated[bool, Parameter(negative="--no-chat")] = False
    """Put each prompt into the model's chat template."""

    def read(self) -> "Prompts":
        """Returns the prompts that are meant.

        Raises:
            UsageError: none are named, or in several ways.
            NotFound, Unreadable: a file or set that is not there, or malformed.
        """
        from traceformer.capture.generation.prompts import Prompts
        from traceformer.texts.prompts import all_prompt_sets, load_prompt_set, load_prompts, one_prompt

        ways = (self.prompt, self.prompts, self.prompt_set, self.all_prompt_sets or None)
        if sum(way is not None for way in ways) != 1:
            raise UsageError(
                "no prompt" if not any(way is not None for way in ways) else "prompts are named in several ways",
                hint="give one of --prompt, --prompts, --prompt-set and --all-prompt-sets",
            )
        if self.all_prompt_sets:
            return Prompts(all_prompt_sets(), self.chat, self.category)
        if self.prompt is not None:
            return Prompts((one_prompt(self.prompt),), self.chat, self.category)
        found = load_prompt_set(self.prompt_set or "") if self.prompts is None else load_prompts(self.prompts)
        return Prompts((found,), self.chat, self.category)


@Parameter(name="*", group=CHOOSE)
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingChoice:
    """How tokens are chosen."""

    max_tokens: Annotated[int | None, count("N")] = None
    """The most tokens of a response; by the model's own settings, else 50."""
    temperature: float | None = None
    """How freely to choose; 0 takes the most likely token. By the model's own settings, else 0.6."""
    top_k: Annotated[int | None, count("K", least=0)] = None
    """Choose among the K most likely tokens; 0 for all. By the model's own settings, else 50."""
    top_p: float | None = None
    """Choose among the most likely tokens that have this probability together."""
    seed: Annotated[int, count("N", least=0)] = 42
    """Of the first batch; batch k has seed + k."""
    stop: Annotated[tuple[str, ...], Parameter(metavar="TEXT...", show_default=False), SEVERAL] = ()
    """End a response at any of these strings."""
    num_return_sequences: Annotated[int | None, count("N")] = None
    """Responses per prompt; by the model's own settings, else 1."""
    num_beams: Annotated[int | None, count("N")] = None
    """Search with this many beams; by the model's own settings, else 1."""

    def sampling(self, model: "LoadedModel | None" = None) -> "Sampling":
        """Returns what is asked for, with what a model's own settings say beside it."""
        from traceformer.capture.generation.sampling import Sampling

        return Sampling.of(model, **{name: getattr(self, name) for name in SamplingChoice.__slots__})


def generate(
    *,
    model: Annotated[str | None, Parameter(group=MODEL)] = None,
    source: Annotated[Literal["base", "mid", "sft", "rl"] | None, Parameter(group=MODEL)] = None,
    model_tag: Annotated[str | None, Parameter(group=MODEL)] = None,
    step: Annotated[int | None, Parameter(group=MODEL), count("N", least=0)] = None,
    asked: PromptChoice = PromptChoice(),
    loading: Loading = Loading(),  # noqa: B008
    choosing: SamplingChoice = SamplingChoice(),
    sites: Annotated[
        tuple[str, ...],
        Parameter(name=("--sites", "--capture"), group=RECORD, metavar="SITE...", show_default=False),
        SEVERAL,
    ] = (),
    layers: _Indices = None,
    heads: _Indices = None,
    layer_internals: Annotated[tuple[str, ...], Parameter(group=RECORD, metavar="I|all"), SEVERAL] = (),
    computed: DerivedChoice = DerivedChoice(),  # noqa: B008
    steer: Annotated[tuple[str, ...], Parameter(group=CHOOSE, metavar="FILE:SCALE[@LAYER]"), SEVERAL] = (),
    capture_steps: Annotated[bool, Parameter(group=RECORD)] = False,
    replay: Annotated[bool, Parameter(group=RECORD)] = False,
    experiment: Annotated[Path | None, FOLDER_ON_DISK, Parameter(group=WHERE)] = None,
    where: PlaceChoice = PlaceChoice(),  # noqa: B008
    batch_size: Annotated[int, Parameter(group=HOW), count("N")] = 8,
    engine: EngineChoice = EngineChoice(),  # noqa: B008
    json: Annotated[bool, Parameter(group=HOW)] = False,
) -> None:
    """Let a model answer prompts, and record what happens inside it, token by token.

    The text streams to the terminal as it is made; prompt and response go to one run, in ./traces or --experiment.
    Recording changes no token. What is left open is as the model's own generation_config.json says.

    Example: `traceformer generate --model byte --prompt "If the argument is not" --max-tokens 60`

    Args:
        model: A Hugging Face model name, a folder that holds a model, or byte.
        source: In place of --model, the stage of a nanochat checkpoint.
        model_tag: Which nanochat model, such as d20; the one with most layers by default.
        step: Which of its checkpoints; the last one by default.
        sites: Groups attn qkv hidden resid mlp norms internals logits all, or names of sites. By default attn
            token_embed norms attn_out mlp_out logits; of prompt sets attn resid.
        layers: Which layers; all of them by default.
        heads: Which heads; all of them by default.
        steer: Add SCALE times the vector in FILE to the residual stream, from the prompt's last token on, at LAYER, or
            the layer that it was fitted at.
        layer_internals: Record the group internals of these layers, in place of --sites and --layers.
        capture_steps: Have exports write every step's own view as well; it takes no space here.
        replay: Record one pass over each finished text instead. Beams and several responses always are.
        experiment: A folder of runs, to put this one into.
        batch_size: Prompts at a time.
        json: Print the outcome as a JSON object.
    """
    names, derived = sites_in(sites), computed.derived()
    if layer_internals:
        if names or layers is not None:
            raise UsageError("--layer-internals says what to record", hint="leave --sites and --layers away")
        names, layers = ("internals",), None if "all" in layer_internals else ",".join(layer_internals)
    if not names and not derived:
        names = _OF_PROMPT_SETS if asked.prompt_set is not None or asked.all_prompt_sets else _DEFAULT
    selection = Selection.of(names, layers=layers, heads=heads, derived=derived)

    if (model is None) == (source is None):
        raise UsageError("no model" if model is None else "both --model and --source", hint="give --model or --source")
    if source is None and not (model_tag is None and step is None):
        raise UsageError("--model-tag and --step belong to --source")
    if experiment is not None and where.out_dir is not None:
        raise UsageError("both --experiment and --out-dir", hint=f"--out-dir {experiment / where.out_dir.name}")
    place = where.place(experiment or TRACES)

    from traceformer.capture.edits.session import edit
    from traceformer.capture.generation import generate as generation
    from traceformer.questions.edits import as_steering

    workers = engine.chosen()
    if workers is not None and steer:
        raise UsageError("--steer with --engine", why="workers load models as they are", hint="leave one of them")
    choosing.sampling()  # what makes no sense is said before the model is loaded
    totals, shown = Totals(), list[str]()
    responses: list[Generated] = []
    streams = (
        workers is None
        and asked.prompt is not None
        and (choosing.num_beams or 1) == (choosing.num_return_sequences or 1) == 1
    )
    shown_as = _text_shown if streams else progress_shown
    with keeping("what was finished is kept"), shown_as(totals) as progress:

        def stream(text: str) -> None:
            shown.append(text)
            _stream(text)

        def keep(response: "Generated") -> None:
            responses.append(response)
            if not shown:
                print(f"{response.example_id}: {_shortened(response.text)}", file=sys.stderr)

        progress(LOADING)
        prompts = asked.read()
        edits = [as_steering(each) for each in steer]
        load = partial(loading.load, model or _checkpoint(source, model_tag, step), with_head=True)
        how: dict[str, Any] = {"batch_size": batch_size, "replay": replay, "capture_steps": capture_steps}
        if workers is not None:
            run = generation.answer_on(
                workers, load, choosing.sampling, prompts, selection, place, **how, progress=progress
            )
        else:
            loaded = load()
            with edit(loaded, *edits) if edits else nullcontext():
                run = generation.answer(
                    loaded,
                    prompts,
                    selection,
                    place,
                    sampling=choosing.sampling(loaded),
                    **how,
                    progress=progress,
                    on_text=stream if streams else None,
                    on_response=keep,
                )
    if json:
        told = [_told(response) for response in responses] if workers is None else _told_of_run(run)
        print(json_text.dumps({"run": str(run.folder), **asdict(totals), "responses": told}, indent=2))
        return
    responses_made = f"{totals.examples} response{'' if totals.examples == 1 else 's'}"
    print(
        f"{responses_made}, {totals.tokens} tokens, {amount_of_bytes(totals.bytes)} written in "
        f"{duration(totals.seconds)}; next: traceformer analyze {run.folder}",
        file=sys.stderr,
    )
    print(run.folder)


def _checkpoint(source: str | None, model_tag: str | None, step: int | None) -> str:
    from traceformer.models.nanochat import find_checkpoint

    return str(find_checkpoint(source or "", model_tag, step))


@contextmanager
def _text_shown(totals: Totals) -> Generator[OnProgress]:
    """Yields a callback that keeps `totals` and only says that the model is loading, so that the text stands alone."""

    def note(progress: Progress) -> None:
        if progress.is_notice:
            print(progress.message, file=sys.stderr)
        if progress.message == "loading":
            print("loading", file=sys.stderr, flush=True)
        totals.examples, totals.tokens = progress.examples_done, progress.tokens_done
        totals.bytes, totals.seconds = progress.bytes_written, progress.seconds

    yield note


def _stream(text: str) -> None:
    # No token may steer the terminal, but a response has lines.
    shown = "".join(c if c in "\n\t" else printable(c) for c in text)
    print(shown, end="", file=sys.stderr, flush=True)


def _shortened(text: str) -> str:
    line = printable(text.strip())
    return line if len(line) <= 100 else line[:99] + "…"


def _told_of_run(run: "Run") -> list[dict[str, Any]]:
    """The same of all responses of a run, where others have made them."""
    length = "n_tokens" if run.arch == "dec" else "dec_n_tokens"
    return [
        {
            "example_id": row["example_id"],
            "prompt": row["prompt"],
            "response": row["response"],
            "tokens": row[length] - row["n_prompt"],
            "seed": row["seed"],
        }
        for row in run.table.select(["example_id", "prompt", "response", length, "n_prompt", "seed"]).to_pylist()
    ]


def _told(response: "Generated") -> dict[str, Any]:
    return {
        "example_id": response.example_id,
        "prompt": response.prompt.prompt.text,
        "response": response.text,
        "tokens": len(response.tokens),
        "seed": response.seed,
    }
