"""Every format in one shape; a run goes out and comes back by the two verbs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traceformer.formats
from tests.store import runs
from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.formats.registry import FORMATS, READABLE, Format, export, import_run
from traceformer.store.run import TraceStore

FOLDERS = [path.parent.name for path in Path(traceformer.formats.__path__[0]).glob("*/write.py")]


@pytest.fixture
def store(tmp_path: Path) -> TraceStore:
    layout = runs.plan(arrays=runs.FEW, n_examples=3, longest={"dec": 5})
    return TraceStore(runs.write(tmp_path / "run", layout))


def homes_of(format: Format) -> list[str]:
    """Returns the dotted names of a format's modules."""
    modules: list[Any] = [format.write, format.read]
    return [module.__name__ for module in modules if module is not None]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_format_is_a_folder_in_one_shape_and_a_row(folder: str) -> None:
    home = f"traceformer.formats.{folder}"
    [row] = [row for row in FORMATS.values() if f"{home}.write" in homes_of(row)]
    assert isinstance(row.write.OPTIONS, frozenset)
    assert callable(row.write.write_files)
    assert (row.read is None) == (find_spec(f"{home}.read") is None)
    if row.read is not None:
        assert f"{home}.read" in homes_of(row)
        assert callable(row.read.recognises)
        assert callable(row.read.read_files)


def test_there_is_a_folder_for_every_row() -> None:
    assert len(FOLDERS) == len(FORMATS)
    assert [row.name for row in FORMATS.values() if row.read is not None] == list(READABLE)


@pytest.mark.parametrize("format", ["safetensors", "padded-zarr"])
def test_a_run_goes_out_and_comes_back(format: str, store: TraceStore, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    files = export(store, format, tmp_path / "out", examples=[2, "example-0"], progress=lambda *n: told.append(n))
    assert all(path.exists() for path in files)
    assert told == [(1, 2), (2, 2)]
    for named in (None, format):
        back = import_run(str(tmp_path / "out"), named, tmp_path / "back", overwrite=True)
        assert back.folder == tmp_path / "back"
        assert back.ids == ("example-2", "example-0")
        assert np.array_equal(back.qkv("example-2", "q"), store.qkv("example-2", "q"))


def test_an_option_that_the_format_does_not_have_is_refused(store: TraceStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no `layout`") as raised:
        export(store, "json", tmp_path, layout="internals")
    assert raised.value.why == "it takes steps, lossless"
    with pytest.raises(UsageError, match="has no `lossless`"):
        export(store, "safetensors", tmp_path, lossless=True)
    with pytest.raises(UsageError, match="no format 'npz'"):
        export(store, "npz", tmp_path)
    assert not list(tmp_path.glob("*.*"))


def test_files_of_another_format_or_of_none_are_refused(store: TraceStore, tmp_path: Path) -> None:
    files = export(store, "safetensors", tmp_path / "out")
    with pytest.raises(UsageError, match="files of transformerlens do not make a run"):
        import_run(files, "transformerlens")
    with pytest.raises(NotFound, match="nothing to import"):
        import_run(tmp_path / "out", "json")
    with pytest.raises(UsageError, match="no files"):
        import_run([])
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(Unreadable, match=r"a\.csv is of no known format"):
        import_run([*files, tmp_path / "a.csv"])
