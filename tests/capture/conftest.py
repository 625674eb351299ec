"""Tiny models on disk, each in a folder as `save_pretrained` writes it, with a small tokenizer of its own."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from traceformer.texts.load import load_texts

ENDS_WITH_EOS = ("t5", "mt5", "bart")


class Stopped(Exception):
    """Ends a run as `stop_after` is told to."""


def stop_after(examples: int) -> Callable[[Any], None]:
    """Returns a progress callback that ends an extraction once so many examples are done."""

    def stop(progress: Any) -> None:
        if progress.examples_done >= examples:
            raise Stopped

    return stop


@cache
def _tokenizer_json(ends_with_eos: bool) -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=99, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], limit_alphabet=50, show_progress=False
    )
    tokenizer.train_from_iterator((example.text for example in load_texts("demo").examples), trainer)
    if ends_with_eos:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the folder of a family's tiny random model, made once per session and set of changes."""
    made: dict[tuple[Any, ...], Path] = {}

    def folder(family: str, *, seed: int = 0, **changes: Any) -> Path:
        key = (family, seed, *sorted(changes.items()))
        if key not in made:
            import torch
            from tokenizers import Tokenizer
            from transformers import PreTrainedTokenizerFast

            from traceformer.models.tiny import tiny_model

            torch.set_num_threads(2)
            path = tmp_path_factory.mktemp("models") / f"tiny-{family}"
            tiny_model(family, seed=seed, **changes).save_pretrained(path)
            PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer.from_str(_tokenizer_json(family in ENDS_WITH_EOS)),
                pad_token="<pad>",
                bos_token="<s>",
                eos_token="</s>",
                unk_token="<unk>",
            ).save_pretrained(path)
            made[key] = path
        return made[key]

    return folder


TEXTS = (
    "The river froze over during the night.",
    "Yes",
    "Seven ships left the harbour at dawn, and only five of them came back before the storm.",
    "She counted 12, 13 and 14.",
    "A cat sat on the mat; a dog watched it from the door.",
    "Why not?",
    "Paris, London and Rome are cities.",
    "It rained.",
    "All the world is a stage, and all the men and women merely players.",
)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Nine short texts, one per line."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def target_file(tmp_path: Path) -> Path:
    """Nine short targets, one per line."""
    path = tmp_path / "targets.txt"
    path.write_text("\n".join(f"answer {index} is {text[:9]}" for index, text in enumerate(TEXTS)), encoding="utf-8")
    return path
