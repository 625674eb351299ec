"""The interface of the reverse-attention package: same numbers, same JSON, same refusals."""

import copy
import gc
import json
import tracemalloc
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reverse_attention import ReverseAttentionTracer as ForeignTracer
from reverse_attention import TraceResult as ForeignResult
from reverse_attention.sankey import trace_result_to_json

from traceformer.analysis.paths.result import TraceResult
from traceformer.bytelm.tokenizer import ByteTokenizer
from traceformer.capture.recorder import Recorder
from traceformer.compat.reverse_attention import ReverseAttentionTracer
from traceformer.errors import NumericError, SelectionError, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model

TEXT = "The river froze over during the night, and she counted 12 ships."
FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "gemma2", "gpt_neox", "opt", "mistral")

Load = Callable[..., LoadedModel]


def tracer_of(loaded: LoadedModel) -> ReverseAttentionTracer:
    return ReverseAttentionTracer(loaded.model, loaded.tokenizer)


def assert_same(own: TraceResult, foreign: ForeignResult) -> None:
    """Fails unless two results are the same, up to the rounding of attention computed in another order."""
    assert (own.seq_len, own.target_pos, own.layer) == (foreign.seq_len, foreign.target_pos, foreign.layer)
    assert (own.top_beam, own.top_k, own.tokens) == (foreign.top_beam, foreign.top_k, foreign.tokens)
    for mine, theirs in zip(own.beams, foreign.beams, strict=True):
        assert (mine.positions, mine.tokens, mine.token_ids) == (theirs.positions, theirs.tokens, theirs.token_ids)
        assert mine.edge_attns == pytest.approx(theirs.edge_attns, abs=1e-5)
        assert (mine.score_raw, mine.score_norm) == pytest.approx((theirs.score_raw, theirs.score_norm), rel=1e-4)
    assert [vars_of(node) for node in own.sankey.nodes] == [vars_of(node) for node in foreign.sankey.nodes]
    assert [(k.source, k.target, k.beam_indices) for k in own.sankey.links] == [
        (k.source, k.target, k.beam_indices) for k in foreign.sankey.links
    ]
    assert [k.value for k in own.sankey.links] == pytest.approx([k.value for k in foreign.sankey.links], abs=1e-5)
    assert [words.rsplit(" ", 1)[0] for words in own.paths_text] == [
        words.rsplit(" ", 1)[0] for words in foreign.paths_text
    ]


def vars_of(node: Any) -> tuple[str, str, int, int]:
    return node.id, node.name, node.position, node.layer


@pytest.mark.parametrize("count", [8, pytest.param(64, marks=pytest.mark.slow)])  # 512 over all families
@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_the_reverse_attention_package_on_a_real_model(family: str, count: int, load: Load) -> None:
    """The package needs the model in eager attention; ours takes it as it is loaded."""
    loaded, eager = load(family), load(family, attn_implementation="eager")
    own, foreign = tracer_of(loaded), ForeignTracer(eager.model, eager.tokenizer)
    random = np.random.default_rng(FAMILIES.index(family))
    for _ in range(count):
        n = int(random.integers(2, 30))
        ids = torch.from_numpy(random.integers(3, 99, (1, n)))
        ids[0, 0] = loaded.tokenizer.bos_token_id
        options = {
            "target_pos": int(random.integers(-n, n)),
            "layer": int(random.integers(-3, 3)),
            "top_beam": int(random.integers(1, 7)),
            "top_k": int(random.integers(1, 7)),
            "min_attn": float(random.choice([0.0, 0.02])),
            "agg_heads": str(random.choice(["mean", "max"])),
            "length_norm": str(random.choice(["none", "avg_logprob", "sqrt", "pow:0.7"])),
        }
        assert_same(own.trace(ids, **options), foreign.trace(ids, **options))


def test_the_json_of_a_result_is_the_packages_with_more_beside_it(load: Load) -> None:
    loaded, eager = load("llama"), load("llama", attn_implementation="eager")
    ids = torch.tensor([[loaded.tokenizer.bos_token_id, *range(5, 20)]])
    own = tracer_of(loaded).trace(ids, layer=1).to_json()
    foreign = trace_result_to_json(ForeignTracer(eager.model, eager.tokenizer).trace(ids, layer=1))
    assert_holds(own, json.loads(foreign))


def assert_holds(own: Any, other: Any) -> None:
    """Fails unless everything in the other one is in this one, at the same place and of the same type."""
    if isinstance(other, dict):
        for name, value in other.items():
            assert_holds(own[name], value)
    elif isinstance(other, list):
        for mine, theirs in zip(own, other, strict=True):
            assert_holds(mine, theirs)
    else:
        assert type(own) is type(other)
        assert own == (pytest.approx(other, rel=1e-4) if isinstance(other, float) else other)


