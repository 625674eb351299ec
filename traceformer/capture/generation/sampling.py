"""How the next token is chosen, in transformers' settings."""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import GenerationConfig

from traceformer.errors import UsageError
from traceformer.models.loaded import LoadedModel, valid_pad_id

__all__ = ["Sampling", "generation_config"]

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
    generation_config.json says.

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

    @property
    def is_searched(self) -> bool:
        """Whether what was computed on the way is not what the final sequences would give."""
        return self.num_beams > 1 or self.num_return_sequences > 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def generation_config(loaded: LoadedModel, sampling: Sampling) -> tuple[GenerationConfig, list[str]]:
    """Returns the settings that a model's `generate` takes, its own and over them those of `sampling`; stop strings.

    Stop strings come apart, since `generate` would hand the tokenizer that they need on to every forward pass.
    """
    config = copy.deepcopy(loaded.model.generation_config)
    assert isinstance(config, GenerationConfig)
    greedy = not sampling.temperature
    settings: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "max_length": None,
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
        "use_cache": True,
        **sampling.more,
    }
    own: str | list[str] = config.stop_strings or []
    settings["stop_strings"] = None
    for name, value in settings.items():
        setattr(config, name, value)
    return config, [*([own] if isinstance(own, str) else own), *sampling.stop]
