"""Runs recorded with rows as bytes: whichever way they come, and whatever reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traceformer as tf
from tests.capture.asked import Stopped, stop_after
from tests.marks import slow
from tests.store import runs
from traceformer.cli import main
from traceformer.errors import UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.viewer.notices import notices_of

TEXTS = [f"{n}: " + "the cat sat on the mat " * (n * 7 % 5) for n in range(12)]
OPTIONS: dict[str, Any] = {"max_seq_len": 64, "batch_size": 3, "shard_examples": 4}


@pytest.fixture
def model(load: Callable[..., LoadedModel]) -> LoadedModel:
    return load("gpt2")


def assert_within_bounds(run: tf.Run, exact: tf.Run) -> None:
    assert {str(spec.key) for spec in run.layout.arrays} == {str(spec.key) for spec in exact.layout.arrays}
    for spec in run.layout.arrays:
        error = run.largest_error(spec.key)
        assert (error > 0) == spec.site.holds_features
        for example in range(run.n):
            one, other = run.get(example, spec.key), exact.get(example, spec.key)
            assert np.abs(one - other).max() <= error


def test_rows_are_within_their_bound_and_all_else_is_as_it_was(model: LoadedModel, tmp_path: Path) -> None:
    capture = "attn resid qkv hidden logits attn_scores"
    exact = tf.record(model, TEXTS, capture, lens_top_k=2, **OPTIONS)
    run = tf.record(model, TEXTS, capture, lens_top_k=2, rows_codec="q8", out=tmp_path / "run", **OPTIONS)
    assert_within_bounds(run, exact)
    assert run.layout.aliases == exact.layout.aliases != {}
    assert run.verify().ok
    assert np.array_equal(run.get(1, "hidden", 1), run.get(1, "resid_pre", 1))


def test_bfloat16_rows_are_rounded_as_numbers_not_as_their_bits(model: LoadedModel) -> None:
    how = {**OPTIONS, "dtype": "bfloat16", "capture": "resid"}
    run, exact = (tf.record(model, TEXTS[:2], rows_codec=codec, **how) for codec in ("q8", "exact"))  # pyright: ignore
    assert_within_bounds(run, exact)


@pytest.mark.slow
def test_it_goes_with_the_largest_keys_and_with_other_dtypes(model: LoadedModel) -> None:
    how = {**OPTIONS, "store_topk": 3, "dtype": "bfloat16", "codec": "zstd"}
    run, exact = (tf.record(model, TEXTS, "attn resid", rows_codec=codec, **how) for codec in ("q8", "exact"))  # pyright: ignore
    assert_within_bounds(run, exact)


@pytest.mark.slow
def test_a_stream_gives_the_numbers_of_a_list_and_goes_on_to_the_same_bytes(model: LoadedModel, tmp_path: Path) -> None:
    how: dict[str, Any] = {**OPTIONS, "capture": "resid", "rows_codec": "q8"}
    listed = tf.record(model, TEXTS, **how)
    streamed = tf.record(model, iter(TEXTS), out=tmp_path / "whole/run", **how)
    assert np.array_equal(listed.activations("resid_mid", 1), streamed.activations("resid_mid", 1))
    with pytest.raises(Stopped):
        tf.record(model, iter(TEXTS), out=tmp_path / "parts/run", progress=stop_after(6), **how)
    tf.record(model, iter(TEXTS), out=tmp_path / "parts/run", resume=True, **how)
    whole, parts = (runs.contents(tmp_path / name / "run") for name in ("whole", "parts"))
    assert {name for name in whole if whole[name] != parts.get(name)} <= {"meta.json", "manifest.json"}  # their times
    assert whole.keys() == parts.keys()


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_bytes(model: LoadedModel, tmp_path: Path) -> None:
    how: dict[str, Any] = {**OPTIONS, "capture": "resid qkv", "rows_codec": "q8"}
    tf.record(model, TEXTS, out=tmp_path / "whole/run", **how)
    with pytest.raises(Stopped):
        tf.record(model, TEXTS, out=tmp_path / "parts/run", progress=stop_after(6), **how)
    tf.record(model, TEXTS, out=tmp_path / "parts/run", resume=True, **how)
    whole, parts = (runs.contents(tmp_path / name / "run") for name in ("whole", "parts"))
    assert {name for name in whole if whole[name] != parts.get(name)} <= {"meta.json", "manifest.json"}


@pytest.mark.slow
def test_answers_are_recorded_so_too(model: LoadedModel) -> None:
    how: dict[str, Any] = {"capture": "resid attn", "max_tokens": 4, "temperature": 0}
    assert_within_bounds(
        tf.generate(model, "the cat", rows_codec="q8", **how), tf.generate(model, "the cat", rows_codec="exact", **how)
    )


@pytest.mark.parametrize("format", ["safetensors", slow("padded-zarr"), slow("json")])
def test_what_is_exported_is_what_is_read(model: LoadedModel, tmp_path: Path, format: str) -> None:
    run = tf.record(model, TEXTS[:3], "token_embed attn_out mlp_out", rows_codec="q8", out=tmp_path / "run", **OPTIONS)
    tf.export(run, format, tmp_path / "files")
    back = tf.import_run(tmp_path / "files", out=tmp_path / "back")
    for site in ("token_embed", "attn_out", "mlp_out"):
        assert np.array_equal(back.get(1, site), run.get(1, site))


def test_a_run_without_rows_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rows to store as q8"):
        tf.record(model, TEXTS, "attn logits", rows_codec="q8", out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_inspect_and_the_viewer_say_how_far_rows_are_off(
    model: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tf.record(model, TEXTS, "resid attn", rows_codec="q8", out=tmp_path / "run", **OPTIONS)
    assert main(["inspect", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "rows as q8 (off by up to 0.4 % of the largest of 32 values)" in shown
    assert "off by up to" in shown.splitlines()[6]
    assert f"{run.largest_error('resid_mid'):.2g}" in shown
    assert "activations are stored in a byte each, off by up to 0.4 % of the largest of 32 neighbours" in notices_of(
        run
    )
