"""Models that have attention in some layers only, or none: what is recorded is the model's own, and gaps are gaps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.marks import slow
from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.errors import NotRecorded, SelectionError, Unsupported
from traceformer.figures.head_maps import heads_figure
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.questions.circuits import circuits
from traceformer.questions.heads import heads
from traceformer.questions.lens import lens
from traceformer.questions.paths import paths
from traceformer.store.run import Run

IDS = [[5, 9, 14, 3, 20, 41, 7, 8, 11], [30, 12, 6, 17]]
FAST = "lfm2"  # attention in layer 1 of three; short convolutions in the others
OWN = (
    *("lfm2", "qwen3_next", "qwen3_5_text", "jamba", "bamba", "falcon_h1", "zamba2"),
    *("granitemoehybrid", "mamba", "falcon_mamba", "mamba2", "xlstm"),
)
FOUND = (
    "nemotron_h",
    "olmo_hybrid",
    "recurrent_gemma",
    "kimi_linear",
    "bailing_hybrid",
    "zamba",
    "lfm3",
    "rwkv",
)
GENERATING = (
    *("qwen3_next", "qwen3_5_text", "lfm2", "jamba", "granitemoehybrid", "falcon_h1", "zamba2", "bamba"),
    *("recurrent_gemma", "nemotron_h", "olmo_hybrid", "mamba", "mamba2", "falcon_mamba", "xlstm", "rwkv"),
)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(tiny_model(FAST))


@pytest.fixture(scope="module")
def run(model: LoadedModel) -> Run:
    return record(model, IDS, "attn qkv hidden resid", dtype="float32")


def _own(model: Any, ids: list[int]) -> Any:
    """What a model itself gives of a text by itself, under eager attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(torch.tensor([ids]), output_attentions=True, output_hidden_states=True, use_cache=False)
    finally:
        model.set_attn_implementation(before)


def _patterns_of(model: Any, ids: list[int], layer: int) -> np.ndarray:
    given = [each for each in _own(model, ids).attentions if each is not None]
    attending = [n for n, kind in enumerate(model.config.layer_types) if kind in ("full_attention", "hybrid")]
    return given[attending.index(layer)][0].numpy()


def test_attention_is_recorded_where_it_is_by_the_models_own_numbers(run: Run, model: LoadedModel) -> None:
    by_site = {spec.key.site: spec.layers for spec in run.layout.arrays}
    assert by_site["attn_pattern"] == by_site["q"] == (1,)
    assert by_site["resid_pre"] == by_site["resid_mid"] == (0, 1, 2)
    for number, ids in enumerate(IDS):
        np.testing.assert_allclose(run.attn(number, layer=1), _patterns_of(model.model, ids, 1), atol=1e-6)
        hidden = torch.stack(_own(model.model, ids).hidden_states)[:, 0].numpy()
        np.testing.assert_allclose(run.get(number, "hidden"), hidden, atol=1e-5)


def test_a_layer_without_attention_is_refused_with_those_that_have_some(run: Run, model: LoadedModel) -> None:
    with pytest.raises(SelectionError, match="layer 0 has no attention") as read:
        run.attn(0, layer=0)
    with pytest.raises(SelectionError, match="no attention is there") as asked:
        record(model, IDS, "attn", layers=[0, 2])
    assert read.value.hint == asked.value.hint == "layers with attention: 1"
    with pytest.warns(UserWarning, match=r"has no attn_pattern in layers 0, 2: left out"):
        part = record(model, IDS, "attn resid_pre", layers="0-2")
    assert [spec.layers for spec in part.layout.arrays] == [(0, 1, 2), (1,)]


def test_tables_and_maps_of_heads_show_the_gaps(run: Run) -> None:
    table = heads(run)
    assert table.layers == (1,)
    assert table.to_json()["attention"]["dec.self"]["without_attention"] == [0, 2]
    axes = heads_figure(table).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["L0", "L1", "L2"]
    assert [text.get_text() for text in axes.texts].count("no attention") == 2
    assert np.isnan(axes.images[0].get_array().filled(np.nan)[[0, 2]]).all()


def test_paths_across_layers_stay_where_there_is_no_attention(run: Run, model: LoadedModel) -> None:
    found = paths(run, 0, to=-1, layer="all")
    assert found.settings["without_attention"] == [0, 2]
    frame = found.to_frame()
    assert frame[frame.layer != 1].stays.all()
    assert (frame[frame.layer != 1].weight == 1).all()
    pattern = run.attn(0, layer=1).mean(axis=0)
    np.testing.assert_allclose(found.attribution["rollout"], pattern[-1], atol=1e-6)
    assert frame[frame.layer == 1].iloc[0].weight == pytest.approx(pattern[-1].max(), abs=1e-6)
    without = paths(run, 0, to=-1, layer="all", exclude_self=True).to_frame()
    assert without[without.layer != 1].stays.all()
    assert not without[without.layer == 1].stays.any()
    with pytest.raises(SelectionError, match="it has no attention"):
        paths(run, 0, to=-1, layer=0)


def test_the_lens_has_a_row_for_every_layer(run: Run, model: LoadedModel) -> None:
    read = lens(run, 0, model=model)
    assert tuple(read.layers) == (0, 1, 2)
    logits = _own(model.model, IDS[0]).logits[0]
    assert read.top_ids[-1, :, 0].tolist() == logits.argmax(-1).tolist()


