"""Sampled tokens per second of malt_jax and of transformers, in turn, on the same prompts.

    python benchmarks/sampling.py --model smollm2-135m-instruct --questions 1 --branching 27

Both draw with temperature 1 and without a stop token, so that the number of tokens is fixed. The
peer gets the prompts as transformers wants them: repeated for every completion.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from in_turn import compare

from malt_jax.checkpoints.checkpoint import Checkpoint, StoredCheckpoint, save_checkpoint
from malt_jax.model.llama import Llama
from malt_jax.sampling.sampler import Request, Sampler
from malt_jax.sampling.token import SamplingParameters


def ours(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], branching: int, new: int
) -> Callable[[], None]:
    model = Llama(checkpoint.config)
    parameters = SamplingParameters.create(1.0, max_tokens=new)
    sampler = Sampler(model, parameters, chunk=32)
    questions = np.arange(len(prompts))

    def run() -> None:
        variables = {"params": checkpoint.params}
        request = Request([[()], prompts], (branching,), questions, jax.random.key(0))
        out = sampler.sample(variables, request)
        assert (out.lengths == new).all()

    return run


def theirs(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], branching: int, new: int
) -> Callable[[], None]:
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "model", checkpoint)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder) / "model", dtype=torch.float32
        ).eval()
    rows = torch.tensor([prompt for prompt in prompts for _ in range(branching)])
    settings = transformers.GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=new, eos_token_id=None, pad_token_id=0
    )

    def run() -> None:
        with torch.no_grad():
            out = model.generate(
                rows, attention_mask=torch.ones_like(rows), generation_config=settings
            )
        assert out.shape[1] == rows.shape[1] + new

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--branching", type=int, default=27)
    parser.add_argument("--prompt", type=int, default=96, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to sample")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()

    checkpoint = StoredCheckpoint(options.model).load(dtype=jnp.float32, key=jax.random.key(0))
    generator = np.random.default_rng(0)
    vocabulary = checkpoint.config.vocab_size
    prompts = generator.integers(0, vocabulary, (options.questions, options.prompt)).tolist()
    arguments = (checkpoint, prompts, options.branching, options.new)
    contenders = {"malt_jax": ours(*arguments), "transformers": theirs(*arguments)}
    compare(contenders, options.questions * options.branching * options.new, options.runs)


if __name__ == "__main__":
    main()
