"""What the stream screen is sent: the same as numpy and the verbs of Python find."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import traceformer as tf
from tests.viewer.stream_data import MARKUP, TEXTS, asked
from traceformer.capture.derived import Traits
from traceformer.errors import ConfigurationChanged, NotFound, SelectionError
from traceformer.store.run import Run
from traceformer.texts.shown import visible
from traceformer.viewer.library import Library


@pytest.fixture
def library(stream_folder: Path) -> Library:
    return Library.at(stream_folder)


@pytest.mark.parametrize("array", ["dec.resid_post", "dec.resid_pre", "dec.self.attn_out", "dec.mlp_out"])
def test_norms_are_those_of_numpy_in_float64(library: Library, array: str) -> None:
    found = asked(library, "norms", run="byte", ex=0, array=array)
    rows = library.run("byte").get(0, array).astype(np.float64)
    np.testing.assert_allclose(found.arrays["norms"], np.linalg.norm(rows, axis=-1), rtol=1e-7)  # float32 behind it
    assert found.arrays["norms"].dtype == np.float32
    assert found.about["layers"] == (0, 1, 2, 3)


def test_norms_of_heads_and_of_what_has_no_layers_are_refused(library: Library) -> None:
    for array in ("dec.self.v", "dec.self.attn_pattern", "dec.embed"):
        with pytest.raises(SelectionError, match="no single row per token and layer"):
            asked(library, "norms", run="byte", ex=0, array=array)


def test_neurons_are_those_farthest_from_zero(library: Library) -> None:
    found = asked(library, "neurons", run="byte", ex=0, stack="dec", layer=2, q=7)
    row = library.run("byte").get(0, "dec.mlp_mid", 2)[7]
    expected = sorted(enumerate(row.tolist()), key=lambda pair: -abs(pair[1]))[:12]
    assert [(each["neuron"], each["value"]) for each in found["neurons"]] == expected
    with pytest.raises(SelectionError, match="position 999"):
        asked(library, "neurons", run="byte", ex=0, stack="dec", layer=2, q=999)


@pytest.mark.parametrize("first", [0, 32])
def test_the_lens_of_a_window_is_that_of_python(library: Library, first: int) -> None:
    found = asked(library, "lens", run="byte", ex=0, from_=first)
    length = library.run("byte").length(0)
    expected = tf.lens(library.run("byte"), 0, positions=range(first, min(first + 32, length)))
    assert found.about["positions"] == expected.positions
    assert found.about["length"] == length
    for name, values in {
        "probability": expected.top_probabilities,
        "entropy": expected.entropy,
        "target_probability": expected.target_probability,
        "target_rank": expected.target_rank,
    }.items():
        np.testing.assert_array_equal(found.arrays[name], values, err_msg=name)
    names = np.array(found.about["names"])[found.arrays["token"]]
    np.testing.assert_array_equal(
        names, [[[visible(text) for text in own] for own in row] for row in expected.top_tokens]
    )
    assert found.about["targets"] == [None if own is None else visible(own) for own in expected.target_tokens]


def test_a_lens_that_was_read_out_while_recording_needs_no_model() -> None:
    run = tf.record("byte", list(TEXTS), capture=[], lens_top_k=2)
    run.about = replace(run.about, model="/nowhere")
    found = asked(Library.of(run), "lens", run=run.name, ex=0)
    np.testing.assert_array_equal(found.arrays["probability"], run.get(0, "dec.lens_topk_prob")[:, :32])
    assert not found.about["has_entropy"]


def test_a_model_that_is_gone_or_another_one_is_told_with_what_would_work(stream_folder: Path, tmp_path: Path) -> None:
    gone, changed = (Run(stream_folder / "byte") for _ in range(2))
    gone.about = replace(gone.about, model=str(tmp_path / "gone"))
    changed.about = replace(changed.about, model_files="0" * 32)
    for run, kind in ((gone, NotFound), (changed, ConfigurationChanged)):
        with pytest.raises(kind) as raised:
            asked(Library.of(run), "lens", run=run.name, ex=0)
        assert "tf.lens(run, 0, model=FOLDER)" in raised.value.hint


def test_projections_onto_a_direction_beside_the_run_are_dot_products(library: Library) -> None:
    listed = asked(library, "directions", run="byte")["directions"]
    assert [(each["key"], bool(each["problem"])) for each in listed] == [
        ("file traits/errors", False),
        ("file traits/narrow", True),
    ]
    assert "3 wide" in listed[1]["problem"]
    found = asked(library, "projection", run="byte", ex=0, direction="file traits/errors")
    own = np.random.default_rng(1)
    vectors = [own.normal(size=256).astype(np.float32).astype(np.float64) for _ in (1, 2)]
    rows = library.run("byte").get(0, "dec.resid_mid").astype(np.float64)
    expected = [rows[layer] @ vector / np.linalg.norm(vector) for layer, vector in zip((1, 2), vectors, strict=True)]
    np.testing.assert_allclose(found.arrays["values"], expected, atol=1e-4)
    assert found.about["thresholds"] == [0.5, -1.5]
    assert (found.about["name"], found.about["best_layer"], found.about["notes"]) == (MARKUP, 2, [])


@pytest.mark.parametrize("key", ["file ../traits/errors", "file /etc/passwd", "recorded errors", "errors"])
def test_other_directions_than_those_listed_are_not_found(library: Library, key: str) -> None:
    with pytest.raises(NotFound if key != "recorded errors" else ValueError):
        asked(library, "projection", run="byte", ex=0, direction=key)


def test_recorded_projections_are_shown_as_they_are() -> None:
    traits = Traits({"kind": {1: np.eye(256, dtype=np.float32)[3]}, "calm": {1: np.eye(256, dtype=np.float32)[5]}})
    run = tf.record("byte", list(TEXTS), capture="resid_post", project=traits)
    found = asked(Library.of(run), "projection", run=run.name, ex=1, direction="recorded calm")
    np.testing.assert_array_equal(found.arrays["values"], run.get(1, "dec.projection")[:, :, 1])
    assert found.about["thresholds"] == [None]
