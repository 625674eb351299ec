"""Every flag that names a file or folder: what is written to a disk alone refuses a place in a bucket."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from cyclopts import App, Parameter

from tests.cli.conftest import Terminal
from traceformer.cli import VERBS
from traceformer.cli.arguments import FILE_ON_DISK, FOLDER_ON_DISK, NAMED_FOLDER

READ = {
    "adapter": "a model's adapter",
    "compare": "tables of heads",
    "data_path": "a file of text",
    "direction": "a trait vector",
    "file": "a trait vector",
    "files": "files to import",
    "init": "a trained model",
    "metrics": "a table of heads",
    "model": "a model's folder",
    "model_a": "a model's folder",
    "model_b": "a model's folder",
    "model_path": "a model's folder",
    "project": "trait vectors",
    "prompts": "a file of prompts",
    "targets_file": "a file of targets",
    "translators": "a lens",
    "vector": "trait vectors",
}
"""The flags whose files are read: a place in a bucket is a file that is not there."""
WRITTEN = [FILE_ON_DISK, FOLDER_ON_DISK, NAMED_FOLDER]


def commands() -> Iterator[tuple[str, Any]]:
    for verb in VERBS:
        for name in (verb, f"{verb}_"):
            try:
                module = import_module(f"traceformer.cli.{name}")
            except ModuleNotFoundError:
                continue
            made = getattr(module, name)
            if isinstance(made, App):
                yield from ((f"{verb} {own}", made[own].default_command) for own in made if own[0] != "-")
            else:
                yield verb, made


def named(of: Any) -> Iterator[tuple[str, Any]]:
    """Yields the names and annotations of a command's flags, those of what several share included."""
    for name, annotation in get_type_hints(of, include_extras=True).items():
        if is_dataclass(annotation):
            yield from named(annotation)
        elif name in (signature(of).parameters if not is_dataclass(of) else {each.name for each in fields(of)}):
            yield name, annotation


def is_path(annotation: Any) -> bool:
    if annotation is Path:
        return True
    parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return any(is_path(part) for part in parts)


def test_what_is_written_is_one_of_three_kinds_and_the_rest_is_read() -> None:
    seen: set[str] = set()
    for command, function in commands():
        for name, annotation in named(function):
            if not is_path(annotation):
                continue
            seen.add(name)
            how = [each for each in get_args(annotation) if isinstance(each, Parameter)]
            assert name in READ or any(each in WRITTEN for each in how), f"{command}: {name}"
    assert {*READ} - {"adapter"} <= seen


@pytest.mark.parametrize(
    "line",
    [
        "heads run --output s3://bucket/heads.csv",
        "heads --model byte --roles --figure s3://bucket/card.html",
        "cluster heads.csv --output gs://bucket/clusters.csv",
        "analyze run --parquet s3://bucket/positions.parquet",
        "inspect run --example 0 --png s3://bucket/heads.png",
        "paths run --example 0 --html s3://bucket/paths.html",
        "project run --vector short.npy --output s3://bucket/traits",
        "vectors fit --positive texts.txt --negative texts.txt --output hf://buckets/me/traits",
        "demo --out_dir s3://bucket/demo",
        "generate --model byte --prompt The --experiment s3://bucket/traces",
    ],
)
def test_no_folder_is_made_of_a_bucket_that_is_to_hold_results(line: str, terminal: Terminal) -> None:
    before = sorted(terminal.folder.rglob("*"))
    typed = terminal.type(line)
    assert (typed.code, typed.out) == (2, "")
    assert "on disk, and this is a place in a bucket" in typed.err
    assert sorted(terminal.folder.rglob("*")) == before
