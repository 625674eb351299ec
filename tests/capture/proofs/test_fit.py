"""Rows that are found by watching a model, or chosen by hand, and what is recorded by them."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests.families import KEPT
from tests.marks import slow
from tests.odd_model import OddForCausalLM, odd_model
from traceformer.capture.edits.kinds import zero
from traceformer.capture.edits.session import edit
from traceformer.capture.encoding import Encoded
from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.capture.plan import plan_arrays
from traceformer.capture.proofs.check import batch_of, random_examples
from traceformer.capture.proofs.find import find_row
from traceformer.capture.proofs.fit import fit, fitted
from traceformer.capture.proofs.tested import Kept
from traceformer.capture.provenance import model_configuration
from traceformer.capture.recorder import Recorder
from traceformer.errors import NotFound, Unsupported
from traceformer.models import family
from traceformer.models.families import FAMILIES, architecture_of
from traceformer.models.family import Architecture
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.models.written import written_architecture, written_row
from traceformer.progress import Progress
from traceformer.questions.lens import lens
from traceformer.sites import Selection
from traceformer.store.run import Run

OF_ANOTHER_SHAPE = ("q_proj", "k_proj", "q", "k", "v", "z", "mlp_out")  # in some of Gemma 4's layers, or in all
_SHARED = {"shared_up", "shared_act", "shared_mid", "shared_out"}
NOT_FOUND = {  # what the families' own rows have besides
    "deepseek_v3_latent_queries": _SHARED,
    "qwen3_next": {*_SHARED, "router_logits", "expert_topk", "expert_weight"},
}
IN_ATTENTION = ("q", "k", "v", "attn_scores", "attn_pattern", "z")
TEXTS = [[*range(5, 5 + length)] for length in (9, 21, 14, 3)]


@pytest.fixture
def ids_file(tmp_path: Path) -> Path:
    path = tmp_path / "ids.jsonl"
    path.write_text("\n".join(f'{{"ids": {text}}}' for text in TEXTS))
    return path


def recorded(model: Any, ids_file: Path, capture: str = "all", **options: Any) -> Run:
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    return record(loaded, str(ids_file), capture, ids_column="ids", dtype="float32", **options)


def by_hand(model: OddForCausalLM, ids: list[int]) -> dict[str, Any]:
    """The odd model's forward once more, a text at a time, with nothing but tensors."""
    tower: Any = model.tower
    x = tower.words.weight[ids] + tower.steps.weight[: len(ids)]
    seen: dict[str, list[Any]] = {}

    def keep(**values: torch.Tensor) -> None:
        for site, value in values.items():
            seen.setdefault(site, []).append(value.numpy())

    def calm(norm: Any, rows: torch.Tensor) -> torch.Tensor:
        return norm.scale * rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    hidden = [x]
    for floor in tower.floors:
        normed = calm(floor.calm, x)
        q, k, v = (
            (normed @ part.weight.T + part.bias).unflatten(-1, (4, 8)).transpose(0, 1)
            for part in (floor.ear.asks, floor.ear.tells, floor.ear.gives)
        )
        scores = q @ k.transpose(1, 2) / 8**0.5
        pattern = scores.masked_fill(torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        z = pattern @ v
        heard = z.transpose(0, 1).flatten(1) @ floor.ear.says.weight.T + floor.ear.says.bias
        grown = calm(floor.quiet, x + heard) @ floor.grows.weight.T + floor.grows.bias
        bent = torch.nn.functional.gelu(grown)
        out = bent @ floor.shrinks.weight.T + floor.shrinks.bias
        keep(resid_pre=x, attn_norm=normed, q=q, k=k, v=v, attn_scores=scores, attn_pattern=pattern, z=z)
        keep(attn_out=heard, resid_mid=x + heard, mlp_up=grown, mlp_act=bent, mlp_out=out, resid_post=x + heard + out)
        x = x + heard + out
        hidden.append(x)
    hidden[-1] = calm(tower.roof, x)
    whole: dict[str, Any] = {site: np.stack(layers) for site, layers in seen.items()}
    return {**whole, "hidden": torch.stack(hidden).numpy(), "logits": (hidden[-1] @ model.speaks.weight.T).numpy()}


def test_a_class_that_nobody_knows_is_recorded_as_its_forward_has_it(ids_file: Path) -> None:
    model, told = odd_model(), list[Progress]()
    run = recorded(model, ids_file, progress=told.append)
    notices = [each.message for each in told if each.is_notice]
    assert notices == ["no row for oddity: found one and proved 83 facts on your texts"]
    assert run.about.row is not None
    assert (run.about.row["how"], run.about.row["n_facts"], run.about.row["like"]) == ("found one", 83, None)
    assert run.about.row["error"] < 1e-5
    assert run.about.row["tokens"] == 3 + 14 + 21
    assert "dec.resid_mid equals resid_pre + attn_out, normed in post-norm blocks" in run.about.row["facts"]
    with torch.no_grad():
        for example, ids in enumerate(TEXTS):
            for site, expected in by_hand(model, ids).items():
                key = next(spec.key for spec in run.layout.arrays if spec.key.site == site)
                found = np.squeeze(run.get(run.example_id(example), key, dtype="float32"))
                np.testing.assert_allclose(found, np.squeeze(expected), atol=2e-5, err_msg=site)


def test_of_a_block_that_adds_another_sum_the_stream_is_recorded_and_that_part_is_not(ids_file: Path) -> None:
    model = odd_model(adds=1.01)
    floors: Any = model.tower.floors
    run = recorded(model, ids_file, "resid attn_out")
    mid = torch.from_numpy(run.activations("resid_mid", 1))
    with torch.no_grad():
        post = mid + 1.01 * floors[1].shrinks(floors[1].bends(floors[1].grows(floors[1].quiet(mid))))
    np.testing.assert_allclose(run.activations("resid_post", 1), post.numpy(), atol=1e-5)
    with pytest.raises(Unsupported, match="mlp_out"):
        recorded(model, ids_file, "mlp_out")


def test_what_does_not_hold_is_refused_before_anything_is_written(ids_file: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="and none that holds") as refused:
        recorded(odd_model(across_batch=True), ids_file, "attn resid", out=tmp_path / "run")
    assert "is the same in a padded batch as alone" in refused.value.why
    assert [path.name for path in tmp_path.iterdir()] == ["ids.jsonl"]


@pytest.mark.slow
def test_a_sum_that_is_another_in_one_block_is_refused(ids_file: Path) -> None:
    model: Any = odd_model()
    model.tower.floors[2].adds = 1.01
    with pytest.raises(Unsupported, match="and none that holds") as refused:
        recorded(model, ids_file)
    assert "dec.resid_post it does not hold that it equals resid_mid + mlp_out" in refused.value.why


@pytest.mark.filterwarnings("ignore:oddity has no .*left out")
@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"own_attention": True}, "does not pass through transformers' attention function"),
        slow({"from_block": True}, "its blocks call the attention function themselves"),
    ],
)
def test_attention_out_of_sight_leaves_the_stream(odd: dict[str, bool], why: str, ids_file: Path) -> None:
    run = recorded(odd_model(**odd), ids_file)
    sites = {spec.key.site for spec in run.layout.arrays}
    assert sites >= {"embed", "resid_pre", "attn_norm", "attn_out", "resid_mid", "mlp_mid", "resid_post", "hidden"}
    assert not sites & {"q", "k", "v", "z", "attn_pattern"}
    with pytest.raises(Unsupported, match=why):
        recorded(odd_model(**odd), ids_file, "attn_pattern")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lilt", "zaya"])
