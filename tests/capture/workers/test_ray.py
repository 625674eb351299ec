"""Runs that Ray's workers record together: byte for byte those of one process, whoever dies meanwhile."""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import traceformer as tf
from tests.conftest import skip
from traceformer.capture.workers.engine import Ray
from traceformer.errors import RunExists, UsageError
from traceformer.progress import Progress
from traceformer.store.commits import verify_run
from traceformer.store.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:texts are cut"),  # the tiny model reads 64 tokens
]

TWO = Ray(workers=2)


@pytest.fixture(scope="module", autouse=True)
def one_session() -> Iterator[None]:
    """Ray at work for all tests here: a start takes seconds."""
    try:
        import ray
    except ImportError:
        skip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield
    ray.shutdown()


def array_files(run: Run) -> dict[str, bytes]:
    assert run.folder is not None
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in run.folder.rglob("c.*")}


def recorded(model: Path, out: Path, **asked: Any) -> Run:
    settings: dict[str, Any] = {"shard_examples": 2, "out": out, **asked}
    return tf.record(str(model), "demo", "attn qkv hidden resid", **settings)


def workers(kind: str = "RecordingWorker") -> list[psutil.Process]:
    """The processes of this one's workers that are at work."""
    there: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith(f"ray::{kind}"):
                there.append(process)
    return there


