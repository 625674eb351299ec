"""Every format in one shape; a run goes out and comes back by the two verbs."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.store import runs
from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.formats.registry import FORMATS, READABLE, export, files_of, import_run
from traceformer.store.run import TraceStore

FOLDERS = {path.parent.name for path in Path("traceformer/formats").resolve().glob("*/write.py")}


@pytest.fixture
def store(tmp_path: Path) -> TraceStore:
    return TraceStore(runs.record(tmp_path / "run"))
