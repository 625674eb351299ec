"""Proves on a given model that every recorded array means what its site says.

1. The model runs on a batch of examples, padded on the right, with nothing recorded: its logits, hidden states and,
   with its eager attention, its own attention patterns.
2. The same batch runs again while everything is recorded.
3. Every claim in `proofs/` is tested at every place: each example, layer, stack and attention.
4. Each example runs alone, without padding: every array must be what it was in the batch.

Examples that may not share a pass, as `sharing` has it, are batches of their own. Whether padding changes the model's
numbers is tried before, as `first` does.
"""

import inspect
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from traceformer.capture.batches import pad
from traceformer.capture.encoding import Encoded
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.proofs.edits import prove_edits
from traceformer.capture.proofs.first import try_padding
from traceformer.capture.proofs.place import Reference, Rounding, Scene, error_between
from traceformer.capture.proofs.recipes import prove_recipes
from traceformer.capture.proofs.tested import Arrays, Errors, Kept, is_exact, prove, tolerance_of
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.capture.sharing import Lengths, Sharing
from traceformer.capture.tensors import own_output
from traceformer.errors import Unsupported, UsageError
from traceformer.models.behaviour import evaluating
from traceformer.models.dims import Arch, ModelDims, arch_of, check_positions
from traceformer.models.families import architecture_of
from traceformer.models.family import Architecture
from traceformer.models.loaded import valid_pad_id
from traceformer.models.mechanisms import stated, unstated
from traceformer.models.outputs import reads_itself, runs_alone
from traceformer.models.part import stack_config, start_token_of
from traceformer.models.placed import input_device
from traceformer.sites import OUTPUTS, SITES, ArraySpec, Attention, Selection, Stack, expand_sites

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ALONE",
    "CheckResult",
    "Example",
    "Proof",
    "batch_of",
    "check_model",
    "implementation_of",
    "random_examples",
    "using_attention",
]

Example = Mapping[Stack, Sequence[int]]
"""Token ids in every stack that runs: `{"dec": [5, 7, 9]}`, or `{"enc": [...], "dec": [...]}`."""

ALONE = "is the same in a padded batch as alone"
_EVERYTHING = Selection(("all",))


@dataclass(frozen=True, slots=True)
class Proof:
    """One fact about one array, tested at every place; `error` is the largest, relative to max(1, |expected|)."""

    key: str
    fact: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True, slots=True, repr=False)
