"""`traceformer dose`: how far steering moves a trait in what a model writes, and what it costs in fluency."""

import json as json_text
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from traceformer.cli.arguments import FILE_ON_DISK, count
from traceformer.cli.choices import Loading
from traceformer.cli.terminal import table
from traceformer.progress import steps_shown
from traceformer.texts.shown import printable

if TYPE_CHECKING:
    from traceformer.analysis.dose import Dose
    from traceformer.texts.prompts import PromptSet

__all__ = ["dose"]

_SHOWN = 44  # characters of a response


def dose(
    model: Annotated[str, Parameter(name="MODEL")],
    prompts: Annotated[str, Parameter(name="PROMPTS")],
    /,
    *,
    direction: Annotated[Path, Parameter(metavar="FILE")],
    scales: Annotated[tuple[float, ...], Parameter(consume_multiple=(1, None), metavar="NUMBER...")],
    layer: int | None = None,
    max_tokens: Annotated[int | None, count("N")] = None,
    temperature: float | None = None,
    num_return_sequences: Annotated[int | None, count("N")] = None,
    seed: Annotated[int, count("N", least=0)] = 42,
    chat: bool = False,
    loading: Loading = Loading(),  # noqa: B008
    batch_size: Annotated[int, count("N")] = 8,
    png: Annotated[Path | None, FILE_ON_DISK] = None,
    json: bool = False,
) -> None:
    """How far steering moves a trait in what a model writes, and what it costs in fluency.

    At each scale the model answers all prompts while the direction is added to its residual stream. The responses are
    then read by the model as it is: the projection says how much of the trait is in them, the mean log-probability of
    their tokens how natural they are. Printed is a line per scale, with the beginning of the first response.

    Example: `traceformer dose byte dynamic --direction errors.safetensors --scales -40 0 40`

    Args:
        model: A Hugging Face model name, a folder that holds a model, or byte.
        prompts: A file of prompts (.txt, .jsonl, .json), or the name of a prompt set.
        direction: A file of the trait's vector, .safetensors, .npy or .pt; see vectors fit.
        scales: How often the vector is added, as it is; 0 is the model as it is.
        layer: At which layer; by default the one that the direction was fitted at, of several the best.
        max_tokens: The most tokens of a response; by the model's own settings, else 50.
        temperature: How freely to choose; 0 takes the most likely token. By the model's own settings, else 0.6.
        num_return_sequences: Responses per prompt; by the model's own settings, else 1.
        seed: Of the first batch, the same at each scale.
        chat: Put each prompt into the model's chat template.
        batch_size: Prompts at a time.
        png: Save a picture of both curves, in the format that the ending names.
        json: Print a JSON object, with all responses.
    """
    from traceformer.questions.dose import dose as measure

    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    asked = _prompts(prompts)
    with steps_shown("steering") as progress:
        found = measure(
            loading.load(model, with_head=True),
            asked,
            direction,
            scales,
            layer=layer,
            max_tokens=max_tokens,
            temperature=temperature,
            num_return_sequences=num_return_sequences,
            seed=seed,
            chat=chat,
            batch_size=batch_size,
            progress=progress,
        )
    if png is not None:
        from traceformer import figures
        from traceformer.figures.style import save

        save(figures.dose(found), png)
    if json:
        print(json_text.dumps(found.to_json(), indent=2))
        return
    print(_told(found))
    made = "" if png is None else f"wrote {png}; "
    steer = f"--steer {direction}:{found.scales[-1]:g}@{found.about.layer}"
    print(f'{made}next: traceformer generate --model {model} --prompt "..." {steer}', file=sys.stderr)


def _prompts(name: str) -> "PromptSet":
    from traceformer.texts.prompts import load_prompt_set, load_prompts

    is_file = Path(name).suffix in (".txt", ".jsonl")
    return load_prompts(Path(name)) if is_file else load_prompt_set(name)


def _told(found: "Dose") -> str:
    about = found.about
    summary = found.summary()
    figures = zip(summary["scale"], summary["projection"], summary["log_prob"], found.texts, strict=True)
    rows: list[tuple[Any, ...]] = [
        (f"{scale:g}", f"{projection:.3f}", f"{log_prob:.3f}", _beginning(texts[0]))
        for scale, projection, log_prob, texts in figures
    ]
    title = (
        f"{about.model}  {about.direction} (norm {about.norm:.3g}) added to {about.site} of layer {about.layer}: "
        f"{len(found.names)} response{'s' * (len(found.names) != 1)} at each scale, read unsteered"
    )
    rises = f"the projection {'rises' if found.rises else 'does not rise'} with every step"
    rises = rises if len(found.scales) > 1 else "one scale: more of them say whether the projection rises"
    lines = table(("scale", "projection", "log prob", printable(found.names[0])), rows, numeric=(0, 1, 2))
    return f"{title}\n\n{lines}\n\n{rises}"


def _beginning(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
