"""The Gemma capture's files as runs: as documented, as its code wrote them, exports of ours, and files to refuse."""

import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.formats import foreign_pt as foreign
from tests.formats.foreign_pt import D_HEAD, HEADS, KV_HEADS, PROMPT, RESPONSE, N, T, truth
from tests.marks import slow
from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import NotFound, Unreadable
from traceformer.formats.gemma_pt.files import PtFile
from traceformer.formats.gemma_pt.read import read_files
from traceformer.formats.gemma_pt.write import LAYOUTS, write_files
from traceformer.formats.options import ExportOptions, ImportOptions
from traceformer.formats.torch_files import read_torch_file
from traceformer.sites import ArrayKey, ArraySpec

SITES = {
    "q_proj": "q_proj",
    "k_proj": "k_proj",
    "v_proj": "v_proj",
    "up_proj": "mlp_up",
    "gelu": "mlp_act",
    "down_proj": "mlp_down",
    "input": "resid_pre",
    "after_attn": "resid_mid",
    "output": "resid_post",
}
HEADS_OF = {"q_proj": HEADS, "k_proj": KV_HEADS, "v_proj": KV_HEADS}


def imported(files: list[Path], folder: Path) -> TraceStore:
    return TraceStore(read_files(files, ImportOptions(folder)))


def as_stored(name: str, rows: np.ndarray) -> np.ndarray:
    """(layer, token, width) as a run has it: heads apart."""
    if name not in HEADS_OF:
        return rows
    return rows.reshape(*rows.shape[:2], HEADS_OF[name], D_HEAD).transpose(0, 2, 1, 3)


def without_last_row(pattern: np.ndarray) -> np.ndarray:
    expected = pattern.copy()
    expected[..., T - 1, :] = np.nan
    return expected


def test_the_documented_internals_become_a_run(tmp_path: Path) -> None:
    own = truth()
    store = imported(foreign.documented_internals(tmp_path / "dynamic", own), tmp_path / "run")
    assert store.ids == ("dynamic-1",)
    assert store.dtype == "float16"
    for name, site in SITES.items():
        assert np.array_equal(store.get("dynamic-1", site), as_stored(name, own.rows[name]))
    assert np.array_equal(store.attn("dynamic-1"), without_last_row(own.attention), equal_nan=True)
    row = store.tokens.iloc[0]
    assert (row.n_prompt, row.prompt, row.response) == (N, "The capital of is", " Paris. The")
    assert list(row.tokens) == PROMPT + RESPONSE
    assert list(row.input_ids) == foreign.PROMPT_IDS + foreign.RESPONSE_IDS
    dims = store.meta["dims"]["dec"]
    assert (dims["n_layers"], dims["n_heads"], dims["n_kv_heads"], dims["d_head"]) == (2, HEADS, KV_HEADS, D_HEAD)
    assert store.meta["unknown_rows"] == "NaN"


def test_what_the_code_wrote_as_internals_is_put_one_position_earlier(tmp_path: Path) -> None:
    own = truth()
    store = imported(foreign.original_internals(tmp_path / "dynamic", own), tmp_path / "run")
    for name, site in {**SITES, "after_attn": "mlp_norm"}.items():
        expected = own.rows[name].copy()
        expected[:, T - 1] = np.nan
        assert np.array_equal(store.get("dynamic-1", site), as_stored(name, expected), equal_nan=True), name
    assert "dec.resid_mid" not in {str(spec.key) for spec in store.layout.arrays}
    assert np.array_equal(store.attn("dynamic-1"), without_last_row(own.attention), equal_nan=True)
    ids = list(store.tokens.input_ids[0])
    assert max(ids) < 0  # no ids are in the files
    assert [ids.index(each) for each in ids] == [0, 1, 2, 3, 4, 5, 6]
    assert "negative" in store.meta["imported"]["token_ids"]


def mean_pattern() -> np.ndarray:
    mean = truth().attention.astype(np.float32).mean(1, keepdims=True).astype(np.float16)
    return without_last_row(mean)


def test_the_documented_residuals_become_a_run(tmp_path: Path) -> None:
    own = truth()
    store = imported([foreign.documented_residual(tmp_path / "dynamic", own, "8")], tmp_path / "run")
    assert store.ids == ("dynamic-8",)
    for name in ("input", "after_attn", "output"):
        assert np.array_equal(store.get("dynamic-8", SITES[name]), own.rows[name])
    assert np.array_equal(store.attn("dynamic-8"), mean_pattern(), equal_nan=True)
    assert store.meta["imported"]["attention"] == "the mean over heads, as head 0"
    assert store.meta["dims"]["dec"]["n_heads"] == 1


def test_what_the_code_wrote_as_residuals_is_put_one_position_earlier(tmp_path: Path) -> None:
    own = truth()
    store = imported([foreign.original_residual(tmp_path / "dynamic", own)], tmp_path / "run")
    for name, site in (("input", "resid_pre"), ("after_attn", "mlp_norm"), ("output", "resid_post")):
        expected = own.rows[name].copy()
        expected[:, T - 1] = np.nan
        assert np.array_equal(store.get("dynamic-1", site), expected, equal_nan=True)
    assert np.array_equal(store.attn("dynamic-1"), mean_pattern(), equal_nan=True)


