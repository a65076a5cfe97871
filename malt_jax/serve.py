"""python -m malt_jax.serve: answers requests over HTTP, in OpenAI's format."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from malt_jax.command import add_options, command
from malt_jax.errors import import_extra

_USED = (
    *("model", "task.name", "pipeline.roles", "sampling.temperature", "sampling.top_p"),
    *("sampling.top_k", "sampling.max_tokens", "sampling_mesh"),
)
"""The options that matter to a server; `--help` lists them."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.serve") -> None:
    options = _parser(prog).parse_intermixed_args(arguments)
    for module in ("fastapi", "uvicorn"):
        import_extra(module, "serve")

    # After the arguments are read, because these import JAX: --help need not wait for that.
    from malt_jax.evaluation.source import Source
    from malt_jax.serving.server import Options, serve

    source = Source.read(options.source, options.overrides)
    chosen = Options(
        options.host,
        options.port,
        options.slots,
        options.queue,
        options.max_length,
        options.untrained,
    )
    serve(source, chosen)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Answers requests over HTTP, in the format of OpenAI's chat API. The models are"
        " malt (all roles in turn), each role, and base (the untrained model). Sampling options are"
        " defaults for requests without them (docs/serving.md).",
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_MODEL",
        help="a run directory or an exported pipeline (the trained roles answer), or a model as in"
        " model.name below",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (%(default)s: this machine alone; others let everyone ask who"
        " reaches it)",
    )
    parser.add_argument(
        "--port", type=_number(0, 65535), default=8000, help="port; 0: a free one (%(default)s)"
    )
    parser.add_argument(
        "--slots",
        type=_number(1, 4096),
        default=16,
        help="completions that are decoded together (%(default)s)",
    )
    parser.add_argument(
        "--queue",
        type=_number(0, 1_000_000),
        default=64,
        help="completions that may wait for a slot; more are refused (%(default)s)",
    )
    parser.add_argument(
        "--max-length",
        type=_number(1, 2**31 - 1),
        metavar="TOKENS",
        help="longest prompt and completion together (4096, or what the roles' prompts need)",
    )
    parser.add_argument(
        "--untrained", action="store_true", help="serve the untrained model of a run"
    )
    add_options(parser, "runs/first --port 8000", _USED)
    return parser


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            problem = f"must be a whole number from {least} to {most}, got {text!r:.50}"
            raise argparse.ArgumentTypeError(problem)
        return int(text)

    return number


if __name__ == "__main__":
    command(main)
