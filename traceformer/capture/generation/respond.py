"""One batch of prompts to its responses, with the model's own `generate`, observed or not.

1. A decoder's prompts are padded on the left with explicit positions; an encoder-decoder's are read by its encoder.
2. `generate` runs, seeded for this batch. Observed, every pass of it writes its columns to the batch's memory.
3. `generate` never runs the last token it chose: one more pass over its cache does.
4. A row's response ends with its first end token or stop string; what was padded behind it is dropped.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, TextStreamer
from transformers.generation.configuration_utils import ALL_STATIC_CACHE_IMPLEMENTATIONS

from traceformer.capture.batches import BatchInputs
from traceformer.capture.encoding import Encoded
from traceformer.capture.generation.grow import BatchMemory
from traceformer.capture.generation.sampling import Choosing, Sampling
from traceformer.capture.plan import Plan
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.capture.sharing import Sharing
from traceformer.capture.sinks import Spans
from traceformer.errors import NumericError, TraceformerError, Unsupported
from traceformer.models.load import quiet
from traceformer.models.loaded import LoadedModel
from traceformer.sites import ArraySpec, Stack

__all__ = ["Responder", "Responses", "keeps_a_cache"]

_CACHES = ("cache", "past_key_values", "cache_params", "state")  # the first since transformers 5.24; Mamba's, RWKV's


@dataclass(frozen=True, slots=True)
class Responses:
    """The tokens of each response, its end token included, prompt by prompt; what was observed, and where it lies."""

    tokens: list[list[int]]
    memory: BatchMemory | None
    spans: Spans


class Responder:
    """Generates from batches of prompts with one model and one way to choose tokens.

    Args:
        loaded: the model.
        sampling: how tokens are chosen.
        choosing: the same, in this model's settings.
        on_step: told how many tokens were chosen, after each pass.
        on_text: given the text of a batch of one prompt, piece by piece.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sampling: Sampling,
        choosing: Choosing,
        *,
        on_step: Callable[[int], None] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self._loaded = loaded
        self._sampling = sampling
        self._config, self._stop_strings = choosing.config, choosing.stops
        self._reads_prompt = choosing.reads_prompt
        self._inputs = BatchInputs(loaded)
        self._watch = None if on_step is None else _Watch(on_step)
        self._on_text = on_text

    def apart(self, prompts: Sequence[Encoded], sharing: Sharing) -> list[list[int]]:
        """Returns the numbers of a batch's prompts in as many parts as must be answered apart.

        What looks at a prompt's tokens to choose would take padding for some of them, and what hands a state on from
        token to token would begin with it: then those of one length go together.
        """
        lengths = [prompt.lengths for prompt in prompts]
        parts = sharing.parts(range(len(prompts)), lengths, growth=self._sampling.max_tokens)
        if not self._reads_prompt and sharing.reads_behind_padding:
            return parts
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, part in enumerate(parts):
            for number in part:
                alike.setdefault((index, *lengths[number].values()), []).append(number)
        return [*alike.values()]

    def plain(self, prompts: Sequence[Encoded], seed: int) -> Responses:
        """Returns the responses to a batch of prompts; nothing is observed."""
        inputs, _ = self._inputs.to_continue(prompts)
        Sharing(self._loaded.model).settle()
        with quiet(transformers), torch.inference_mode():
            sequences = self._generate(inputs, seed).sequences
        return Responses(self._cut(sequences, inputs), None, {})

    def observed(self, prompts: Sequence[Encoded], seed: int, plan: Plan, dtype: torch.dtype) -> Responses:
        """Returns the responses to a batch of prompts, and everything that was to be seen on the way."""
        inputs, spans = self._inputs.to_continue(prompts)
        longest: dict[Stack, int] = {stack: max(span.stop for span in own) for stack, own in spans.items()}
        n_prompt = longest["dec"] if self._is_decoder else 1
        columns: dict[Stack, int] = {**longest, "dec": n_prompt + self._sampling.max_tokens}
        memory = BatchMemory(plan.arrays, batch=len(prompts), columns=columns, dtype=dtype, device=self._inputs.device)
        with quiet(transformers), torch.inference_mode():
            self._observe_prompt_logits(inputs, plan.arrays, memory)
            recording = Recorder(self._loaded.model, plan.arrays, None, plan.architecture, plan.derived)
            with recording as recorder, recorder.growing(memory) as growth, _positions_of(self._loaded.model) as own:
                more = {} if self._is_decoder else {"encoder_outputs": self._encode(inputs)}
                output = self._generate(inputs, seed, **more)
                growth.seen["dec"] = output.sequences.shape[1] - 1
                self._run_last_token(output, inputs, more, own)
        tokens = self._cut(output.sequences, inputs)
        starts = [span.start for span in spans["dec"]] if self._is_decoder else [0] * len(prompts)
        own = [Span(start, n_prompt + len(row)) for start, row in zip(starts, tokens, strict=True)]
        return Responses(tokens, memory, {**spans, "dec": own})

    @property
    def _is_decoder(self) -> bool:
        return self._loaded.dims.arch == "dec"

    def _generate(self, inputs: dict[str, Tensor], seed: int, **more: Any) -> Any:
        batch, length = inputs["input_ids"].shape
        config = self._config
        n_prompt = length if self._is_decoder else 1
        criteria: list[StoppingCriteria] = [] if self._watch is None else [self._watch]
        if self._stop_strings:
            criteria.append(_Stop(lambda row: self._has_stop(row[n_prompt:])))
        if config.cache_implementation in ALL_STATIC_CACHE_IMPLEMENTATIONS:
            config.max_cache_len = n_prompt + self._sampling.max_tokens  # a static one with room for the last token
        streamer = _Pieces(self._loaded.tokenizer, self._on_text) if self._on_text and self._streams(batch) else None
        with _seeded(seed, self._inputs.device), _settings(self._loaded.model, config), _explained(self._loaded.name):
            return self._loaded.model.generate(  # pyright: ignore[reportCallIssue]
                **inputs,
                **more,
                generation_config=config,
                logits_processor=[_Finite()],
                stopping_criteria=criteria,
                streamer=streamer,
            )

    def _streams(self, batch: int) -> bool:
        return batch == 1 and not self._sampling.is_searched

    def _encode(self, inputs: dict[str, Tensor]) -> Any:
        return self._loaded.model.get_encoder()(**inputs, return_dict=True)

    def _run_last_token(
        self, output: Any, inputs: dict[str, Tensor], more: dict[str, Any], positions: Sequence[Tensor]
    ) -> None:
        last = output.sequences[:, -1:]
        cache = next(name for name in _CACHES if name in self._inputs.accepted)
        given: dict[str, Any] = {cache: output.past_key_values, "use_cache": True, "return_dict": True}
        mask = inputs["attention_mask"]
        if not self._is_decoder:
            self._loaded.model(decoder_input_ids=last, attention_mask=mask, **more, **given)
            return
        if not bool(mask.all()):  # as `generate` leaves it out, too
            grown = mask.new_ones(len(mask), output.sequences.shape[1] - mask.shape[1])
            given["attention_mask"] = torch.cat([mask, grown], dim=1)
        if "position_ids" in inputs:
            given["position_ids"] = inputs["position_ids"][:, -1:] + output.sequences.shape[1] - mask.shape[1]
        elif positions:  # the model's own, which the pass before was given
            given["position_ids"] = positions[-1][..., -1:] + 1
        self._loaded.model(input_ids=last, **given)

    def _observe_prompt_logits(
        self, inputs: dict[str, Tensor], arrays: Sequence[ArraySpec], memory: BatchMemory
    ) -> None:
        """Has all logits of the prompt computed where `generate` asks for the last ones only.

        In a pass of its own: asking for more of them there could change a result in its last bit.
        """
        logits = [spec for spec in arrays if spec.key.site == "logits"]
        if not logits or not self._is_decoder or "logits_to_keep" not in self._inputs.accepted:
            return
        with (
            Recorder(self._loaded.model, logits, None, self._loaded.architecture) as recorder,
            recorder.growing(memory),
        ):
            self._loaded.model(**inputs, use_cache=False, return_dict=True)

    def _cut(self, sequences: Tensor, inputs: dict[str, Tensor]) -> list[list[int]]:
        """The response of each row, without what was padded behind its end."""
        start = inputs["input_ids"].shape[1] if self._is_decoder else 1
        eos: int | list[int] | None = self._config.eos_token_id
        ends = {eos} if isinstance(eos, int) else {*(eos or ())}
        return [self._cut_row(row, ends) for row in sequences[:, start:].tolist()]

    def _cut_row(self, row: list[int], ends: set[int]) -> list[int]:
        row = row[: next((n + 1 for n, token in enumerate(row) if token in ends), len(row))]
        if self._has_stop(row):
            return row[: next(n for n in range(1, len(row) + 1) if self._has_stop(row[:n]))]
        return row

    def _has_stop(self, row: list[int]) -> bool:
        text = self._loaded.tokenizer.decode(row) if self._stop_strings else ""
        return any(stop in text for stop in self._stop_strings)


