"""Each row once: what is kept, what a reader sees of it, and what no layout may say."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store import runs, streams
from tests.store.test_memory import kept
from traceformer.errors import ConfigurationChanged, CorruptRun, Unreadable
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.aliases import Rows, each_once
from traceformer.store.commits import verify_run
from traceformer.store.files import seal, unseal
from traceformer.store.layout import RunLayout
from traceformer.store.run import Run
from traceformer.store.sizes import estimated_files, filled_bytes


@pytest.fixture(scope="module", autouse=True)
def filled_with_a_stream() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        streams.patch(patched)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write(tmp_path_factory.mktemp("once") / "run", streams.plan())


@pytest.fixture(scope="module")
def on_disk(folder: Path) -> Run:
    return Run(folder)


@pytest.fixture(scope="module", params=["on disk", "in memory"])
def run(request: pytest.FixtureRequest, on_disk: Run) -> Run:
    return on_disk if request.param == "on disk" else kept(streams.plan())


@pytest.fixture(scope="module")
def tree(on_disk: Run) -> Any:
    return on_disk.to_xarray()


def whole(run: Run, array: ArraySpec) -> np.ndarray:
    """All examples' rows of all layers, one after the other."""
    return np.concatenate([runs.expected(run.layout, array, example) for example in range(run.n)], axis=-2)


# What is kept


def test_of_equal_rows_the_inputs_of_blocks_are_kept_then_their_outputs_then_the_final_norm() -> None:
    layout = streams.plan()
    assert {str(rows): str(one) for rows, one in layout.aliases.items()} == streams.ALIASES
    assert {str(spec.key): spec.layers for spec in layout.kept} == streams.KEPT
    assert layout.arrays == streams.STREAM


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (("hidden", "resid_post"), {"hidden[1]": "resid_post[0]", "hidden[2]": "resid_post[1]"}),
        (("hidden", "embed"), {"hidden[0]": "embed"}),
        (("resid_pre", "embed"), {"embed": "resid_pre[0]"}),
        (("hidden", "final_norm"), {"hidden[3]": "final_norm"}),
        (("hidden",), {}),
        (("resid_pre", "resid_post"), {"resid_post[0]": "resid_pre[1]", "resid_post[1]": "resid_pre[2]"}),
    ],
)
def test_only_what_is_recorded_counts(recorded: tuple[str, ...], expected: dict[str, str]) -> None:
    layers = {"resid_pre": (0, 1, 2), "resid_post": (0, 1, 2), "hidden": (0, 1, 2, 3)}
    arrays = [streams.rows(site, *layers.get(site, ())) for site in recorded]

    def spot(rows: Rows) -> str:
        return "end" if rows == Rows(ArrayKey("dec", None, "hidden"), 3) else streams.between(*rows)

    found = each_once(arrays, {"dec": 3}, lambda one, other: spot(one) == spot(other))
    assert {str(rows)[4:]: str(one)[4:] for rows, one in found.items()} == expected


def test_rows_of_other_widths_and_stacks_are_no_aliases() -> None:
    wide = replace(streams.rows("hidden", 0, 1), width=5)
    of_encoder = ArraySpec(ArrayKey("enc", None, "embed"), (), (), 24)
    arrays = (streams.rows("resid_pre", 0, 1), wide, of_encoder)
    assert each_once(arrays, {"dec": 2, "enc": 2}, lambda one, other: True) == {}


# What a reader sees


def test_every_array_is_read_as_it_was_recorded(run: Run) -> None:
    for array in run.layout.arrays:
        for example in (0, 3, 5):
            expected = runs.expected(run.layout, array, example)
            assert np.array_equal(run.get(example, array.key), expected)
            for index, layer in enumerate(array.layers):
                found = run.get(example, array.key, layer)
                assert np.array_equal(found, expected[index])
        if array.site.axes[-1] == "d_model":
            expected = whole(run, array)
            for layer, rows in zip(array.layers or (None,), expected if array.layers else [expected], strict=True):
                assert np.array_equal(run.activations(array.key, layer), rows)
                for shuffle in (False, True):
                    batches = np.concatenate(list(run.stream(array.key, layer, 50, shuffle)))
                    assert np.array_equal(np.sort(batches, axis=0), np.sort(rows, axis=0))
            for (name, values), example in zip(run.head(array.key), range(run.n), strict=True):
                assert name == runs.name(example)
                assert np.array_equal(values, runs.expected(run.layout, array, example))


