"""Measures how the cost of recording grows: with tokens, with their number in a text, and with what is selected.

    python benchmarks/growth.py [--json FILE] [--folder FOLDER] [--figures FOLDER] [--turns 3] [--quick]

Each figure is what a durable recording took over the plain forward pass of the same texts, in the same turn. Tokens:
`byte`, texts of 128 tokens, patterns of nine heads and one layer's residual stream. Length and selection: GPT-2 small's
shape with random weights.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from extract import HEADS_3X3, Bench, make_model
from table import Ratios, Row, in_turn, main, row, took

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH = 128
TOKENS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
NINE_OF_BYTE = {"layers": {"dec": (0, 1, 2)}, "heads": {"dec": (0, 1, 7)}}
SHAPES = ((8, 128, 4), (4, 256, 4), (2, 512, 4), (1, 1024, 4), (1, 2048, 2), (1, 4096, 1), (1, 8192, 1))
LAYERS = (1, 2, 4, 8, 12)
HEADS = (1, 4, 12)


def by_tokens(folder: Path, turns: int, quick: bool) -> Iterator[tuple[int, Ratios, float]]:
    """Yields numbers of tokens, what recording them takes over the plain pass, and its microseconds a token."""
    for n_tokens in TOKENS[:2] if quick else TOKENS:
        bench = Bench(folder, "byte", 8, LENGTH, -(-n_tokens // (8 * LENGTH)))
        record = bench.recording(("attn", "resid_post"), **NINE_OF_BYTE)
        ratios, walls = Ratios(), list[float]()
        for _ in range(turns):
            base, own = took(bench.plain), took(record)
            ratios.add(own, base)
            walls.append(own.wall)
            bench.delete()
        yield n_tokens, ratios, 1e6 * sorted(walls)[len(walls) // 2] / (8 * LENGTH * bench.n_batches)


def by_length(folder: Path, model: Path, turns: int, quick: bool) -> Iterator[tuple[int, Ratios]]:
    """Yields lengths of texts, and what nine heads' patterns take over the plain pass."""
    for batch, n_tokens, n_batches in SHAPES[:2] if quick else SHAPES:
        bench = Bench(folder, model, batch, n_tokens, n_batches)
        work = {"heads": bench.recording(("attn",), **HEADS_3X3)}
        yield n_tokens, in_turn(bench.plain, work, turns, between=bench.delete)["heads"]
        bench.delete()


def by_selection(folder: Path, model: Path, turns: int, quick: bool) -> Iterator[tuple[int, int, Ratios]]:
    """Yields how many layers and heads of each, and what their patterns take over the plain pass of 8 x 128 tokens."""
    bench = Bench(folder, model, 8, 128, 4)
    chosen = {(n, m): {"layers": {"dec": range(n)}, "heads": {"dec": range(m)}} for n in LAYERS for m in HEADS}
    chosen = dict(list(chosen.items())[:2]) if quick else chosen
    works = {f"{n} {m}": bench.recording(("attn",), **selected) for (n, m), selected in chosen.items()}
    ratios = in_turn(bench.plain, works, turns, between=bench.delete)
    for (n, m), values in zip(chosen, ratios.values(), strict=True):
        yield n, m, values


def draw(
    tokens: Mapping[int, float], lengths: Mapping[int, float], selections: Mapping[tuple[int, int], float]
) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(list(tokens), list(tokens.values()), marker="o")
    left.set(xscale="log", xlabel="tokens", ylabel="microseconds a token", title="byte, texts of 128 tokens")
    middle.plot(list(lengths), list(lengths.values()), marker="o")
    middle.set(xscale="log", xlabel="tokens of a text", ylabel="over the plain pass", title="nine heads of 144")
    middle.set_xticks(list(lengths), [str(each) for each in lengths], minor=False)
    middle.minorticks_off()
    for heads in sorted({heads for _, heads in selections}):
        line = {layers: value for (layers, own), value in selections.items() if own == heads}
        right.plot(list(line), list(line.values()), marker="o", label=f"{heads} heads" if heads > 1 else "1 head")
    right.set(xlabel="layers", ylabel="over the plain pass", title="patterns of 8 x 128 tokens")
    right.set_xticks(sorted({layers for layers, _ in selections}))
    right.legend()
    for each in (left, middle, right):
        each.set_ylim(0, 1.1 * each.get_ylim()[1])
    return figure


def measure(folder: Path, turns: int, quick: bool, figures: Path | None) -> Iterator[Row]:
    turns = 1 if quick else turns
    tokens: dict[int, float] = {}
    for n_tokens, ratios, each in by_tokens(folder, turns, quick):
        tokens[n_tokens] = each
        yield row(f"{n_tokens:,} tokens / plain", ratios, None, note=f"{each:.0f} us a token")
    most = max(tokens)
    yield row(f"a token of {most:,} over one of {min(tokens):,}", [tokens[most] / tokens[min(tokens)]], 1.0)
    model = make_model(folder / "gpt2-shape", positions=max(n_tokens for _, n_tokens, _ in SHAPES))
    lengths: dict[int, float] = {}
    for n_tokens, ratios in by_length(folder, model, turns, quick):
        yield (each := row(f"texts of {n_tokens} tokens, nine heads / plain", ratios, None))
        lengths[n_tokens] = each.value
    selections: dict[tuple[int, int], float] = {}
    for layers, heads, ratios in by_selection(folder, model, turns, quick):
        yield (each := row(f"8 x 128, {layers} layers x {heads} heads / plain", ratios, None))
        selections[layers, heads] = each.value
    if figures:
        from traceformer.figures.style import styled

        figures.mkdir(parents=True, exist_ok=True)
        styled(draw)(tokens, lengths, selections).savefig(figures / "growth.png", dpi=150)


if __name__ == "__main__":
    main(__doc__, measure, threads=os.cpu_count(), turns=3)
