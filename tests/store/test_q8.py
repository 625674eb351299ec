"""Rows as bytes: within their bound whatever they hold, massive channels exactly, and read by any reader of Zarr."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore as ts
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.marks import slow
from tests.store import runs
from tests.store.bucket_server import Bucket
from traceformer.errors import ConfigurationChanged, CorruptRun, NumericError, Unreadable, UsageError
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.aliases import Rows
from traceformer.store.commits import verify_run
from traceformer.store.layout import RunLayout
from traceformer.store.leased import LeasedWriter
from traceformer.store.memory import MemoryWriter
from traceformer.store.place import Place, Storage
from traceformer.store.q8 import BLOCK, HALF, Rounded, decode_rows, encode, massive_channels, most_massive, n_blocks
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter

DTYPES: Mapping[str, Any] = {"float16": np.float16, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
LARGEST = {"float16": 65504.0, "float32": 3e38, "bfloat16": 3e38}


def encoded(rows: np.ndarray) -> Rounded:
    bits = rows.view(np.uint16) if rows.dtype == ml_dtypes.bfloat16 else rows
    lead, width = rows.shape[:-1], rows.shape[-1]
    return encode(bits, np.empty((*lead, width), np.int8), np.empty((*lead, n_blocks(width)), np.float16))


def formula(made: Rounded, dtype: Any) -> np.ndarray:
    """The numbers of one plane, by what the documentation says, in float64."""
    steps = np.repeat(made.scales.astype(np.float64), BLOCK, axis=-1)[..., : made.codes.shape[-1]]
    numbers = made.codes * steps
    numbers[:, list(made.channels[0])] = made.massive[0].view(dtype).astype(np.float64)
    return numbers


@st.composite
def some_rows(draw: st.DrawFn, kind: str) -> np.ndarray:
    """Rows of any size: blocks of zeros, channels a thousand times the others, the smallest and largest numbers."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape = (draw(st.integers(1, 5)), draw(st.sampled_from((1, 7, 31, 32, 33, 64, 200))))
    least, most = {"float16": (-26, 15), "float32": (-140, 19), "bfloat16": (-130, 19)}[kind]
    rows = random.standard_normal(shape) * 2.0 ** draw(st.integers(least, most))
    if draw(st.booleans()):
        rows *= 2.0 ** random.integers(-12, 1, shape)
    if draw(st.booleans()):
        rows[:, random.integers(shape[1])] *= 1000
    rows[random.random(shape) < draw(st.sampled_from((0, 0.5, 1)))] = 0
    return rows.clip(-LARGEST[kind], LARGEST[kind]).astype(DTYPES[kind])


@pytest.mark.parametrize("kind", DTYPES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_value_is_within_its_bound_and_massive_channels_are_exact(kind: str, data: st.DataObject) -> None:
    rows = data.draw(some_rows(kind))
    made = encoded(rows)
    numbers, exact = formula(made, rows.dtype), rows.astype(np.float64)
    steps = np.repeat(made.scales.astype(np.float64), BLOCK, axis=-1)[:, : rows.shape[1]]
    assert (np.abs(numbers - exact) <= HALF * steps).all()
    assert np.abs(numbers - exact).max() <= made.rounding.error
    massive = list(made.channels[0])
    assert np.array_equal(numbers[:, massive], exact[:, massive])
    assert (np.abs(made.codes.astype(int)) <= 127).all()

    read = np.empty(rows.shape, np.float32)
    decode_rows(made.codes, made.scales, read)
    read[:, massive] = rows[:, massive]
    assert np.array_equal(read, numbers)  # float32 holds the products


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_codes_of_float16_are_those_of_exact_arithmetic(data: st.DataObject) -> None:
    rows = data.draw(some_rows("float16"))
    made = encoded(rows)
    left = rows.astype(np.float64)
    left[:, list(made.channels[0])] = 0
    for row, codes, scales in zip(left, made.codes, made.scales, strict=True):
        for block, scale in enumerate(scales):
            values = row[block * BLOCK : (block + 1) * BLOCK]
            expected = np.float16(np.abs(values).max() / 127)
            while float(expected) * 127 < np.abs(values).max():
                expected = np.nextafter(expected, np.float16(np.inf))
            assert scale == expected
            if scale:
                assert np.array_equal(np.rint(values / float(scale)), codes[block * BLOCK : (block + 1) * BLOCK])


def test_a_channel_far_beyond_the_median_is_massive_and_the_largest_few_are_kept() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 256)).astype(np.float16)
    assert massive_channels(rows) == ()
    rows[3, 17] = 3000  # in one token
    assert massive_channels(rows) == (17,)
    rows[:, [2, 250]] *= 1000
    assert massive_channels(rows) == (2, 17, 250)
    assert most_massive(256) == 4
    rows[0, 100:104] = (5000, 6000, 7000, 8000)
    assert massive_channels(rows) == (100, 101, 102, 103)
    assert massive_channels(np.zeros((4, 8), np.float16)) == ()
    assert massive_channels(np.zeros((0, 8), np.float16)) == ()


