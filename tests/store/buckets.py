"""A bucket that several tests share, whose requests are counted; `bucket_server` has the server and the proxy."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.store.bucket_server import Fault, Proxy, Request, environment, make_bucket, no_fault
from traceformer.store.objects.opening import open_bucket
from traceformer.store.objects.path import ObjectPath


class BucketServer(NamedTuple):
    """A bucket, and the proxy before it."""

    bucket: str
    proxy: Proxy

    def place(self, key: str = "") -> ObjectPath:
        return ObjectPath("s3", self.bucket, key)

    def put_folder(self, folder: Path, key: str) -> ObjectPath:
        """Puts the files of a folder there, by other means than the package's copying."""
        place = self.place(key)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                (place / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
        return place

    @contextmanager
    def counted(self) -> Iterator[list[Request]]:
        """Yields the requests that are sent inside the block, once it has ended."""
        start, found = len(self.proxy.requests), list[Request]()
        yield found
        found += self.proxy.requests[start:]

    @contextmanager
    def failing(self, fault: Callable[[Request], Fault | None]) -> Iterator[None]:
        """Has requests inside the block fail."""
        self.proxy.fault = fault
        try:
            yield
        finally:
            self.proxy.fault = no_fault


@contextmanager
def shared_bucket(proxy: Proxy, bucket: str) -> Generator[BucketServer]:
    """Makes a bucket, and has the environment lead to it."""
    found = environment(proxy)
    before = {name: os.environ.get(name) for name in found}
    os.environ.update(found)
    try:
        make_bucket(proxy, bucket)
        yield BucketServer(bucket, proxy)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        open_bucket.cache_clear()
