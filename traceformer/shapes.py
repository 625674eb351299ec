"""Annotations of arrays: `Float[np.ndarray, "layer head"]` says what an array holds and what its axes are called.

The names are jaxtyping's, and mean what they mean there. Only tests check them, and import jaxtyping first; everywhere
else such an annotation is the array's own type, and costs nothing; so it is to those who check types.
"""

import sys
from typing import TYPE_CHECKING, Any

__all__ = [
    "Bool",
    "Float",
    "Float32",
    "Float64",
    "Int",
    "Int32",
    "Int64",
    "Integer",
    "Num",
    "Shaped",
    "UInt8",
    "UInt16",
]

if TYPE_CHECKING:  # as jaxtyping has it, which users have not
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Float32
    from typing import Annotated as Float64
    from typing import Annotated as Int
    from typing import Annotated as Int32
    from typing import Annotated as Int64
    from typing import Annotated as Integer
    from typing import Annotated as Num
    from typing import Annotated as Shaped
    from typing import Annotated as UInt8
    from typing import Annotated as UInt16
elif "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, Int64, Integer, Num, Shaped, UInt8, UInt16
else:

    class _Array:
        """What stands before the brackets."""

        def __getitem__(self, array_and_axes: tuple[Any, str]) -> Any:
            """Returns the array's own type."""
            return array_and_axes[0]

    Bool = Float = Float32 = Float64 = Int = Int32 = Int64 = Integer = Num = Shaped = UInt8 = UInt16 = _Array()
