"""The download of enwik8, from a server in this process."""

import hashlib
import io
import random
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from traceformer.bytelm.enwik8 import fetch_enwik8
from traceformer.errors import NotFound, Unreadable

TEXT = b" ".join(str(number).encode() for number in random.Random(0).sample(range(10**6), 40_000))
SHA1 = hashlib.sha1(TEXT).hexdigest()


def packed(name: str = "enwik8", text: bytes = TEXT) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return out.getvalue()


@contextmanager
def server(
    content: bytes, *, breaks_after: list[int], ranges: bool = True, status: int = 200
) -> Iterator[tuple[str, list[str]]]:
    """Serves `content`, each answer cut after the next of `breaks_after`; yields its address and what was asked for."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            asked.append(wanted)
            begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and ranges else 0
            if status != 200 or begin >= len(content):
                self.send_error(status if status != 200 else 416)
                return
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            stop = breaks_after.pop(0) if breaks_after else len(content)
            self.wfile.write(content[begin : begin + stop])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/enwik8.zip", asked
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[[str], Path]:
    return lambda address: fetch_enwik8(tmp_path, address=address, size=len(TEXT), sha1=SHA1)


def test_it_is_downloaded_checked_and_unpacked_once(fetch: Callable[[str], Path], tmp_path: Path) -> None:
    with server(packed(), breaks_after=[]) as (address, asked):
        assert fetch(address).read_bytes() == TEXT
        assert fetch(address).read_bytes() == TEXT
    assert asked == [""]
    assert [path.name for path in tmp_path.iterdir()] == ["enwik8"]


def test_a_download_that_broke_off_goes_on_where_it_ended(fetch: Callable[[str], Path]) -> None:
    with server(packed(), breaks_after=[10_000, 20_000]) as (address, asked):
        for _ in range(2):
            with pytest.raises(Unreadable, match=r"broke off; the same command goes on"):
                fetch(address)
        assert fetch(address).read_bytes() == TEXT
    assert asked == ["", "bytes=10000-", "bytes=30000-"]


def test_a_server_without_ranges_sends_everything_again(fetch: Callable[[str], Path]) -> None:
    with server(packed(), breaks_after=[10_000], ranges=False) as (address, _):
        with pytest.raises(Unreadable):
            fetch(address)
        assert fetch(address).read_bytes() == TEXT


def test_a_download_that_only_lacked_its_unpacking_is_not_asked_for_in_vain(
    fetch: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "enwik8.zip.part").write_bytes(packed())
    with server(packed(), breaks_after=[]) as (address, _):
        assert fetch(address).read_bytes() == TEXT


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed(text=TEXT[:-1] + b"x"), "is not enwik8"),
        (packed(text=TEXT + b"x"), "is not enwik8"),
        (packed(text=TEXT[:1000]), "1000 bytes with SHA-1"),
        (packed(name="other"), "no archive of enwik8"),
        (b"<html>" * 1000, "no archive of enwik8"),
    ],
)
def test_what_is_not_enwik8_is_refused_and_removed(
    content: bytes, words: str, fetch: Callable[[str], Path], tmp_path: Path
) -> None:
    with server(content, breaks_after=[]) as (address, _), pytest.raises(Unreadable, match=words):
        fetch(address)
    assert list(tmp_path.iterdir()) == []
    with server(packed(), breaks_after=[]) as (address, _):
        assert fetch(address).read_bytes() == TEXT


def test_an_address_without_it_is_named(fetch: Callable[[str], Path]) -> None:
    with server(b"", breaks_after=[], status=404) as (address, _), pytest.raises(NotFound, match="404"):
        fetch(address)


def test_an_unreachable_server_is_not_found(fetch: Callable[[str], Path]) -> None:
    with server(b"", breaks_after=[]) as (address, _):
        pass
    with pytest.raises(NotFound, match='`data="pydoc"` needs no network'):
        fetch(address)


def test_the_environment_can_name_another_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(packed(), breaks_after=[]) as (address, asked):
        monkeypatch.setenv("TRACEFORMER_ENWIK8", address)
        assert fetch_enwik8(tmp_path, size=len(TEXT), sha1=SHA1).read_bytes() == TEXT
    assert asked == [""]
