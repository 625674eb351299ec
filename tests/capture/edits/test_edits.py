"""Edits against passes of the same model with plain hooks of torch, masks, and arithmetic; on the built-in model."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import traceformer as tf
from traceformer import edits
from traceformer.capture.edits.kinds import Edit
from traceformer.errors import (
    ConfigurationChanged,
    ExampleNotFound,
    NotRecorded,
    SelectionError,
    TraceformerError,
    Unsupported,
    UsageError,
)
from traceformer.models.loaded import LoadedModel
from traceformer.sites import ArrayKey

TEXTS = ["The Eiffel Tower is in Paris.", "Rome is in Italy, and the river Tiber flows through Rome."]
ALL = "attn qkv resid z attn_out mlp_out logits"


@pytest.fixture(scope="module")
def model(byte: LoadedModel) -> LoadedModel:
    return byte


@pytest.fixture(scope="module")
def plain(model: LoadedModel) -> tf.Run:
    return tf.record(model, TEXTS, ALL, dtype="float32")


def recorded(model: LoadedModel, *wanted: Edit, capture: str = ALL, **how: Any) -> tf.Run:
    with tf.edit(model, *wanted):
        return tf.record(model, TEXTS, capture, dtype="float32", **how)


def ids_of(model: LoadedModel, text: str) -> Tensor:
    return torch.tensor([model.tokenizer(text)["input_ids"]])


@contextmanager
def hooked(module: Any, change: Callable[[Tensor], Tensor], *, before: bool = False) -> Generator[None]:
    """Changes what a module makes, or what it is given first, with a hook of torch's own."""
    if before:
        handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(
            lambda _, args, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)
        )
    try:
        yield
    finally:
        handle.remove()


def alone(model: LoadedModel, text: str) -> np.ndarray:
    with torch.no_grad():
        return model.model(ids_of(model, text)).logits[0].numpy()


def test_a_head_without_its_values_is_what_a_hook_on_the_output_projection_makes_of_it(model: LoadedModel) -> None:
    d_head = model.dims.stacks["dec"].d_head
    run = recorded(model, edits.zero("z", 1, 2))
    with hooked(
        model.model.base_model.get_submodule("layers.1.self_attn.o_proj"),
        lambda x: torch.cat([x[..., : 2 * d_head], 0 * x[..., 2 * d_head : 3 * d_head], x[..., 3 * d_head :]], -1),
        before=True,
    ):
        for number, text in enumerate(TEXTS):
            np.testing.assert_allclose(run.get(number, "logits"), alone(model, text), atol=2e-5)


def test_an_edit_in_a_padded_batch_is_one_of_the_text_alone(model: LoadedModel) -> None:
    direction = np.random.default_rng(0).standard_normal(model.dims.stacks["dec"].d_model)
    run = recorded(model, edits.add("resid_post", 2, direction, 3, position="last"))
    added = torch.as_tensor(3 * direction, dtype=torch.float32)
    with hooked(
        model.model.base_model.get_submodule("layers.2"), lambda x: torch.cat([x[:, :-1], x[:, -1:] + added], 1)
    ):
        for number, text in enumerate(TEXTS):
            np.testing.assert_allclose(run.get(number, "logits"), alone(model, text), atol=2e-5)


def test_the_stream_of_another_text_gives_that_texts_logits_to_the_bit(model: LoadedModel) -> None:
    text, other = "The Eiffel Tower is in Spain.", "The Eiffel Tower is in Spain!"
    assert ids_of(model, text).shape == ids_of(model, other).shape
    donor = tf.record(model, [text], "resid logits", dtype="float32")
    for site, layer in (("resid_pre", 0), ("resid_pre", 2), ("resid_mid", 1), ("resid_post", 3)):
        with tf.edit(model, edits.patch(site, layer, donor)):
            run = tf.record(model, [other], "logits", dtype="float32")
        np.testing.assert_array_equal(run.get(0, "logits"), donor.get(0, "logits"))


def test_what_is_recorded_is_what_was_put_there_and_other_texts_are_untouched(
    model: LoadedModel, plain: tf.Run
) -> None:
    for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "attn_pattern"):
        run = recorded(model, edits.zero(site, 1, example=0))
        assert not run.get(0, site, 1).any()
        np.testing.assert_array_equal(run.get(1, "logits"), plain.get(1, "logits"))
        assert np.abs(run.get(0, "logits") - plain.get(0, "logits")).max() > 0.1