def test_circuits_have_numbers_for_layers_with_attention(model: LoadedModel) -> None:
    found = circuits(model)
    assert np.isfinite(found.values["copying"]).all(axis=1).tolist() == [False, True, False]


def test_a_model_without_attention_gives_its_stream_and_says_why_no_more() -> None:
    model = load_model(tiny_model("mamba"))
    assert model.dims.stacks["dec"].n_heads == 0
    run = record(model, IDS, "resid_pre resid_post hidden logits", dtype="float32")
    for number, ids in enumerate(IDS):
        own = _own_of_mamba(model.model, ids)
        np.testing.assert_allclose(run.get(number, "hidden"), own, atol=1e-5)
    with pytest.raises(Unsupported, match="none of attn_pattern") as refused:
        record(model, IDS, "attn")
    assert refused.value.why == "this model has no attention"
    with pytest.raises(Unsupported) as asked:
        heads(model, IDS)
    assert asked.value.why == "this model has no attention"
    with pytest.raises(SelectionError, match="heads 0 requested"):
        record(model, IDS, "resid", heads=0)
    assert run.about.dims_of("dec").attending == ()
    for ask in (lambda: heads(run), lambda: paths(run, 0, to=-1)):
        with pytest.raises(NotRecorded) as stored:
            ask()
        assert stored.value.why == "this model has no attention"


def _own_of_mamba(model: Any, ids: list[int]) -> np.ndarray:
    """The embedding, what each block but the last leaves, and the norm of the last one's: by plain hooks."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0][0])) for block in model.backbone.layers
    ]
    try:
        with torch.no_grad():
            last = model.backbone(torch.tensor([ids]), use_cache=False)[0][0]
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([*seen, last]).numpy()


def _with_patterns(loaded: LoadedModel) -> str:
    return "attn" if loaded.dims.stacks["dec"].n_heads else ""


@pytest.mark.parametrize("family", [slow(each) for each in (*OWN, *FOUND)])
def test_what_is_recorded_in_a_batch_of_unequal_texts_is_the_models_own_of_each_alone(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    loaded = load_model(str(tiny_folder(family)))
    run = record(loaded, IDS, f"{_with_patterns(loaded)} resid_pre resid_post hidden logits", dtype="float32")
    attending = loaded.dims.stacks["dec"].attention_layers
    for number, ids in enumerate(IDS):
        own = _own(loaded.model, ids)
        np.testing.assert_allclose(run.get(number, "logits"), own.logits[0], atol=2e-5)
        patterns = [each for each in getattr(own, "attentions", None) or () if each is not None]
        for layer, pattern in zip(attending, patterns, strict=True) if attending else ():
            np.testing.assert_allclose(run.attn(number, layer=layer), pattern[0], atol=2e-6)


@pytest.mark.slow
def test_blocks_of_one_sublayer_have_their_sites_where_they_are() -> None:
    model = load_model(tiny_model("nemotron_h"))
    assert model.config.layer_types == ["linear_attention", "moe", "full_attention", "mlp"]
    with pytest.warns(UserWarning, match="has no resid_mid: left out"):
        run = record(model, IDS, "attn resid mlp norms attn_out", dtype="float32")
    layers = {spec.key.site: spec.layers for spec in run.layout.arrays if spec.site.per_layer}
    assert layers == {
        **{"resid_pre": (0, 1, 2, 3), "resid_post": (0, 1, 2, 3), "attn_norm": (2,), "attn_pattern": (2,)},
        **{"attn_out": (2,), "mlp_norm": (1, 3), "mlp_out": (1, 3)},
        **{"mlp_up": (3,), "mlp_act": (3,), "mlp_mid": (3,), "mlp_down": (3,)},
    }
    for layer, site in {1: "mlp_out", 2: "attn_out", 3: "mlp_out"}.items():
        before, added, behind = (run.get(0, name, layer) for name in ("resid_pre", site, "resid_post"))
        np.testing.assert_allclose(before + added, behind, atol=1e-5)


@pytest.mark.parametrize("family", [slow(each) for each in GENERATING])
def test_what_is_recorded_beside_its_own_cache_is_what_one_pass_gives(
    family: str, tiny_folder: Callable[..., Path]
) -> None:
    loaded = load_model(str(tiny_folder(family)), with_head=True)
    prompts = ["The ships left", "Seven", "The wind fell and the ships"]
    settings: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "dtype": "float32", "more": {"eos_token_id": None}}
    capture = f"{_with_patterns(loaded)} resid_post hidden logits"
    live = generate(loaded, prompts, capture, **settings)
    again = generate(loaded, prompts, capture, replay=True, **settings)
    assert live.tokens.response.tolist() == again.tokens.response.tolist()
    for spec in live.layout.arrays:
        for number in range(len(prompts)):
            one, other = (each.get(number, spec.key) for each in (live, again))
            rounding = 1e-5 * max(1.0, float(np.abs(other).max()))  # token by token sums are made in another order
            np.testing.assert_allclose(one, other, atol=rounding, rtol=0, err_msg=str(spec.key))
