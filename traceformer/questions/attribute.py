"""Direct logit attribution of a recorded example: what each head, MLP and bias adds to a logit.

The run holds what they gave, the model's files what reads it; the model is not run, and torch is not loaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traceformer.analysis.attribution import Attribution, NamedToken
from traceformer.analysis.lens import normed, read_out
from traceformer.analysis.logit_split import Addition, Part, Split, explained, split
from traceformer.errors import NotRecorded, NumericError, SelectionError, Unsupported, UsageError, check_whole
from traceformer.models.block_weights import BlockWeights, NormWeights
from traceformer.models.loaded import LoadedModel
from traceformer.models.readout import Readout
from traceformer.questions.model_of_run import open_block_weights_of, open_readout_of
from traceformer.questions.recorded import check_asked, recorded
from traceformer.questions.vocabulary import position_of, shown_tokens, token_named, token_texts
from traceformer.shapes import Float, Float64
from traceformer.sites import ArrayKey, ArraySpec, Attention, as_head
from traceformer.store.run import Run

__all__ = ["attribute"]

_CAPTURE = "z mlp_out embed resid_post"


def attribute(
    of: Run | LoadedModel,
    example: int | str = 0,
    *,
    to: str | int | None = None,
    against: str | int | None = None,
    position: int | str = -1,
    by_source: bool | str | Sequence[str | tuple[int, int]] = False,
    model: str | Path | LoadedModel | None = None,
) -> Attribution:
    """Returns how a logit, or a difference of two, is made up of what each part of the model added to the stream.

        attribute(run, 0, to="a", against="o").to_frame().sort_values("contribution")
        attribute(load_model("byte"), "return the name of the n", by_source=True).by_source()

    The parts are the embedding, every head, every MLP, the biases of output projections and unembedding, and those of
    norms. A norm counts as the linear map that it was at the scale it had there, so that they add up to the logit;
    what is left is the `remainder`. A softcap is left away: what is split is the logit before it.

    Args:
        of: A run of a decoder, or of an encoder-decoder with targets; or a decoder itself. A run holds `z` (or
            `attn_pattern` and `v`, of which it is made), `mlp_out`, `embed` (or `resid_pre` of layer 0), and
            `resid_post` of the last layer, in all layers and heads.
        example: Of a run one of its examples, by number or id; of a model the text that it reads.
        to: The token whose logit it is, by its text, spaces included, or its id; by default the likeliest next one.
        against: The token whose logit is subtracted; none by default.
        position: Where the logit is read: a position, negative from the end, or a word that the text has once, whose
            last token is meant.
        by_source: Which heads to split by source token as well, such as `L2H5` or (2, 5), several, or all of them for
            True; the run then holds `attn_pattern` and `v`.
        model: The run's model, if it is at hand, or where its folder is now, if it was moved.

    Raises:
        NotRecorded: the run lacks a site, a layer or a head; the hint says what to record.
        NotFound: the model's folder is not there.
        ConfigurationChanged: what lies there is another model than the run's.
        SelectionError: the position is not in the example, or a head not in the model.
        Unsupported: an encoder, which predicts no next token; a family whose readout is not known; an adapter, unless
            the model is at hand.
        UsageError: `to` or `against` is no token of the model, or several, or both are the same one; a model without a
            text.
        NumericError: a number is not finite, or the parts do not add up to the logit, so that they are not those of
            this model's pass.
    """
    check_asked(of)
    if not isinstance(position, str):
        check_whole("position", position)
    split_heads = _heads_asked(by_source)
    if isinstance(of, LoadedModel):
        if of.dims.arch == "encdec":
            raise Unsupported(
                "attribution of a text alone in an encoder-decoder",
                why="what its decoder says needs a target",
                hint="record texts with `targets`, and give the run",
            )
        if not isinstance(example, str):
            raise UsageError(f"{example} is no text", hint="a model reads a text, a run has examples")
        of, example, model = recorded(of, [example], f"{_CAPTURE} attn_pattern v"), 0, of
    if of.arch == "enc":
        raise Unsupported("attribution in an encoder", why="it predicts no next token")
    if of.about.adapter is not None and not isinstance(model, LoadedModel):
        why = "what its heads write with is not in the model's files alone"
        raise Unsupported("attribution in a model with an adapter", why=why, hint="`model=MODEL`, the model itself")
    readout, weights = open_readout_of(of, model), open_block_weights_of(of, model)
    text = token_texts(of, model)
    place = position_of(of, example, "dec", position)
    reader = _Reader(of, example, place, weights)
    embed, additions, last = reader.embed(), list(reader.additions()), reader.last()
    if readout.d_model != len(last):
        raise UsageError(f"a readout of width {readout.d_model}", why=f"the stream is {len(last)} wide")
    target = _likeliest(last, readout) if to is None else token_named(of, to, readout.d_vocab, model)
    other = None if against is None else token_named(of, against, readout.d_vocab, model)
    if target == other:
        how = ", the likeliest one," if to is None else ""
        raise UsageError(
            f"the logit of {text(target)!r} less itself",
            why=f"`to`{how} and `against` are the same token",
            hint="another token, or none, in `against`",
        )
    value = split(embed, additions, last, _final_norm(readout), *_unembedding(readout, target, other))
    largest = _checked(value, of)
    heads = _heads_to_split(value, split_heads)
    sources = {part: reader.by_source(part, value) for part in heads}
    shown = shown_tokens(of, example, "dec")
    return Attribution(
        of.example_id(example),
        place,
        shown[place].text,
        NamedToken(target, text(target)),
        None if other is None else NamedToken(other, text(other)),
        to is None,
        value.parts,
        value.contributions,
        value.total,
        largest,
        readout.softcap,
        sources,
        {part.attention: reader.source_tokens(part.attention) for part in heads if part.attention is not None},
    )


def _checked(value: Split, run: Run) -> float:
    """The largest remainder that rounding explains, once the remainder is no larger."""
    if not np.isfinite(value.total) or not np.isfinite(value.contributions).all():
        lost = next(
            (part for part, own in zip(value.parts, value.contributions, strict=True) if not np.isfinite(own)), ""
        )
        raise NumericError(
            "the logit cannot be split",
            why=f"what the run holds of {lost or 'the last layer'} is not finite there",
            hint='record the run with `dtype="float32"`',
        )
    patterns = run.layout.attn_codec == "sqrt8" and not _holds(run, "z")
    in_bytes = ("bfloat16",) if patterns or run.layout.rows_codec == "q8" else ()
    largest = explained(value, (run.dtype, *in_bytes), run.about.model_dtype or "float32")
    remainder = value.total - float(value.contributions.sum())
    if abs(remainder) > largest:
        raise NumericError(
            f"the parts do not add up to the logit: {remainder:.3g} of {value.total:.3g} is left",
            why=f"rounding explains {largest:.1g}; what the run holds was changed on its way, by an edit or an import, "
            "or the family adds something that no row says",
            hint="record the run again, with the model as it is",
        )
    return largest


def _final_norm(readout: Readout) -> NormWeights | None:
    if readout.norm is None:
        return None
    return NormWeights(readout.norm, readout.norm_weight, readout.norm_bias, readout.epsilon)


def _unembedding(readout: Readout, to: int, against: int | None) -> tuple[Float64[np.ndarray, "d_model"], float | None]:
    """What the normed stream is multiplied by, and what is added."""

    def row(token: int) -> Float64[np.ndarray, "d_embed"]:
        return readout.unembedding.rows(token, token + 1)[0].astype(np.float64)

    direction = row(to) if against is None else row(to) - row(against)
    if readout.project_out is not None:
        direction = direction @ readout.project_out
    if readout.bias is None:
        return direction * readout.scale, None
    return direction * readout.scale, float(readout.bias[to]) - (
        0.0 if against is None else float(readout.bias[against])
    )


def _likeliest(last: Float[np.ndarray, "d_model"], readout: Readout) -> int:
    return int(read_out(normed(last[None], readout), readout, top=1).top_ids[0, 0])


def _heads_asked(by_source: bool | str | Sequence[str | tuple[int, int]]) -> set[tuple[int, int]] | None:
    """The heads to split, as layer and number; None for all."""
    if isinstance(by_source, bool):
        return None if by_source else set()
    if not isinstance(by_source, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SelectionError(f"`by_source={by_source!r}`", hint="heads such as L5H3, or True for all")
    return set(map(as_head, [by_source] if isinstance(by_source, str) else by_source))


def _heads_to_split(value: Split, wanted: set[tuple[int, int]] | None) -> list[Part]:
    heads = [part for part in value.parts if part.kind == "head"]
    if wanted is None:
        return heads
    missing = sorted(wanted - {(part.layer, part.head) for part in heads})
    if missing:
        layer, head = missing[0]
        raise SelectionError(f"no head L{layer}H{head} is a part", why=f"the last one is {heads[-1]}" if heads else "")
    return [part for part in heads if (part.layer, part.head) in wanted]


def _holds(run: Run, site: str) -> bool:
    return any(spec.key.stack == "dec" and spec.key.site == site for spec in run.layout.arrays)


@dataclass(frozen=True, slots=True)
class _Reader:
    """What a run holds of one position of an example."""

    run: Run
    example: int | str
    position: int
    weights: BlockWeights

    def embed(self) -> Float[np.ndarray, "d_model"]:
        if self.run.layout.spec(ArrayKey("dec", None, "embed")) is not None:
            return self.run.get(self.example, ArrayKey("dec", None, "embed"))[self.position]
        return self._row("resid_pre", 0)

    def last(self) -> Float[np.ndarray, "d_model"]:
        return self._row("resid_post", self._n_layers() - 1)

    def additions(self) -> Iterator[Addition]:
        """Yields what the sublayers added, in the model's order."""
        row, gaps = self.weights.architecture.stacks["dec"], self.run.about.dims_of("dec").without_attention
        if gaps:
            raise Unsupported(
                "the parts of this model's stream",
                why=f"layers {', '.join(map(str, gaps))} have no attention, and what they add in its place is no site",
            )
        attentions: tuple[Attention, ...] = ("self",) if row.cross is None else ("self", "cross")
        for layer in range(self._n_layers()):
            for attention in attentions:
                yield self._attention(layer, attention)
            mlp = self._row("mlp_out", layer)[None].astype(np.float64)
            after = self.weights.norm_of_stream(layer, None)
            yield Addition(layer, None, (Part("mlp", layer),), mlp, norm_of_stream=after)

    def _attention(self, layer: int, attention: Attention) -> Addition:
        after = self.weights.norm_of_stream(layer, attention)
        if not self.weights.architecture.has(ArrayKey("dec", attention, "z")):
            whole = self._row("attn_out", layer, attention)[None].astype(np.float64)
            return Addition(layer, attention, (Part("attn", layer, None, attention),), whole, None, after)
        output, z = self.weights.output(layer, attention), self._z(layer, attention)
        n_heads, d_head = z.shape
        if output.weight.shape[0] != n_heads * d_head:
            raise _missing(f"{output.weight.shape[0] // d_head} heads", f"it holds {n_heads} of them")
        w_o = output.weight.reshape(n_heads, d_head, -1)
        outputs = [own @ weight.astype(np.float64) for own, weight in zip(z, w_o, strict=True)]
        parts = [Part("head", layer, head, attention) for head in range(n_heads)]
        if output.bias is not None:
            outputs.append(output.bias.astype(np.float64))
            parts.append(Part("bias", layer, None, attention))
        of_sum = self.weights.norm_of_output(layer, attention)
        return Addition(layer, attention, tuple(parts), np.stack(outputs), of_sum, after)

    def by_source(self, part: Part, value: Split) -> Float64[np.ndarray, "source"]:
        """Returns what a head adds by way of each source token."""
        assert part.layer is not None
        assert part.head is not None
        assert part.attention is not None
        d_head = self._spec("v", part.attention).width
        w_o = self.weights.output(part.layer, part.attention).weight[part.head * d_head : (part.head + 1) * d_head]
        direction = w_o.astype(np.float64) @ value.directions[part.layer, part.attention]
        pattern, v = (self._of_head(site, part) for site in ("attn_pattern", "v"))
        return pattern[self.position].astype(np.float64) * (v.astype(np.float64) @ direction)

    def source_tokens(self, attention: Attention) -> tuple[str, ...]:
        """Returns the texts of the tokens that an attention reads."""
        return tuple(
            piece.text for piece in shown_tokens(self.run, self.example, "enc" if attention == "cross" else "dec")
        )

    def _z(self, layer: int, attention: Attention) -> Float64[np.ndarray, "head d_head"]:
        key = ArrayKey("dec", attention, "z")
        if self.run.layout.spec(key) is not None:
            self._spec("z", attention, layer)
            return self.run.get(self.example, key, layer)[:, self.position].astype(np.float64)
        heads = self._spec("attn_pattern", attention, layer).heads
        parts = [Part("head", layer, head, attention) for head in heads]
        return np.stack(
            [
                self._of_head("attn_pattern", part)[self.position].astype(np.float64) @ self._of_head("v", part)
                for part in parts
            ]
        )

    def _of_head(self, site: str, part: Part) -> Float[np.ndarray, "..."]:
        return self.run.get(self.example, self._spec(site, part.attention, part.layer).key, part.layer, part.head)

    def _row(self, site: str, layer: int, attention: Attention | None = None) -> Float[np.ndarray, "d_model"]:
        return self.run.get(self.example, self._spec(site, attention, layer).key, layer)[self.position]

    def _spec(self, site: str, attention: Attention | None, layer: int | None = None) -> ArraySpec:
        """The array of a site, once it holds the layer and, where it has heads, all of them."""
        spec = self.run.layout.spec(ArrayKey("dec", attention, site))
        if spec is None:
            held = " ".join(str(each.key) for each in self.run.layout.arrays)
            raise _missing(str(ArrayKey("dec", attention, site)), f"it holds {held}", site)
        if layer is not None and layer not in spec.layers:
            raise _missing(f"{spec.key} of layer {layer}", f"it holds layers {', '.join(map(str, spec.layers))}")
        if spec.heads and spec.heads != tuple(range(len(spec.heads))):
            raise _missing(f"all heads of {spec.key}", f"it holds heads {', '.join(map(str, spec.heads))}")
        return spec

    def _n_layers(self) -> int:
        n_layers = self.run.about.dims_of("dec").n_layers
        if n_layers is None:
            raise NotRecorded("this run does not say how many layers its model has")
        return n_layers


def _missing(what: str, why: str, site: str = "") -> NotRecorded:
    capture = f"{_CAPTURE} attn_pattern v" if site == "v" else _CAPTURE if site != "attn_out" else "attn_out mlp_out"
    return NotRecorded(
        f"this run lacks {what}", why=why, hint=f'record it with `capture="{capture}"`, all layers and heads'
    )
