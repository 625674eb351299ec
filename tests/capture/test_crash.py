"""Extraction killed at random moments: what it had committed stays, and the resumed run has the same bytes."""

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from tests.capture.asked import Extraction, extracted
from traceformer import Run, Selection, TraceStore
from traceformer.store.commits import verify_run


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts processes that have torch and transformers already imported, so that a kill costs no import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["traceformer.capture.extract"])
    return context


def run_quietly(request: Extraction) -> None:
    import warnings

    import torch

    torch.set_num_threads(1)  # on two, the model's own sums may be split otherwise when the machine is busy
    warnings.simplefilter("ignore")
    extracted(request)


def kill_after(process: BaseProcess, seconds: float) -> bool:
    """Kills a process (SIGKILL) after some seconds; False if it had ended by itself."""
    process.start()
    process.join(seconds)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


def array_files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("c.*")}


def request_for(folder: Path, out: Path, **changes: object) -> Extraction:
    base = Extraction(
        selection=Selection(("attn", "qkv", "hidden", "resid")),
        model=str(folder),
        dataset="demo",
        limit=None,
        device="cpu",
        shard_examples=2,
        out_dir=out,
    )
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def killed_runs(processes: ForkServerContext, request: Extraction, kills: int, seconds: float) -> Iterator[Path]:
    """Yields finished runs, each killed at random moments and resumed until it was done, `kills` times in all."""
    chance = random.Random(kills)
    number = hits = 0
    while hits < kills:
        number += 1
        asked = replace(request, out_dir=request.out_dir and request.out_dir.with_name(f"killed-{number}"))
        assert asked.out_dir is not None
        while not asked.out_dir.exists():
            begun = asked.out_dir.with_name(f"_tmp_{asked.out_dir.name}") / "meta.json"
            process = processes.Process(target=run_quietly, args=(replace(asked, resume=begun.exists()),))
            wait = chance.uniform(0.2 * seconds, seconds) if hits < kills else 120
            hits += kill_after(process, wait)
        yield asked.out_dir


def measured(processes: ForkServerContext, request: Extraction) -> float:
    started = time.perf_counter()
    process = processes.Process(target=run_quietly, args=(request,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return time.perf_counter() - started


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_never_killed(
    kills: int, processes: ForkServerContext, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder("gpt2")
    whole = request_for(folder, tmp_path / "whole")
    measured(processes, replace(whole, out_dir=tmp_path / "warm"))
    seconds = measured(processes, whole)
    for run in killed_runs(processes, whole, kills, seconds):
        assert not verify_run(run)
        assert array_files(run) == array_files(tmp_path / "whole")
        ids = list(TraceStore(run).tokens.example_id)
        assert len(ids) == len(set(ids)) == 64
        assert ids == list(TraceStore(tmp_path / "whole").tokens.example_id)


@pytest.mark.slow
def test_patterns_by_recipe_killed_and_resumed_equal_those_never_killed(
    processes: ForkServerContext, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    whole = request_for(tiny_folder("gpt2"), tmp_path / "whole", patterns="recipe")
    measured(processes, replace(whole, out_dir=tmp_path / "warm"))
    seconds = measured(processes, whole)
    expected = Run(tmp_path / "whole")
    for run in killed_runs(processes, whole, 3, seconds):
        assert not verify_run(run)
        assert array_files(run) == array_files(tmp_path / "whole")
        found = Run(run)
        assert found.layout == expected.layout
        assert found.layout.recipes
        assert found.ids == expected.ids
        for example in range(expected.n):
            np.testing.assert_array_equal(found.attn(example), expected.attn(example))


@pytest.mark.slow
def test_two_writers_killed_and_resumed_equal_one(
    processes: ForkServerContext, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder("gpt2")
    seconds = measured(processes, request_for(folder, tmp_path / "whole"))
    chance = random.Random(2)
    shared = request_for(folder, tmp_path / "shared")
    for _ in range(10):
        if (tmp_path / "shared").exists():
            break
        pair = [processes.Process(target=run_quietly, args=(replace(shared, writer=(w, 2)),)) for w in range(2)]
        for process in pair:
            process.start()
        time.sleep(chance.uniform(0.3 * seconds, seconds))
        for process in pair:
            process.kill()
            process.join()
    for w in range(2):
        if not (tmp_path / "shared").exists():
            process = processes.Process(target=run_quietly, args=(replace(shared, writer=(w, 2)),))
            process.start()
            process.join(120)
    assert not verify_run(tmp_path / "shared")
    assert array_files(tmp_path / "shared") == array_files(tmp_path / "whole")
