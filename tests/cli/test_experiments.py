"""A folder of several runs, as `traceformer generate --experiment` makes one, in place of a run."""

import json
import os
import shutil
from pathlib import Path

import pytest

from traceformer import TraceStore
from traceformer.cli import main
from traceformer.errors import NotFound

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def experiment(decoder_run: Path, tmp_path: Path) -> Path:
    """`exp`: the runs `new` and `old`, which hold the same."""
    for age, name in enumerate(("new", "old")):
        shutil.copytree(decoder_run, tmp_path / "exp" / name)
        os.utime(tmp_path / "exp" / name / "meta.json", (1e9 - age, 1e9 - age))
    return Path("exp")


def out(capsys: Capture, arguments: str) -> str:
    assert main(arguments.split()) == 0
    return capsys.readouterr().out


def test_every_run_is_verified_and_one_damaged_run_is_enough(experiment: Path, capsys: Capture) -> None:
    assert [line.split(":")[0] for line in out(capsys, "verify exp").splitlines()] == ["exp/new", "exp/old"]
    (experiment / "old/notes.txt").write_text("mine")
    assert main(["verify", "exp"]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["exp/new", "notes.txt", "exp/old"]
    assert main(["verify", "exp", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], [(run["run"], run["ok"]) for run in told["runs"]]) == (
        False,
        [("exp/new", True), ("exp/old", False)],
    )


def test_every_run_is_analyzed_as_it_is_alone(experiment: Path, capsys: Capture) -> None:
    told = json.loads(out(capsys, "analyze exp --json"))
    assert told["runs"] == [json.loads(out(capsys, f"analyze exp/{name} --json")) for name in ("new", "old")]
    alone = [out(capsys, f"analyze exp/{name}") for name in ("new", "old")]
    assert out(capsys, "analyze exp").split("\n\n\n") == [alone[0].rstrip("\n"), alone[1]]


def test_every_run_is_exported_to_a_folder_of_its_name(experiment: Path, capsys: Capture) -> None:
    files = out(capsys, "export exp --output out").splitlines()
    ids = TraceStore("exp/new").ids
    assert [Path(path).parent for path in files] == [Path("out/new")] * len(ids) + [Path("out/old")] * len(ids)
    assert all(Path(path).is_file() for path in files)
    folder = out(capsys, "import out/old --out_dir back").strip()
    assert len(TraceStore(folder).ids) == len(ids)


@pytest.mark.parametrize(
    "arguments",
    [
        "analyze exp --example 0",
        "analyze exp --png x.png",
        "analyze exp --parquet x",
        "export exp --example 0",
        "lens exp",
    ],
)
def test_what_is_of_one_run_asks_for_one(experiment: Path, capsys: Capture, arguments: str) -> None:
    assert main(arguments.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "exp holds 2 runs" in shown.err
    assert "such as exp/new" in shown.err


def test_a_store_says_that_it_was_given_a_folder_of_runs(experiment: Path) -> None:
    with pytest.raises(NotFound, match="no run in exp") as caught:
        TraceStore("exp")
    assert (caught.value.why, caught.value.hint) == ("it is a folder of 2 runs", "open exp/old")


def test_every_run_has_a_table_of_heads_of_its_own(experiment: Path, capsys: Capture) -> None:
    alone = json.loads(out(capsys, "heads exp/old --output alone.csv --json"))
    told = json.loads(out(capsys, "heads exp --output heads.csv --json"))
    assert [run.pop("output") for run in told["runs"]] == ["heads/new.csv", "heads/old.csv"]
    assert alone.pop("output") == "alone.csv"
    assert told["runs"][1] == alone
    assert Path("heads/old.csv").read_text() == Path("alone.csv").read_text()
    assert main(["heads", "exp", "--output", "heads.csv"]) == 0
    assert "next: traceformer cluster --compare heads/new.csv heads/old.csv" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["paths", "inspect"])
def test_an_example_is_found_in_the_run_that_holds_it(
    experiment: Path, generated_run: Path, capsys: Capture, verb: str
) -> None:
    for number, name in ((2, "ex1"), ("none", "nobody")):
        assert main([verb, "exp", "--example", name]) == 2
        assert f"why:   {number} of them hold an example {name!r}" in capsys.readouterr().err
    alone = out(capsys, f"{verb} exp/old --example ex1 --json")
    shutil.rmtree(experiment / "new")
    shutil.copytree(generated_run, experiment / "said")
    assert "ex1" not in TraceStore(experiment / "said").ids
    assert out(capsys, f"{verb} exp --example ex1 --json") == alone
