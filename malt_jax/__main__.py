"""python -m malt_jax: the command `malt`, where its entry point is not installed."""

from __future__ import annotations

from malt_jax.cli import main

if __name__ == "__main__":
    main(prog="python -m malt_jax")
