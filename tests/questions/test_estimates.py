"""Estimates of patches and edges, asked of the built-in model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traceformer as tf
from traceformer.errors import SelectionError, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.texts.contrasts import PAIR_SETS

PAIR: dict[str, Any] = {"clean": "abXd qRs abXd qR", "corrupt": "abXd qZs abXd qR", "answer": "s", "wrong": "Z"}


def test_the_largest_estimates_are_measured_as_a_sweep_measures_them(byte: LoadedModel) -> None:
    settings: dict[str, Any] = {**PAIR, "site": "z", "over": ("layer", "head"), "layers": (2, 3)}
    swept = tf.patch(byte, **settings)
    found = tf.patch(byte, **settings, estimate=True, exact_top=6)
    exact = found.by_pair["exact"][0]
    measured = np.isfinite(exact)
    assert measured.sum() == 6
    assert exact[measured] == pytest.approx(swept.values[measured], abs=1e-5)
    assert np.sort(np.abs(found.values[measured])).min() >= np.abs(found.values[~measured]).max()
    assert found.clean == pytest.approx(swept.clean)
    assert found.corrupt == pytest.approx(swept.corrupt)
    assert found.kind == "estimate"
    assert found.agreement.measured == 6
    assert found.agreement.worst == pytest.approx(np.abs(found.values - exact)[measured].max())
    assert list(found.to_frame().columns[-4:]) == ["estimate", "exact", "spread", "pairs"]
    assert "estimated" in found.about.way


def test_noising_is_estimated_from_the_clean_text(byte: LoadedModel) -> None:
    settings: dict[str, Any] = {**PAIR, "site": "mlp_out", "over": ("position",), "layers": 3, "how": "noise"}
    found = tf.patch(byte, **settings, estimate=True, exact_top=4)
    exact = found.by_pair["exact"][0]
    assert exact[np.isfinite(exact)] == pytest.approx(tf.patch(byte, **settings).values[np.isfinite(exact)], abs=1e-5)
    assert np.median(found.values) == pytest.approx(1, abs=0.1)  # most places change nothing: the clean text's metric
    measured, change = np.isfinite(exact), np.abs(found.values - 1)
    assert change[measured].min() >= change[~measured].max()


@pytest.mark.slow
def test_slopes_along_the_way_come_nearer(byte: LoadedModel) -> None:
    settings: dict[str, Any] = {"pairs": "repeats", "site": "mlp_out", "over": ("layer", "position")}
    swept = tf.patch(byte, **settings)
    errors = [
        np.nanmax(np.abs(tf.patch(byte, **settings, estimate=True, steps=steps).values - swept.values))
        for steps in (1, 4)
    ]
    assert errors[1] < errors[0] / 3


def test_estimates_are_kept_in_a_folder(byte: LoadedModel, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**PAIR, "site": "z", "over": ("layer", "head"), "estimate": True, "exact_top": 2}
    made = tf.patch(byte, **settings, out=tmp_path / "effects")
    opened = tf.open_effects(tmp_path / "effects")
    for name in ("estimate", "exact"):
        assert np.array_equal(opened.by_pair[name], made.by_pair[name], equal_nan=True)
    assert opened.agreement == made.agreement


def test_edges_are_shares_of_the_difference() -> None:
    model = tf.load_model(tiny_model("gpt2"))
    found = tf.edges(model, [5, 6, 7, 8, 9], [5, 6, 11, 8, 9], answer=3, wrong=4, exact_top=5, batch_size=2)
    assert found.agreement.measured == 5
    frame = found.to_frame()
    assert len(frame) == found.is_edge.sum() == len(found.to_json()["edges"])
    assert frame.exact.count() == 5
    assert "5 measured" in repr(found)
    assert len(tf.figures.edges(found).axes) == 3
    assert "<img" in found._repr_html_()
    one = found.pair(0)
    assert np.array_equal(one.estimates, found.estimates, equal_nan=True)
    with pytest.raises(SelectionError, match="pair 3"):
        found.pair(3)


def test_edges_of_noise_are_those_of_the_texts_in_each_others_place() -> None:
    model = tf.load_model(tiny_model("gpt2"))
    texts, how = ([5, 6, 7, 8, 9], [5, 6, 11, 8, 9]), {"answer": 3, "wrong": 4, "exact_top": 5, "steps": 2}
    noised, swapped = tf.edges(model, *texts, **how, how="noise"), tf.edges(model, *texts[::-1], **how)
    np.testing.assert_array_equal(noised.estimates, swapped.estimates)
    np.testing.assert_array_equal(noised.exact, swapped.exact)
    assert (noised.clean, noised.corrupt) == (swapped.corrupt, swapped.clean)
    assert (noised.about.how, noised.about.steps) == ("noise", 2)


@pytest.mark.slow
def test_the_edges_of_several_pairs_are_means(byte: LoadedModel) -> None:
    import json

    rows = [json.loads(line) for line in PAIR_SETS["repeats"].read_text().splitlines()[:3]]
    together = tf.edges(byte, pairs=rows)
    alone = [tf.edges(byte, pairs=[row]) for row in rows]
    assert together.values == pytest.approx(np.mean([each.values for each in alone], axis=0), abs=1e-9, nan_ok=True)


def test_what_cannot_be_estimated_is_refused(byte: LoadedModel) -> None:
    refused: list[tuple[type[Exception], str, Any]] = [
        (UsageError, "without an estimate", lambda: tf.patch(byte, **PAIR, exact_top=3)),
        (UsageError, "steps=0", lambda: tf.patch(byte, **PAIR, estimate=True, steps=0)),
        (UsageError, "several layers", lambda: tf.patch(byte, **PAIR, over=("position",), estimate=True)),
        (
            UsageError,
            "no gradient",
            lambda: tf.patch(byte, **PAIR, estimate=True, metric=lambda logits: logits[:, -1, 5].detach()),
        ),
        (UsageError, "is 2 tokens", lambda: tf.edges(byte, **PAIR | {"answer": "st"})),
        (
            UsageError,
            "tokens, the corrupt.*texts of equal length$",
            lambda: tf.edges(byte, **PAIR | {"corrupt": "abXd"}),
        ),
        (UsageError, "no `corrupt`", lambda: tf.edges(byte, "ab", answer="a", wrong="b")),
        (UsageError, "exact_top=-1", lambda: tf.edges(byte, **PAIR, exact_top=-1)),
        (Unsupported, "no decoder", lambda: tf.edges(tf.load_model(tiny_model("bert")), [5, 6], [5, 7])),
    ]
    for kind, words, call in refused:
        with pytest.raises(kind, match=words):
            call()
