"""A checkout with the scripts, and a cloud for them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tpu_scripts.cloud import SCRIPTS, Cloud


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the scripts, all committed; for copies."""
    checkout = tmp_path_factory.mktemp("repository") / "checkout"
    shutil.copytree(SCRIPTS, checkout / "tpu_scripts", ignore=shutil.ignore_patterns("cluster.env"))
    (checkout / "constraints.txt").write_text("jax==0.10.2\n")
    (checkout / "run.yaml").write_text("seed: 0\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]
    for arguments in (["init", "-q", "--template="], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], cwd=checkout, check=True)
    return checkout


@pytest.fixture
def cloud(tmp_path: Path, checkout: Path) -> Cloud:
    return Cloud(tmp_path, checkout)
