"""Finished runs that several tests read and none changes."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.store import bucket_server, runs
from traceformer.store.objects.opening import open_bucket
from traceformer.store.run import TraceStore

_NUMBERS = count()


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[bucket_server.Proxy]:
    with bucket_server.served() as proxy:
        yield proxy


@pytest.fixture
def bucket(s3_server: bucket_server.Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[bucket_server.Bucket]:
    """A bucket of this test's own, which the environment leads to."""
    for name, value in bucket_server.environment(s3_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    yield bucket_server.make_bucket(s3_server, f"bucket-{next(_NUMBERS)}")
    s3_server.reset()
    open_bucket.cache_clear()
