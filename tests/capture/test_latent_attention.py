"""Multi-head latent attention: what is recorded is what the weights make of attention's input, a text at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import traceformer as tf
from tests.marks import slow
from traceformer.errors import Unsupported
from traceformer.models.loaded import LoadedModel
from traceformer.store.run import Run

TEXTS = [[*range(5, 5 + length)] for length in (9, 21, 3)]
SITES = "attn_norm q_proj kv_latent q k v attn_scores attn_pattern z attn_out resid_post"
FAMILIES = [
    "deepseek_v3_latent_queries",
    slow("deepseek_v2"),
    slow("deepseek_v2_latent_queries"),
    slow("deepseek_v3"),
    slow("glm4_moe_lite"),
]


Load = Callable[..., LoadedModel]


def by_hand(model: Any, ids: Sequence[int]) -> list[Mapping[str, torch.Tensor]]:
    """The sites of each layer, from the weights and the model's own eager attentions, in plain torch."""
    eager = type(model)(model.config).eval()
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    reads: list[torch.Tensor] = []
    with torch.no_grad():
        hooks = [
            block.input_layernorm.register_forward_hook(lambda module, args, made: reads.append(made[0]))
            for block in eager.model.layers
        ]
        output = eager(torch.tensor([[*ids]]), output_attentions=True)
        for hook in hooks:
            hook.remove()
        found: list[Mapping[str, torch.Tensor]] = []
        for x, block, pattern in zip(reads, eager.model.layers, output.attentions, strict=True):
            own = block.self_attn
            narrow = x @ own.kv_a_proj_with_mqa.weight.T
            latent = own.kv_a_layernorm(narrow[:, :16])
            made = (latent @ own.kv_b_proj.weight.T).reshape(len(ids), 4, 16).transpose(0, 1)
            if own.q_lora_rank is None:
                queries = x @ own.q_proj.weight.T
            else:
                queries = own.q_a_layernorm(x @ own.q_a_proj.weight.T) @ own.q_b_proj.weight.T
            z = pattern[0] @ made[..., 8:]
            found.append(
                {
                    "attn_norm": x,
                    "kv_latent": latent,
                    "q_proj": queries.reshape(len(ids), 4, 12).transpose(0, 1),
                    "k": made[..., :8],
                    "v": made[..., 8:],
                    "attn_pattern": pattern[0],
                    "z": z,
                    "attn_out": z.transpose(0, 1).flatten(1) @ own.o_proj.weight.T,
                }
            )
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_latent_rows_keys_and_values_are_what_the_weights_make_of_each_text_alone(load: Load, family: str) -> None:
    model = load(family)
    run = tf.record(model, TEXTS, SITES, dtype="float32", batch_size=3)
    for example, ids in enumerate(TEXTS):
        for layer, own in enumerate(by_hand(model.model, ids)):
            for site, expected in own.items():
                recorded = run.get(example, site, layer)
                recorded = recorded[..., :8] if site == "k" else recorded  # behind it is what all heads share, rotated
                np.testing.assert_allclose(recorded, expected.numpy(), rtol=2e-5, atol=2e-5, err_msg=site)
            rotated = run.get(example, "k", layer)[..., 8:]
            assert (rotated == rotated[0]).all()


def test_arrays_have_the_widths_of_their_own(load: Load, byte: LoadedModel) -> None:
    run = tf.record(load("deepseek_v3"), TEXTS, SITES, dtype="float32")
    widths = {spec.key.site: spec.width for spec in run.layout.arrays}
    assert (widths["q"], widths["k"], widths["v"], widths["z"], widths["kv_latent"]) == (12, 12, 8, 8, 16)
    dims = run.about.dims_of("dec")
    assert (dims.d_head, dims.d_value, dims.d_latent) == (12, 8, 16)
    assert (tf.record(byte, ["a"], "v").about.dims_of("dec").d_value) is None


def test_a_projection_that_makes_keys_and_values_at_once_is_refused_by_name(load: Load, byte: LoadedModel) -> None:
    model = load("deepseek_v3")
    for site in ("k_proj", "v_proj"):
        with pytest.raises(Unsupported, match="one projection makes keys and values of a latent row"):
            tf.record(model, TEXTS, site)
    with pytest.raises(Unsupported, match="made of attention's input, not of a narrower row"):
        tf.record(byte, ["a"], "kv_latent")


def rows_of(run: Run) -> dict[tuple[str, int], np.ndarray]:
    return {(str(spec.key), layer): run.get(0, spec.key, layer) for spec in run.layout.arrays for layer in spec.layers}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_seen_while_generating_is_what_a_replay_sees(load: Load, family: str) -> None:
    model = load(family)
    sites = "kv_latent q k v attn_pattern z attn_out resid_post"
    live, replay = (
        tf.generate(model, ["The river froze"], sites, max_tokens=6, temperature=0, dtype="float32", replay=replay)
        for replay in (False, True)
    )
    assert live.tokens["input_ids"][0].tolist() == replay.tokens["input_ids"][0].tolist()
    for place, rows in rows_of(live).items():
        np.testing.assert_allclose(rows, rows_of(replay)[place], rtol=1e-5, atol=1e-5, err_msg=str(place))


def test_a_head_without_its_mixed_values_adds_nothing(load: Load) -> None:
    model = load("deepseek_v3")
    with tf.edit(model, tf.edits.zero("z", layer=1, head=2)):
        without = tf.record(model, TEXTS[:1], "attn_out z", dtype="float32")
    whole = tf.record(model, TEXTS[:1], "attn_out z", dtype="float32")
    own = whole.get(0, "z", 1)
    w_o = model.model.model.layers[1].self_attn.o_proj.weight.detach().numpy()[:, 16:24]
    expected = whole.get(0, "attn_out", 1) - own[2] @ w_o.T
    np.testing.assert_allclose(without.get(0, "attn_out", 1), expected, rtol=1e-5, atol=1e-5)
    assert (without.get(0, "z", 1)[2] == 0).all()


def test_heads_of_latent_attention_have_no_circuits_in_the_stream(load: Load) -> None:
    with pytest.raises(Unsupported, match="made by way of a row that is normed"):
        tf.circuits(load("deepseek_v3"))
