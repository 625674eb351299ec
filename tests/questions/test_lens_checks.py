"""Lenses of others on a run: as an independent implementation reads them out, and only on their own model."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import AutoModelForCausalLM

from traceformer.analysis.lens import Lens
from traceformer.analysis.translators import Translators
from traceformer.capture.extract import record
from traceformer.errors import ConfigurationChanged, NotRecorded, SelectionError, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.questions.fit_lens import fit_lens
from traceformer.questions.lens import lens, run_lens
from traceformer.questions.model_of_run import open_readout_of
from traceformer.store.run import Run

Load = Callable[..., LoadedModel]
TEXT = "Seven ships left the harbour at dawn, and only five of them came back before the storm."


def jacobian_file(path: Path, d_model: int, layers: tuple[int, ...] = (0, 1), **more: Any) -> Path:
    """A file of the published format: near the identity, so that what is read out is neither sure nor the same."""
    random = torch.Generator().manual_seed(0)
    matrices = {n: (torch.eye(d_model) + torch.randn(d_model, d_model, generator=random) / 8).half() for n in layers}
    torch.save({"J": matrices, "n_prompts": 3, "source_layers": list(layers), "d_model": d_model, **more}, path)
    return path


class ByTheDefinition:
    """The read-out of a published lens as its definition says: the model's own modules, in float64, nothing of ours.

    lens(h_l) = unembed(norm(translated h_l)), h_l what block l leaves; the model's logits for the last one.
    """

    def __init__(self, folder: Path, ids: list[int], translate: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        blocks: Any = model.transformer.h if hasattr(model, "transformer") else model.model.layers
        norm: Any = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
        streams: dict[int, torch.Tensor] = {}
        for number, block in enumerate(blocks):
            block.register_forward_hook(lambda *given, number=number: streams.update({number: first(given[2])[0]}))
        with torch.no_grad():
            last = model(torch.tensor([ids])).logits[0]
            logits = [model.lm_head(norm(translate(streams[n], n))) for n in range(len(blocks) - 1)]
        self.log_probabilities = torch.stack([*logits, last]).log_softmax(-1)

    def check(self, found: Lens) -> None:
        """Makes sure that a lens says the same, to 1e-5."""
        own = self.log_probabilities[list(found.layers)]
        likely = own.topk(found.top_ids.shape[2])
        assert found.top_ids.tolist() == likely.indices.tolist()
        np.testing.assert_allclose(found.top_probabilities, likely.values.exp(), atol=1e-5)
        np.testing.assert_allclose(found.entropy, -(own.exp() * own).sum(-1), atol=1e-5)
        last = self.log_probabilities[-1]
        np.testing.assert_allclose(found.kl, (last.exp() * (last - own)).sum(-1), atol=1e-5)


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def ids_of(run: Run) -> list[int]:
    return [int(token) for token in run.encodings(0)["input_ids"]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_published_jacobian_lens_is_read_out_as_its_definition_says(
    family: str, load: Load, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model = load(family)
    run = record(model, [TEXT], "resid_post", dtype="float32")
    path = jacobian_file(tmp_path / "lens.pt", run.spec("resid_post").width)
    matrices = torch.load(path, weights_only=True)["J"]
    expected = ByTheDefinition(tiny_folder(family), ids_of(run), lambda rows, layer: rows @ matrices[layer].double().T)
    found = lens(run, 0, translators=path, top_k=5)
    expected.check(found)
    assert found.translated is not None
    assert (found.translated.kind, found.translated.layers, found.translated.known_by) == ("jacobian", (0, 1), "width")
    assert str(found.translated) == "jacobian lens of lens.pt"
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))["translators"]
    assert told == {"kind": "jacobian", "source": str(path), "layers": [0, 1], "known_by": "width"}
    assert "through the jacobian lens of lens.pt" in repr(found)
    # Of hidden states the last one is behind the final norm already.
    hidden = record(model, [TEXT], "hidden", dtype="float32")
    expected.check(lens(hidden, 0, translators=path, top_k=5))
    # So it is of a text that no run holds.
    expected.check(lens(model, TEXT, translators=path, top_k=5))


def test_a_lens_of_the_package_tuned_lens_is_read_out_as_its_definition_says(
    load: Load, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    run = record(load("gpt2"), [TEXT], "resid_post", dtype="float32")
    d_model = run.spec("resid_post").width
    with torch.random.fork_rng():
        torch.manual_seed(0)
        translators = torch.nn.ModuleList(torch.nn.Linear(d_model, d_model) for _ in range(3))
    torch.save(translators.state_dict(), tmp_path / "params.pt")
    about = {"base_model_name_or_path": "gpt2", "d_model": d_model, "num_hidden_layers": 3, "bias": True}
    (tmp_path / "config.json").write_text(json.dumps(about), encoding="utf-8")
    double = translators.double()
    # Its translator i is for hidden_states[i], which layer i - 1 left.
    expected = ByTheDefinition(tiny_folder("gpt2"), ids_of(run), lambda rows, layer: rows + double[layer + 1](rows))
    expected.check(lens(run, 0, translators=tmp_path, top_k=5))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformer_lens_reads_out_and_fits_the_same(
    family: str, load: Load, tiny_folder: Callable[..., Path], tmp_path: Path, skip_for: Callable[[str], None]
) -> None:
    if find_spec("transformer_lens") is None:
        skip_for("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore
    from transformer_lens.tools.analysis import JacobianLens  # pyright: ignore
    from transformers import AutoTokenizer

    folder, model = tiny_folder(family), load(family)
    bridge: Any = TransformerBridge.boot_transformers(
        str(folder),
        hf_model=AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        device="cpu",
    )
    run = record(model, [TEXT], "resid_post", dtype="float32")
    path = jacobian_file(tmp_path / "lens.pt", run.spec("resid_post").width)
    found = lens(run, 0, translators=path, top_k=99)
    theirs = JacobianLens.load(str(path)).readout(bridge, torch.tensor([ids_of(run)]), return_full_logits=True)
    for number, layer in enumerate(found.layers):
        expected = theirs.lens_logits[layer].softmax(-1).numpy()
        own = np.take_along_axis(found.top_probabilities[number], np.argsort(found.top_ids[number], axis=1), axis=1)
        np.testing.assert_allclose(own, expected, atol=1e-5)
    every = record(model, [TEXT] * 10, "resid_post", dtype="float32")
    fitted = fit_lens(every, kind="jacobian", skip=4, batch_size=5, model=model)
    bridge.to_tokens = lambda _: torch.tensor([ids_of(run)])
    fit = JacobianLens.fit(bridge, [TEXT], corpus="x", skip_first_positions=4, show_progress=False)
    for number, layer in enumerate(fitted.layers):
        np.testing.assert_allclose(fitted.weights[number], fit.jacobians[layer], atol=1e-5)
    fitted.save(tmp_path / "ours.pt")
    JacobianLens.load(str(tmp_path / "ours.pt")).validate_model(bridge)


def of_byte(run: Run, layers: tuple[int, ...] = (0, 1, 2), **changes: Any) -> Translators:
    d = run.spec("resid_post").width
    weights = np.tile(np.eye(d, dtype=np.float32), (len(layers), 1, 1))
    own = Translators("ridge", layers, weights, np.zeros((len(layers), d), np.float32), model="byte")
    return replace(own, **{"model_weights": run.about.model_weights, **changes})


def test_translators_that_leave_rows_as_they_are_say_what_the_logit_lens_says(run: Run) -> None:
    plain, through = lens(run, 0), lens(run, 0, translators=of_byte(run))
    for name in ("top_ids", "top_probabilities", "entropy", "target_rank", "kl"):
        assert np.array_equal(getattr(plain, name), getattr(through, name))
    assert plain.translated is None
    assert through.translated is not None
    assert (through.translated.source, through.translated.known_by) == (None, "digest")
    # The last layer may be among them, as a map that leaves it.
    assert np.array_equal(lens(run, 0, translators=of_byte(run, (0, 1, 2, 3))).entropy, plain.entropy)


def test_the_divergence_is_that_of_the_logits_of_the_run(run: Run) -> None:
    found, logits = lens(run, 0), run.get(0, "logits").astype(np.float64)
    p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert (found.kl[-1] == 0).all()
    assert (found.kl[:-1] > 1e-3).all()
    every = lens(run, 0, layers=[1], top_k=258)
    q = np.log(np.take_along_axis(every.top_probabilities[0].astype(np.float64), np.argsort(every.top_ids[0]), 1))
    np.testing.assert_allclose(every.kl[0], (np.exp(p) * (p - q)).sum(axis=1), atol=1e-4)
    np.testing.assert_allclose(every.kl[0], found.kl[1], atol=1e-6)
    assert found.to_frame().kl.tolist() == np.repeat(found.kl.reshape(-1), 3).tolist()


def test_without_its_last_layer_no_divergence_is_known(byte: LoadedModel) -> None:
    found = lens(record(byte, ["return"], "resid_post", layers=[0, 1], dtype="float32"))
    assert found.layers == (0, 1)
    assert np.isnan(found.kl).all()
    assert lens(byte, "return", layers=[1]).kl.min() > 0  # a text is read for it


def test_only_layers_that_have_a_translator_are_read_out(run: Run) -> None:
    two = of_byte(run, (0, 2))
    assert lens(run, 0, translators=two).layers == (0, 2, 3)
    assert lens(run, 0, translators=two, layers=[2]).layers == (2,)
    with pytest.raises(SelectionError, match="no translator for layer 1; there are those of layers 0, 2"):
        lens(run, 0, translators=two, layers=[1, 2])
    with pytest.raises(SelectionError, match="layers 0, 1, 2, 3 of"):
        lens(run, 0, translators=two, layers=[7])


def test_translators_of_another_model_are_refused(run: Run, byte: LoadedModel, load: Load, tmp_path: Path) -> None:
    other = record(load("gpt2"), [TEXT], "resid_post", dtype="float32")
    with pytest.raises(ConfigurationChanged, match="wide"):
        lens(other, 0, translators=of_byte(run))
    with pytest.raises(ConfigurationChanged, match="for one of 256"):
        lens(run, 0, translators=of_byte(run, d_vocab=256))
    with pytest.raises(ConfigurationChanged, match="digest 0123"):
        lens(run, 0, translators=of_byte(run, model_weights="0123"))
    with pytest.raises(ConfigurationChanged, match="for layer 5, and this one's last layer is 3"):
        lens(run, 0, translators=of_byte(run, (0, 5)))
    with pytest.raises(ConfigurationChanged, match="lead to layer 2"):
        lens(run, 0, translators=of_byte(run, about={"target_layer": 2}))
    with pytest.raises(ConfigurationChanged, match="has 12 layers, this one 4"):
        lens(run, 0, translators=of_byte(run, about={"n_layers": 12}))
    turned = of_byte(run, (3,))
    turned.weights[0, 0, 0] = 2
    with pytest.raises(ConfigurationChanged, match="they translate layer 3, this one's last"):
        lens(run, 0, translators=turned)
    with pytest.raises((UsageError, TypeCheckError), match=r"int where a Translators is wanted|Actual value: 3"):
        lens(run, 0, translators=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(NotRecorded, match="no residual stream"):
        lens(record(byte, ["return"], lens_top_k=2), translators=of_byte(run))


def test_a_name_alone_proves_little_but_another_name_is_refused(run: Run, tmp_path: Path) -> None:
    width = run.spec("resid_post").width

    def known_by(name: str) -> str:
        path = jacobian_file(tmp_path / "lens.pt", width, (0, 1, 2), metadata={"model_name": name})
        translated = lens(run, 0, translators=path).translated
        assert translated is not None
        return translated.known_by

    assert known_by("somebody/Byte") == "name"
    # `byte` is a model that everybody calls so; a folder may be called anything.
    with pytest.raises(ConfigurationChanged, match="it is gpt2, this one byte"):
        known_by("gpt2")
    (tmp_path / "checkpoint").mkdir()
    assert known_by(str(tmp_path / "checkpoint")) == "width"


def test_a_head_that_did_not_make_the_runs_logits_is_refused(run: Run, byte: LoadedModel, load: Load) -> None:
    readout = open_readout_of(run)

    class Turned:
        """Another unembedding of the same shape."""

        shape = readout.unembedding.shape

        def rows(self, start: int, stop: int) -> np.ndarray:
            return readout.unembedding.rows(0, self.shape[0])[::-1][start:stop].copy()

    other = replace(readout, unembedding=Turned())
    with pytest.raises(ConfigurationChanged, match=r"at position \d+ .* apart from the run's by 1\.\d+ of"):
        run_lens(run, 0, other)
    scaled = replace(readout, scale=readout.scale * 1.01)
    with pytest.raises(ConfigurationChanged, match=r"rounding explains 0\.002"):
        run_lens(run, 0, scaled)
    fewer = replace(readout, unembedding=_Fewer(readout.unembedding))
    with pytest.raises(ConfigurationChanged, match="has 257 words, and the run's logits 258"):
        run_lens(run, 0, fewer)
    # A run without logits has nothing to compare with; nor has one whose logits were edited.
    assert run_lens(record(byte, ["return"], "resid_post", dtype="float32"), 0, other).layers == (0, 1, 2, 3)
    from traceformer import edit, edits

    with edit(byte, edits.scale("logits", None, 0.5)):
        edited = record(byte, ["return"], "resid_post logits", dtype="float32")
    assert lens(edited, 0).layers == (0, 1, 2, 3)


class _Fewer:
    def __init__(self, whole: Any) -> None:
        self._whole = whole
        self.shape = (whole.shape[0] - 1, whole.shape[1])

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._whole.rows(start, stop)
