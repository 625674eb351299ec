"""The Gemma capture's files of generated runs, against plain hooks on the modules of the model that generated them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.capture.asked import Answers, answered
from tests.store import runs
from traceformer import Selection, TraceStore
from traceformer.capture.generation.sampling import Sampling
from traceformer.errors import NotRecorded, RunExists, SelectionError, Unsupported, UsageError
from traceformer.formats.gemma_pt.write import LAYOUTS, write_files
from traceformer.formats.options import ExportOptions

N_NEW = 6
CLOSE = {"rtol": 1e-4, "atol": 2e-5}  # a cached pass and a whole one sum in another order


class Plain:
    """A model of transformers with plain hooks on its modules: all that the Gemma capture keeps, by its names."""

    def __init__(self, folder: Path) -> None:
        import transformers

        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        self.family = self.model.config.model_type
        self.blocks = self.model.transformer.h if self.family == "gpt2" else self.model.model.layers

    def attention(self, ids: list[int]) -> list[np.ndarray]:
        with torch.no_grad():
            out = self.model(torch.tensor([ids]), output_attentions=True, use_cache=False)
        return [each[0].numpy() for each in out.attentions]

    def rows(self, ids: list[int]) -> list[dict[str, np.ndarray]]:
        """Returns for each block what its modules put out, each (token, width)."""
        found: list[dict[str, np.ndarray]] = [{} for _ in self.blocks]
        hooks = []
        for index, block in enumerate(self.blocks):
            own = found[index]

            def keep(name: str, own: dict[str, np.ndarray] = own) -> Callable[..., None]:
                def hook(_: Any, __: Any, output: Any) -> None:
                    own[name] = (output[0] if isinstance(output, tuple) else output)[0].numpy().copy()

                return hook

            def keep_input(name: str, own: dict[str, np.ndarray] = own) -> Callable[..., None]:
                def hook(_: Any, inputs: Any) -> None:
                    own[name] = inputs[0][0].numpy().copy()

                return hook

            for name, module in self._outputs(block).items():
                hooks.append(module.register_forward_hook(keep(name)))
            hooks.append(block.register_forward_pre_hook(keep_input("input")))
        with torch.no_grad():
            self.model(torch.tensor([ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        for own in found:
            own["after_attn"] = own["input"] + own.pop("added")
            if "c_attn" in own:
                own["q_proj"], own["k_proj"], own["v_proj"] = np.split(own.pop("c_attn"), 3, axis=1)
        return found

    def _outputs(self, block: Any) -> dict[str, Any]:
        if self.family == "gpt2":
            mlp = {"up_proj": block.mlp.c_fc, "gelu": block.mlp.act, "down_proj": block.mlp.c_proj}
            return {"c_attn": block.attn.c_attn, "added": block.attn, "output": block, **mlp}
        # What attention adds to the stream: in Gemma 2 the norm after it.
        added = block.post_attention_layernorm if self.family == "gemma2" else block.self_attn
        return {
            **{name: getattr(block.self_attn, name) for name in ("q_proj", "k_proj", "v_proj")},
            **{"up_proj": block.mlp.up_proj, "gelu": block.mlp.act_fn, "down_proj": block.mlp.down_proj},
            **{"added": added, "output": block},
        }


def generated(folder: Path, out: Path, **changes: Any) -> TraceStore:
    options: dict[str, Any] = {"prompt": "Seven ships left the harbour", **changes}
    return TraceStore(
        answered(
            Answers(
                model=str(folder),
                selection=Selection(LAYOUTS["internals"]),
                sampling=Sampling(max_tokens=N_NEW),
                seed=3,
                dtype="float32",
                out_dir=out,
                device="cpu",
                **options,
            )
        )
    )


def exported(store: TraceStore, folder: Path, layout: str, **options: Any) -> dict[str, Any]:
    files = list(write_files(store, folder, ExportOptions(layout=layout, **options)))
    return {str(path.relative_to(folder)): torch.load(path, weights_only=True) for path in files}


@pytest.mark.parametrize("family", ["gemma2", "qwen2", "llama", "gpt2"])
def test_every_tensor_of_both_layouts_is_what_plain_hooks_see(
    family: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder(family)
    store = generated(folder, tmp_path / "run")
    row = store.tokens.iloc[0]
    ids, n = [int(each) for each in row.input_ids], int(row.n_prompt)
    plain = Plain(folder)
    rows, whole = plain.rows(ids), plain.attention(ids)
    contexts = [plain.attention(ids[: n + i]) for i in range(N_NEW)]
    layers = range(len(rows))

    files = exported(store, tmp_path / "internals", "internals")
    assert sorted(files) == [f"adhoc/1_L{layer}.pt" for layer in layers]
    for layer in layers:
        data = files[f"adhoc/1_L{layer}.pt"]
        assert_texts(data, row)
        for part, names in (
            ("attention", ("q_proj", "k_proj", "v_proj")),
            ("mlp", ("up_proj", "gelu", "down_proj")),
            ("residual", ("input", "after_attn", "output")),
        ):
            assert set(data["prompt"][part]) - {"attn_weights"} == set(names)
            for name in names:
                expected = rows[layer][name]
                np.testing.assert_allclose(data["prompt"][part][name], expected[:n], **CLOSE, err_msg=name)
                own = data["response"][part][name]
                if part == "residual":
                    assert own.shape == (N_NEW, 1, expected.shape[1])
                else:
                    assert isinstance(own, list)
                    assert [tuple(each.shape) for each in own] == [(1, expected.shape[1])] * N_NEW
                    own = torch.stack(own)
                np.testing.assert_allclose(own[:, 0], expected[n:], **CLOSE, err_msg=name)
        np.testing.assert_allclose(data["prompt"]["attention"]["attn_weights"], whole[layer][:, :n, :n], atol=1e-5)
        squares = data["response"]["attention"]["attn_weights"]
        assert isinstance(squares, list)
        assert len(squares) == N_NEW
        for i, square in enumerate(squares):
            assert square.shape == (4, n + i, n + i)
            np.testing.assert_allclose(square, contexts[i][layer], atol=1e-5)

    [data] = exported(store, tmp_path / "residual", "residual").values()
    assert_texts(data, row)
    assert list(data["prompt"]["activations"]) == list(data["response"]["activations"]) == [*map(str, layers)]
    names = {"residual_in": "input", "after_attn": "after_attn", "residual_out": "output"}
    for layer in layers:
        for name, own in names.items():
            prompt, response = (data[part]["activations"][str(layer)][name] for part in ("prompt", "response"))
            np.testing.assert_allclose(prompt, rows[layer][own][:n], **CLOSE)
            np.testing.assert_allclose(response, rows[layer][own][n:], **CLOSE)
        mean = data["prompt"]["attention"][f"layer_{layer}"]
        np.testing.assert_allclose(mean, whole[layer][:, :n, :n].mean(0), atol=1e-5)
        squares = data["response"]["attention"][f"layer_{layer}"]
        assert len(squares) == N_NEW
        for i, square in enumerate(squares):
            np.testing.assert_allclose(square, contexts[i][layer].mean(0), atol=1e-5)


def assert_texts(data: dict[str, Any], row: Any) -> None:
    n = row.n_prompt
    for part, span in (("prompt", slice(0, n)), ("response", slice(n, None))):
        assert data[part]["text"] == row[part]
        assert data[part]["tokens"] == list(row.tokens[span])
        assert data[part]["token_ids"] == list(row.input_ids[span])
        assert all(type(each) is int for each in data[part]["token_ids"])


def test_the_file_says_which_position_a_row_is(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    store = generated(tiny_folder("gpt2"), tmp_path / "run")
    [told] = [data["traceformer"] for data in exported(store, tmp_path / "out", "residual").values()]
    assert "position N+i" in told["activations"]
    assert "A[:, :N+i, :N+i]" in told["attention"]
    assert "residual stream between attention and MLP" in told["after_attn"]


def test_a_pattern_is_kept_once_and_its_corners_are_views(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    store = generated(tiny_folder("gpt2"), tmp_path / "run")
    data = next(iter(exported(store, tmp_path / "out", "internals").values()))
    squares = data["response"]["attention"]["attn_weights"]
    stored = {each.untyped_storage().data_ptr() for each in squares}
    assert len(stored) == 1
    names = [("attention", "q_proj"), ("mlp", "gelu"), ("residual", "output")]
    for part, name in names:
        prompt, response = (data[each][part][name] for each in ("prompt", "response"))
        own = response if isinstance(response, torch.Tensor) else response[0]
        assert own.untyped_storage().data_ptr() == prompt.untyped_storage().data_ptr()


SPECS = {
    site: runs.spec(f"dec.{'self.' if site in ('q_proj', 'k_proj', 'v_proj', 'attn_pattern') else ''}{site}")
    for site in LAYOUTS["internals"]
}


def stored(folder: Path, *sites: str, arch: str = "dec") -> TraceStore:
    """A run of layers 1 and 4, of heads 0, 2 and 3 of 4, and of both kv_heads."""
    arrays = [SPECS[site] for site in sites] if arch == "dec" else None
    return TraceStore(runs.write(folder, runs.plan(arch, arrays=arrays, n_examples=2, dtype="float32")))


def test_what_was_not_recorded_is_named_with_what_to_record(tmp_path: Path) -> None:
    store = stored(tmp_path / "a", "resid_pre", "resid_post")
    with pytest.raises(NotRecorded, match=r'needs resid_mid attn_pattern.*`capture="resid_pre resid_mid resid_post'):
        exported(store, tmp_path / "out", "residual")
    store = stored(tmp_path / "b", *LAYOUTS["residual"])
    with pytest.raises(NotRecorded, match=r"all 4 heads of dec\.self\.attn_pattern.*0, 2, 3.*without `heads`"):
        exported(store, tmp_path / "out", "residual")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="no layout 'other'"):
        exported(store, tmp_path / "out", "other")
    with pytest.raises(Unsupported, match="one sequence"):
        exported(stored(tmp_path / "c", arch="encdec"), tmp_path / "out", "residual")


def test_layers_can_be_chosen_among_those_that_are_stored(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    store = generated(tiny_folder("gpt2"), tmp_path / "run")
    assert list(exported(store, tmp_path / "out", "internals", layers=(2, 0))) == ["adhoc/1_L2.pt", "adhoc/1_L0.pt"]
    with pytest.raises(SelectionError, match=r"layer 7 requested; this run holds layers 0, 1, 2 of dec\.self\.q_proj"):
        exported(store, tmp_path / "out", "internals", layers=(0, 7))
    with pytest.raises(RunExists, match="`overwrite=True`"):
        exported(store, tmp_path / "out", "internals", layers=(0,))
    exported(store, tmp_path / "out", "internals", layers=(0,), overwrite=True)


def test_texts_without_a_response_are_all_prompt(tmp_path: Path) -> None:
    arrays = [SPECS[site] for site in ("resid_pre", "resid_mid", "resid_post")]
    pattern = SPECS["attn_pattern"]
    arrays.append(type(pattern)(pattern.key, pattern.layers, (0, 1, 2, 3)))
    store = TraceStore(runs.write(tmp_path / "run", runs.plan(arrays=arrays, n_examples=2, dtype="float32")))
    files = exported(store, tmp_path / "out", "residual")
    assert list(files) == ["run/example-0.pt", "run/example-1.pt"]
    data = files["run/example-1.pt"]
    assert np.array_equal(data["prompt"]["activations"]["4"]["after_attn"], store.get("example-1", "resid_mid", 4))
    assert data["prompt"]["attention"]["layer_1"].shape == (store.length("example-1"),) * 2
    assert data["response"]["activations"]["4"]["residual_in"].shape == (0, 24)
    assert data["response"]["attention"] == {"layer_1": [], "layer_4": []}


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    from traceformer.filenames import file_name

    for name in ("../up", "/etc/x", "..", ".", "a/b", "a\\b", "", "...", "x\0y"):
        made = file_name(name)
        assert Path(made).name == made
        assert made.strip(".")
    assert file_name("prompt-1.a_b") == "prompt-1.a_b"
    assert file_name("a/b") != file_name("a-b")
