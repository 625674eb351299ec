"""The server: what it lets through, what it answers, what it says when it cannot."""

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import pytest
from starlette.testclient import TestClient

from tests.viewer.small_runs import HOSTILE, write_run
from traceformer.errors import UsageError
from traceformer.viewer import server as served
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query
from traceformer.viewer.resources import RESOURCES
from traceformer.viewer.server import Server, application

TOKEN = "T0ken-of_this-server"
pytestmark = pytest.mark.usefixtures("bundle")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("traces")
    write_run(folder / "small")
    write_run(folder / "hostile", [HOSTILE])
    (folder / "secret.json").write_text('{"secret": true}')
    return Library.at(folder)


@pytest.fixture
def client(library: Library) -> TestClient:
    return TestClient(application(library, TOKEN), f"http://127.0.0.1:8000/{TOKEN}", raise_server_exceptions=False)


@pytest.fixture
def server(library: Library) -> Iterator[Server]:
    server = Server.start(library)
    yield server
    server.close()


def get(server: Server, path: str) -> tuple[int, bytes]:
    port = int(server.address.split(":")[2].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/{server.address.split('/')[3]}/{path}")
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


# What it lets through


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[::1]:8000",
        "0.0.0.0",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/runs"])
def test_requests_that_name_another_host_are_refused(client: TestClient, host: str, path: str) -> None:
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 421
    assert answer.json()["message"] == "this page is for this machine alone"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1234", "localhost", "LOCALHOST:99"])
def test_requests_that_name_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/api/runs", "//", f"/{TOKEN[:-1]}/", f"/{TOKEN}x/api/runs", f"/{TOKEN.lower()}/", "/api/%ff", "/é/"),
        *("/static/viewer.js", "/favicon.ico", f"/x/%2e%2e/{TOKEN}/api/runs"),
    ],
)
def test_without_the_token_nothing_is_there(library: Library, path: str) -> None:
    app = application(library, TOKEN)
    answer = TestClient(app, "http://127.0.0.1").get(path)
    assert answer.status_code == 404
    assert "address that was printed" in answer.json()["hint"]
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    "name",
    [
        *("../small", "small/..", "./small", "/etc/passwd", "..", ".", "", "small/", "secret.json", "small/meta.json"),
        *("small\0", "x" * 5000, "..%2fsmall", "%2e%2e", "small/dec_self_attn.zarr", "\\\\host\\share", "~"),
    ],
)
@pytest.mark.parametrize("resource", ["run", "examples", "example"])
def test_no_name_leads_out_of_the_list_of_runs(client: TestClient, resource: str, name: str) -> None:
    answer = client.get(f"/api/{resource}", params={"run": name, "ex": "0"})
    assert answer.headers["Problem"] == "told"
    assert answer.json()["message"] == f"no run {name!r}"


@pytest.mark.parametrize(
    "path",
    [
        *("/api/../../etc/passwd", "/api/%2e%2e/%2e%2e/secret.json", "/api/..%2f..%2fsecret.json", "/api//etc/passwd"),
        *("/api/runs/../secret.json", "/secret.json", "/api/", "/api", "/api/__init__", "/%2e%2e/"),
    ],
)
def test_no_address_leads_to_a_file(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404 or answer.headers["Problem"] == "told"
    assert "secret" not in answer.json()
    assert "root:" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_is_only_read_from(client: TestClient, method: str) -> None:
    answer = client.request(method, "/api/runs", headers={"Origin": "https://evil.example"})
    assert answer.status_code == 405
    assert answer.json()["message"] == "this server is only read from"
    assert not [name for name in answer.headers if name.startswith("access-control")]


# What it answers


def test_every_answer_says_what_may_be_done_with_it(client: TestClient) -> None:
    for answer in (
        client.get("/"),
        client.get("/api/runs"),
        client.get("/nothing"),
        client.get("/", headers={"Host": ""}),
    ):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "server" not in answer.headers


def test_the_page_may_run_its_own_script_and_ask_its_own_server_alone(client: TestClient) -> None:
    answer = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["script-src"].startswith("'sha256-")
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.text.startswith("<!doctype html>")


def test_head_has_the_headers_of_get_and_no_body(client: TestClient) -> None:
    for path in ("/", "/api/runs"):
        head, whole = client.head(path), client.get(path, headers={"Accept-Encoding": "identity"})
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Type"] == whole.headers["Content-Type"]


def test_long_json_is_compressed_for_those_who_can_read_it(server: Server, library: Library) -> None:
    port, token = int(server.address.split(":")[2].split("/")[0]), server.address.split("/")[3]
    bodies = {}
    for encoding in ("identity", "gzip, br"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", f"/{token}/api/example?run=hostile&ex=0", headers={"Accept-Encoding": encoding})
        answer = connection.getresponse()
        bodies[answer.getheader("Content-Encoding")] = answer.read()
        connection.close()
    assert gzip.decompress(bodies["gzip"]) == bodies[None]
    assert len(bodies["gzip"]) < len(bodies[None]) / 10
    assert json.loads(bodies[None])["tokens"]["dec"][0]["text"] == HOSTILE[0].replace(" ", "·")


def test_answers_say_when_the_runs_were_begun_that_they_are_of(client: TestClient, library: Library) -> None:
    asked = {"run": "small", "ex": "0", "run2": "hostile", "ex2": "0"}
    answer = client.get("/api/alignment", params=asked)
    assert answer.headers["Begun"] == f"{library.begun('small')},{library.begun('hostile')}"
    assert client.get("/api/runs").headers["Begun"] == ""


# What it says when it cannot


def test_what_the_library_refuses_is_told_in_words(client: TestClient) -> None:
    answer = client.get("/api/example", params={"run": "small", "ex": "99"})
    assert answer.json() == {
        "message": "no example '99'",
        "why": "this run holds 2",
        "hint": "a number from 0 to 1, or an id",
    }
    assert client.get("/api/example", params={"run": "small"}).json()["message"] == "no ex was given"
    assert client.get("/api/frobnicate").json()["message"] == "no resource 'frobnicate'"
    assert client.get("/api/examples", params={"run": "small", "from": "x"}).json()["hint"] == "a whole number"


def test_a_fault_is_told_without_its_traceback_and_the_next_request_is_answered(
    library: Library, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of /home/somebody")

    with monkeypatch.context() as patched:
        patched.setattr(served, "answer", fail)
        server = Server.start(library)
        status, body = get(server, "api/runs")
    told = json.loads(body)
    assert (status, told["message"], told["why"]) == (
        500,
        "this cannot be shown",
        "a fault of the viewer: ZeroDivisionError",
    )
    assert b"Traceback" not in body
    assert b"somebody" not in body
    assert get(server, "api/runs")[0] == 200
    server.close()
    assert "ZeroDivisionError: of /home/somebody" in capfd.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), OSError(13, "Permission denied")], ids=["memory", "permission"])
