"""Only a run is replaced, with nothing in it that is somebody's, and only where a run can lie."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store import runs
from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.cli import main
from traceformer.errors import RunExists, UsageError
from traceformer.formats.registry import export, import_run
from traceformer.store.commits import verify_run
from traceformer.store.files import seal
from traceformer.store.replacing import foreign_files, is_run
from traceformer.store.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW[:1], n_examples=3))


def _data_set(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    (folder / "meta.json").write_text(json.dumps({"name": "my data", "rows": 1}))


def _model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "meta.json").write_text(json.dumps({"layout": {}, "arch": "dec"}))


def _checkout(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (folder / "meta.json").write_text("[]")


def _other_sealed(folder: Path) -> None:
    (folder / "meta.json").write_bytes(seal({"format": "something else"}))


def _damaged(folder: Path) -> None:
    runs.write(folder, runs.plan(arrays=runs.FEW[:1], n_examples=3), overwrite=True)
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace("tiny", "tidy"))


LOOK_ALIKES: dict[str, Callable[[Path], None]] = {
    "a data set": _data_set,
    "a model": _model,
    "a checkout": _checkout,
    "sealed by another": _other_sealed,
    "a damaged run": _damaged,
}


@pytest.mark.parametrize("made", LOOK_ALIKES)
@pytest.mark.parametrize("name", ["run", "_tmp_run"])
def test_what_only_looks_like_a_run_is_not_replaced(made: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    LOOK_ALIKES[made](folder.with_name("made") if made == "a damaged run" else folder)
    if made == "a damaged run":
        folder.rmdir()
        folder.with_name("made").rename(folder)
    assert not is_run(folder)
    before = runs.contents(folder)
    with pytest.raises(RunExists, match=r"not a run|a damaged run"):
        runs.begin(tmp_path / "run", overwrite=True)
    assert runs.contents(folder) == before


@pytest.mark.parametrize("place", ["dec_self_attn.zarr/notes.txt", "tokens/my.parquet"])
def test_a_run_that_holds_something_foreign_is_not_replaced(place: str, run: Path) -> None:
    (run / place).parent.mkdir(parents=True, exist_ok=True)
    (run / place).write_text("a week of work")
    assert foreign_files(run) == [place]
    with pytest.raises(RunExists, match=re.escape(f"not its own: {place}")):
        runs.begin(run, overwrite=True)
    (run / place).unlink()
    assert verify_run(runs.complete(runs.begin(run, 1, overwrite=True), overwrite=True)) == []


def test_what_is_foreign_to_an_unfinished_run_stays(tmp_path: Path) -> None:
    unfinished = runs.begin(tmp_path / "run", 1)
    assert foreign_files(unfinished) == []
    (unfinished / "why.md").write_text("because")
    with pytest.raises(RunExists, match="not its own: why"):
        runs.begin(tmp_path / "run", overwrite=True)
    assert (unfinished / "why.md").read_text() == "because"


def test_something_put_there_while_a_run_was_written_is_kept(run: Path) -> None:
    runs.begin(run, 3, overwrite=True)
    (run / "notes.txt").write_text("meanwhile")
    with pytest.raises(RunExists, match="not its own: notes"):
        runs.complete(run, overwrite=True)
    assert (run / "notes.txt").read_text() == "meanwhile"
    assert len(Run(run.with_name("_tmp_run")).ids) == 11


def test_a_folder_that_is_called_like_one_moved_aside_is_kept(run: Path) -> None:
    kept = run.rename(run.with_name("_old_run"))
    runs.write(run, runs.plan(arrays=runs.FEW[:1], n_examples=2))
    assert Run(kept).n == 3
    with pytest.raises(RunExists, match="_old_run is in the way"):
        runs.begin(run, overwrite=True)


PLACES = (".", "/", "..", "here", "link", "dangling", "mount")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Names of folders that a run cannot be put at; the working folder is `here`."""
    for name in ("here", "real", "mount"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path / "here")
    ismount = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "mount" or ismount(path))
    return lambda name: Path(name) if name in (".", "/", "..") else tmp_path / name


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_where_no_run_can_lie_is_said_before_anything_runs(
    name: str, overwrite: bool, places: Callable[[str], Path], run: Path
) -> None:
    place, loaded = places(name), Run(run)
    calls: tuple[Callable[[], object], ...] = (
        lambda: record("./no-such-model", ["a"], out=place, overwrite=overwrite),
        lambda: generate("./no-such-model", "a", out=place, overwrite=overwrite),
        lambda: import_run(run / "meta.json", out=place, overwrite=overwrite),
        lambda: export(loaded, "padded-zarr", place, overwrite=overwrite),
        lambda: loaded.save(place, overwrite=overwrite),
        lambda: runs.begin(place, overwrite=overwrite),
    )
    for call in calls:
        with pytest.raises(UsageError, match="cannot be written as a whole"):
            call()
    assert sorted(path.name for path in run.parent.iterdir()) == sorted(
        ["here", "real", "link", "dangling", "mount", "run"]
    )


@pytest.mark.parametrize(
    "line",
    [
        "extract --model ./none --dataset demo --out_dir",
        "generate --model ./none --prompt a --out_dir",
        "generate --model ./none --prompt a --experiment",
        "train --data ./none --out_dir",
        "import ./none --out_dir",
        "export ./none --output",
        "demo --out_dir",
    ],
)
def test_a_folder_without_a_name_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), ""]) == 2
    assert "this is empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["link", "mount", "."])
def test_a_folder_that_is_filled_may_be_any(name: str, places: Callable[[str], Path], run: Path) -> None:
    files = export(Run(run), "safetensors", places(name), examples=[0])
    assert [path.name for path in files] == ["example-0.safetensors", "manifest.json"]
