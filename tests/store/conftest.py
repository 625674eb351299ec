"""Finished runs that several tests read and none changes."""

from pathlib import Path

import pytest

from tests.store import runs
from traceformer.store.run import TraceStore


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    """A decoder's run with grouped-query attention: 11 examples, layers 1 and 4, heads 0, 2 and 3."""
    return TraceStore(runs.write(tmp_path_factory.mktemp("decoder") / "run", runs.plan("dec")))


@pytest.fixture(scope="session")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    return TraceStore(runs.write(tmp_path_factory.mktemp("encdec") / "run", runs.plan("encdec")))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A small finished run that a test may damage."""
    return runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
