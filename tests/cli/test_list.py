"""`traceformer list` prints a table of a folder's runs, or JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store import runs
from traceformer.cli import main


def test_a_table_of_the_runs_in_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs.write(Path("traces/one"), runs.plan(arrays=runs.FEW))
    runs.begin(Path("traces/two"), shards=1)
    assert main(["list"]) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["run", "model", "data", "set", "examples", "on", "disk"]
    assert sorted((line[0], line[1], line[-1] == "unfinished") for line in lines[-2:]) == [
        ("_tmp_two", "tiny", True),
        ("one", "tiny", False),
    ]
    assert "next: traceformer inspect traces/" in err


def test_json_is_all_that_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.write(tmp_path / "one", runs.plan(arrays=runs.FEW))
    assert main(["list", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    [run] = json.loads(out)["runs"]
    assert (run["run"], run["n_examples"], run["finished"], err) == ("one", 11, True, "")


def test_an_empty_folder_says_how_to_make_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tmp_path)]) == 0
    hint = "next: traceformer extract --model byte --dataset demo"
    assert capsys.readouterr() == ("", f"{tmp_path} holds no runs; {hint}\n")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tmp_path / "none")]) == 3
    assert "no folder" in capsys.readouterr().err


def test_the_package_is_a_command() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "traceformer", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("traceformer ")
