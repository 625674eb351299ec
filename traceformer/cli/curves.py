"""Projections of texts onto directions, as tables."""

from collections.abc import Sequence

import numpy as np

from traceformer.analysis.projection import TextCurves, dynamics
from traceformer.cli.terminal import table
from traceformer.shapes import Float32
from traceformer.texts.shown import printable

__all__ = ["curve_table", "dynamics_table", "example_table", "layer_table"]


def curve_table(curves: TextCurves, direction: int, layers: Sequence[int | None]) -> str:
    """Returns a line per token: its projection at each of some layers, and its cosine where that is one layer."""
    columns = [curves.by_layer[layer].values[:, direction] for layer in layers]
    headers = [_layer_name(layer) for layer in layers]
    if len(layers) == 1:
        headers = ["projection"]
        cosines = curves.by_layer[layers[0]].cosines[:, direction]
        if not np.isnan(cosines).all():  # as where projections alone were recorded
            columns.append(cosines)
            headers.append("cosine")
    rows = [
        (str(position), part or "", printable(token), *(f"{column[position]:.4g}" for column in columns))
        for position, (part, token) in enumerate(zip(curves.parts, curves.tokens, strict=True))
    ]
    headers = ["position", "", "token", *headers]
    if curves.n_prompt is None:
        headers, rows = [headers[0], *headers[2:]], [(row[0], *row[2:]) for row in rows]
    numeric = [0, *range(len(headers) - len(columns), len(headers))]
    return table(headers, rows, numeric=numeric)


def dynamics_table(curves: TextCurves) -> str:
    """Returns a line per direction and layer: how its curve develops over the response, or over the whole text."""
    rows: list[tuple[str, ...]] = []
    for i, name in enumerate(curves.names):
        for layer, own in curves.by_layer.items():
            found, curve = curves.dynamics(layer, i), own.values[curves.begins :, i]
            at = [None if place is None else curves.begins + place for place in (found.peak, found.commitment_point)]
            rows.append(
                (
                    name,
                    _layer_name(layer),
                    f"{curve.mean():.4g}" if len(curve) else "",
                    "" if at[0] is None else f"{curves.by_layer[layer].values[at[0], i]:.4g} at {at[0]}",
                    f"{found.average_velocity:.4g}",
                    f"{found.peak_velocity:.4g}",
                    "" if at[1] is None else str(at[1]),
                    str(found.persistence),
                )
            )
    headers = ("vector", "layer", "mean", "peak", "mean velocity", "peak velocity", "commitment", "persistence")
    what = "whole text" if curves.n_prompt is None else "response"
    return f"dynamics of the {what}; positions count from the text's first token\n" + table(
        headers, rows, numeric=range(2, 8)
    )


def example_table(all_curves: Sequence[TextCurves], layer: int | None) -> str:
    """Returns a line per example and direction, at one layer."""
    rows = [
        (
            printable(own.example_id),
            name,
            str(len(own.tokens)),
            *_means([own], layer, i),
            *_peak(own.by_layer[layer].values[:, i]),
        )
        for own in all_curves
        for i, name in enumerate(own.names)
    ]
    return _without_empty(("example", "vector", "tokens", *_MEANS, "peak", "at"), rows)


def layer_table(all_curves: Sequence[TextCurves]) -> str:
    """Returns a line per direction and layer, over all examples."""
    rows = [
        (name, _layer_name(layer), str(sum(len(own.tokens) for own in all_curves)), *_means(all_curves, layer, i))
        for i, name in enumerate(all_curves[0].names)
        for layer in all_curves[0].by_layer
    ]
    return _without_empty(("vector", "layer", "tokens", *_MEANS), rows)


_MEANS = ("mean", "of prompts", "of responses", "cosine")


def _means(all_curves: Sequence[TextCurves], layer: int | None, direction: int) -> tuple[str, ...]:
    """The mean projection over all tokens, those of prompts and of responses; the mean cosine."""
    values = [own.by_layer[layer].values[:, direction] for own in all_curves]
    generated = [(own.begins, curve) for own, curve in zip(all_curves, values, strict=True) if own.n_prompt is not None]
    parts = (
        values,
        [curve[:begins] for begins, curve in generated],
        [curve[begins:] for begins, curve in generated],
        [own.by_layer[layer].cosines[:, direction] for own in all_curves],
    )
    return tuple(_mean(np.concatenate([np.empty(0, np.float32), *part])) for part in parts)


def _mean(values: Float32[np.ndarray, "token"]) -> str:
    known = values[np.isfinite(values)]
    return f"{known.mean(dtype=np.float64):.4g}" if len(known) else ""


def _peak(curve: Float32[np.ndarray, "token"]) -> tuple[str, str]:
    peak = dynamics(curve).peak
    return ("", "") if peak is None else (f"{curve[peak]:.4g}", str(peak))


def _without_empty(headers: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    """The table, without the means of prompts and responses, and of cosines, where there are none."""
    kept = [i for i, header in enumerate(headers) if header not in _MEANS[1:] or any(row[i] for row in rows)]
    shown = [tuple(row[i] for i in kept) for row in rows]
    return table([headers[i] for i in kept], shown, numeric=range(2, len(kept)))


def _layer_name(layer: int | None) -> str:
    return "" if layer is None else f"L{layer}"
