"""A decoder that looks both ways: what its queries see is measured, in a run and in a live model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.analysis.plain_heads import plain_metrics
from traceformer.analysis.paths.trace import PathOptions
from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.errors import Unsupported
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.questions import live_paths
from traceformer.questions.heads import heads
from traceformer.questions.paths import paths
from traceformer.questions.sights import sights_of

TEXT = "Seven ships left the harbour at dawn."
WINDOW = 5  # what Gemma 3 makes of 8: so many tokens to either side, itself counted


@pytest.fixture(scope="module")
def both_ways(tiny_folder: Callable[..., Path]) -> LoadedModel:
    folder = tiny_folder("gemma3_text", use_bidirectional_attention=True, sliding_window=8)
    return load_model(str(folder), device="cpu", attn_implementation="eager")


@pytest.fixture(scope="module")
def own_patterns(both_ways: LoadedModel) -> np.ndarray:
    """What the model itself returns: (layer, head, query, key)."""
    ids = torch.tensor([both_ways.tokenizer(TEXT)["input_ids"]])
    with torch.inference_mode():
        return torch.cat(both_ways.model(ids, output_attentions=True).attentions).numpy()


@pytest.mark.parametrize("live", [True, False], ids=["live", "stored"])
def test_paths_follow_the_weights_on_later_tokens(live: bool, both_ways: LoadedModel, own_patterns: np.ndarray) -> None:
    mean, target = own_patterns[0].mean(axis=0), 3
    assert mean[target, target + 1 :].sum() > 0.1  # what a causal search drops
    if live:
        found = paths(both_ways, TEXT, to=target, layer=0)
        text = live_paths.Text(np.array(both_ways.tokenizer(TEXT)["input_ids"]), np.ones(len(mean), bool))
        traced = live_paths.TracedModel(both_ways.model, both_ways.tokenizer, both_ways.dims)
        [weights] = live_paths.record(traced, text, 0, PathOptions(), stack="dec")
        np.testing.assert_allclose(weights.matrices[0], mean, atol=1e-5)
        assert weights.looks_ahead
    else:
        found = paths(record(both_ways, [TEXT], "attn", dtype="float32"), 0, to=target, layer=0)
    assert found.settings["kind"] == "any"
    seen = {int(position) for path in found.beams for position in path.positions}
    assert max(seen) > target


@pytest.mark.parametrize("live", [True, False], ids=["live", "stored"])
def test_metrics_of_heads_count_the_later_tokens(live: bool, both_ways: LoadedModel, own_patterns: np.ndarray) -> None:
    if live:
        found = heads(both_ways, [TEXT], dtype="float32").to_frame()
    else:
        run = record(both_ways, [TEXT], "attn", dtype="float32")
        [spec] = run.layout.arrays
        assert [(sight.causal, sight.window) for sight in sights_of(run, spec).values()] == [(False, WINDOW - 1)] * 3
        found = heads(run).to_frame()
    ids = both_ways.tokenizer(TEXT)["input_ids"]
    for _, row in found.iterrows():
        own = own_patterns[row["layer"], row["head"]]
        expected = plain_metrics(own, ids, lambda query, key: abs(query - key) < WINDOW)
        for name in ("entropy", "sparsity", "distance", "self", "previous_token", "duplicate_token"):
            column = "sparsity_0.0001" if name == "sparsity" else name
            assert row[column] == pytest.approx(expected[name], rel=1e-4, abs=1e-5, nan_ok=True)


def test_its_answers_are_not_replayed(both_ways: LoadedModel) -> None:
    with pytest.raises(Unsupported, match="look at later ones"):
        generate(both_ways, TEXT, max_tokens=2, replay=True)
    assert generate(both_ways, TEXT, max_tokens=2).tokens.n_prompt[0] > 0


def test_its_patterns_are_kept_whole_and_those_of_others_as_triangles(
    both_ways: LoadedModel, own_patterns: np.ndarray, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    run = record(both_ways, [TEXT], "attn", dtype="float32", out=tmp_path / "both")
    assert run.layout.triangles == ()
    np.testing.assert_allclose(run.attn(0), own_patterns, atol=1e-5)
    causal = load_model(str(tiny_folder("gemma3_text", sliding_window=8)), device="cpu")
    for run in (record(causal, [TEXT, "Six."], "attn"), generate(causal, TEXT, "attn", max_tokens=2)):
        assert [str(key) for key in run.layout.triangles] == ["dec.self.attn_pattern"]
        assert run.layout.stored_shape(run.layout.arrays[0])[-1] == 64 * 65 // 2
        assert not np.triu(run.attn(0), 1).any()
