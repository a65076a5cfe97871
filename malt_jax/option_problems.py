"""Options in words: the values that they allow, and what is wrong with given ones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

LARGEST = 2**31 - 1
"""Largest whole number of an option; descriptions leave this bound out."""
_TYPES = {"integer": "a whole number", "number": "a number", "string": "a text", "null": "null"}
_TYPES |= {"boolean": "true or false", "object": "a section"}
_BOUNDS = {"minimum": "{} or more", "exclusiveMinimum": "above {}", "maximum": "at most {}"}
_BOUNDS |= {"exclusiveMaximum": "below {}", "pattern": "matching {}"}

Problem = Mapping[str, Any]
"""One of the errors of a pydantic.ValidationError."""


def schemas_by_name(whole: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The JSON schemas of all sections, options and items of a configuration's schema.

    By full name: "" is all, "0" any item of a list, and "ROLE" any role.
    """
    found: dict[str, Mapping[str, Any]] = {}

    def add(name: str, schema: Mapping[str, Any]) -> None:
        section = schema.get("$ref", "").removeprefix("#/$defs/")
        found[name] = schema = {**whole["$defs"].get(section, {}), **schema}
        items = {"0": schema["items"]} if "items" in schema else {}
        if isinstance(by_role := schema.get("additionalProperties"), dict):
            items = {"ROLE": by_role}
        for key, inner in schema.get("properties", items).items():
            add(f"{name}.{key}".lstrip("."), inner)

    add("", whole)
    return found


def allowed(schema: Mapping[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(allowed(choice) for choice in reversed(schema["anyOf"]))
    if "items" in schema:
        return f"a list, each {allowed(schema['items'])}"
    words = [" | ".join(schema.get("enum", [_TYPES[schema.get("type", "object")]]))]
    words += [
        text.format(schema[key])
        for key, text in _BOUNDS.items()
        if schema.get(key, LARGEST) != LARGEST
    ]
    return ", ".join(words)


def explained(
    problems: Sequence[Problem],
    schemas: Mapping[str, Mapping[str, Any]],
    file: object,
    overrides: Sequence[str],
) -> list[str]:
    """One line a problem: the option, what is wrong, and its source.

    schemas:   of `schemas_by_name`.
    file:      that was read; None if there is none.
    overrides: `field=value` arguments.
    """
    known = {_key(problem, problem["loc"]) for problem in problems}
    return [
        _line(problem, schemas, file, overrides)
        for problem in problems
        # A role inherits wrong options too; they are reported once.
        if problem["loc"][:1] != ("roles",) or _key(problem, problem["loc"][2:]) not in known
    ]


def _key(problem: Problem, place: Sequence[int | str]) -> str:
    """Equal for the same error in options at two places."""
    value = None if problem["type"] == "value_error" else problem["input"]
    return repr((place, problem["msg"], value))


def _line(
    problem: Problem,
    schemas: Mapping[str, Mapping[str, Any]],
    file: object,
    overrides: Sequence[str],
) -> str:
    name, kind = ".".join(map(str, problem["loc"])), problem["type"]
    general = _general(problem["loc"])
    if kind == "unexpected_keyword_argument":
        section, _, key = general.rpartition(".")
        known = schemas[section]["properties"]
        close = difflib.get_close_matches(key, known)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there is {', '.join(known)}"
        message = f"no such option; {hint}"
    elif kind == "value_error" and (
        "properties" in schemas[general] or general.startswith("roles.ROLE.")
    ):
        message = str(problem["ctx"]["error"])  # it names the option below this section, and values
        return f"{name}.{message}".removeprefix(".")
    elif kind in ("value_error", "json_invalid") or problem.get("ctx", {}).get("le") == LARGEST:
        message = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
    else:
        value = "nothing" if kind == "missing" else repr(problem["input"])
        message = f"must be {allowed(schemas[general])}, got {value:.100}"
    source = file
    for override in overrides:
        field = override.partition("=")[0]
        if f"{name}.".startswith(f"{field}.") or field.startswith(f"{name}."):
            source = f"option {override!r:.100}"
    return f"{name}: {message}" + (f" (in {source})" if source is not None else "")


def _general(place: Sequence[int | str]) -> str:
    """The name that `schemas_by_name` has for an option, which `place` leads to."""
    if place[:1] == ("roles",) and len(place) > 1:
        # A role's sections are described once, as those of all roles.
        place = place[2:] if len(place) > 3 else ("roles", "ROLE", *place[2:])
    return ".".join("0" if isinstance(part, int) else part for part in place)
