"""`traceformer export` and `traceformer import` as a user meets them."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.formats import foreign_pt
from tests.formats.foreign import RESPONSE, documented, original, truth, write
from traceformer import TraceStore
from traceformer.cli import main

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, arguments: str) -> str:
    code = main(arguments.split())
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def test_a_run_goes_out_and_comes_back(capsys: Capture, generated_run: Path) -> None:
    assert main(["export", "latest", "--format", "json", "--output", "out"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["out/trace_a.json", "out/trace_b.json"]
    assert shown.err.startswith("2 files, ")
    assert shown.err.endswith("back into a run: traceformer import out\n")
    folder = run(capsys, "import out --out_dir traces/back").strip()
    assert folder == "traces/back"
    store = TraceStore(folder)
    assert store.ids == ("trace_a", "trace_b")
    assert np.array_equal(store.attn("trace_b"), truth(1).attention)
    assert run(capsys, "verify traces/back").endswith("as they were written\n")


def test_examples_can_be_chosen_by_id_or_row(capsys: Capture, generated_run: Path) -> None:
    told = json.loads(run(capsys, "export gen --output out --example 1 --json"))
    assert told["files"] == ["out/trace_b.json"]
    assert told["bytes"] == Path("out/trace_b.json").stat().st_size
    assert run(capsys, "export gen --output more --example trace_a --lossless --steps") == "more/trace_a.json\n"
    assert len(json.loads(Path("more/trace_a.json").read_text())["intermediate_steps"]) == len(RESPONSE)


@pytest.mark.parametrize(
    ("format", "made"),
    [
        ("safetensors", ["out/trace_a.safetensors", "out/trace_b.safetensors", "out/manifest.json"]),
        ("padded-zarr", ["out"]),
    ],
)
def test_every_array_goes_out_and_comes_back(
    capsys: Capture, generated_run: Path, format: str, made: list[str]
) -> None:
    assert main(["export", "gen", "--format", format, "--output", "out"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == made
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    assert shown.err.startswith(f"{len(files)} files, ")
    store = TraceStore(run(capsys, "import out --out_dir traces/back").strip())
    assert store.ids == ("trace_a", "trace_b")
    assert np.array_equal(store.attn("trace_b"), truth(1).attention)


def test_a_cache_is_not_said_to_come_back(capsys: Capture, generated_run: Path) -> None:
    assert main(["export", "gen", "--format", "transformerlens", "--output", "out", "--example", "1"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "out/trace_b.pt\n"
    assert "import" not in shown.err


def test_pt_files_of_prompt_sets_are_found_in_their_folders(capsys: Capture, tmp_path: Path) -> None:
    for name in ("10", "2"):
        foreign_pt.documented_residual(tmp_path / "raw" / "dynamic", foreign_pt.truth(int(name)), name)
    assert main(["import", "raw", "--out_dir", "traces/five"]) == 0
    assert capsys.readouterr().err == (
        "2 examples; attention: the mean over heads, as head 0; positions that the files do not hold are NaN;"
        " next: traceformer analyze traces/five\n"
    )
    store = TraceStore("traces/five")
    assert store.ids == ("dynamic-2", "dynamic-10")
    rows = store.get("dynamic-10", "resid_mid", 1)
    assert np.array_equal(rows, foreign_pt.truth(10).rows["after_attn"][1])


def test_files_and_folders_of_foreign_traces_are_imported(capsys: Capture, tmp_path: Path) -> None:
    original(tmp_path / "old", steps=True)
    assert main(["import", "old", "--out_dir", "traces/old", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"run": "traces/old", "examples": 1, "files": 1}
    write(tmp_path / "one.json", documented("one"))
    write(tmp_path / "two.json", documented("two"))
    assert main(["import", "one.json", "two.json"]) == 0
    shown = capsys.readouterr()
    folder = shown.out.strip()
    assert folder.startswith("traces/")
    assert folder.endswith("_unknown_traces_imported_n2")
    assert "positions that the files do not hold are NaN" in shown.err
    assert "2 examples, 16 dec tokens" in run(capsys, f"inspect {folder}")


def test_a_trace_is_analyzed_without_being_imported_first(capsys: Capture, tmp_path: Path) -> None:
    write(tmp_path / "trace_a.json", documented("trace_a"))
    told = run(capsys, "analyze trace_a.json --convention nanochat").splitlines()
    assert told[0] == "trace_a.json: example trace_a, 8 dec tokens; nanochat convention, entropy in nats"
    assert [path.name for path in tmp_path.iterdir()] == ["trace_a.json"]
    told = json.loads(run(capsys, "analyze trace_a.json --json --example 0"))
    weights = truth().attention[1].astype(np.float64)
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1))).sum(-1).mean(-1)
    assert told["attention"][0]["layers"][1]["entropy"] == pytest.approx(entropy.tolist(), rel=1e-5)
    assert told["logits"][0]["positions"] == len(RESPONSE)
    assert [entropy is not None for entropy in told["positions"][0]["entropy"]] == [4 <= i < 7 for i in range(8)]


def test_positions_that_are_not_known_stay_blank(capsys: Capture, tmp_path: Path) -> None:
    path = original(tmp_path / "old", steps=False)
    run(capsys, f"import {path} --out_dir traces/old")
    lines = run(capsys, "inspect traces/old --example 0 --head L1H2").splitlines()[3:11]
    assert [line.split()[0] for line in lines] == list("01234567")
    # The last token but one is what the original code captured.
    assert [len(line.split()) > 2 for line in lines] == [False] * 6 + [True, False]
    run(capsys, "inspect traces/old --example 0 --png heads.png")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("export gen --format yaml", 2, "no format 'yaml'"),
        ("export gen --example nobody", 3, "no example 'nobody'"),
        ("export nothing", 3, "no run 'nothing'"),
        ("export gen --layout internals", 2, "--format json has no --layout"),
        ("export gen --format safetensors --lossless", 2, "--format safetensors has no --lossless"),
        ("export gen --format transformerlens --layers 0", 2, "--format transformerlens has no --layers"),
        ("export gen --format pt --steps", 2, "--format pt has no --steps"),
        ("export gen --format pt --layout other", 2, "no layout 'other'"),
        ("export gen --format pt --layers x", 2, "cannot read 'x'"),
        ("export gen --format pt", 3, "needs resid_pre resid_mid resid_post, which this run does not hold"),
        ("import nothing.json", 3, "no file nothing.json"),
        ("import empty", 3, "nothing to import in empty"),
        ("import other.csv", 3, "no known format"),
        ("import", 2, "import needs FILE"),
        ("analyze nothing.json", 3, "no file nothing.json"),
    ],
)
def test_what_cannot_be_exported_or_imported_is_refused(
    capsys: Capture, generated_run: Path, tmp_path: Path, arguments: str, code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("a,b\n")
    assert main(arguments.split()) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err


def test_files_in_the_way_are_kept(capsys: Capture, generated_run: Path) -> None:
    run(capsys, "export gen --output out")
    before = Path("out/trace_a.json").stat().st_mtime_ns
    assert main(["export", "gen", "--output", "out"]) == 3
    assert "--overwrite" in capsys.readouterr().err
    assert Path("out/trace_a.json").stat().st_mtime_ns == before
    run(capsys, "export gen --output out --overwrite")
    run(capsys, "import out --out_dir traces/back")
    assert main(["import", "out", "--out_dir", "traces/back"]) == 3
