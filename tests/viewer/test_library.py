"""What a library shows of a folder: runs by name, as far as they have come, and effects beside them."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traceformer as tf
from tests.viewer.small_runs import PATTERNS, Writing, pattern, write_run
from traceformer.analysis.effects import Axis, Swept
from traceformer.errors import CorruptRun, NotFound
from traceformer.questions.effects_folder import EffectsFolder
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer
from traceformer.viewer.resources.examples import examples
from traceformer.viewer.resources.runs import run, runs

TEXTS = [["The", " cat"], ["a", " dog", " ran"], ["one"]]


def write_effects(folder: Path) -> None:
    axes = (Axis("layer", (0, 1), ("0", "1")),)
    about = Swept(verb="patch", model="tiny", digest="", sites=("dec.resid_pre",), metric="logit", how="denoise")
    with EffectsFolder.create(folder, about, axes, ["a pair"], {}, resume=False) as made:
        values: dict[str, Any] = {name: np.array([0.25, 0.5]) for name in ("effect", "metric")}
        made.write(0, {**values, "clean": np.array(1.0), "corrupt": np.array(0.0)})
        made.finish(about)


def test_runs_of_a_folder_and_of_experiments_in_it_have_names(tmp_path: Path) -> None:
    write_run(tmp_path / "old")
    write_run(tmp_path / "sweep/first")
    write_run(tmp_path / "deep/down/there")
    (tmp_path / "notes").mkdir()
    library = Library.at(tmp_path)
    assert library.names() == ["sweep/first", "old"]
    assert library.run("sweep/first").n == 2
    assert library.place("old") == tmp_path / "old"


def test_of_one_run_only_that_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "mine")
    write_run(tmp_path / "other")
    library = Library.at(tmp_path / "mine")
    assert library.names() == ["mine"]
    with pytest.raises(NotFound, match="no run 'other'"):
        library.run("other")


def test_runs_at_hand_are_shown_by_their_names(tmp_path: Path) -> None:
    opened = tf.open_run(write_run(tmp_path / "mine"))
    library = Library.of(opened, opened)
    assert library.names() == ["mine", "mine-2"]
    assert library.run("mine-2") is opened
    assert library.state("mine") == ""
    [row, _] = runs(library, Query())["runs"]
    assert (row["model"], row["n_examples"], row["finished"]) == ("tiny", 2, True)


def test_an_empty_folder_gets_its_first_run(tmp_path: Path) -> None:
    library = Library.at(tmp_path)
    assert runs(library, Query()) == {"folder": str(tmp_path), "runs": [], "effects": []}
    write_run(tmp_path / "first")
    assert library.names() == ["first"]


def test_a_run_is_followed_while_it_is_written_and_keeps_its_name(tmp_path: Path) -> None:
    writing, library = Writing(tmp_path / "mine", TEXTS), Library.at(tmp_path)
    seen: list[tuple[str, int, bool]] = []

    def look() -> None:
        told = run(library, Query({"run": "mine"}))
        seen.append((told["version"], told["n_examples"], told["finished"]))

    for step in (writing.commit, writing.commit, writing.finish):
        look()
        look()
        step()
    look()
    assert [told[1:] for told in seen] == [(0, False)] * 2 + [(1, False)] * 2 + [(2, False)] * 2 + [(3, True)]
    versions = [version for version, *_ in seen]
    assert versions[::2] == versions[1::2] + versions[-1:]
    assert len({*versions}) == 4
    assert library.names() == ["mine"]
    assert (library.run("mine").attn(2, 1, 0) == pattern(2, 1, 0, 1)).all()


def test_what_a_run_that_is_written_holds_can_be_read(tmp_path: Path) -> None:
    writing = Writing(tmp_path / "mine", TEXTS)
    writing.commit()
    library = Library.at(tmp_path / "_tmp_mine")
    assert library.names() == ["mine"]
    assert (library.run("mine").attn(0, 3, 1) == pattern(0, 3, 1, 2)).all()
    assert run(library, Query({"run": "mine"}))["notices"] == [
        "being written: 1 of 3 examples so far",
        "layers 1, 3 of 4 only",
    ]
    writing.close()


def test_a_run_that_takes_the_place_of_another_is_named_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / "_tmp_mine")
    (tmp_path / "_tmp_mine/manifest.json").unlink()
    library = Library.at(tmp_path)
    assert {*library.names()} == {"mine", "_tmp_mine"}
    assert library.run("mine").finished
    assert not library.run("_tmp_mine").finished


def test_a_run_is_opened_once_by_many_and_anew_when_it_is_another(tmp_path: Path) -> None:
    write_run(tmp_path / "mine")
    library = Library.at(tmp_path)
    with ThreadPoolExecutor(20) as pool:
        opened = [*pool.map(library.run, ["mine"] * 20)]
    assert len({id(run) for run in opened}) == 1
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(NotFound):
        library.run("mine")
    write_run(tmp_path / "mine", TEXTS)
    assert library.run("mine").n == 3


def test_threads_read_many_arrays_of_one_run_together(tmp_path: Path) -> None:
    write_run(tmp_path / "mine", [["a", "b"]] * 20)  # of more files than whose indexes are kept
    opened = Library.at(tmp_path).run("mine")
    asked = [(example, layer, head) for example in range(20) for layer in PATTERNS.layers for head in PATTERNS.heads]
    with ThreadPoolExecutor(20) as pool:
        found = [*pool.map(lambda cell: opened.attn(*cell), asked * 3)]
    assert all((read == pattern(*cell, 2)).all() for read, cell in zip(found, asked * 3, strict=True))


def test_damaged_runs_are_listed_with_what_is_wrong(tmp_path: Path) -> None:
    for name in ("no-manifest", "no-head", "later", "nonsense", "lost-record"):
        write_run(tmp_path / name)
    (tmp_path / "no-manifest/manifest.json").unlink()
    head = tmp_path / "no-head/meta.json"
    head.write_bytes(head.read_bytes().replace(b"tiny", b"tinx"))
    (tmp_path / "later/meta.json").write_text('{"format": "traceformer-run", "format_version": 99}')
    (tmp_path / "nonsense/meta.json").write_bytes(b"\xff\xfe{[")
    (tmp_path / "lost-record/commits/0.json").unlink()
    library = Library.at(tmp_path)
    problems = {row["name"]: row["problem"] for row in runs(library, Query())["runs"]}
    assert problems["no-manifest"] == "damaged: it has lost its manifest.json"
    assert problems["no-head"].startswith("meta.json was changed after it was written; its SHA-256 does not fit")
    assert problems["later"]
    assert problems["nonsense"].startswith("meta.json is not the head of a run")
    for name in problems:
        with pytest.raises((CorruptRun, ValueError)):
            library.run(name)


def test_a_name_that_is_no_text_does_not_hide_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "fine")
    shutil.copytree(tmp_path / "fine", tmp_path / os.fsdecode(b"bad-\xff"))
    listed = json.loads(answer(Library.at(tmp_path), "runs", Query()).body)["runs"]
    assert {row["name"] for row in listed} == {"fine", "bad-\udcff"}


def test_effects_beside_runs_are_opened_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "mine")
    write_effects(tmp_path / "patches")
    write_effects(tmp_path / "more/patches")
    library = Library.at(tmp_path)
    assert library.names() == ["mine"]
    assert library.effects() == ["more/patches", "patches"]
    assert library.open_effects("patches").values.tolist() == [0.25, 0.5]
    assert library.open_effects("patches") is library.open_effects("patches")
    for name in ("../mine", "mine", "nothing"):
        with pytest.raises(NotFound):
            library.open_effects(name)
    assert Library.at(tmp_path / "patches").effects() == ["patches"]


def test_examples_are_found_by_text_and_id_and_told_where_they_match(tmp_path: Path) -> None:
    long = ["x"] * 500 + [" needle"] + ["y"] * 500
    write_run(tmp_path / "mine", [*TEXTS, long])
    library = Library.at(tmp_path)

    def found(**asked: str) -> list[int]:
        return [row["number"] for row in examples(library, Query({"run": "mine", **asked}))["examples"]]

    assert found() == [0, 1, 2, 3]
    assert found(find="CAT") == [0]
    assert found(find="ex2") == [2]
    assert found(**{"from": "2"}) == [2, 3]
    assert found(find="nothing") == []
    [row] = examples(library, Query({"run": "mine", "find": "needle"}))["examples"]
    assert "needle" in row["text"]
    assert row["text"][0] == row["text"][-1] == "…"
    assert row["lengths"] == {"dec": 1001}


def test_when_a_run_was_begun_tells_another_run_and_not_a_longer_one(tmp_path: Path) -> None:
    library, writing = Library.at(tmp_path), Writing(tmp_path / "mine", TEXTS)
    writing.commit()
    begun = library.begun("mine")
    writing.commit()
    assert library.begun("mine") == begun
    writing.finish()
    assert library.begun("mine") == begun
    shutil.rmtree(tmp_path / "mine")
    write_run(tmp_path / "mine")
    assert library.begun("mine") != begun
