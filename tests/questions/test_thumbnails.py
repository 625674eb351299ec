"""Thumbnails of runs: those of what is stored, whole layers together, kept beside the run."""

from pathlib import Path

import numpy as np
import pytest

from tests.store import runs
from traceformer.analysis.thumbnails import thumbnail
from traceformer.capture.extract import record
from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.questions import thumbnails as module
from traceformer.questions.thumbnails import keep_thumbnails, pattern_arrays, thumbnail_groups, thumbnails
from traceformer.sites import ArrayKey
from traceformer.store.run import Run

PATTERNS = [runs.spec(key) for key in ("enc.self.attn_pattern", "dec.self.attn_pattern", "dec.cross.attn_pattern")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three attentions of layers 1 and 4, heads 0, 2 and 3."""
    folder = tmp_path_factory.mktemp("traces") / "run"
    return Run(runs.write(folder, runs.plan("encdec", arrays=PATTERNS, n_examples=4, shard_examples=4)))


@pytest.mark.parametrize("cells", [1, 1 << 10, 1 << 24])
def test_all_heads_are_in_one_group_each(run: Run, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CELLS", cells)
    for spec in pattern_arrays(run):
        groups = thumbnail_groups(run, 0, spec)
        assert [head for group in groups for head in group] == list(range(6))
        for group in groups:
            whole = len(group) > len(spec.heads)
            assert not whole or len(group) % len(spec.heads) == 0


@pytest.mark.parametrize("cells", [1, 1 << 24])
def test_they_are_those_of_the_stored_patterns(run: Run, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CELLS", cells)
    for spec in pattern_arrays(run):
        for _ in range(2):  # made, and read again
            drawn = np.concatenate([thumbnails(run, 1, spec, group) for group in thumbnail_groups(run, 1, spec)])
            expected = thumbnail(run.get(1, spec.key)).reshape(6, *drawn.shape[1:])
            assert np.array_equal(drawn, expected)


def test_heads_that_are_no_group_are_refused(run: Run) -> None:
    with pytest.raises(SelectionError):
        thumbnails(run, 0, pattern_arrays(run)[0], range(1, 3))


def test_those_of_all_examples_are_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    keep_thumbnails(run, lambda done, of: steps.append((done, of)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    expected = thumbnail(run.get(2, ArrayKey.parse("dec.cross.attn_pattern")))
    monkeypatch.setattr(module, "thumbnail", None)  # nothing is drawn again
    found = thumbnails(run, 2, pattern_arrays(run)[2], range(6))
    assert np.array_equal(found, expected.reshape(found.shape))


def test_only_finished_runs_with_patterns_have_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        keep_thumbnails(Run(runs.begin(tmp_path / "begun")))
    rows = runs.plan(arrays=[runs.spec("dec.embed")], n_examples=1, longest={"dec": 4})
    with pytest.raises(NotRecorded):
        keep_thumbnails(Run(runs.write(tmp_path / "rows", rows)))


def test_recording_draws_them_if_asked(byte: LoadedModel, tmp_path: Path) -> None:
    run = record(byte, ["The cat sat."], capture="attn", out=tmp_path / "run", thumbnails=True)
    assert len([*(tmp_path / ".traceformer").glob("*/thumbnails-*")]) == 1
    assert run.verify().ok
    record(byte, ["The cat sat."], capture="attn", out=tmp_path / "without")
    assert len([*(tmp_path / ".traceformer").iterdir()]) == 1


def test_recording_refuses_those_that_cannot_be(byte: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        record(byte, ["The cat sat."], capture="attn", thumbnails=True)
    with pytest.raises(NotRecorded):
        record(byte, ["The cat sat."], capture="resid", out=tmp_path / "run", thumbnails=True)
    assert not (tmp_path / "run").exists()