def test_edits_of_one_place_act_in_the_order_given(model: LoadedModel, plain: tf.Run) -> None:
    ones = np.ones(model.dims.stacks["dec"].d_model)
    before = plain.get(0, "mlp_out", 1)
    doubled = recorded(model, edits.add("mlp_out", 1, ones, 1), edits.scale("mlp_out", 1, 2))
    np.testing.assert_allclose(doubled.get(0, "mlp_out", 1), (before + 1) * 2, rtol=1e-6)
    with tf.edit(model, edits.scale("mlp_out", 1, 2)):
        added = recorded(model, edits.add("mlp_out", 1, ones, 1))
    np.testing.assert_allclose(added.get(0, "mlp_out", 1), before * 2 + 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("position", "meant"),
    [
        (3, [3]),
        (-2, [-2]),
        ("last", [-1]),
        (slice(2, 5), [2, 3, 4]),
        ([1, 4], [1, 4]),
        (range(0, 4, 2), [0, 2]),
        (np.array([4]), [4]),
        ("prompt", slice(None)),
        (None, slice(None)),
    ],
)
def test_positions_are_those_of_a_text(model: LoadedModel, plain: tf.Run, position: Any, meant: Any) -> None:
    run = recorded(model, edits.zero("resid_post", 2, position=position), capture="resid_post")
    for number in range(2):
        expected = plain.get(number, "resid_post", 2)
        expected[meant] = 0
        np.testing.assert_array_equal(run.get(number, "resid_post", 2), expected)


def test_a_word_means_the_tokens_that_contain_it(model: LoadedModel) -> None:
    run = recorded(model, edits.zero("resid_post", 2, position="Paris", example=0), capture="resid_post")
    mask: list[bool] = (run.get(0, "resid_post", 2) == 0).all(-1).tolist()
    tokens: list[int] = model.tokenizer(TEXTS[0])["input_ids"]
    assert "Paris" in model.tokenizer.decode([each for each, is_zero in zip(tokens, mask, strict=True) if is_zero])
    assert 1 <= sum(mask) <= 6
    same = recorded(model, edits.zero("resid_post", 2, position=mask, example=0), capture="resid_post")
    np.testing.assert_array_equal(same.get(0, "resid_post", 2), run.get(0, "resid_post", 2))


