"""How the next token is chosen, in transformers' settings."""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import GenerationConfig

from traceformer.errors import Unsupported, UsageError
from traceformer.models.loaded import LoadedModel, valid_pad_id

__all__ = ["Choosing", "Sampling", "choosing_of"]

# They run other passes than one per token over a cache of their own.
_REFUSED = (
    "assistant_model",
    "penalty_alpha",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "stop_strings",
    "use_cache",
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` None leave every token in.

    `seed` is that of the first batch of prompts; batch k has `seed` + k. `more` are further settings of
    transformers' GenerationConfig, such as repetition_penalty. What is not set here stays as the model's own
    generation_config.json says; `of` takes from there what a user leaves open, too.

    Raises:
        UsageError: a value that makes no sense.
    """

    max_tokens: int = 50
    temperature: float = 0.6
    top_k: int = 50
    top_p: float | None = None
    num_return_sequences: int = 1
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 42
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name in ("max_tokens", "num_return_sequences", "num_beams"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}={getattr(self, name)}`", hint="give 1 or more")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"`temperature={self.temperature}`", hint="give 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UsageError(f"`top_k={self.top_k}`", hint="give 0 for no limit, or how many tokens to choose from")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"`top_p={self.top_p}`", hint="give a probability above 0, and 1 at most")
        if "" in self.stop:
            raise UsageError("`stop=''` would stop before the first token")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise UsageError(
                f"`num_return_sequences={self.num_return_sequences}` of `num_beams={self.num_beams}`",
                why="a beam is one sequence",
            )
        if self.num_beams == 1 and self.num_return_sequences > 1 and not self.temperature:
            raise UsageError(
                "several greedy responses to one prompt would be the same",
                hint="`temperature` above 0, `num_beams` above 1, or `num_return_sequences=1`",
            )
        for name in self.more:
            if name in _REFUSED or not hasattr(GenerationConfig(), name):
                raise UsageError(f"{name} cannot be set for a recorded generation")

    @classmethod
    def of(cls, model: LoadedModel | None, **given: Any) -> "Sampling":
        """Returns what was given, what else the model's generation_config.json says, and else the defaults.

        None is not given. A file that asks for beams or for the likeliest token (`do_sample` false) has `temperature`
        0, one that samples without a temperature 1.

        Raises:
            UsageError: a value that makes no sense.
        """
        named = {name: value for name, value in given.items() if value is not None}
        if model is not None and not model.model.can_generate():
            model = None  # which is refused, once it is asked to
        stated = {} if model is None else _stated(model)
        length = None if model is None else _own_config(model).max_length
        if model is not None and length is not None and "max_tokens" not in {*named, *stated}:
            why = f"max_length={length} in the generation_config.json of {model.name} counts the prompt, too"
            raise UsageError("how many tokens may a response have?", why=why, hint="`max_tokens=50`")
        return cls(**{**stated, **named})

    @property
    def is_searched(self) -> bool:
        """Whether what was computed on the way is not what the final sequences would give."""
        return self.num_beams > 1 or self.num_return_sequences > 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _own_config(model: LoadedModel) -> GenerationConfig:
    """A copy of what a model's own file says."""
    config = copy.deepcopy(model.model.generation_config)
    assert isinstance(config, GenerationConfig)
    return config


