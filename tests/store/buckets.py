"""A bucket on this machine: moto's server behind a proxy that counts requests and, when asked to, fails them."""

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, NamedTuple

from traceformer.store.objects.opening import open_bucket
from traceformer.store.objects.path import ObjectPath

SECRET = "not-to-be-told"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "AKIANOTTOBETOLD", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}

_DENIED = (
    "<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code><Message>The signature does not match</Message>"
    f"<AWSAccessKeyId>{ENVIRONMENT['AWS_ACCESS_KEY_ID']}</AWSAccessKeyId><StringToSign>AWS4 {SECRET}</StringToSign></Error>"
)  # as S3 has it


class Asked(NamedTuple):
    """A request; `range` as it was sent."""

    method: str
    path: str
    range: str


Fault = Literal["500", "503", "slow", "broken", "short", "denied"]


@dataclass
class BucketServer:
    """A server with one bucket; `asked` are the requests, `fails` says which of them fail."""

    bucket: str
    asked: list[Asked] = field(default_factory=list[Asked])
    fails: Callable[[Asked], Fault | None] = lambda asked: None

    def place(self, key: str = "") -> ObjectPath:
        return ObjectPath("s3", self.bucket, key)

    def put_folder(self, folder: Path, key: str) -> ObjectPath:
        """Puts the files of a folder there, by other means than the package's copying."""
        place = self.place(key)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                place.store.put((place / path.relative_to(folder).as_posix()).key, path.read_bytes())
        return place

    @contextmanager
    def counted(self) -> Iterator[list[Asked]]:
        """Yields the requests that are sent inside the block, once it has ended."""
        start = len(self.asked)
        found: list[Asked] = []
        yield found
        found += self.asked[start:]


@contextmanager
def bucket_server(bucket: str = "bucket") -> Generator[BucketServer]:
    """Starts moto's server and the proxy, makes a bucket, and sets what the client finds it by."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, behind = moto.get_host_and_port()
    server = BucketServer(bucket)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server, behind))
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    before = {name: os.environ.get(name) for name in (*ENVIRONMENT, "AWS_ENDPOINT_URL")}
    os.environ |= {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}"}
    open_bucket.cache_clear()
    try:
        connection = HTTPConnection("127.0.0.1", behind)
        connection.request("PUT", f"/{bucket}")
        assert connection.getresponse().status == 200
        yield server
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        moto.stop()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        open_bucket.cache_clear()


def _handler(server: BucketServer, behind: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, self.path, self.headers.get("Range", ""))
            server.asked.append(asked)
            fault = server.fails(asked)
            if fault in ("500", "503"):
                return self.answer(int(fault), b"<Error><Code>SlowDown</Code></Error>", {})
            if fault == "denied":
                return self.answer(403, _DENIED.encode(), {"Content-Type": "application/xml"})
            if fault == "slow":
                time.sleep(0.2)
            if fault == "broken":
                self.close_connection = True
                return None
            connection = HTTPConnection("127.0.0.1", behind)
            kept = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection.request(self.command, self.path, body=body, headers=kept)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            self.answer(answer.status, data, dict(answer.getheaders()), short=fault == "short")

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

        def answer(self, status: int, data: bytes, headers: dict[str, str], *, short: bool = False) -> None:
            self.send_response(status)
            skipped = ("connection", "transfer-encoding", "server", "date", "content-length")
            for name, value in headers.items():
                if name.lower() not in skipped:
                    self.send_header(name, value)
            sizes = {name.lower(): value for name, value in headers.items()}
            size = sizes.get("content-length", "0") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", size)
            self.end_headers()
            if short:  # what breaks in the middle
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif self.command != "HEAD":
                self.wfile.write(data)

    return Handler
