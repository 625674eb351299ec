"""The live viewer: a server on this machine alone, which reads runs and never loads a model.

Every address begins with a token that is drawn at the start, so that no other page, and no other user of the machine,
can ask for anything. Requests that name another host than this machine are refused (a page that has its name rebound
to this address names its own), nothing is shared with other origins, and runs are found by name only.

What cannot be answered is told in JSON: `message`, `why`, `hint`. What the library says of a run (it has no such
array, a file is damaged) is an answer like others, marked by the header `Problem`: a browser would log any other
status as an error of the page. A fault of the program is told as such, without its traceback, which stderr has.

The header `Begun` says when the runs were begun that an answer is of, so that a page shows nothing of one that took
the place of another under the tokens of that.
"""

import gzip
import os
import secrets
import socket
from asyncio import CancelledError
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from threading import Thread
from typing import Any, Self

import uvicorn
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from traceformer.errors import TraceformerError, UsageError
from traceformer.viewer.library import Library
from traceformer.viewer.pages import live_page
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer

__all__ = ["Server", "application"]

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
_WAITING = 512  # connections that the system holds until they are accepted
_AT_ONCE = 8  # answers in work: each may hold arrays
_WORTH_PACKING = 2048  # bytes of JSON
_SECONDS_TO_END = 2
_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True, repr=False)
class Server:
    """A library that is being served, by a thread of this process, until it is closed or the process ends.

    Attributes:
        address: Where: the page of its runs.
        page: What to show first: an address, which ends in a fragment or is the same.
    """

    address: str
    page: str
    _server: uvicorn.Server
    _thread: Thread

    @classmethod
    def start(cls, library: Library, *, port: int = 0, fragment: str = "") -> "Server":
        """Returns a server of a library at a port, or a free one for 0, which answers from now on.

        Raises:
            UsageError: the port is taken, or is none.
            NotFound: the viewer's bundle was not built when the package was installed.
        """
        live_page()
        token = secrets.token_urlsafe(24)
        listening = _listening(port)
        config = uvicorn.Config(
            application(library, token),
            log_level="warning",
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, args=([listening],), name="traceformer-view", daemon=True)
        thread.start()
        Thread(target=_warm, args=(library,), daemon=True).start()
        address = f"http://{HOST}:{listening.getsockname()[1]}/{token}/"
        return cls(address, address + fragment, server, thread)

    def __repr__(self) -> str:
        return f"Server({self.page})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Returns when the server has ended; an interruption closes it."""
        try:
            self._thread.join()
        finally:
            self.close()

    def close(self) -> None:
        """Ends the server; returns once its port is free."""
        self._server.should_exit = True
        self._thread.join()


def _warm(library: Library) -> None:
    """Loads what the first answers need, and opens the first run, while the browser starts."""
    for module in ("runs", "examples", "overview", "thumbnails"):
        import_module(f"traceformer.viewer.resources.{module}")
    with suppress(TraceformerError, OSError, IndexError):  # a page will say so
        library.run(library.names()[0]).encodings(0)


def _listening(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # Windows would let two servers have one port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(_WAITING)
    except (OSError, OverflowError) as error:
        listening.close()
        why = error.strerror if isinstance(error, OSError) else "ports are numbers from 0 to 65535"
        raise UsageError(
            f"cannot serve at `port={port}`", why=(why or "").lower(), hint="`port=0`, a free one"
        ) from None
    return listening


def application(library: Library, token: str) -> ASGIApp:
    """Returns the server's application: the page at `/TOKEN/`, resources at `/TOKEN/api/NAME?...`."""
    turns = CapacityLimiter(_AT_ONCE)

    def page(_: Request) -> Response:
        html, policy = live_page()
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    async def resource(request: Request) -> Response:
        packed = "gzip" in request.headers.get("accept-encoding", "")
        make = partial(_answered, library, request.path_params["name"], dict(request.query_params), packed=packed)
        try:
            async with turns:
                if await request.is_disconnected():  # it waited for its turn, and went
                    return Response(status_code=499)
                return await to_thread.run_sync(make, abandon_on_cancel=True)
        except CancelledError:
            return _told(503, "the viewer is being closed", "", "")

    routes = [Route(f"/{token}/", page), Route(f"/{token}/api/{{name}}", resource)]
    told = {HTTPException: _no_such_address, Exception: _failed}
    return _Guard(Starlette(routes=routes, exception_handlers=told), token)


def _answered(library: Library, name: str, values: dict[str, str], *, packed: bool) -> Response:
    try:
        found = answer(library, name, Query(values))
        begun = ",".join(library.begun(values[field]) for field in ("run", "run2") if field in values)
    except TraceformerError as error:
        return _told(200, error.message, error.why, error.hint)
    except OSError as error:
        return _told(200, "this cannot be read", error.strerror or str(error), "")
    except MemoryError:
        return _told(200, "this cannot be shown", "there is not enough memory", "close other programs, then reload")
    headers = {"Begun": begun}
    if found.is_packet:
        return Response(found.body, media_type="application/octet-stream", headers=headers)
    if not packed or len(found.body) < _WORTH_PACKING:
        return Response(found.body, media_type="application/json", headers=headers)
    body = gzip.compress(found.body, compresslevel=3, mtime=0)
    return Response(body, media_type="application/json", headers={**headers, "Content-Encoding": "gzip"})


def _told(status: int, message: str, why: str, hint: str) -> Response:
    return JSONResponse({"message": message, "why": why, "hint": hint}, status, headers={"Problem": "told"})


def _no_such_address(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == 405:
        return _told(status, "this server is only read from", "", "")
    return _told(status, "there is nothing at this address", "", "the address that was printed when the viewer started")


def _failed(_: Request, error: Exception) -> Response:
    why = f"a fault of the viewer: {type(error).__name__}"
    return _told(500, "this cannot be shown", why, "the terminal or notebook that serves this page says more")


@dataclass(frozen=True, slots=True)
class _Guard:
    """Lets through what names this machine and knows the token; says with every answer what may be done with it."""

    inside: ASGIApp
    token: str
    _refused: Mapping[str, Response] = field(
        default_factory=lambda: {
            "host": _told(421, "this page is for this machine alone", "the request names another host", ""),
            "token": _no_such_address(Request({"type": "http"}), HTTPException(404)),
        }
    )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope)(scope, receive, send_with_headers)

    def _app(self, scope: Mapping[str, Any]) -> ASGIApp:
        host = Headers(scope=dict(scope)).get("host", "").rpartition(":")
        if (host[0] if host[1] else host[2]).lower() not in _NAMES:
            return self._refused["host"]
        given = scope["path"].lstrip("/").partition("/")[0]
        return self.inside if secrets.compare_digest(given.encode(), self.token.encode()) else self._refused["token"]