class CheckResult:
    """What was proved of a model, the sites that it has no place for and why, and facts that could not be tested.

    `no_recipe` is why its patterns cannot be made anew of q and k; empty where they can, or there are none.
    """

    model: str
    dtype: str
    device: str
    attention: str
    proofs: tuple[Proof, ...]
    refused: Mapping[str, str]
    untested: Mapping[str, str]
    no_recipe: str = ""

    @property
    def ok(self) -> bool:
        return all(proof.ok for proof in self.proofs)

    def __repr__(self) -> str:
        failed = [proof for proof in self.proofs if not proof.ok]
        held = f"all {len(self.proofs)} facts hold" if self.ok else f"{len(failed)} of {len(self.proofs)} facts FAIL"
        return f"CheckResult({self.model}: {held}; {self.dtype} on {self.device}, {self.attention} attention)"

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per fact: key, fact, error, tolerance, ok."""
        import pandas as pd

        return pd.DataFrame([{**asdict(proof), "ok": proof.ok} for proof in self.proofs])

    def to_json(self) -> dict[str, Any]:
        """Returns the result as JSON has it: an error beyond all bounds is the string "inf"."""
        proofs = [
            {**asdict(proof), "error": proof.error if proof.error < torch.inf else "inf", "ok": proof.ok}
            for proof in self.proofs
        ]
        return {
            "model": self.model,
            "dtype": self.dtype,
            "device": self.device,
            "attention": self.attention,
            "ok": self.ok,
            "proofs": proofs,
            "refused": dict(self.refused),
            "untested": dict(self.untested),
            "no_recipe": self.no_recipe,
        }


def check_model(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    untested: Mapping[str, str] = MappingProxyType({}),
    name: str = "",
    architecture: Architecture | None = None,
    selection: Selection = _EVERYTHING,
    recipes: bool = True,
) -> CheckResult:
    """Returns everything that could be proved of a model, or disproved.

    Args:
        model: a Hugging Face model, with or without a head.
        examples: token ids; two or more of different lengths, so that there is padding. Windows and relative
            positions are proved as far as the examples are long.
        untested: limits that the examples should lie on both sides of, and do not, and why.
        name: what to call the model, its class by default.
        architecture: another row than its family's own.
        selection: what to prove, everything by default; claims that need other sites are left out.
        recipes: whether to prove patterns by recipe.

    Raises:
        Unsupported: no row for this family, or the row names modules that the model has not.
        UsageError: no example, or an empty one, or one that the model has not enough positions for.
    """
    if not examples or not all(len(ids) for example in examples for ids in example.values()):
        raise UsageError("nothing to check the model on", hint="give texts of at least one token")
    for example in examples:
        check_positions(model, {stack: len(ids) for stack, ids in example.items()})
    row = architecture or architecture_of(model.config)
    dims = ModelDims.of(model)
    if reads_itself(model):
        examples = [{"enc": example["enc"]} for example in examples]
    plan = plan_arrays(selection, model, architecture=row, stacks=tuple(examples[0]))
    plan = replace(plan, arrays=(*plan.arrays, *_of_other_shapes(plan, selection, model, row, dims)))
    with torch.inference_mode(), evaluating(model):
        largest_score, has_attentions, no_recipe = 0.0, False, ""
        errors: Errors = {}
        sharing = Sharing(model)
        lengths: list[Lengths] = [{stack: len(ids) for stack, ids in example.items()} for example in examples]
        numbers = range(len(examples))
        if not runs_alone(model) and is_exact(model) and _is_padded(examples):
            try_padding(model, row, dims, [_encoded(example) for example in examples], partial(_inputs, model))
        parts = [[number] for number in numbers] if runs_alone(model) else sharing.parts(numbers, lengths)
        for part in parts:
            scenes = list(_scenes(model, row, dims, plan.arrays, [examples[index] for index in part], sharing))
            largest_score = max(largest_score, *(each.abs().max().item() for each in _scores_of(scenes[0])), 0.0)
            for scene in scenes:
                prove(scene, plan.arrays, errors)
            prove_edits(scenes[0], plan.arrays, *batch_of(model, [examples[index] for index in part]), errors)
            has_attentions = has_attentions or any(scene.reference.attentions for scene in scenes)
            if recipes:
                longest = max((examples[index] for index in part), key=lambda each: sum(map(len, each.values())))
                why = prove_recipes(model, row, plan.arrays, scenes, batch_of(model, [longest]), errors)
                no_recipe = no_recipe or why
            _prove_padding(scenes[0], plan.arrays, [examples[index] for index in part], errors)
        left_out = {**untested} | _without_padding(
            model, [[examples[index] for index in part] for part in parts], sharing
        )
        if not has_attentions and any(own.n_heads for own in dims.stacks.values()):
            left_out["equals the model's own attentions"] = "the model returns none"
    order = {spec.key: index for index, spec in enumerate(plan.arrays)}
    proofs = tuple(
        Proof(str(key), fact, error, tolerance_of(rounding, model.dtype, largest_score or 1.0))
        for (key, fact, rounding), error in sorted(errors.items(), key=lambda claim: order[claim[0][0]])
    )
    return CheckResult(
        name or type(model).__name__,
        str(model.dtype).removeprefix("torch."),
        str(input_device(model)),
        implementation_of(model),
        proofs,
        _refused(model, row, plan.arrays) if selection is _EVERYTHING else {},
        left_out,
        no_recipe,
    )


def _of_other_shapes(
    plan: Plan, selection: Selection, model: PreTrainedModel, row: Architecture, dims: ModelDims
) -> Iterator[ArraySpec]:
    """Yields what an array leaves out since it is of another shape in some layers, in arrays of its own."""
    for stack, sizes in dims.stacks.items():
        left = {*sizes.attention_layers} if sizes.by_layer else set[int]()
        for spec in plan.arrays:
            left -= {*spec.layers} if spec.heads and not spec.site.is_matrix else set[int]()
        while left:
            some = sizes.alike(SITES["k"], sorted(left))
            asked = replace(selection, layers={**selection.layers, stack: some})
            yield from (
                spec
                for spec in plan_arrays(asked, model, architecture=row, stacks=(stack,)).arrays
                if spec.heads and not spec.site.is_matrix
            )
            left -= {*some}


def random_examples(config: Any, *, seed: int = 0, arch: Arch | None = None) -> list[Example]:
    """Returns three examples of random token ids, up to 17 long, for models that have no tokenizer.

    What stacks they are for is `arch`, or as far as the config tells.

    Raises:
        Unsupported: an encoder-decoder does not state what its decoder begins with; or there is no vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        # The first few ids tend to be padding, start and end tokens.
        return torch.randint(4, n_words, (length,), generator=generator).tolist()

    arch = arch or arch_of(config)
    own = stack_config(config, "enc" if arch == "enc" else "dec")
    n_words = stated(own, "vocab_size")
    if n_words is None:
        raise unstated(own, "vocab_size")
    if arch != "encdec":
        return [{arch: ids(length)} for length in (17, 9, 12)]
    start = start_token_of(config)
    if start is None:
        raise Unsupported("the model states no decoder_start_token_id", hint="set it in its config")
    return [{"enc": ids(length), "dec": [start, *ids(shorter)]} for length, shorter in ((17, 6), (9, 3), (12, 4))]