def test_agrees_with_the_package_on_a_text_and_with_a_mask(load: Load) -> None:
    loaded, eager = load("llama"), load("llama", attn_implementation="eager")
    own, foreign = tracer_of(loaded), ForeignTracer(eager.model, eager.tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the package warns of a text without a BOS token
        assert_same(own.trace_text(TEXT, top_beam=3), foreign.trace_text(TEXT, top_beam=3))
        ids = torch.tensor([[5, 6, 7, 8, 9, 10, 0, 0]])
        mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]])
        assert_same(own.trace(ids, 5, mask), foreign.trace(ids, 5, mask))


def test_padding_before_or_after_changes_nothing_but_positions(load: Load) -> None:
    for family in ("gpt2", "bert"):
        tracer = tracer_of(load(family))
        ids = [5, 6, 7, 8, 9, 10]
        alone = tracer.trace(ids)
        padded = tracer.trace([[0, 0, *ids, 0]], -2)
        assert [[p - 2 for p in path.positions] for path in padded.beams] == [path.positions for path in alone.beams]
        assert [path.score_raw for path in padded.beams] == pytest.approx([path.score_raw for path in alone.beams])


def test_a_bos_token_that_is_also_the_padding_token_is_a_token(load: Load) -> None:
    """The package masks it away, and with it the sink that most paths end in."""
    loaded = load("gpt2")
    loaded.tokenizer.pad_token = loaded.tokenizer.bos_token
    result = tracer_of(loaded).trace([loaded.tokenizer.bos_token_id, 7, 8, 9])
    assert {path.positions[-1] for path in result.beams} == {0}


def test_masked_tokens_in_the_middle_are_never_entered(load: Load) -> None:
    result = tracer_of(load("llama")).trace(
        [5, 6, 7, 8, 9, 10], attention_mask=[1, 1, 0, 1, 1, 1], top_beam=50, top_k=9
    )
    assert all(2 not in path.positions for path in result.beams)


def test_many_targets_come_from_one_pass(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = tracer_of(load("gpt2"))
    ids = list(range(5, 25))
    alone = [tracer.trace(ids, target, agg_heads="max") for target in range(20)]
    passes: list[int] = []
    run = Recorder.run
    monkeypatch.setattr(Recorder, "run", lambda *args, **kwargs: (passes.append(1), run(*args, **kwargs))[1])
    assert tracer.trace_targets(ids, range(20), agg_heads="max") == alone
    assert len(passes) == 1


def test_nothing_runs_after_the_layer_that_is_traced(load: Load) -> None:
    loaded = load("gpt2")
    seen: list[int] = []
    for number, block in enumerate(loaded.model.base_model.h):
        block.register_forward_hook(lambda *_, number=number: seen.append(number))
    tracer_of(loaded).trace([5, 6, 7], layer=1)
    assert seen == [0]  # block 1 was left in the middle


def test_no_more_is_kept_than_a_matrix_per_layer() -> None:
    model = tiny_model("gpt2", n_positions=512, n_head=16, n_embd=64)
    tracer = ReverseAttentionTracer(model, ByteTokenizer())
    ids = np.random.default_rng(0).integers(0, 99, 400)
    tracer.trace(ids)
    gc.collect()
    tracemalloc.start()
    tracer.trace(ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_matrix = 400 * 400 * 4
    assert peak < 8 * one_matrix  # of numpy's; all heads of a layer would be 16


def test_attention_of_each_head_is_traced_by_itself(load: Load) -> None:
    tracer = tracer_of(load("gpt2"))
    result = tracer.trace(list(range(5, 15)), agg_heads="none")
    alone = [tracer.trace(list(range(5, 15)), agg_heads=head) for head in range(4)]
    assert [head.beams for head in result.heads] == [one.beams for one in alone]
    assert [one.settings["heads"] for one in alone] == [[0], [1], [2], [3]]


def eager_attentions(loaded: LoadedModel, ids: list[int]) -> np.ndarray:
    model = loaded.model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(torch.tensor([ids]), output_attentions=True).attentions
    return torch.stack(attentions)[:, 0].numpy()  # (layer, head, query, key)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_value_norms_are_those_of_what_attention_adds(family: str, load: Load) -> None:
    """Kobayashi's norms from what the model itself mixes: values follow from z = pattern v, W_O is its own module."""
    loaded, ids, layer = load(family), list(range(5, 13)), 1
    own = tracer_of(loaded).trace(ids, layer=layer, weighting="value-norm", top_beam=40, top_k=9)
    pattern = torch.from_numpy(eager_attentions(loaded, ids)[layer]).double()
    base: Any = loaded.model.base_model
    out: Any = {
        "gpt2": lambda: base.h[layer].attn.c_proj,
        "llama": lambda: base.layers[layer].self_attn.o_proj,
        "gpt_neox": lambda: base.layers[layer].attention.dense,
    }[family]()
    seen: list[torch.Tensor] = []
    out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()[0]))
    norms = np.zeros((8, 8))
    with torch.no_grad():
        loaded.model(torch.tensor([ids]))
        z = seen[0].unflatten(-1, (4, 8)).transpose(0, 1).double()  # (head, query, d_head)
        values = torch.linalg.solve_triangular(pattern, z, upper=False)
        nothing = out(torch.zeros(1, 1, 32))
        for query, key in np.ndindex(8, 8):
            moved = (pattern[:, query, key, None] * values[:, key]).reshape(1, 1, 32).float()
            norms[query, key] = float((out(moved) - nothing).norm())
    expected = norms / norms.sum(axis=1, keepdims=True)
    for path in own.beams:
        for edge, weight in zip(pairwise(path.positions), path.edge_attns, strict=True):
            assert weight == pytest.approx(expected[edge], abs=2e-4)


