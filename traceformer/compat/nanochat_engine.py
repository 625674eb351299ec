"""InterpretabilityEngine, the front end that nanochat traces come from.

Generation is recorded into a run (see `capture/generation/`), which is the truth; the trace, a JSON file,
is exported from it.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS, ConventionName
from traceformer.analysis.statistics import AttentionTally, ValueTally, logit_statistics
from traceformer.analysis.visibility import Visibility, looks_ahead, visibility_of
from traceformer.compat.trace_storage import TraceStorage, new_trace_id
from traceformer.errors import Unsupported
from traceformer.formats.nanochat_json.trace_writer import write_trace
from traceformer.formats.nanochat_json.traces import Captures, Tensor, Trace, read_trace
from traceformer.formats.nanochat_json.write import ACTIVATION_SITES, trace_of
from traceformer.models.dims import ModelDims
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.shapes import Float
from traceformer.sites import ArrayKey, Selection
from traceformer.store.dtypes import ReadDtype
from traceformer.store.meta import RunMeta
from traceformer.store.place import Place, Storage
from traceformer.texts.prompts import one_prompt

if TYPE_CHECKING:
    from torch import nn

__all__ = ["InterpretabilityEngine", "TraceStorage"]

_TOP = 5
_CAPTURE = ("attn", "token_embed", "norms", "attn_out", "mlp_out", "logits")  # what a nanochat trace holds


class InterpretabilityEngine:
    """Answers prompts with a Hugging Face causal model, and keeps what happened inside it.

        engine = InterpretabilityEngine(model, tokenizer, "traces")
        result = engine.generate_and_capture("The capital of France is", category="geography", max_tokens=50)
        engine.analyze_trace(result["trace_id"])["analysis"]["attention"]["layer_stats"]["0"]["attention_entropy"]

    Each call leaves `{trace_id}.json` in `traces_dir`, and beside it the run that it was exported from, a folder
    named after the trace: `Run(engine.run_of(trace_id))` reads any part of it.

    Args:
        model: A causal language model, of any family that `traceformer check` supports.
        tokenizer: Its tokenizer.
        traces_dir: Where traces go; made if it is not there.
    """

    def __init__(self, model: "nn.Module", tokenizer: Any, traces_dir: str | Path = "traces") -> None:
        from traceformer.models.held import underneath

        self.model = underneath(model)
        self.tokenizer = tokenizer
        self.storage = TraceStorage(traces_dir)
        self._dims = ModelDims.of(self.model)
        if self._dims.arch != "dec":
            raise Unsupported(
                f"{type(self.model).__name__} is no causal language model",
                why="a trace has one sequence of tokens",
                hint="traceformer extract and generate record encoders and encoder-decoders",
            )
        self._last: Captures | None = None

    @cached_property
    def _loaded(self) -> LoadedModel:
        return load_model(self.model, self.tokenizer)

    def run_of(self, trace_id: str) -> Path:
        """Returns the folder of the run that a trace was exported from."""
        return self.storage.path(trace_id).with_suffix("")

    def generate_and_capture(
        self,
        prompt: str,
        category: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_tokens: int = 256,
        temperature: float = 0.6,
        top_k: int = 50,
        seed: int = 42,
        capture_intermediate_steps: bool = False,
    ) -> dict[str, Any]:
        """Returns trace_id, prompt, response, prompt_tokens, response_tokens and metadata of a new trace.

        Args:
            prompt: Text to go on from, as the tokenizer reads it; no chat template.
            category: A label to find the trace by.
            metadata: What else to keep with it; JSON values.
            max_tokens: The longest response.
            temperature: 0 takes the most likely token.
            top_k: Out of how many tokens to choose.
            seed: The same seed gives the same response.
            capture_intermediate_steps: Whether the trace shows every step by itself, too.

        Raises:
            UsageError: an empty prompt, or one that leaves no room for `max_tokens` in the model's context.
            Unsupported: the model has no attention function to observe.
            NumericError: its logits are no numbers.
        """
        from traceformer.capture.generation.generate import answer
        from traceformer.capture.generation.prompts import Prompts
        from traceformer.capture.generation.sampling import Sampling

        trace_id, timestamp = new_trace_id(self.storage.base_dir)
        kind = str(self.model.dtype).removeprefix("torch.")
        storage = Storage(kind if kind in ("float16", "bfloat16") else "float32")
        store = answer(
            self._loaded,
            Prompts((one_prompt(prompt),), category=category),
            Selection(_CAPTURE),
            Place(folder=self.run_of(trace_id), storage=storage),
            sampling=Sampling.of(self._loaded, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed),
            capture_steps=capture_intermediate_steps,
        )
        trace = trace_of(store, store.example_id(0), trace_id=trace_id, steps=capture_intermediate_steps)
        head = replace(trace.head, timestamp=timestamp, metadata={**trace.head.metadata, **(metadata or {})})
        trace = replace(trace, head=head)
        write_trace(self.storage.path(trace_id), trace)
        self._last = trace.model_data
        settings = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "seed": seed}
        return {
            "trace_id": trace_id,
            "prompt": prompt,
            "response": trace.head.response,
            "prompt_tokens": list(trace.input_tokens),
            "response_tokens": list(trace.output_tokens),
            "metadata": {**self.storage.load_trace_metadata(trace_id), "generation_params": settings},
        }

    def clear_model_captures(self) -> None:
        """Forgets the last generation; its trace stays."""
        self._last = None

    def extract_model_captures(self, *, dtype: ReadDtype = "float32") -> dict[str, Any]:
        """Returns what the last generation showed, as torch tensors of a batch of one; None after a clear.

        They are float32 (float64 of a trace in float64); `dtype="stored"` leaves them in the model's own dtype.

        `token_embeddings` (1, T, d_model), `output_logits` (1, response, d_vocab), `attention_weights` per layer
        (1, head, T, T), `layer_activations` per layer pre_attn_norm, post_attn, pre_mlp_norm, post_mlp (1, T, d_model).
        """
        last, layers = self._last or Captures(), range(self._dims.stacks["dec"].n_layers)
        return {
            "token_embeddings": _torch(last.token_embeddings, dtype),
            "output_logits": _torch(last.output_logits, dtype),
            "attention_weights": [_torch(last.attention.get(layer), dtype) for layer in layers],
            "layer_activations": [
                {name: _torch(last.activations.get(layer, {}).get(name), dtype) for name in ACTIVATION_SITES}
                for layer in layers
            ],
        }

    def analyze_trace(self, trace_id: str, convention: ConventionName = "nanochat") -> dict[str, Any]:
        """Returns trace_id, metadata, and `analysis`: attention, activations and logits in numbers.

        `layer_stats` are by layer ("0", "1", ...), means over heads; the convention is nanochat's unless told
        otherwise (see `analysis/statistics.py`).
        """
        trace = read_trace(self.storage.path(trace_id))
        return {
            "trace_id": trace_id,
            "metadata": self.storage.load_trace_metadata(trace_id),
            "analysis": _analysis(trace, convention),
        }


def _torch(tensor: Tensor | None, dtype: ReadDtype) -> Any:
    import torch

    if tensor is None:
        return None
    wide = torch.from_numpy(tensor.array())
    return wide.to(getattr(torch, tensor.dtype[6:])) if dtype == "stored" else wide


def _analysis(trace: Trace, convention: ConventionName) -> dict[str, Any]:
    data = trace.model_data
    found: dict[str, Any] = {}
    if data.attention:
        layers = {
            str(layer): _attention(tensor.array()[0], convention, _sight(trace, layer, tensor.array()[0]))
            for layer, tensor in data.attention.items()
        }
        found["attention"] = {"num_layers": len(layers), "layer_stats": layers}
    if data.activations:
        found["activations"] = {
            "layer_stats": {
                str(layer): {name: _values(tensor.array(), convention) for name, tensor in own.items()}
                for layer, own in data.activations.items()
            }
        }
    if data.output_logits is not None:
        found["logits"] = _logits(data.output_logits.array()[0], convention)
    return found


def _sight(trace: Trace, layer: int, pattern: Float[np.ndarray, "head query key"]) -> Visibility:
    """Which keys a query can see: by where it looks, and by what the trace says of its run's windows."""
    stated = trace.head.metadata.get("traceformer") or {}
    about = RunMeta.from_json(stated.get("run") or {})
    key = ArrayKey("enc" if about.arch == "enc" else "dec", "self", "attn_pattern")
    return visibility_of(about.attention, key, layer, ahead=looks_ahead(pattern))


