"""`traceformer paths` as a user meets it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import causal_pattern
from traceformer.analysis.paths.result import TraceResult, chain
from traceformer.analysis.paths.trace import EdgeWeights, PathOptions, TokenRow, trace_paths
from traceformer.cli import main
from traceformer.cli.paths_report import report
from traceformer.figures.path_ribbons import paths_figure
from traceformer.figures.style import save
from traceformer.viewer.path_payloads import paths_payload

TEXT = "The river froze over during the night."


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["paths", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_shows_the_paths_of_a_recorded_example(decoder_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, str(decoder_run), "--example", "0", "--head", "L2H1", "--length-norm", "none")
    pattern = causal_pattern(0, 2, 1, 3).astype(float)
    direct, around = np.log(pattern[2, 0]), np.log(pattern[2, 1]) + np.log(pattern[1, 0])
    assert code == 0
    assert "which tokens led to 2" in out
    lines = out.splitlines()
    first, second = sorted((direct, around), reverse=True)
    assert f"score {first:.4f}" in out
    assert f"score {second:.4f}" in out
    assert any(f"─{pattern[2, 0]:.2f}→ 2" in line for line in lines)
    assert "these are the 2 best of all paths" in out
    assert err.strip().endswith("--html paths.html, which draws it")


def test_json_is_reverse_attentions(decoder_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(decoder_run), "--example", "0", "--layer", "2", "--json", "--agg-heads", "max")
    result = TraceResult.from_json(json.loads(out))
    assert code == 0
    assert (result.layer, result.seq_len, result.target_pos) == (2, 3, 2)
    assert result.settings["heads"] == [0, 1, 3]
    patterns = np.stack([causal_pattern(0, 2, head, 3) for head in (0, 1, 3)])
    for path in result.beams:
        for query, key, weight, head in zip(
            path.positions, path.positions[1:], path.edge_attns, path.heads or [], strict=False
        ):
            assert weight == pytest.approx(float(patterns[:, query, key].max()))
            assert head == [0, 1, 3][int(patterns[:, query, key].argmax())]


def test_a_model_and_a_text_take_no_run(
    tiny_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page, picture = tmp_path / "new" / "paths.html", tmp_path / "paths.png"
    words = ["--model", str(tiny_folder("qwen2")), "--text", TEXT, "--target-pos", "-2", "--layer", "-2"]
    code, out, err = run(capsys, *words, "--html", str(page), "--png", str(picture), "--device", "cpu")
    assert code == 0
    assert "layer 1, mean of 4 heads" in out
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 500
    assert str(page) in err.splitlines()[-1]


def test_across_layers_shows_layers_stays_and_shares(
    tiny_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(tiny_folder("gpt2")), "--text", TEXT, "--layer", "all", "--agg-heads", "max", "--max-flow"]
    code, out, _ = run(capsys, *words, "--weighting", "rollout", "--device", "cpu")
    assert code == 0
    assert "all layers, the strongest of 4 heads for each edge; weighted by rollout, 0.5 for staying" in out
    assert "(stays " in out
    assert "─L" in out
    assert "rollout over all paths: " in out
    assert "max flow over all paths: " in out


def test_each_head_has_its_line(tiny_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "--model", str(tiny_folder("gpt2")), "--text", TEXT, "--agg-heads", "none", "--device", "cpu"
    )
    assert code == 0
    assert [f"L2H{head}" in out for head in range(4)] == [True] * 4
    assert "the best 5 of all heads" in out


def test_value_norms_of_a_run_come_from_its_model(
    tiny_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = tiny_folder("gpt2")
    (tmp_path / "texts.txt").write_text(TEXT, encoding="utf-8")
    extract = ["extract", "--model", str(model), "--dataset", str(tmp_path / "texts.txt"), "--capture", "attn", "qkv"]
    assert main([*extract, "--out_dir", str(tmp_path / "run"), "--dtype", "float32", "--device", "cpu"]) == 0
    capsys.readouterr()
    code, out, _ = run(capsys, str(tmp_path / "run"), "--weighting", "value-norm", "--json", "--layer", "1")
    _, live, _ = run(
        capsys,
        "--model",
        str(model),
        "--text",
        TEXT,
        "--weighting",
        "value-norm",
        "--json",
        "--layer",
        "1",
        "--device",
        "cpu",
    )
    assert code == 0
    own, other = (TraceResult.from_json(json.loads(text)) for text in (out, live))
    assert [path.positions for path in own.beams] == [path.positions for path in other.beams]
    assert [path.score_raw for path in own.beams] == pytest.approx([path.score_raw for path in other.beams], rel=1e-5)


def test_a_browser_is_opened_on_request(
    decoder_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert run(capsys, str(decoder_run), "--open-browser")[0] == 0
    assert opened == [Path("paths.html").resolve().as_uri()]


def test_nothing_that_is_handed_on_says_where_the_model_lies(
    tiny_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, page = tiny_folder("qwen2"), tmp_path / "paths.html"
    words = ["--model", str(model), "--text", TEXT, "--device", "cpu"]
    for more in ([], ["--json", "--html", str(page)]):
        code, out, _ = run(capsys, *words, *more)
        assert code == 0
        assert model.name in out
        assert str(model.parent) not in out
    payload = json.dumps(paths_payload(json.loads(out)))
    assert model.name in payload
    assert str(model.parent) not in payload


def test_the_built_in_model_is_called_byte(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--model", "byte", "--text", "10 €", "--layer", "0", "--device", "cpu")
    assert code == 0
    assert out.splitlines()[:2] == [r"which tokens led to 5 \xac?", "byte, layer 0, mean of 8 heads"]


@pytest.mark.parametrize(
    ("text", "expected", "told"), [("", 2, "no token to trace"), ("a", 0, "score 0.0000, 0 edges")]
)
def test_a_text_of_no_token_is_refused_and_of_one_is_a_path_of_no_edge(
    text: str, expected: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "--model", "byte", "--text", text, "--device", "cpu")
    assert code == expected
    assert told in out + err


def test_a_run_whose_rows_do_not_sum_to_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.cli.conftest.causal_pattern", lambda *place: causal_pattern(*place) / np.float16(2))
    code, out, err = run(capsys, str(request.getfixturevalue("decoder_run")))
    assert (code, out) == (4, "")
    assert "sums to 0.5" in err


WRONG = {
    "nothing to read": ([], 2, "which attention?"),
    "two sources": (["latest", "--model", "x"], 2, "which attention?"),
    "no text": (["--model", "x"], 2, "--model needs --text"),
    "a run with a text": (["RUN", "--text", "x"], 2, "--text goes with --model"),
    "no layer": (["RUN", "--layer", "last"], 2, "or all"),
    "a layer that is not stored": (["RUN", "--layer", "3"], 3, "stored: 2 5"),
    "a layer that is not there": (["RUN", "--layer", "8"], 2, "layers 0-7"),
    "a head across layers": (["RUN", "--layer", "all", "--head", "L2H1"], 2, "--head L5H3 alone"),
    "a head that is not stored": (["RUN", "--head", "L2H2"], 2, "heads"),
    "a target that is not there": (["RUN", "--target-pos", "3"], 2, "tokens 0-2"),
    "a norm that is not there": (["RUN", "--length-norm", "pow"], 2, "pow:0.7"),
    "no beam": (["RUN", "--top-beam", "0"], 2, "whole number from 1"),
    "an example that is not there": (["RUN", "--example", "9"], 3, "no example"),
    "a picture of no format": (["RUN", "--png", "x.docx"], 2, "no picture format"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_sense_is_told(name: str, decoder_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected, told = WRONG[name]
    code, out, err = run(capsys, *(str(decoder_run) if word == "RUN" else word for word in words))
    assert (code, out) == (expected, "")
    assert told in err


def result_of(n: int, *, causal: bool = True, **options: Any) -> TraceResult:
    weights = np.random.default_rng(0).random((1, n, n))
    weights = np.tril(weights) if causal else weights
    weights = (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)
    names = ["<img src=x>", " $x_1$", "\n", "\x1b[2J", "字", "a" * 40][:n]
    names += [f"t{i}" for i in range(len(names), n)]
    tokens = TokenRow(list(range(n)), names, [None] * n, np.zeros(n, bool), np.ones(n, bool))
    edge_weights = EdgeWeights(weights, 0, (0,), looks_ahead=not causal)
    return trace_paths([edge_weights], tokens, [-1], PathOptions(**options), settings={"model": "tiny"})[0]


def test_no_token_can_steer_the_terminal_and_lines_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = report(result_of(30, top_beam=9))
    assert "\x1b" not in text
    assert "⟨001B⟩[2J" in text
    assert all(len(line) <= 60 for line in text.splitlines() if line.startswith("      "))


def test_a_long_path_is_cut_in_the_middle() -> None:
    result = result_of(40, top_k=1, top_beam=1)
    path = max(result.beams, key=lambda beam: len(beam.positions))
    assert "more)" in chain(path, most=2) or len(path.positions) <= 2


@pytest.mark.parametrize("verdict", ["beam", "exact", "ahead"])
def test_says_whether_there_are_better_paths(verdict: str) -> None:
    if verdict == "beam":
        result = result_of(30, top_k=1, top_beam=1, certify=True, length_norm="none")
        assert result.certificate is not None
        assert ("missed the optimum" in report(result)) == (not result.certificate.optimum)
    elif verdict == "exact":
        assert "these are the 5 best of all paths" in report(result_of(30, search="exact"))
    else:
        assert "is not known" in report(result_of(6, causal=False, certify=True))


@pytest.mark.parametrize("n", [1, 2, 6, 30])
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_draws_any_number_of_paths(n: int, ending: str, tmp_path: Path) -> None:
    save(paths_figure(result_of(n, top_beam=9)), tmp_path / f"paths.{ending}")
    assert (tmp_path / f"paths.{ending}").stat().st_size > 1000


def test_lanes_are_as_wide_as_weight_times_share_and_end_at_their_tokens() -> None:
    result = result_of(8, causal=False)
    figure = paths_figure(result)
    boxes = [patch for patch in figure.axes[0].patches if type(patch).__name__ == "Rectangle"]
    lanes = [patch for patch in figure.axes[0].patches if type(patch).__name__ == "PathPatch"]
    assert len(boxes) == len(result.sankey.nodes)
    assert len(lanes) == sum(len(link.beam_indices) for link in result.sankey.links)
