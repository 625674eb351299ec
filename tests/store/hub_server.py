"""The routes of the Hugging Face Hub's buckets that are used here, on this machine, out of a dict.

`tree`, `paths-info` and `resolve` are answered to huggingface_hub's own client. What it sends when files are added
goes by a protocol of its own (Xet), so `FakeApi` takes that one call instead.
"""

import json
import re
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import HfApi

WRITTEN = "2026-01-01T00:00:00.000Z"


class HubServer:
    """What the buckets hold, by bucket and key; `paths` are the requests that were answered."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.paths: list[str] = []
        self.failing: list[int] = []
        self.endpoint = ""


class FakeApi(HfApi):
    """The true client, but for the one call whose protocol is not HTTP's."""

    def __init__(self, server: HubServer) -> None:
        super().__init__(endpoint=server.endpoint, token="hf_secret")
        self._server = server

    def batch_bucket_files(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, bucket_id: str, *, add: Sequence[tuple[bytes, str]] = (), delete: Sequence[str] = ()
    ) -> None:
        held = self._server.buckets[bucket_id]
        held |= {key: data for data, key in add}
        for key in delete:
            del held[key]


@contextmanager
def hub_server() -> Generator[HubServer]:
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # an answer's body would wait 40 ms for the client to acknowledge its headers

        def log_message(self, *_: object) -> None: ...

        def answer(self, status: int, data: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
            self.route(asked)

        def do_GET(self) -> None:
            self.route([])

        def route(self, asked: list[str]) -> None:
            hub.paths.append(self.path)
            if hub.failing:
                return self.answer(hub.failing.pop(), b"not now")
            where = urlsplit(self.path)
            match = re.fullmatch(r"(?:/api)?/buckets/([^/]+/[^/]+)/(tree|paths-info|resolve)(?:/(.*))?", where.path)
            if match is None or match[1] not in hub.buckets:
                body = json.dumps({"error": "Bucket not found"}).encode()
                return self.answer(404, body, X_Error_Code="RepoNotFound")
            held, key = hub.buckets[match[1]], unquote(match[3] or "")
            if match[2] == "resolve":
                return self.part(held.get(key))
            if match[2] == "paths-info":
                found = [_file(path, held[path]) for path in asked if path in held]
            else:
                found = _tree(held, key, deep="true" in parse_qs(where.query).get("recursive", ["false"])[0].lower())
            self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

        def part(self, data: bytes | None) -> None:
            if data is None:
                return self.answer(404, b"", X_Error_Code="EntryNotFound")
            wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if wanted is None:
                return self.answer(200, data)
            first = int(wanted[1]) if wanted[1] else max(0, len(data) - int(wanted[2]))
            last = min(int(wanted[2]), len(data) - 1) if wanted[1] else len(data) - 1
            if first > last:
                return self.answer(416, b"")
            self.answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _file(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "xetHash": "0" * 64, "uploadedAt": WRITTEN}


def _tree(held: dict[str, bytes], prefix: str, *, deep: bool) -> list[dict[str, Any]]:
    start = f"{prefix}/" if prefix else ""
    inside = {path: data for path, data in held.items() if path.startswith(start)}
    if deep:
        return [_file(path, data) for path, data in inside.items()]
    files = [_file(path, data) for path, data in inside.items() if "/" not in path[len(start) :]]
    folders = {start + path[len(start) :].split("/")[0] for path in inside if "/" in path[len(start) :]}
    return [*files, *({"type": "directory", "path": path} for path in sorted(folders))]
