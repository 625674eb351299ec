"""Circuits of the built-in model, without torch; and composition and copying against TransformerLens."""

import copy
import inspect
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from tests.conftest import skip
from traceformer.errors import NotFound, Unsupported, UsageError
from traceformer.figures.circuit_maps import circuits_figure
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.questions.circuits import circuits
from traceformer.questions.heads import heads


def test_a_folder_and_the_loaded_model_have_the_same_circuits(byte: LoadedModel) -> None:
    read, held = circuits("byte"), circuits(byte)
    np.testing.assert_array_equal(read.composition, held.composition)
    assert read.to_json()["heads"] == held.to_json()["heads"]
    assert read.shape == (4, 8)


def test_a_folder_needs_no_torch() -> None:
    code = "import sys, traceformer as tf; tf.circuits('byte'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_heads_that_look_at_the_token_before_feed_the_keys_of_those_that_do_induction(byte: LoadedModel) -> None:
    """What metrics measure on repeated text, the three strongest compositions say without any."""
    texts = ["xqvkjzwpyfab" * 3, "mtrnsldhcg" * 3]
    measured = heads(byte, texts)
    edges = circuits("byte").strongest(3)
    assert [edge.kind for edge in edges] == ["K"] * 3
    for edge in edges:
        assert measured.grid("previous_token")[edge.from_layer, edge.from_head] > 0.8
        assert measured.grid("induction")[edge.to_layer, edge.to_head] > 0.8


def test_measured_scores_stand_in_for_positions(byte: LoadedModel) -> None:
    measured = heads(byte, ["return the name of the name"])
    found = circuits(byte, measured=measured)
    assert "as measured" in found.notes["induction"]
    assert np.isfinite(found.values["induction"][1:]).all()


def test_what_is_no_model_or_no_decoder_is_refused(tmp_path: Any) -> None:
    with pytest.raises(NotFound):
        circuits(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is no model"):
        inspect.unwrap(circuits)(3)  # pyright: ignore[reportArgumentType]  # as users have it, unchecked
    with pytest.raises(Unsupported, match="encoder"):
        circuits(load_model(tiny_model("bert")))


def test_the_figure_has_a_cell_per_head_and_a_line_per_edge(byte: LoadedModel) -> None:
    figure = circuits_figure(circuits(byte), top=7)
    left, right = figure.axes[:2]
    assert len(left.texts) == 32
    assert len(right.lines) == 7


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen2", "gemma", "opt", "byte"])
def test_transformer_lens_has_the_same_scores(family: str, byte: LoadedModel) -> None:
    """Of its bridge with norms folded, weights centred and the unembedding centred, as it processes them by default."""
    if find_spec("transformer_lens") is None:
        skip("transformer_lens")
    from transformer_lens import FactoredMatrix  # pyright: ignore
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore

    model = copy.deepcopy(byte.model).float() if family == "byte" else tiny_model(family)
    ours = circuits(load_model(copy.deepcopy(model)))
    theirs: Any = TransformerBridge.boot_transformers(family, hf_model=model, tokenizer=byte.tokenizer)
    theirs.enable_compatibility_mode(disable_warnings=True)
    for number, mode in enumerate("QKV"):
        scores = theirs.all_composition_scores(mode).scores.detach().numpy()
        np.testing.assert_allclose(np.nan_to_num(ours.composition[number]), scores, atol=1e-5)
    ov = FactoredMatrix(theirs.OV.A.double(), theirs.OV.B.double())
    eigenvalues = (theirs.W_E.double() @ ov @ theirs.W_U.double()).eigenvalues.detach().numpy()
    copying = (eigenvalues.sum(axis=-1) / np.abs(eigenvalues).sum(axis=-1)).real
    np.testing.assert_allclose(ours.values["copying"], copying, atol=1e-5)
