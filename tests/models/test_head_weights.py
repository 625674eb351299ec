"""The weights of heads, against what the modules of real classes make of the stream when all biases are zero."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.families import PREDICTING, mostly_slow
from tests.tiny_folders import write_tiny_model
from traceformer.capture.extract import record
from traceformer.errors import Unsupported
from traceformer.models.head_weights import LayerHeads, head_weights_of, open_head_weights
from traceformer.models.load import load_model
from traceformer.shapes import Float

IDS = [[5, 17, 31, 44, 5, 63, 17, 80]]
NO_CIRCUITS = {
    "codegen": "is not known",
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "falcon_h1"), "is not known"),
    **dict.fromkeys(("zamba2", "zamba2_rotary"), "is not known"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v2_latent_queries"), "a row that is normed"),
    **dict.fromkeys(("deepseek_v3", "deepseek_v3_latent_queries", "glm4_moe_lite"), "a row that is normed"),
    **dict.fromkeys(("gemma4_text", "gemma4_text_without_sharing"), "heads of several shapes"),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "xlstm"), "no attention"),
    "opt_post_norm": "norm the stream after each addition",
    **dict.fromkeys(("t5", "t5_gated", "mt5", "bart", "plbart", "blenderbot-small", "marian"), "two residual streams"),
    **dict.fromkeys(("mbart", "blenderbot", "pegasus", "m2m_100"), "two residual streams"),
}
DECODERS = [name for name in PREDICTING if name not in NO_CIRCUITS]
FAST = ("gpt2", "gemma2", "falcon_new")


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns a tiny model's folder in which every bias is zero, so that what is left out here is nothing."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("plain") / family
            model = write_tiny_model(made[family], family)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith("bias"):
                        parameter.zero_()
            model.save_pretrained(made[family])
        return made[family]

    return folder


def alike(ours: Float[np.ndarray, "row feature"], theirs: Float[np.ndarray, "row feature"]) -> float:
    """The largest difference between rows that are made equally long."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (ours.astype(float), theirs.astype(float))]
    return float(np.abs(unit[0] - unit[1]).max())


def through_norm(model: Any, layer: int, which: str, rows: np.ndarray) -> np.ndarray:
    """Rows (head, position, d_head) of a projection through the model's own norm of queries or keys."""
    ends = tuple(f".{layer}.self_attn.{which}_{norm}" for norm in ("norm", "layernorm"))
    norm = next((module for name, module in model.named_modules() if name.endswith(ends)), None)
    if norm is None:
        return rows
    given, weight = torch.from_numpy(rows), next(norm.parameters(), None)
    with torch.no_grad():
        if weight is not None and weight.shape == (rows.shape[0] * rows.shape[2],) != rows.shape[2:]:
            return norm(given.transpose(0, 1).flatten(1)).unflatten(1, rows.shape[::2]).transpose(0, 1).numpy()
        if weight is not None and weight.dim() == 2:
            return norm(given.transpose(0, 1)).transpose(0, 1).numpy()
        return norm(given[None])[0].numpy()


@pytest.mark.parametrize("family", mostly_slow(DECODERS, FAST))
def test_heads_are_what_the_modules_multiply_by(family: str, plain_folder: Callable[[str], Path]) -> None:
    folder = plain_folder(family)
    loaded = load_model(str(folder))
    weights = open_head_weights(folder)
    sites = "token_embed resid_pre q_proj k_proj v_proj attn_out"
    has_z = loaded.built.has_attention_function
    run = record(loaded, IDS, f"{sites} z" if has_z else sites, dtype="float32")
    centred = weights.readout.norm is not None and weights.readout.norm.startswith("layer")
    clipped = getattr(loaded.config, "clip_qkv", None) is not None
    for layer in weights.dims.attention_layers:
        own: LayerHeads = weights.layer(layer)
        stream = run.get(0, "resid_pre", layer).astype(float)
        for which, heads in (("q", own.query), ("k", own.key), ("v", own.value)):
            projected = run.get(0, f"{which}_proj", layer)
            group = weights.dims.n_heads // len(projected)
            theirs = through_norm(loaded.model, layer, which, projected) if which != "v" else projected
            for head in range(0 if clipped else weights.dims.n_heads):
                assert alike(stream @ heads[head], theirs[head // group]) < 2e-5, (layer, which, head)
        if has_z:
            written = np.einsum("hpd,hdm->pm", run.get(0, "z", layer).astype(float), own.out)
            theirs = run.get(0, "attn_out", layer).astype(float)
            theirs = theirs - theirs.mean(axis=1, keepdims=True) * centred
            assert alike(written, theirs) < 2e-5
    assert weights.embedding.shape == (len(loaded.model.get_input_embeddings().weight), weights.dims.d_model)
    table: Any = loaded.model.get_input_embeddings()
    embedded = table.weight.detach().numpy()
    np.testing.assert_array_equal(weights.embedding.rows(0, len(embedded)), embedded)
    if weights.positions is not None:
        assert weights.kind == "learned"
        made = run.get(0, "resid_pre", 0) - run.get(0, "token_embed")
        np.testing.assert_allclose(weights.positions[: len(made)], made, atol=1e-6)


@pytest.mark.parametrize("family", mostly_slow(DECODERS, ("gpt2", "falcon_new")))
def test_a_folder_and_a_loaded_model_give_the_same(family: str, plain_folder: Callable[[str], Path]) -> None:
    folder = plain_folder(family)
    read, held = open_head_weights(folder), head_weights_of(load_model(str(folder)))
    for layer in (read.dims.attention_layers[0], read.dims.attention_layers[-1]):
        for name in LayerHeads.__slots__:
            np.testing.assert_allclose(getattr(read.layer(layer), name), getattr(held.layer(layer), name), atol=1e-6)
    assert (read.positions is None) == (held.positions is None) == (held.kind != "learned")


@pytest.mark.parametrize("family", mostly_slow(NO_CIRCUITS, ("codegen", "opt_post_norm")))
def test_what_heads_are_not_known_of_is_refused(family: str, plain_folder: Callable[[str], Path]) -> None:
    with pytest.raises(Unsupported) as caught:
        open_head_weights(plain_folder(family))
    assert NO_CIRCUITS[family] in f"{caught.value.message} {caught.value.why}"
