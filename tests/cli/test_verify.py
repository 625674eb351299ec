"""`traceformer verify` as a user meets it."""

import json
from pathlib import Path

import pytest

from traceformer.cli import main


def test_an_intact_run_passes(capsys: pytest.CaptureFixture[str], decoder_run: Path) -> None:
    files = [path for path in decoder_run.rglob("*") if path.is_file()]
    assert main(["verify", "dec"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"traces/dec: all {len(files)} files (")
    assert main(["verify", "dec", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "traces/dec", "ok": True, "problems": [], "computed": []}


def test_an_unfinished_run_is_verified_and_called_unfinished(
    capsys: pytest.CaptureFixture[str], decoder_run: Path
) -> None:
    unfinished = decoder_run.rename(decoder_run.with_name("_tmp_dec"))
    (unfinished / "manifest.json").unlink()
    assert main(["verify", "dec"]) == 0
    assert capsys.readouterr().out.endswith("the run is not finished, this is what was committed so far\n")


def test_a_finished_run_without_its_manifest_is_damaged_for_every_verb(
    capsys: pytest.CaptureFixture[str], decoder_run: Path
) -> None:
    (decoder_run / "manifest.json").unlink()
    assert main(["verify", "dec"]) == 1
    assert capsys.readouterr().out.startswith("manifest.json: is missing")
    assert main(["inspect", "dec"]) == 3
    assert "has lost its manifest.json" in capsys.readouterr().err
    assert main(["list", str(decoder_run.parent)]) == 0
    assert "damaged" in capsys.readouterr().out
    decoder_run.rename(decoder_run.with_name("_tmp_dec"))  # the way on that the error names
    assert main(["inspect", "dec"]) == 0
    assert "unfinished" in capsys.readouterr().out


def test_a_changed_byte_and_a_foreign_file_are_listed_and_the_exit_code_is_one(
    capsys: pytest.CaptureFixture[str], decoder_run: Path
) -> None:
    (shard,) = (decoder_run / "dec_self_attn.zarr/attn").glob("c*")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (decoder_run / "notes.txt").write_text("mine")
    assert main(["verify", "dec"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told[:-1]] == [str(shard.relative_to(decoder_run)), "notes.txt"]
    assert told[-1].startswith("traces/dec: 2 problems in ")
    assert main(["verify", "dec", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"]
    assert {problem["path"] for problem in told["problems"]} == {str(shard.relative_to(decoder_run)), "notes.txt"}
