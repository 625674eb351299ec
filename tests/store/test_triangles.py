"""Causal patterns as packed triangles: the same numbers, in files that other readers read, in any pieces."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import given
from hypothesis import strategies as st

from tests.marks import slow
from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import CorruptRun, NumericError, Unsupported
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.commits import verify_run
from traceformer.store.layout import RunLayout
from traceformer.store.memory import MemoryWriter
from traceformer.store.sizes import filled_bytes
from traceformer.store.triangles import fold, n_cells, unfold
from traceformer.store.writer import RunWriter

PATTERN = runs.spec("dec.self.attn_pattern")
SCORES = runs.spec("dec.self.attn_scores")


def causal(layout: RunLayout, array: ArraySpec, example: int) -> np.ndarray:
    """Returns an example's numbers as they are stored, with nothing above the diagonal of patterns."""
    numbers = runs.as_stored(layout, array, runs.truth(layout, array, example))
    return np.tril(numbers) if array.key == PATTERN.key else numbers


def write_causal_shards(writer: RunWriter | MemoryWriter) -> None:
    layout = writer.layout
    for shard in writer.pending:
        buffer, examples = writer.buffer(), layout.shard_range(shard)
        buffer.begin({"dec": [runs.lengths(layout, example)["dec"] for example in examples]})
        for array in layout.arrays:
            for slot, example in enumerate(examples):
                buffer.put(array, slot, causal(layout, array, example))
        writer.commit(shard, buffer, runs.pa.table({"example_id": [runs.name(example) for example in examples]}))


def write(folder: Path, layout: RunLayout, **options: Any) -> TraceStore:
    with RunWriter.create(folder, layout, runs.META, digest=runs.DIGEST, **options) as writer:
        write_causal_shards(writer)
        return TraceStore(writer.finish())


def plan(**options: Any) -> RunLayout:
    return runs.plan(**{"arrays": [PATTERN, SCORES, runs.spec("dec.embed")], "triangles": [PATTERN.key], **options})


def read_back(layout: RunLayout, bits: np.ndarray) -> np.ndarray:
    """Returns what must be read of stored patterns."""
    stored = layout.stored(PATTERN)
    if stored == "sqrt8":
        return ((bits / 255) ** 2).astype(np.float32)
    return (bits.view(runs.ml_dtypes.bfloat16) if stored == "bfloat16" else bits).astype(np.float32)


@pytest.mark.parametrize(
    ("dtype", "attn_codec"),
    [("float16", "exact"), slow("float16", "small"), ("bfloat16", "sqrt8"), slow("bfloat16", "exact"),
     slow("float32", "exact"), slow("float32", "small")],
)  # fmt: skip
def test_squares_come_back_bit_for_bit_by_every_way_to_read(tmp_path: Path, dtype: str, attn_codec: str) -> None:
    layout = plan(dtype=dtype, attn_codec=attn_codec, longest={"dec": 190})
    run = write(tmp_path / "run", layout)
    tree = run.to_xarray()["dec_self_attn"]["attn"]
    assert tree.dims == ("example", "layer", "head", "query", "key")
    scans = list(run.head("attn", 4, 2))
    for example in range(11):
        wanted = read_back(layout, causal(layout, PATTERN, example))
        assert np.array_equal(run.attn(example), wanted)
        assert np.array_equal(run.attn(example, 4, 2), wanted[1, 1])
        assert np.array_equal(run.attn(example, head=3), wanted[:, 2])
        assert np.array_equal(scans[example][1], wanted[1, 1])
        assert np.array_equal(tree[example, 1, 1, 5:9, ::2].values, padded(wanted, 192)[1, 1, 5:9, ::2])
        assert np.array_equal(run.get(example, "attn_scores"), runs.expected(layout, SCORES, example))
    assert verify_run(tmp_path / "run") == []


def padded(square: np.ndarray, size: int) -> np.ndarray:
    missing = size - square.shape[-1]
    return np.pad(square, [(0, 0)] * (square.ndim - 2) + [(0, missing)] * 2)


