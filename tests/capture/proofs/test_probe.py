"""What is found out about families that have no row."""

import json
from typing import Any

import pytest
import torch

from traceformer.capture.proofs.check import random_examples
from traceformer.capture.proofs.probe import Probe, probe_model
from traceformer.errors import Unsupported
from traceformer.models.families import FAMILIES
from traceformer.models.tiny import TINY, tiny_model

SIZES = {
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
# Families of transformers without a row here.
STRANGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "stablelm": ("StableLmForCausalLM", {**SIZES, "num_key_value_heads": 2}),
    "granite": ("GraniteForCausalLM", {**SIZES, "num_key_value_heads": 2, "residual_multiplier": 0.5}),
    "phi": ("PhiForCausalLM", SIZES),
    "xglm": (
        "XGLMForCausalLM",
        {"vocab_size": 99, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48},
    ),
    "mamba": ("MambaForCausalLM", {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}),
    "mbart": (
        "MBartForConditionalGeneration",
        {
            **{name: SIZES[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "decoder_start_token_id": 2,
        },
    ),
}


def probe(family: str, monkeypatch: pytest.MonkeyPatch) -> Probe:
    assert family not in FAMILIES
    monkeypatch.setitem(TINY, family, STRANGERS[family])  # pyright: ignore[reportArgumentType]
    model = tiny_model(family)
    before = (model.config._attn_implementation, model.training)
    found = probe_model(model, random_examples(model.config)[:2], name=family)
    assert (model.config._attn_implementation, model.training) == before
    return found


def test_a_family_that_an_existing_row_fits_needs_only_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe("stablelm", monkeypatch)
    assert (found.blocks, found.attention, found.obstacle) == (("layers",), ("layers.*.self_attn",), "")
    assert found.nearest is not None
    assert found.nearest.result.ok
    assert "llama" in found.nearest.families.split(", ")
    assert "add 'stablelm' to FAMILIES" in found.advice


def test_a_family_that_a_row_nearly_fits_is_told_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe("granite", monkeypatch)
    assert found.nearest is not None
    # Granite adds half of what a sublayer puts out.
    assert {proof.key for proof in found.nearest.result.proofs if not proof.ok} == {"dec.resid_mid", "dec.resid_post"}
    assert "begin with the row of byte_sparse, gemma, llama" in found.advice


def test_without_a_row_that_fits_the_stream_and_attention_can_be_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe("phi", monkeypatch)
    assert found.nearest is None
    assert found.without_row is not None
    assert found.without_row.ok
    proved = {proof.key for proof in found.without_row.proofs}
    assert proved >= {
        "dec.resid_pre",
        "dec.resid_post",
        "dec.hidden",
        "dec.self.q",
        "dec.self.attn_pattern",
        "dec.self.z",
    }
    assert found.parts["self_attn.q_proj"] == "Linear"
    assert "write a row" in found.advice


def test_attention_out_of_sight_leaves_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe("xglm", monkeypatch)
    assert found.attention == ()
    assert found.without_row is not None
    assert found.without_row.ok
    assert {proof.key for proof in found.without_row.proofs} == {
        "dec.token_embed",
        "dec.embed",
        "dec.resid_pre",
        "dec.resid_post",
        "dec.hidden",
    }


def test_an_encoder_decoder_names_the_attention_of_both_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe("mbart", monkeypatch)
    assert found.blocks == ("encoder.layers", "decoder.layers")
    assert found.attention == (
        "encoder.layers.*.self_attn",
        "decoder.layers.*.self_attn",
        "decoder.layers.*.encoder_attn",
    )
    assert found.without_row is None


def test_an_argument_to_attention_that_is_not_understood_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TINY, "phi", STRANGERS["phi"])  # pyright: ignore[reportArgumentType]
    model = tiny_model("phi")
    attention = model.model.layers[0].self_attn
    forward = attention.forward

    def with_slopes(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, alibi_slopes=torch.ones(4), **kwargs)

    monkeypatch.setattr(attention, "forward", with_slopes)
    found = probe_model(model, random_examples(model.config)[:2])
    assert "PhiAttention passes alibi_slopes to attention" in found.obstacle
    assert model.config._attn_implementation == "sdpa"


def test_a_model_without_heads_is_not_a_transformer_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match="'mamba' has no attention heads"):
        probe("mamba", monkeypatch)


def test_a_probe_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe("granite", monkeypatch)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["model_type"] == "granite"
    assert data["nearest"]["result"]["ok"] is False
    assert data["without_row"]["ok"] is True
    assert data["advice"] == found.advice
