"""The checker that jaxtyping's import hook puts around the package's functions."""

from collections.abc import Callable
from inspect import isclass
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype for arguments and results with a shape; mypy checks the others.

    Constructors are not checked: a pytree of arrays also holds their shapes, shardings and specs.
    """
    hints = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    if not hints or function.__name__ == "__init__":
        return function
    function.__annotations__ = hints
    return beartype(function)


def _has_shape(hint: Any) -> bool:
    is_array = isclass(hint) and issubclass(hint, AbstractArray)
    return is_array or any(map(_has_shape, get_args(hint)))
