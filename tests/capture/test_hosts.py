"""A run gone on with on another machine, played by another number of threads."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import traceformer as tf
from tests.capture.asked import Extraction, Stopped, extracted, stop_after
from traceformer import Selection, TraceStore
from traceformer.capture.hosts import host_here
from traceformer.errors import ConfigurationChanged
from traceformer.store.commits import CommitRecord, verify_run


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_a_run_of_one_thread_goes_on_with_two_and_says_so(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    asked = Extraction(
        selection=Selection(("attn", "resid")),
        model=str(tiny_folder("gpt2")),
        dataset="demo",
        limit=8,
        shard_examples=2,
        batch_size=2,
        dtype="float32",
        out_dir=tmp_path / "run",
    )
    with threads(1):
        extracted(replace(asked, out_dir=tmp_path / "one"))
        one = host_here()
        with pytest.raises(Stopped):
            extracted(asked, stop_after(6))
    with threads(2):
        two = host_here()
        with pytest.warns(UserWarning, match=r"going on with 2 threads .* after shards of 1 thread .*last bits"):
            extracted(replace(asked, resume=True))
    assert verify_run(tmp_path / "run") == []
    hosts = [CommitRecord.read(tmp_path / "run", shard).host for shard in range(4)]
    assert (hosts[0], hosts[-1], two) == (one, two, replace(one, threads=2))
    whole, resumed = TraceStore(tmp_path / "one"), TraceStore(tmp_path / "run")
    for spec in whole.layout.arrays:
        for example in whole.ids:
            expected = whole.get(example, spec.key)
            assert np.allclose(resumed.get(example, spec.key), expected, rtol=1e-6, atol=1e-6)


def test_one_of_several_that_comes_to_a_finished_run_has_nothing_to_do(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    asked = {"limit": 4, "shard_examples": 2, "out": tmp_path / "run", "resume": True, "num_shards": 3}
    model = str(tiny_folder("gpt2"))
    for index in range(3):  # two shards are there: the last one has none, and comes when all is done
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = tf.record(model, "demo", "resid", shard_index=index, **asked)
        assert run.finished == (index > 0)
    with pytest.raises(ConfigurationChanged, match="another selection"):
        tf.record(model, "demo", "attn", shard_index=2, **asked)
