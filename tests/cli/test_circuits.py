"""`traceformer circuits`, and the role card of `traceformer heads --roles`, as a user meets them."""

import json
from pathlib import Path

import numpy as np
import pytest

from traceformer.cli import main
from traceformer.questions.circuits import circuits

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("abcdefgabcdefgabcdefg\nif it is, if it is\n")


def test_heads_and_edges_are_listed_the_strongest_first(capsys: Capture) -> None:
    assert main(["circuits", "byte", "--top", "2", "--figure", "made/circuits.png"]) == 0
    shown = capsys.readouterr()
    found = circuits("byte")
    lines = shown.out.splitlines()
    assert lines[0] == "byte: 4 layers of 8 heads, from weights"
    frame = found.to_frame()
    layer, head, score = frame.loc[frame["copying"].idxmax(), ["layer", "head", "copying"]]
    copying = next(line for line in lines if line.startswith("copying")).split()
    assert copying[1:3] == [f"L{layer:.0f}H{head:.0f}", f"{score:.2f}"]
    assert len(copying) == 5
    (edge,) = found.strongest(1)
    assert lines[-2].split() == [edge.kind, *edge.names, f"{edge.score:.3f}"]
    assert "rotary" in shown.err
    assert Path("made/circuits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_json_has_every_pair(capsys: Capture) -> None:
    assert main(["circuits", "byte", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    kept = np.array(told["composition"]["K"], float)
    np.testing.assert_allclose(kept, circuits("byte").composition[1], rtol=1e-6)


def test_a_card_is_a_page_or_a_picture(capsys: Capture) -> None:
    asked = "heads --model byte --dataset texts.txt --device cpu --roles"
    assert main(f"{asked} --figure made/roles.html".split()) == 0
    shown = capsys.readouterr()
    assert "wrote made/roles.html; next: traceformer circuits byte" in shown.err
    assert Path("made/roles.html").read_text().startswith("<!doctype html>")
    assert shown.out.splitlines()[0].split()[:3] == ["head", "role", "previous"]
    assert sum(line.startswith("L") for line in shown.out.splitlines()) == 32
    assert "massive activations: 0 of all entries" in shown.out
    assert not Path("head_metrics.csv").exists()
    assert main(f"{asked} --json --figure roles.png".split()) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["figure"], len(told["heads"])) == ("roles.png", 32)
    assert Path("roles.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("heads latest --figure roles.png", "--figure without --roles"),
        ("heads latest --ablation mean", "--ablation without --roles"),
        ("heads latest --roles --plot", "--roles with --plot"),
        ("heads latest --roles --ablation mean", "--ablation of a run"),
        ("heads latest --roles --figure roles.xyz", "no picture format"),
        ("circuits byte --figure roles.xyz", "no picture format"),
        ("circuits byte --top 0", "--top"),
    ],
)
def test_what_does_not_go_together_is_refused(line: str, said: str, capsys: Capture) -> None:
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err
