"""The logit lens of a recorded example: what was read out while recording, or its residual stream read out now."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from traceformer.analysis.lens import Lens, LensRows, normed, read_out
from traceformer.errors import NotRecorded, SelectionError, Unsupported, UsageError
from traceformer.models.readout import Readout
from traceformer.questions.statistics import tokens_that_came
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.run import TraceStore

__all__ = ["is_read_out", "recorded_lens", "run_lens"]

_RESIDUAL = ("resid_post", "hidden")


_ROWS_BYTES = 256 << 20  # of the normed rows at hand


def run_lens(
    store: TraceStore,
    example_id: str,
    readout: Readout,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    top: int = 3,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Lens:
    """Returns what the layers of a recorded example say.

    Args:
        store: A run of a decoder, or of an encoder-decoder with targets.
        example_id: An example of it.
        readout: The run's model's.
        layers: The model's numbers; all that are stored for None.
        positions: Positions of the example; all for None.
        top: How many of the likeliest words to keep.
        progress: Told how many of how many words are done, each counted once for every group of rows.

    Raises:
        NotRecorded: the run holds no residual stream.
        SelectionError: a layer is not stored, or a position is not in the example.
        Unsupported: an encoder, which predicts no next token.
        UsageError: the readout is another model's.
    """
    spec = _residual_of(store)
    if spec.width != readout.d_model:
        raise UsageError(f"a readout of width {readout.d_model}", why=f"{spec.key} is {spec.width} wide")
    # `hidden` begins with the embedding: entry i + 1 is what layer i left, and the last one is behind the final norm.
    first = 1 if spec.key.site == "hidden" else 0
    stored = tuple(number - first for number in spec.layers if number >= first)
    chosen, where, came = _part_of(store, example_id, spec, stored, layers, positions)
    last = (store.about.dims_of("dec").n_layers or 0) - 1

    def residual(number: int, places: Int64[np.ndarray, "place"]) -> Float32[np.ndarray, "place d_embed"]:
        layer = chosen[number]
        stream = store.get(example_id, spec.key, layer + first)[places]
        return normed(stream, readout, skip_norm=first == 1 and layer == last)

    total, at_once = len(chosen) * len(where), max(1, _ROWS_BYTES // (4 * spec.width))
    parts: list[LensRows] = []
    for start in range(0, total, at_once):
        # Rows are counted layer by layer, position by position within each.
        stop = min(start + at_once, total)
        numbers = range(start // len(where), -(-stop // len(where)))
        pieces = [slice(max(0, start - n * len(where)), stop - n * len(where)) for n in numbers]
        parts.append(
            read_out(
                np.concatenate([residual(n, where[piece]) for n, piece in zip(numbers, pieces, strict=True)]),
                readout,
                came=np.concatenate([came[piece] for piece in pieces]),
                top=top,
                progress=lambda done, of: progress(len(parts) * of + done, -(-total // at_once) * of),
            )
        )
    found = {name: np.concatenate([getattr(part, name) for part in parts]) for name in LensRows.__slots__}
    shape = (len(chosen), len(where))
    return Lens(
        spec.key,
        chosen,
        tuple(where.tolist()),
        came,
        **{name: values.reshape(*shape, *values.shape[1:]) for name, values in found.items()},
    )


def is_read_out(store: TraceStore) -> bool:
    """Returns whether a run holds the likeliest tokens of each layer, and no residual stream to read all from."""
    return _first_of(store, _RESIDUAL) is None and _first_of(store, ("lens_topk",)) is not None


def recorded_lens(
    store: TraceStore,
    example_id: str,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    top: int | None = None,
) -> Lens:
    """Returns what the layers of an example said while it was recorded; arguments as of `run_lens`.

    Raises:
        NotRecorded: the run holds no likeliest tokens, or fewer than `top` of them.
        SelectionError: a layer is not stored, or a position is not in the example.
    """
    ids = store.spec("lens_topk")
    if top is not None and not 1 <= top <= ids.width:
        raise NotRecorded(
            f"the {top} likeliest tokens",
            why=f"this run holds {ids.width} of each layer",
            hint="--lens-top-k to record",
        )
    chosen, where, came = _part_of(store, example_id, ids, ids.layers, layers, positions)
    place = np.ix_([ids.layers.index(layer) for layer in chosen], where.tolist())
    all_ids = store.get(example_id, ids.key)[place].astype(np.int64)
    probabilities = store.get(example_id, ids.key._replace(site="lens_topk_prob"))[place].astype(np.float32)
    is_came = (all_ids == came[:, None]) & (came >= 0)[:, None]
    there = is_came.any(axis=-1)
    return Lens(
        ids.key,
        chosen,
        tuple(where.tolist()),
        came,
        all_ids[..., :top],
        probabilities[..., :top],
        np.full(there.shape, np.nan, np.float32),
        np.where(there, (probabilities * is_came).sum(axis=-1), np.float32(np.nan)),
        np.where(there, is_came.argmax(axis=-1) + 1, 0),
    )


def _part_of(
    store: TraceStore,
    example_id: str,
    spec: ArraySpec,
    stored: Sequence[int],
    layers: Sequence[int] | None,
    positions: Sequence[int] | None,
) -> tuple[tuple[int, ...], Int64[np.ndarray, "position"], Int64[np.ndarray, "position"]]:
    """Returns the layers and positions that are meant, and what came after these."""
    chosen = _chosen("layer", layers, stored, f"this run holds layers {_listed(stored)} of {spec.key}")
    length = store.length(example_id, "dec")
    places = _chosen("position", positions, range(length), f"this example has positions 0-{length - 1}")
    where = np.asarray(places, np.int64)
    return chosen, where, tokens_that_came(store)(example_id)[where]


def _first_of(store: TraceStore, sites: Sequence[str]) -> ArraySpec | None:
    found = (store.layout.spec(ArrayKey("dec", None, site)) for site in sites)
    return next((spec for spec in found if spec is not None), None)


def _residual_of(store: TraceStore) -> ArraySpec:
    if store.arch == "enc":
        raise Unsupported("the logit lens of an encoder", why="it predicts no next token")
    found = _first_of(store, _RESIDUAL)
    if found is not None:
        return found
    raise NotRecorded(
        "this run holds no residual stream of a decoder",
        why=f"it holds {' '.join(str(spec.key) for spec in store.layout.arrays)}",
        hint="record it with --capture resid_post",
    )


def _chosen(what: str, wanted: Sequence[int] | None, available: Sequence[int], why: str) -> tuple[int, ...]:
    chosen = tuple(available if wanted is None else wanted)
    missing = [number for number in chosen if number not in available]
    if missing or not chosen:
        raise SelectionError(f"{what} {_listed(missing) or 'nothing'} requested", why=why)
    return chosen


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
