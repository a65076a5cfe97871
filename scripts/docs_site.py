"""The documentation's site: README.md as the front page, options, API, links that stay inside.

mkdocs.yml names this file twice. MkDocs calls its functions by their names, and mkdocstrings takes
`Arguments`.
"""

import json
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from malt_jax.config import options
from malt_jax.option_problems import allowed

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "build" / "docs"
"""A copy of the package, which mkdocstrings reads (`paths` in mkdocs.yml)."""


def on_startup(command: str, dirty: bool) -> None:
    """Copies the package's modules and gives every folder an __init__.py.

    mkdocstrings finds no modules in folders without one.
    """
    shutil.rmtree(SOURCES, ignore_errors=True)
    for module in (ROOT / "malt_jax").rglob("*.py"):
        copy = SOURCES / module.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(module.read_bytes())
        copy.with_name("__init__.py").touch()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the front page, the options, and an API page for each folder of the package."""
    front = "---\nhide: [navigation]\n---\n" + (ROOT / "README.md").read_text()
    files.append(File.generated(config, "index.md", content=front))
    files.append(File.generated(config, "options.md", content=_options()))
    pages: dict[str, list[str]] = {}
    for path in sorted((ROOT / "malt_jax").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        folder = "commands" if path.parent.name == "malt_jax" else path.parent.name
        pages.setdefault(folder, []).append(module)
    for folder, modules in pages.items():
        title = "Commands and options" if folder == "commands" else f"malt_jax.{folder}"
        content = "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"api/{folder}.md", content=content))
    return files


def _options() -> str:
    """All options, as tables by section."""
    lines = [
        "# Options",
        "",
        "Commands take options as `section.field=value` or from a YAML file (`--config`).",
        "The first ones belong to no section.",
    ]
    heading = ["", "| option | default | values | meaning |", "|---|---|---|---|"]
    for name, schema in options().items():
        if "properties" in schema:
            title = ["", f"## {name}", "", schema["description"]] if name else []
            lines += [*title, *heading]
        elif "description" in schema:
            default = json.dumps(schema["default"]) if "default" in schema else ""
            values = allowed(schema).replace("[", "&#91;").replace("*", "&#42;")
            cells = (f"`{name}`", f"`{default}`" if default else "", values)
            cells = (*cells, schema["description"])
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Changes links, which are written for GitHub. A link out of docs/ leaves its text."""
    if page.file.src_uri != "index.md":
        return re.sub(r"\[([^]]+)\]\(\.\./[^)]+\)", r"\1", markdown)
    markdown = re.sub(r"\[([^]]+)\]\((?!https?:|docs/)[^)]+\)", r"\1", markdown)
    return markdown.replace("](docs/", "](")


class Arguments(griffe.Extension):
    """Shows arguments: a list of those that docstrings describe, and the fields of NamedTuples."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Gives a NamedTuple the constructor that griffe gives only to dataclasses."""
        if "NamedTuple" not in map(str, cls.bases):
            return
        kind = griffe.ParameterKind.positional_or_keyword
        fields = (
            griffe.Parameter(name, annotation=field.annotation, kind=kind, default=field.value)
            for name, field in cls.attributes.items()
            if "property" not in field.labels
        )
        parameters = griffe.Parameters(griffe.Parameter("self", kind=kind), *fields)
        cls.set_member("__init__", griffe.Function("__init__", parameters=parameters))

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Makes list items of the lines `name: description` of a docstring."""
        if obj.docstring is None or not (obj.is_class or obj.is_function):
            return
        members = [obj, *obj.members.values()]
        known = {p.name.strip("*") for m in members if m.is_function for p in m.parameters}
        known |= set(obj.members)

        # A section of its own, as Google's style has them, is the same list.
        section = re.compile(r"^(?:Args|Attributes):\n((?:  +.*(?:\n|$))+)", re.MULTILINE)
        text = section.sub(lambda found: textwrap.dedent(found[1]), obj.docstring.value)
        line = re.compile(r"^(\w+(?:, \w+)*): +", re.MULTILINE)
        several = len(line.findall(text)) > 1

        def item(found: re.Match[str]) -> str:
            is_item = several or known.issuperset(found[1].split(", "))
            return f"- `{found[1]}`: " if is_item else found[0]

        obj.docstring.value = line.sub(item, text)
