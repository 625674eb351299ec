"""Arrays with one row per example: `example[, layer, head], feature`, whatever the site is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.store import runs
from traceformer import sites
from traceformer.errors import SelectionError
from traceformer.questions.statistics import statistics
from traceformer.sites import ArrayKey, ArraySpec, Site
from traceformer.store import names
from traceformer.store.layout import RunLayout
from traceformer.store.memory import MemoryWriter
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter

KEY = ArrayKey("dec", None, "head_sums")
SUMS = ArraySpec(KEY, (1, 4), (0, 2, 3), 5)
ARRAYS = (SUMS, runs.spec("dec.class_logits"), runs.spec("dec.embed"))


@pytest.fixture(autouse=True)
def head_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site of another kind than those there are: a row per example, layer and head."""
    monkeypatch.setitem(sites.SITES, "head_sums", Site("head_sums", ("layer", "head", "sum"), "sums"))  # pyright: ignore
    monkeypatch.setitem(names._PLACES, "head_sums", ("head_sums", "sums"))  # pyright: ignore


@pytest.mark.parametrize("options", [{}, {"codec": "zstd", "dtype": "bfloat16"}, {"codec": "lz4"}], ids=str)
def test_a_row_is_read_by_example_layer_and_head(options: dict[str, Any], tmp_path: Path) -> None:
    layout = runs.plan(arrays=ARRAYS, **options)
    run = Run(runs.write(tmp_path / "run", layout))
    truth = np.array([runs.expected(layout, SUMS, example) for example in range(run.n)])
    assert truth.shape == (11, 2, 3, 5)
    for example in range(run.n):
        assert np.array_equal(run.get(example, KEY), truth[example])
        assert np.array_equal(run.get(example, KEY, layer=4), truth[example, 1])
        assert np.array_equal(run.get(example, KEY, layer=4, head=2), truth[example, 1, 1])
    assert np.array_equal(run.activations(KEY, 4, head=3), truth[:, 1, 2])
    assert np.array_equal(run.activations(KEY, 1), truth[:, 0].reshape(11, 15))
    assert np.array_equal(np.concatenate(list(run.stream(KEY, 1, 4))), truth[:, 0].reshape(11, 15))
    shuffled = np.concatenate(list(run.stream(KEY, 1, 4, shuffle=True)))
    assert np.array_equal(np.sort(shuffled, axis=0), np.sort(truth[:, 0].reshape(11, 15), axis=0))
    assert [name for name, _ in run.head(KEY, 4, 0)] == list(run.ids)
    assert np.array_equal([values for _, values in run.head(KEY, 4, 0)], truth[:, 1, 0])
    assert run.arrays()["dec_head_sums"] == (11, 2, 3, 5)
    assert run.verify().ok
    with pytest.raises(SelectionError, match="no single row per token"):
        run.spec(KEY, shape="rows")
    files = sorted(path.name for path in (tmp_path / "run/dec_head_sums.zarr/sums").glob("c.*"))
    assert files == ["c.0.0.0.0", "c.1.0.0.0", "c.2.0.0.0"]


def test_zarr_and_xarray_read_it_by_the_models_numbers(tmp_path: Path) -> None:
    layout = runs.plan(arrays=ARRAYS)
    run = Run(runs.write(tmp_path / "run", layout))
    truth = np.array([runs.expected(layout, SUMS, example) for example in range(run.n)])
    stored: Any = zarr.open_array(tmp_path / "run/dec_head_sums.zarr/sums", mode="r")
    assert stored.shape == (11, 2, 3, 5)
    assert np.array_equal(stored[:], truth)
    sums: Any = run.to_xarray()["dec_head_sums"]["sums"]
    assert sums.dims == ("example", "layer", "head", "sum")
    assert np.array_equal(sums.sel(layer=4, head=3).values, truth[:, 1, 2])
    assert np.array_equal(sums[[10, 2]].values, truth[[10, 2]])
    assert sums.example_id.values[6] == "example-6"
    assert set(sums.coords) == {"example_id", "layer", "head"}


