"""python -m malt_jax.export: takes the roles that a run has trained elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from malt_jax.command import command
from malt_jax.files import location, on_disk


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.export") -> None:
    options = _parser(prog).parse_args(arguments)

    # After the arguments are read, because these import JAX: --help need not wait for that.
    from malt_jax.export.write import Options, export
    from malt_jax.runs.directory import RunDirectory

    run = RunDirectory.read(options.run)
    chosen = Options(
        merged=options.merged,
        base=options.base,
        gguf=options.gguf,
        dtype=options.dtype,
        hub_id=options.base_id,
        replace=options.force,
    )
    pipeline = export(run, on_disk(options.out), chosen)
    trained = [role.name for role in pipeline.roles if role.directory is not None]
    print(f"{', '.join(trained)} of {options.run} are in {options.out}; its README.md says more")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Writes the trained roles of a run to a directory that peft, transformers,"
        " vLLM and SGLang read: a PEFT adapter a role (after full fine-tuning a checkpoint a"
        " role), pipeline.json with the prompts, and a model card (docs/export.md).",
        epilog=f"example:\n  {prog} runs/first --out exported/first",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=location, help="a run directory, or gs://BUCKET/PATH")
    parser.add_argument("--out", required=True, help="directory to make, on a disk")
    parser.add_argument(
        "--merged", action="store_true", help="also a checkpoint a role with its adapter merged"
    )
    parser.add_argument(
        "--base",
        action="store_true",
        help="also the base model as a checkpoint, for one that is a GGUF file or embedded",
    )
    parser.add_argument(
        "--gguf",
        action="store_true",
        help="also GGUF files for llama.cpp and Ollama: the base model and an adapter a role; with"
        " --merged, and after full fine-tuning, a model a role",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of checkpoints and GGUF files; auto: the type that the run computes in here",
    )
    parser.add_argument(
        "--base-id",
        metavar="OWNER/NAME",
        help="the base model's name on the Hugging Face hub, for the files that name it"
        " (default: model.name of the run)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export at --out")
    return parser


if __name__ == "__main__":
    command(main)
