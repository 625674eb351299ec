"""The runs of a bucket's prefix are shown as those of a folder are."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.store.bucket_server import ACCESS_KEY, SECRET_KEY, Proxy
from tests.store.buckets import BucketServer, shared_bucket
from tests.viewer.pages import Live
from tests.viewer.small_runs import write_run
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer
from traceformer.viewer.viewing import _library

UNLIKE = ("folder", "begun", "version")


@pytest.fixture(scope="module")
def server(s3_server: Proxy) -> Generator[BucketServer]:
    with shared_bucket(s3_server, "shown") as made:
        yield made


def shown(library: Library, resource: str, **values: str) -> Any:
    found = answer(library, resource, Query(values))
    if found.is_packet:
        return found.body
    data = json.loads(found.body)
    for each in (data, *data.get("runs", ())):
        for name in UNLIKE:
            each.pop(name, None)
    return data


@pytest.mark.slow
def test_runs_of_a_prefix_are_shown_as_those_of_a_folder(server: BucketServer, tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "sweep/first")
    here, there = Library.at(tmp_path), Library.at(server.put_folder(tmp_path, "prefix"))
    assert sorted(there.names()) == sorted(here.names()) == ["one", "sweep/first"]
    mine, theirs = (sorted(shown(library, "runs")["runs"], key=lambda run: run["name"]) for library in (here, there))
    assert mine == theirs
    for resource, values in {"run": {}, "examples": {}, "example": {"ex": "0"}}.items():
        assert shown(there, resource, run="one", **values) == shown(here, resource, run="one", **values)
    where = {"run": "one", "attn": "dec.self", "ex": "0", "layer": "1", "head": "0"}
    assert shown(there, "matrix", **where) == shown(here, "matrix", **where)
    assert Library.at(server.place("prefix/one")).names() == ["one"]


def test_a_page_that_asks_again_at_once_costs_the_bucket_nothing(server: BucketServer, tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    library = Library.at(server.put_folder(tmp_path, "asked"))
    shown(library, "runs"), shown(library, "run", run="one")
    with server.counted() as asked:
        for _ in range(20):
            library.state("one"), library.names(), library.run("one")
    assert len(asked) <= 10  # a moment may end meanwhile


def test_a_prefix_is_served_and_its_pages_tell_no_credentials(server: BucketServer, tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    server.put_folder(tmp_path, "served")
    library = _library("s3://shown/served")
    text = "".join(answer(library, resource, Query({"run": "one"})).body.decode() for resource in ("runs", "run"))
    assert '"s3://shown/served"' in text
    assert SECRET_KEY not in text
    assert ACCESS_KEY not in text


@pytest.mark.slow
def test_a_run_in_a_bucket_is_drawn(server: BucketServer, byte_runs: Path, live: Live) -> None:
    page = live(Library.at(server.put_folder(byte_runs, "drawn")), "")
    page.wait_for_selector("text=byte")
    page = live(Library.at(server.place("drawn/byte")), "run=byte&screen=overview")
    page.wait_for_selector(".thumbnail, canvas, svg")
