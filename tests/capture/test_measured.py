"""Head metrics that are worked out while a model runs are those of the patterns that it would have stored."""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.core.switched import VARIANTS, needs_core, switched
from tests.families import mostly_slow
from tests.tiny_folders import TEXTS
from traceformer import Run, record
from traceformer.analysis.heads import METRICS, Geometry
from traceformer.analysis.repeats import count_repeats
from traceformer.analysis.visibility import Visibility
from traceformer.errors import NotRecorded, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.questions.heads import heads
from traceformer.store.commits import RunHead

Load = Callable[..., LoadedModel]
FAMILIES = ("gpt2", "llama", "bert", "gpt_oss", "gemma2", "modernbert")
ROUNDING = 2**-24  # of a metric in float32, relative; sums of a few of them are no further off


@pytest.fixture(params=["off", VARIANTS[0]])
def kernel(request: pytest.FixtureRequest) -> Generator[str]:
    """What makes the patterns: torch, or the compiled core, whose cells differ from torch's by a step of float16."""
    with switched(request.param):
        yield request.param


def assert_alike(found: Any, expected: Any, *, several: bool) -> None:
    assert replace(found.about, source="") == replace(expected.about, source="")
    assert found.rows == expected.rows
    assert [*found.values] == [*expected.values]
    for name, values in expected.values.items():
        if several and name == "effective_span":
            assert np.isnan(found.values[name]).all()
        else:
            np.testing.assert_allclose(found.values[name], values, rtol=2 * ROUNDING, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ("gpt_oss", "bert")))
@pytest.mark.usefixtures("kernel")
def test_they_are_those_of_stored_patterns(family: str, load: Load, tmp_path: Path) -> None:
    model = load(family)
    whole = record(model, TEXTS, "attn")
    found = record(model, TEXTS, "heads", out=tmp_path / "run")
    assert [spec.key.site for spec in found.layout.arrays] == ["head_metrics"]
    assert_alike(heads(found), heads(whole), several=True)
    for example in whole.ids:
        assert_alike(heads(found, examples=[example]), heads(whole, examples=[example]), several=False)
    assert_alike(heads(found, examples=[2, 0]), heads(whole, examples=[2, 0]), several=True)
    assert found.verify().ok


@pytest.mark.usefixtures("kernel")
def test_every_attention_of_an_encoder_decoder_is_measured(load: Load) -> None:
    targets = ["two words", "one", *["a few more"] * (len(TEXTS) - 2)]
    whole, found = (record(load("t5"), TEXTS, capture, targets=targets) for capture in ("attn", "heads"))
    assert_alike(heads(found), heads(whole), several=True)
    assert_alike(heads(found, limit=1), heads(whole, limit=1), several=False)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_patterns_are_rounded_first_as_they_would_be_stored(dtype: Any, load: Load) -> None:
    whole, found = (record(load("llama"), TEXTS, capture, dtype=dtype) for capture in ("attn", "heads"))
    assert_alike(heads(found), heads(whole), several=True)
    assert found.get(0, "head_metrics").dtype == np.float32


@pytest.mark.usefixtures("kernel")
def test_chosen_layers_and_heads_in_batches_by_tokens(load: Load) -> None:
    chosen: dict[str, Any] = {"layers": "0,2", "heads": "1,3", "batch_tokens": "auto"}
    whole, found = (record(load("gpt2"), TEXTS, capture, **chosen) for capture in ("attn", "heads z"))
    assert_alike(heads(found), heads(whole), several=True)
    assert found.get(0, "head_metrics").shape == (2, 2, len(METRICS))


@pytest.mark.filterwarnings("ignore:dropping")
@pytest.mark.parametrize("options", [{"capture": "heads"}, {"capture": "attn", "store_topk": 2}])
def test_numbers_out_of_range_are_dropped_as_they_are_of_patterns(options: dict[str, Any], load: Load) -> None:
    run = record(load("llama"), TEXTS[:1], layers=[1, 99], heads=[0, 99], **options)
    assert [(spec.layers, spec.heads) for spec in run.layout.arrays] == [((1,), (0,))] * len(run.layout.arrays)


