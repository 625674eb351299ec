"""Files appear whole; what a killed process left of them is found, told, and removed by the next one."""

import errno
import gc
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.store import runs
from traceformer.cli import main
from traceformer.errors import OutOfSpace, RunExists
from traceformer.formats.registry import FORMATS, export, import_run
from traceformer.formats.whole import appearing_whole, leftovers
from traceformer.store.files import free_space, is_full
from traceformer.store.run import Run


def _left(path: Path) -> Path:
    """Leaves what a killed process leaves."""
    path.with_name(f".{path.name}.lock").touch()
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(b"half a file")
    return part


def _fill(disk: Path, *, free: int) -> None:
    (disk / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - free)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW[:1], n_examples=2, longest={"dec": 8}))


def test_what_was_left_is_named_and_removed_by_the_next(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "files/set").mkdir(parents=True)
    parts = [_left(tmp_path / "files"), _left(tmp_path / "files/a.safetensors"), _left(tmp_path / "files/set/1.pt")]
    (tmp_path / "files/.download.part").touch()  # somebody else's
    assert leftovers(tmp_path / "files") == sorted(parts)
    assert main(["inspect", str(tmp_path / "files")]) == 3
    assert f"left by an export that was killed: {parts[0]}" in capsys.readouterr().err
    export(Run(run), "safetensors", tmp_path / "files")
    assert leftovers(tmp_path / "files") == []
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [
        *(".download.part", "example-0.safetensors", "example-1.safetensors", "manifest.json", "set"),
    ]
    assert not any(path.exists() for path in parts)


def test_what_another_process_writes_is_not_left(tmp_path: Path) -> None:
    with appearing_whole(tmp_path / "a.json") as part:
        part.touch()
        assert leftovers(tmp_path) == []
        with pytest.raises(RunExists, match="another process"), appearing_whole(tmp_path / "a.json"):
            pass
        assert part.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_padded_store_that_holds_something_foreign_is_not_replaced(run: Path, tmp_path: Path) -> None:
    [folder] = export(Run(run), "padded-zarr", tmp_path / "padded")
    (folder / "notes.txt").write_text("a week of work")
    with pytest.raises(RunExists, match="not its own: notes"):
        export(Run(run), "padded-zarr", folder, overwrite=True)
    (folder / "notes.txt").unlink()
    export(Run(run), "padded-zarr", folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ValueError("Error writing local file \"a\" [os_error_code='28'] [source locations='x']"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ],
)
def test_a_full_disk_is_known_by_whatever_library_says_so(error: Exception, tmp_path: Path) -> None:
    assert is_full(error)
    with pytest.raises(OutOfSpace, match=r"is full.*the same again"), free_space(tmp_path):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), RuntimeError("os error 2"), ValueError("28")])
def test_other_errors_are_no_full_disk(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)), free_space(tmp_path):
        raise error


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_disk_that_is_full_ends_an_export_without_leftovers(name: str, small_disk: Path) -> None:
    from traceformer.capture.extract import record

    run = record("byte", ["A text that is long enough for a pattern or two."], "attn resid internals")
    _fill(small_disk, free=1 << 16)
    with pytest.raises(OutOfSpace, match="is full") as raised:
        export(run, name, small_disk / "files")
    assert "resume" not in raised.value.hint
    del raised  # its traceback keeps torch's open file
    gc.collect()
    assert [path for path in small_disk.rglob("*") if path.suffix in (".part", ".lock")] == []
    (small_disk / "ballast").unlink()
    assert export(run, name, small_disk / "files", overwrite=True)


@pytest.mark.slow
def test_a_disk_that_is_full_ends_an_import_without_leftovers(small_disk: Path, run: Path) -> None:
    export(Run(run), "safetensors", small_disk / "files")
    _fill(small_disk, free=2 << 20)
    with pytest.raises(OutOfSpace) as raised:
        import_run(small_disk / "files", out=small_disk / "back")
    assert "resume" not in str(raised.value)
    assert not list(small_disk.glob("*back*"))
    (small_disk / "ballast").unlink()
    assert import_run(small_disk / "files", out=small_disk / "back").n == 2


_EXPORT = "import sys; from traceformer.formats.registry import export; from traceformer.store.run import Run; " + (
    "print('ready', flush=True); export(Run(sys.argv[1]), sys.argv[2], sys.argv[3], overwrite=True)"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["json", "padded-zarr"])
def test_what_a_killed_export_leaves_is_found_and_removed(name: str, tmp_path: Path) -> None:
    keys = ("dec.self.attn_pattern", "dec.self.attn_scores", "dec.logits")
    layout = runs.plan(arrays=tuple(map(runs.spec, keys)), n_examples=40, longest={"dec": 300})
    folder = runs.write(tmp_path / "run", layout)
    for _ in range(20):
        command = [sys.executable, "-c", _EXPORT, str(folder), name, str(tmp_path / "files")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while process.poll() is None and not list(tmp_path.glob("**/.*.part")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if leftovers(tmp_path / "files"):
            break
    assert leftovers(tmp_path / "files")
    export(Run(folder), name, tmp_path / "files", overwrite=True)
    assert leftovers(tmp_path / "files") == []
    assert [path for path in tmp_path.rglob(".*") if path.suffix in (".part", ".lock")] == []
    export(Run(folder), name, tmp_path / "again")
    assert runs.contents(tmp_path / "files") == runs.contents(tmp_path / "again")