def test_cut_edges_are_edges_that_a_mask_hides(model: LoadedModel) -> None:
    ids = ids_of(model, TEXTS[0])
    n = ids.shape[1]
    allowed = torch.ones(n, n, dtype=torch.bool).tril()
    allowed[5:, 2] = False
    mask = torch.zeros(1, 1, n, n).masked_fill(~allowed, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = model.model(ids, attention_mask=mask).logits[0].numpy()
    with tf.edit(model, edits.cut(query=slice(5, None), key=2, example=0)):
        run = tf.record(model, TEXTS[:1], "attn logits", dtype="float32")
    np.testing.assert_allclose(run.get(0, "logits"), expected, atol=2e-5)
    assert not run.attn(0, 2, 1)[5:, 2].any()
    np.testing.assert_allclose(run.attn(0, 2, 1).sum(-1), 1, atol=1e-6)
    with tf.edit(model, edits.cut(1, 2, query="last", key=2, renormalise=False)):
        left = tf.record(model, TEXTS[:1], "attn", dtype="float32").attn(0, 1, 2)[-1]
    whole = tf.record(model, TEXTS[:1], "attn", dtype="float32").attn(0, 1, 2)[-1]
    assert left[2] == 0
    np.testing.assert_array_equal(np.delete(left, 2), np.delete(whole, 2))


def test_means_samples_and_subspaces_are_those_of_arithmetic(model: LoadedModel, plain: tf.Run) -> None:
    rows = np.concatenate([plain.get(number, "mlp_out", 1) for number in range(2)])
    run = recorded(model, edits.mean("mlp_out", 1, plain), capture="mlp_out")
    np.testing.assert_allclose(
        run.get(0, "mlp_out", 1), np.tile(rows.mean(0), (plain.length(0), 1)), rtol=1e-4, atol=1e-6
    )
    shorter = plain.length(0)
    each = np.stack([plain.get(number, "z", 1, 2)[:shorter] for number in range(2)]).mean(0)
    run = recorded(model, edits.mean("z", 1, plain, 2, per_position=True, example=0), capture="z")
    np.testing.assert_allclose(run.get(0, "z", 1, 2), each, rtol=1e-4, atol=1e-6)
    run = recorded(model, edits.resample("z", 1, plain, 2, example=0), capture="z")
    np.testing.assert_array_equal(run.get(0, "z", 1, 2), plain.get(1, "z", 1, 2)[:shorter])
    basis = np.random.default_rng(1).standard_normal((2, rows.shape[1]))
    left = recorded(model, edits.project_out("mlp_out", 1, basis), capture="mlp_out").get(0, "mlp_out", 1)
    weights, *_ = np.linalg.lstsq(basis.T, plain.get(0, "mlp_out", 1).T, rcond=None)
    np.testing.assert_allclose(left, plain.get(0, "mlp_out", 1) - (basis.T @ weights).T, atol=1e-5)


def test_an_edited_generation_is_what_one_pass_over_the_finished_text_is_edited(model: LoadedModel) -> None:
    direction = np.random.default_rng(0).standard_normal(model.dims.stacks["dec"].d_model)
    wanted = (
        edits.add("resid_post", 2, direction, 2, position="response"),
        edits.zero("z", 1, 0, position="last"),
        edits.scale("k", 1, 0.9, position=3),
        edits.cut(2, 1, key=0, query=slice(5, None)),
        edits.zero("mlp_out", 0, position=-2, example=1),
    )
    prompts = ["If the argument is not", "The function returns the"]
    how: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "dtype": "float32"}
    capture = "attn resid z k logits"
    with tf.edit(model, *wanted):
        run = tf.generate(model, prompts, capture, **how)
        once = tf.generate(model, prompts, capture, replay=True, **how)
    plain = tf.generate(model, prompts, "logits", **how)
    assert list(run.tokens.response) == list(once.tokens.response) != list(plain.tokens.response)
    for number in range(2):
        for site in ("attn_pattern", "resid_post", "z", "k", "logits"):
            np.testing.assert_allclose(run.get(number, site), once.get(number, site), rtol=1e-5, atol=5e-5)


def test_an_edited_translation_is_what_one_pass_over_it_is_edited(tiny_folder: Callable[..., Path]) -> None:
    model = tf.load_model(str(tiny_folder("t5")), device="cpu", with_head=True)
    wanted = (
        edits.scale("resid_post", 1, 1.5, position="response"),
        edits.scale("resid_mid", 1, 3, position="last", stack="enc"),
        edits.zero("attn_out", 0, position=0, attention="cross"),
    )
    how: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "dtype": "float32", "more": {"eos_token_id": None}}
    with tf.edit(model, *wanted):
        run, once = (tf.generate(model, TEXTS, "resid logits", replay=replay, **how) for replay in (False, True))
    plain = tf.generate(model, TEXTS, "resid logits", **how)
    for number in range(2):
        for key in ("dec.resid_post", "enc.resid_post", "dec.logits"):
            rows = run.get(number, ArrayKey.parse(key))
            np.testing.assert_allclose(rows, once.get(number, ArrayKey.parse(key)), rtol=1e-5, atol=5e-5)
            assert not np.allclose(rows, plain.get(number, ArrayKey.parse(key)), atol=1e-3)


def test_listed_hidden_states_show_the_edit_whatever_was_asked_of_the_model_before(model: LoadedModel) -> None:
    ids = ids_of(model, TEXTS[0])
    with torch.no_grad():
        before = model.model(ids, output_hidden_states=True).hidden_states
        with tf.edit(model, edits.zero("resid_post", 2)):
            states = model.model(ids, output_hidden_states=True).hidden_states
        after = model.model(ids, output_hidden_states=True).hidden_states
    assert not states[3].any()
    assert before[3].any()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def state_of(model: LoadedModel) -> tuple[Any, ...]:
    """The hooks of each module, the attention, and what is in training mode."""
    modules: list[Any] = list(model.model.modules())
    hooks = [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules]
    return hooks, model.config._attn_implementation, [each.training for each in modules]


