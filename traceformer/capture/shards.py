"""What is looked at and counted with each shard of texts, whether these are listed or streamed."""

from collections.abc import Callable, Sequence

from traceformer.capture.encoding import Encoded
from traceformer.capture.plan import Plan
from traceformer.errors import Unsupported
from traceformer.models.loaded import LoadedModel
from traceformer.models.outputs import reads_itself
from traceformer.progress import Counting
from traceformer.texts.examples import Example

__all__ = ["counted", "refuse_endless", "tokens_of"]


def refuse_endless(model: LoadedModel, plan: Plan, examples: Sequence[Example], part: Sequence[Encoded]) -> None:
    """Refuses texts that a classifier cannot be asked about, since it pools their end token and they have none."""
    if not any(spec.key.site == "class_logits" for spec in plan.arrays) or not reads_itself(model.model):
        return
    for example, row in zip(examples, part, strict=True):
        end: int = model.config.eos_token_id
        if row.ids["enc"] and end not in row.ids["enc"]:
            raise Unsupported(
                f"the class logits of example {example.example_id}",
                why=f"{type(model.model).__name__} takes them at the end token, {end}, and it has none",
                hint="a tokenizer that ends texts with it; or leave class_logits out",
            )


def counted(counting: Counting, rows: Sequence[Encoded]) -> Callable[[Sequence[int]], None]:
    """Returns what is called after each batch of these rows."""

    def done(batch: Sequence[int]) -> None:
        counting.examples += len(batch)
        counting.tokens += tokens_of(rows, batch)
        counting.tell("recording")

    return done


def tokens_of(rows: Sequence[Encoded], batch: Sequence[int]) -> int:
    return sum(rows[index].length(stack) for index in batch for stack in rows[index].ids)
