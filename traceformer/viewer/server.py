"""The live viewer: a server on this machine alone, which reads runs and never loads a model.

Every address begins with a token that is drawn at the start, so that no other page, and no other user of the machine,
can ask for anything. Requests that name another host than this machine are refused (a page that has its name rebound
to this address names its own), nothing is shared with other origins, and runs are found by name only.
"""

import secrets
import socket
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from threading import Thread

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from traceformer.errors import NotFound, TraceformerError, UsageError
from traceformer.viewer.library import Library
from traceformer.viewer.pages import live_page
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer

__all__ = ["Server", "application", "serve"]

HOST = "127.0.0.1"
_WAITING = 512  # connections that the system holds until they are accepted
_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def application(library: Library, token: str) -> Starlette:
    """Returns the server's application: the page at `/TOKEN/`, resources at `/TOKEN/api/NAME?...`."""

    def page(request: Request) -> Response:
        return HTMLResponse(live_page(), headers=_HEADERS)

    async def resource(request: Request) -> Response:
        query = Query(dict(request.query_params))
        try:
            found = await run_in_threadpool(partial(answer, library, request.path_params["name"], query))
        except TraceformerError as error:
            told = {"message": error.message, "why": error.why, "hint": error.hint}
            return JSONResponse(told, 404 if isinstance(error, NotFound) else 422, headers=_HEADERS)
        media = "application/octet-stream" if found.is_packet else "application/json"
        return Response(found.body, media_type=media, headers=_HEADERS)

    return Starlette(
        routes=[Route(f"/{token}/", page), Route(f"/{token}/api/{{name}}", resource)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)],
    )


@dataclass(frozen=True, slots=True, repr=False)
class Server:
    """A library that is being served, by a thread of this process, until it is closed.

    Attributes:
        address: Where: the page of its runs.
    """

    address: str
    _server: uvicorn.Server
    _thread: Thread

    @classmethod
    def start(cls, library: Library, *, port: int = 0) -> "Server":
        """Returns a server of a library at a port, or a free one for 0, which answers from now on.

        Raises:
            UsageError: the port is taken, or none.
        """
        token = secrets.token_urlsafe(24)
        listening = _listening(port)
        config = uvicorn.Config(application(library, token), log_level="warning", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        # A process that only shows runs waits for the thread; one that ends for other reasons is not kept by it.
        thread = Thread(target=server.run, args=([listening],), name="traceformer-view", daemon=True)
        thread.start()
        return cls(f"http://{HOST}:{listening.getsockname()[1]}/{token}/", server, thread)

    def __repr__(self) -> str:
        return f"Server({self.address})"

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


def _listening(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listening.close()
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot serve at `port={port}`", why=why, hint="`port=0` takes a free one") from error
    listening.listen(_WAITING)
    return listening


def serve(library: Library, *, port: int = 0, browser: bool = True, fragment: str = "") -> None:
    """Serves a library until it is interrupted, at a free port for 0, and opens the page.

    Prints the address once requests are answered.
    """
    server = Server.start(library, port=port)
    print(server.address + fragment, flush=True)
    if browser:
        webbrowser.open(server.address + fragment)
    server.wait()