def test_what_the_machine_refuses_is_told_in_words(
    client: TestClient, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(served, "answer", fail)
    told = client.get("/api/runs").json()
    assert told["why"] in ("there is not enough memory", "Permission denied")


def test_a_port_that_is_taken_or_none_is_refused(server: Server) -> None:
    port = int(server.address.split(":")[2].split("/")[0])
    with pytest.raises(UsageError, match=rf"cannot serve at `port={port}`; address already in use; `port=0`"):
        Server.start(Library(), port=port)
    with pytest.raises(UsageError, match="ports are numbers from 0 to 65535"):
        Server.start(Library(), port=70_000)


# Many at once, and those who go


def test_two_hundred_requests_at_once_are_answered_alike(server: Server) -> None:
    paths = ["api/run?run=small", "api/example?run=small&ex=1", "api/examples?run=hostile", "api/runs"]
    once = {path: get(server, path) for path in paths}
    with ThreadPoolExecutor(200) as pool:
        found = [*pool.map(lambda path: (path, get(server, path)), paths * 50)]
    assert len(found) == 200
    assert all(answer == once[path] and answer[0] == 200 for path, answer in found)


def test_a_client_that_goes_away_disturbs_nobody(
    library: Library, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begun, go_on, worked = threading.Event(), threading.Event(), []
    real = served.answer

    def slow(library: Library, resource: str, query: Query) -> object:
        if resource == "run":
            worked.append(query.values["run"])
            begun.set()
            go_on.wait(60)
        return real(library, resource, query)

    monkeypatch.setattr(served, "answer", slow)
    monkeypatch.setattr(served, "_AT_ONCE", 1)
    server = Server.start(library)
    port, token = int(server.address.split(":")[2].split("/")[0]), server.address.split("/")[3]

    def ask(run: str) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(f"GET /{token}/api/run?run={run} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return connection

    first = ask("small")
    assert begun.wait(60)
    waiting = ask("hostile")  # for its turn
    half = socket.create_connection(("127.0.0.1", port))
    half.sendall(b"GET /")
    for connection in (first, waiting, half):
        connection.close()
    threading.Timer(0.2, go_on.set).start()
    assert get(server, "api/runs")[0] == 200
    server.close()
    assert worked == ["small"]  # who was gone before its turn was not worked for
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_server_that_is_at_work_is_closed_all_the_same(
    library: Library, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begun, end = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        begun.set()
        end.wait(120)

    monkeypatch.setattr(served, "answer", slow)
    server = Server.start(library)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(get, server, "api/runs") for _ in range(2)]
        assert begun.wait(60)
        started = time.perf_counter()
        server.close()
        assert time.perf_counter() - started < 30  # two seconds, where nothing else is at work
        assert [answer.result()[0] for answer in asked] == [503, 503]
    end.set()
    assert "Traceback" not in capfd.readouterr().err


def test_every_resource_has_a_function() -> None:
    for name, module in RESOURCES.items():
        assert callable(getattr(import_module(f"traceformer.viewer.resources.{module}"), name))
