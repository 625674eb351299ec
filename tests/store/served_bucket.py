"""Fixtures of tests of several rooms that write to a bucket."""

from collections.abc import Iterator
from itertools import count

import pytest

from tests.store import bucket_server

_NUMBERS = count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[bucket_server.Proxy]:
    with bucket_server.served() as proxy:
        yield proxy


@pytest.fixture
def bucket(s3_server: bucket_server.Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[bucket_server.Bucket]:
    """A bucket of this test's own, which the environment leads to."""
    from traceformer.store.objects.opening import open_bucket

    for name, value in bucket_server.environment(s3_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    yield bucket_server.make_bucket(s3_server, f"bucket-{next(_NUMBERS)}")
    s3_server.reset()
    open_bucket.cache_clear()