def test_numbers_come_as_they_are_stored_when_asked_for(run: Run) -> None:
    found = run.get(5, "hidden", dtype="stored")
    assert found.dtype == np.float16
    assert np.array_equal(found, runs.expected(run.layout, streams.STREAM[4], 5).astype(np.float16))


@settings(max_examples=20)
@given(data=st.data())
def test_xarray_sees_every_layer(data: st.DataObject, on_disk: Run, tree: Any) -> None:
    array = data.draw(st.sampled_from([each for each in streams.STREAM if each.site.axes[-1] == "d_model"]))
    group, leaf = on_disk.layout.array_path(array.key).split("/")
    seen = tree[group.removesuffix(".zarr")][leaf]
    expected = whole(on_disk, array)
    tokens = data.draw(st.lists(st.integers(0, expected.shape[-2] - 1), min_size=1, max_size=5, unique=True))
    if not array.layers:
        assert np.array_equal(seen[tokens], expected[tokens])
        return
    index = data.draw(
        st.integers(0, len(array.layers) - 1)
        | st.lists(st.integers(0, len(array.layers) - 1), min_size=1, max_size=4)
        | st.builds(slice, st.integers(0, 2), st.integers(0, 6))
    )
    assert np.array_equal(seen[index][..., tokens, :], expected[index][..., tokens, :])
    axis = seen.dims[0]
    assert seen[axis].values.tolist() == list(array.layers)


