"""The verb: what it shows, and how it begins and ends."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
import webbrowser
from pathlib import Path

import pytest

import traceformer as tf
from tests.viewer.small_runs import Writing, write_run
from traceformer.errors import NotFound, TraceformerError

pytestmark = pytest.mark.usefixtures("bundle")
HEAVY = ("torch", "transformers", "pandas", "tensorstore", "zarr", "scipy", "matplotlib")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "old")
    os.utime(folder / "old/meta.json", (1, 1))
    write_run(folder / "new")
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_with_runs(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(traces, tmp_path / "traces")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("asked", "fragment"),
    [
        (None, ""),
        ("traces", ""),
        (Path("traces"), ""),
        ("traces/old", "#run=old&screen=overview"),
        ("old", "#run=old&screen=overview"),
        ("latest", "#run=new&screen=overview"),
    ],
)
def test_it_shows_the_runs_of_a_folder_or_the_run_that_is_named(asked: str | Path | None, fragment: str) -> None:
    with tf.view(asked, browser=False) as server:
        assert server.page == server.address + fragment
        with urllib.request.urlopen(f"{server.address}api/runs") as answer:
            listed = answer.read().decode()
    assert ('"name": "old"' in listed) == (asked != "latest")
    assert ('"name": "new"' in listed) == ("old" not in str(asked))


def test_runs_at_hand_are_shown_and_one_that_is_written_is_followed(tmp_path: Path) -> None:
    both = [tf.open_run("old"), tf.open_run("new")]
    with tf.view(both, browser=False) as server:
        assert server.page == server.address
    writing = Writing(tmp_path / "traces/going", [["a"], ["b"]])
    writing.commit()
    with tf.view(tf.open_run("going"), browser=False) as server:
        writing.finish()
        with urllib.request.urlopen(f"{server.address}api/run?run=going") as answer:
            assert b'"n_examples": 2' in answer.read()


def test_the_page_is_opened_unless_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    with tf.view("new") as server:
        assert opened == [server.page]
        assert repr(server) == f"Server({server.page})"


@pytest.mark.parametrize(("asked", "message"), [("nowhere", "no run 'nowhere'"), (None, "no folder traces")])
def test_where_nothing_is_it_says_so(asked: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "traces").rename(tmp_path / "elsewhere")
    with pytest.raises(NotFound, match=message) as refused:
        tf.view(asked, browser=False)
    assert isinstance(refused.value, TraceformerError)
    assert "traceformer extract" in refused.value.hint


def test_it_listens_before_anything_heavy_is_loaded_and_an_interruption_ends_it(tmp_path: Path) -> None:
    script = "import sys; from traceformer.cli import main; code = main(); print(*sys.modules); sys.exit(code)"
    line = [sys.executable, "-c", script, "view", "traces", "--no-browser"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("error: interrupted\n")
    assert "Traceback" not in err
    assert not {*HEAVY} & {module.split(".")[0] for module in out.split()}
