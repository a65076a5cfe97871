"""Makes the checkpoint inside the package (malt_jax/assets/tiny): tokenizer, weights, template.

    python scripts/make_tiny.py OUTPUT_DIRECTORY

A Llama of 0.65 million parameters learns the three roles of the arithmetic task from the generated
dialogues of tiny_dialogues.py. The questions are of the training split, at indices that no run
reaches. The same seed gives the same weights on the same machine; on two cores of 2.6 GHz it takes
about 15 minutes (17 minutes of processor time).
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from jaxtyping import Bool, Int
from optax.contrib import MuonDimensionNumbers, muon
from tiny_dialogues import GENERATOR_FIRST, Dialogues
from tokenizers import decoders, models, pre_tokenizers, trainers

from malt_jax.checkpoints.checkpoint import Checkpoint, save_checkpoint
from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.malt.prompts import Pipeline
from malt_jax.model.config import LlamaConfig
from malt_jax.model.llama import Llama, Params, forward, init_params, next_logits
from malt_jax.tasks.arithmetic import ArithmeticTask

VOCABULARY = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTROL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

BATCH = 32
MAX_COMPLETION = 80
POOL = 16
"""Batches that are drawn together, so that rows of similar length share one."""
STEPS = 1800
WARMUP = 100
LEARNING_RATE = 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", type=Path, help="new directory for the checkpoint")
    parser.add_argument("--steps", type=int, default=STEPS, help="updates (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and texts (default: 0)")
    parser.add_argument(
        "--snapshots", type=int, default=0, help="save every so many updates beside DIRECTORY"
    )
    arguments = parser.parse_args()

    dialogues = Dialogues(ArithmeticTask(), arguments.seed)
    tokenizer = train_tokenizer(dialogues)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        d_ff=256,
        tie_embeddings=True,
        max_positions=1024,
    )
    print(f"{config.num_parameters:,} parameters, {tokenizer.vocab_size} tokens", flush=True)

    def save(directory: Path, params: Params) -> None:
        save_checkpoint(directory, Checkpoint("tiny", config, params, tokenizer))

    snapshots = itertools.count(1)
    for step, params in train(config, tokenizer, dialogues, arguments.steps, arguments.seed):
        if step == arguments.steps:
            save(arguments.directory, params)
        elif arguments.snapshots and step % arguments.snapshots == 0:
            name = f"{arguments.directory.name}-{next(snapshots)}"
            save(arguments.directory.with_name(name), params)


def train_tokenizer(dialogues: Dialogues) -> Tokenizer:
    """Byte-level BPE of the task's words. Any text can be written in it; digits stand alone."""
    vocabulary = tokenizers.Tokenizer(models.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    vocabulary.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    fixed = [text for role in dialogues.roles.values() for text in (role.system, role.user)]
    written = (
        text
        for role, question, context, completion in map(
            dialogues.texts, range(GENERATOR_FIRST, GENERATOR_FIRST + 3000)
        )
        for text in (question, *context, completion)
    )
    # Slots are taken out, and the fixed text repeated so that its words become tokens as well.
    fixed = [text.replace("{", " ").replace("}", " ") for text in fixed] * 100
    vocabulary.train_from_iterator(itertools.chain(fixed, written), trainer)
    return Tokenizer(
        vocabulary, eos_token="<|end|>", chat_template=CHAT_TEMPLATE, origin="tiny's tokenizer"
    )


class Batch(NamedTuple):
    """B rows of T tokens, and the C inputs of each that predict its completion."""

    tokens: Int[np.ndarray, "B T"]
    lengths: Int[np.ndarray, " B"]
    inputs: Int[np.ndarray, "B C"]
    """Where in the row they stand."""
    targets: Int[np.ndarray, "B C"]
    mask: Bool[np.ndarray, "B C"]


def batches(dialogues: Dialogues, tokenizer: Tokenizer) -> Iterator[Batch]:
    prompts = dict(
        zip(dialogues.roles, Pipeline.of(dialogues.prompted, tokenizer).prompts, strict=True)
    )
    for pool in itertools.count():
        rows = []
        for index in range(pool * POOL * BATCH, (pool + 1) * POOL * BATCH):
            role, question, context, completion = dialogues.texts(index)
            prompt = prompts[role].ids(question, [tokenizer.encode(text) for text in context])
            rows.append((prompt, (*tokenizer.encode(completion), *tokenizer.stop_ids)))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        rng = np.random.default_rng([dialogues.seed, pool])
        for start in BATCH * rng.permutation(POOL):
            yield pad(rows[start : start + BATCH])


def pad(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    """Prompts and completions as a batch, of a multiple of 16 tokens: every shape is compiled."""
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    tokens = np.zeros((len(rows), 16 * math.ceil(longest / 16)), np.int32)
    targets = np.zeros((len(rows), MAX_COMPLETION), np.int32)
    for i, (prompt, completion) in enumerate(rows):
        tokens[i, : len(prompt) + len(completion)] = (*prompt, *completion)
        targets[i, : len(completion)] = completion
    first = np.array([[len(prompt) - 1] for prompt, _ in rows], np.int32)
    count = np.array([[len(completion)] for _, completion in rows], np.int32)
    offsets = np.arange(MAX_COMPLETION, dtype=np.int32)[None]
    return Batch(
        tokens=tokens,
        lengths=(first + 1 + count)[:, 0],
        inputs=np.minimum(first + offsets, tokens.shape[1] - 1),
        targets=targets,
        mask=offsets < count,
    )


def train(
    config: LlamaConfig, tokenizer: Tokenizer, dialogues: Dialogues, steps: int, seed: int
) -> Iterator[tuple[int, Params]]:
    """Yields the number of updates made and the weights, which the next update consumes."""
    model = Llama(config)
    params = init_params(model, jax.random.key(seed))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, WARMUP, steps, LEARNING_RATE / 50
    )
    # Muon (arXiv 2502.16982) reaches the same loss with far fewer tokens than AdamW here. Kernels
    # are [layers, out, in].
    kernels = MuonDimensionNumbers(reduction_axis=2, output_axis=1)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            schedule,
            weight_decay=0.05,
            consistent_rms=0.2,
            adam_b2=0.98,
            muon_weight_dimension_numbers=lambda params: jax.tree.map(
                lambda x: kernels if x.ndim == 3 else None, params
            ),
        ),
    )
    state = optimizer.init(params)

    def loss(params: Params, batch: Batch) -> jax.Array:
        variables = {"params": params}
        hidden, _ = forward(model, variables, batch.tokens, batch.lengths)
        hidden = jnp.take_along_axis(hidden, batch.inputs[..., None], axis=1)
        logits = next_logits(model, variables, hidden)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return jnp.mean(losses, where=batch.mask)

    @jax.jit
    def update(
        params: Params, state: optax.OptState, batch: Batch
    ) -> tuple[Params, optax.OptState, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    started, average, tokens = time.monotonic(), math.nan, 0
    for step, batch in enumerate(itertools.islice(batches(dialogues, tokenizer), steps), start=1):
        params, state, value = update(params, state, batch)
        average = float(value) if step == 1 else 0.97 * average + 0.03 * float(value)
        tokens += batch.tokens.size
        if step % 50 == 0:
            seconds = time.monotonic() - started
            print(
                f"{step}/{steps} loss {average:.4f}, {tokens / seconds:,.0f} tokens/s,"
                f" {seconds / step * (steps - step) / 60:.0f} min left",
                flush=True,
            )
        yield step, params


if __name__ == "__main__":
    main()
