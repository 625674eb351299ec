"""The sparse model is a model like any other, and no output depends on a byte that it may not."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

from traceformer import TraceStore
from traceformer.bytelm import SparseByteForCausalLM
from traceformer.bytelm.patterns import patterns_from_json
from traceformer.bytelm.presets import build_config
from traceformer.bytelm.tokenizer import ByteTokenizer
from traceformer.cli import main
from traceformer.errors import Unsupported, UsageError
from traceformer.models.tiny import tiny_model

LENGTH = 100


def random_model(seed: int = 0, **changes: Any) -> SparseByteForCausalLM:
    """A tiny sparse model whose attention is far from uniform."""
    torch.manual_seed(seed)
    model = SparseByteForCausalLM(build_config("tiny", "sparse", **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
    return model


@pytest.fixture(scope="module")
def model() -> SparseByteForCausalLM:
    return random_model()


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 256, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def padded() -> Tensor:
    """A mask with a whole row, one with padding on the left, and one with padding on the right."""
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, :30] = 0
    mask[2, 60:] = 0
    return mask


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_logits_and_gradients_are_those_under_the_same_mask_written_out(
    model: SparseByteForCausalLM, ids: Tensor, implementation: str
) -> None:
    found: list[Tensor] = []
    for name in ("byte_sparse", implementation):
        model.set_attn_implementation(name)
        model.zero_grad()
        labels = ids.masked_fill(padded() == 0, -100)
        output = model(input_ids=ids, attention_mask=padded(), labels=labels)
        output.loss.backward()
        gradients = torch.cat(
            [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        )
        found.append(torch.cat([output.logits[padded().bool()].flatten().detach(), gradients]))
    model.set_attn_implementation("byte_sparse")
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_takes_its_place_by_name(model: SparseByteForCausalLM, ids: Tensor) -> None:
    found: list[Tensor] = []
    for name in ("byte_sparse", "byte_sparse_flex"):
        model.set_attn_implementation(name)
        with torch.no_grad():
            found.append(model(input_ids=ids, attention_mask=padded()).logits[padded().bool()])
    model.set_attn_implementation("byte_sparse")
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_no_logit_depends_on_a_future_or_a_forbidden_byte(ids: Tensor) -> None:
    model = random_model(3)
    n_layers, text = model.config.num_hidden_layers, ids[:1]
    patterns = patterns_from_json(model.config.head_patterns or ())
    step = torch.eye(LENGTH, dtype=torch.bool)
    for pattern in patterns:
        for query in range(LENGTH):
            for key in range(query + 1):
                step[query, key] |= query - key <= pattern.window or key in pattern.columns
    reach = torch.linalg.matrix_power(step.double(), n_layers) > 0
    assert not reach.tril().all(), "a test of the past needs bytes that are out of reach"
    with torch.inference_mode():
        before = model(text).logits[0]
        for changed in range(0, LENGTH, 9):
            other = text.clone()
            other[0, changed] ^= 255
            moved = (model(other).logits[0] != before).any(-1)
            assert not (moved & ~reach[:, changed]).any(), changed
            assert moved[changed]


def test_a_padded_row_gives_what_it_gives_alone(model: SparseByteForCausalLM, ids: Tensor) -> None:
    with torch.inference_mode():
        together = model(input_ids=ids, attention_mask=padded()).logits
        for row, part in ((1, slice(30, None)), (2, slice(None, 60))):
            alone = model(input_ids=ids[row : row + 1, part]).logits[0]
            torch.testing.assert_close(together[row, part], alone, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("implementation", ["byte_sparse", "sdpa"])
def test_generation_with_a_cache_is_that_without(
    model: SparseByteForCausalLM, ids: Tensor, implementation: str
) -> None:
    model.set_attn_implementation(implementation)
    mask = padded()[:2]  # the second prompt is padded on the left
    made = [
        model.generate(
            ids[:2], attention_mask=mask, max_new_tokens=12, do_sample=False, use_cache=cached, eos_token_id=0
        )
        for cached in (True, False)
    ]
    model.set_attn_implementation("byte_sparse")
    assert torch.equal(made[0], made[1])


@pytest.mark.parametrize("with_padding", [False, True])
def test_a_text_in_parts_through_a_cache_gives_the_whole_texts_logits(
    model: SparseByteForCausalLM, ids: Tensor, with_padding: bool
) -> None:
    mask = padded()[:2] if with_padding else None
    cache = DynamicCache(config=model.config)
    taken = inspect.signature(model.forward).parameters
    cache_name = "cache" if "cache" in taken else "past_key_values"  # renamed by transformers 5.24
    with torch.inference_mode():
        whole = model(input_ids=ids[:2], attention_mask=mask).logits
        parts = [
            model(
                input_ids=ids[:2, start:stop],
                attention_mask=None if mask is None else mask[:, :stop],
                **{cache_name: cache},
            ).logits
            for start, stop in ((0, 37), (37, 40), (40, 41), (41, LENGTH))
        ]
    seen = padded()[:2].bool() if with_padding else torch.ones(2, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(torch.cat(parts, 1)[seen], whole[seen], rtol=1e-4, atol=2e-5)


def test_saved_and_loaded_it_is_the_same(model: SparseByteForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert stated["model_type"] == "byte_sparse"
    assert stated["head_patterns"][0] == {"window": 8, "columns": []}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is SparseByteForCausalLM
    assert AutoConfig.from_pretrained(tmp_path).head_patterns == model.config.head_patterns
    bare = AutoModel.from_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert torch.equal(loaded.lm_head(bare(ids).last_hidden_state), model(ids).logits)


def test_other_patterns_can_be_written_down(ids: Tensor) -> None:
    own = [{"window": 2, "columns": [0]}] * 7 + [{"window": 127, "columns": []}]
    narrow, wide = random_model(4, head_patterns=own), random_model(4, head_patterns=own[::-1])
    with torch.inference_mode():
        sparse = narrow(ids).logits
        assert not torch.allclose(sparse, wide(ids).logits, atol=1e-3)
        narrow.set_attn_implementation("eager")
        torch.testing.assert_close(narrow(ids).logits, sparse, rtol=1e-4, atol=2e-5)


def test_gradient_checkpointing_and_autocast_train_it(ids: Tensor) -> None:
    model = random_model(5).train()
    losses: list[float] = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_what_cannot_be_computed_right_is_refused(model: SparseByteForCausalLM, ids: Tensor) -> None:
    hole = torch.ones(1, LENGTH, dtype=torch.long)
    hole[0, 40:50] = 0
    with pytest.raises(Unsupported, match="padding within a text"):
        model(input_ids=ids[:1], attention_mask=hole)
    with pytest.raises(Unsupported, match="packed into one row"):
        model(input_ids=ids[:1], position_ids=torch.arange(LENGTH)[None] % 50)
    with pytest.raises(Unsupported, match="no static cache"):
        model(input_ids=ids[:1], attention_mask=torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool))
    with pytest.raises(UsageError, match="covers 99 tokens, but there are 100"):
        model(input_ids=ids[:1], attention_mask=hole[:, :99].fill_(1))
    for implementation in ("byte_sparse", "sdpa"):
        model.set_attn_implementation(implementation)
        with pytest.raises(Unsupported, match="not a static one"):
            model.generate(ids[:1], max_new_tokens=2, cache_implementation="static")
    model.set_attn_implementation("byte_sparse")
    with pytest.raises(ValueError, match="Flash Attention"):
        model.set_attn_implementation("flash_attention_2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_patterns": [{"window": 3}]}, "1 head_patterns for 8 heads"),
        ({"head_patterns": [{"window": "wide"}] * 8}, "pattern of head 0"),
        ({"num_key_value_heads": 2}, "as many key and value heads"),
        ({"attention_dropout": 0.1}, "no dropout"),
    ],
)
def test_a_config_that_sparse_attention_cannot_follow_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        build_config("tiny", "sparse", **changes)


def test_recorded_patterns_are_whole_with_zeros_where_a_head_may_not_look(
    model: SparseByteForCausalLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    ByteTokenizer().save_pretrained(folder)
    texts = tmp_path / "texts.txt"
    texts.write_text("été: a text of some fifty bytes, and then some more of it\nshort\n", encoding="utf-8")
    where = ["--out_dir", str(tmp_path / "run"), "--batch_size", "2", "--device", "cpu"]
    assert (
        main(["extract", "--model", str(folder), "--dataset", str(texts), "--capture", "attn", "hidden", *where]) == 0
    )
    run = TraceStore(capsys.readouterr().out.strip())
    for example in run.ids:
        text = run.text(example).encode()
        assert list(run.encodings(example)["input_ids"]) == list(text)
        found = torch.from_numpy(run.attn(example)).float()
        n = len(text)
        assert found.shape == (2, 8, n, n)
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            output = model(torch.tensor([list(text)]), output_attentions=True)
        model.set_attn_implementation("byte_sparse")
        expected = torch.cat(output.attentions)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # stored as float16
        assert torch.equal(found[expected == 0], torch.zeros_like(found[expected == 0]))
    assert main(["inspect", str(tmp_path / "run"), "--example", "0"]) == 0
    shown = capsys.readouterr().out
    assert "\\xc3" in shown
    assert "été: a text" in shown


def test_a_saved_model_loads_by_name_where_nothing_has_imported_bytelm(tmp_path: Path) -> None:
    tiny_model("byte_sparse").save_pretrained(tmp_path)
    ByteTokenizer().save_pretrained(tmp_path)
    code = (
        "import sys; from traceformer.models.load import load_model; assert 'traceformer.bytelm' not in sys.modules;"
        f"loaded = load_model({str(tmp_path)!r}, device='cpu');"
        "print(type(loaded.model).__name__, loaded.dims.arch, loaded.tokenizer('a b')['input_ids'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "SparseByteForCausalLM dec [97, 32, 98]"
