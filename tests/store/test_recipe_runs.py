"""Runs of patterns by recipe, written by several and copied: the same bytes, and the same patterns made of them."""

from pathlib import Path

import numpy as np
import pytest

import traceformer as tf
from tests.store import runs
from tests.store.bucket_server import Bucket
from traceformer import TraceStore
from traceformer.store.leased import LeasedWriter

LAYOUT = runs.plan_by_recipe(n_examples=3, shard_examples=1, longest={"dec": 9})


def assert_same_patterns(found: TraceStore, expected: TraceStore) -> None:
    assert found.layout == expected.layout
    assert found.layout.recipes
    for example in range(expected.n):
        attn = expected.attn(example)
        np.testing.assert_array_equal(found.attn(example), attn)
        np.testing.assert_array_equal(found.attn(example, 4, 2, queries=slice(-1, None)), attn[1, 1, -1:])


def test_two_writers_that_take_turns_make_the_run_that_one_makes(tmp_path: Path) -> None:
    alone = runs.write(tmp_path / "alone", LAYOUT)

    def joining() -> LeasedWriter:
        return LeasedWriter.create(tmp_path / "shared", LAYOUT, runs.META, digest=runs.DIGEST, joins=True)

    with joining() as one, joining() as other:
        turns = [(one, one.claims(wait=False)), (other, other.claims(wait=False))]
        taken: list[list[int]] = [[], []]
        while turns:
            held = [(writer, claims, next(claims, None)) for writer, claims in turns]
            turns = [(writer, claims) for writer, claims, shard in held if shard is not None]
            for writer, _, shard in held:
                if shard is not None:
                    buffer = writer.buffer()
                    writer.commit(shard, buffer, runs.fill(LAYOUT, shard, buffer))
                    taken[writer is other].append(shard)
        assert [len(shards) for shards in taken] == [2, 1]
        shared = one.finish()
        assert other.finish() == shared
    assert isinstance(shared, Path)
    assert runs.contents(shared) == runs.contents(alone)
    assert_same_patterns(TraceStore(shared), TraceStore(alone))


@pytest.mark.slow
def test_a_copy_in_a_bucket_and_one_of_that_on_a_disk_give_the_same_patterns(bucket: Bucket, tmp_path: Path) -> None:
    run = TraceStore(runs.write(tmp_path / "run", LAYOUT))
    there = tf.sync(run, f"s3://{bucket.name}/run")
    assert_same_patterns(there, run)
    back = tf.sync(there, tmp_path / "back")
    assert isinstance(back.folder, Path)
    assert runs.contents(back.folder) == runs.contents(tmp_path / "run")
    assert_same_patterns(back, run)
    assert back.verify().ok
