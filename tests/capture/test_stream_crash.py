"""Streams killed at random moments, and streams so long that whatever grew with them would show."""

import gzip
import json
import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

import traceformer as tf
from tests.capture.test_crash import array_files, kill_after
from traceformer.store.commits import verify_run


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts processes that have torch and transformers already imported, so that a kill costs no import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["traceformer.capture.extract"])
    return context


def record_quietly(model: str, texts: str, out: Path, options: dict[str, Any]) -> None:
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tf.record(model, texts, "attn resid", out=out, streaming=True, max_seq_len=64, shard_examples=2, **options)


def write_texts(folder: Path, parts: int, each: int) -> str:
    folder.mkdir()
    for part in range(parts):
        rows = [json.dumps({"text": f"text {part * each + n} of many", "n": part * each + n}) for n in range(each)]
        (folder / f"{part:02d}.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    return f"{folder}/*.jsonl.gz"


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 30])
def test_a_shuffled_stream_that_is_killed_gives_each_text_once_and_in_the_same_order(
    kills: int, processes: ForkServerContext, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model, texts = str(tiny_folder("gpt2")), write_texts(tmp_path / "texts", 5, 19)
    shuffle = {"shuffle": 4, "shuffle_buffer": 12}

    def process(out: Path, **more: Any) -> Any:
        return processes.Process(target=record_quietly, args=(model, texts, out, {**shuffle, **more}))

    whole = tmp_path / "whole"
    for out in (tmp_path / "warm", whole):
        started = time.perf_counter()
        running = process(out)
        running.start()
        running.join(120)
        assert running.exitcode == 0
    seconds = time.perf_counter() - started
    chance, hits, number = random.Random(kills), 0, 0
    expected = list(tf.open_run(whole).tokens.n)
    assert sorted(expected) == list(range(95))
    assert expected != sorted(expected)
    while hits < kills:
        number += 1
        out = tmp_path / f"killed-{number}"
        while not out.exists():
            begun = (tmp_path / f"_tmp_{out.name}" / "meta.json").exists()
            wait = chance.uniform(0.2 * seconds, seconds) if hits < kills else 120
            hits += kill_after(process(out, resume=begun), wait)
        run = tf.open_run(out)
        assert list(run.tokens.n) == expected
        assert array_files(out) == array_files(whole)
        assert not verify_run(out)


LONG = """
import json, sys, warnings
import psutil, torch
import traceformer as tf

torch.set_num_threads(1)
warnings.simplefilter("ignore")
process, seen = psutil.Process(), []

def texts():
    for n in range({count}):
        yield f"text {{n}} of a stream that is long, with a few words more " * (1 + n % 3)

def watch(at):
    if at.message == "recording" and at.examples_done // 2000 > len(seen):
        seen.append(process.memory_info().rss)

run = tf.record({model!r}, texts(), "resid_post", layers=[0], out={out!r}, max_seq_len=64, batch_tokens=4096,
                progress=watch, **{order})
print(json.dumps({{"rss": seen, "n": run.n, "after": process.memory_info().rss}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", [{}, {"shuffle": 7, "shuffle_buffer": 1000}])
def test_memory_does_not_grow_with_a_stream(
    tiny_folder: Callable[..., Path], tmp_path: Path, order: dict[str, int]
) -> None:
    count = 120_000
    code = LONG.format(count=count, model=str(tiny_folder("gpt2")), out=str(tmp_path / "run"), order=order)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    told = json.loads(shown.splitlines()[-1])
    assert told["n"] == count
    settled, *rest = told["rss"][9:]  # after 20,000 texts
    assert len(rest) > 40
    # One percent is 5 MB of 500: a hundred bytes for each text that came since would show.
    assert max(rest) <= 1.01 * settled + (4 << 20)
