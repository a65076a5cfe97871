"""The imports between rooms are those of the table in docs/architecture.md, and none runs up."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "malt_jax"
ROW = re.compile(r"^\| ((?:`[a-z_]+(?:/|\.py)`(?:, )?)+) \| [^|]+ \| ([^|]*) \|$", re.MULTILINE)


def documented() -> list[tuple[set[str], set[str]]]:
    """The rooms of every row, and the rooms they may import, from the top floor down."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return [
        (set(re.findall(r"`([a-z_]+)", rooms)), set(re.findall(r"[a-z_]+", imports)) - {"nothing"})
        for rooms, imports in ROW.findall(text)
    ]


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """The rooms that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "malt_jax":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("malt_jax."):
            names.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("malt_jax.")}
    return names


def imports() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        room = room_of(file.relative_to(PACKAGE).parts)
        if room != "__init__":
            found.setdefault(room, set()).update(imported(file) - {room})
    return found


def test_every_room_has_a_row_with_its_imports() -> None:
    rows = documented()
    actual = imports()
    assert sorted(room for rooms, _ in rows for room in rooms) == sorted(actual)
    for rooms, allowed in rows:
        together = set().union(*(actual[room] for room in rooms)) - rooms
        assert together == allowed, f"{sorted(rooms)} import {sorted(together)}"


def test_no_import_runs_up() -> None:
    below: set[str] = set()
    for rooms, allowed in reversed(documented()):
        assert allowed <= below, f"{sorted(rooms)}: {sorted(allowed - below)} stand higher up"
        below |= rooms


def test_rows_of_several_rooms_have_no_circle() -> None:
    actual = imports()
    for rooms, _ in documented():
        for room in rooms:
            for other in actual[room] & rooms:
                assert room not in actual[other], f"{room} and {other} import each other"
