"""YAML that holds JSON: mappings, lists, texts, numbers, true, false and null, each key once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pydantic_core
import yaml
from upath import UPath

from malt_jax.errors import UserError

_EXPONENT = re.compile(r"[-+]?([.]\d+|\d+([.]\d*)?)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but a number with an exponent needs no point (1e-4), and no key may occur twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.MarkedYAMLError(None, None, f"duplicate key {twice}", node.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes texts that _Loader would read as numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; dates become texts.

    Raises UserError, in one line that begins with `source`, for a text that is no YAML, has a key
    twice, refers to itself, or is nested more than 200 levels deep.
    """
    try:
        return pydantic_core.from_json(json.dumps(yaml.load(text, _Loader), default=str))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{source}{line}: this is not YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{source}: lists and sections are nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{source}: {error!s:.100}") from None


def read_yaml(file: Path | UPath) -> Any:
    """The value of a YAML file. Raises UserError as `parse_yaml`, and if it cannot be read."""
    try:
        return parse_yaml(file.read_text("utf-8"), str(file))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {file}: {reason}") from None


def dump_yaml(value: Any) -> str:
    """A value as YAML that `parse_yaml` reads back to the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
