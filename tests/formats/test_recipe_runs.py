"""Runs whose patterns are by recipe go out as any other: every format has their cells, and q and k to the last bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import traceformer as tf
from traceformer.models.loaded import LoadedModel
from traceformer.sites import ArrayKey

TEXTS = ["an error", "a", "of the list", "names"]
PATTERN = ArrayKey("dec", "self", "attn_pattern")
LOSSLESS: dict[str, dict[str, Any]] = {
    "safetensors": {},
    "padded-zarr": {},
    "json": {"lossless": True},
    "pt": {"lossless": True},
    "pt internals": {"lossless": True, "layout": "internals"},
}
STORED: dict[str, dict[str, Any]] = {
    "recipe": {},
    "float16": {},
    "bfloat16": {"dtype": "bfloat16"},
    "sqrt8": {"attn_codec": "sqrt8"},
    "q8": {"rows_codec": "q8"},
}


@pytest.fixture(scope="module")
def run(byte: LoadedModel) -> tf.Run:
    """What the formats take, in float16, beside q and k in float32."""
    capture = "internals token_embed attn_norm attn_out mlp_norm mlp_out logits"
    made = tf.record(byte, TEXTS, capture, patterns="recipe", layers=[1, 2])
    assert made.layout.recipes
    assert {made.layout.stored(made.spec(site)) for site in "qk"} == {"float32"}
    assert made.dtype == "float16"
    return made


def imported(run: tf.Run, name: str, tmp_path: Path, **options: Any) -> tf.Run:
    format, *_ = name.split()
    tf.export(run, format, tmp_path / "files", **options)
    return tf.import_run(tmp_path / "files", out=tmp_path / "back")


@pytest.mark.parametrize("name", LOSSLESS)
def test_all_that_the_run_holds_comes_back_and_patterns_are_stored(name: str, run: tf.Run, tmp_path: Path) -> None:
    back = imported(run, name, tmp_path, **LOSSLESS[name])
    assert not back.layout.recipes
    assert sorted(back.ids) == sorted(run.ids)
    assert {spec.key for spec in back.layout.arrays} == {spec.key for spec in run.layout.arrays}
    for spec in run.layout.arrays:
        for example in run.ids:
            np.testing.assert_array_equal(back.get(example, spec.key), run.get(example, spec.key), err_msg=str(spec))


@pytest.mark.parametrize("stored", STORED)
def test_a_padded_store_states_the_type_that_holds_its_arrays(
    stored: str, byte: LoadedModel, run: tf.Run, tmp_path: Path
) -> None:
    made = run if stored == "recipe" else tf.record(byte, TEXTS, "attn z resid_pre", layers=[1], **STORED[stored])
    back = imported(made, "padded-zarr", tmp_path)
    stated = json.loads((tmp_path / "files" / "meta.json").read_text())["dtype"]
    assert stated == back.dtype == ("float16" if stored == "float16" else "float32")


@pytest.mark.parametrize("name", ["json", "pt internals"])
def test_files_of_patterns_without_q_and_k_stay_as_small_as_patterns_are(
    name: str, run: tf.Run, tmp_path: Path
) -> None:
    back = imported(run, name, tmp_path, **{"layout": "internals"} if name == "pt internals" else {})
    assert back.dtype == "float16"
    for example in run.ids:
        np.testing.assert_array_equal(back.attn(example), run.attn(example))


def test_means_over_heads_are_those_of_what_is_read(run: tf.Run, tmp_path: Path) -> None:
    back = imported(run, "pt", tmp_path)
    for example in run.ids:
        expected = run.attn(example).mean(axis=1, dtype=np.float32).astype(np.float16)
        np.testing.assert_array_equal(back.attn(example)[:, 0], expected)


def test_transformer_lens_is_shown_patterns_and_what_they_are_made_of(byte: LoadedModel, tmp_path: Path) -> None:
    run = tf.record(byte, TEXTS, "attn", patterns="recipe", layers=[1, 2])
    files = tf.export(run, "transformerlens", tmp_path)
    for example, path in zip(run.ids, files, strict=True):
        found = torch.load(path, weights_only=True)
        for layer in (1, 2):
            pattern = found[f"blocks.{layer}.attn.hook_pattern"][0].float().numpy()
            np.testing.assert_array_equal(pattern, run.attn(example, layer))
            for site, hook in (("q", "hook_rot_q"), ("k", "hook_rot_k")):
                rows = found[f"blocks.{layer}.attn.{hook}"][0].permute(1, 0, 2).float().numpy()
                np.testing.assert_array_equal(rows, run.get(example, PATTERN._replace(site=site), layer))


def test_patterns_in_bytes_come_back_from_traces_as_float32(byte: LoadedModel, tmp_path: Path) -> None:
    run = tf.record(byte, TEXTS, "attn", attn_codec="sqrt8", layers=[1])
    back = imported(run, "json", tmp_path)
    assert back.dtype == "float32"
    for example in run.ids:
        np.testing.assert_array_equal(back.attn(example), run.attn(example))
