"""Trained tokens per second: an SFT step of malt_jax and of transformers with torch, in turn.

    python benchmarks/training.py --model smollm2-135m-instruct --batch 4 --prompt 192

Full fine-tuning in float32 with AdamW; both recompute activations in the backward pass, so that the
memory is comparable. Tokens are prompt and completion together.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from in_turn import compare

from malt_jax.checkpoints.checkpoint import Checkpoint, StoredCheckpoint, save_checkpoint
from malt_jax.config import SftConfig
from malt_jax.malt.objectives import Sft
from malt_jax.model.llama import Llama
from malt_jax.training.batches import Batches, Example
from malt_jax.training.policy import Policy
from malt_jax.training.step import StageInputs, init_state, train_step


def ours(checkpoint: Checkpoint, rows: np.ndarray, prompt: int) -> Callable[[], None]:
    policy = Policy(Llama(checkpoint.config, remat=True), "full")
    config = SftConfig(batch_size=len(rows))
    examples = [Example(row[:prompt], (row[prompt:],)) for row in rows.tolist()]
    batch = Batches(examples, len(rows), seed=0).batch(0, 0)
    base = checkpoint.params
    state = init_state(policy.init(base, jax.random.key(0)), config)

    def run() -> None:
        nonlocal state
        stage = StageInputs(jnp.asarray(100, jnp.int32), jax.random.key(0))
        state, metrics = train_step(policy, Sft(config), state, base, batch, stage)
        jax.block_until_ready((state, metrics))

    return run


def theirs(checkpoint: Checkpoint, rows: np.ndarray, prompt: int) -> Callable[[], None]:
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "model", checkpoint)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder) / "model", dtype=torch.float32
        )
    model.train()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    tokens = torch.tensor(rows)
    labels = tokens.clone()
    labels[:, :prompt] = -100

    def run() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=192)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()

    checkpoint = StoredCheckpoint(options.model).load(dtype=jnp.float32, key=jax.random.key(0))
    width = options.prompt + options.completion
    rows = np.random.default_rng(0).integers(
        0, checkpoint.config.vocab_size, (options.batch, width)
    )
    contenders = {
        "malt_jax": ours(checkpoint, rows, options.prompt),
        "transformers": theirs(checkpoint, rows, options.prompt),
    }
    compare(contenders, rows.size, options.runs)


if __name__ == "__main__":
    main()
