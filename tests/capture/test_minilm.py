"""The main job on a real trained model: MiniLM over the built-in texts, against eager passes and foreign readers."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import xarray
import zarr

from tests.capture.asked import Extraction, extracted
from traceformer import Selection, TraceStore

MIDDLE = "encoder.layer.{}.attention.output"
PROJECTIONS = {
    "q": "encoder.layer.{}.attention.self.query",
    "k": "encoder.layer.{}.attention.self.key",
    "v": "encoder.layer.{}.attention.self.value",
}


@pytest.fixture(scope="module", params=["float32", pytest.param("float16", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    asked = Extraction(
        selection=Selection(("attn", "qkv", "hidden", "resid")),
        model=str(minilm),
        dataset="demo",
        limit=None,
        max_seq_len="auto",
        dtype=request.param,
        device="cpu",
        out_dir=tmp_path_factory.mktemp("minilm") / "run",
    )
    return TraceStore(extracted(asked))


def close(found: np.ndarray, expected: torch.Tensor, dtype: str) -> None:
    # float16 rounds to 11 bits; sums in another order make up the rest.
    relative = {"float32": 0.0, "float16": 2.0**-11}[dtype]
    np.testing.assert_allclose(found.astype(np.float32), expected.numpy(), rtol=relative, atol=3e-5)


def test_every_value_of_every_text_equals_an_eager_pass_of_the_single_text(run: TraceStore, minilm: Path) -> None:
    model = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager", dtype=torch.float32).eval()
    seen: dict[str, torch.Tensor] = {}
    for path in (MIDDLE, *PROJECTIONS.values()):
        for layer in range(6):
            name = path.format(layer)
            module = model.get_submodule(name)
            module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output[0]}))
    assert run.n == 64
    for example, ids in zip(run.tokens.example_id, run.tokens.input_ids, strict=True):
        with torch.no_grad():
            out = model(torch.tensor([list(ids)]), output_attentions=True, output_hidden_states=True)
        states = torch.stack(out.hidden_states)[:, 0]
        close(run.attn(example), torch.stack(out.attentions)[:, 0], run.dtype)
        close(run.hidden(example), states, run.dtype)
        close(run.resid_embed(example), states[0], run.dtype)
        close(run.resid(example, "pre_attn"), states[:-1], run.dtype)
        close(run.resid(example, "post_mlp"), states[1:], run.dtype)
        close(run.resid(example, "post_attn"), torch.stack([seen[MIDDLE.format(i)] for i in range(6)]), run.dtype)
        for which, path in PROJECTIONS.items():
            heads = torch.stack([seen[path.format(i)].unflatten(-1, (12, 32)).transpose(0, 1) for i in range(6)])
            close(run.qkv(example, which), heads, run.dtype)


def test_every_group_opens_in_zarr_and_xarray_with_named_dimensions_and_equal_slices(run: TraceStore) -> None:
    groups = sorted(run.folder.glob("*.zarr"))
    assert [group.name for group in groups] == [
        "attn.zarr", "hidden.zarr", "qkv.zarr", "res_embed.zarr", "res_post_attn.zarr", "res_post_mlp.zarr",
        "res_pre_attn.zarr",
    ]  # fmt: skip
    place = run.tokens.iloc[5]
    n, slot = int(place.n_tokens), int(place.slot)
    for group in groups:
        by_zarr, by_xarray = zarr.open_group(group, mode="r"), xarray.open_zarr(group)
        for name, array in by_zarr.arrays():
            assert by_xarray[name].dims == array.metadata.dimension_names
            if name.startswith("token_") or name.endswith(("layer", "head")):  # coordinates
                continue
            key = array.attrs["key"]
            found = run.get(place.example_id, key)
            if "layers" in array.attrs:  # of rows that two arrays share, one has them
                found = found[np.isin(run.spec(key).layers, array.attrs["layers"])]
            if group.name == "attn.zarr":
                theirs = array[5, :, :, :n, :n]
                named = by_xarray[name].isel(example=5, query=slice(n), key=slice(n)).values
            else:
                theirs = array[..., slot : slot + n, :]
                named = by_xarray[name].isel(enc_token=slice(slot, slot + n)).values
            np.testing.assert_array_equal(theirs, found)
            np.testing.assert_array_equal(named, found)