def test_a_value_beyond_all_scales_is_kept_if_its_channel_is_and_refused_if_there_are_too_many() -> None:
    rows = np.ones((3, 64), np.float32)
    rows[1, 5] = 1e30  # its own block's scale would be infinite
    assert encoded(rows).channels == ((5,),)
    with pytest.raises(OverflowError):
        encoded(np.full((3, 64), 1e30, np.float32))


# Runs

LAYERS, WIDTH = (0, 2), 96
RESID = ArraySpec(ArrayKey.parse("dec.resid_post"), LAYERS, (), WIDTH)
Q = ArraySpec(ArrayKey.parse("dec.self.q"), LAYERS, (1, 3), 40)
EMBED = ArraySpec(ArrayKey.parse("dec.embed"), (), (), WIDTH)
ARRAYS = (RESID, Q, EMBED)
LENGTHS = (5, 64, 1, 30, 7, 12)


def rows_of(spec: ArraySpec, example: int) -> np.ndarray:
    """Rows with a massive channel in the first shard's layer 2, and another in the last example's embedding."""
    random = np.random.default_rng([example, spec.width])
    lead = (len(spec.layers),) * bool(spec.layers) + (len(spec.heads),) * bool(spec.heads)
    rows = random.standard_normal((*lead, LENGTHS[example], spec.width)).astype(np.float16)
    if spec is RESID and example < 4:
        rows[1, :, 33] *= 500
    if spec is EMBED and example == 5:
        rows[0, 7] = 4000
    if spec is Q and example > 3:
        rows[1, 0, :, 39] += 3000
    return rows


def plan(**options: Any) -> RunLayout:
    chosen: dict[str, Any] = {
        "n_examples": len(LENGTHS),
        "longest": {"dec": 64},
        "shard_examples": 4,
        "rows_codec": "q8",
        **options,
    }
    return RunLayout.plan(arch="dec", arrays=options.pop("arrays", ARRAYS), **chosen)


def fill(writer: RunWriter | MemoryWriter, most: int | None = None) -> None:
    for shard in list(writer.pending)[:most]:
        examples, buffer = writer.layout.shard_range(shard), writer.buffer()
        buffer.begin({"dec": [LENGTHS[example] for example in examples]})
        for spec in ARRAYS:
            for b, example in enumerate(examples):
                values = rows_of(spec, example)
                if writer.layout.dtype == "bfloat16":
                    values = values.astype(ml_dtypes.bfloat16).view(np.uint16)
                buffer.put(spec, b, values)
        table = pa.table({"example_id": [f"e{example}" for example in examples]})
        writer.commit(shard, buffer, table)


def written(folder: Path, **options: Any) -> Run:
    with RunWriter.create(folder, plan(**options), runs.META, digest=runs.DIGEST) as writer:
        fill(writer)
        return Run(writer.finish())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return written(tmp_path_factory.mktemp("runs") / "run")


def test_a_run_gives_every_value_within_the_bound_that_it_states(run: Run) -> None:
    for spec in ARRAYS:
        error = run.largest_error(spec.key)
        assert 0 < error < 0.04
        for example in range(run.n):
            read, exact = run.get(example, spec.key), rows_of(spec, example)
            assert read.dtype == np.float32
            assert read.shape == exact.shape
            assert np.abs(read - exact.astype(np.float32)).max() <= error
    assert np.array_equal(run.get(0, "resid_post", 2)[:, 33], rows_of(RESID, 0)[1, :, 33])
    assert np.array_equal(run.get(5, "embed")[:, 7], rows_of(EMBED, 5)[:, 7])
    assert np.array_equal(run.get(4, "q", 2, 1)[:, 39], rows_of(Q, 4)[1, 0, :, 39])


