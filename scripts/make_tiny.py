"""Makes the checkpoint inside the package (malt_jax/assets/tiny): tokenizer, weights, template.

    python scripts/make_tiny.py OUTPUT_DIRECTORY

A small Llama learns the three roles of the riddles task from the generated texts of
tiny_dialogues.py, in three phases: drill in computing, the careful way of every role, then all
ways. The same seed gives the same weights on the same machine. An interrupted run goes on from the
state that it saved last.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers, muon
from tiny_dialogues import LARGEST, WAYS, Dialogue, Dialogues, drill, way_of
from tokenizers import decoders, models, pre_tokenizers, trainers

from malt_jax.checkpoints.checkpoint import Checkpoint, save_checkpoint
from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.config import PipelineConfig
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import load_roles
from malt_jax.model.config import Llama, LlamaConfig
from malt_jax.model.llama import Params, init_params
from malt_jax.runs.checkpoints import restore_tree, save_tree
from malt_jax.sampling.sampler import Request, Sampler
from malt_jax.sampling.token import SamplingParameters
from malt_jax.tasks.riddles import RiddlesTask
from malt_jax.training.batches import Batch, Batches, Example
from malt_jax.training.policy import Policy
from malt_jax.training.step import completion_mask

VOCABULARY = 640
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTROL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

BATCH = 16
WARMUP = 50
LEARNING_RATE = 3e-3
DECAY_SHARE = 0.3
"""Share of the updates, at the end, in which the learning rate falls to 0."""
PHASES = {"drill": 1000, "careful": 3000, "mix": 5000}
"""Updates of every phase, in turn."""
TOKENS_PER_ROW = {"drill": 40.0, "careful": 24.0, "mix": 16.0}
"""The loss of a batch is a sum over BATCH times so many tokens. A mean over each batch's own tokens
would give short texts more weight, because rows of similar length share a batch."""
SAVE_EVERY = 200
STATE = "state-{}"
PERIODS = (2, 5, 10, 20, 50, 100, 200, 400)
UNSEEN = 900_000
"""Number of the first dialogue that no phase trains on."""
MEASURED = 256
"""Dialogues of every role that the report measures."""


class State(NamedTuple):
    """Everything that an update changes."""

    params: Params
    optimizer: optax.OptState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", type=Path, help="new directory for the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of weights and texts (default: 0)")
    parser.add_argument("--steps", type=int, help="updates of every phase, for a quick trial")
    arguments = parser.parse_args()

    phases = {name: arguments.steps or count for name, count in PHASES.items()}
    dialogues = Dialogues(arguments.seed)
    tokenizer = train_tokenizer(dialogues)
    roles = load_roles(PipelineConfig().roles, RiddlesTask().prompts)
    texts = Texts(dialogues, Pipeline.of(roles, tokenizer))
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        d_ff=384,
        tie_embeddings=True,
        max_positions=1024,
    )
    print(f"{config.num_parameters:,} parameters, {tokenizer.vocab_size} tokens", flush=True)
    policy = Policy(Llama(config), "full")
    saved = arguments.directory.with_name(f"{arguments.directory.name}-states")
    params = train(policy, texts, phases, arguments.seed, saved)
    save_checkpoint(arguments.directory, Checkpoint("tiny", config, params, tokenizer))
    shutil.rmtree(saved, ignore_errors=True)


def train_tokenizer(dialogues: Dialogues) -> Tokenizer:
    """Byte-level BPE of the task's words. Any text can be written in it.

    Each number from 0 to 99 is one token, so that a line of work is one entry of a small table.
    Between numbers, tokens may span words ("Final Answer: "), which makes the texts short.
    """
    vocabulary = tokenizers.Tokenizer(models.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r"[1-9][0-9]|[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    vocabulary.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    fixed = ["Answer:\n", "\nCheck:\n", "Solve the riddle.", "Check the answer.", "Compute."]
    fixed += ["Correct the answer.", *map(str, range(LARGEST + 1))]
    written = (
        text
        for dialogue in map(dialogues.dialogue, range(3000))
        for text in (dialogue.question, *dialogue.context, dialogue.text)
    )
    vocabulary.train_from_iterator(itertools.chain(fixed * 1000, written), trainer)
    return Tokenizer(
        vocabulary, eos_token="<|end|>", chat_template=CHAT_TEMPLATE, origin="tiny's tokenizer"
    )


class Texts:
    """Training rows of each phase, in token ids."""

    def __init__(self, dialogues: Dialogues, pipeline: Pipeline) -> None:
        self.dialogues = dialogues
        self.pipeline = pipeline
        self.prompts = dict(zip(pipeline.names, pipeline.prompts, strict=True))

    def rows(self, phase: str, first: int, count: int) -> list[Example]:
        """Rows number first .. first + count - 1."""
        row = (
            self._drill if phase == "drill" else self._careful if phase == "careful" else self._mix
        )
        return [row(index) for index in range(first, first + count)]

    def _drill(self, index: int) -> Example:
        asked, lines = drill(np.random.default_rng([self.dialogues.seed, index]))
        tokenizer = self.pipeline.tokenizer
        messages = [{"role": "system", "content": "Compute."}, {"role": "user", "content": asked}]
        prompt = tokenizer.encode(tokenizer.render(messages), special=True)
        return Example(prompt, (self._completion(lines),))

    def _careful(self, index: int) -> Example:
        """The last way of the verifier or the refiner, or drill."""
        kind = index % 8
        if kind == 0:
            return self._drill(index)
        role = "verifier" if kind <= 4 else "refiner"
        return self._example(self.dialogues.dialogue(index, role, list(WAYS[role])[-1]))

    def _mix(self, index: int) -> Example:
        return self._example(self.dialogues.dialogue(index))

    def _example(self, dialogue: Dialogue) -> Example:
        context = [self.pipeline.tokenizer.encode(text) for text in dialogue.context]
        prompt = self.prompts[dialogue.role].ids(dialogue.question, context)
        return Example(prompt, (self._completion(dialogue.text),))

    def _completion(self, text: str) -> tuple[int, ...]:
        tokenizer = self.pipeline.tokenizer
        return (*tokenizer.encode(text), *tokenizer.stop_ids)


def train(policy: Policy, texts: Texts, phases: dict[str, int], seed: int, saved: Path) -> Params:
    """The weights after all phases; states are saved in the directory `saved` and restored."""
    total = sum(phases.values())
    optimizer = muon_with_schedule(total)
    params = init_params(policy.model, jax.random.key(seed))
    params["embed"]["embedding"] = with_number_line(
        params["embed"]["embedding"], texts.pipeline.tokenizer, seed
    )
    state, done = State(params, optimizer.init(params)), 0
    if found := sorted(saved.glob(STATE.format("*"))):
        state, done = restore_tree(found[-1], state), int(found[-1].name.rpartition("-")[2])
    update = updates(policy, optimizer)
    ends = list(itertools.accumulate(phases.values()))
    average = math.nan
    for step, phase, batch in batches(texts, phases, seed, done):
        state, loss = update(state, batch, TOKENS_PER_ROW[phase])
        average = float(loss) if math.isnan(average) else 0.97 * average + 0.03 * float(loss)
        if step % 50 == 0:
            print(f"{time.strftime('%X')} {phase} {step}/{total} loss {average:.4f}", flush=True)
        if step % SAVE_EVERY == 0:
            save_tree(saved / STATE.format(f"{step:06}"), state)
            for path in saved.glob(STATE.format("*")):
                if path.name != STATE.format(f"{step:06}"):
                    shutil.rmtree(path)
        if step in ends:
            report(policy.model, state.params, texts)
    return state.params


def batches(
    texts: Texts, phases: dict[str, int], seed: int, done: int
) -> Iterator[tuple[int, str, Batch]]:
    """The number of each update after the first `done`, its phase and its batch."""
    first = 0
    for phase, count in phases.items():
        if done < first + count:
            rows = Batches(texts.rows(phase, first * BATCH, count * BATCH), BATCH, seed)
            print(f"{phase}: prompts and completions of {rows.shapes} tokens", flush=True)
            for step in range(max(0, done - first), count):
                yield first + step + 1, phase, rows.batch(0, step)
        first += count


def muon_with_schedule(total: int) -> optax.GradientTransformation:
    """Muon (arXiv 2502.16982) reaches the same loss with far fewer tokens than AdamW here."""
    fall = int(DECAY_SHARE * total) + 1
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(LEARNING_RATE / WARMUP, LEARNING_RATE, WARMUP),
            optax.constant_schedule(LEARNING_RATE),
            optax.linear_schedule(LEARNING_RATE, 0.0, fall),
        ],
        [WARMUP, total - fall],
    )
    # Kernels are [layers, out, in].
    kernels = MuonDimensionNumbers(reduction_axis=2, output_axis=1)
    return optax.chain(
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


def with_number_line(
    table: Float[Array, "V D"], tokenizer: Tokenizer, seed: int
) -> Float[Array, "V D"]:
    """The embedding with vectors of numbers that are random mixes of waves over the number line.

    Their periods are those of units and tens, so that near numbers and equal digits look alike.
    """
    numbers = np.arange(LARGEST + 1)
    angles = 2 * np.pi * numbers[:, None] / np.array(PERIODS)
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    directions = np.random.default_rng(seed).normal(size=(waves.shape[1], table.shape[1]))
    vectors = waves @ directions
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    size = np.mean(np.linalg.norm(np.asarray(table), axis=1))
    ids = np.array([tokenizer.encode(str(number)) for number in numbers])[:, 0]
    return table.at[ids].set(jnp.asarray(vectors * size / norms, table.dtype))


def updates(
    policy: Policy, optimizer: optax.GradientTransformation
) -> Callable[[State, Batch, float], tuple[State, jax.Array]]:
    def loss_of(params: Params, batch: Batch, tokens: float) -> jax.Array:
        scores = policy.score(params, params, batch)
        return -jnp.sum(jnp.where(completion_mask(batch), scores.logps, 0.0)) / (BATCH * tokens)

    @jax.jit
    def update(state: State, batch: Batch, tokens: float) -> tuple[State, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(state.params, batch, tokens)
        changes, inner = optimizer.update(gradients, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, changes), inner), loss

    return update


def report(model: Llama, params: Params, texts: Texts) -> None:
    """Prints how often each way is drawn at temperature 1, and how often it is correct.

    The roles read what the careful way needs.
    """
    tokenizer = texts.pipeline.tokenizer
    parameters = SamplingParameters.create(1.0, 1.0, 0, stop_ids=tokenizer.stop_ids, max_tokens=64)
    sampler = Sampler(model, parameters, chunk=16)
    for role in texts.pipeline.names:
        prompt = texts.prompts[role]
        careful = list(WAYS[role])[-1]
        asked = [texts.dialogues.dialogue(UNSEEN + i, role, careful) for i in range(MEASURED)]
        segments = [
            prompt.segments(d.question, [tokenizer.encode(text) for text in d.context])
            for d in asked
        ]
        levels = [[prompt.root], *map(list, zip(*(row[1:] for row in segments), strict=True))]
        branching = (1,) * (len(levels) - 1)
        request = Request(levels, branching, np.arange(MEASURED), jax.random.key(1))
        completions = sampler.sample({"params": params}, request)
        drawn: Counter[str] = Counter()
        correct: Counter[str] = Counter()
        for number, dialogue in enumerate(asked):
            node = (number, *[0] * len(branching))
            text = tokenizer.decode(completions.ids(*node))
            way = way_of(role, text)
            drawn[way] += 1
            correct[way] += dialogue.is_correct(text)
        shown = ", ".join(
            f"{way} {100 * n / MEASURED:.0f} % ({100 * correct[way] / n:.1f} % correct)"
            for way, n in drawn.items()
        )
        print(f"{role}: {100 * correct.total() / MEASURED:.1f} % correct; {shown}", flush=True)


if __name__ == "__main__":
    main()
