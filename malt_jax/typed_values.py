"""Plain values, as YAML gives them, into dataclasses: every key known, every value of its type."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

T = TypeVar("T")

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class ValueProblem(Exception):
    """A key or a value that does not fit; the message starts with the field's full name."""


def construct(cls: type[T], values: Any, name: str = "") -> T:
    """An instance of the dataclass `cls` with the given values; fields left out take their default.

    Field types may be bool, int, float, str, a Literal, a dataclass, `tuple[type, ...]`,
    `dict[str, Any]`, and any of them `| None`. A whole number is taken where a float is wanted;
    nothing else is converted. `name` is the full name of the instance ("" for the root).

    Raises ValueProblem for an unknown key (with the names that come close), a missing one and a
    value of another type.
    """
    if not isinstance(values, Mapping):
        raise _wrong(name, values, f"a section with {_listed(_fields(cls))}")
    fields = _fields(cls)
    for key in values:
        if key not in fields:
            raise ValueProblem(_unknown(name, key, fields))
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, field in fields.items():
        if key in values:
            arguments[key] = _convert(hints[key], values[key], _join(name, key))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueProblem(f"{_join(name, key)} is missing: it has no default")
    return cls(**arguments)


def plain(value: Any) -> Any:
    """The inverse of `construct`: dataclasses as dicts, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: plain(getattr(value, key)) for key in _fields(type(value))}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Full names and values of all fields below a value as `plain` gives it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, _join(name, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield from leaves(item, _join(name, index))
    else:
        yield name, value


def describe_type(hint: Any) -> str:
    """A field's type in words."""
    if hint in _NAMES:
        return _NAMES[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(arguments)
    if origin in (types.UnionType, typing.Union):
        wanted = [
            describe_type(argument) for argument in arguments if argument is not types.NoneType
        ]
        return f"{' | '.join(wanted)} or null"
    if origin is tuple:
        item = arguments[0]
        if dataclasses.is_dataclass(item):
            return f"a list of sections with {_listed(_fields(item))}"
        return "a list of texts" if item is str else f"a list, each {describe_type(item)}"
    return "a section"


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        try:
            return _convert(inner, value, name)
        except ValueProblem:
            if dataclasses.is_dataclass(inner):
                raise
            raise _wrong(name, value, describe_type(hint)) from None
    if dataclasses.is_dataclass(hint):
        return construct(typing.cast(type, hint), value, name)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(
            _convert(arguments[0], item, _join(name, index)) for index, item in enumerate(value)
        )
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise _wrong(name, value, describe_type(hint))


def _fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names)


def _wrong(name: str, value: Any, wanted: str) -> ValueProblem:
    return ValueProblem(f"{name or 'the whole'} is {value!r}, but must be {wanted}")


def _unknown(name: str, key: object, fields: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(key), fields, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there is {_listed(fields)}"
    return f"{_join(name, key)} is no option; {hint}"
