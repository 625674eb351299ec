"""The live viewer: a server on this machine alone, which reads runs and never loads a model.

Every address begins with a token that is drawn at the start, so that no other page, and no other user of the machine,
can ask for anything. Requests that name another host than this machine are refused (a page that has its name rebound
to this address names its own), nothing is shared with other origins, and runs are found by name only.
"""

import secrets
import socket
import webbrowser
from collections.abc import Mapping
from contextlib import closing
from functools import partial

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from traceformer.errors import NotFound, TraceformerError
from traceformer.viewer.library import Library
from traceformer.viewer.pages import live_page
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer

__all__ = ["application", "serve"]

HOST = "127.0.0.1"
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


def serve(library: Library, *, port: int = 0, browser: bool = True, fragment: str = "") -> None:
    """Serves a library until it is interrupted, at a free port for 0, and opens the page.

    Prints the address once requests are answered.
    """
    token = secrets.token_urlsafe(24)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(64)
        address = f"http://{HOST}:{listening.getsockname()[1]}/{token}/{fragment}"
        print(address, flush=True)
        if browser:
            webbrowser.open(address)
        config = uvicorn.Config(application(library, token), log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[listening])
