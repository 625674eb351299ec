"""NanoChat's checkpoints in transformers' class, against the architecture written down again from its description."""

import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.capture.asked import Extraction, extracted
from tests.models.checkpoints import SIZES, Writer, random_weights
from traceformer import Selection, TraceStore
from traceformer.errors import NotFound, Unreadable, Unsupported, UsageError
from traceformer.models.load import load_model as load_any
from traceformer.models.nanochat import find_checkpoint, load_model, load_nanochat


def nanochat_forward(
    weights: dict[str, torch.Tensor], ids: torch.Tensor, rounded: bool = True
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns logits (token, vocabulary) and each layer's patterns (head, query, key) for one text.

    What nanochat computes on a CPU, as its model file describes it: norms without weights, also right after the
    embedding; a rotation of the two halves of a head by cos and sin in bfloat16, then a norm of queries and keys;
    squared ReLU; a head of its own, and a soft cap of 15.
    """
    weights = {name: tensor.float() for name, tensor in weights.items()}
    n_head, n_kv_head, d = SIZES["n_head"], SIZES["n_kv_head"], SIZES["n_embd"] // SIZES["n_head"]

    def norm(x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (x.shape[-1],))

    angles = torch.outer(torch.arange(len(ids)).float(), 10000 ** -(torch.arange(0, d, 2) / d))
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    if rounded:
        cos, sin = cos.bfloat16(), sin.bfloat16()

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)

    hidden = torch.ones(len(ids), len(ids)).triu(1).bool()
    x = norm(weights["transformer.wte.weight"][ids])
    patterns = []
    for layer in range(SIZES["n_layer"]):

        def linear(name: str, x: torch.Tensor, block: str = f"transformer.h.{layer}") -> torch.Tensor:
            return x @ weights[f"{block}.{name}.weight"].T

        inner = norm(x)
        q = norm(rotated(linear("attn.c_q", inner).view(-1, n_head, d)))
        k = norm(rotated(linear("attn.c_k", inner).view(-1, n_kv_head, d)))
        v = linear("attn.c_v", inner).view(-1, n_kv_head, d)
        k, v = (part.repeat_interleave(n_head // n_kv_head, dim=1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(d)
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        patterns.append(pattern)
        mixed = torch.einsum("hqk,khd->qhd", pattern, v).flatten(1)
        x = x + linear("attn.c_proj", mixed)
        x = x + linear("mlp.c_proj", functional.relu(linear("mlp.c_fc", norm(x))) ** 2)
    return 15 * torch.tanh(norm(x) @ weights["lm_head.weight"].T / 15), patterns


IDS = torch.randint(0, SIZES["vocab_size"], (40,), generator=torch.Generator().manual_seed(7))


@torch.inference_mode()
def test_rotation_qk_norm_and_all_else_are_nanochats_own(write_checkpoint: Writer) -> None:
    write_checkpoint()
    model, _, _ = load_model("sft", "cpu", phase="eval", allow_pickle=True)
    expected, _ = nanochat_forward(random_weights(), IDS)
    assert torch.allclose(model(IDS[None]).logits[0], expected, atol=1e-4)
    # The test can tell: without the rounding alone the logits are elsewhere.
    unrounded, _ = nanochat_forward(random_weights(), IDS, rounded=False)
    assert (unrounded - expected).abs().max() > 1e-2


def test_what_is_recorded_is_what_nanochat_computes(write_checkpoint: Writer, tmp_path: Path) -> None:
    write_checkpoint()
    (tmp_path / "texts.txt").write_text("The capital of France is\nbanana bananas\n", encoding="utf-8")
    request = Extraction(
        selection=Selection(("attn", "logits")),
        model="nanochat:sft",
        dataset=str(tmp_path / "texts.txt"),
        dtype="float32",
        device="cpu",
        allow_pickle=True,
        out_dir=tmp_path / "run",
    )
    store = TraceStore(extracted(request))
    assert store.meta["model"] == "nanochat:sft:d3:650"
    for example_id in store.ids:
        ids = torch.tensor(list(store.encodings(example_id)["input_ids"]))
        logits, patterns = nanochat_forward(random_weights(), ids)
        assert store.get(example_id, "logits") == pytest.approx(logits.numpy(), abs=1e-4)
        assert store.attn(example_id) == pytest.approx(torch.stack(patterns).numpy(), abs=1e-5)


def test_names_with_and_without_the_compilers_prefix_are_the_same_model(write_checkpoint: Writer) -> None:
    write_checkpoint(step=1)
    write_checkpoint(step=2, compiled=False)
    digests = {load_nanochat(f"nanochat:sft:d3:{step}", allow_pickle=True).digest for step in (1, 2)}
    assert len(digests) == 1


def test_the_deepest_model_and_its_last_step_are_meant(write_checkpoint: Writer, base_dir: Path) -> None:
    for tag, step in (("d3", 900), ("d20", 5), ("d20", 650), ("experiment", 1000)):
        write_checkpoint(tag=tag, step=step)
    (base_dir / "chatsft_checkpoints/d20/model_000700_backup.pt").touch()
    found = find_checkpoint("sft")
    assert (found.tag, found.step) == ("d20", 650)
    assert find_checkpoint("sft", "d3").step == 900
    assert str(find_checkpoint("sft", "d20", 5)) == "nanochat:sft:d20:5"


def test_of_models_without_a_depth_the_newest_is_meant(write_checkpoint: Writer) -> None:
    for age, tag in enumerate(("old", "new")):
        path = write_checkpoint(folder="base_checkpoints", tag=tag)
        os.utime(path.parent, (1e9 + age, 1e9 + age))
    assert find_checkpoint("base").tag == "new"


def test_every_stage_has_its_folder(write_checkpoint: Writer) -> None:
    folders = {"base": "base_checkpoints", "mid": "mid_checkpoints", "sft": "chatsft_checkpoints"}
    folders["rl"] = "chatrl_checkpoints"
    for source, folder in folders.items():
        path = write_checkpoint(folder=folder)
        assert find_checkpoint(source).weights == path


def test_a_model_states_where_it_came_from_and_when_to_stop(write_checkpoint: Writer) -> None:
    write_checkpoint()
    loaded = load_any("nanochat:sft:d3", device="cpu", allow_pickle=True)
    assert (loaded.name, loaded.source) == ("nanochat-sft-d3-650", "nanochat:sft:d3:650")
    names = loaded.tokenizer.convert_ids_to_tokens(loaded.model.generation_config.eos_token_id)
    assert names == ["<|assistant_end|>", "<|bos|>"]
    assert loaded.dims.stacks["dec"].n_ctx == SIZES["sequence_len"]
    model, _, meta = load_model("sft", torch.device("cpu"), phase="train", allow_pickle=True)
    assert model.training
    assert meta["val_loss"] == 1.5


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_malicious_checkpoint_is_refused_and_not_run(write_checkpoint: Writer, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    path = write_checkpoint()
    torch.save({**random_weights(), "lm_head.weight": Malicious(trap)}, path)
    with pytest.raises(Unreadable, match="more than tensors"):
        load_model("sft", "cpu", allow_pickle=True)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap works


@pytest.mark.parametrize("name", ["resid_lambdas", "transformer.h.0.attn.ve_gate.weight", "value_embeds.0.weight"])
def test_weights_of_a_later_architecture_are_refused_by_name(write_checkpoint: Writer, name: str) -> None:
    write_checkpoint(weights={**random_weights(), name: torch.ones(3)})
    with pytest.raises(Unsupported, match=name.replace(".", r"\.")):
        load_model("sft", "cpu", allow_pickle=True)


def test_settings_of_another_architecture_are_refused_by_name(write_checkpoint: Writer) -> None:
    write_checkpoint(window_pattern="SSSL")
    with pytest.raises(Unsupported, match="window_pattern SSSL"):
        load_model("sft", "cpu", allow_pickle=True)


def test_a_damaged_checkpoint_is_told(write_checkpoint: Writer) -> None:
    path = write_checkpoint()
    whole = path.read_bytes()
    weights = random_weights()
    weights.pop("lm_head.weight")
    write_checkpoint(weights=weights)
    with pytest.raises(Unreadable, match=r"lacks lm_head\.weight"):
        load_model("sft", "cpu", allow_pickle=True)
    write_checkpoint(n_embd=16)
    with pytest.raises(Unreadable, match="lacks"):
        load_model("sft", "cpu", allow_pickle=True)
    write_checkpoint(n_layer=10**9)  # which nobody waits for
    with pytest.raises(Unreadable, match="its 1000000000 layers have six each"):
        load_model("sft", "cpu", allow_pickle=True)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Unreadable, match="damaged"):
        load_model("sft", "cpu", allow_pickle=True)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(Unreadable):
        load_model("sft", "cpu", allow_pickle=True)


@pytest.mark.parametrize(
    ("meta", "message"),
    [("{", "no JSON"), ("{}", "no model_config"), (json.dumps({"model_config": {"n_layer": 3}}), "states no")],
)
def test_damaged_metadata_is_told(write_checkpoint: Writer, meta: str, message: str) -> None:
    write_checkpoint().with_name("meta_000650.json").write_text(meta, encoding="utf-8")
    with pytest.raises(Unreadable, match=message):
        load_model("sft", "cpu", allow_pickle=True)


def test_a_tokenizer_of_another_model_is_refused(write_checkpoint: Writer) -> None:
    write_checkpoint(weights=random_weights(vocab_size=500), vocab_size=500)
    with pytest.raises(Unreadable, match="another model"):
        load_model("sft", "cpu", allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nanochat:sft:d99", NotFound),
        ("nanochat:sft:d3:7", NotFound),
        ("nanochat:rl", NotFound),
        ("nanochat:dpo", UsageError),
        ("nanochat:sft:..", UsageError),
        ("nanochat:sft:a/b", UsageError),
        ("nanochat:", UsageError),
        ("nanochat:sft:d3:last", UsageError),
    ],
)
def test_a_checkpoint_that_is_not_there_is_told(write_checkpoint: Writer, name: str, error: type[Exception]) -> None:
    write_checkpoint()
    with pytest.raises(error):
        load_any(name)