def test_a_stream_that_is_not_all_that_blocks_read_is_recorded_and_not_edited(
    family: str, ids_file: Path, tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder(family)
    run = recorded(load_model(str(folder)), ids_file, "resid_pre")
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        own = plain(torch.tensor([TEXTS[1]]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(run.activations("resid_pre", 1)[run.token_examples() == 1], own[1][0].numpy(), atol=1e-5)
    model = fitted(load_model(str(folder)), [Encoded({run.layout.stacks[0]: text}, {}, None) for text in TEXTS])
    with (
        pytest.raises(Unsupported, match=r"resid_pre of .* cannot be edited; it is not all that blocks read"),
        edit(model, zero("resid_pre", 1)),
    ):
        recorded(model, ids_file, "resid_post")


@pytest.mark.slow
def test_a_prompt_that_a_model_puts_before_its_texts_is_not_taken_for_padding(
    ids_file: Path, tiny_folder: Callable[..., Path]
) -> None:
    with pytest.raises(Unsupported, match=r"what should be enc\.resid_pre of layer 0 has shape"):
        recorded(load_model(str(tiny_folder("cpmant"))), ids_file, "resid_pre")


def test_an_encoder_is_one_by_what_its_tokens_see(ids_file: Path) -> None:
    run = recorded(odd_model(looks_ahead=True), ids_file, "attn_pattern resid_post")
    assert [str(spec.key) for spec in run.layout.arrays] == ["enc.self.attn_pattern", "enc.resid_post"]
    assert np.triu(run.get(run.example_id(0), "enc.self.attn_pattern", 0), 1).max() > 0.05


def test_what_is_as_wide_as_the_config_does_not_say_is_refused_by_name(ids_file: Path) -> None:
    model = odd_model()
    model.config.intermediate_size = 40
    with pytest.raises(Unsupported, match="no mlp_mid; it is 48 wide, and the config says 40"):
        recorded(model, ids_file, "mlp_mid")


def test_a_row_chosen_by_hand_is_proved_like_any_other(ids_file: Path) -> None:
    tiny = tiny_model("mistral")
    run = recorded(load_model(tiny, like="llama"), ids_file, "attn resid")
    assert run.about.row is not None
    assert (run.about.row["like"], run.about.row["how"]) == ("llama", "took that of llama, as asked")
    row = replace(architecture_of({}, "llama"), readout=FAMILIES["llama"].readout)
    assert Architecture.from_json(run.about.row["architecture"]) == row
    own = recorded(tiny, ids_file, "attn resid")
    assert own.about.row is None
    for spec in own.layout.arrays:
        for layer in spec.layers or (None,):
            np.testing.assert_array_equal(run.get("1", spec.key, layer), own.get("1", spec.key, layer))


def test_a_row_that_does_not_fit_is_refused(ids_file: Path) -> None:
    with pytest.raises(Unsupported, match="no row for llama") as refused:
        recorded(load_model(tiny_model("llama"), like="gpt2"), ids_file)
    assert "has no module" in refused.value.why
    with pytest.raises(NotFound, match="no row of a family 'lama'") as unknown:
        load_model("byte", like="lama")
    assert unknown.value.hint.split(" or ")[0] == "llama"
    with pytest.raises(NotFound, match="no row of a family 'nosuch'") as unknown:
        load_model("byte", like="nosuch")
    assert len(unknown.value.hint.split(" or ")) == 3


@pytest.mark.parametrize(("like", "holds"), [("mistral", True), slow("gemma", False), slow(None, False)])
def test_a_model_is_read_out_as_the_family_that_was_chosen_by_hand_where_that_holds(
    like: str | None, holds: bool, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("llama")
    own = lens(load_model(folder, device="cpu"), "Seven ships left")
    monkeypatch.delitem(FAMILIES, "llama")  # pyright: ignore[reportArgumentType]
    loaded = load_model(folder, device="cpu", like=like)
    run = record(loaded, ["Seven ships left"], "resid_post", dtype="float32")
    asked: list[Callable[[], Any]] = [
        lambda: lens(run),
        lambda: lens(run, model=loaded),
        lambda: lens(loaded, "Seven ships left"),
        lambda: lens(record(loaded, ["Seven ships left"], lens_top_k=3, dtype="float32")),
    ]
    for ask in asked:
        if holds:
            np.testing.assert_allclose(ask().top_probabilities, own.top_probabilities, atol=1e-6)
        else:
            with pytest.raises(Unsupported, match=r"no readout of model type 'llama'.*`like=FAMILY`"):
                ask()
    assert run.about.row is not None
    assert ("readout" in run.about.row["architecture"]) == holds
    if holds:
        row = Architecture.from_json(run.about.row["architecture"])
        assert row.readout == FAMILIES["mistral"].readout
        assert row.to_json() == run.about.row["architecture"]


@pytest.mark.parametrize(
    ("family", "setting", "left_out"),
    [("mpnet", {"pad_token_id": 5}, ()), slow("gemma4_text", {"use_double_wide_mlp": True}, OF_ANOTHER_SHAPE)],
)
def test_a_config_that_its_familys_row_is_not_right_for_is_proved_like_any_other(
    family: str, setting: dict[str, Any], left_out: tuple[str, ...], ids_file: Path
) -> None:
    model = tiny_model(family, **setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left out
        run = recorded(model, ids_file)
    assert run.about.row is not None
    named = {each.partition(" of this shape")[0] for each in run.about.left_out or ()}
    assert named - {"attn_norm", "mlp_norm", "final_norm"} == set(left_out)
    with torch.no_grad():
        for example, ids in enumerate(TEXTS):
            own = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for layer in range(2):
                np.testing.assert_allclose(run.get(example, "resid_post", layer), own[layer + 1][0], atol=2e-5)


@pytest.mark.slow
def test_what_a_config_says_otherwise_is_named_where_no_row_holds(ids_file: Path) -> None:
    with pytest.raises(Unsupported, match=r"config says pad_token_id 5: it counts positions from token 1"):
        recorded(load_model(tiny_model("mpnet", pad_token_id=5), like="distilbert"), ids_file)


@pytest.mark.slow
def test_an_interrupted_run_with_a_found_row_resumes_to_the_same_bytes(ids_file: Path, tmp_path: Path) -> None:
    def stop_after_2(progress: Progress) -> None:
        if progress.examples_done >= 2:
            raise KeyboardInterrupt

    storage: dict[str, Any] = {"shard_examples": 1, "batch_size": 1}
    whole = recorded(odd_model(), ids_file, "attn resid", out=tmp_path / "whole", **storage)
    with pytest.raises(KeyboardInterrupt):
        recorded(odd_model(), ids_file, "attn resid", out=tmp_path / "again", progress=stop_after_2, **storage)
    assert 0 < Run(tmp_path / "_tmp_again").n < len(TEXTS)
    resumed = recorded(odd_model(), ids_file, "attn resid", out=tmp_path / "again", resume=True, **storage)
    assert resumed.about.row == whole.about.row
    files = sorted(path.relative_to(whole.folder) for path in whole.folder.rglob("c.*"))
    assert files
    for path in files:
        assert (whole.folder / path).read_bytes() == (resumed.folder / path).read_bytes()
    assert resumed.verify().ok


@pytest.mark.slow
def test_a_row_is_found_again_so_that_a_run_can_be_resumed() -> None:
    rows = [Encoded({"dec": text}, {"dec": []}, None) for text in TEXTS]
    told: list[Any] = []
    for model in (load_model(odd_model()), load_model(odd_model())):
        model = fitted(model, rows)
        assert fitted(model, rows) is model
        plan = plan_arrays(Selection(("resid_pre",)), model.model, architecture=model.architecture)
        told.append(model_configuration(model, plan))
    assert told[0] == told[1]
    assert told[0]["row"]["stacks"]["dec"]["blocks"] == "floors"


@pytest.mark.slow
def test_a_model_of_a_hidden_family_generates_by_the_row_that_it_has(
    byte: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = generate(byte, "return the", "resid_post", max_tokens=4)
    monkeypatch.delitem(FAMILIES, byte.config.model_type)  # pyright: ignore[reportArgumentType]
    found = generate(byte, "return the", "resid_post", max_tokens=4)
    assert found.about.row is not None
    assert own.about.row is None
    [example] = own.tokens["example_id"]
    np.testing.assert_array_equal(found.get(example, "resid_post"), own.get(example, "resid_post"))


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "modernbert", "t5", "bart", "mixtral"])
def test_a_hidden_row_is_found_as_it_was_written_down(name: str) -> None:
    model = tiny_model(name)
    examples = random_examples(model.config)[:2]
    found, own = find_row(model, examples), architecture_of(model.config)
    assert {str(key) for site in Selection(("all",)).sites for key in found.keys(site)} == {
        str(key) for site in Selection(("all",)).sites for key in own.keys(site)
    }
    if name != "t5":  # whose mlp_out is that of a module, which holds the one that the row has
        assert found == own


def test_a_row_is_written_as_python_and_as_json_and_read_again() -> None:
    for own in FAMILIES.values():
        for row in own.architectures:
            assert eval(written_architecture(row), dict(vars(family))) == row
            assert Architecture.from_json(row.to_json()) == row


def test_a_written_row_is_laid_out_as_the_formatter_does(tmp_path: Path) -> None:
    model = odd_model()
    found = fit(model, random_examples(model.config, arch="dec"))
    text = written_row(model, found.architecture)
    blocks, _, entry = text.partition("\n\n")
    assert blocks.startswith('ODDITY = Architecture(\n    {\n        "dec": StackRow(\n            "floors",\n')
    namespace: dict[str, Any] = dict(vars(family))
    exec(blocks, namespace)
    assert namespace["ODDITY"] == found.architecture
    written = tmp_path / "row.py"
    written.write_text(f"{blocks}\n\nFAMILIES = {{\n{entry}}}\n")
    formatted = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "120", str(written)]
    assert subprocess.run(formatted, capture_output=True, text=True).returncode == 0
    known: dict[str, Any] = {**vars(family), "blocks": type("Blocks", (), {"ODDITY": found.architecture})}
    exec(f"FAMILIES = {{{entry}}}", known)
    assert known["FAMILIES"]["oddity"].blocks is found.architecture
    assert known["FAMILIES"]["oddity"].tiny.config["intermediate_size"] == 48


def test_a_family_that_has_the_blocks_of_another_is_written_with_their_name() -> None:
    model = tiny_model("llama")
    assert '"llama": Family(blocks=blocks.LLAMA, positions=Positions("rotary"), ' in written_row(
        model, architecture_of(model.config)
    ).replace("\n        ", " ").replace("( ", "(")


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_the_row_that_is_found_gives_the_arrays_of_the_one_that_is_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name)
    examples, own = random_examples(model.config), architecture_of(model.config)
    for each in [*FAMILIES]:
        monkeypatch.delitem(FAMILIES, each)  # pyright: ignore[reportArgumentType]
    found = fit(model, examples)
    inputs, spans = batch_of(model, examples)
    kept: list[Kept] = []
    for row in (own, found.architecture):
        sink = Kept(spans)
        with Recorder(model, plan_arrays(Selection(("all",)), model, architecture=row).arrays, sink, row) as recorder:
            recorder.run(spans, **inputs)
        kept.append(sink)
    missing = {key.site for key, _ in kept[0].arrays.keys() - kept[1].arrays.keys()}
    seen = own.has_attention_function and not own.own_attention
    if name in NOT_FOUND:
        assert missing == NOT_FOUND[name]
    else:
        assert missing <= (set() if seen else {"q_proj", "k_proj", "v_proj", *IN_ATTENTION})
    for place, arrays in kept[1].arrays.items():
        for one, other in zip(arrays, kept[0].arrays[place], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert found.result.ok
