"""The likeliest tokens read out while the model runs are those of its own logits, and of the stored residual stream."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.capture.asked import Answers, Extraction, Stopped, answered, estimated, extracted, stop_after
from tests.families import KEPT, PREDICTING, mostly_slow
from tests.tiny_folders import TEXTS
from traceformer import Selection, TraceStore
from traceformer.analysis.lens import normed, read_out
from traceformer.capture import derived
from traceformer.capture.derived import LensTopK, Traits
from traceformer.capture.generation.sampling import Sampling
from traceformer.capture.plan import plan_arrays
from traceformer.errors import ConfigurationChanged, Unsupported, UsageError
from traceformer.models.families import architecture_of
from traceformer.models.part import text_part
from traceformer.models.readout import Readout, open_readout
from traceformer.models.tiny import tiny_model
from traceformer.models.weights import read_config

Folder = Callable[..., Path]
DECODERS = ("gemma2", "qwen2", "llama", "gpt2")
WITH_HEAD = mostly_slow(family for family in PREDICTING if family in KEPT)
PROBABILITY = 1e-5  # float32 throughout, from logits of some tens
TIE = 1e-6


def softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def assert_likeliest(ids: np.ndarray, probabilities: np.ndarray, of_all: np.ndarray) -> None:
    """The ids are the likeliest of all words, the likeliest first, but where probabilities tie."""
    k = ids.shape[-1]
    expected = np.sort(of_all, axis=-1)[..., ::-1][..., :k]
    np.testing.assert_allclose(probabilities, expected, atol=PROBABILITY, rtol=0)
    np.testing.assert_allclose(np.take_along_axis(of_all, ids.astype(np.int64), -1), expected, atol=TIE, rtol=0)
    assert all(len(set(row)) == k for row in ids.reshape(-1, k).tolist())


def readout_of(folder: Path) -> Readout:
    return open_readout(folder, read_config(folder))


def asked(folder: Path, texts: Path, **changes: Any) -> Extraction:
    given: dict[str, Any] = {
        "selection": Selection(()),
        "model": str(folder),
        "dataset": str(texts),
        "lens_top_k": 4,
        "dtype": "float32",
        "device": "cpu",
        "batch_size": 4,
    }
    return Extraction(**given | changes)


@pytest.mark.parametrize("family", DECODERS)
def test_layers_say_what_their_stored_streams_and_the_last_one_what_the_model_predicts(
    family: str, tiny_folder: Folder, text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder(family)
    selection = Selection(("resid_post", "logits"))
    run = TraceStore(extracted(asked(folder, text_file, selection=selection, out_dir=tmp_path / "run")))
    ids, probabilities = run.spec("lens_topk"), run.spec("lens_topk_prob")
    assert (ids.layers, ids.width, probabilities.layers, probabilities.width) == ((0, 1, 2), 4, (0, 1, 2), 4)
    readout = readout_of(folder)
    for example in run.ids:
        found, likely = (run.get(example, site) for site in ("lens_topk", "lens_topk_prob"))
        assert (found.dtype, likely.dtype) == (np.int32, np.float32)
        assert_likeliest(found[-1], likely[-1], softmax(run.get(example, "logits")))
        for layer in ids.layers:
            every = read_out(normed(run.get(example, "resid_post", layer), readout), readout, top=readout.d_vocab)
            of_all = np.empty_like(every.top_probabilities)
            np.put_along_axis(of_all, every.top_ids, every.top_probabilities, axis=1)
            assert_likeliest(found[layer], likely[layer], of_all)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_decoder_beside_an_encoder_says_what_it_predicts(
    family: str, tiny_folder: Folder, text_file: Path, target_file: Path, tmp_path: Path
) -> None:
    request = asked(
        tiny_folder(family),
        text_file,
        selection=Selection(("logits",)),
        targets_file=target_file,
        out_dir=tmp_path / "run",
    )
    run = TraceStore(extracted(request))
    for example in run.ids:
        found, likely = (run.get(example, site, layer=2) for site in ("lens_topk", "lens_topk_prob"))
        assert_likeliest(found, likely, softmax(run.get(example, "logits")))


def test_projections_of_the_same_stream_stand_beside_it(tiny_folder: Folder, text_file: Path, tmp_path: Path) -> None:
    folder, joy = tiny_folder("llama"), np.eye(32, dtype=np.float32)[5]
    alone = TraceStore(extracted(asked(folder, text_file, out_dir=tmp_path / "alone")))
    traits, selection = Traits({"joy": {None: joy}}), Selection(("resid_post",))
    both = TraceStore(
        extracted(asked(folder, text_file, selection=selection, traits=traits, out_dir=tmp_path / "both"))
    )
    for example in both.ids:
        for site in ("lens_topk", "lens_topk_prob"):
            assert np.array_equal(both.get(example, site), alone.get(example, site))
        assert np.array_equal(both.get(example, "projection")[..., 0], both.get(example, "resid_post")[..., 5])


@pytest.mark.parametrize("family", WITH_HEAD)
@pytest.mark.parametrize("blocks", [(8192, 2048), (7, 3)], ids=["whole", "in blocks"])
def test_the_readout_of_every_family_is_its_own(
    family: str, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in zip(("_WORDS", "_ROWS"), blocks, strict=True):
        monkeypatch.setattr(derived, name, size)
    model, row = tiny_model(family), architecture_of(tiny_model(family).config)
    plan = plan_arrays(Selection((), derived=(LensTopK(9),)), model)
    own_blocks: Any = text_part(model).get_submodule(row.stacks["dec"].blocks)
    seen: list[Any] = []
    own_blocks[-1].register_forward_hook(lambda *given: seen.append(given[2]))
    tokens = torch.tensor([[5, 17, 42, 8], [93, 61, 30, 11]])
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        logits = model(tokens, **more, use_cache=False).logits.numpy()
        rows = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        ids, likely = plan.derived[0].of(2, rows).values()
    assert_likeliest(ids.numpy(), likely.numpy(), softmax(logits))


def test_a_model_in_bfloat16_is_read_out_in_float32(tiny_folder: Folder, text_file: Path, tmp_path: Path) -> None:
    folder, half = tiny_folder("gemma2"), "bfloat16"
    request = asked(
        folder, text_file, selection=Selection(("resid_post",)), dtype=half, model_dtype=half, out_dir=tmp_path / "run"
    )
    run = TraceStore(extracted(request))
    model = tiny_model("gemma2").bfloat16().float()  # the weights that it ran with; its stream is stored as it is
    [lens] = plan_arrays(Selection((), derived=(LensTopK(99),)), model).derived
    example = run.ids[2]
    for layer in range(3):
        ids, likely = lens.of(layer, torch.from_numpy(run.get(example, "resid_post", layer)[None])).values()
        of_all = torch.zeros_like(likely).scatter(-1, ids, likely)[0].double().numpy()
        found = run.get(example, "lens_topk", layer)
        assert found.dtype == np.int32
        expected = np.sort(of_all, axis=-1)[:, ::-1][:, :4]
        np.testing.assert_allclose(np.take_along_axis(of_all, found.astype(np.int64), -1), expected, atol=TIE, rtol=0)
        # Probabilities are stored in the run's dtype, which has eight bits.
        np.testing.assert_allclose(run.get(example, "lens_topk_prob", layer), expected, rtol=2**-8)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "t5"])
def test_live_and_replayed_generations_hold_the_same(family: str, tiny_folder: Folder, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(TEXTS[:3]))  # of different lengths, so that a decoder's are padded on the left

    def run(replay: bool) -> TraceStore:
        return TraceStore(
            answered(
                Answers(
                    model=str(tiny_folder(family)),
                    prompts=prompts,
                    sampling=Sampling(max_tokens=5, temperature=0.0),
                    selection=Selection((), layers={"dec": (0, 2)}),
                    lens_top_k=3,
                    replay=replay,
                    dtype="float32",
                    out_dir=tmp_path / f"replay {replay}",
                    device="cpu",
                )
            )
        )

    live, replayed = run(False), run(True)
    assert [str(spec.key) for spec in live.layout.arrays] == ["dec.lens_topk", "dec.lens_topk_prob"]
    assert live.spec("lens_topk").layers == (0, 2)
    for example in live.ids:
        assert np.array_equal(live.get(example, "lens_topk"), replayed.get(example, "lens_topk"))
        pair = (each.get(example, "lens_topk_prob") for each in (live, replayed))
        np.testing.assert_allclose(*pair, atol=PROBABILITY, rtol=0)
        assert live.length(example, "dec") == len(live.get(example, "lens_topk", 2))


def test_a_run_goes_on_with_as_many_tokens_as_it_was_begun_with_only(
    tiny_folder: Folder, text_file: Path, tmp_path: Path
) -> None:
    def one(top_k: int, **changes: Any) -> Extraction:
        own = {"lens_top_k": top_k, "shard_examples": 2, "out_dir": tmp_path / "run"}
        return asked(tiny_folder("llama"), text_file, **own | changes)

    with pytest.raises(Stopped):
        extracted(one(3), stop_after(4))
    with pytest.raises(ConfigurationChanged, match="lens top k was 3, is 5"):
        extracted(one(5, resume=True))
    whole = extracted(one(3, out_dir=tmp_path / "whole"))
    resumed = extracted(one(3, resume=True))
    files = sorted(path.relative_to(whole) for path in whole.glob("*.zarr/**/*") if path.is_file())
    assert files
    assert all((whole / path).read_bytes() == (resumed / path).read_bytes() for path in files)


def test_an_estimate_counts_ids_at_four_bytes(tiny_folder: Folder, text_file: Path) -> None:
    expected = estimated(asked(tiny_folder("llama"), text_file, dtype="float16"))
    assert expected.bytes == expected.tokens * 3 * 4 * (4 + 2)  # layers, likeliest tokens, id and probability


@pytest.mark.parametrize(
    ("family", "top_k", "error", "message"),
    [
        ("llama", 100, UsageError, "the 100 likeliest tokens; the model has 99"),
        ("llama", 0, UsageError, "the 0 likeliest tokens"),
        ("llama", -1, UsageError, "the -1 likeliest tokens"),
        ("bert", 3, Unsupported, "lens of an encoder; it predicts no next token"),
        ("t5", 3, Unsupported, "the decoder runs only with `targets`"),
    ],
)
def test_what_cannot_be_read_out_is_refused_before_anything_is_written(
    family: str,
    top_k: int,
    error: type[Exception],
    message: str,
    tiny_folder: Folder,
    text_file: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        extracted(asked(tiny_folder(family), text_file, lens_top_k=top_k, out_dir=tmp_path / "run"))
    assert not list(tmp_path.glob("*run*"))


def test_a_decoder_without_its_head_is_refused() -> None:
    model: Any = tiny_model("llama").base_model
    with pytest.raises(Unsupported, match="without an unembedding"):
        plan_arrays(Selection((), derived=(LensTopK(3),)), model)


def test_the_flag_records_it_not_the_name() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(Unsupported) as caught:
        plan_arrays(Selection(("lens_topk",)), model)
    assert caught.value.why == "the likeliest tokens of each layer are recorded with `lens_top_k`"