def keeps_a_cache(loaded: LoadedModel) -> bool:
    """Whether a model takes what it keeps of earlier tokens, so that its last token can be run behind a response."""
    accepted = BatchInputs(loaded).accepted
    return "use_cache" not in accepted or any(name in accepted for name in _CACHES)


@contextmanager
def _positions_of(model: Any) -> Generator[list[Tensor]]:
    """Yields the positions that the latest pass in the block was given; nothing where passes are given none."""
    latest: list[Tensor] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own = kwargs.get("position_ids")
        latest[:] = [] if own is None else [own]

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield latest
    finally:
        handle.remove()


@contextmanager
def _seeded(seed: int, device: str) -> Generator[None]:
    """Has random numbers follow from a seed in the block, and go on behind it as if nothing had been drawn."""
    apple = torch.mps.get_rng_state() if device.startswith("mps") else None  # `fork_rng` knows no such device
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if apple is not None:
                torch.mps.set_rng_state(apple)


@contextmanager
def _settings(model: Any, config: GenerationConfig) -> Generator[None]:
    """Makes these the model's own in the block: `generate` takes from its own what a given config has as None."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _explained(name: str) -> Generator[None]:
    """Turns what transformers says of settings that it cannot generate with into one of our errors."""
    try:
        yield
    except (torch.OutOfMemoryError, TraceformerError, BrokenPipeError):
        raise
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        text = str(error).strip()
        raise Unsupported(
            f"the generate() of {name} fails",
            why=f"{type(error).__name__}: {text.splitlines()[0] if text else 'transformers does not say why'}",
            hint="other settings, in its generation_config.json or, in Python, as more={...}",
        ) from error


class _Finite(LogitsProcessor):
    """Stops at logits that are no numbers: sampling from them would fail without saying why, greedily it would not."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not math.isfinite(scores.amax().item()):
            raise NumericError(
                f"the model's logits are {'NaN' if bool(scores.isnan().any()) else 'infinite'}",
                why=f"after {input_ids.shape[1]} tokens",
                hint='check its weights, and the dtype it runs in (`dtype="float32"`)',
            )
        return scores


class _Watch(StoppingCriteria):
    """Counts, and never stops."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        self._on_step(len(input_ids))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Stop(StoppingCriteria):
    """Ends each row as soon as a condition holds of it."""

    def __init__(self, holds: Callable[[list[int]], bool]) -> None:
        self._holds = holds

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return torch.tensor([self._holds(row) for row in input_ids.tolist()], device=input_ids.device)


class _Pieces(TextStreamer):
    """Hands text over as soon as whole words are there."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._hand_over = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._hand_over(text + "\n" * stream_end)
