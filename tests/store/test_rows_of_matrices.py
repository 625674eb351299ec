"""Some rows of a matrix are read without the others, and what memory does not hold is refused."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.store import runs
from traceformer.errors import OutOfSpace, SelectionError
from traceformer.sites import ArraySpec
from traceformer.store import room
from traceformer.store.chunks import MatrixFiles
from traceformer.store.layout import RunLayout
from traceformer.store.memory import MemoryWriter
from traceformer.store.run import Run

ARRAYS = (runs.spec("dec.self.attn_pattern"), runs.spec("dec.self.attn_scores"), runs.spec("dec.resid_mid"))


@pytest.fixture(scope="module", params=["squares", "triangles"])
def layout(request: pytest.FixtureRequest) -> Iterator[RunLayout]:
    """A layout; while it is used, patterns that are triangles hold nothing above the diagonal."""
    triangles = [ARRAYS[0].key] if request.param == "triangles" else []
    truth = runs.truth

    def seen(layout: RunLayout, array: ArraySpec, example: int) -> np.ndarray:
        numbers = truth(layout, array, example)
        return np.tril(numbers) if array.key in triangles else numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "truth", seen)
        yield runs.plan(arrays=ARRAYS, triangles=triangles)


@pytest.fixture(scope="module")
def run(layout: RunLayout, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(runs.write(tmp_path_factory.mktemp("runs") / "run", layout))


@pytest.mark.parametrize("queries", [slice(0, 1), slice(2, 9), slice(-1, None), slice(5, 5), slice(3, 999)])
def test_rows_are_those_of_the_whole(run: Run, queries: slice) -> None:
    example = int(np.argmax(run.lengths()))
    whole = run.attn(example)
    np.testing.assert_array_equal(run.attn(example, queries=queries), whole[:, :, queries])
    np.testing.assert_array_equal(run.attn(example, 4, 2, queries=queries), whole[1, 1, queries])
    found = run.get(example, "attn_pattern", layer=1, dtype="stored", queries=queries)
    np.testing.assert_array_equal(found, whole[0][:, queries])
    assert found.dtype == np.float16


def test_rows_of_a_run_in_memory_are_the_same(run: Run, layout: RunLayout) -> None:
    with MemoryWriter(layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            writer.commit(shard, buffer, runs.fill(layout, shard, buffer))
        kept = writer.finish()
    for queries in (slice(0, 2), slice(-1, None), slice(1, 1)):
        np.testing.assert_array_equal(kept.attn(1, queries=queries), run.attn(1, queries=queries))


def test_only_rows_that_follow_each_other_and_only_of_matrices(run: Run) -> None:
    with pytest.raises(SelectionError, match="every 2th query"):
        run.attn(0, queries=slice(0, 8, 2))
    with pytest.raises(SelectionError, match=r"dec\.resid_mid is no \(query, key\) matrix"):
        run.get(0, "resid_mid", queries=slice(0, 2))


def test_chunks_of_other_rows_are_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[range] = []
    read = MatrixFiles.read
    monkeypatch.setattr(MatrixFiles, "read", lambda *of: seen.append(of[-2]) or read(*of))
    run.attn(0, layer=1, head=0, queries=slice(3, 5))
    assert seen == [range(3, 5)]


def test_what_memory_does_not_hold_is_refused_with_what_works(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SMALL", 0)
    monkeypatch.setattr(room, "available_memory", lambda: 3000)
    with pytest.raises(OutOfSpace, match=r"6 matrices of dec\.self\.attn_pattern of \d+ queries") as refused:
        run.attn(1)
    assert "queries=slice" in (refused.value.hint or "")
    assert run.attn(1, layer=1, head=0, queries=slice(0, 2)).shape == (2, run.length(1))
