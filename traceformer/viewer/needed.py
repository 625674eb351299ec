"""What a page is told where a run's model is needed and is not there, or is another one."""

from collections.abc import Generator
from contextlib import contextmanager

from traceformer.errors import ConfigurationChanged, NotFound

__all__ = ["model_needed"]


@contextmanager
def model_needed(call: str) -> Generator[None]:
    """Raises what is raised inside with what would work on a page, which has no parameter `model`.

    Args:
        call: What Python is asked for instead.
    """
    try:
        yield
    except (NotFound, ConfigurationChanged) as error:
        hint = f"put the model back as it was; or, in Python, {call}"
        raise type(error)(error.message, why=error.why, hint=hint) from error
