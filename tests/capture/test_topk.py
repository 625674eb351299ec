"""The largest keys of each query are those of the patterns that a run without `store_topk` holds."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from tests.core.switched import switched
from tests.families import mostly_slow
from tests.tiny_folders import TEXTS
from traceformer import Run, record
from traceformer.capture.topk import largest
from traceformer.errors import ConfigurationChanged, NotRecorded, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.questions.heads import heads
from traceformer.questions.statistics import statistics

Load = Callable[..., LoadedModel]
FAMILIES = ("gpt2", "llama", "bert", "gpt_oss", "gemma2")
K = 5


@pytest.fixture(autouse=True)
def one_kernel() -> Generator[None]:
    """What is made of patterns is made of torch's; the compiled core's differ from them by a step of float16."""
    with switched("off"):
        yield


def of_row(row: np.ndarray, k: int) -> tuple[list[int], list[float], float]:
    """The largest keys of one stored row, one number at a time: the largest weight first, then the earliest key."""
    order = sorted(range(len(row)), key=lambda key: (-row[key], key))[:k]
    kept = [key for key in order if row[key] > 0]
    rest = sum(float(weight) for key, weight in enumerate(row) if key not in order)
    none = [-1] * (k - len(kept))
    return kept + none, [float(row[key]) for key in kept] + [0.0] * len(none), rest


def assert_those_of(found: Run, whole: Run, **where: Any) -> None:
    for example in whole.ids:
        keys, weights, rest = found.attn_topk(example, **where)
        patterns = whole.attn(example, **where)
        assert keys.shape == weights.shape == (*patterns.shape[:-1], K)
        assert rest.shape == patterns.shape[:-1]
        for place in np.ndindex(patterns.shape[:-1]):
            expected = of_row(patterns[place], K)
            assert keys[place].tolist() == expected[0]
            assert weights[place].tolist() == expected[1]
            assert rest[place] == pytest.approx(expected[2], abs=2e-7 * patterns.shape[-1])


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ("gpt_oss", "bert")))
def test_they_are_those_of_the_stored_patterns(family: str, load: Load, tmp_path: Path) -> None:
    model = load(family)
    whole = record(model, TEXTS, "attn")
    found = record(model, TEXTS, "attn", store_topk=K, out=tmp_path / "run")
    assert {spec.key.site for spec in found.layout.arrays} == {"attn_topk", "attn_topk_weight", "attn_topk_rest"}
    assert_those_of(found, whole)
    assert found.verify().ok


@pytest.mark.slow
def test_every_attention_of_an_encoder_decoder_has_them(load: Load) -> None:
    targets = ["two words", "one", *["a few more"] * (len(TEXTS) - 2)]
    whole, found = (record(load("t5"), TEXTS, "attn", targets=targets, **more) for more in ({}, {"store_topk": K}))
    for side, kind in (("enc", "self"), ("dec", "self"), ("dec", "cross")):
        assert_those_of(found, whole, side=side, kind=kind)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_they_are_rounded_as_patterns_are(dtype: Any, load: Load) -> None:
    whole, found = (record(load("llama"), TEXTS, "attn", dtype=dtype, **more) for more in ({}, {"store_topk": K}))
    assert_those_of(found, whole)
    assert found.spec("attn_topk_rest").site.is_in_float32


def test_chosen_layers_and_heads_stand_beside_other_sites(load: Load) -> None:
    chosen: dict[str, Any] = {"layers": "0,2", "heads": "1,3"}
    whole, found = (
        record(load("gpt2"), TEXTS, "attn z resid_mid", **chosen, **more) for more in ({}, {"store_topk": K})
    )
    assert_those_of(found, whole)
    assert found.spec("attn_topk").heads == (1, 3)
    np.testing.assert_array_equal(found.get(0, "z"), whole.get(0, "z"))
    np.testing.assert_array_equal(found.attn_topk(0, 2, 3).keys, found.attn_topk(0).keys[1, 1])


def test_by_default_they_take_the_place_of_patterns_alone(load: Load) -> None:
    found = record(load("gpt2"), TEXTS[:1], store_topk=3)
    sites = {spec.key.site for spec in found.layout.arrays}
    assert sites == {"embed", "resid_pre", "resid_mid", "resid_post", "attn_topk", "attn_topk_weight", "attn_topk_rest"}


def test_who_wants_patterns_is_told_what_there_is(load: Load) -> None:
    found = record(load("gpt2"), TEXTS[:1], "attn", store_topk=3)
    with pytest.raises(NotRecorded, match="attn_pattern was not recorded") as refused:
        found.attn(0)
    assert "attn_topk" in (refused.value.hint or "")
    with pytest.raises(NotRecorded, match=r"no attention patterns; it holds dec.self.attn_topk .*; record it with"):
        heads(found)
    with pytest.raises(NotRecorded, match=r'nothing to take statistics of; .*; record it with `capture="attn resid"`'):
        statistics(found)


def test_what_cannot_be_is_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the 0 largest keys"):
        record(load("gpt2"), TEXTS, "attn", store_topk=0)
    with pytest.raises(UsageError, match="the 999 largest keys of a query; no text has more than") as refused:
        record(load("gpt2"), TEXTS, "attn", store_topk=999, out=tmp_path / "run")
    longest = max(record(load("gpt2"), TEXTS, "resid").tokens.n_tokens)
    assert refused.value.hint == f'`store_topk={longest}`, or `capture="attn"`, which is all of them'
    with pytest.raises(UsageError, match=r'`attn_codec="sqrt8"` and dec\.self\.attn_topk; it is how patterns are'):
        record(load("gpt2"), TEXTS, "attn", store_topk=3, attn_codec="sqrt8", out=tmp_path / "run")
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(Unsupported, match="this model has no attn_topk") as refused:
        record(load("gpt2"), TEXTS, "attn_topk")
    assert "store_topk" in (refused.value.why or "")
    with pytest.raises(Unsupported, match="has no attn_pattern"):
        record(load("mamba"), TEXTS, "resid", store_topk=3)


@pytest.mark.slow
def test_a_run_with_another_k_is_another_run(load: Load, tmp_path: Path) -> None:
    from traceformer.store.folder import RunFolder

    def stop(progress: Any) -> None:
        if progress.examples_done >= 2:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"out": tmp_path / "run", "shard_examples": 1, "batch_size": 1}
    with pytest.raises(KeyboardInterrupt):
        record(load("gpt2"), TEXTS, "attn", store_topk=3, progress=stop, **options)
    with pytest.raises(ConfigurationChanged, match="store topk"):
        record(load("gpt2"), TEXTS, "attn", store_topk=4, resume=True, **options)
    resumed = record(load("gpt2"), TEXTS, "attn", store_topk=3, resume=True, **options)
    assert isinstance(resumed.on_disk(), RunFolder)
    np.testing.assert_array_equal(
        resumed.attn_topk(2).keys, record(load("gpt2"), TEXTS, "attn", store_topk=3).attn_topk(2).keys
    )


def test_saved_runs_and_other_readers_have_them(load: Load, tmp_path: Path) -> None:
    found = record(load("llama"), TEXTS, "attn", store_topk=K)
    saved = found.save(tmp_path / "run")
    np.testing.assert_array_equal(saved.attn_topk(1).weights, found.attn_topk(1).weights)
    group = zarr.open_group(tmp_path / "run" / "dec_self_attn_topk.zarr", mode="r")
    assert set(group) >= {"key", "weight", "rest"}
    n = found.length(0)
    np.testing.assert_array_equal(group["key"][:, :, :n], found.attn_topk(0).keys)
    tree = saved.to_xarray()["dec_self_attn_topk"]
    assert tree["weight"].dims == ("layer", "head", "dec_token", "rank")
    assert tree["rest"].dims == ("layer", "head", "dec_token", "rest")
    np.testing.assert_array_equal(tree["key"].sel(layer=1).values[:, :n], found.attn_topk(0, 1).keys)


def test_of_equal_weights_the_earlier_keys_are_kept() -> None:
    block = torch.tensor([[[0.25, 0.25, 0.25, 0.25, 0.0], [0.0, 0.5, 0.0, 0.5, 0.0]]]).half()
    keys, weights, rest = largest(block, 3)
    assert keys.tolist() == [[[0, 1, 2], [1, 3, -1]]]
    assert weights.tolist() == [[[0.25] * 3, [0.5, 0.5, 0.0]]]
    assert rest.tolist() == [[[0.25], [0.0]]]
