"""Measures how the cost of recording grows, and draws it: with tokens, with a text's length, with what is selected.

    python benchmarks/growth.py [--json FILE] [--folder FOLDER] [--figures docs/images] [--turns 3] [--quick]

1. Tokens, 10^4 to 10^6: attn qkv hidden resid of texts of 128 tokens, by a model of two layers of width 128 (GPT-2's
   would take an hour), in processor seconds per 1,000 tokens, beside those of the plain pass.
2. The length of one text, 128 to 8,192 tokens: patterns of 3 layers x 3 heads of GPT-2 small's shape, over the plain
   pass.
3. What is selected, 1 x 1 to 12 x 12 layers x heads: patterns of the same shape at 8 x 128 and 2 x 512, over the plain
   pass; the last layer is always among them, so that every pass goes to its end.

Each figure is the median of the turns, whose spread is drawn. Everything is written durably. Weights are random.
"""

import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract import EVERYTHING, HEADS_3X3, Bench, make_model
from table import Ratios, Row, delete, in_turn, main, row, took

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TURNS = 3
TOKENS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
SELECTED = (1, 2, 3, 6, 12)
SHAPES = ((8, 128), (2, 512))
SMALL = {"n_embd": 128, "n_head": 4, "n_layer": 2}


def measure_tokens(folder: Path, figures: Path | None, turns: int, quick: bool) -> Iterator[Row]:
    model = make_model(folder / "small", positions=128, **SMALL)
    per_token: dict[str, list[list[float]]] = {"plain pass": [], "recorded": []}
    sizes = TOKENS[:2] if quick else TOKENS
    for tokens in sizes:
        bench = Bench(folder, model, 16, 128, tokens // (16 * 128))
        works = {"plain pass": bench.plain, "recorded": bench.recording(EVERYTHING)}
        real = 16 * 128 * bench.n_batches
        times: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(1, 2) if tokens > TOKENS[2] else range(turns + 1):
            for name, work in works.items():
                bench.delete()
                own = took(work)
                if turn:  # the first one warms up; where there is one, the sizes before it did
                    times[name].append(1e6 * own.processor / real)
        bench.delete()
        for name, values in times.items():
            per_token[name].append(values)
            yield row(f"{real:,} tokens: {name}, processor seconds per 10^6 tokens", values, None)
    first, last = (statistics.median(per_token["recorded"][end]) for end in (0, -1))
    yield row(f"cost per token at {sizes[-1]:,} tokens over that at {sizes[0]:,}", [last / first], None)
    if figures is not None:
        figure = drawn(
            "tokens",
            "processor seconds per 10^6 tokens",
            sizes,
            per_token,
            "two layers of width 128, texts of 128 tokens",
        )
        save(figure, figures / "growth-tokens.png")


def measure_lengths(folder: Path, figures: Path | None, turns: int, quick: bool) -> Iterator[Row]:
    lengths = LENGTHS[:2] if quick else LENGTHS
    model = make_model(folder / "long", positions=lengths[-1])
    found: dict[str, list[list[float]]] = {"by the clock": [], "processor": []}
    for length in lengths:
        n_batches = max(1, 1024 // length)
        bench = Bench(folder, model, 1, length, n_batches)
        ratios = over_plain(bench, ("attn",), 1 if length > 4096 else turns, **HEADS_3X3)
        found["by the clock"].append(ratios.wall)
        found["processor"].append(ratios.processor)
        yield row(f"T = {length}: attn of 3 layers x 3 heads / plain", ratios, None)
    delete(folder / "long")
    if figures is not None:
        title = "patterns of 3 layers x 3 heads, GPT-2 small's shape, one text a pass"
        save(drawn("tokens of a text", "time over a plain pass", lengths, found, title), figures / "growth-length.png")


def measure_selected(folder: Path, figures: Path | None, turns: int, quick: bool) -> Iterator[Row]:
    model = make_model(folder / "gpt2-shape", positions=512)
    counts = SELECTED[:2] if quick else SELECTED
    found: dict[str, list[list[float]]] = {}
    for batch, length in SHAPES[:1] if quick else SHAPES:
        bench = Bench(folder, model, batch, length, 3)
        for count in counts:
            numbers = tuple(11 - step * (12 // count) for step in range(count))[::-1]
            ratios = over_plain(bench, ("attn",), turns, layers={"dec": numbers}, heads={"dec": numbers})
            found.setdefault(f"{batch} x {length} tokens", []).append(ratios.processor)
            yield row(f"{batch} x {length}: attn of {count} layers x {count} heads / plain", ratios, None)
    if figures is not None:
        title = "patterns, GPT-2 small's shape"
        across = [count**2 for count in counts]
        figure = drawn("layers x heads recorded", "processor time over a plain pass", across, found, title)
        save(figure, figures / "growth-selected.png")


def over_plain(bench: Bench, capture: tuple[str, ...], turns: int, **selected: Any) -> Ratios:
    works: dict[str, Callable[[], object]] = {"recorded": bench.recording(capture, **selected)}
    ratios = in_turn(bench.plain, works, turns, between=bench.delete)["recorded"]
    bench.delete()
    return ratios


def drawn(
    x: str, y: str, across: "tuple[int, ...] | list[int]", found: dict[str, list[list[float]]], title: str
) -> "Figure":
    """Returns a line for each of `found`, with the spread of its turns behind it; what is on the x axis doubles."""
    from matplotlib.figure import Figure

    from traceformer.figures.style import CLUSTERS

    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(found.items()):
        colour = CLUSTERS(number)
        axes.plot(across, [statistics.median(each) for each in values], "o-", color=colour, label=name, linewidth=1.4)
        axes.fill_between(across, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=10 if across[-1] > 100_000 else 2)
    axes.set_xticks([*across], [f"{each:,}" for each in across])
    axes.minorticks_off()
    axes.set_ylim(0, None)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8)
    return figure


def save(figure: "Figure", path: Path) -> None:
    from traceformer.figures.style import save as write

    write(figure, path, dpi=110)


if __name__ == "__main__":
    main(__doc__, measure_tokens, measure_lengths, measure_selected, threads=os.cpu_count(), turns=TURNS)