def test_one_layer_is_read_from_the_array_that_keeps_it(on_disk: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No joining of several arrays where one will do: reading is as fast as that of the kept one."""
    from traceformer.store import folder

    def refuse(views: list[Any]) -> Any:
        assert len(views) == 1
        return views[0]

    monkeypatch.setattr(folder, "along_layers", refuse)
    on_disk.get(1, "hidden", 4)
    on_disk.activations("hidden", 6)
    on_disk.to_xarray()["dec_hidden"]["h"].sel(hidden_layer=1).load()
    assert on_disk.layout.pieces(on_disk.spec("hidden"), (1,))[0].spec.key.site == "resid_pre"


def test_a_saved_run_has_the_bytes_of_a_recorded_one(on_disk: Run, folder: Path, tmp_path: Path) -> None:
    for source in (on_disk, kept(streams.plan())):
        saved = source.save(tmp_path / "run", overwrite=True)
        assert saved.layout.aliases == on_disk.layout.aliases
        assert verify_run(tmp_path / "run") == []
        files = runs.contents(tmp_path / "run")
        assert {path for path in files if ".zarr/" in path} == {p for p in runs.contents(folder) if ".zarr/" in p}
        assert all(data == (folder / path).read_bytes() for path, data in files.items() if ".zarr/" in path)


# Files


def test_what_is_another_array_s_takes_no_file_and_what_is_so_in_part_its_own_layers_only(folder: Path) -> None:
    assert [path.name for path in (folder / "dec_res_embed.zarr").iterdir()] == ["zarr.json"]
    hidden: Any = zarr.open_group(folder / "dec_hidden.zarr", mode="r")
    assert hidden["h"].shape[0] == 1
    assert np.asarray(hidden["hidden_layer"]).tolist() == [2]
    assert dict(hidden.attrs)["alias_of"]["h"] == {
        "0": {"array": "dec_res_pre_attn.zarr/x", "layer": 0},
        "1": {"array": "dec_res_pre_attn.zarr/x", "layer": 1},
        "4": {"array": "dec_res_pre_attn.zarr/x", "layer": 4},
        "6": {"array": "dec_norm.zarr/final"},
    }
    embed: Any = zarr.open_group(folder / "dec_res_embed.zarr", mode="r")
    assert dict(embed.attrs)["alias_of"] == {"x": {"array": "dec_res_pre_attn.zarr/x", "layer": 0}}
    assert json.loads((folder / "meta.json").read_text())["layout"]["aliases"] == streams.ALIASES


def test_sizes_are_those_of_what_is_kept(tmp_path: Path) -> None:
    once = streams.plan()
    twice = replace(once, aliases={})
    lengths: dict[Stack, list[int]] = {"dec": [runs.lengths(once, example)["dec"] for example in range(6)]}
    rows = sum(lengths["dec"]) * 24 * 2
    assert filled_bytes(twice, lengths) - filled_bytes(once, lengths) == 7 * rows
    assert estimated_files(twice) - estimated_files(once) == once.n_shards  # those of embed
    stored = [runs.contents(runs.write(tmp_path / name, each)) for name, each in (("a", once), ("b", twice))]
    shards = [sum(len(data) for path, data in files.items() if "/c." in path) for files in stored]
    assert shards[1] - shards[0] >= 7 * rows


def test_damage_of_what_is_kept_is_found_by_whoever_reads_an_alias(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", streams.plan())
    path = folder / "dec_res_pre_attn.zarr/x/c.0.0.0"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for read in (lambda: Run(folder).get(0, "hidden", 4), lambda: Run(folder).activations("embed")):
        with pytest.raises(CorruptRun, match=r"dec_res_pre_attn\.zarr/x"):
            read()
    Run(folder).get(0, "hidden", 2)
    path.unlink()
    with pytest.raises(CorruptRun, match="is missing"):
        Run(folder).get(0, "embed")


def test_a_run_begun_with_other_aliases_is_not_resumed(tmp_path: Path) -> None:
    layout = streams.plan()
    runs.begin(tmp_path / "run", 1, layout)
    with pytest.raises(ConfigurationChanged, match="another aliases"):
        runs.complete(tmp_path / "run", replace(layout, aliases={}))
    assert Run(runs.complete(tmp_path / "run", layout)).finished
    assert runs.contents(tmp_path / "run") == runs.contents(runs.write(tmp_path / "else" / "run", layout))


# What no layout may say

ABSURD: dict[str, Any] = {
    "no mapping": ["dec.embed"],
    "no text": {"dec.embed": 3},
    "no layer": {"dec.embed": "dec.resid_pre[one]"},
    "a layer written otherwise": {"dec.embed": "dec.resid_pre[00]"},
    "no such site": {"dec.embed": "dec.resid_middle[0]"},
    "an array that is not there": {"dec.embed": "dec.token_embed"},
    "a layer that is not there": {"dec.embed": "dec.resid_pre[3]"},
    "an array without its layers": {"dec.resid_pre": "dec.embed"},
    "of another stack": {"dec.embed": "enc.embed"},
    "of itself": {"dec.embed": "dec.embed"},
    "of an alias": {"dec.embed": "dec.hidden[0]", "dec.hidden[0]": "dec.resid_pre[0]"},
    "in a circle": {"dec.embed": "dec.hidden[0]", "dec.hidden[0]": "dec.embed"},
    "of heads": {"dec.self.q[1]": "dec.self.q[4]"},
    "of matrices": {"dec.self.attn_pattern[1]": "dec.self.attn_pattern[4]"},
}


@pytest.mark.parametrize("aliases", ABSURD.values(), ids=ABSURD)
def test_absurd_aliases_are_refused(aliases: Any, on_disk: Run, folder: Path, tmp_path: Path) -> None:
    data = on_disk.layout.to_json()
    with pytest.raises((ValueError, AttributeError, TypeError)):
        RunLayout.from_json({**data, "aliases": aliases})
    head = unseal((folder / "meta.json").read_bytes(), folder)
    (tmp_path / "meta.json").write_bytes(seal({**head, "layout": {**data, "aliases": aliases}}))
    for read in (Run, verify_run):
        with pytest.raises(Unreadable):
            read(tmp_path)


def test_aliases_of_another_width_are_refused() -> None:
    layout = streams.plan()
    wide = [replace(each, width=5) if each.key.site == "embed" else each for each in layout.arrays]
    data = replace(layout, arrays=tuple(wide), aliases={}).to_json()
    with pytest.raises(ValueError, match="of another size"):
        RunLayout.from_json({**data, "aliases": {"dec.embed": "dec.resid_pre[0]"}})


def test_a_layout_is_what_its_json_says() -> None:
    layout = streams.plan()
    assert RunLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_a_head_that_denies_its_aliases_belongs_to_other_files(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", streams.plan())
    head = unseal((folder / "meta.json").read_bytes(), folder)
    (folder / "meta.json").write_bytes(seal({**head, "layout": {**head["layout"], "aliases": {}}}))
    with pytest.raises(CorruptRun):
        Run(folder)
