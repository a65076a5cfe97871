"""The model card of an exported pipeline: README.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from malt_jax.config import Config
from malt_jax.export.pipeline import PipelineFile
from malt_jax.report.tables import markdown
from malt_jax.strict_yaml import dump_yaml

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's --max-lora-rank allows."""


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank of vLLM for adapters of a rank; None: there is none."""
    return next((allowed for allowed in VLLM_RANKS if rank <= allowed), None)


def model_card(
    pipeline: PipelineFile,
    config: Config,
    results: Mapping[str, Any] | None,
    hub_id: str | None,
    folders: Mapping[str, str],
) -> str:
    """The text of README.md.

    results: the content of results.json; None: the run was not evaluated.
    hub_id:  the base model's name on the Hugging Face hub, if it was given.
    folders: the contents of the directory, by path.
    """
    lora = pipeline.method == "lora"
    header: dict[str, Any] = {"library_name": "peft" if lora else "transformers"}
    if hub_id is not None:
        header["base_model"] = hub_id
    header |= {"pipeline_tag": "text-generation", "tags": ["malt", "lora"] if lora else ["malt"]}
    names = [role.name for role in pipeline.roles]
    kind = "a LoRA adapter" if lora else "all weights"
    parts = [
        f"---\n{dump_yaml(header)}---",
        f"# {', '.join(names)}: {pipeline.task}",
        f"{len(names)} roles answer a question in turn; each reads the answers of those before it."
        " They were trained with MALT ([arXiv 2412.01928](https://arxiv.org/abs/2412.01928)) by"
        f" malt_jax: {kind} a role, on the task `{pipeline.task}`, with the seed {pipeline.seed}."
        f" The base model is `{pipeline.base.id}`.",
        "| role | weights |\n| --- | --- |\n"
        + "\n".join(f"| {role.name} | {_weights(role.directory)} |" for role in pipeline.roles),
        _files(folders),
        _use(pipeline, config, "DIR/base" if "base/" in folders else pipeline.base.id),
        _results(results),
        "## Training\n\n"
        f"All options are in `run.yaml`. Versions: {_listed(pipeline.versions)}. SHA-256 of the"
        f" base weights: `{pipeline.base.weights_sha256}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _weights(directory: str | None) -> str:
    return (
        "the base model's: there were no training rows" if directory is None else f"`{directory}/`"
    )


def _files(folders: Mapping[str, str]) -> str:
    rows = [f"| `{path}` | {content} |" for path, content in folders.items()]
    return "\n".join(["## Files", "", "| path | content |", "| --- | --- |", *rows])


def _use(pipeline: PipelineFile, config: Config, base: str) -> str:
    sampling = pipeline.sampling
    lines = [
        "## Use",
        "",
        "`pipeline.json` has the prompts, the sampling parameters"
        f" (temperature {sampling.temperature}, top-p {sampling.top_p}, top-k {sampling.top_k}, at"
        f" most {sampling.max_tokens} tokens) and the ids that end a completion"
        f" ({', '.join(map(str, pipeline.stop_ids))}). The same pipeline in malt_jax:",
        "",
        "```",
        'malt solve DIR "QUESTION"',
        "```",
    ]
    trained = [role.directory for role in pipeline.roles if role.directory is not None]
    rank = vllm_rank(config.lora.rank)
    if pipeline.method == "lora" and rank is not None:
        modules = " ".join(f"{name}=DIR/{name}" for name in trained)
        lines += [
            "",
            "All roles in one vLLM server:",
            "",
            "```",
            f"vllm serve {base} --enable-lora --max-lora-rank {rank} \\",
            f"    --max-loras {len(trained)} --lora-modules {modules}",
            "```",
        ]
    elif pipeline.method == "lora":
        lines += ["", f"vLLM serves adapters up to rank {VLLM_RANKS[-1]}; these are larger."]
    return "\n".join(lines)


def _results(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "## Results\n\nThe run was exported before its evaluation."
    return re.sub(r"^#", "##", markdown(results), flags=re.MULTILINE).rstrip()


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