def test_rows_together_are_those_of_the_examples(run: Run) -> None:
    for spec, layer in ((RESID, 2), (Q, 0), (EMBED, None)):
        each = [run.get(example, spec.key, layer) for example in range(run.n)]
        wanted = np.concatenate(
            [own.transpose(1, 0, 2).reshape(own.shape[1], -1) if own.ndim == 3 else own for own in each]
        )
        assert np.array_equal(run.activations(spec.key, layer), wanted)
        assert np.array_equal(np.concatenate([*run.stream(spec.key, layer, 9)]), wanted)
        mixed = np.concatenate([*run.stream(spec.key, layer, 9, shuffle=True, seed=3)])
        assert np.array_equal(np.sort(mixed, axis=0), np.sort(wanted, axis=0))
    heads = dict(run.head("q", 2, 3))
    assert all(np.array_equal(heads[f"e{example}"], run.get(example, "q", 2, 3)) for example in range(run.n))
    tree: Any = run.to_xarray()
    assert np.array_equal(tree["dec_res_post_mlp"]["x"].sel(layer=2).values, run.activations("resid_post", 2))
    assert np.array_equal(
        tree["dec_self_qkv"]["q"].isel(head=1, d_head=[0, 39], dec_token=slice(3, 9)).values,
        np.stack([run.activations("q", layer, 3)[3:9][:, [0, 39]] for layer in LAYERS]),
    )


def by_zarr(path: str) -> np.ndarray:
    return np.asarray(zarr.open_array(path, mode="r")[...])


def by_tensorstore(path: str) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    return ts.open(spec, open=True).result().read().result()


@pytest.mark.parametrize("reader", [by_zarr, by_tensorstore])
@pytest.mark.parametrize("codec", ["none", slow("zstd"), slow("lz4")])
def test_any_reader_of_zarr_decodes_it_by_the_formula(run: Run, tmp_path: Path, reader: Any, codec: str) -> None:
    plain = run if codec == "none" else written(tmp_path / "run", codec=codec)
    folder = plain.folder
    assert isinstance(folder, Path)
    slots = pq.read_table(folder / "tokens.parquet")["slot"].to_pylist()
    for spec in ARRAYS:
        path = f"{folder}/{plain.layout.array_path(spec.key)}"
        codes, scales, kept, channels = (
            reader(f"{path}{part}") for part in ("", "_scale", "_massive", "_massive_channel")
        )
        assert (codes.dtype, scales.dtype, kept.dtype, channels.dtype) == (np.int8, np.float16, np.float16, np.int32)
        numbers = codes * np.repeat(scales.astype(np.float32), 32, axis=-1)[..., : codes.shape[-1]]
        for at in np.ndindex(channels.shape):  # (shard[, layer, head], place)
            if channels[at] >= 0:
                shard, *lead, place = at
                own = slice(shard * 256, (shard + 1) * 256)  # 4 examples of 64 tokens
                numbers[(*lead, own, channels[at])] = kept[(*lead, own, place)]
        for example, slot in enumerate(slots):
            own = numbers[..., slot : slot + LENGTHS[example], :]
            assert np.array_equal(own, run.get(example, spec.key))


def test_what_zarr_says_of_it(run: Run) -> None:
    group = zarr.open_group(f"{run.folder}/dec_res_post_mlp.zarr", mode="r")
    codes: Any = group["x"]
    assert codes.attrs["stored_dtype"] == "q8"
    assert codes.attrs["scale"] == "x_scale"
    assert codes.attrs["largest_error"] == run.largest_error("resid_post")
    assert "x_massive" in str(codes.attrs["value"])
    assert {*group.array_keys()} >= {"x", "x_scale", "x_massive", "x_massive_channel", "layer", "token_example"}
    assert group["x_massive_channel"][:, :, 0].tolist() == [[-1, 33], [-1, -1]]  # pyright: ignore


def test_records_name_the_massive_channels_and_only_shards_that_have_some_have_their_file(run: Run) -> None:
    folder = run.folder
    assert isinstance(folder, Path)
    records = [json.loads((folder / f"commits/{shard}.json").read_text())["rounded"] for shard in (0, 1)]
    assert records[0]["dec.resid_post"]["massive"] == [[], [33]]
    assert records[1]["dec.resid_post"]["massive"] == [[], []]
    assert records[1]["dec.embed"]["massive"] == [[7]]
    assert records[1]["dec.self.q"]["massive"] == [[], [], [39], []]
    assert [path.name for path in (folder / "dec_res_post_mlp.zarr/x_massive").glob("c.*")] == ["c.0.0.0"]