@pytest.mark.parametrize("codec", ["exact", slow("small"), slow("sqrt8")])
def test_zarr_and_tensorstore_read_the_cells(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traceformer.store.layout.CHUNK_BYTES", 1000)  # several chunks, of which some are left out
    layout = plan(attn_codec=codec)
    run = write(tmp_path / "run", layout)
    place = tmp_path / "run" / layout.array_path(PATTERN.key)
    by_zarr: Any = zarr.open_array(place, mode="r")
    asked = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{place}/"}}
    by_tensorstore = ts.open(asked, open=True, read=True).result()
    assert by_zarr.metadata.dimension_names == ("example", "layer", "head", "cell")
    assert len(list(place.glob("c.*"))) == 3
    for example in range(11):
        bits = causal(layout, PATTERN, example)
        n = bits.shape[-1]
        cells = bits[..., *np.tril_indices(n)]
        whole = np.pad(cells, [(0, 0), (0, 0), (0, by_zarr.shape[-1] - n_cells(n))])  # behind its own, zeros
        assert np.array_equal(by_zarr[example], whole)
        assert np.array_equal(by_tensorstore[example].read().result(), whole)
        assert np.array_equal(run.attn(example), read_back(layout, bits))


def test_the_same_numbers_are_the_same_bytes_in_whatever_rows_they_come(tmp_path: Path) -> None:
    layout = plan(n_examples=4, longest={"dec": 190})
    write(tmp_path / "whole", layout)
    with RunWriter.create(tmp_path / "rows", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": [runs.lengths(layout, example)["dec"] for example in range(4)]})
        for array in layout.arrays:
            for slot, example in reversed(list(enumerate(range(4)))):
                values = causal(layout, array, example)
                if not array.site.is_matrix:
                    buffer.put(array, slot, values)
                    continue
                for layer, block in enumerate(values):
                    for first in range(0, block.shape[1], 7):
                        part = np.ascontiguousarray(
                            block[:, first : first + 7, : None if array == SCORES else first + 7]
                        )
                        buffer.matrices[array.key].take(slot, layer, first, part)
        writer.commit(0, buffer, runs.pa.table({"example_id": [runs.name(example) for example in range(4)]}))
        writer.finish()
    files = list((tmp_path / "whole").rglob("c.*"))
    assert files
    for path in files:
        assert path.read_bytes() == (tmp_path / "rows" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_a_copy_and_a_run_saved_from_memory_have_the_same_files(tmp_path: Path) -> None:
    layout = plan()
    run = write(tmp_path / "run", layout)
    with MemoryWriter(layout, runs.META, digest=runs.DIGEST) as writer:
        write_causal_shards(writer)
        memory = writer.finish()
    assert writer.bytes_written == filled_bytes(layout, {"dec": [memory.length(row) for row in range(11)]})
    assert all(np.array_equal(memory.attn(row), run.attn(row)) for row in range(11))
    for made in (memory.save(tmp_path / "saved"), run.save(tmp_path / "copy")):
        for path in (tmp_path / "run").rglob("c.*"):
            assert made.folder is not None
            assert (made.folder / path.relative_to(tmp_path / "run")).read_bytes() == path.read_bytes()


def test_a_value_that_is_no_number_is_found_in_a_triangle(tmp_path: Path) -> None:
    layout = plan(n_examples=1)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        for value, said in ((np.nan, "layer 4 of dec.self.attn_pattern is NaN"), (np.inf, "layer 4 .* not fit into")):
            buffer = writer.buffer()
            buffer.begin({"dec": [20]})
            square = np.tril(np.ones((2, 3, 20, 20), np.float16))
            square[1, 2, 19, 0] = value
            for array in layout.arrays:
                given = square if array == PATTERN else np.zeros(buffer.shape(array, 0), np.float16)
                buffer.put(array, 0, given)
            with pytest.raises(NumericError, match=said):
                writer.commit(0, buffer, runs.pa.table({"example_id": ["a"]}))


def test_what_looks_ahead_is_refused_and_not_cut_off(tmp_path: Path) -> None:
    layout = plan(n_examples=1)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": [20]})
        with pytest.raises(Unsupported, match=r"layer 1 of dec\.self\.attn_pattern looks at a later token"):
            buffer.put(PATTERN, 0, np.ones((2, 3, 20, 20), np.float16))


def damaged(path: Path) -> Iterator[bytes]:
    """Yields a file's bytes with a bit changed in each part of it, and without its end."""
    data = path.read_bytes()
    for at in (*range(0, len(data), max(1, len(data) // 20)), len(data) - 1):
        yield data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_every_damaged_byte_of_a_file_is_an_error_or_not_of_the_numbers(tmp_path: Path) -> None:
    layout = plan(n_examples=2, shard_examples=2)
    run = write(tmp_path / "run", layout)
    path = tmp_path / "run" / layout.shard_files(PATTERN, 0)[0]
    before = path.read_bytes()
    wanted = [run.attn(row) for row in range(2)]
    refused = 0
    for data in damaged(path):
        path.write_bytes(data)
        try:
            read = [TraceStore(tmp_path / "run").attn(row) for row in range(2)]
        except CorruptRun:
            refused += 1
        else:
            assert all(map(np.array_equal, read, wanted))
    assert refused > 10
    path.write_bytes(before[:-50])
    with pytest.raises(CorruptRun, match="instead of"):
        TraceStore(tmp_path / "run").attn(0)


def test_metadata_that_states_another_codec_is_an_error(tmp_path: Path) -> None:
    layout = plan(n_examples=1)
    write(tmp_path / "run", layout)
    path = tmp_path / "run" / layout.array_path(PATTERN.key) / "zarr.json"
    path.write_text(path.read_text().replace('"bitshuffle"', '"shuffle"'))
    with pytest.raises(CorruptRun, match="states the codecs"):
        TraceStore(tmp_path / "run").attn(0)


@given(tokens=st.integers(0, 40), first=st.integers(0, 40), heads=st.integers(1, 3))
def test_folding_and_unfolding_rows_is_what_tril_does(tokens: int, first: int, heads: int) -> None:
    first = min(first, tokens)
    square = np.tril(np.random.default_rng(tokens).random((heads, tokens, tokens), np.float32) + 1)
    cells = square[:, *np.tril_indices(tokens)]
    part = np.empty((heads, n_cells(tokens) - n_cells(first)), np.float32)
    assert fold(np.ascontiguousarray(square[:, first:]), first, part)
    assert np.array_equal(part, cells[:, n_cells(first) :])
    assert np.array_equal(unfold(part, first, tokens - first, tokens), square[:, first:])


@given(longest=st.integers(1, 9000), dtype=st.sampled_from(["float16", "float32"]))
def test_chunks_are_equal_runs_of_cells_of_256_kib_at_most(longest: int, dtype: str) -> None:
    layout = plan(longest={"dec": longest}, dtype=dtype)
    cells, chunk = layout.shard_shape(PATTERN)[-1], layout.chunk_shape(PATTERN)[-1]
    assert cells % chunk == 0
    assert 0 <= cells - n_cells(layout.max_tokens["dec"]) < chunk
    assert chunk * layout.itemsize(PATTERN) <= (256 << 10) + 64 * 4


@pytest.mark.parametrize("wrong", [["dec.embed"], ["dec.self.z"], ["nonsense"]])
def test_triangles_of_what_is_no_matrix_of_the_run_are_refused(wrong: list[str]) -> None:
    data = plan().to_json()
    with pytest.raises(ValueError, match=r"triangles|not an array key"):
        RunLayout.from_json({**data, "triangles": wrong})


def test_a_layout_that_says_nothing_of_matrices_is_that_of_an_older_format() -> None:
    data = plan().to_json()
    del data["triangles"], data["matrix_codec"]
    assert RunLayout.from_json(data) == replace(plan(), triangles=(), matrix_codec="zstd")
    assert ArrayKey.parse("dec.self.attn_pattern") in plan().triangles