def test_several_prompts_make_one_run_in_their_order(tmp_path: Path) -> None:
    files = [foreign.documented_residual(tmp_path / "set", truth(i), str(i)) for i in (2, 10)]
    store = imported(files, tmp_path / "run")
    assert store.ids == ("set-2", "set-10")
    assert np.array_equal(store.get("set-10", "resid_post"), truth(10).rows["output"])


Writer = Callable[[Path], list[Path]]
RESIDUAL, INTERNALS = LAYOUTS["residual"], LAYOUTS["internals"]
WIDTHS = {"mlp_up": 20, "mlp_act": 20, "q_proj": 4, "k_proj": 4, "v_proj": 4, "z": 4, "logits": 9, "attn_pattern": 0}


def spec(site: str) -> ArraySpec:
    key = ArrayKey("dec", None, site)
    axes = ArraySpec(key).site.axes
    if ArraySpec(key).site.of_attention:
        key = ArrayKey("dec", "self", site)
    heads = range(2 if "kv_head" in axes else 4) if {"head", "kv_head"} & set(axes) else ()
    layers = {"layer": (1, 4), "hidden_layer": range(7)}.get(axes[0], ())
    return ArraySpec(key, tuple(layers), tuple(heads), WIDTHS.get(site, 8))


@pytest.mark.parametrize("dtype", ["bfloat16", slow("float16"), slow("float32")])
@pytest.mark.parametrize("layout", ["internals", "residual"])
def test_a_lossless_export_gives_the_whole_run_back(tmp_path: Path, dtype: str, layout: str) -> None:
    sites = (*INTERNALS, "embed", "hidden", "logits", "z", "attn_out")
    planned = runs.plan(arrays=[spec(site) for site in sites], n_examples=3, shard_examples=2, dtype=dtype)
    old = TraceStore(runs.write(tmp_path / "run", planned))
    files = list(write_files(old, tmp_path / "out", ExportOptions(layout=layout, lossless=True)))
    assert len(files) == 3 * (2 if layout == "internals" else 1)
    new = imported(files, tmp_path / "back")
    assert new.ids == old.ids
    assert new.dtype == old.dtype
    assert "unknown_rows" not in new.meta
    assert new.meta["dims"] == old.meta["dims"]
    for each in planned.arrays:
        assert new.layout.spec(each.key) == each
        for eid in old.ids:
            assert new.get(eid, each.key).tobytes() == old.get(eid, each.key).tobytes()


def test_patterns_that_were_stored_as_bytes_come_back_as_float32(tmp_path: Path) -> None:
    planned = runs.plan(arrays=[spec(site) for site in INTERNALS], n_examples=2, attn_codec="sqrt8")
    old = TraceStore(runs.write(tmp_path / "run", planned))
    new = imported(list(write_files(old, tmp_path / "out", ExportOptions(layout="internals"))), tmp_path / "back")
    assert new.dtype == "float32"
    assert all(np.array_equal(new.get(eid, site), old.get(eid, site)) for eid in old.ids for site in INTERNALS)


@pytest.mark.parametrize("layout", ["internals", "residual"])
def test_an_export_gives_back_all_that_its_layout_holds(tmp_path: Path, layout: str) -> None:
    planned = runs.plan(arrays=[spec(site) for site in INTERNALS], n_examples=3, dtype="float32")
    old = TraceStore(runs.write(tmp_path / "run", planned))
    files = list(write_files(old, tmp_path / "out", ExportOptions(layout=layout)))
    new = imported(files, tmp_path / "back")
    for site in LAYOUTS[layout]:
        for eid in old.ids:
            found, expected = new.get(eid, site), old.get(eid, site)
            if layout == "residual" and site == "attn_pattern":
                np.testing.assert_allclose(found[:, 0], expected.mean(1), atol=1e-6)
            else:
                assert np.array_equal(found, expected)
    again = list(write_files(new, tmp_path / "again", ExportOptions(layout=layout)))
    for one, other in zip(files, again, strict=True):
        first, second = (torch.load(path, weights_only=True)["prompt"] for path in (one, other))
        assert str(first) == str(second)


