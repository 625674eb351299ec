"""`traceformer attribute` as a user meets it, on what the built-in model copies."""

import json
from pathlib import Path

import pytest
from PIL import Image

from traceformer.capture.extract import record
from traceformer.cli import main
from traceformer.models.loaded import LoadedModel
from traceformer.questions.attribute import attribute
from traceformer.store.run import Run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def in_memory(byte: LoadedModel) -> Run:
    return record(byte, ["return the name of the na"], "z mlp_out embed resid_post attn_pattern v")


@pytest.fixture
def run(in_memory: Run, tmp_path: Path) -> Run:
    """`traces/copied`, in the working folder."""
    return in_memory.save(tmp_path / "traces/copied")


def test_it_says_the_parts_their_sums_and_what_is_next(run: Run, capsys: Capture) -> None:
    assert main(["attribute", "copied", "--to", "m", "--against", "t", "--by-source", "L2H5,L3H6", "--top-k", "3"]) == 0
    shown = capsys.readouterr()
    value = attribute(run, 0, to="m", against="t", by_source=[(2, 5), (3, 6)])
    lines = [line.split() for line in shown.out.splitlines()]
    assert shown.out.startswith(f"example {run.ids[0]}, position 24, a: the logit of m - t\n")
    largest = value.to_frame().sort_values("contribution", key=abs, ascending=False).iloc[0]
    first = lines.index(["largest", "adds"])
    assert " ".join(lines[first + 1]) == f"{largest['part']} {largest['contribution']:+.4f}"
    assert ["total", f"{value.total:+.4f}"] in lines
    assert ["remainder", f"{value.remainder:+.1e}"] in lines
    assert ["heads", f"{value.sums()['head']:+.4f}"] in lines
    assert ["L2H5", "source", "adds"] in lines
    assert ["13", "m", f"{next(iter(value.sources.values()))[13]:+.4f}"] in lines
    assert "next: traceformer attribute" in shown.err


def test_json_is_all_of_it_and_the_figure_a_picture(run: Run, capsys: Capture, tmp_path: Path) -> None:
    assert main(["attribute", "copied", "--position", "name", "--json", "--figure", "parts.png"]) == 0
    said = json.loads(capsys.readouterr().out)
    value = attribute(run, 0, position="name")
    assert said == {"run": str(Path("traces/copied")), **json.loads(json.dumps(value.to_json()))}
    assert said["to"]["is_likeliest"]
    with Image.open(tmp_path / "parts.png") as picture:
        assert picture.size > (800, 400)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--position 99", "error: position 99 requested"),
        ("--position na", "error: --position na"),
        ("--to name", "error: 'name' is not one token of the model"),
        ("--by-source 5", "error: no head '5'\ntry:   layer and head, such as L5H3"),
        ("--by-source foo", "error: no head 'foo'\ntry:   layer and head, such as L5H3"),
        ("--to m --against m", "why:   --to and --against are the same token"),
        ("--by-source L9H0", "error: no head L9H0 is a part"),
        ("--figure parts.xyz", "error: no picture format 'xyz'"),
    ],
)
@pytest.mark.usefixtures("run")
def test_what_cannot_be_meant_is_told(flags: str, said: str, capsys: Capture) -> None:
    assert main(["attribute", "copied", *flags.split()]) == 2
    assert said in capsys.readouterr().err
