"""Everything that is known of a generation before its first byte is written."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

from traceformer.capture.architectures import architecture_of
from traceformer.capture.encoding import Encoder
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.projecting import Traits
from traceformer.capture.prompts import ReadPrompt, read_prompts
from traceformer.capture.sampling import Sampling
from traceformer.errors import Unsupported, UsageError
from traceformer.models import LoadedModel, load_model
from traceformer.sites import Selection, Stack
from traceformer.store.layout import RunLayout
from traceformer.texts.prompts import PromptSet, all_prompt_sets, load_prompt_set, load_prompts, one_prompt

__all__ = ["DEFAULT_CAPTURE", "GenerateRequest", "PreparedGeneration", "prepare_generation"]

DEFAULT_CAPTURE = ("attn", "token_embed", "norms", "attn_out", "mlp_out", "logits")
"""What nanochat traces hold."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What to generate and record; the fields are what `traceformer generate` takes.

    Exactly one of `prompt`, `prompts`, `prompt_set` and `all_prompt_sets` says what to answer. `experiment` is a
    folder of runs, `out_dir` the run's own.
    """

    model: str
    prompt: str | None = None
    prompts: Path | None = None
    prompt_set: str | None = None
    all_prompt_sets: bool = False
    category: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 42
    chat: bool = False
    selection: Selection = field(default_factory=lambda: Selection(DEFAULT_CAPTURE))
    traits: Traits | None = None
    lens_top_k: int | None = None
    capture_steps: bool = False
    replay: bool = False
    batch_size: int = 8
    dtype: Literal["float16", "float32", "bfloat16"] = "float16"
    experiment: Path | None = None
    out_dir: Path | None = None
    device: str | None = None
    model_dtype: str | None = None
    revision: str | None = None
    allow_pickle: bool = False
    resume: bool = False
    overwrite: bool = False
    command_line: str = ""

    def prompt_sets(self) -> tuple[PromptSet, ...]:
        """Returns the prompts that are meant.

        Raises:
            UsageError: none are named, or in several ways.
            NotFound, Unreadable: a file or set that is not there, or malformed.
        """
        ways = (self.prompt, self.prompts, self.prompt_set, self.all_prompt_sets or None)
        if sum(way is not None for way in ways) != 1:
            raise UsageError(
                "no prompt" if not any(way is not None for way in ways) else "prompts are named in several ways",
                hint="give one of `prompt`, `prompts`, `prompt_set` and `all_prompt_sets`",
            )
        if self.prompt is not None:
            return (one_prompt(self.prompt),)
        if self.prompts is not None:
            return (load_prompts(self.prompts),)
        return all_prompt_sets() if self.prompt_set is None else (load_prompt_set(self.prompt_set),)


@dataclass(frozen=True, slots=True)
class PreparedGeneration:
    """The prompts, the model, and what will be recorded of it in which layout."""

    request: GenerateRequest
    sets: tuple[PromptSet, ...]
    prompts: Sequence[ReadPrompt]
    loaded: LoadedModel
    encoder: Encoder
    plan: Plan
    layout: RunLayout

    @property
    def is_replay(self) -> bool:
        """Beams and several responses are always replayed, and so are scores, which include those of future keys."""
        request = self.request
        return request.replay or request.sampling.is_searched or "attn_scores" in request.selection.sites

    def batch(self, shard: int) -> Sequence[ReadPrompt]:
        """The prompts of one shard."""
        size = self.layout.shard_examples // self.request.sampling.num_return_sequences
        return self.prompts[shard * size : (shard + 1) * size]


def prepare_generation(request: GenerateRequest, loaded: LoadedModel | None = None) -> PreparedGeneration:
    """Returns all that a generation needs, with the model that is loaded already if there is one; writes nothing.

    Raises:
        NotFound, Unreadable: no such model or prompts, or not what they should be.
        UsageError: no prompt, or one that does not fit into the model's context.
        Unsupported: a model that generates no text, or a site that it has no place for.
    """
    if request.batch_size < 1:
        raise UsageError(f"`batch_size={request.batch_size}`", hint="give 1 or more")
    sets = request.prompt_sets()
    loaded = loaded or load_model(
        request.model,
        revision=request.revision,
        device=request.device,
        dtype=request.model_dtype,
        with_head=True,
        allow_pickle=request.allow_pickle,
    )
    if loaded.dims.arch == "enc" or not loaded.model.can_generate():
        raise Unsupported(
            f"{loaded.name} generates no text", why="it has no decoder", hint="traceformer extract records encoders"
        )
    architecture = architecture_of(loaded.config)
    plan = plan_arrays(
        request.selection,
        architecture,
        loaded.dims,
        has_head=True,
        traits=request.traits,
        lens_top_k=request.lens_top_k,
        model=loaded.model,
    )
    if plan.left_out:
        warnings.warn(f"{loaded.name} has no {', '.join(plan.left_out)}: left out", stacklevel=2)
    sampling = request.sampling
    encoder = Encoder(loaded, "auto", max_target_tokens=64)  # there are no targets
    prompts = read_prompts(loaded, encoder, sets, chat=request.chat, max_tokens=sampling.max_tokens)
    layout = RunLayout.plan(
        arch=loaded.dims.arch,
        arrays=plan.arrays,
        n_examples=len(prompts) * sampling.num_return_sequences,
        longest={stack: max(lengths) for stack, lengths in _lengths(prompts, sampling.max_tokens).items()},
        mean={stack: fmean(lengths) for stack, lengths in _lengths(prompts, sampling.max_tokens).items()},
        dtype=request.dtype,
        shard_examples=min(request.batch_size, len(prompts)) * sampling.num_return_sequences,
    )
    return PreparedGeneration(request, sets, prompts, loaded, encoder, plan, layout)


def _lengths(prompts: Sequence[ReadPrompt], max_tokens: int) -> Mapping[Stack, list[int]]:
    """The most tokens that each prompt and its response can have; an encoder-decoder's response has a start token."""
    [stack] = prompts[0].row.ids
    lengths = [prompt.row.length(stack) for prompt in prompts]
    if stack == "enc":
        return {"enc": lengths, "dec": [1 + max_tokens] * len(prompts)}
    return {"dec": [length + max_tokens for length in lengths]}