def _attention(
    pattern: Float[np.ndarray, "head query key"], convention: ConventionName, sight: Visibility
) -> dict[str, float]:
    tally = AttentionTally(len(pattern), CONVENTIONS[convention], sight)
    tally.add(pattern)
    found = tally.result()
    return {
        "mean_attention": float(found.mean.mean()),
        "max_attention": float(found.max.max()),
        "attention_entropy": float(found.entropy.mean()),
        "head_sparsity": float(found.sparsity.mean()),
    }


def _values(values: Float[np.ndarray, "..."], convention: ConventionName) -> dict[str, float]:
    tally = ValueTally(CONVENTIONS[convention])
    tally.add(values)
    found = tally.result()
    return {name: getattr(found, name) for name in ("mean", "std", "max", "min", "sparsity")}


def _logits(logits: Float[np.ndarray, "position d_vocab"], convention: ConventionName) -> dict[str, Any]:
    rules = CONVENTIONS[convention]
    nothing = np.full(len(logits), -1)
    found = logit_statistics(logits, nothing, rules, top=min(_TOP, logits.shape[1]))
    values = _values(logits, convention) if logits.size else {"mean": float("nan"), "std": float("nan")}
    return {
        "mean_logit": values["mean"],
        "std_logit": values["std"],
        "entropy_per_position": found.entropy.tolist(),
        "top_tokens_per_position": found.top_ids.tolist(),
    }
