"""Tiny models on disk, as `save_pretrained` writes them, with a small tokenizer each; and short texts for them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from traceformer.models.loaded import LoadedModel
from traceformer.texts.load import load_texts

ENDS_WITH_EOS = ("t5", "t5_gated", "mt5", "bart", "mbart")


@cache
def tokenizer_json(ends_with_eos: bool) -> str:
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


def write_tiny_model(folder: Path, family: str, *, seed: int = 0, **changes: Any) -> Any:
    """Writes a family's tiny random model, and its tokenizer, as `save_pretrained` does; returns the model."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from traceformer.models.tiny import tiny_model

    model = tiny_model(family, seed=seed, **changes)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json(family in ENDS_WITH_EOS)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the folder of a family's tiny random model, made once per session and set of changes."""
    made: dict[tuple[str, int, str], Path] = {}

    def folder(family: str, *, seed: int = 0, **changes: Any) -> Path:
        key = (family, seed, repr(sorted(changes.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("models") / f"tiny-{family}"
            write_tiny_model(made[key], family, seed=seed, **changes)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def load(tiny_folder: Callable[..., Path]) -> Callable[..., LoadedModel]:
    """Loads a family's tiny model, as a user would."""
    from traceformer.models.load import load_model

    return lambda family, **options: load_model(str(tiny_folder(family)), device="cpu", **options)


@pytest.fixture(scope="session")
def byte() -> LoadedModel:
    """The built-in model of bytes, loaded once; no test changes it."""
    from traceformer.models.load import load_model

    return load_model("byte", device="cpu")


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