def test_two_workers_write_what_one_process_writes(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    model, told = tiny_folder("gpt2"), list[Progress]()
    one = recorded(model, tmp_path / "one")
    two = recorded(model, tmp_path / "two", engine=TWO, progress=told.append)
    assert verify_run(tmp_path / "two") == []
    assert array_files(two) == array_files(one)
    assert two.tokens.drop(columns=["shard"]).equals(one.tokens.drop(columns=["shard"]))
    assert len({*two.ids}) == 64
    done = [each.examples_done for each in told if not each.is_notice]
    assert (told[-1].examples_total, done[-1], told[-1].tokens_done) == (64, 64, sum(one.tokens.n_tokens))
    assert done == sorted(done)
    writers = {each.host.threads for each in two.computed}
    assert writers == {1}


def test_two_threads_differ_in_last_bits_at_most(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Compared in float32, where the last of 24 bits is 6e-8 of a value."""
    model = tiny_folder("gpt2")
    one = recorded(model, tmp_path / "one", dtype="float32")
    two = recorded(model, tmp_path / "two", dtype="float32", engine=Ray(workers=1, threads_per_worker=2))
    assert {each.host.threads for each in two.computed} == {2}
    for spec in one.layout.arrays:
        for example in one.ids:
            expected = one.get(example, spec.key)
            assert np.abs(two.get(example, spec.key) - expected).max() <= 1e-6 * max(1, np.abs(expected).max())


def test_ten_workers_killed_at_random_change_nothing(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Killed with SIGKILL once so many examples are done: at an open shard, behind a commit, or between."""
    model, chance, notices = tiny_folder("gpt2"), random.Random(10), list[str]()
    one = recorded(model, tmp_path / "one")
    due = sorted(chance.sample(range(1, 60), 10))
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.is_notice:
            notices.append(progress.message)
        elif due and progress.examples_done >= due[0] and (there := workers()):
            process = chance.choice(there)
            process.kill()
            process.wait(30)
            killed.append(process.pid)
            due.pop(0)

    two = recorded(model, tmp_path / "two", engine=TWO, progress=kill)
    assert len(killed) == 10
    assert sum(" died" in notice for notice in notices) == 10
    assert verify_run(tmp_path / "two") == []
    assert array_files(two) == array_files(one)


def test_a_run_that_was_interrupted_is_gone_on_with(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_folder("gpt2")

    def interrupt(progress: Progress) -> None:
        if progress.examples_done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorded(model, tmp_path / "two", engine=TWO, progress=interrupt)
    begun = Run(tmp_path / "_tmp_two")
    assert 0 < begun.n < 64
    with pytest.raises(RunExists, match="an unfinished run"):
        recorded(model, tmp_path / "two", engine=TWO)
    left: list[int] = []
    run = recorded(model, tmp_path / "two", engine=TWO, resume=True, progress=lambda at: left.append(at.examples_total))
    assert left[-1] == 64 - begun.n
    assert array_files(run) == array_files(recorded(model, tmp_path / "one"))
    again = recorded(model, tmp_path / "two", engine=TWO, overwrite=True, limit=4)
    assert again.n == 4


def test_what_a_worker_raises_is_raised_here(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(tf.TraceformerError, match="layers 99 requested"):
        recorded(tiny_folder("gpt2"), tmp_path / "run", engine=TWO, layers=[99])
    with pytest.raises(UsageError, match="a worker of 3 CPUs"):
        recorded(tiny_folder("gpt2"), tmp_path / "run", engine=Ray(threads_per_worker=3))
    assert [*tmp_path.iterdir()] == []


def test_heads_and_statistics_of_a_run_are_the_same_numbers(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    run = recorded(tiny_folder("gpt2"), tmp_path / "run", shard_examples=16)
    assert tf.heads(run, engine=TWO).to_json() == tf.heads(run).to_json()
    assert tf.statistics(run, engine=TWO).to_json() == tf.statistics(run).to_json()


def test_workers_give_the_answers_of_one_process(tmp_path: Path) -> None:
    prompts = [f"The function number {number} returns" for number in range(12)]
    asked: dict[str, Any] = {"max_tokens": 12, "batch_size": 2, "temperature": 1.0}
    one = tf.generate("byte", prompts, "attn resid logits", out=tmp_path / "one", **asked)
    two = tf.generate("byte", prompts, "attn resid logits", out=tmp_path / "two", engine=TWO, **asked)
    assert list(two.tokens.response) == list(one.tokens.response)
    assert array_files(two) == array_files(one)
    assert verify_run(tmp_path / "two") == []


def effects_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("c.*")}


@pytest.mark.parametrize("how", ["mean", "resample"])
def test_workers_ablate_what_one_process_ablates(how: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"how": how, "limit": 24, "batch_size": 4, "layers": [1, 3]}
    one = tf.ablate("byte", "demo", **asked, out=tmp_path / "one")
    two = tf.ablate("byte", "demo", **asked, out=tmp_path / "two", engine=TWO)
    apart = tf.ablate("byte", "demo", **asked, engine=TWO)  # nothing is written
    assert effects_of(tmp_path / "two") == effects_of(tmp_path / "one")
    for name in ("clean", "corrupt", "values"):
        for other in (two, apart, tf.open_effects(tmp_path / "two")):
            np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
    assert (two.axes, two.pairs, two.about.way) == (one.axes, one.pairs, one.about.way)
    assert two.about.compared >= one.about.compared > 0


def test_two_threads_ablate_to_the_last_bits(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"limit": 12, "batch_size": 4, "layers": [2]}
    one = tf.ablate("byte", "demo", **asked)
    two = tf.ablate("byte", "demo", **asked, engine=Ray(workers=1, threads_per_worker=2))
    assert np.nanmax(np.abs(two.by_pair["effect"] - one.by_pair["effect"])) <= 1e-6


def test_an_ablation_whose_workers_are_killed_is_the_same(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"limit": 24, "batch_size": 2, "site": "mlp_out"}
    tf.ablate("byte", "demo", **asked, out=tmp_path / "one")
    killed: list[int] = []

    def kill(done: int, of: int) -> None:
        if done // 5 > len(killed) and (there := workers("_Member")):
            with suppress(psutil.NoSuchProcess):
                there[0].kill()
                killed.append(there[0].pid)

    with pytest.warns(UserWarning, match="died"):
        tf.ablate("byte", "demo", **asked, out=tmp_path / "two", engine=TWO, progress=kill)
    assert len(killed) >= 2
    assert effects_of(tmp_path / "two") == effects_of(tmp_path / "one")


def test_an_ablation_that_was_interrupted_is_gone_on_with(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"limit": 24, "batch_size": 4, "site": "mlp_out", "out": tmp_path / "two"}

    def interrupt(done: int, of: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tf.ablate("byte", "demo", **asked, engine=TWO, progress=interrupt)
    assert 0 < len(effects_of(tmp_path / "two")) < 24 * 4
    with pytest.raises(RunExists, match="resume=True"):
        tf.ablate("byte", "demo", **asked, engine=TWO)
    tf.ablate("byte", "demo", **asked, engine=TWO, resume=True)
    asked["out"] = tmp_path / "one"
    tf.ablate("byte", "demo", **asked)
    assert effects_of(tmp_path / "two") == effects_of(tmp_path / "one")


def test_an_ablation_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(tf.TraceformerError, match="layer 99 requested"):
        tf.ablate("byte", "demo", limit=4, layers=[99], out=tmp_path / "two", engine=TWO)
    assert [*tmp_path.iterdir()] == []
