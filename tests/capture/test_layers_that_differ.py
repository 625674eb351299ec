"""Models whose layers differ in the width or the number of their heads: Gemma 4, whose last layers share keys, too.

Of the tiny one's six layers the third and the sixth have wider heads, and one of keys; the last three share keys.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import traceformer as tf
from traceformer.errors import SelectionError
from traceformer.models.dims import LayerDims
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.store.meta import Dims

TEXTS = [[*range(5, 5 + length)] for length in (9, 21, 3)]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tf.load_model(tiny_model("gemma4_text"))


@pytest.fixture(scope="module")
def run(model: LoadedModel) -> tf.Run:
    with pytest.warns(UserWarning, match=r"has no q of this shape in layers 2, 5 \(there 4 heads 16 wide\), k of"):
        return tf.record(model, TEXTS, "q k v z attn_pattern resid_pre", dtype="float32", batch_size=3)


def given(model: Any, ids: list[int]) -> list[dict[str, torch.Tensor]]:
    """What each layer's attention is given under eager attention, and makes of it, of one text alone."""
    from transformers.models.gemma4 import modeling_gemma4 as own

    eager = type(model)(model.config).eval()
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    seen: list[dict[str, torch.Tensor]] = []
    whole = own.eager_attention_forward

    def noting(module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
        mixed, pattern = whole(module, query, key, value, *rest, **more)
        seen.append(
            {"q": query[0], "k": key[0], "v": value[0], "z": mixed[0].transpose(0, 1), "attn_pattern": pattern[0]}
        )
        return mixed, pattern

    own.eager_attention_forward = noting
    try:
        with torch.no_grad():
            eager(torch.tensor([ids]), use_cache=False)
    finally:
        own.eager_attention_forward = whole
    return seen


def test_sizes_are_those_of_each_layer(model: LoadedModel) -> None:
    dims = model.dims.stacks["dec"]
    assert (dims.n_heads, dims.n_kv_heads, dims.d_head) == (4, 2, 8)
    assert dims.by_layer[2] == dims.by_layer[5] == LayerDims(4, 1, 16, 0)
    assert dims.by_layer[0] == dims.by_layer[4] == LayerDims(4, 2, 8, 0)
    assert dims.at(5).d_head == 16


def test_arrays_with_heads_hold_the_layers_of_the_commonest_shape(run: tf.Run) -> None:
    assert run.about.left_out is not None
    assert "k of this shape in layers 2, 5 (there 1 head 16 wide)" in run.about.left_out
    layers = {spec.key.site: (spec.layers, len(spec.heads), spec.width) for spec in run.layout.arrays}
    assert layers["q"] == layers["z"] == ((0, 1, 3, 4), 4, 8)
    assert layers["k"] == layers["v"] == ((0, 1, 3, 4), 2, 8)
    assert layers["attn_pattern"][0] == layers["resid_pre"][0] == (0, 1, 2, 3, 4, 5)


def test_they_are_what_attention_is_given_in_each_text_alone(model: LoadedModel, run: tf.Run) -> None:
    wide = tf.record(model, TEXTS, "q k v z", layers=[2, 5], dtype="float32", batch_size=3)
    assert {spec.layers for spec in wide.layout.arrays} == {(2, 5)}
    for example, ids in enumerate(TEXTS):
        for layer, own in enumerate(given(model.model, ids)):
            for site, expected in own.items():
                source = wide if layer in (2, 5) and site != "attn_pattern" else run
                recorded = source.get(example, site, layer)
                np.testing.assert_allclose(recorded, expected.numpy(), rtol=2e-5, atol=2e-5, err_msg=f"{site} {layer}")
    assert (run.get(0, "v", 4) == run.get(0, "v", 1)).all()  # shared with the last of its kind that makes its own
    assert (wide.get(0, "k", 5) == wide.get(0, "k", 2)).all()


def test_a_head_reads_the_kv_head_of_its_layer(model: LoadedModel, run: tf.Run) -> None:
    wide = tf.record(model, TEXTS, "k", layers=[2], dtype="float32")
    for head in range(4):
        assert (wide.qkv(1, "k", layer=2, head=head) == wide.get(1, "k", 2)[0]).all()
        assert (run.qkv(1, "k", layer=1, head=head) == run.get(1, "k", 1)[head // 2]).all()
    with pytest.raises(SelectionError, match="layer 2 requested"):
        run.qkv(1, "k", layer=2, head=0)


def test_a_run_states_the_sizes_of_its_layers(run: tf.Run) -> None:
    dims = run.about.dims_of("dec")
    assert dims.at((2,)).d_head == 16
    assert dims.at((0, 1)).n_kv_heads == 2
    assert Dims.from_json(dims.to_json()) == dims
    assert "by_layer" not in Dims(n_layers=2, n_heads=4).to_json()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"num_kv_shared_layers": 0}, {"use_double_wide_mlp": True}])
def test_every_fact_about_such_models_holds(changes: dict[str, Any]) -> None:
    checked: Any = tf.check(tf.load_model(tiny_model("gemma4_text", **changes)))
    assert checked.ok
    facts = {f"{proof.key} {proof.fact}" for proof in getattr(checked, "result", checked).proofs}
    assert "dec.self.attn_pattern equals the model's own eager attentions" in facts
    if changes.get("num_kv_shared_layers") != 0:
        assert "dec.self.k is that of the layer that it is shared with" in facts


@pytest.mark.slow
def test_what_is_seen_while_generating_is_what_a_replay_sees(load: Callable[..., LoadedModel]) -> None:
    model = load("gemma4_text")
    sites = "q k v attn_pattern z attn_out resid_post"
    live, replay = (
        tf.generate(
            *(model, ["The river froze"], sites),
            layers=[0, 1, 3, 4],
            max_tokens=8,
            temperature=0,
            dtype="float32",
            replay=replay,
        )
        for replay in (False, True)
    )
    assert live.tokens["input_ids"][0].tolist() == replay.tokens["input_ids"][0].tolist()
    for spec in live.layout.arrays:
        for layer in spec.layers:
            rows, again = (run.get(0, spec.key, layer) for run in (live, replay))
            np.testing.assert_allclose(rows, again, rtol=1e-5, atol=5e-5, err_msg=f"{spec.key} {layer}")