def test_rollout_is_the_product_of_eager_attentions(load: Load) -> None:
    loaded, ids = load("gpt2"), list(range(5, 14))
    result = tracer_of(loaded).trace(ids, layer="all", weighting="rollout")
    product = np.eye(9)
    for attention in eager_attentions(loaded, ids).mean(axis=1):
        product = (0.5 * attention + 0.5 * np.eye(9)) @ product
    assert result.attribution["rollout"] == pytest.approx(product[-1], abs=1e-5)
    assert all(path.states == [3, 2, 1, 0] for path in result.beams)


def test_an_encoder_is_traced_both_ways_to_its_special_tokens(minilm: Path) -> None:
    from traceformer.models.load import load_model

    loaded = load_model(str(minilm), device="cpu")
    result = tracer_of(loaded).trace_text("The bees dance to tell the others.", 2, top_beam=20)
    assert any(position > 2 for path in result.beams for position in path.positions)
    assert {path.tokens[-1] for path in result.beams} <= {"[CLS]", "[SEP]"}


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_decoder_is_traced_into_its_source(family: str, load: Load) -> None:
    loaded = load(family)
    tracer, ids, decoder_ids = tracer_of(loaded), list(range(5, 12)), [0, 20, 21, 22]
    result = tracer.trace(ids, decoder_input_ids=decoder_ids, layer=1, top_beam=9, top_k=9)
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        output = loaded.model(
            input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([decoder_ids]), output_attentions=True
        )
    own, cross = (each[1][0].mean(dim=0).numpy() for each in (output.decoder_attentions, output.cross_attentions))
    for path in result.beams:
        *inside, last = path.positions
        assert (inside[0], path.stacks) == (3, ["dec"] * len(inside) + ["enc"])
        expected = [*(own[edge] for edge in pairwise(inside)), cross[inside[-1], last]]
        assert path.edge_attns == pytest.approx(expected, abs=1e-5)
    assert result.source_tokens == tracer.trace(ids).tokens
    assert tracer.trace_text(TEXT, target_text="it froze").settings["kind"] == "cross"


def test_device_and_dtype_are_honoured(load: Load) -> None:
    loaded = load("gpt2")
    tracer = ReverseAttentionTracer(loaded.model, loaded.tokenizer, device="cpu", dtype=torch.bfloat16)
    assert (tracer.dtype, loaded.model.dtype, str(tracer.device)) == (torch.bfloat16, torch.bfloat16, "cpu")
    assert tracer.trace([5, 6, 7]).beams


def test_a_model_in_train_mode_is_traced_without_dropout_and_stays_in_it(load: Load) -> None:
    loaded = load("gpt2")
    model = torch.nn.DataParallel(copy.deepcopy(loaded.model).train())
    result = ReverseAttentionTracer(model, loaded.tokenizer).trace_text(TEXT)
    assert all(module.training for module in model.modules())
    assert [path.edge_attns for path in result.beams] == [
        path.edge_attns for path in tracer_of(loaded).trace_text(TEXT).beams
    ]


def test_tokens_of_a_byte_model_are_shown_as_characters_or_bytes() -> None:
    tracer = ReverseAttentionTracer(tiny_model("gpt2", vocab_size=258), ByteTokenizer())
    result = tracer.trace_text("a<b>€")
    assert result.tokens == ["a", "<", "b", ">", r"\xe2", r"\x82", r"\xac"]
    assert result.token_bytes == [None, None, None, None, "e2", "82", "ac"]


