"""A run as one file: it carries what its screens ask for, as a server would answer, and nothing else."""

import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

import traceformer as tf
from tests.viewer.small_runs import write_run
from traceformer.cli import main
from traceformer.errors import ExampleNotFound, RunExists, UsageError
from traceformer.store.run import Run
from traceformer.viewer.carried import SCREENS
from traceformer.viewer.export import run_html
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer

pytestmark = pytest.mark.usefixtures("bundle")


def carried_by(page: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the answers that a page carries, and what it shows first."""
    found = re.search(r'<script type="application/gzip" id="data">([A-Za-z0-9+/=]+)</script>', page)
    assert found
    data = gzip.decompress(base64.b64decode(found[1]))
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
    return {key: array.tobytes() for key, array in load(data).items()}, about["start"]


def test_a_page_carries_what_a_server_would_answer(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "run"))
    answers, start = carried_by(run_html(run, 1))
    assert start == {"screen": "overview", "run": "run", "ex": "1", "screens": ",".join(SCREENS), "examples": "1"}
    for key, body in answers.items():
        resource, *fields = key.split("\n")
        query = Query(dict(field.split("=", 1) for field in fields))
        assert body == answer(Library.of(run), resource, query).body, key
        assert query.values.get("ex", "1") == "1"
    resources = {key.split("\n")[0] for key in answers}
    assert {"run", "example", "overview", "thumbnails", "matrix", "heads"} <= resources
    assert sum(key.startswith("matrix") for key in answers) == 4  # two layers of two heads


def test_carried_patterns_are_the_stored_ones_to_half_a_step_of_their_roots(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "run"))
    answers, _ = carried_by(run_html(run, 0))
    body = answers["matrix\nattn=dec.self\nex=0\nform=pixels\nhead=1\nlayer=3\nrun=run"]
    length = int.from_bytes(body[:8], "little")
    about = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["about"])
    told = about["largest"] * (load(body)["pixels"] / 255.0) ** 2
    stored = run.attn(0, layer=3, head=1)
    assert np.abs(np.sqrt(told / about["largest"]) - np.sqrt(stored / about["largest"])).max() <= 0.5 / 255 + 1e-6


def test_examples_and_screens_are_chosen(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "run", [["a", "b"], ["c"], ["d", "e", "f"]]))
    page = tf.export_html(run, tmp_path / "new" / "page.html", examples=["ex2", 0], screens=["head"])
    answers, start = carried_by(page.read_text(encoding="utf-8"))
    assert (start["examples"], start["screens"], start["ex"], start["screen"]) == ("2,0", "head", "2", "head")
    assert not [key for key in answers if key.startswith(("thumbnails", "overview"))]
    with pytest.raises(RunExists, match="already"):
        tf.export_html(run, page)
    with pytest.raises(UsageError, match="no screen 'compare'"):
        tf.export_html(run, page, screens=["compare"], overwrite=True)
    with pytest.raises(ExampleNotFound):
        tf.export_html(run, page, examples=[7], overwrite=True)
    assert carried_by(page.read_text(encoding="utf-8"))[1] == start, "what was refused replaced nothing"


def test_without_examples_named_a_page_has_as_many_as_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(write_run(tmp_path / "run", [["a", "b"]] * 5))
    all_of_them, start = carried_by(tf.export_html(run, tmp_path / "all.html").read_text(encoding="utf-8"))
    assert start["examples"] == "0,1,2,3,4"
    monkeypatch.setattr("traceformer.viewer.export._MOST", sum(map(len, all_of_them.values())) - 1)
    assert carried_by(tf.export_html(run, tmp_path / "some.html").read_text())[1]["examples"] == "0,1,2,3"


def test_the_command_line_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    words = ["export", str(folder), "--format", "html"]
    assert (
        main([*words, "--output", str(tmp_path / "a.html"), "--example", "ex1", "--screens", "overview", "head"]) == 0
    )
    assert capsys.readouterr().out == f"{tmp_path / 'a.html'}\n"
    assert carried_by((tmp_path / "a.html").read_text())[1]["screens"] == "overview,head"
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out/run.html'}\n"
    assert main([*words, "--lossless"]) == 2
    assert "--lossless with html" in capsys.readouterr().err
    assert main(["export", str(folder), "--format", "pt", "--screens", "head"]) == 2
    assert "--screens" in capsys.readouterr().err


def test_a_notebook_is_shown_a_card_and_a_browser_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, opened = Run(write_run(tmp_path / "run")), list[str]()
    assert run._repr_html_().startswith('<div class="tf-card">')
    monkeypatch.setattr("webbrowser.open", opened.append)
    run.show(1)
    [address] = opened
    assert carried_by(Path(address.removeprefix("file://")).read_text(encoding="utf-8"))[1]["ex"] == "1"
