"""`traceformer generate`: its flags, the text as it is made, and what was recorded of it."""

import json as json_text
import shlex
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import count
from traceformer.cli.progress import Totals, progress_shown
from traceformer.cli.units import amount_of_bytes, duration
from traceformer.errors import UsageError
from traceformer.sites import Selection, Stack, parse_indices
from traceformer.texts.shown import printable

if TYPE_CHECKING:
    from traceformer.capture.extract import Progress
    from traceformer.capture.generation.described import Generated

__all__ = ["generate"]

_MODEL = Group.create_ordered("The model")
_TEXTS = Group.create_ordered("What it answers")
_CHOOSE = Group.create_ordered("How tokens are chosen")
_RECORD = Group.create_ordered("What to record")
_WHERE = Group.create_ordered("Where it goes")
_HOW = Group.create_ordered("How it runs")

_DEFAULT = ("attn", "token_embed", "norms", "attn_out", "mlp_out", "logits")
_OF_PROMPT_SETS = ("attn", "resid")  # document 5's capture
_Several = Parameter(consume_multiple=(1, None))
_Indices = Annotated[str | None, Parameter(group=_RECORD, allow_leading_hyphen=True, metavar="I,J-K")]


def generate(
    *,
    model: Annotated[str | None, Parameter(group=_MODEL)] = None,
    source: Annotated[Literal["base", "mid", "sft", "rl"] | None, Parameter(group=_MODEL)] = None,
    model_tag: Annotated[str | None, Parameter(group=_MODEL)] = None,
    step: Annotated[int | None, Parameter(group=_MODEL), count("N", least=0)] = None,
    prompt: Annotated[str | None, Parameter(group=_TEXTS, allow_leading_hyphen=True, metavar="TEXT")] = None,
    prompts: Annotated[Path | None, Parameter(group=_TEXTS, metavar="FILE")] = None,
    prompt_set: Annotated[str | None, Parameter(group=_TEXTS, metavar="NAME|FILE")] = None,
    all_prompt_sets: Annotated[bool, Parameter(group=_TEXTS)] = False,
    category: Annotated[str | None, Parameter(group=_TEXTS, metavar="LABEL")] = None,
    chat: Annotated[bool, Parameter(group=_TEXTS, negative="--no-chat")] = False,
    revision: Annotated[str | None, Parameter(group=_MODEL)] = None,
    allow_pickle: Annotated[bool, Parameter(group=_MODEL)] = False,
    max_tokens: Annotated[int, Parameter(group=_CHOOSE), count("N")] = 50,
    temperature: Annotated[float, Parameter(group=_CHOOSE)] = 0.6,
    top_k: Annotated[int, Parameter(group=_CHOOSE), count("K", least=0)] = 50,
    top_p: Annotated[float | None, Parameter(group=_CHOOSE)] = None,
    seed: Annotated[int, Parameter(group=_CHOOSE), count("N", least=0)] = 42,
    stop: Annotated[tuple[str, ...], Parameter(group=_CHOOSE, metavar="TEXT...", show_default=False), _Several] = (),
    num_return_sequences: Annotated[int, Parameter(group=_CHOOSE), count("N")] = 1,
    num_beams: Annotated[int, Parameter(group=_CHOOSE), count("N")] = 1,
    sites: Annotated[
        tuple[str, ...],
        Parameter(name=("--sites", "--capture"), group=_RECORD, metavar="SITE...", show_default=False),
        _Several,
    ] = (),
    layers: _Indices = None,
    heads: _Indices = None,
    layer_internals: Annotated[tuple[str, ...], Parameter(group=_RECORD, metavar="I|all"), _Several] = (),
    project: Annotated[tuple[Path, ...], Parameter(group=_RECORD, metavar="FILE..."), _Several] = (),
    project_site: Annotated[str, Parameter(group=_RECORD, metavar="SITE")] = "resid_post",
    lens_top_k: Annotated[int | None, Parameter(group=_RECORD), count("K")] = None,
    capture_steps: Annotated[bool, Parameter(group=_RECORD)] = False,
    replay: Annotated[bool, Parameter(group=_RECORD)] = False,
    experiment: Annotated[Path | None, Parameter(group=_WHERE, metavar="DIR")] = None,
    out_dir: Annotated[Path | None, Parameter(group=_WHERE, metavar="DIR")] = None,
    dtype: Annotated[Literal["float16", "float32", "bfloat16"], Parameter(group=_WHERE)] = "float16",
    resume: Annotated[bool, Parameter(group=_WHERE)] = False,
    overwrite: Annotated[bool, Parameter(group=_WHERE)] = False,
    batch_size: Annotated[int, Parameter(group=_HOW), count("N")] = 8,
    device: Annotated[str | None, Parameter(group=_HOW)] = None,
    model_dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, Parameter(group=_HOW)] = None,
    json: Annotated[bool, Parameter(group=_HOW)] = False,
) -> None:
    """Let a model answer prompts, and record what happens inside it, token by token.

    The text streams to the terminal as it is made; prompt and response go to one run, in ./traces or --experiment.
    Recording changes no token.

    Example: `traceformer generate --model byte --prompt "If the argument is not" --max-tokens 60`

    Args:
        model: A Hugging Face model name, a folder that holds a model, or byte.
        source: In place of --model, the stage of a nanochat checkpoint.
        model_tag: Which nanochat model, such as d20; the one with most layers by default.
        step: Which of its checkpoints; the last one by default.
        prompt: The prompt.
        prompts: A file of prompts: .txt (one per line), .jsonl, or .json (a prompt set).
        prompt_set: A prompt set by its name, or in a .json file.
        all_prompt_sets: Every prompt set that has a name.
        category: A label for the run's responses, to filter by.
        chat: Put each prompt into the model's chat template.
        revision: The commit, tag or branch of the model on the Hub.
        allow_pickle: Load weights from pickle files, which can run code of whoever made them.
        max_tokens: The most tokens of a response.
        temperature: How freely to choose; 0 takes the most likely token.
        top_k: Choose among the K most likely tokens; 0 for all.
        top_p: Choose among the most likely tokens that have this probability together.
        seed: Of the first batch; batch k has seed + k.
        stop: End a response at any of these strings.
        num_return_sequences: Responses per prompt.
        num_beams: Search with this many beams.
        sites: Groups attn qkv hidden resid mlp norms internals logits all, or names of sites. By default attn
            token_embed norms attn_out mlp_out logits; of prompt sets attn resid.
        layers: Which layers; all of them by default.
        heads: Which heads; all of them by default.
        layer_internals: Record the group internals of these layers, in place of --sites and --layers.
        project: Record projections onto the trait vectors in these files; alone, unless --sites asks for more.
        project_site: What to project.
        lens_top_k: Record the K likeliest next tokens of each layer (lens); alone, unless --sites asks for more.
        capture_steps: Have exports write every step's own view as well; it takes no space here.
        replay: Record one pass over each finished text instead. Beams and several responses always are.
        experiment: A folder of runs, to put this one into.
        out_dir: The run's folder, in place of one named after time, model and prompts.
        dtype: How values are stored; one that float16 cannot hold stops the run.
        resume: Go on with an interrupted run of the same configuration.
        overwrite: Replace a finished run that is in the way.
        batch_size: Prompts at a time.
        device: cpu, cuda, cuda:1, mps; the fastest there is by default.
        model_dtype: What the model computes in; what its weights are stored in by default.
        json: Print the outcome as a JSON object.
    """
    asked = tuple(name for names in sites for name in names.split(",") if name)
    if layer_internals:
        if asked or layers is not None:
            raise UsageError("--layer-internals says what to record", hint="leave --sites and --layers away")
        asked, layers = ("internals",), None if "all" in layer_internals else ",".join(layer_internals)
    if not asked and not project and not lens_top_k:
        asked = _OF_PROMPT_SETS if prompt_set is not None or all_prompt_sets else _DEFAULT
    both: dict[Stack, tuple[int, ...] | None] = dict.fromkeys(("enc", "dec"), _indices(layers))
    both_heads: dict[Stack, tuple[int, ...] | None] = dict.fromkeys(("enc", "dec"), _indices(heads))
    selection = Selection(asked, both, both_heads)
    _ = selection.sites  # a misspelt site fails here, before torch is imported

    if (model is None) == (source is None):
        raise UsageError("no model" if model is None else "both --model and --source", hint="give --model or --source")
    if source is None and not (model_tag is None and step is None):
        raise UsageError("--model-tag and --step belong to --source")
    if experiment is not None and out_dir is not None:
        raise UsageError("both --experiment and --out-dir", hint=f"--out-dir {experiment / out_dir.name}")

    from traceformer.cli.project import read_traits

    traits = read_traits(project, project_site) if project else None

    from traceformer.capture.generation.generate import generate as run_generation
    from traceformer.capture.generation.prepare import GenerateRequest
    from traceformer.capture.generation.sampling import Sampling

    request = GenerateRequest(
        model=model or _checkpoint(source, model_tag, step),
        prompt=prompt,
        prompts=prompts,
        prompt_set=prompt_set,
        all_prompt_sets=all_prompt_sets,
        category=category,
        sampling=Sampling(max_tokens, temperature, top_k, top_p, num_return_sequences, num_beams, stop),
        seed=seed,
        chat=chat,
        selection=selection,
        traits=traits,
        lens_top_k=lens_top_k,
        capture_steps=capture_steps,
        replay=replay,
        batch_size=batch_size,
        dtype=dtype,
        experiment=experiment,
        out_dir=out_dir,
        device=device,
        model_dtype=model_dtype,
        revision=revision,
        allow_pickle=allow_pickle,
        resume=resume,
        overwrite=overwrite,
        command_line=shlex.join(["traceformer", *sys.argv[1:]]),
    )
    totals = Totals()
    responses: list[Generated] = []
    streams = prompt is not None and not request.sampling.is_searched
    try:
        with (_text_shown if streams else progress_shown)(totals) as progress:

            def keep(response: "Generated") -> None:
                responses.append(response)
                if not streams:
                    print(f"{response.example_id}: {_shortened(response.text)}", file=sys.stderr)

            folder = run_generation(request, progress, on_text=_stream if streams else None, on_response=keep)
    except KeyboardInterrupt as stop_:
        raise KeyboardInterrupt("interrupted; what was finished is kept", "the same command with --resume") from stop_
    if json:
        told = [_told(response) for response in responses]
        print(json_text.dumps({"run": str(folder), **asdict(totals), "responses": told}, indent=2))
        return
    responses_made = f"{totals.examples} response{'' if totals.examples == 1 else 's'}"
    print(
        f"{responses_made}, {totals.tokens} tokens, {amount_of_bytes(totals.bytes)} written in "
        f"{duration(totals.seconds)}; next: traceformer analyze {folder}",
        file=sys.stderr,
    )
    print(folder)


def _checkpoint(source: str | None, model_tag: str | None, step: int | None) -> str:
    from traceformer.models.nanochat import find_checkpoint

    return str(find_checkpoint(source or "", model_tag, step))


def _indices(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else parse_indices(text)


@contextmanager
def _text_shown(totals: Totals) -> "Generator[Callable[[Progress], None]]":
    """Yields a callback that keeps `totals` and only says that the model is loading, so that the text stands alone."""

    def note(progress: "Progress") -> None:
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


def _told(response: "Generated") -> dict[str, Any]:
    return {
        "example_id": response.example_id,
        "prompt": response.prompt.prompt.text,
        "response": response.text,
        "tokens": len(response.tokens),
        "seed": response.seed,
    }
