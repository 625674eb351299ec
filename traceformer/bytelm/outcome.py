"""What training made: its figures, the card that stands beside the model, and the picture of the loss."""

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from traceformer.bytelm.settings import TrainSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Figures", "Outcome", "curves_figure", "draw_curves", "model_card"]

_SIZE = (7.0, 4.0)  # inches
_DOTS_PER_INCH = 150


class Figures(NamedTuple):
    """Bits per byte on one text: of the model as it is saved, and of what it stands beside.

    `ngram` is the order-5 model trained on the same bytes; None where they are more than it is given.
    """

    model: float
    xz: float
    ngram: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training made. A curve is (step, bits per byte); that of training is an average since the point before.

    `bytes_read` are those of the whole training; `seconds` and `bytes_per_second` those since the last resumption.
    `test` is None where the split has no test text. `data` says what was read, to the version and the digest.
    """

    folder: Path
    data: str
    parameters: int
    steps: int
    bytes_read: int
    seconds: float
    bytes_per_second: float
    validation: Figures
    test: Figures | None
    train_curve: list[tuple[int, float]]
    validation_curve: list[tuple[int, float]]

    def to_json(self) -> dict[str, Any]:
        figures = {
            name: each and each._asdict() for name, each in (("validation", self.validation), ("test", self.test))
        }
        return {**asdict(self), "folder": str(self.folder), **figures}


def model_card(settings: TrainSettings, outcome: Outcome, command: str) -> str:
    """Returns the README.md of a model: what made it, from what, and how good it is beside the baselines."""
    texts = [("validation", outcome.validation), *([("test", outcome.test)] if outcome.test else [])]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [byte-level, {settings.attention}-attention, interpretability]
---

# {settings.preset}, {settings.attention} attention

A byte-level language model with {outcome.parameters:,} parameters, made by

    {command}

which read {outcome.bytes_read:,} bytes of text in {outcome.steps:,} steps, with seed {settings.seed}.
Data: {outcome.data}; {_split_in_words(settings)}.

| bits per byte on held-out text | {" | ".join(name for name, _ in texts)} |
|---|{"--:|" * len(texts)}
{_row("this model", [f"{figures.model:.3f}" for _, figures in texts])}
{_row("`xz -9` on the same text", [f"{figures.xz:.3f}" for _, figures in texts])}
{_row("order-5 n-gram model (Witten-Bell), trained on the same bytes", [_ngram(figures) for _, figures in texts])}

Ends of documents are counted. Each byte is predicted from those before it in windows of the training's length.
`training.json` holds all settings and figures, `loss.png` the curve.

```python
{"import traceformer.bytelm  # makes the sparse architecture known" if settings.attention == "sparse" else ""}
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
```
""".replace("```python\n\n", "```python\n")


def _split_in_words(settings: TrainSettings) -> str:
    if settings.split == "thesis":
        return "90 % for training, 10 % for validation"
    return "90 % for training, 5 % for validation, 5 % for testing"


def _row(name: str, cells: list[str]) -> str:
    return f"| {' | '.join((name, *cells))} |"


def _ngram(figures: Figures) -> str:
    return "-" if figures.ngram is None else f"{figures.ngram:.3f}"


def draw_curves(outcome: Outcome, path: Path) -> None:
    """Saves the figure of a training as a PNG."""
    picture = io.BytesIO()
    curves_figure(outcome).savefig(picture, format="png", dpi=_DOTS_PER_INCH)
    path.write_bytes(picture.getvalue())


def curves_figure(outcome: Outcome) -> "Figure":
    """Returns bits per byte along the steps of training as a matplotlib figure, with the baselines as lines.

    Every validation point is within it; of the training curve the first steps may lie above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*outcome.train_curve, strict=True), color="0.6", linewidth=1, label="training")
    axes.plot(*zip(*outcome.validation_curve, strict=True), color="C0", marker="o", markersize=4, label="validation")
    axes.axhline(outcome.validation.xz, color="C1", linestyle="--", linewidth=1, label="xz -9")
    if outcome.validation.ngram is not None:
        axes.axhline(outcome.validation.ngram, color="C2", linestyle=":", linewidth=1, label="order-5 n-grams")
    values = [*outcome.train_curve, *outcome.validation_curve]
    lowest = min(outcome.validation.xz, outcome.validation.ngram or math.inf, *(value for _, value in values))
    highest = max(5.0, *(value + 0.3 for _, value in outcome.validation_curve))
    axes.set(xlabel="step", ylabel="bits per byte", ylim=(max(0.0, lowest - 0.2), highest))
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    return figure