def test_the_model_is_left_as_it_was(model: LoadedModel) -> None:
    before, logits = state_of(model), alone(model, TEXTS[0])
    with tf.edit(model, edits.zero("z", 1), edits.cut(query=slice(1, None), key=0), edits.scale("logits", None, 2)):
        assert not np.array_equal(alone(model, TEXTS[0]), logits)
    with pytest.raises(ZeroDivisionError), tf.edit(model, edits.zero("attn_pattern", 1)):
        raise ZeroDivisionError
    assert state_of(model) == before
    np.testing.assert_array_equal(alone(model, TEXTS[0]), logits)


def test_a_function_may_overwrite_what_it_is_given(model: LoadedModel) -> None:
    run = recorded(model, edits.function("mlp_out", 1, lambda x: x.zero_(), position=2), capture="mlp_out")
    assert not run.get(0, "mlp_out", 1)[2].any()
    assert run.get(0, "mlp_out", 1)[[1, 3]].all(-1).any()


def test_gradients_flow_through_an_edit(model: LoadedModel) -> None:
    ids = ids_of(model, TEXTS[0])
    shift = torch.zeros(model.dims.stacks["dec"].d_model, requires_grad=True)
    with tf.edit(model, edits.function("resid_mid", 1, lambda x: x + shift, position=4)):
        model.model(ids).logits[0, -1, 7].backward()
    assert shift.grad is not None
    eps = torch.zeros_like(shift)
    eps[11] = 1e-2
    values: list[float] = []
    for sign in (1, -1):
        with torch.no_grad(), tf.edit(model, edits.function("resid_mid", 1, lambda x, s=sign: x + s * eps, position=4)):
            values.append(model.model(ids).logits[0, -1, 7].item())
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(shift.grad[11].item(), rel=0.02, abs=1e-3)


def test_a_run_states_its_edits_and_resumes_only_under_the_same(model: LoadedModel, tmp_path: Path) -> None:
    wanted = edits.scale("mlp_out", 1, 2, position=slice(1, None))
    run = recorded(model, wanted, capture="resid", out=tmp_path / "run")
    stated = {"kind": "scale", "site": "mlp_out", "layers": [1], "position": {"start": 1, "stop": None, "step": None}}
    assert run.meta["edits"] == [{**stated, "by": 2.0}]
    assert tf.open_run(tmp_path / "run").about.edits == ({**stated, "by": 2.0},)
    assert "edits" not in tf.record(model, TEXTS, "resid").meta
    with pytest.raises(UsageError, match="function edits"):
        recorded(model, edits.function("mlp_out", 1, torch.abs), out=tmp_path / "other", resume=True)


BAD: list[tuple[Callable[[LoadedModel, tf.Run], Edit], type[TraceformerError], str]] = [
    (lambda _, __: edits.zero("hidden"), Unsupported, "resid_pre or resid_post"),
    (lambda _, __: edits.zero("projection"), Unsupported, "beside the pass"),
    (lambda _, __: edits.zero("resid"), SelectionError, "group of sites"),
    (lambda _, __: edits.zero("resid_mdi"), SelectionError, "did you mean 'resid_mid'"),
    (lambda _, __: edits.zero("resid_pre", head=1), SelectionError, "no heads"),
    (lambda _, __: edits.zero("embed", 1), SelectionError, "no layers"),
    (lambda _, __: edits.zero("class_logits"), Unsupported, "language model"),
    (lambda _, __: edits.zero("resid_pre", 99), SelectionError, "layers 0-3"),
    (lambda _, __: edits.zero("z", 1, 99), SelectionError, "only heads 0-"),
    (lambda _, __: edits.zero("resid_pre", 1, stack="enc"), SelectionError, "no stack"),
    (lambda _, __: edits.zero("resid_pre", 1, position=500), SelectionError, "the text has 29 tokens"),
    (lambda _, __: edits.zero("resid_pre", 1, position=[True, False]), SelectionError, "a mask of 2"),
    (lambda _, __: edits.zero("resid_pre", 1, position="e"), SelectionError, "times"),
    (lambda _, __: edits.zero("resid_pre", 1, position="Berlin"), SelectionError, "does not have it"),
    (lambda _, __: edits.zero("resid_pre", 1, position="response"), UsageError, "no response"),
    (lambda _, __: edits.add("resid_post", 1, np.ones(3)), UsageError, "width 3"),
    (lambda _, __: edits.add("resid_post", 1, [np.nan] * 256), UsageError, "NaN"),
    (lambda _, __: edits.add("resid_post", 1, np.ones(256) * 1j), UsageError, "no array of numbers"),
    (lambda _, __: edits.project_out("resid_post", 1, np.zeros(256)), UsageError, "zero"),
    (lambda _, __: edits.function("resid_post", 1, lambda x: x[:1]), UsageError, "same shape"),
    (lambda _, __: edits.cut(1, key=slice(None)), UsageError, "no key left"),
    (lambda _, run: edits.patch("resid_pre", 1, run, source_example=9), ExampleNotFound, "no example 9"),
    (lambda _, run: edits.patch("mlp_up", 1, run), NotRecorded, "was not recorded"),
    (lambda _, run: edits.patch("resid_pre", 1, run, source_position=[40], position=0), SelectionError, "position 40"),
    (lambda _, __: edits.patch("resid_pre", 1, np.ones((2, 2, 2))), UsageError, "shape"),
]


