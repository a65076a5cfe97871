"""Sections of options that a role has of its own: `roles.verifier.dpo`, as JSON holds them.

A role's section inherits from the run's section (`dpo`) every option that it leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SECTIONS = ("credit", "sft", "dpo", "kto")
"""The sections that a role may have."""


def inherited(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in which the sections of the roles are complete."""

    def complete(name: str, section: Any) -> Any:
        of_run = values.get(name) if name in SECTIONS else None
        if isinstance(section, dict) and isinstance(of_run, dict):
            return {**of_run, **section}
        return section

    return _with_sections(values, complete)


def reduced(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in which the sections of the roles hold only what differs from the run's.

    `inherited` makes them complete again. Sections and roles of which nothing is left are left out.
    """

    def differing(name: str, section: Any) -> Any:
        if section is None:
            return {}
        return {key: value for key, value in section.items() if value != values[name][key]}

    found = _with_sections(values, differing)
    roles = {
        role: {name: section for name, section in own.items() if section}
        for role, own in found["roles"].items()
    }
    return found | {"roles": {role: own for role, own in roles.items() if own}}


def _with_sections(values: Mapping[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """A configuration with other sections of the roles. What is malformed stays as it is."""
    roles = values.get("roles")
    if not isinstance(roles, dict):
        return dict(values)
    changed = {
        role: {name: change(name, section) for name, section in own.items()}
        if isinstance(own, dict)
        else own
        for role, own in roles.items()
    }
    return {**values, "roles": changed}