def test_two_runs_and_a_resumed_one_have_the_same_bytes(run: Run, tmp_path: Path) -> None:
    whole = runs.contents(run.folder)  # pyright: ignore[reportArgumentType]
    assert runs.contents(written(tmp_path / "again/run").folder) == whole  # pyright: ignore[reportArgumentType]
    with RunWriter.create(tmp_path / "parts/run", plan(), runs.META, digest=runs.DIGEST) as writer:
        fill(writer, 1)
        half = writer.folder / "dec_embed_leftover"
        for path in (
            "dec_res_embed.zarr/x/c.1.0",
            "dec_res_embed.zarr/x_scale/c.1.0",
            "dec_res_embed.zarr/x_massive/c.1.0",
        ):
            (writer.folder / path).parent.mkdir(exist_ok=True)
            (writer.folder / path).write_bytes(b"half a shard")
        assert not half.exists()
    unfinished = Run(tmp_path / "parts/_tmp_run")
    assert np.array_equal(unfinished.get(1, "resid_post"), run.get(1, "resid_post"))
    with RunWriter.resume(tmp_path / "parts/run", plan(), runs.META, digest=runs.DIGEST) as writer:
        fill(writer)
        assert runs.contents(writer.finish()) == whole


def test_it_is_part_of_what_must_agree_to_go_on(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", plan(), runs.META, digest=runs.DIGEST) as writer:
        fill(writer, 1)
    with pytest.raises(ConfigurationChanged, match="rows_codec"):
        RunWriter.resume(tmp_path / "run", plan(rows_codec="exact"), runs.META, digest=runs.DIGEST)


def test_in_memory_it_is_the_same_run_and_saved_it_is_the_same_bytes(run: Run, tmp_path: Path) -> None:
    with MemoryWriter(plan(), runs.META, digest=runs.DIGEST) as writer:
        fill(writer)
        kept = writer.finish()
    for spec in ARRAYS:
        assert kept.largest_error(spec.key) == run.largest_error(spec.key)
        assert all(np.array_equal(kept.get(example, spec.key), run.get(example, spec.key)) for example in range(run.n))
    assert runs.contents(kept.save(tmp_path / "one/run").folder) == runs.contents(run.folder)  # pyright: ignore
    copy = run.save(tmp_path / "two/run")
    assert copy.verify().ok
    assert np.array_equal(copy.activations("q", 2), run.activations("q", 2))


def test_layers_that_are_another_arrays_are_read_there(tmp_path: Path) -> None:
    aliased = RunLayout.plan(
        arch="dec",
        arrays=(RESID, ArraySpec(ArrayKey.parse("dec.hidden"), (0, 1, 2, 3), (), WIDTH), EMBED),
        n_examples=2,
        longest={"dec": 64},
        rows_codec="q8",
    )
    key = ArrayKey.parse("dec.hidden")
    aliases = {
        Rows(key, 0): Rows(EMBED.key, None),
        Rows(key, 1): Rows(RESID.key, 0),
        Rows(key, 3): Rows(RESID.key, 2),
    }
    layout = Storage().once(aliased, aliases)
    rows = {spec.key: [rows_of(spec, example) for example in range(2)] for spec in (RESID, EMBED)}
    rows[key] = [rows_of(EMBED, example)[None] * 2 for example in range(2)]  # layer 2, its own
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": list(LENGTHS[:2])})
        for spec in layout.kept:
            for b in range(2):
                buffer.put(spec, b, rows[spec.key][b])
        writer.commit(0, buffer, pa.table({"example_id": ["a", "b"]}))
        run = Run(writer.finish())
    for example in range(2):
        hidden = run.get(example, "hidden")
        assert np.array_equal(hidden[0], run.get(example, "embed"))
        assert np.array_equal(hidden[1], run.get(example, "resid_post", 0))
        assert np.array_equal(hidden[3], run.get(example, "resid_post", 2))
        assert np.array_equal(hidden[3][:, 33], rows_of(RESID, example)[1, :, 33])
        assert np.array_equal(hidden[2], run.get(example, "hidden", 2))
    assert np.array_equal(run.activations("hidden", 3), run.activations("resid_post", 2))
    assert run.largest_error("hidden") >= run.largest_error("embed")


def test_what_is_no_number_or_too_large_is_refused(tmp_path: Path) -> None:
    for value, what in (
        (np.nan, "is NaN in example 1"),
        (np.inf, "is infinite in example 1"),
        (1e9, "does not fit into q8"),
    ):
        writer = RunWriter.create(
            tmp_path / "run", plan(dtype="float32"), runs.META, digest=runs.DIGEST, overwrite=True
        )
        with writer:
            buffer = writer.buffer()
            buffer.begin({"dec": list(LENGTHS[:4])})
            buffer.put(RESID, 1, np.full((2, LENGTHS[1], WIDTH), value, np.float32))
            with pytest.raises(NumericError, match=what):
                writer.commit(0, buffer, pa.table({"example_id": [f"e{example}" for example in range(4)]}))


def test_it_is_for_rows_of_activations(tmp_path: Path) -> None:
    layout = runs.plan("dec", rows_codec="q8")
    rounded = {spec.key.site for spec in layout.arrays if layout.stored(spec) == "q8"}
    assert rounded == {
        *("hidden", "embed", "resid_mid", "mlp_norm", "final_norm", "mlp_up", "mlp_down", "mlp_out", "token_embed"),
        *("q", "k", "v", "z", "attn_norm", "attn_out", "k_proj"),
    }
    with pytest.raises(UsageError, match="no rows to store as q8"):
        runs.plan("dec", arrays=[runs.spec("dec.self.attn_pattern"), runs.spec("dec.lens_topk")], rows_codec="q8")
    for name, codec in (("rows_codec", "sqrt8"), ("attn_codec", "q8")):
        storage = Storage()
        object.__setattr__(storage, name, codec)  # as a notebook would, where nothing checks annotations
        with pytest.raises(UsageError, match=name):
            Place(folder=tmp_path / "x", storage=storage).check()


def test_a_version_that_does_not_know_it_refuses_the_run_and_so_does_this_one_of_a_codec_to_come(run: Run) -> None:
    stated = run.layout.to_json()
    assert "rows_codec" not in plan(rows_codec="exact").to_json()  # what older versions read, they read on
    for more in ({"codec_of_tomorrow": "q4"}, {"rows_codec": "q4"}):
        with pytest.raises((TypeError, ValueError)):  # which a head's reader calls Unreadable
            RunLayout.from_json({**stated, **more})


@pytest.mark.parametrize("name", [slow("x"), slow("x_scale"), "x_massive"])
def test_damage_of_each_file_is_noticed(run: Run, tmp_path: Path, name: str) -> None:
    copy = written(tmp_path / "run")
    path = tmp_path / f"run/dec_res_post_mlp.zarr/{name}/c.0.0.0"
    path.write_bytes(path.read_bytes()[:-1])
    assert [problem.path.name for problem in verify_run(tmp_path / "run")] == ["c.0.0.0"]
    with pytest.raises(CorruptRun):
        copy.get(0, "resid_post")
    path.unlink()
    with pytest.raises(CorruptRun, match="missing"):
        Run(tmp_path / "run").activations("resid_post", 2)


def test_a_record_that_cannot_be_the_runs_is_refused(run: Run, tmp_path: Path) -> None:
    from traceformer.store.files import seal

    written(tmp_path / "run")
    path = tmp_path / "run/commits/0.json"
    record = json.loads(path.read_text())
    record.pop("sha256", None)
    for massive in ([[], [WIDTH]], [[]], [[], [3, 2]], [[], [1.5]], "no"):
        record["rounded"]["dec.resid_post"]["massive"] = massive
        path.write_bytes(seal(dict(record)))
        with pytest.raises((CorruptRun, Unreadable)):
            Run(tmp_path / "run")


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_same(run: Run, bucket: Bucket) -> None:
    place = bucket.place("runs/run")
    with LeasedWriter.create(place, plan(), runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.claims():
            examples, buffer = writer.layout.shard_range(shard), writer.buffer()
            buffer.begin({"dec": [LENGTHS[example] for example in examples]})
            for spec in ARRAYS:
                for b, example in enumerate(examples):
                    buffer.put(spec, b, rows_of(spec, example))
            writer.commit(shard, buffer, pa.table({"example_id": [f"e{example}" for example in examples]}))
        writer.finish()
    assert bucket.contents(place) == runs.contents(run.folder)  # pyright: ignore[reportArgumentType]
    remote = Run(str(place))
    for spec in ARRAYS:
        assert all(
            np.array_equal(remote.get(example, spec.key), run.get(example, spec.key)) for example in range(run.n)
        )
    assert np.array_equal(remote.activations("q", 2), run.activations("q", 2))
