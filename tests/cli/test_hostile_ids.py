"""Names that come from data, as every verb that writes has to bear them: none leads elsewhere, none takes another's."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from traceformer import TraceStore, export, import_run
from traceformer.cli import main
from traceformer.errors import RunExists
from traceformer.filenames import MOST, file_name, is_plain, readable_name
from traceformer.formats.options import ExportOptions
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.writer import RunWriter

HOSTILE = (
    *("", "../up", "/abs", "a/b", "a\\b", "a-b", "..", ".", "...", "x" * 300, "x" * 299 + "y", "\0", "x\0y", "a\nb"),
    *("CON", "con.txt", "nul", "-rf", "--json", ".hidden", "~", "$HOME", "$x^$", "a b", "a%2Fb", "é", "e\u0301"),
    *("\u202eabc", "\ud800", "NUL", "C:", "x.", " ", "ü" * 200),
)
FORMATS = {"json": "*.json", "safetensors": "*.safetensors", "transformerlens": "*.pt", "pt": "demo/*.pt"}


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose examples have such ids, as a file of texts may give them."""
    ids = [name for name in HOSTILE if name not in ("", "\ud800")]  # which no table of texts holds
    pattern = ArraySpec(ArrayKey("dec", "self", "attn_pattern"), (0,), (0, 1))
    stream = [ArraySpec(ArrayKey("dec", None, f"resid_{place}"), (0,), width=4) for place in ("pre", "mid", "post")]
    layout = RunLayout.plan(arch="dec", arrays=[pattern, *stream], n_examples=len(ids), longest={"dec": 2})
    dims = {"dec": {"n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "d_model": 4}}
    meta = {"model": "tiny", "dataset": "demo", "arch": "dec", "dims": dims, "time": "2026-01-02 03:04:05"}
    folder = tmp_path_factory.mktemp("hostile") / "run"
    with RunWriter.create(folder, layout, meta, digest={}) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": [2] * len(ids)})
        for example in range(len(ids)):
            buffer.put(pattern, example, np.array([[1, 0], [example / 64, 1 - example / 64]]))
            for spec in stream:
                buffer.rows(spec.key, example)[...] = example
        columns = {"example_id": ids, "text": ["ab"] * len(ids), "input_ids": [[1, 2]] * len(ids)}
        writer.commit(0, buffer, pa.table(columns | {"tokens": [["a", "b"]] * len(ids)}))
        return writer.finish()


def everything_under(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_no_name_leads_out_of_its_folder_or_is_one_that_a_system_keeps() -> None:
    made = [file_name(name) for name in HOSTILE]
    for name in made:
        assert Path(name).name == name
        assert is_plain(name)
        assert not name.startswith(("-", "."))
        assert name.casefold() not in ("con", "nul", "con.txt")
        assert len(name) <= MOST
    assert len({name.casefold() for name in made}) == len(HOSTILE)


def test_a_name_that_a_file_may_have_stays_as_it_is() -> None:
    assert file_name("prompt-1.a_b") == "prompt-1.a_b"


def test_no_name_is_what_another_becomes() -> None:
    for name in HOSTILE:
        made = file_name(name)
        assert made == name or file_name(made) != made


@pytest.mark.parametrize(("name", "readable"), [("org/model 1", "org-model-1"), ("..", "texts"), ("短文", "texts")])
def test_a_readable_name_is_what_a_file_may_have_of_one(name: str, readable: str) -> None:
    assert readable_name(name, otherwise="texts") == readable


@pytest.mark.parametrize("format", FORMATS)
def test_each_example_has_a_file_of_its_own_in_the_exports_folder(
    format: str, hostile_run: Path, tmp_path: Path
) -> None:
    run = TraceStore(hostile_run)
    export(run, format, tmp_path / "deep" / "out", lossless=format in ("json", "pt"))
    written = [path for path in everything_under(tmp_path) if path.name != "manifest.json"]
    assert written == sorted((tmp_path / "deep" / "out").glob(FORMATS[format]))
    assert len(written) == run.n
    if format != "transformerlens":
        back = import_run(tmp_path / "deep" / "out", out=tmp_path / "back")
        assert set(back.ids) == set(run.ids)
        for name in run.ids:
            assert np.array_equal(back.attn(name, 0, 1), run.attn(name, 0, 1))


def test_two_examples_that_would_share_a_file_are_refused_even_with_overwrite(tmp_path: Path) -> None:
    options = ExportOptions(overwrite=True)
    options.claimed(tmp_path / "a.json")
    with pytest.raises(RunExists, match="two examples would be written to"):
        options.claimed(tmp_path / "a.json")


def test_project_writes_a_file_per_example_into_its_folder(
    hostile_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "v.npy", np.ones(4, np.float32))
    run = str(hostile_run)
    assert main(["project", run, "--vector", "v.npy", "--output", "deep/out"]) == 0
    assert "a\nb" not in capsys.readouterr().out
    written = [path for path in everything_under(tmp_path) if path.name != "v.npy"]
    assert written == sorted((tmp_path / "deep/out").glob("*.json"))
    told = {json.loads(path.read_text())["example_id"] for path in written}
    assert told == set(TraceStore(hostile_run).ids)


@pytest.mark.parametrize("name", ["../up", "$x^$", "a\nb"])
def test_pictures_of_such_an_example_go_where_they_are_asked_for(
    name: str, hostile_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, *pictures in (("inspect", "--png", "i.png"), ("paths", "--html", "p.html")):
        assert main([verb, str(hostile_run), f"--example={name}", *pictures]) == 0
    assert {path.name for path in everything_under(tmp_path)} == {"i.png", "p.html"}
    told = capsys.readouterr()
    assert "a\nb" not in told.out + told.err  # no id steers a terminal


def test_ids_that_differ_in_capitals_are_refused_only_where_they_are_one_file(tmp_path: Path) -> None:
    options = ExportOptions(overwrite=True)
    options.claimed(tmp_path / "A.json").write_bytes(b"A")
    options.claimed(tmp_path / "a.json").write_bytes(b"a")  # Linux tells them apart
    (tmp_path / "B.json").write_bytes(b"B")
    os.link(tmp_path / "B.json", tmp_path / "b.json")  # as a file system has it that does not
    options.claimed(tmp_path / "B.json")
    with pytest.raises(RunExists, match="two examples would be written to"):
        options.claimed(tmp_path / "b.json")


@pytest.mark.parametrize(
    "name", ["nanochat:sft:d20", "meta-llama/Llama-3.2-1B", "C:\\models\\mine", "a<b>|c?*", "name."]
)
def test_a_name_of_a_model_becomes_one_that_windows_allows(name: str) -> None:
    for made in (file_name(name), readable_name(name, otherwise="model")):
        assert not set(made) & set('<>:"/\\|?*')
        assert made == made.rstrip(". ")


def test_what_windows_keeps_for_itself_is_no_name() -> None:
    assert file_name("NUL") != "NUL"
    assert file_name("com1.json").startswith("com1-json-")