def _record(
    model: PreTrainedModel,
    row: Architecture,
    specs: Sequence[ArraySpec],
    inputs: Mapping[str, Tensor],
    spans: Mapping[Stack, Sequence[Span]],
) -> Arrays:
    """Everything, in one pass; then patterns without scores, which are computed another way, in a second one."""
    arrays: Arrays = {}
    for wanted in (specs, [spec for spec in specs if spec.key.site == "attn_pattern"]):
        if wanted:
            kept = Kept(spans)
            with Recorder(model, wanted, kept, row) as recorder:
                recorder.run(spans, **inputs)
            arrays |= kept.arrays
    return arrays


def _scores_of(scene: Scene) -> Iterator[Tensor]:
    return (each for (key, _), examples in scene.arrays.items() if key.site == "attn_scores" for each in examples)


def batch_of(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[dict[str, Tensor], dict[Stack, list[Span]]]:
    return _inputs(model, [_encoded(example) for example in examples])


def _inputs(model: PreTrainedModel, rows: Sequence[Encoded]) -> tuple[dict[str, Tensor], dict[Stack, list[Span]]]:
    # Padding is never looked at. Position ids are left to the model: padding on the right shifts none, and some
    # families take none.
    return pad(rows, valid_pad_id(model), str(input_device(model)), with_positions=False)


def _encoded(example: Example) -> Encoded:
    return Encoded({stack: list(ids) for stack, ids in example.items()}, {}, None)


def _scenes(
    model: PreTrainedModel,
    row: Architecture,
    dims: ModelDims,
    specs: Sequence[ArraySpec],
    examples: Sequence[Example],
    sharing: Sharing,
) -> Iterator[Scene]:
    """Yields the recorded batch, and another one under eager attention where the model's own is not eager.

    A model that takes one text at a time has a batch for each example.

    Only eager attention returns patterns. They are compared with those recorded in the same forward pass: another
    implementation rounds otherwise, and a deep model, or one with large scores, would drift apart.
    """
    inputs, spans = batch_of(model, examples)
    ids: list[dict[Stack, Tensor]] = [
        {stack: torch.tensor(ids, device=input_device(model)) for stack, ids in example.items()} for example in examples
    ]
    own = implementation_of(model)
    for implementation in dict.fromkeys((own, "eager")):
        try:
            with using_attention(model, implementation):
                reference = _reference(model, dims, inputs, sharing)
                arrays = _record(model, row, specs, inputs, spans)
        except Unsupported:
            if implementation == own:
                raise
            return  # code of the user's own, whose eager attention cannot be observed
        yield Scene(model, row, dims, tuple(ids), arrays, reference)


def _reference(model: PreTrainedModel, dims: ModelDims, inputs: Mapping[str, Tensor], sharing: Sharing) -> Reference:
    stacks: dict[Stack, str] = {"enc": "encoder_", "dec": "decoder_"}
    if len(dims.stacks) == 1:
        stacks = dict.fromkeys(dims.stacks, "")
    sharing.settle()
    logits = own_output(model(**inputs))
    taken = inspect.signature(model.forward).parameters
    asked = {"output_hidden_states": True, "output_attentions": implementation_of(model) == "eager"}
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values()):
        asked = {name: value for name, value in asked.items() if name in taken}  # a class of the user's own
    output = model(**inputs, **asked)
    router: dict[Stack, tuple[Tensor, ...]] = {}
    for stack, own in dims.stacks.items():
        # Asked of the base model: beside a head a loss would be computed of them.
        given = (
            getattr(model.base_model(**inputs, output_router_logits=True), "router_logits", ()) if own.n_experts else ()
        )
        router |= {stack: tuple(given)} if given and len(dims.stacks) == 1 else {}
    names: dict[tuple[Stack, Attention], str] = {("dec", "cross"): "cross_attentions"}
    for stack, own in stacks.items():
        names[stack, "self"] = f"{own}attentions"
    attentions = {place: getattr(output, name, None) for place, name in names.items()}
    hidden: dict[Stack, Any] = {stack: getattr(output, f"{own}hidden_states", None) for stack, own in stacks.items()}
    return Reference(
        logits,
        {stack: states for stack, states in hidden.items() if states},
        {
            place: tuple(pattern for pattern in patterns if pattern is not None)  # None of layers without attention
            for place, patterns in attentions.items()
            if patterns
        },
        router,
    )


