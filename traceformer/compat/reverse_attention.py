"""ReverseAttentionTracer: which tokens of a text led a model to a token (document 3).

    from traceformer import ReverseAttentionTracer

    tracer = ReverseAttentionTracer(model, tokenizer)
    result = tracer.trace_text("The quick brown fox jumps over the lazy dog.")
    for path in result.paths_text:
        print(path)
    tracer.render_html(result, "output")

The model runs as far as the layer that is asked for (`recording`). Its combined heads and its tokens go to
`analysis.paths`, which searches and knows nothing of models.
"""

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Int

from traceformer.analysis.paths.result import TraceResult
from traceformer.analysis.paths.trace import PathOptions, TokenRow, trace_paths
from traceformer.errors import UsageError
from traceformer.formats.path_files import model_name, save_trace
from traceformer.questions.live_paths import Text, record
from traceformer.sites import Stack
from traceformer.texts.shown import pieces_decoded

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ReverseAttentionTracer"]

LayerChoice: TypeAlias = int | Literal["all"]


class ReverseAttentionTracer:
    """Traces attention backward through one model: any whose attention patterns can be recorded.

    Args:
        model: A Hugging Face model, in whatever attention implementation it was loaded with. In train mode it stays so,
            and is traced in eval mode.
        tokenizer: Its tokenizer.
        device: Where to run; the model is moved there. Where it is, by default.
        dtype: What to compute in; the model is converted. What it is in, by default.
    """

    def __init__(self, model: "nn.Module", tokenizer: Any, device: Any = None, dtype: Any = None) -> None:
        from traceformer.models.dims import ModelDims
        from traceformer.models.held import underneath

        self.model = underneath(model)
        wanted = {"device": device, "dtype": dtype}
        if any(value is not None for value in wanted.values()):
            self.model.to(**{name: value for name, value in wanted.items() if value is not None})
        self.tokenizer = tokenizer
        self.device = self.model.device
        self.dtype = self.model.dtype
        self._dims = ModelDims.from_config(self.model.config)

    def trace_text(
        self, text: str, target_pos: int | None = None, *, target_text: str | None = None, **options: Any
    ) -> TraceResult:
        """Returns the paths that lead to a token of a text; options as in `trace`.

        An encoder-decoder reads `text`; with `target_text` the paths lead from a token of that into the source.
        """
        if target_text is not None:
            options["decoder_input_ids"] = self._decoder_inputs(target_text)
        return self.trace(self.tokenizer(text)["input_ids"], target_pos, **options)

    def trace(
        self,
        input_ids: Any,
        target_pos: int | None = None,
        attention_mask: Any = None,
        layer: LayerChoice = -1,
        top_beam: int = 5,
        top_k: int = 5,
        min_attn: float = 0.0,
        agg_heads: str | int = "mean",
        length_norm: str = "avg_logprob",
        stop_at_bos: bool = True,
        bos_token_id: int | None = None,
        *,
        decoder_input_ids: Any = None,
        **options: Any,
    ) -> TraceResult:
        """Returns the paths that lead to a token, best first.

        Args:
            input_ids: Token ids, (1, token) or (token).
            target_pos: Where the paths begin; negative counts from the end. The last token by default.
            attention_mask: One number per token, 0 for padding. Without it, padding is known by the padding token's
                id, if that token means nothing else.
            layer: The layer to trace in, negative counting from the last; or "all", for paths that go down one layer
                with every edge.
            top_beam: How many paths are kept at each step, and returned.
            top_k: How many edges of each token are tried.
            min_attn: Weaker edges are left out.
            agg_heads: `mean`, `max` (the strongest head for each edge, named in the result), `none` (each head by
                itself: the result's `heads`), or a head's number.
            length_norm: How a path's score depends on its edges: `none`, `avg_logprob`, `sqrt` or `pow:0.7`.
            stop_at_bos: Whether paths end at the tokens that begin a text (in an encoder: begin or end it).
            bos_token_id: Another id for that than the tokenizer's.
            decoder_input_ids: What an encoder-decoder's decoder reads; the target is one of these, and paths lead
                through the decoder into the source.
            options: `search` ("beam" or "exact"), `weighting` ("attention", "rollout", "value-norm"), `exclude_self`
                and `exclude_sink` (leave these out and bring rows back to their sum), `certify` (compare with the
                best paths there are), `max_flow` (across layers, the largest flow from each input).

        Raises:
            UsageError: an argument out of range, or shapes that do not fit.
            Unsupported: this model's attention cannot be recorded, or not searched in this way.
        """
        chosen = PathOptions(top_beam, top_k, min_attn, agg_heads, length_norm, stop_at_bos, **options)
        target = -1 if target_pos is None else target_pos
        return self._trace(input_ids, [target], attention_mask, layer, chosen, bos_token_id, decoder_input_ids)[0]

    def trace_targets(
        self,
        input_ids: Any,
        targets: Sequence[int],
        attention_mask: Any = None,
        layer: LayerChoice = -1,
        *,
        bos_token_id: int | None = None,
        decoder_input_ids: Any = None,
        **options: Any,
    ) -> list[TraceResult]:
        """Returns the paths that lead to each of these tokens, from one pass of the model; options as in `trace`."""
        chosen = PathOptions(**options)
        return self._trace(input_ids, targets, attention_mask, layer, chosen, bos_token_id, decoder_input_ids)

    def render_html(self, result: TraceResult, out_dir: str | Path, open_browser: bool = False) -> str:
        """Returns the path of an HTML file that shows a result, complete in itself; `trace.json` lies beside it."""
        from traceformer import paths_html

        folder = Path(out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / "index.html"
        page.write_text(paths_html(result), encoding="utf-8")
        save_trace(result, folder / "trace.json")
        if open_browser:
            webbrowser.open(page.resolve().as_uri())
        return str(page)

    def _trace(
        self,
        input_ids: Any,
        targets: Sequence[int],
        attention_mask: Any,
        layer: LayerChoice,
        options: PathOptions,
        bos_token_id: int | None,
        decoder_input_ids: Any,
    ) -> list[TraceResult]:
        text, source = self._read(input_ids, attention_mask), None
        stack: Stack = "dec" if self._dims.arch == "dec" else "enc"
        if decoder_input_ids is not None:
            if self._dims.arch != "encdec":
                raise UsageError("this model has no decoder beside an encoder", hint="leave the target text out")
            source, stack = text, "dec"
            # Never padded: T5's start token is its padding token.
            text = self._read(decoder_input_ids, np.ones_like(_as_row(decoder_input_ids, "decoder_input_ids")))
        tokens = self._tokens(text, stack, bos_token_id)
        weights = record(self.model, self._dims, text, layer, options, stack=stack, source=source)
        name = model_name(self.model.config.name_or_path or type(self.model).__name__)
        settings = {"model": name, "stack": stack}
        origin = None if source is None else self._tokens(source, "enc", None)
        return trace_paths(weights, tokens, targets, options, source=origin, settings=settings)

    def _read(self, ids: Any, mask: Any) -> Text:
        """The token ids and which of them are true tokens.

        Raises:
            UsageError: a shape that does not fit, no token at all, an id without an embedding, or too many tokens.
        """
        numbers = _as_row(ids, "input_ids")
        if not len(numbers):
            raise UsageError("there is no token to trace", hint="give a text that is not empty")
        n_embeddings = int(self.model.get_input_embeddings().weight.shape[0])  # pyright: ignore
        if not 0 <= numbers.min() <= numbers.max() < n_embeddings:
            raise UsageError("a token id has no embedding", why=f"the model knows ids 0-{n_embeddings - 1}")
        if mask is None:
            names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
            pad = self.tokenizer.pad_token_id
            # A padding token that means something else as well is no sign of padding.
            means_more = pad is None or pad in {getattr(self.tokenizer, name, None) for name in names}
            allowed = np.ones(len(numbers), bool) if means_more else numbers != pad
        else:
            allowed = _as_row(mask, "attention_mask") != 0
        if len(allowed) != len(numbers):
            raise UsageError(f"a mask of {len(allowed)} for {len(numbers)} tokens")
        if not allowed.any():
            raise UsageError("all tokens are padding")
        n_ctx = max(dims.n_ctx for dims in self._dims.stacks.values())
        if 0 < n_ctx < len(numbers):
            raise UsageError(f"{len(numbers)} tokens are more than the model's {n_ctx}", hint="trace a shorter text")
        return Text(numbers, allowed)

    def _decoder_inputs(self, target_text: str) -> list[int]:
        """The target's tokens as the decoder reads them: shifted right, behind its start token."""
        start = getattr(self.model.config, "decoder_start_token_id", None)
        if start is None:
            raise UsageError("this model has no decoder beside an encoder", hint="leave the target text out")
        return [start, *self.tokenizer(text_target=target_text)["input_ids"]][:-1]

    def _tokens(self, text: Text, stack: Stack, bos_token_id: int | None) -> TokenRow:
        ids, tokenizer = text.ids.tolist(), self.tokenizer
        pieces = pieces_decoded(tokenizer.convert_ids_to_tokens(ids), [tokenizer.decode([each]) for each in ids])
        ends = {tokenizer.bos_token_id if bos_token_id is None else bos_token_id}
        if stack == "enc":
            ends |= {getattr(tokenizer, name, None) for name in ("cls_token_id", "sep_token_id", "eos_token_id")}
        is_end = np.array([each in ends for each in ids])
        return TokenRow(ids, [piece.text for piece in pieces], [piece.hex for piece in pieces], is_end, text.allowed)


def _as_row(values: Any, name: str) -> Int[np.ndarray, "token"]:
    """One text's numbers, from (1, token) or (token).

    Raises:
        UsageError: another shape, or no whole numbers.
    """
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1:
        raise UsageError(f"{name} of shape {array.shape}", hint="one text at a time: (1, token) or (token)")
    if array.size and array.dtype.kind not in "iub":
        raise UsageError(f"{name} are {array.dtype}, not whole numbers")
    return array.astype(np.int64)
