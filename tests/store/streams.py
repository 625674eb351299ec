"""Small runs in which rows are one another's, as those of a residual stream are: what each block takes, the last made.

Of a stack of six blocks some are stored: `patched` has `tests.store.runs` fill these arrays.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.store import runs
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.aliases import Rows, each_once
from traceformer.store.layout import RunLayout

DEPTH = 6
_WIDTH = 24


def rows(site: str, *layers: int) -> ArraySpec:
    return ArraySpec(ArrayKey("dec", None, site), layers, (), _WIDTH)


STREAM = (
    *(rows("embed"), rows("resid_pre", 0, 1, 4), rows("resid_mid", 4), rows("resid_post", 0, 3, 4, 5)),
    *(rows("hidden", 0, 1, 2, 4, 6), rows("final_norm"), runs.spec("dec.self.q"), runs.spec("dec.self.attn_pattern")),
)
ALIASES = {
    "dec.embed": "dec.resid_pre[0]",
    "dec.hidden[0]": "dec.resid_pre[0]",
    "dec.resid_post[0]": "dec.resid_pre[1]",
    "dec.hidden[1]": "dec.resid_pre[1]",
    "dec.resid_post[3]": "dec.resid_pre[4]",
    "dec.hidden[4]": "dec.resid_pre[4]",
    "dec.hidden[6]": "dec.final_norm",
}
KEPT: Mapping[str, tuple[int, ...]] = {
    "dec.resid_pre": (0, 1, 4),
    "dec.resid_mid": (4,),
    "dec.resid_post": (4, 5),
    "dec.hidden": (2,),
    "dec.final_norm": (),
    "dec.self.q": runs.LAYERS,
    "dec.self.attn_pattern": runs.LAYERS,
}
"""What is stored of it, and with which layers."""


def between(key: ArrayKey, layer: int | None) -> str:
    """Returns what of the stream a layer is: its name, which equal layers have in common."""
    if key.site in ("embed", "resid_pre"):
        return str(layer or 0)
    if key.site == "hidden":
        return "end" if layer == DEPTH else str(layer)
    if key.site == "resid_post":
        assert layer is not None
        return str(layer + 1)
    return "end" if key.site == "final_norm" else f"{key} {layer}"


def are_equal(one: Rows, other: Rows) -> bool:
    return between(*one) == between(*other)


def truth_in(
    otherwise: Callable[[RunLayout, ArraySpec, int], np.ndarray],
) -> Callable[[RunLayout, ArraySpec, int], np.ndarray]:
    def truth(layout: RunLayout, array: ArraySpec, example: int) -> np.ndarray:
        if array.site.axes[-1] != "d_model":
            return otherwise(layout, array, example)
        shape = (runs.lengths(layout, example)["dec"], array.width)
        layers = [
            np.random.default_rng([example, *between(array.key, layer).encode()]).standard_normal(shape, np.float32)
            for layer in array.layers or (None,)
        ]
        return np.stack(layers) if array.layers else layers[0]

    return truth


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "truth", truth_in(runs.truth))


def plan(**options: Any) -> RunLayout:
    """Returns the layout of a run of the stream, each row once: 6 examples in shards of 4 unless said otherwise."""
    chosen: dict[str, Any] = {"n_examples": 6, "longest": {"dec": 20}, **options}
    return replace(runs.plan(arrays=STREAM, **chosen), aliases=each_once(STREAM, {"dec": DEPTH}, are_equal))