@pytest.mark.usefixtures("kernel")
def test_a_pattern_in_blocks_is_the_same(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = record(load("llama"), TEXTS, "attn")
    monkeypatch.setattr("traceformer.capture.scores._BLOCK_BYTES", 500)
    monkeypatch.setattr("traceformer.capture.measured._CELLS", 20)
    assert_alike(heads(record(load("llama"), TEXTS, "heads")), heads(whole), several=True)


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
def test_beside_patterns_they_are_read_from_these(load: Load) -> None:
    both = record(load("gpt2"), TEXTS, "attn heads")
    whole = record(load("gpt2"), TEXTS, "attn")
    np.testing.assert_array_equal(both.attn(0), whole.attn(0))
    assert heads(both).values["effective_span"].tolist() == heads(whole).values["effective_span"].tolist()
    assert heads(both, convention="thesis").about.convention == "thesis"


@needs_core
@pytest.mark.parametrize(
    ("capture", "options", "stated"),
    [
        ("heads", {}, "compiled 1"),
        ("attn heads", {}, "compiled 1"),
        ("heads", {"dtype": "float32"}, None),
        ("attn_scores heads", {}, None),
        ("attn", {"store_topk": 2}, None),
    ],
)
def test_a_run_states_the_kernel_that_they_were_made_with(
    capture: str, options: dict[str, Any], stated: str | None, load: Load, tmp_path: Path
) -> None:
    with switched(VARIANTS[0]):
        record(load("gpt2"), TEXTS, capture, out=tmp_path / "run", **options)
    assert RunHead.read(tmp_path / "run").configuration.get("pattern kernel") == stated


@needs_core
def test_where_scores_are_recorded_or_the_core_cannot_torch_makes_them(load: Load) -> None:
    with switched("off"):
        expected = heads(record(load("gpt2"), TEXTS, "heads"))
    with switched(VARIANTS[0]):
        found = heads(record(load("gpt2"), TEXTS, "attn_scores heads"))
    assert_alike(found, expected, several=True)


def test_other_conventions_are_refused(load: Load) -> None:
    found = record(load("gpt2"), TEXTS, "heads")
    with pytest.raises(NotRecorded, match="head metrics with convention thesis"):
        heads(found, convention="thesis")
    with pytest.raises(NotRecorded, match="head metrics with window 4"):
        heads(found, window=4)
    with pytest.raises(NotRecorded) as refused:
        found.attn(0)
    assert "tf.heads" in (refused.value.hint or "")


def test_patterns_that_would_be_stored_otherwise_are_not_measured(load: Load, tmp_path: Path) -> None:
    for capture in ("heads", "attn heads"):
        with pytest.raises(UsageError, match=r'`attn_codec="sqrt8"` and dec\.self\.head_metrics.*in float16'):
            record(load("gpt2"), TEXTS, capture, attn_codec="sqrt8", out=tmp_path / "run")
    assert [*tmp_path.iterdir()] == []
    small = record(load("gpt2"), TEXTS, "heads", attn_codec="small")
    assert_alike(heads(small), heads(record(load("gpt2"), TEXTS, "attn")), several=True)


def test_of_a_stream_they_are_those_of_a_list(load: Load) -> None:
    options: dict[str, Any] = {"max_seq_len": 64, "limit": len(TEXTS), "dtype": "float32"}
    listed, streamed = (record(load("gpt2"), TEXTS, "heads", streaming=way, **options) for way in (False, True))
    for example in range(len(TEXTS)):
        np.testing.assert_array_equal(streamed.get(example, "head_metrics"), listed.get(example, "head_metrics"))
    assert_alike(heads(streamed), heads(listed), several=True)


def test_a_model_without_attention_is_refused(load: Load) -> None:
    with pytest.raises(Unsupported, match="has no attn_pattern"):
        record(load("mamba"), TEXTS, "heads")


def test_saved_runs_and_xarray_have_them_by_name(load: Load, tmp_path: Path) -> None:
    found = record(load("gpt2"), TEXTS, "heads")
    saved = found.save(tmp_path / "run")
    assert_alike(heads(saved), heads(found), several=True)
    data = saved.to_xarray()["dec_self_heads"]["metrics"]
    assert data.dims == ("example", "layer", "head", "metric")
    entropy = data.sel(metric="entropy", layer=1).values
    np.testing.assert_array_equal(entropy[0], found.get(0, "head_metrics", 1)[:, [*METRICS].index("entropy")])


def test_the_names_of_all_metrics_are_in_the_meaning_that_other_readers_see(load: Load) -> None:
    spec = record(load("gpt2"), TEXTS[:1], "heads").spec("head_metrics")
    assert spec.site.meaning.endswith(", ".join(METRICS))


def test_a_text_of_one_token_has_what_has_a_meaning(load: Load) -> None:
    found = record(load("gpt2"), ["a"], "heads")
    assert found.length(0) == 1
    values = dict(zip(METRICS, found.get(0, "head_metrics", 0, 0).tolist(), strict=True))
    assert values["self"] == 1.0
    assert np.isnan(values["previous_token"])
    assert np.isnan(values["induction"])


@pytest.mark.slow
def test_long_texts_run_alone(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traceformer.capture.prepared.LONG", 3)
    found = record(load("gpt2"), TEXTS, "heads")
    assert found.about.batch_size == 1
    assert record(load("gpt2"), TEXTS, "attn").about.batch_size == 8


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_repeats_are_counted_as_pairs_of_tokens_say(causal: bool, window: int | None, length: int) -> None:
    sight = Visibility(causal, window)
    for seed in range(4):
        tokens = np.random.default_rng([seed, length]).integers(0, 2 + 3 * seed, length).astype(np.int32)
        expected = np.zeros(3, np.int64)
        for query in range(length):
            keys = [key for key in range(length) if sees(sight, query, key)]
            repeats = [key for key in range(length) if key != query and tokens[key] == tokens[query]]
            coming = tokens[query + 1] if query + 1 < length else None
            expected += [
                any(key in keys for key in repeats),
                any(key + 1 in keys for key in repeats),
                any(tokens[key] == coming and key != query + 1 for key in keys),
            ]
        assert count_repeats(tokens, sight).tolist() == expected.tolist()
        masks = Geometry(length, length, sight, True, tokens).masks(0, length, length, length)
        assert masks.repeating.tolist() == expected.tolist()


def sees(sight: Visibility, query: int, key: int) -> bool:
    if sight.causal:
        return key <= query and (sight.window is None or query - key < sight.window)
    return sight.window is None or abs(query - key) <= sight.window


@pytest.mark.slow
def test_a_run_of_metrics_takes_little_more_than_the_metrics(byte: LoadedModel, tmp_path: Path) -> None:
    texts = [f"text number {number} says a little" for number in range(300)]
    run = record(byte, texts, "heads", out=tmp_path / "run", batch_size=64)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files if path.suffix != ".parquet" and path.parent.name != "commits")
    assert isinstance(run, Run)
    assert size <= 1.1 * 300 * 4 * 32 * len(METRICS) + 16_000  # what heads and metadata of any run take
