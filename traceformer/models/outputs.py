"""What a model makes of its last hidden states: next tokens, classes of texts or of tokens, or nothing.

The class that a checkpoint's config.json names (`architectures`) says it, by its ending; so does the class of a model
that is at hand. Nothing else can: a tied classifier would load as a language model, with a head that nobody trained.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from traceformer.errors import Unreadable, Unsupported
from traceformer.models.dims import arch_of, arch_of_model
from traceformer.models.part import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "auto_class",
    "label_names",
    "output_site",
    "padding_sought",
    "reads_itself",
    "refuse_without_logits",
    "runs_alone",
    "why_no_output",
]

_CLASSIFIERS: Mapping[str, str] = {
    "ForSequenceClassification": "class_logits",
    "ForTokenClassification": "token_class_logits",
    "ForQuestionAnswering": "token_class_logits",
}
_NAMES = {"logits": "a language model", "class_logits": "a classifier", "token_class_logits": "a token classifier"}


def auto_class(config: Any, *, with_head: bool) -> str:
    """Returns which of transformers' automatic classes loads a checkpoint as what its config says that it is.

    An encoder comes without a language-model head unless `with_head`, where it has one.
    """
    named, arch = _named(config), arch_of(config)
    classifier = _classifier_of(named)
    if classifier is not None:
        return f"AutoModel{classifier}"
    if arch == "enc":
        has_head = any(name.endswith("ForMaskedLM") or name == "BertForPreTraining" for name in named)
        return "AutoModelForMaskedLM" if with_head and has_head else "AutoModel"
    if _is_bare(named):
        return "AutoModel"
    return "AutoModelForSeq2SeqLM" if arch == "encdec" else _writing_class(config, named)


def _writing_class(config: Any, named: Sequence[str]) -> str:
    """Which automatic class makes the named class of a model of this type: a composite's text model may be another."""
    from transformers.models.auto import modeling_auto as auto

    makers: Mapping[str, Mapping[Any, str]] = {
        "AutoModelForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForImageTextToText": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        "AutoModelForMultimodalLM": auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    }
    made = {maker: names[config.model_type] for maker, names in makers.items() if config.model_type in names}
    exact = [maker for maker, name in made.items() if name in named]
    return next(iter((*exact, *made)), "AutoModelForCausalLM")


def output_site(model: "PreTrainedModel") -> str | None:
    """Returns the site that a model's output is, None for a model that ends with its hidden states.

    The class logits of tokens have no place in an encoder-decoder, which has two stacks of these.
    """
    classifier = _classifier_of([each.__name__ for each in type(model).__mro__])
    if classifier is not None:
        site = _CLASSIFIERS[classifier]
        return None if site == "token_class_logits" and arch_of_model(model) == "encdec" else site
    has_head = model.get_output_embeddings() is not None or type(model).__name__.endswith("ForCausalLM")
    return "logits" if has_head else None


def why_no_output(site: str, model: "PreTrainedModel") -> str:
    """Returns why a model does not have one of the sites that are outputs."""
    own, name = output_site(model), type(model).__name__
    if site == "logits" and own is not None:
        return f"{name} is {_NAMES[own]}, which has no language-model head; its own output is {own}"
    if site == "logits":
        return "it was loaded without a language-model head"
    if own == site:
        return "its decoder reads the text itself, not `targets`"
    return f"{name} is {_NAMES[own]}: its own output is {own}" if own else f"{name} has no classifier's head"


def label_names(model: "PreTrainedModel") -> tuple[str, ...]:
    """Returns what a classifier's labels are called, in the order of its logits; where an answer starts and ends."""
    if _classifier_of([each.__name__ for each in type(model).__mro__]) == "ForQuestionAnswering":
        return ("start", "end")
    config: Any = model.config
    names: Mapping[int, str] = config.id2label or {}
    return tuple(str(names.get(number, f"LABEL_{number}")) for number in range(config.num_labels))


def refuse_without_logits(config: Mapping[str, Any], what: str) -> None:
    """Refuses what needs next tokens of a checkpoint that has no language-model head, by its config.json.

    Raises:
        Unsupported: its config names a class without one.
    """
    named = _named(config)
    if _classifier_of(named) is not None or _is_bare(named):
        raise Unsupported(f"{what} of {named[0]}", why="it has no language-model head: it predicts no next token")


def reads_itself(model: "PreTrainedModel") -> bool:
    """Returns whether this is an encoder-decoder's classifier, whose decoder is given the encoder's text."""
    return output_site(model) == "class_logits" and arch_of_model(model) == "encdec"


def padding_sought(model: "PreTrainedModel") -> int | None:
    """Returns the token that a batch must be padded with since the model looks for it, None where any one does.

    A decoder's classifier pools the last token that is not its config's padding token, whatever the mask says.
    """
    if output_site(model) != "class_logits" or arch_of_model(model) != "dec":
        return None
    padding: int | None = getattr(text_config(model.config), "pad_token_id", None)
    embedding: Any = model.get_input_embeddings()
    return padding if padding is not None and 0 <= padding < len(embedding.weight) else None


def runs_alone(model: "PreTrainedModel") -> bool:
    """Returns whether a model gives its class logits for one text at a time only.

    A decoder's classifier without a padding token would pool padding. An encoder-decoder's wants as many end tokens in
    each text of a batch, whatever these are.
    """
    is_decoder = output_site(model) == "class_logits" and arch_of_model(model) == "dec"
    return reads_itself(model) or (is_decoder and padding_sought(model) is None)


def _named(config: Any) -> list[str]:
    stated = config.get("architectures") if isinstance(config, Mapping) else getattr(config, "architectures", None)
    if not isinstance(stated or [], list | tuple):
        raise Unreadable(
            "the model's config.json is damaged", why=f"its architectures are {stated!r}, no list of names"
        )
    return [str(name) for name in stated or ()]


def _classifier_of(names: Sequence[str]) -> str | None:
    return next((ending for ending in _CLASSIFIERS for name in names if name.endswith(ending)), None)


def _is_bare(named: Sequence[str]) -> bool:
    """Whether it is the model without any head, such as GPT2Model; GPT2LMHeadModel and MarianMTModel end likewise."""
    has_head = any("Head" in name or name.endswith("MTModel") for name in named)
    return bool(named) and all(name.endswith("Model") for name in named) and not has_head