# What is refused


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "inside"])
def test_code_in_a_file_is_not_run(tmp_path: Path, kind: str) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "set" / "1.pt"
    path.parent.mkdir()
    data: Any = {"prompt": Trap(sprung), "response": {}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(data))
    elif kind == "inside":
        foreign.documented_residual(path.parent, truth())
        data = torch.load(path, weights_only=True)
        data["response"]["activations"]["0"]["after_attn"] = Trap(sprung)
        torch.save(data, path)
    else:
        torch.save(data, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(Unreadable, match="more than tensors"):
        imported([path], tmp_path / "run")
    assert not sprung.exists()
    assert not (tmp_path / "run").exists()
    with suppress(RuntimeError):  # a plain pickle is no file of torch, which sees that once it is unpickled
        torch.load(path, weights_only=False)
    assert sprung.exists()  # the trap does work


def test_entries_of_an_archive_do_not_leave_it(tmp_path: Path) -> None:
    path = foreign.documented_residual(tmp_path / "set", truth())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../climbed.txt", "out")
        archive.writestr("/tmp/traceformer-climbed.txt", "out")
    before = set(tmp_path.rglob("*"))
    with suppress(Unreadable):
        imported([path], tmp_path / "run")
    assert {each for each in tmp_path.rglob("*") if (tmp_path / "run") not in (each, *each.parents)} == before
    assert not Path("/tmp/traceformer-climbed.txt").exists()


def test_an_old_tar_archive_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "set" / "1.pt"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in ("../climbed", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(Unreadable):
        imported([path], tmp_path / "run")
    assert [each.name for each in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_damaged_file_is_refused_or_read_as_it_stands(tmp_path: Path, kind: str) -> None:
    path = foreign.documented_residual(tmp_path / "set", truth())
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=kind == "zip")
    intact, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(intact[: random.integers(len(intact)) if random.random() < 0.2 else None])
        for place in random.integers(max(1, len(damaged)), size=random.choice([1, 3, 20])):
            damaged[place : place + 1] = random.bytes(1)
        path.write_bytes(damaged)
        try:
            PtFile(path, read_torch_file(path))
        except Unreadable:
            refused += 1
    assert refused > 100  # numbers of a tensor may be any; what is no such file ends in no other error


def change(path: tuple[Any, ...], new: Any) -> Callable[[Path], Path]:
    """Returns what writes a documented file of residuals with one member changed, or without it."""

    def written(folder: Path) -> Path:
        file = foreign.documented_residual(folder, truth())
        data = torch.load(file, weights_only=True)
        place = data
        for name in path[:-1]:
            place = place[name]
        if new is None:
            del place[path[-1]]
        else:
            place[path[-1]] = new
        return foreign.save(file, data)

    return written


ROWS = torch.zeros(N, 6, dtype=torch.float16)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (change(("response",), None), "none of the Gemma capture's files"),
        (change(("prompt",), [1]), "not dicts"),
        (change(("prompt", "tokens"), PROMPT[:-1]), "3 tokens and 4 token ids"),
        (change(("prompt", "token_ids"), ["x"] * N), "no whole numbers"),
        (change(("prompt", "tokens"), 3), "no list"),
        (change(("prompt", "activations"), [ROWS]), "no dict"),
        (change(("prompt", "activations", "0"), ROWS), "layer 0 is no dict"),
        (change(("response", "attention"), [ROWS]), "no dict"),
        (change(("response", "attention"), ROWS), "no dict"),
        (change(("prompt", "activations", "x"), {"residual_in": ROWS}), "which layer is 'x'"),
        (change(("prompt", "activations", "0", "mystery"), ROWS), "mystery"),
        (change(("prompt", "activations", "0", "after_attn"), ROWS[:-1]), "rows of after_attn"),
        (change(("prompt", "activations", "0", "after_attn"), "rows"), "no tensor"),
        (change(("prompt", "activations", "0", "after_attn"), ROWS / 0), "NaN"),
        (change(("prompt", "activations", "0", "after_attn"), ROWS.int()), "floating-point"),
        (change(("prompt", "attention", "layer_1"), ROWS), "pattern in layer 1"),
        (change(("response", "attention", "layer_1"), [ROWS[:, :N]] * 3), "pattern 1 of the response"),
        (change(("traceformer",), {"format": "other"}), "not what an export writes"),
        (change(("traceformer",), {"format": "traceformer pt 1", "row": [], "run": {}}), "traceformer.row"),
    ],
)  # fmt: skip
def test_what_makes_no_run_is_refused(tmp_path: Path, written: Callable[[Path], Path], message: str) -> None:
    path = written(tmp_path / "set")
    with pytest.raises(Unreadable, match=message):
        imported([path], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first, second = foreign.documented_internals(tmp_path / "set", truth())
    other = foreign.documented_internals(tmp_path / "set", truth(), "2")
    with pytest.raises(Unreadable, match="other arrays"):
        imported([first, second, other[0]], tmp_path / "run")
    renamed = first.rename(first.with_name("3.pt"))
    with pytest.raises(Unreadable, match="which layer"):
        imported([renamed], tmp_path / "run")
    with pytest.raises(NotFound):
        imported([tmp_path / "set" / "nothing.pt"], tmp_path / "run")
    torch.save({"blocks.0.hook_resid_pre": torch.zeros(1, 2, 3)}, tmp_path / "cache.pt")
    with pytest.raises(Unreadable, match="none of the Gemma capture's files"):
        imported([tmp_path / "cache.pt"], tmp_path / "run")
