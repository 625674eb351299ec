"""A bucket to test against: moto's server of S3, behind a small proxy that breaks what it is told to.

What a fault does to a request:
500, 503   it is answered with that, and not carried out
broken     the connection ends, and it is not carried out
short      it is carried out, and the connection ends in the middle of the answer
denied     it is answered with 403 and what S3 tells then, and not carried out
lost       it is carried out, and the connection ends before the answer
slow       it is carried out after a second
"""

import http.client
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from traceformer.store.objects.path import ObjectPath

Fault = Literal["500", "503", "broken", "lost", "slow", "short", "denied"]

ACCESS_KEY, SECRET_KEY = "AKIATRACEFORMERTEST0", "secret-of-traceformer-tests-0000000000"
_SLOW_SECONDS = 1.0
_DENIED = (
    "<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code><Message>The signature does not match</Message>"
    f"<AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId><StringToSign>AWS4 {SECRET_KEY}</StringToSign></Error>"
)
_OWN_HEADERS = ("connection", "transfer-encoding", "content-length", "date", "server", "keep-alive")


class Request(NamedTuple):
    """What was asked: `number` counts from 1; `range` as it was sent."""

    number: int
    method: str
    path: str
    query: str
    body: bytes
    range: str = ""

    @property
    def writes(self) -> bool:
        return self.method in ("PUT", "DELETE", "POST")


def no_fault(request: Request) -> Fault | None:
    return None


def ignored(request: Request) -> None:
    pass


class Proxy:
    """Passes requests on to a server, or does not.

    Attributes:
        fault: Says what is to go wrong with a request.
        done: Called after each request that was carried out, before its answer is sent.
        requests: All that came.
        objects: What the buckets hold, by `bucket/key`.
    """

    def __init__(self, host: str, port: int) -> None:
        self.fault: Callable[[Request], Fault | None] = no_fault
        self.done: Callable[[Request], object] = ignored
        self.requests: list[Request] = []
        self.objects: dict[str, bytes] = {}
        self._to = (host, port)
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Lets nothing go wrong any more, and forgets what came."""
        self.fault, self.done = no_fault, ignored
        self.requests.clear()

    def came(self, method: str, target: str, body: bytes, range: str = "") -> tuple[Request, Fault | None]:
        split = urlsplit(target)
        with self._lock:
            request = Request(len(self.requests) + 1, method, unquote(split.path), split.query, body, range)
            self.requests.append(request)
            return request, self.fault(request)

    def forward(
        self, request: Request, target: str, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self._to, timeout=60)
        try:
            connection.request(request.method, target, request.body, headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        with self._lock:
            if answer.status < 300:
                self._note(request)
            self.done(request)
        return answer.status, answer.getheaders(), body

    def _note(self, request: Request) -> None:
        key = request.path.lstrip("/")
        if request.method == "PUT" and "/" in key.rstrip("/") and not request.query:
            self.objects[key] = request.body
        elif request.method == "DELETE":
            self.objects.pop(key, None)
        elif request.method == "POST" and "delete" in request.query:
            for name in re.findall(rb"<Key>(.*?)</Key>", request.body):
                self.objects.pop(f"{key.rstrip('/')}/{name.decode()}", None)


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer's body would wait 40 ms for the client to acknowledge its headers

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request, fault = self.proxy.came(self.command, self.path, body, self.headers.get("Range", ""))
        if fault == "slow":
            time.sleep(_SLOW_SECONDS)
        if fault == "broken":
            self._hang_up()
            return
        if fault in ("500", "503"):
            told = b"<Error><Code>InternalError</Code><Message>a fault of the test</Message></Error>"
            self._send(int(fault), [], told)
            return
        if fault == "denied":
            self._send(403, [("Content-Type", "application/xml")], _DENIED.encode())
            return
        status, headers, answer = self.proxy.forward(request, self.path, dict(self.headers))
        if fault == "lost":
            self._hang_up()
            return
        self._send(status, headers, answer, short=fault == "short")

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, *, short: bool = False) -> None:
        self.send_response_only(status)
        length = len(body)
        for name, value in headers:
            if self.command == "HEAD" and name.lower() == "content-length":
                length = int(value)
            if name.lower() not in _OWN_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if short else body)
        if short:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815


class Bucket(NamedTuple):
    """An empty bucket, and the proxy before it."""

    name: str
    proxy: Proxy

    def place(self, name: str) -> "ObjectPath":
        from traceformer.store.objects.path import ObjectPath

        return ObjectPath.parse(f"s3://{self.name}/{name}")

    def contents(self, place: "ObjectPath") -> dict[str, bytes]:
        """Returns every object under a place by its name there, by what went through the proxy."""
        start = f"{place.bucket}/{place.key}/"
        return {key[len(start) :]: body for key, body in self.proxy.objects.items() if key.startswith(start)}


@contextmanager
def served() -> Generator[Proxy]:
    """Serves S3 from memory, behind a proxy."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(*server.get_host_and_port())
    try:
        yield proxy
    finally:
        proxy.close()
        server.stop()


def make_bucket(proxy: Proxy, name: str) -> Bucket:
    """Returns a new bucket."""
    from traceformer.store.objects.opening import open_bucket

    with urllib.request.urlopen(urllib.request.Request(f"{proxy.url}/{name}", method="PUT")) as answer:
        assert answer.status == 200
    proxy.reset()
    open_bucket.cache_clear()
    return Bucket(name, proxy)


def environment(proxy: Proxy) -> dict[str, str]:
    """Returns what a process must find in its environment to use the server."""
    return {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
    }
