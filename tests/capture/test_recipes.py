"""Runs whose patterns are by recipe: read like any other, the same to the cell everywhere, or refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.capture.asked import Extraction, Stopped, extracted, stop_after
from tests.core.switched import VARIANTS, needs_core, switched
from tests.families import mostly_slow
from tests.tiny_folders import TEXTS
from traceformer import Run, Selection, record
from traceformer.capture.extract import extract, read_texts
from traceformer.capture.proofs.check import check_model, random_examples
from traceformer.errors import ConfigurationChanged, CorruptRun, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.progress import quiet
from traceformer.questions.heads import heads
from traceformer.questions.statistics import statistics
from traceformer.sites import ArrayKey
from traceformer.store.place import Place, Storage

Load = Callable[..., LoadedModel]
PATTERN = ArrayKey("dec", "self", "attn_pattern")
FAMILIES = (
    *("gpt2", "llama", "gemma2", "gpt_oss", "bert", "modernbert", "t5", "bart", "bloom", "byte_sparse"),
    *("mistral", "gemma3_text", "gpt_neox", "opt", "falcon_new", "gpt_neo", "gptj", "mpnet", "mpt", "llama4_text"),
)
FAST = ("gpt2", "llama", "gemma2", "bloom")
STEP = 2.0**-10  # between two float16, relative; 2^-24 beside 0


def in_both_ways(model: LoadedModel, texts: Any = TEXTS, capture: str = "attn", **more: Any) -> tuple[Run, Run]:
    return record(model, texts, capture, **more), record(model, texts, capture, patterns="recipe", **more)


def assert_one_step_apart(found: Run, stored: Run, key: ArrayKey) -> None:
    for example in range(stored.n):
        one, other = found.get(example, key), stored.get(example, key)
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=STEP, atol=2e-6)
        assert (one[other == 0] < 2.0**-24).all()


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, FAST))
def test_patterns_made_anew_are_those_that_would_be_stored(family: str, load: Load) -> None:
    targets = ["two words", "one", *["a few more"] * (len(TEXTS) - 2)] if family in ("t5", "bart") else None
    stored, found = in_both_ways(load(family), targets=targets)
    patterns = [spec for spec in stored.layout.arrays if spec.key.site == "attn_pattern"]
    assert len(patterns) == (3 if targets else 1)
    assert {spec.key for spec in patterns} == found.layout.recipes.keys()
    assert not any(spec.site.is_matrix for spec in found.layout.kept)
    for spec in patterns:
        assert found.spec(spec.key) == spec
        assert_one_step_apart(found, stored, spec.key)


def test_q_and_k_are_kept_as_the_model_has_them(load: Load) -> None:
    exact = record(load("llama"), TEXTS, "qkv", dtype="float32")
    found = record(load("llama"), TEXTS, "attn qkv", patterns="recipe")
    for which in "qk":
        assert found.layout.stored(found.spec(which)) == "float32"
        np.testing.assert_array_equal(found.qkv(2, which), exact.qkv(2, which))
    assert found.layout.stored(found.spec("v")) == "float16"


def test_a_model_in_bfloat16_keeps_them_in_as_many_bits(load: Load) -> None:
    model = load("llama", dtype="bfloat16")
    exact = record(model, TEXTS, "qkv", dtype="float32")
    stored, found = in_both_ways(model)
    assert found.layout.recipes[PATTERN].stored == "bfloat16"
    np.testing.assert_array_equal(found.qkv(2, "k"), exact.qkv(2, "k"))
    assert_one_step_apart(found, stored, PATTERN)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_patterns_are_rounded_to_what_the_run_stores(dtype: Any, load: Load) -> None:
    stored, found = in_both_ways(load("gpt2"), dtype=dtype)
    rtol = {"float32": 1e-5, "bfloat16": 2.0**-7}[dtype]
    for example in range(stored.n):
        np.testing.assert_allclose(found.attn(example), stored.attn(example), rtol=rtol, atol=1e-7)


def test_layers_heads_and_rows_are_parts_of_the_whole(load: Load) -> None:
    whole = record(load("llama"), TEXTS, "attn", patterns="recipe")
    some = record(load("llama"), TEXTS, "attn", patterns="recipe", layers=[1], heads=[1, 3])
    assert some.spec("k").heads == tuple(sorted({head // whole.layout.recipes[PATTERN].group for head in (1, 3)}))
    for example in range(3):
        attn = whole.attn(example)
        np.testing.assert_array_equal(some.attn(example), attn[1:2, [1, 3]])
        np.testing.assert_array_equal(whole.attn(example, 1, 3), attn[1, 3])
        np.testing.assert_array_equal(whole.attn(example, 1), attn[1])
        np.testing.assert_array_equal(whole.attn(example, head=2, queries=slice(1, 3)), attn[:, 2, 1:3])
        np.testing.assert_array_equal(some.attn(example, 1, 3, queries=slice(-1, None)), attn[1, 3, -1:])
    by_head = dict(whole.head("attn", 1, 3))
    np.testing.assert_array_equal(by_head[whole.ids[2]], whole.attn(2, 1, 3))
    assert whole.attn(2, 1, 3, dtype="stored").dtype == np.float16


@needs_core
def test_every_machine_makes_the_same_cells(load: Load) -> None:
    found = record(load("gemma2"), TEXTS, "attn", patterns="recipe")
    made = set[bytes]()
    for way in (*VARIANTS, "off"):
        with switched(way):
            made.add(b"".join(found.attn(example).tobytes() for example in range(found.n)))
    assert len(made) == 1


@pytest.mark.slow
def test_a_run_on_disk_is_the_one_in_memory_and_stays_intact(load: Load, tmp_path: Path) -> None:
    model = load("gpt2")
    memory = record(model, TEXTS, "attn v", patterns="recipe")
    disk = record(model, TEXTS, "attn v", patterns="recipe", out=tmp_path / "run")
    saved = memory.save(tmp_path / "saved")
    for own in (disk, saved, Run(tmp_path / "run")):
        assert own.layout == memory.layout
        assert own.verify().ok
        np.testing.assert_array_equal(own.attn(2), memory.attn(2))
    group: Any = disk.to_xarray()["dec_self_attn"]["attn"]
    np.testing.assert_array_equal(group[2, 1, 0, :5, :5].values, memory.attn(2, 1, 0)[:5, :5])
    assert not list((tmp_path / "run").rglob("dec_self_attn.zarr/attn"))
    found = heads(disk)
    np.testing.assert_allclose(
        found.to_frame()["entropy"], heads(record(model, TEXTS, "attn")).to_frame()["entropy"], rtol=1e-3
    )
    assert str(PATTERN) in {str(each) for each in statistics(disk).to_frame()["array"]}
    q = next((tmp_path / "run").glob("dec_self_qkv.zarr/q/c.*"))
    data = bytearray(q.read_bytes())
    data[len(data) // 3] ^= 1
    q.write_bytes(data)
    with pytest.raises(CorruptRun):
        [Run(tmp_path / "run").attn(example) for example in range(disk.n)]


def asked(folder: Path, texts: Path, **changes: Any) -> Extraction:
    base = Extraction(
        selection=Selection(("attn", "resid")), model=str(folder), dataset=str(texts), device="cpu",
        patterns="recipe", shard_examples=2, batch_size=2, max_seq_len="auto",
    )  # fmt: skip
    return replace(base, **changes)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_its_recipe_alone(tiny_folder: Any, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    whole = asked(tiny_folder("gpt2"), texts, out_dir=tmp_path / "whole")
    extracted(whole)
    part = replace(whole, out_dir=tmp_path / "part")
    with pytest.raises(Stopped):
        extracted(part, stop_after(4))
    with pytest.raises(ConfigurationChanged, match="recipes"):
        extracted(replace(part, resume=True, patterns="stored"))
    extracted(replace(part, resume=True))

    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("c.*")}

    assert files(tmp_path / "part") == files(tmp_path / "whole")


def test_a_second_writer_joins_a_run_with_its_recipe_alone(byte: LoadedModel, tmp_path: Path) -> None:
    alone = record(byte, TEXTS[:2], "attn", layers=1, patterns="recipe", shard_examples=1)

    def shared(patterns: Any, progress: Any = quiet) -> Run:
        place = Place(folder=tmp_path / "run", claims="lease", storage=Storage(shard_examples=1, patterns=patterns))
        place.check()
        return extract(byte, read_texts(TEXTS[:2]), Selection.of("attn", layers=1), place, progress=progress)

    with pytest.raises(Stopped):
        shared("recipe", stop_after(1))
    with pytest.raises(ConfigurationChanged, match="recipes"):
        shared("stored")
    run = shared("recipe")
    assert run.finished
    assert run.layout == alone.layout
    for example in range(alone.n):
        np.testing.assert_array_equal(run.attn(example), alone.attn(example))


@pytest.mark.slow
def test_processes_that_share_a_run_by_number_make_the_one_that_one_makes(load: Load, tmp_path: Path) -> None:
    model = load("t5")
    how: dict[str, Any] = {"patterns": "recipe", "targets": TEXTS[::-1], "shard_examples": 2, "batch_size": 2}
    alone = record(model, TEXTS, "attn", **how)
    parts = [record(model, TEXTS, "attn", out=tmp_path / "run", num_shards=3, shard_index=i, **how) for i in (1, 0, 2)]
    assert [part.finished for part in parts] == [False, False, True]
    assert parts[-1].layout == alone.layout
    for spec in alone.layout.arrays:
        for example in range(alone.n):
            np.testing.assert_array_equal(parts[-1].get(example, spec.key), alone.get(example, spec.key))


def test_what_cannot_be_made_anew_is_refused(load: Load, byte: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no patterns are recorded"):
        record(byte, TEXTS, "resid", patterns="recipe")
    with pytest.raises(UsageError, match="but the largest keys of each query; one of it and `store_topk`"):
        record(byte, TEXTS, "attn", patterns="recipe", store_topk=3)
    with pytest.raises(UsageError, match="attn_codec"):
        record(byte, TEXTS, "attn", patterns="recipe", attn_codec="sqrt8")
    with pytest.raises(UsageError, match="a stream"):
        record(byte, iter(TEXTS), "attn", patterns="recipe", limit=2, max_seq_len=32)
    with pytest.raises(Unsupported, match="does not follow from where query and key are"):
        record(load("deberta-v2"), TEXTS, "attn", patterns="recipe")
    with pytest.raises(UsageError, match="no patterns"):
        record(byte, TEXTS, "attn", patterns="recipe", store_topk=3)


def test_a_call_that_is_no_longer_the_recipes_stops_the_run(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    from traceformer.capture import following, recipes

    seen = recipes.Reading.recipe

    def other(self: Any, spec: Any) -> Any:
        found = seen(self, spec)
        return replace(found, layers=tuple(replace(layer, scaling=layer.scaling * 2) for layer in found.layers))

    monkeypatch.setattr(recipes.Reading, "recipe", other)
    with pytest.raises(Unsupported, match="scaled or capped otherwise"):
        record(load("gpt2"), TEXTS, "attn", patterns="recipe")
    assert following.refused("x", "y").hint


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "t5", "bloom"])
def test_check_proves_them_against_the_models_own(family: str) -> None:
    model = tiny_model(family)
    result = check_model(model, random_examples(model.config))
    facts = [proof for proof in result.proofs if "by recipe" in proof.fact]
    assert {proof.fact for proof in facts} == {
        "made anew by recipe of q and k, equals what is recorded",
        "made anew by recipe of q and k, equals the model's own eager attentions",
    }
    assert all(proof.ok for proof in facts)


@pytest.mark.slow
def test_check_says_what_cannot_be_by_recipe() -> None:
    model = tiny_model("deberta-v2")
    result = check_model(model, random_examples(model.config))
    assert result.ok
    assert "does not follow from where query and key are" in result.no_recipe


def test_a_run_on_disk_holds_no_pattern_and_gives_them(load: Load, tmp_path: Path) -> None:
    memory = record(load("gpt2"), TEXTS[:3], "attn", patterns="recipe")
    disk = record(load("gpt2"), TEXTS[:3], "attn", patterns="recipe", out=tmp_path / "run")
    assert disk.verify().ok
    np.testing.assert_array_equal(disk.attn(2), memory.attn(2))
    assert not list((tmp_path / "run").rglob("dec_self_attn.zarr/attn"))
