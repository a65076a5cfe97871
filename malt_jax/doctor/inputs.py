"""Checks of what a configuration names: model, weights, tokenizer, prompts, questions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from malt_jax import tasks
from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.checkpoints.presets import PRESETS
from malt_jax.checkpoints.weights import leaves, read_floats, require_tensors_of
from malt_jax.config import Config
from malt_jax.doctor.check import Finding, amount, check
from malt_jax.errors import UserError
from malt_jax.malt.experiment import meshes, select_questions
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import load_roles
from malt_jax.model.config import LlamaConfig
from malt_jax.tasks.base import Question

_SAMPLE = "What is 12 + 30? Let's see: 42."


class Inputs:
    """What a configuration names. Every part is read by its own check."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stored = StoredCheckpoint.of(config.model)

    def findings(self) -> list[Finding]:
        """The findings, in the order in which a run reads the parts."""
        return [
            check("model", self._model),
            check("attention", self._attention),
            check("meshes", self._meshes),
            check("weights", self._weights),
            check("tokenizer", self._tokenizer),
            check("prompts", self._prompts),
            check("questions", self._questions),
        ]

    def _shape(self) -> LlamaConfig:
        return self._stored.config

    def _dtype(self) -> str:
        return self._config.model.resolve_dtype(jax.default_backend())

    def _model(self) -> str:
        shape, dtype = self._shape(), self._dtype()
        size = shape.num_parameters * jnp.dtype(dtype).itemsize
        return (
            f"{self._stored.name}, {shape.model_type}, {shape.num_parameters / 1e6:,.1f} million"
            f" parameters, computes in {dtype}, {amount(size)} of weights"
        )

    def _attention(self) -> str:
        shape = self._shape()
        parts = ["over the levels of the tree, merged by log-sum-exp, compiled by XLA"]
        windows = shape.layer_types.count("sliding_attention")
        if windows:
            parts.append(f"a window of {shape.sliding_window} tokens in {windows} layers")
        if shape.attention_softcap is not None:
            parts.append(f"logits capped at {shape.attention_softcap}")
        return "; ".join(parts)

    def _meshes(self) -> str:
        placed = meshes(self._config, self._shape(), self._dtype())
        texts = []
        for name, mesh in (("sampling", placed.sampling), ("training", placed.training)):
            split = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
            texts.append(f"{name} over {' x '.join(split) or 'one device'}")
        return ", ".join(texts)

    def _weights(self) -> str:
        if self._stored.name in PRESETS:
            return f"{self._stored.name} is a shape without a checkpoint: its weights are RANDOM"
        source, size = self._stored.tensors(), 0
        require_tensors_of(self._shape(), source)
        names = [name for leaf in leaves(self._shape()) for name in leaf.names]
        for name in names:
            tensor = read_floats(source, name)
            if not np.isfinite(tensor.astype(np.float32)).all():
                raise UserError(f"{source.origin}: {name} has NaN or infinite values: damaged")
            size += tensor.nbytes
        return f"{len(names)} tensors, {amount(size)}, all finite, from {source.origin}"

    def _tokenizer(self) -> str:
        self._stored.require_fit()
        tokenizer = self._stored.tokenizer
        ids = tokenizer.encode(_SAMPLE)
        if (back := tokenizer.decode(ids)).strip() != _SAMPLE:
            raise UserError(f"{_SAMPLE!r} comes back as {back!r:.80}")
        stops = ", ".join(map(str, tokenizer.stop_ids))
        return f"{len(ids)} tokens for {len(_SAMPLE)} characters there and back; stops at {stops}"

    def _pipeline(self) -> Pipeline:
        task = tasks.create(self._config.task)
        roles = load_roles(self._config.pipeline.roles, task.prompts)
        return Pipeline.of(roles, self._stored.tokenizer)

    def _prompts(self) -> str:
        return f"of {', '.join(self._pipeline().names)}"

    def _questions(self) -> str:
        config = self._config
        found: dict[str, list[Question]] = {}
        task = tasks.create(config.task)
        limits = {"train": config.task.train_questions, "test": config.test_limit}
        found["train"] = select_questions(task, "train", limits["train"], config.seed)
        found["test"] = select_questions(task, "test", limits["test"], config.seed)
        for split, limit in limits.items():
            if limit is not None and len(found[split]) < limit:
                raise UserError(f"{len(found[split])} {split} questions, not {limit}")
        positions = config.model.max_positions or self._shape().max_positions
        texts = [question.text for questions in found.values() for question in questions]
        self._pipeline().check_lengths(texts, config.sampling.max_tokens, positions)
        return (
            f"{len(found['train'])} for training and {len(found['test'])} for the test of"
            f" {task.name}; the longest prompt fits into {positions} positions"
        )
