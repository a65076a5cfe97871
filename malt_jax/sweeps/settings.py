"""The settings of a sweep: a grid of option values, a file of settings, or both combined."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from upath import UPath

from malt_jax.config import Config, diff, leaves, load_config
from malt_jax.errors import UserError
from malt_jax.strict_yaml import read_yaml

_LONGEST_NAME = 100
_BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}


class Setting(NamedTuple):
    """One configuration of a sweep."""

    name: str
    """Of its run directory: the options that differ from the base configuration."""
    config: Config


def settings(base: UPath, words: Sequence[str], file: UPath | None = None) -> list[Setting]:
    """The distinct configurations of a sweep, in order.

    base:  a YAML file with the options that they share.
    words: `field=VALUE,VALUE,...`; every combination of values is taken. A YAML list in brackets
           is one value.
    file:  a YAML list of settings, each a mapping of options to values; every one of them is
           combined with the grid of the words.

    Raises UserError for options or values that there are not, and where there is no setting.
    """
    listed = [()] if file is None else _read(file)
    grid = itertools.product(*map(_choices, words))
    common = load_config(base)
    found: dict[str, Setting] = {}
    for changes, chosen in itertools.product(listed, grid):
        config = load_config(base, [*changes, *chosen])
        name = _name(common, config)
        found.setdefault(name, Setting(name, config))
    if not words and file is None:
        raise UserError("a sweep needs options with several values, such as dpo.beta=0.1,0.2")
    return list(found.values())


def varied(found: Sequence[Setting]) -> list[str]:
    """The names of the options that differ between settings."""
    values = [leaves(setting.config) for setting in found]
    names = dict.fromkeys(name for of_setting in values for name in of_setting)
    return [name for name in names if len({repr(each.get(name)) for each in values}) > 1]


def _choices(word: str) -> list[str]:
    """The overrides that one argument stands for."""
    field, equals, text = word.partition("=")
    if not equals:
        raise UserError(f"option {word!r:.100}: write section.field=value,value")
    return [f"{field}={value}" for value in _split(text)]


def _split(text: str) -> Iterator[str]:
    """The parts of a text between commas that are in no brackets and no quotes."""
    start = depth = 0
    quote = ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "," and depth == 0:
            yield text[start:index]
            start = index + 1
        depth += 0 if quote else _BRACKETS.get(character, 0)
    yield text[start:]


def _read(file: UPath) -> list[tuple[str, ...]]:
    """The overrides of every setting in a file."""
    content = read_yaml(file)
    if not (content and isinstance(content, list) and all(isinstance(s, dict) for s in content)):
        raise UserError(
            f"{file} must hold a list of settings, each a mapping such as {{dpo.beta: 0.1}}"
        )
    return [_overrides(setting) for setting in content]


def _overrides(setting: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{name}={json.dumps(value)}" for name, value in setting.items())


def _name(base: Config, config: Config) -> str:
    """The options in which a configuration differs, as the name of a directory."""
    values = leaves(config)
    changed = [line.partition(":")[0] for line in diff(base, config)]
    text = ",".join(f"{name}={values.get(name)}" for name in changed) or "unchanged"
    safe = re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", text)
    if safe == text and len(text) <= _LONGEST_NAME:
        return text
    return f"{safe[:_LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
