"""Some rows of a matrix are read without the others, and what memory does not hold is refused."""

from pathlib import Path

import numpy as np
import pytest

from tests.store import runs
from traceformer.errors import OutOfSpace, SelectionError
from traceformer.store import room
from traceformer.store.chunks import MatrixFiles
from traceformer.store.run import Run

ARRAYS = (runs.spec("dec.self.attn_pattern"), runs.spec("dec.self.attn_scores"), runs.spec("dec.resid_mid"))


@pytest.fixture(scope="module", params=["squares", "triangles"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    triangles = [ARRAYS[0].key] if request.param == "triangles" else []
    layout = runs.plan(arrays=ARRAYS, triangles=triangles)
    folder = tmp_path_factory.mktemp("runs") / "run"
    truth = runs.truth
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            runs, "truth", lambda *of: np.tril(truth(*of)) if triangles and of[1].site.is_matrix else truth(*of)
        )
        return Run(runs.write(folder, layout))


@pytest.mark.parametrize("queries", [slice(0, 1), slice(2, 9), slice(-1, None), slice(5, 5), slice(3, 999)])
def test_rows_are_those_of_the_whole(run: Run, queries: slice) -> None:
    example = int(np.argmax(run.lengths()))
    whole = run.attn(example)
    np.testing.assert_array_equal(run.attn(example, queries=queries), whole[:, :, queries])
    np.testing.assert_array_equal(run.attn(example, 4, 2, queries=queries), whole[1, 1, queries])
    found = run.get(example, "attn_pattern", layer=1, dtype="stored", queries=queries)
    np.testing.assert_array_equal(found, whole[0][:, queries])
    assert found.dtype == np.float16


def test_rows_of_a_run_in_memory_are_the_same(run: Run, tmp_path: Path) -> None:
    from traceformer.store.memory import MemoryWriter

    layout = run.layout
    with MemoryWriter(layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            table = runs.fill(layout, shard, buffer)
            for spec in layout.arrays[:1]:
                buffer.begin({stack: own.tolist() for stack, own in buffer.lengths.items()})
                for b, row in enumerate(layout.shard_range(shard)):
                    buffer.put(spec, b, run.get(row, spec.key, dtype="stored"))
            writer.commit(shard, buffer, table)
        kept = writer.finish()
    for queries in (slice(0, 2), slice(-1, None), slice(1, 1)):
        np.testing.assert_array_equal(kept.attn(1, queries=queries), run.attn(1, queries=queries))


def test_only_rows_that_follow_each_other_and_only_of_matrices(run: Run) -> None:
    with pytest.raises(SelectionError, match="every 2th query"):
        run.attn(0, queries=slice(0, 8, 2))
    with pytest.raises(SelectionError, match=r"queries of dec\.resid_mid"):
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
