"""ReverseAttentionTracer: which tokens of a text led a model to a token (as in the package reverse-attention).

    from traceformer.compat import ReverseAttentionTracer

    tracer = ReverseAttentionTracer(model, tokenizer)
    result = tracer.trace_text("The quick brown fox jumps over the lazy dog.")
    for path in result.paths_text:
        print(path)
    tracer.render_html(result, "output")

The model runs as far as the layer that is asked for; `questions.live_paths` does that, and this is the package's
interface to it.
"""

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from traceformer.analysis.paths.result import Paths
from traceformer.analysis.paths.trace import PathOptions
from traceformer.formats.results.path_traces import save_trace
from traceformer.presentation import present
from traceformer.questions.live_paths import TracedModel

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
        self._traced = TracedModel(self.model, tokenizer, ModelDims.of(self.model))

    def trace_text(
        self, text: str, target_pos: int | None = None, *, target_text: str | None = None, **options: Any
    ) -> Paths:
        """Returns the paths that lead to a token of a text; options as in `trace`.

        An encoder-decoder reads `text`; with `target_text` the paths lead from a token of that into the source.
        """
        if target_text is not None:
            options["decoder_input_ids"] = self._traced.decoder_ids_of(target_text)
        return self.trace(self._traced.ids_of(text), target_pos, **options)

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
    ) -> Paths:
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
        return self._traced.trace(
            input_ids,
            [-1 if target_pos is None else target_pos],
            layer,
            chosen,
            attention_mask=attention_mask,
            bos_token_id=bos_token_id,
            decoder_input_ids=decoder_input_ids,
        )[0]

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
    ) -> list[Paths]:
        """Returns the paths that lead to each of these tokens, from one pass of the model; options as in `trace`."""
        return self._traced.trace(
            input_ids,
            targets,
            layer,
            PathOptions(**options),
            attention_mask=attention_mask,
            bos_token_id=bos_token_id,
            decoder_input_ids=decoder_input_ids,
        )

    def render_html(self, result: Paths, out_dir: str | Path, open_browser: bool = False) -> str:
        """Returns the path of an HTML file that shows a result, complete in itself; `trace.json` lies beside it."""
        folder = Path(out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / "index.html"
        page.write_text(present(result, "page"), encoding="utf-8", newline="\n")
        save_trace(result, folder / "trace.json")
        if open_browser:
            webbrowser.open(page.resolve().as_uri())
        return str(page)