@pytest.mark.parametrize(("made", "error", "words"), BAD)
def test_what_cannot_be_meant_is_refused_and_says_what_would_work(
    model: LoadedModel,
    plain: tf.Run,
    made: Callable[[LoadedModel, tf.Run], Edit],
    error: type[TraceformerError],
    words: str,
) -> None:
    before = state_of(model)
    with pytest.raises(error, match=words), tf.edit(model, made(model, plain)):
        tf.record(model, TEXTS[:1], "resid_post")
    assert state_of(model) == before


def test_a_donor_is_a_run_of_the_same_model(model: LoadedModel, tiny_folder: Callable[..., Path]) -> None:
    other = tf.record(str(tiny_folder("gpt2")), TEXTS, "resid", dtype="float32")
    with pytest.raises(UsageError, match="another model"), tf.edit(model, edits.patch("resid_pre", 1, other)):
        pass


def test_a_donor_was_read_by_the_same_tokenizer(model: LoadedModel) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "Rome": 82}, unk_token="<unk>"))
    other = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>")
    ids = [list(b"Rome")]
    for tokenizer, is_other in ((other, True), (None, False)):
        donor = tf.record(tf.load_model(model.model, tokenizer), ids, "resid_pre", dtype="float32")
        with ExitStack() as during:
            if is_other:
                during.enter_context(pytest.raises(UsageError, match="token 82 is 'Rome', of byte 'R'"))
            during.enter_context(tf.edit(model, edits.patch("resid_pre", 1, donor)))


