"""Prompts to runs: every stored step is what a fresh eager pass over the same tokens gives, live and replayed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.capture.asked import Answers, answered
from tests.capture.test_growing import FAMILIES, OWN
from tests.marks import slow
from tests.tiny_folders import write_tiny_model
from traceformer import Selection, TraceStore
from traceformer.capture.generation.described import Generated
from traceformer.capture.generation.generate import generate
from traceformer.capture.generation.respond import keeps_a_cache
from traceformer.capture.generation.sampling import Sampling
from traceformer.errors import (
    ConfigurationChanged,
    RunExists,
    Unsupported,
    UsageError,
)
from traceformer.models.load import load_model
from traceformer.progress import Progress
from traceformer.store.commits import verify_run

PROMPTS = ("Seven ships left the harbour", "Yes", "Why not?")
N_NEW = 8
SITES = Selection(("attn", "hidden", "mlp_out", "logits"))
Folder = Callable[..., Path]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "three.txt"
    path.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return path


def request(model: Path, out: Path, **changes: Any) -> Answers:
    sampling = Sampling(max_tokens=N_NEW, **changes.pop("sampling", {}))
    base = Answers(
        model=str(model),
        selection=SITES,
        sampling=sampling,
        seed=3,
        batch_size=2,
        dtype="float32",
        out_dir=out,
        device="cpu",
    )
    return replace(base, **changes)


class Eager:
    """Plain eager passes of single rows, unpadded, without a cache."""

    def __init__(self, folder: Path) -> None:
        import transformers

        is_t5 = "t5" in folder.name
        kind = transformers.AutoModelForSeq2SeqLM if is_t5 else transformers.AutoModelForCausalLM
        self.model: Any = kind.from_pretrained(folder, attn_implementation="eager").eval()

    def run(self, row: Any) -> Any:
        more = {}
        if "dec_input_ids" in row:
            more["decoder_input_ids"] = torch.tensor([list(row.dec_input_ids)])
        ids = torch.tensor([list(row.input_ids)])
        with torch.no_grad():
            return self.model(ids, output_attentions=True, output_hidden_states=True, **more)


def early_end(folder: Path) -> dict[str, Any]:
    """Greedy settings under which the second prompt's response ends before the others': with its third token."""
    from traceformer.models.load import load_model

    loaded = load_model(str(folder), device="cpu")
    ids = loaded.tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
    out = loaded.model.generate(ids, max_new_tokens=3, do_sample=False, attention_mask=torch.ones_like(ids))
    return {"temperature": 0.0, "more": {"eos_token_id": [2, int(out[0, -1])]}}


def close(found: np.ndarray, expected: torch.Tensor) -> None:
    # Sums run in another order in batches and beside a cache; the largest numbers here are about 10.
    np.testing.assert_allclose(found, expected.float().numpy(), rtol=1e-5, atol=1e-5)


def compare_with_eager(run: TraceStore, folder: Path) -> None:
    eager = Eager(folder)
    for _, row in run.tokens.iterrows():
        example, out = row.example_id, eager.run(row)
        encdec = run.arch == "encdec"
        patterns = out.decoder_attentions if encdec else out.attentions
        hidden = out.decoder_hidden_states if encdec else out.hidden_states
        for layer in range(len(patterns)):
            close(run.attn(example, layer=layer, side="dec"), patterns[layer][0])
            if encdec:
                close(run.attn(example, layer=layer, side="enc"), out.encoder_attentions[layer][0])
                close(run.attn(example, layer=layer, side="dec", kind="cross"), out.cross_attentions[layer][0])
        close(run.hidden(example, side="dec"), torch.stack(hidden)[:, 0])
        close(
            np.asarray(run.get(example, next(s.key for s in run.layout.arrays if s.key.site == "logits"))),
            out.logits[0],
        )


@pytest.mark.parametrize("replay", [False, slow(True)], ids=["live", "replay"])
@pytest.mark.parametrize("family", [*FAMILIES, *OWN])
def test_every_stored_step_equals_a_fresh_pass_over_the_same_tokens(
    family: str, replay: bool, tiny_folder: Folder, prompts: Path, tmp_path: Path
) -> None:
    folder = tiny_folder(family)
    out = answered(request(folder, tmp_path / "run", prompts=prompts, replay=replay, sampling=early_end(folder)))
    assert verify_run(out) == []
    run = TraceStore(out)
    assert list(run.tokens.prompt) == list(PROMPTS)
    assert list(run.tokens.replayed) == [replay] * 3
    lengths = run.tokens["dec_n_tokens" if family == "t5" else "n_tokens"] - run.tokens.n_prompt
    assert lengths[1] <= 3 < max(lengths)
    compare_with_eager(run, folder)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "t5"])
def test_a_static_cache_shows_the_same(family: str, tiny_folder: Folder, prompts: Path, tmp_path: Path) -> None:
    folder = tiny_folder(family)
    sampling = early_end(folder)
    sampling["more"] |= {"cache_implementation": "static"}
    run = TraceStore(answered(request(folder, tmp_path / "run", prompts=prompts, sampling=sampling)))
    compare_with_eager(run, folder)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "gpt_oss", "t5", *OWN])
def test_a_batch_gives_the_tokens_and_numbers_of_each_prompt_alone(
    family: str, tiny_folder: Folder, prompts: Path, tmp_path: Path
) -> None:
    folder = tiny_folder(family)
    runs = [
        TraceStore(
            answered(
                request(
                    folder,
                    tmp_path / f"run{size}",
                    prompts=prompts,
                    batch_size=size,
                    sampling={"temperature": 0.0},
                )
            )
        )
        for size in (1, 3)
    ]
    assert list(runs[0].tokens.response) == list(runs[1].tokens.response)
    for example in runs[0].ids:
        for spec in runs[0].layout.arrays:
            for layer in spec.layers or (None,):
                alone, batched = (np.asarray(run.get(example, spec.key, layer)) for run in runs)
                np.testing.assert_allclose(batched, alone, rtol=1e-5, atol=1e-5)


def test_a_batch_is_plain_generate_with_its_seed_and_leaves_random_numbers_alone(
    tiny_folder: Folder, prompts: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("llama")
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    run = TraceStore(answered(request(folder, tmp_path / "run", prompts=prompts)))
    assert torch.equal(torch.rand(3), expected)
    assert list(run.tokens.seed) == [3, 3, 4]
    eager = Eager(folder)
    eager.model.set_attn_implementation("sdpa")
    for rows, seed in ((run.tokens[:2], 3), (run.tokens[2:], 4)):
        prompts_ids = [list(row.input_ids[: row.n_prompt]) for _, row in rows.iterrows()]
        longest = max(map(len, prompts_ids))
        ids = torch.tensor([[0] * (longest - len(each)) + each for each in prompts_ids])
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts_ids])
        torch.manual_seed(seed)
        out = eager.model.generate(
            ids, attention_mask=mask, max_new_tokens=N_NEW, do_sample=True, temperature=0.6, top_k=50, pad_token_id=0
        )
        for (_, row), sequence in zip(rows.iterrows(), out[:, longest:].tolist(), strict=True):
            response = list(row.input_ids[row.n_prompt :])
            assert sequence[: len(response)] == response
            assert len(response) == N_NEW or response[-1] == 2


def test_a_run_says_what_was_asked_and_how_tokens_were_chosen(tiny_folder: Folder, tmp_path: Path) -> None:
    wanted = request(
        tiny_folder("gpt2"),
        tmp_path / "run",
        prompt="Why not?",
        category="questions",
        sampling={"temperature": 0.5, "top_k": 7, "top_p": 0.9},
        capture_steps=True,
    )
    run = TraceStore(answered(wanted))
    row = run.tokens.iloc[0]
    assert (row.example_id, row.prompt_set, row.prompt_id, row.category) == ("adhoc-1", "adhoc", "1", "questions")
    assert (row.temperature, row.top_k, row.top_p, row.seed, row.max_tokens) == (0.5, 7, 0.9, 3, N_NEW)
    assert row.text == "Why not?" + row.response
    assert list(row.tokens[: row.n_prompt]) == ["wh", "y", "no", "t", "<unk>"]
    assert run.length(row.example_id, "dec") == row.n_tokens == row.n_prompt + N_NEW
    assert row.timestamp[:4].isdigit()
    meta = json.loads((tmp_path / "run/meta.json").read_text())
    assert meta["kind"] == "generation"
    assert meta["generation"]["recorded"] == "token by token"
    assert meta["generation"]["capture_steps"] is True
    assert meta["generation"]["top_p"] == 0.9


def test_the_response_ends_with_the_first_of_several_end_tokens(tiny_folder: Folder, tmp_path: Path) -> None:
    free = request(tiny_folder("gpt2"), tmp_path / "free", prompt="It rained.", sampling={"temperature": 0.0})
    before = TraceStore(answered(free)).tokens.iloc[0]
    whole = before.input_ids[before.n_prompt :].tolist()
    ends = {"more": {"eos_token_id": [whole[6], whole[3]]}, "temperature": 0.0}
    row = TraceStore(answered(replace(free, out_dir=tmp_path / "ended", sampling=Sampling(N_NEW, **ends)))).tokens.iloc[
        0
    ]
    cut = min(whole.index(whole[3]), whole.index(whole[6])) + 1
    assert list(row.input_ids[row.n_prompt :]) == whole[:cut]


def test_a_stop_string_ends_the_rows_that_have_it(tiny_folder: Folder, prompts: Path, tmp_path: Path) -> None:
    free = request(tiny_folder("gpt2"), tmp_path / "free", prompts=prompts, batch_size=3)
    before = TraceStore(answered(free)).tokens
    stop = before.response[0].split()[3]
    again = replace(free, out_dir=tmp_path / "stopped", sampling=replace(free.sampling, stop=(stop,)))
    after = TraceStore(answered(again)).tokens
    assert after.response[0].endswith(stop)
    assert len(after.response[0]) < len(before.response[0])
    for found, whole in zip(after.response, before.response, strict=True):
        assert whole.startswith(found)
        assert stop not in found[: -len(stop)]


@pytest.mark.parametrize("sampling", [{"num_beams": 3, "temperature": 0.0}, {"num_return_sequences": 2}])
def test_beams_and_several_responses_are_replayed_over_the_final_sequences(
    sampling: dict[str, Any], tiny_folder: Folder, prompts: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("gemma2")
    run = TraceStore(answered(request(folder, tmp_path / "run", prompts=prompts, sampling=sampling)))
    assert set(run.tokens.replayed) == {True}
    compare_with_eager(run, folder)
    each = sampling.get("num_return_sequences", 1)
    assert run.n == 3 * each
    if each > 1:
        assert list(run.ids[:3]) == ["three-1-0", "three-1-1", "three-2-0"]
        assert list(run.tokens.sequence[:3]) == [0, 1, 0]
    else:
        eager = Eager(folder)
        row = run.tokens.iloc[1]
        ids = torch.tensor([list(row.input_ids[: row.n_prompt])])
        out = eager.model.generate(ids, num_beams=3, do_sample=False, max_new_tokens=N_NEW, pad_token_id=0)
        assert out[0].tolist()[: row.n_tokens] == list(row.input_ids)


def test_scores_include_keys_to_come_and_so_are_replayed(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_folder("gpt2")
    asked = request(folder, tmp_path / "run", prompt="Yes", selection=Selection(("attn_scores", "attn_pattern", "qkv")))
    run = TraceStore(answered(asked))
    assert run.tokens.replayed[0]
    key = next(spec.key for spec in run.layout.arrays if spec.key.site == "attn_scores")
    q, k = (run.qkv("adhoc-1", which, layer=1, head=2) for which in "qk")
    np.testing.assert_allclose(run.get("adhoc-1", key, 1, 2), q @ k.T / np.sqrt(q.shape[1]), atol=1e-5)


def test_what_is_finished_is_kept_and_resumes_to_the_same_numbers(
    tiny_folder: Folder, prompts: Path, tmp_path: Path
) -> None:
    asked = request(tiny_folder("gpt2"), tmp_path / "run", prompts=prompts, batch_size=1)
    seen: list[str] = []

    def interrupt(response: Generated) -> None:
        seen.append(response.example_id)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answered(asked, on_response=interrupt)
    kept = TraceStore(tmp_path / "_tmp_run")
    assert not kept.finished
    assert list(kept.ids) == ["three-1", "three-2"]
    with pytest.raises(ConfigurationChanged, match="seed"):
        answered(replace(asked, resume=True, seed=4))
    resumed = TraceStore(answered(replace(asked, resume=True)))
    whole = TraceStore(answered(replace(asked, out_dir=tmp_path / "whole")))
    assert list(resumed.tokens.response) == list(whole.tokens.response)
    for example in whole.ids:
        for spec in whole.layout.arrays:
            for layer in spec.layers or (None,):
                assert np.array_equal(resumed.get(example, spec.key, layer), whole.get(example, spec.key, layer))
    with pytest.raises(RunExists):
        answered(asked)


def test_an_interruption_in_the_middle_of_a_batch_leaves_the_model_as_it_was(
    tiny_folder: Folder, tmp_path: Path
) -> None:
    from traceformer.models.load import load_model

    loaded = load_model(str(tiny_folder("gpt2")), device="cpu")

    def interrupt(progress: Progress) -> None:
        if progress.tokens_done == 4:
            raise KeyboardInterrupt

    asked = request(tiny_folder("gpt2"), tmp_path / "run", prompt="Yes")
    with pytest.raises(KeyboardInterrupt):
        answered(asked, interrupt, loaded=loaded)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())
    assert loaded.config._attn_implementation == "sdpa"
    assert TraceStore(tmp_path / "_tmp_run").n == 0


def test_one_prompt_streams_its_text(tiny_folder: Folder, tmp_path: Path) -> None:
    pieces: list[str] = []
    run = TraceStore(answered(request(tiny_folder("gpt2"), tmp_path / "run", prompt="Yes"), on_text=pieces.append))
    assert len(pieces) > 3
    assert "".join(pieces).strip() == run.tokens.response[0].strip()


def test_an_experiment_is_a_folder_of_runs(tiny_folder: Folder, tmp_path: Path) -> None:
    for text in ("Yes", "Why not?"):
        asked = request(tiny_folder("gpt2"), tmp_path, prompt=text, out_dir=None, experiment=tmp_path / "experiment")
        asked = replace(asked, model=asked.model, batch_size=1 + len(text) % 2)
        folder = answered(asked)
        assert folder.parent == tmp_path / "experiment"
        assert folder.name.endswith("_tiny-gpt2_adhoc_generated_n1")


TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}ask:{% endif %}"


def test_chat_puts_the_prompt_into_the_template_and_adds_nothing_else(tiny_folder: Folder, tmp_path: Path) -> None:
    from traceformer.models.load import load_model

    loaded = load_model(str(tiny_folder("gpt2")), device="cpu")
    asked = request(tiny_folder("gpt2"), tmp_path / "run", prompt="Yes", chat=True)
    with pytest.raises(UsageError, match="chat template"):
        answered(asked, loaded=loaded)
    loaded.tokenizer.chat_template = TEMPLATE
    row = TraceStore(answered(asked, loaded=loaded)).tokens.iloc[0]
    expected = loaded.tokenizer("<s>Yes</s>ask:", add_special_tokens=False)["input_ids"]
    assert list(row.input_ids[: row.n_prompt]) == expected
    assert row.prompt == "Yes"
    assert row.text == "<s>Yes</s>ask:" + row.response


def test_a_model_with_a_cache_of_another_kind_generates_as_its_pass_over_the_text_says(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "mamba2", "mamba2")
    loaded = load_model(tmp_path / "mamba2", device="cpu")
    if keeps_a_cache(loaded):  # from transformers 5.24 on
        run = generate(loaded, PROMPTS[0], "logits", max_tokens=4, temperature=0, dtype="float32")
    else:
        with pytest.raises(Unsupported, match=r"cannot be observed while it generates(.|\n)*replay=True"):
            generate(loaded, PROMPTS[0], "resid_post", max_tokens=4)
        run = generate(loaded, PROMPTS[0], "logits", max_tokens=4, temperature=0, replay=True, dtype="float32")
    ids = torch.tensor([[*map(int, run.tokens.iloc[0]["input_ids"])]])
    model: Any = loaded.model
    prompt = ids[:, :-4]
    assert torch.equal(model.generate(prompt, max_new_tokens=4, do_sample=False), ids)
    with torch.inference_mode():
        expected = model(ids).logits[0].numpy()
    made = run.get(0, "logits")
    computed = ~np.isnan(made).any(1)  # of the prompt it needs the last only
    assert computed[-5:].all()
    assert np.allclose(made[computed], expected[computed], atol=1e-5)
