"""Runs whose patterns the compiled core makes: those of torch to one step, every other byte the same, and so stated."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import traceformer as tf
from tests.capture.asked import Extraction, Stopped, extracted, stop_after
from tests.core.switched import VARIANTS, needs_core, switched
from traceformer.capture.compiled import compiled_patterns
from traceformer.capture.extract import extract, read_texts
from traceformer.capture.scores import AttentionCall
from traceformer.errors import ConfigurationChanged, NumericError
from traceformer.models.load import load_model
from traceformer.sites import Selection
from traceformer.store.commits import RunHead, verify_run
from traceformer.store.place import Place
from traceformer.store.run import Run, TraceStore

pytestmark = needs_core

TEXTS = ["a", "the quick brown fox", "jumps over the lazy dog and then over the other one", "w " * 40, "one two"]
FAMILIES = ("gpt2", "llama", "mistral", "gemma2", "bert", "modernbert", "t5", "bart", "bloom", "gpt_oss")


def asked(folder: Path, texts: Path, out: Path, **changes: object) -> Extraction:
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    how = Extraction(model=str(folder), dataset=str(texts), selection=Selection(("attn", "qkv", "resid")), out_dir=out)
    return replace(how, **changes)


def files(run: Path, *, of_patterns: bool) -> dict[str, bytes]:
    found = {str(path.relative_to(run)): path for path in run.rglob("c.*")}
    return {name: path.read_bytes() for name, path in found.items() if ("/attn/" in name) == of_patterns}


def matrices(run: Run) -> list[np.ndarray]:
    keys = [spec.key for spec in run.layout.arrays if spec.site.is_matrix]
    return [run.get(row, key, dtype="stored") for key in keys for row in range(run.n)]


@pytest.mark.filterwarnings("ignore:texts are cut")
@pytest.mark.parametrize("family", FAMILIES)
def test_with_and_without_the_core_rows_are_equal_and_patterns_one_step_apart(
    family: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    runs = []
    for switch in ("off", VARIANTS[0]):
        with switched(switch):
            runs.append(extracted(asked(tiny_folder(family), tmp_path / "texts.txt", tmp_path / switch, batch_size=3)))
    assert not verify_run(runs[1])
    rows = [files(run, of_patterns=False) for run in runs]
    assert rows[0]
    assert rows[0] == rows[1]
    pairs = zip(*(matrices(TraceStore(run)) for run in runs), strict=True)
    for one, other in pairs:
        apart = np.abs(one.view(np.int16).astype(int) - other.view(np.int16).astype(int))
        assert apart.max(initial=0) <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_in_memory_has_the_bits_of_one_on_disk_however_many_threads(
    variant: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    texts = read_texts(["w " * 60, "x " * 50, "y"])
    model = load_model(str(tiny_folder("gpt2")), device="cpu")
    found = []
    threads = torch.get_num_threads()
    with switched(variant):
        for folder, number in ((None, 1), (tmp_path / "one", 1), (tmp_path / "two", 2)):
            torch.set_num_threads(number)
            try:
                run = extract(model, texts, Selection(("attn",)), Place(folder=folder))
            finally:
                torch.set_num_threads(threads)
            found.append([matrix.tobytes() for matrix in matrices(run)])
    assert found[0] == found[1] == found[2]


def test_a_run_is_resumed_with_the_kernel_that_it_was_begun_with(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    how = asked(tiny_folder("gpt2"), tmp_path / "texts.txt", tmp_path / "run", shard_examples=2, batch_size=2)
    with switched("off"), pytest.raises(Stopped):
        extracted(how, stop_after(4))
    head = RunHead.read(tmp_path / "_tmp_run")
    assert "pattern kernel" not in head.configuration
    with (
        switched(VARIANTS[0]),
        pytest.raises(ConfigurationChanged, match='pattern kernel was "torch", is "compiled 1"'),
    ):
        extracted(replace(how, resume=True))
    with switched("off"):
        extracted(replace(how, resume=True))
    with switched(VARIANTS[0]), pytest.raises(Stopped):
        extracted(replace(how, overwrite=True), stop_after(4))
    assert RunHead.read(tmp_path / "_tmp_run").configuration["pattern kernel"] == "compiled 1"
    with switched("off"), pytest.raises(ConfigurationChanged, match='pattern kernel was "compiled 1", is "torch"'):
        extracted(replace(how, overwrite=True, resume=True))


def test_what_holds_no_pattern_of_float16_states_no_kernel(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    for name, changes in (
        ("rows", {"selection": Selection(("resid",))}),
        ("wide", {"selection": Selection(("attn",)), "dtype": "float32"}),
    ):
        how = asked(tiny_folder("gpt2"), tmp_path / "texts.txt", tmp_path / name, **changes)
        with switched(VARIANTS[0]):
            head = RunHead.read(extracted(how))
        assert "pattern kernel" not in head.configuration


def test_a_run_over_a_stream_states_its_kernel_too(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    model = load_model(str(tiny_folder("gpt2")), device="cpu")
    how: dict[str, Any] = {
        "capture": "attn",
        "out": tmp_path / "run",
        "max_seq_len": 32,
        "shard_examples": 2,
        "batch_size": 2,
    }
    with switched(VARIANTS[0]), pytest.raises(Stopped):
        tf.record(model, iter(TEXTS), progress=stop_after(4), **how)
    with switched("off"), pytest.raises(ConfigurationChanged, match='pattern kernel was "compiled 1", is "torch"'):
        tf.record(model, iter(TEXTS), resume=True, **how)


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_patterns_that_are_no_numbers_stop_the_run(
    place: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model = load_model(str(tiny_folder("gpt2")), device="cpu")
    with torch.no_grad():
        model.model.transformer.h[1].attn.c_attn.weight.fill_(torch.nan)
    out = tmp_path / "run" if place == "disk" else None
    with switched(VARIANTS[0]), pytest.raises(NumericError, match=r"layer 1 of dec\.self\.attn_pattern is NaN"):
        extract(model, read_texts(TEXTS), Selection(("attn",)), Place(folder=out))


def test_what_the_core_does_not_take_is_left_to_torch() -> None:
    query = torch.randn(1, 2, 4, 8)
    call = AttentionCall(query, query, query, None, None, None, 1.0, None, True, None)
    with switched(VARIANTS[0]):
        assert compiled_patterns(call, range(2), ahead=False) is not None
        for odd in (
            {"softcap": 30.0},
            {"bias": torch.zeros(1, 2, 4, 4)},
            {"sinks": torch.zeros(2)},
            {"edited_scores": torch.zeros(1, 2, 4, 4)},
            {"edited_pattern": torch.zeros(1, 2, 4, 4)},
        ):
            assert compiled_patterns(replace(call, **odd), range(2), ahead=False) is None
    with switched("off"):
        assert compiled_patterns(call, range(2), ahead=False) is None