def _stated(model: LoadedModel) -> dict[str, Any]:
    """What a model's own file says of the fields of `Sampling`."""
    config = _own_config(model)
    stated: dict[str, Any] = {
        "max_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "num_return_sequences": config.num_return_sequences,
        "num_beams": config.num_beams,
    }
    searches = (config.num_beams or 1) > 1 or bool(config.penalty_alpha)
    if config.do_sample is False or (config.do_sample is None and searches):
        stated["temperature"] = 0.0
    elif config.do_sample and config.temperature is None:
        stated["temperature"] = 1.0
    if config.max_new_tokens is None and config.max_length is not None and model.dims.arch == "encdec":
        stated["max_tokens"] = max(1, config.max_length - 1)  # behind the start token
    return {name: value for name, value in stated.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Choosing:
    """How one model chooses tokens.

    Attributes:
        config: What its `generate` takes: its own settings, and over them those that were asked for.
        stops: Strings at which a response ends. Apart, since `generate` would hand the tokenizer that they need on to
            every forward pass.
        replaced: Settings of its file that are replaced, and by what; no number changes by it.
        runs_more: Whether `generate` makes passes of its own between those of the response.
        reads_prompt: Whether what is chosen depends on the prompt's tokens beside its logits, padding included.
    """

    config: GenerationConfig
    stops: tuple[str, ...]
    replaced: Mapping[str, str]
    runs_more: bool
    reads_prompt: bool


def choosing_of(loaded: LoadedModel, sampling: Sampling) -> Choosing:
    """Returns how a model chooses tokens, by its own generation_config.json and over it by `sampling`.

    Raises:
        Unsupported: a way to choose that cannot be recorded, or a setting that changes what the model computes.
    """
    config = _own_config(loaded)
    for name, value in _settings(loaded, config, sampling).items():
        setattr(config, name, value)
    _refuse(loaded, config)
    own: str | list[str] = config.stop_strings or []
    config.stop_strings = None
    return Choosing(
        config,
        (*([own] if isinstance(own, str) else own), *sampling.stop),
        _replace(config),
        config.guidance_scale not in (None, 1),
        any(_is_set(config, name) for name in _READ_THE_PROMPT),
    )


def _settings(loaded: LoadedModel, config: GenerationConfig, sampling: Sampling) -> dict[str, Any]:
    greedy = not sampling.temperature
    return {
        "max_new_tokens": sampling.max_tokens,
        "do_sample": not greedy,
        # The neutral values, which transformers does not complain of when they are of no use.
        "temperature": 1.0 if greedy else sampling.temperature,
        "top_k": 50 if greedy else sampling.top_k,
        "top_p": 1.0 if greedy or sampling.top_p is None else sampling.top_p,
        "num_beams": sampling.num_beams,
        "num_return_sequences": sampling.num_return_sequences,
        "pad_token_id": valid_pad_id(
            loaded.model, loaded.pad_id if config.pad_token_id is None else config.pad_token_id
        ),
        "return_dict_in_generate": True,
        "output_attentions": False,
        "output_hidden_states": False,
        "output_scores": False,
        "output_logits": False,
        "disable_compile": True,  # a compiled pass would not call the hooks
        **sampling.more,
    }


# Their processors look at all tokens so far, and would take padding before a prompt for tokens of it.
_READ_THE_PROMPT = (
    "bad_words_ids",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "forced_bos_token_id",
    "guidance_scale",
    "min_length",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "sequence_bias",
    "watermarking_config",
)
_NEUTRAL = (None, False, 0, 1, 1.0)
_MODES = ("greedy_search", "sample", "beam_search", "beam_sample")
_OFFLOADED = {"offloaded": None, "offloaded_static": "static"}
# Tokens are guessed and then proved to be those that would have been chosen: which ones is the same without.
_GUESSING = ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


def _is_set(config: GenerationConfig, name: str) -> bool:
    return getattr(config, name, None) not in _NEUTRAL


def _guesses(config: GenerationConfig, name: str) -> bool:
    return getattr(config, name, None) not in (None, False)


def _refuse(loaded: LoadedModel, config: GenerationConfig) -> None:
    """Refuses what changes what the model computes, or chooses otherwise than token by token."""
    reasons = {
        "cache_implementation": "it rounds the keys and values that later tokens look at"
        if config.cache_implementation == "quantized"
        else "",
        "token_healing": "it changes the prompt" if config.token_healing else "",
        "is_assistant": "the model would only guess for another one" if config.is_assistant else "",
    }
    for name in _GUESSING:
        if _guesses(config, name) and config.do_sample:
            reasons[name] = (
                "with it other random numbers decide than without; at `temperature=0` it makes no difference"
            )
    for name, why in reasons.items():
        if why:
            raise Unsupported(
                f"{name}={getattr(config, name)!r} of {loaded.name}'s generation_config.json",
                why=why,
                hint=f'take it out there, or in Python more={{"{name}": None}}',
            )
    plain = copy.deepcopy(config)
    for name in _GUESSING:
        setattr(plain, name, None)
    mode = str(plain.get_generation_mode().value)
    if mode not in _MODES:
        names = ("penalty_alpha", "dola_layers", "num_beam_groups", "constraints", "force_words_ids")
        asking = ", ".join(f"{name}={getattr(config, name)!r}" for name in names if _is_set(config, name))
        raise Unsupported(
            f"{mode.replace('_', ' ')}, which {loaded.name}'s generation_config.json asks for with {asking}",
            why=f"transformers can choose tokens here by {', '.join(each.replace('_', ' ') for each in _MODES)}",
            hint="take it out there",
        )


def _replace(config: GenerationConfig) -> dict[str, str]:
    """Puts in place of settings what gives the same numbers and can be recorded; returns which, and what is there."""
    replaced: dict[str, str] = {}

    def put(name: str, value: Any, instead: str) -> None:
        replaced[name] = instead
        setattr(config, name, value)

    config.max_length = None  # `max_new_tokens` has the last word in transformers, too
    if config.use_cache is False:
        put("use_cache", True, "a cache")
    if config.cache_implementation in _OFFLOADED:
        put("cache_implementation", _OFFLOADED[config.cache_implementation], "a cache on the model's own device")
    if config.prefill_chunk_size:
        put("prefill_chunk_size", None, "one pass over the prompt")
    for name in _GUESSING:
        if _guesses(config, name):
            put(name, None, "one pass per token")
    config.use_cache = True
    return replaced