def test_memory_and_a_copy_hold_the_same(tmp_path: Path) -> None:
    layout = runs.plan(arrays=ARRAYS)
    folder = runs.write(tmp_path / "run", layout)
    with MemoryWriter(layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            writer.commit(shard, buffer, runs.fill(layout, shard, buffer))
        in_memory = writer.finish()
    for example in range(11):
        assert np.array_equal(in_memory.get(example, KEY, head=2), Run(folder).get(example, KEY, head=2))
    assert np.array_equal(in_memory.activations(KEY, 1), Run(folder).activations(KEY, 1))
    in_memory.save(tmp_path / "saved")
    Run(folder).save(tmp_path / "copy")
    path = "dec_head_sums.zarr/sums/c.2.0.0.0"
    assert (tmp_path / "saved" / path).read_bytes() == (folder / path).read_bytes()
    assert (tmp_path / "copy" / path).read_bytes() == (folder / path).read_bytes()


def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    layout = runs.plan(arrays=ARRAYS)
    whole = runs.contents(runs.write(tmp_path / "whole" / "run", layout))
    unfinished = runs.begin(tmp_path / "run", 1, layout)
    assert Run(unfinished).n == 4
    assert np.array_equal(Run(unfinished).get(3, KEY), runs.expected(layout, SUMS, 3))
    assert runs.contents(runs.complete(tmp_path / "run", layout)) == whole


def test_damage_is_found(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=ARRAYS))
    path = folder / "dec_class_logits.zarr/class_logits/c.1.0"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert [str(problem.path) for problem in Run(folder).verify().problems] == [
        "dec_class_logits.zarr/class_logits/c.1.0"
    ]


def test_the_row_of_an_example_without_tokens_is_nan_also_where_memory_is_used_again(tmp_path: Path) -> None:
    layout = runs.plan(arrays=ARRAYS, n_examples=12, shard_examples=2)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:  # two buffers serve six shards
            buffer = writer.buffer()
            table = runs.fill(layout, shard, buffer)
            kept = buffer.part(SUMS, 0).copy()
            buffer.begin({"dec": [4, 0 if shard % 2 else 4]})
            buffer.part(SUMS, 0)[...] = kept
            for spec in layout.arrays:
                if shard % 2 == 0 and spec.site.is_per_example:
                    buffer.part(spec, 1)[...] = 1
            buffer.part(ARRAYS[1], 0)[...] = 2
            writer.commit(shard, buffer, table)
        run = Run(writer.finish())
    assert [bool(np.isnan(run.get(row, KEY)).all()) for row in range(12)] == [row % 4 == 3 for row in range(12)]
    assert not any(np.isnan(run.class_logits(row)).any() for row in range(12) if row % 4 != 3)


def test_as_many_examples_as_256_kib_hold_are_one_chunk() -> None:
    def chunk(width: int, shard_examples: int) -> int:
        spec = ArraySpec(KEY, tuple(range(8)), tuple(range(16)), width)
        layout = RunLayout.plan(
            arch="dec", arrays=[spec], n_examples=99, longest={"dec": 9}, shard_examples=shard_examples
        )
        assert layout.shard_shape(spec) == (shard_examples, 8, 16, width)
        assert layout.chunk_shape(spec)[1:] == (8, 16, width)
        return layout.chunk_shape(spec)[0]

    assert [chunk(2, 64), chunk(32, 64), chunk(4096, 64), chunk(2, 12)] == [64, 32, 1, 4]


def test_its_statistics_are_those_of_all_examples(tmp_path: Path) -> None:
    layout = runs.plan(arrays=ARRAYS, dtype="float32")
    found = statistics(Run(runs.write(tmp_path / "run", layout))).activations
    for spec, own in zip(ARRAYS[:2], found, strict=False):
        truth = np.array([runs.truth(layout, spec, example) for example in range(11)]).astype(np.float64)
        by_layer = np.moveaxis(truth, 1, 0) if spec.layers else truth[None]
        np.testing.assert_allclose([each.mean for each in own.by_layer], by_layer.reshape(len(by_layer), -1).mean(1))
        assert [each.max for each in own.by_layer] == by_layer.reshape(len(by_layer), -1).max(1).tolist()
