"""The command `malt`: its commands, their names in help texts, and wrong names."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import malt_jax
from malt_jax.cli import COMMANDS, main

ROOT = Path(malt_jax.__file__).parent.parent


def test_the_entry_point_is_this_function() -> None:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, name = content["project"]["scripts"]["malt"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.description)}$", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_name_and_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(COMMANDS[name].module)
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"], f"malt {name}")
    text = capsys.readouterr().out
    assert text.startswith(f"usage: malt {name} ")
    assert re.search(rf"^example:\s+malt {name} \S", text, re.MULTILINE)


def test_arguments_reach_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"kind": "answer", "gold": "1/2", "prediction": "0.5"}\n')
    main(["grade", str(cases)])
    assert '"verdict": true' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [("trian", "did you mean train?"), ("export-all-things", "there is train, evaluate,")],
)
def test_an_unknown_command_is_named_with_the_nearest(
    given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([given, "--help"])
    error = capsys.readouterr().err
    assert repr(given) in error and message in error


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "commands:" in capsys.readouterr().err


def test_the_package_runs_and_errors_are_messages(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "malt_jax", "tasks", "task.name=sums"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "sums" in done.stderr


def test_help_imports_neither_jax_nor_pydantic() -> None:
    program = (
        "import sys, malt_jax.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'jax', 'pydantic'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0
    )
