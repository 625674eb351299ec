"""Steering by a direction: at which layer, by how much, on which tokens; beside plain hooks on the same model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import traceformer as tf
from tests.families import mostly_slow
from traceformer.analysis.directions import Direction
from traceformer.errors import NotFound, SelectionError, Unreadable, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.questions.edits import as_steering

PROMPTS = ["If the argument is not", "Returns a"]


def trait(*layers: int, width: int = 256, **about: Any) -> Direction:
    random = np.random.default_rng(1)
    return Direction("trait", {layer: random.normal(size=width).astype(np.float32) for layer in layers}, about)


def test_steering_by_0_is_bit_equal_to_no_edit(byte: LoadedModel) -> None:
    settings: dict[str, Any] = {"max_tokens": 3, "seed": 5, "capture": "resid_post"}
    plain = tf.generate(byte, PROMPTS, **settings)
    with tf.edit(byte, tf.edits.steer(trait(1), 0)):
        steered = tf.generate(byte, PROMPTS, **settings)
    assert list(steered.tokens.response) == list(plain.tokens.response)
    for number in range(2):
        assert np.array_equal(steered.get(number, "resid_post"), plain.get(number, "resid_post"))
    assert steered.about.edits is not None
    assert steered.about.edits[0]["kind"] == "steer"


def test_steering_is_a_hook_that_adds_from_the_last_token_of_the_prompt_on(byte: LoadedModel) -> None:
    own = trait(1)
    with tf.edit(byte, tf.edits.steer(own, 6)):
        run = tf.generate(byte, PROMPTS[0], max_tokens=10, temperature=0)
    vector = torch.from_numpy(own.by_layer[1])
    n_prompt = int(run.tokens.n_prompt[0])

    def add(_: Any, __: Any, output: Any) -> Any:
        rows = output[0] if isinstance(output, tuple) else output
        rows = rows.clone()
        rows[:, -1] += 6 * vector  # of the prompt's pass its last token, of each later pass its only one
        return (rows, *output[1:]) if isinstance(output, tuple) else rows

    hook = byte.model.model.layers[1].register_forward_hook(add)
    ids = torch.tensor([list(run.tokens.input_ids[0][:n_prompt])])
    expected = byte.model.generate(ids, max_new_tokens=10, do_sample=False)[0]
    hook.remove()
    assert list(run.tokens.input_ids[0]) == expected.tolist()


def test_steering_moves_the_projection_by_scale_times_the_norm(byte: LoadedModel) -> None:
    own = trait(2)
    norm = float(np.linalg.norm(own.by_layer[2]))
    reading: dict[str, Any] = {"texts": PROMPTS}
    plain = tf.project(byte, own, layers=[2], **reading)
    with tf.edit(byte, tf.edits.steer(own, 3, position=None)):
        steered = tf.project(byte, own, layers=[2], **reading)
    for before, after in zip(plain.examples, steered.examples, strict=True):
        moved = after.by_layer[2].values - before.by_layer[2].values
        assert moved == pytest.approx(np.full_like(moved, 3 * norm), rel=1e-4)


@pytest.mark.parametrize("family", mostly_slow(["gpt2", "llama", "gpt_neox_parallel", "gemma2"], ["llama"]))
def test_an_ablated_direction_is_nowhere_in_the_stream(family: str) -> None:
    from traceformer.models.tiny import tiny_model

    loaded = tf.load_model(tiny_model(family))
    own = trait(1, width=loaded.dims.stacks["dec"].d_model)
    texts, sites = [[5, 6, 7, 8, 9]], ["resid_pre", "resid_post"]
    with tf.edit(loaded, *tf.edits.ablate_direction(own)):
        run = tf.record(loaded, texts, sites, dtype="float32")
    unit = own.by_layer[1] / np.linalg.norm(own.by_layer[1])
    for site in sites:
        for layer in range(loaded.dims.stacks["dec"].n_layers):
            rows = run.get(0, site, layer)
            assert np.abs(rows @ unit).max() < 1e-5 * np.linalg.norm(rows, axis=-1).max()
            assert np.linalg.norm(rows) > 1


def test_the_layer_is_that_of_the_direction_or_the_best_one() -> None:
    assert tf.edits.steer(trait(3), 1).layers == (3,)
    assert tf.edits.steer(trait(3), 1, layer=2).layers == (2,)  # an only vector serves for any layer
    qualities = {1: {"held_out_accuracy": 0.9, "effect_size": 3.0}, 2: {"held_out_accuracy": 0.9, "effect_size": 4.0}}
    several = Direction("trait", trait(1, 2).by_layer, {}, qualities)
    assert tf.edits.steer(several, 1).layers == (2,)
    made = tf.edits.steer(several, 1, layer=1)
    assert made.layers == (1,)
    assert tf.edits.steer(trait(1, site="resid_mid"), 1).site == "resid_mid"


def test_files_of_other_tools_steer(tmp_path: Path, byte: LoadedModel) -> None:
    vector = trait(1).by_layer[1]
    save_file({"vector": vector}, tmp_path / "kindness.safetensors")
    np.save(tmp_path / "kindness_layer2.npy", vector)
    assert as_steering(f"{tmp_path / 'kindness.safetensors'}:-4@1").layers == (1,)
    found = as_steering(f"{tmp_path / 'kindness_layer2.npy'}:2.5")
    assert (found.layers, found.settings["scale"]) == ((2,), 2.5)
    with tf.edit(byte, found):
        assert len(tf.generate(byte, PROMPTS[0], max_tokens=2).tokens.response) == 1


def test_what_cannot_be_meant_is_refused(tmp_path: Path, byte: LoadedModel) -> None:
    nowhere = Direction("trait", {None: trait(1).by_layer[1]})
    refused: list[tuple[type[Exception], str, Any]] = [
        (SelectionError, "at which layer", lambda: tf.edits.steer(nowhere, 1)),
        (SelectionError, "at which layer", lambda: tf.edits.steer(trait(1, 2), 1)),
        (SelectionError, "no vector for layer 5", lambda: tf.edits.steer(trait(1, 2), 1, layer=5)),
        (SelectionError, "at which layer", lambda: tf.edits.ablate_direction(trait(1, 2))),
        (UsageError, "scale=nan", lambda: tf.edits.steer(trait(1), float("nan"))),
        (NotFound, "no file", lambda: tf.edits.steer(tmp_path / "none.safetensors", 1)),
        (UsageError, "cannot read", lambda: as_steering("trait.safetensors")),
        (UsageError, "cannot read", lambda: as_steering("trait.safetensors:x")),
        (UsageError, "cannot read", lambda: as_steering("trait.safetensors:1@x")),
        (UsageError, "cannot read", lambda: as_steering(":1")),
    ]
    holes = Direction("trait", {1: np.full(256, np.nan, np.float32)})
    refused.append((UsageError, "NaN", lambda: tf.edits.steer(holes, 1)))
    save_file({"vector": holes.by_layer[1]}, tmp_path / "holes.safetensors")
    refused.append((Unreadable, "NaN", lambda: tf.edits.steer(tmp_path / "holes.safetensors", 1, layer=1)))

    def run_with(own: Direction) -> None:
        with tf.edit(byte, tf.edits.steer(own, 1)):
            tf.generate(byte, PROMPTS[0], max_tokens=2)

    refused.append((UsageError, "width 7", lambda: run_with(trait(1, width=7))))
    refused.append((SelectionError, "layer 9", lambda: run_with(trait(9))))
    for kind, words, call in refused:
        with pytest.raises(kind, match=words):
            call()