def test_one_token_is_a_path_of_no_edge(load: Load) -> None:
    result = tracer_of(load("gpt2")).trace([7])
    assert [path.positions for path in result.beams] == [[0]]
    assert (result.beams[0].score_norm, result.sankey.links) == (0.0, [])


BAD = {
    "no token": ({"input_ids": []}, UsageError, "no token"),
    "no text": ({"input_ids": [[]]}, UsageError, "no token"),
    "two texts": ({"input_ids": [[1, 2], [3, 4]]}, UsageError, r"\(1, token\)"),
    "fractions": ({"input_ids": [1.5, 2.0]}, UsageError, "whole numbers"),
    "an id without embedding": ({"input_ids": [99]}, UsageError, "ids 0-98"),
    "a negative id": ({"input_ids": [-1]}, UsageError, "ids 0-98"),
    "too many tokens": ({"input_ids": [5] * 65}, UsageError, "more than the model's 64"),
    "target too late": ({"target_pos": 3}, UsageError, "tokens 0-2"),
    "target too early": ({"target_pos": -4}, UsageError, "tokens 0-2"),
    "target in the padding": ({"attention_mask": [1, 1, 0]}, UsageError, "padding"),
    "no layer 3": ({"layer": 3}, UsageError, "layers 0-2"),
    "no layer -4": ({"layer": -4}, UsageError, "layers 0-2"),
    "a mask too short": ({"attention_mask": [1, 1]}, UsageError, "mask of 2 for 3"),
    "a mask of two texts": ({"attention_mask": np.ones((2, 3))}, UsageError, r"\(2, 3\)"),
    "only padding": ({"attention_mask": [0, 0, 0]}, UsageError, "all tokens are padding"),
    "no head 4": ({"agg_heads": 4}, SelectionError, "heads 0-3"),
    "no way to combine": ({"agg_heads": "sum"}, UsageError, "mean, max, none"),
    "no decoder": ({"decoder_input_ids": [1]}, UsageError, "no decoder beside"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str, load: Load) -> None:
    change, error, words = BAD[name]
    with pytest.raises(error, match=words):
        tracer_of(load("gpt2")).trace(**{"input_ids": [5, 6, 7], **change})


def test_what_no_model_can_give_is_refused(load: Load) -> None:
    with pytest.raises(Unsupported, match="attention"):
        tracer_of(load("xglm")).trace([5, 6, 7])
    with pytest.raises(Unsupported, match="into its source"):
        tracer_of(load("t5")).trace([5, 6], decoder_input_ids=[0, 7], layer="all")
    with pytest.raises(UsageError, match="no decoder"):
        tracer_of(load("gpt2")).trace_text(TEXT, target_text="x")
    with pytest.raises(TypeError, match="depth"):
        tracer_of(load("gpt2")).trace([5, 6], depth=3)


def test_weights_that_are_not_numbers_are_refused(load: Load) -> None:
    loaded = load("gpt2")
    with torch.no_grad():
        loaded.model.base_model.h[0].attn.c_attn.weight.fill_(torch.nan)
    with pytest.raises(NumericError, match="not numbers"):
        tracer_of(loaded).trace([5, 6, 7])


def test_a_softmax_with_sinks_may_sum_to_less_than_one(load: Load) -> None:
    result = tracer_of(load("gpt_oss")).trace([5, 6, 7, 8])
    low, high = result.settings["row_sums"]
    assert 0 < low < high <= 1


def test_html_tokens_are_only_text() -> None:
    names = ["<img src=x onerror=alert(1)>", "</script>", "&amp;"]
    tokenizer = SimpleNamespace(
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        convert_ids_to_tokens=lambda ids: [names[each % 3] for each in ids],
        decode=lambda ids: names[ids[0] % 3],
    )
    result = ReverseAttentionTracer(tiny_model("gpt2"), tokenizer).trace([3, 4, 5, 6])
    assert result.tokens == [*names, names[0]]
    assert "<img" not in result._repr_html_()


def test_a_page_and_its_data_are_written_side_by_side(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from traceformer.formats.results.path_traces import load_trace

    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    tracer = tracer_of(load("gpt2"))
    result = tracer.trace([5, 6, 7])
    page = tracer.render_html(result, tmp_path / "new" / "out", open_browser=True)
    assert Path(page).name == "index.html"
    assert Path(page).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert load_trace(tmp_path / "new" / "out" / "trace.json") == result
    assert opened == [Path(page).resolve().as_uri()]
