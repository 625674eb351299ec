"""Measures fitted lenses against the logit lens, on rows that neither fitting nor choosing has seen, and their seconds.

    python benchmarks/lens.py [--json FILE] [--folder FOLDER] [--turns N] [--quick]

Of `byte` and `byte-sparse`, recorded to disk in float16 over the texts of the demo, and over consecutive windows of the
Python documentation that they were not trained on (validation text of `pydoc`). Each turn deals the examples anew, by
another seed; a figure is of the layer that does worst in a turn, the last layer apart, whose lens is the model itself.
One thread: so small a product is hardly faster on two, and beside other work much slower.
"""

from collections.abc import Iterator
from pathlib import Path

from table import Row, main, row, took

import traceformer as tf
from traceformer.bytelm.corpus import open_corpus

WINDOW, WINDOWS = 256, 256


def windows() -> list[list[int]]:
    """Returns token ids, which need no tokenizer."""
    text = open_corpus("pydoc").validation
    return [text.tokens(start, start + WINDOW).tolist() for start in range(0, WINDOW * WINDOWS, WINDOW)]


def measure(folder: Path, quick: bool, turns: int) -> Iterator[Row]:
    sources = {"demo": "demo"} if quick else {"demo": "demo", "pydoc": windows()}
    for name in ("byte", "byte-sparse"):
        for source, texts in sources.items():
            run = tf.record(name, texts, "resid_post", out=folder / f"{name}-{source}")
            yield from measure_run(f"{name}, {source}", run, 1 if quick else turns)


def measure_run(what: str, run: tf.Run, turns: int) -> Iterator[Row]:
    found: list[tf.Translators] = []
    times = [took(lambda seed=seed: found.append(tf.fit_lens(run, seed=seed))) for seed in range(turns)]
    figures = [lens.held_out for lens in found if lens.held_out is not None]
    ratios = [float((own.kl[:-1] / own.logit_kl[:-1]).max()) for own in figures]
    gains = [float((own.top1 - own.logit_top1)[:-1].min()) for own in figures]
    fitted, held_out = found[0].about["rows"]["fit"], figures[0].rows
    note = f"fitted on {fitted:,} rows, measured on {held_out:,}"
    yield row(f"{what}: held-out KL over the logit lens's, worst layer", ratios, 0.8, note=note)
    yield row(f"{what}: top-1 above the logit lens's, worst layer", gains, 0.0, at_least=True)
    for i, layer in enumerate(found[0].layers[:-1]):
        values = [float(own.kl[i] / own.logit_kl[i]) for own in figures]
        chosen = " ".join(own.chosen[i] for own in figures)
        yield row(f"  layer {layer}: held-out KL over the logit lens's", values, 0.8, note=chosen)
    yield row(f"{what}: seconds, from disk", [each.wall for each in times], 60)
    yield row(f"{what}: seconds of the processor", [each.processor for each in times], 60)


if __name__ == "__main__":
    main(__doc__, measure, threads=1, turns=5)