def test_a_position_that_the_donor_lacks_is_refused_before_a_folder_is_begun(
    model: LoadedModel, plain: tf.Run, tmp_path: Path
) -> None:
    lacking = edits.patch("resid_pre", 1, plain, position=0, source_position=[40])
    with pytest.raises(SelectionError, match="position 40"):
        recorded(model, lacking, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_changed_set_of_edits_is_another_configuration(model: LoadedModel, tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if progress.examples_done:
            raise KeyboardInterrupt

    how: dict[str, Any] = {"capture": "resid_post", "out": tmp_path / "run", "batch_size": 1, "shard_examples": 1}
    with pytest.raises(KeyboardInterrupt):
        recorded(model, edits.scale("mlp_out", 1, 2), progress=stop, **how)
    with pytest.raises(ConfigurationChanged):
        recorded(model, edits.scale("mlp_out", 1, 3), resume=True, **how)
    run = recorded(model, edits.scale("mlp_out", 1, 2), resume=True, **how)
    np.testing.assert_array_equal(
        run.get(1, "resid_post"), recorded(model, edits.scale("mlp_out", 1, 2)).get(1, "resid_post")
    )


def test_examples_are_texts_of_the_data_set_in_every_response(model: LoadedModel) -> None:
    prompts = ["If the argument is not", "The function returns the"]
    how: dict[str, Any] = {"max_tokens": 3, "temperature": 1, "num_return_sequences": 2, "dtype": "float32"}
    with tf.edit(model, edits.zero("z", 3, example=1)):
        run = tf.generate(model, prompts, "z", **how)
    assert [bool(run.get(number, "z", 3).any()) for number in range(4)] == [True, True, False, False]


def test_edits_of_no_text_and_edits_to_no_number_are_refused(model: LoadedModel) -> None:
    for wanted, words in (
        (edits.zero("z", 3, example=2), "there are 2"),
        (edits.scale("resid_pre", 1, 1e40), "makes NaN or infinity"),
    ):
        with pytest.raises(UsageError, match=words):
            recorded(model, wanted)
    with pytest.raises(UsageError, match="from 0"):
        edits.zero("z", 3, example=-1)


def test_a_model_is_proved_and_checked_without_the_edits_at_work(model: LoadedModel) -> None:
    with tf.edit(model, edits.zero("z", 2)):
        assert tf.heads(model, TEXTS[:1]).to_frame().shape[0] == 32
        assert tf.check(model, texts=TEXTS).ok


def test_an_edit_that_no_position_was_reached_of_is_told(model: LoadedModel) -> None:
    how: dict[str, Any] = {"max_tokens": 2, "temperature": 0}
    late = edits.zero("z", 2, position=500)
    said = r"edits\.zero\(site='z', layers=\[2\], position=500\) edited nothing"
    with pytest.warns(UserWarning, match=said), tf.edit(model, edits.zero("z", 1, position=3), late):
        tf.generate(model, "If the argument is not", "z", **how)
    with pytest.warns(UserWarning, match="edited nothing"), tf.edit(model, edits.cut(1, 2, query=None, key=500)):
        tf.generate(model, "If the argument is not", "z", **how)
    with pytest.warns(UserWarning, match="edited nothing"), tf.edit(model, edits.zero("z", 1, position=slice(90, 95))):
        tf.record(model, TEXTS, "z")
    with tf.edit(model, edits.zero("z", 1, position=slice(-1, None)), edits.cut(1, 2, query=3, key=0)):
        tf.generate(model, "If the argument is not", "z", **how)  # which pytest would fail by a warning


def test_a_donor_of_bytes_is_told(model: LoadedModel) -> None:
    donor = tf.record(model, TEXTS, "resid_pre", rows_codec="q8")
    wanted = edits.patch("resid_pre", 1, donor, example=0)
    with pytest.warns(UserWarning, match="keeps activations in a byte each"), tf.edit(model, wanted):
        pass


def test_a_donor_that_was_rounded_is_told(model: LoadedModel) -> None:
    donor = tf.record(model, TEXTS, "resid_pre")
    for wanted in (edits.patch("resid_pre", 1, donor, example=0), edits.resample("resid_pre", 1, donor, example=0)):
        with pytest.warns(UserWarning, match="keeps float16, and the model computes in float32"):
            assert recorded(model, wanted, capture="z").meta["edits"][0]["run_dtype"] == "float16"
    with tf.edit(model, edits.mean("resid_pre", 1, donor)):
        assert tf.record(model, TEXTS, "z").meta["edits"][0]["run_dtype"] == "float16"


def test_q_and_k_beside_patterns_by_recipe_are_put_there_as_they_were(model: LoadedModel, plain: tf.Run) -> None:
    donor = tf.record(model, TEXTS, "attn", patterns="recipe")
    for site in ("q", "k"):
        found = recorded(model, edits.patch(site, 1, donor, source_example=1, example=0, position=3))
        expected = recorded(model, edits.patch(site, 1, plain, source_example=1, example=0, position=3))
        assert np.array_equal(found.get(0, "logits"), expected.get(0, "logits"))  # and pytest fails by a warning
        assert not np.array_equal(found.get(0, "logits"), plain.get(0, "logits"))


def test_patterns_by_recipe_are_put_there_as_they_are_read(model: LoadedModel) -> None:
    donor = tf.record(model, TEXTS, "attn", patterns="recipe")
    wanted = edits.patch("attn_pattern", 1, donor, head=2, source_example=1, example=0)
    with pytest.warns(UserWarning, match="keeps float16, and the model computes in float32"):
        found = recorded(model, wanted, capture="attn")
    rows = found.attn(0).shape[-1]
    assert np.array_equal(found.attn(0, 1, 2), donor.attn(1, 1, 2)[:rows, :rows])
