"""Two runs compared, as text."""

from collections.abc import Sequence

import numpy as np

from traceformer.analysis.comparison import Comparison, HeadDistances, ReadoutDivergence, StreamSimilarity
from traceformer.cli.terminal import table
from traceformer.shapes import Float64
from traceformer.texts.shown import printable, visible

__all__ = ["as_text"]

_MOST = 12  # layers in a row of a table
_NAMED = 8  # heads, and tokens, that are listed
_HOW = {
    None: "tokens, the same in both",
    "characters": "pieces that tokens of both end",
    "start": "tokens that both begin with",
}


def as_text(found: Comparison) -> str:
    """Returns what was compared, part by part, and what was left out."""
    about = found.about
    runs = [
        (letter, printable(name), printable(model or ""))
        for letter, name, model in zip("AB", about.runs, about.models, strict=True)
    ]
    counts = f"{about.texts} text{'s' * (about.texts != 1)}, {about.tokens:,} {_HOW[about.align]}"
    parts = [table(("", "run", "model"), runs) + f"\n{counts}"]
    if found.readouts is not None:
        parts.append(_readouts(found.readouts))
    if found.streams is not None:
        parts.append(_streams(found.streams))
    if found.heads is not None:
        parts.append(_heads(found.heads))
    parts += [f"{part} left out: {printable(why)}" for part, why in found.left_out.items()]
    return "\n\n".join(parts)


def _readouts(found: ReadoutDivergence) -> str:
    lines = [
        f"readouts ({', '.join(found.sources)}): KL(A, B) {found.kl_ab:.4g} nats, KL(B, A) {found.kl_ba:.4g}, "
        f"the same likeliest token at {found.same_top:.1%} of {found.tokens:,}{_unknown(found.unknown)}"
    ]
    rows = [
        (printable(each.example_id), str(each.position), visible(each.token), f"{each.kl_ab:.3g}", f"{each.kl_ba:.3g}")
        for each in found.most_apart[:_NAMED]
    ]
    if rows and found.most_apart[0].kl_ab > 0:
        lines.append(table(("most apart after", "position", "token", "KL(A, B)", "KL(B, A)"), rows, numeric=(1, 3, 4)))
    return "\n".join(lines)


def _streams(found: StreamSimilarity) -> str:
    title = f"streams {found.key}, {found.tokens:,} tokens{_unknown(found.unknown)}; rows are layers of A"
    maps = (("CKA", found.cka), ("Procrustes", found.procrustes))
    return "\n".join([title, *(_map(found, name, cells) for name, cells in maps)])


def _map(found: StreamSimilarity, name: str, cells: Float64[np.ndarray, "layer other"]) -> str:
    shown = _spread(len(found.layers_b))
    headers = (name, *(_layer(found.layers_b[i], "B") for i in shown))
    rows = [
        (_layer(layer, "A"), *(_number(float(cells[i, j])) for j in shown)) for i, layer in enumerate(found.layers_a)
    ]
    return table(headers, rows, numeric=range(1, len(headers)))


def _spread(count: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, _MOST))})


def _layer(layer: int | None, of: str) -> str:
    return of if layer is None else f"{of} L{layer}"


def _heads(found: HeadDistances) -> str:
    title = f"heads {found.key}, {found.queries:,} queries{_unknown(found.unknown)}"
    if found.all_pairs:
        nearest = found.nearest
        rows = [
            (_head(head), _head(found.heads_b[place]), _number(float(found.total_variation[i, place])))
            for i, (head, place) in enumerate(zip(found.heads_a, nearest, strict=True))
        ]
        return f"{title}; of each head of A the nearest of B\n" + table(
            ("A", "B", "total variation"), rows, numeric=(2,)
        )
    bits = found.jensen_shannon
    assert bits is not None, "heads of one number have it"
    order = np.argsort(-found.total_variation, kind="stable").tolist()
    rows = [(_head(found.heads_a[i]), _number(float(found.total_variation[i])), _number(float(bits[i]))) for i in order]
    shown, left = rows[:_NAMED], len(rows) - _NAMED
    layers = sorted({layer for layer, _ in found.heads_a})
    means = [
        (
            f"L{layer}",
            _number(_mean(found.total_variation, found.heads_a, layer)),
            _number(_mean(bits, found.heads_a, layer)),
        )
        for layer in layers
    ]
    headers = ("total variation", "Jensen-Shannon (bits)")
    more = f"\n{left} more heads are nearer; --json has all" if left > 0 else ""
    by_layer = table(("layer, mean", *headers), means, numeric=(1, 2))
    return f"{title}\n{by_layer}\n" + table(("furthest", *headers), shown, numeric=(1, 2)) + more


def _mean(values: Float64[np.ndarray, "head"], heads: Sequence[tuple[int, int]], layer: int) -> float:
    return float(values[[i for i, head in enumerate(heads) if head[0] == layer]].mean())


def _head(head: tuple[int, int]) -> str:
    return f"L{head[0]}H{head[1]}"


def _unknown(count: int) -> str:
    return f" ({count:,} left out, which are NaN)" if count else ""


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"