def implementation_of(model: PreTrainedModel) -> str:
    return getattr(model.config, "_attn_implementation", None) or "eager"


@contextmanager
def using_attention(model: PreTrainedModel, implementation: str) -> Generator[None]:
    before = implementation_of(model)
    if before == implementation:
        yield
        return
    _set_attention(model, implementation)
    try:
        yield
    finally:
        _set_attention(model, before)


def _set_attention(model: PreTrainedModel, implementation: str) -> None:
    if model._can_set_attn_implementation():  # pyright: ignore[reportPrivateUsage]
        model.set_attn_implementation(implementation)
    else:  # code of its own, which still reads its config in every pass
        setattr(model.config, "_attn_implementation_internal", implementation)  # noqa: B010


def _without_padding(model: PreTrainedModel, parts: Sequence[Sequence[Example]], sharing: Sharing) -> dict[str, str]:
    """Returns why it cannot be told what padding does, if it cannot."""
    if sharing.alone is not None:
        return {ALONE: f"every text runs alone, since {sharing.alone}"}
    if not is_exact(model):
        return {ALONE: f"a batch of another shape rounds otherwise in {str(model.dtype).removeprefix('torch.')}"}
    if runs_alone(model):
        return {ALONE: "the model takes one text at a time"}
    if not any(_is_padded(part) for part in parts):
        return {ALONE: "all examples have the same length, so there is no padding"}
    return {}


def _is_padded(examples: Sequence[Example]) -> bool:
    return len({tuple(map(len, example.values())) for example in examples}) > 1


def _prove_padding(scene: Scene, specs: Sequence[ArraySpec], examples: Sequence[Example], errors: Errors) -> None:
    """Adds what each example's arrays are off when it runs alone, if it ran beside others, padded."""
    model = scene.model
    if not is_exact(model) or not _is_padded(examples):
        return
    for index, example in enumerate(examples):
        inputs, spans = batch_of(model, [example])
        unpadded = {name: tensor for name, tensor in inputs.items() if not name.endswith("attention_mask")}
        for (key, layer), [alone] in _record(model, scene.row, specs, unpadded, spans).items():
            claim = (key, ALONE, Rounding.BATCH)
            error = error_between(scene.arrays[key, layer][index], alone)
            errors[claim] = max(error, errors.get(claim, 0.0))


def _refused(model: PreTrainedModel, row: Architecture, specs: Sequence[ArraySpec]) -> dict[str, str]:
    """The sites that this model has no place for, and why, in the words that selecting one of them would get."""
    recorded = {spec.key.site for spec in specs}
    refused: dict[str, str] = {}
    for site in expand_sites(("all",)):
        has_experts = any(own.n_experts for own in ModelDims.of(model).stacks.values())
        is_missed = site in OUTPUTS or not SITES[site].of_few or (has_experts and SITES[site].is_routing)
        if site not in recorded and is_missed:
            try:
                plan_arrays(Selection((site,)), model, architecture=row)
            except Unsupported as error:
                refused[site] = error.why
    return refused
