"""Slots against one prompt a row, nothing cached and nothing shared."""

import dataclasses
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config import LoraConfig
from malt_jax.model.llama import Llama, Params, init_params
from malt_jax.model.lora import join_adapters
from malt_jax.sampling.completions import Finish
from malt_jax.sampling.decode import node_keys
from malt_jax.sampling.token import SamplingParameters
from malt_jax.serving.batch import Batch, Job, Ticket, Weights, job_key
from malt_jax.serving.slots import decode_slots
from tests.model.small import MIXED, nonzero_adapter, small_model
from tests.sampling.naive import decode_naively

LORA = LoraConfig(rank=3, alpha=5.0, dropout=0.0)
KEY = jax.random.key(5)
STOPS = (7, 11, 13, 17, 19)
MODEL, BASE = small_model(LORA)
ADAPTERS = [nonzero_adapter(MODEL, key) for key in (2, 12)]
JOINED, JOINED_LORA = join_adapters(ADAPTERS, LORA)
WEIGHTS = Weights(
    dataclasses.replace(MODEL, lora=JOINED_LORA), {"params": BASE, "adapter": JOINED}, 2
)


def make_batch(slots: int = 4, chunk: int = 3, weights: Weights = WEIGHTS) -> Batch:
    return Batch(weights, KEY, STOPS, slots, chunk)


def make_job(number: int, **changed: Any) -> Job:
    """Jobs of all adapters, lengths and parameters."""
    rng = np.random.default_rng(number)
    job = Job(
        prompt=rng.integers(20, 300, int(rng.integers(1, 40))).tolist(),
        weights=0,
        adapter=number % 3 - 1,
        path=(number, 3),
        temperature=(0.0, 0.8, 1.2)[number % 3],
        top_p=(1.0, 0.7, 0.9, 1.0)[number % 4],
        top_k=(0, 0, 20)[number // 3 % 3],
        max_tokens=int(rng.integers(1, 20)),
    )
    return dataclasses.replace(job, **changed)


class Asked:
    """A job's ticket, and what was delivered."""

    def __init__(self, job: Job) -> None:
        self.ids: list[int] = []
        self.finish = Finish.RUNNING
        self.ticket = Ticket(job, self._deliver)

    def _deliver(self, new: list[int], finish: Finish | None) -> None:
        assert finish is not None and self.finish == Finish.RUNNING
        self.ids += new
        self.finish = finish


def run(batch: Batch, asked: list[Asked]) -> None:
    """Decodes until all have finished."""
    waiting = deque(one.ticket for one in asked)
    while waiting or batch.tickets:
        batch.advance(waiting)


def of_adapter(adapter: int) -> tuple[Llama, Params]:
    """The model of a job's adapter, and its variables."""
    if adapter < 0:
        return dataclasses.replace(MODEL, lora=None), {"params": BASE}
    return MODEL, {"params": BASE, "adapter": ADAPTERS[adapter]}


def naive(jobs: list[Job], model: Llama, variables: Params) -> list[tuple[list[int], int]]:
    """The completions of jobs without slots, joined adapters or a cache."""
    keys = jnp.stack([job_key(KEY, jnp.asarray(np.array(j.path, np.uint32))) for j in jobs])
    parameters = SamplingParameters(
        *(jnp.array([job.temperature for job in jobs]), jnp.array([job.top_p for job in jobs])),
        jnp.array([job.top_k for job in jobs]),
        jnp.array(STOPS),
        jnp.array(max(job.max_tokens for job in jobs)),
    )
    found = decode_naively(model, variables, [job.prompt for job in jobs], keys, parameters)
    whole = [found.ids(row)[: job.max_tokens] for row, job in enumerate(jobs)]
    return [(ids, Finish.STOP if ids[-1] in STOPS else Finish.LENGTH) for ids in whole]


def test_slots_give_what_each_job_gives_alone_and_uncached() -> None:
    """Eleven jobs of two adapters and the base model in four slots."""
    asked = [Asked(make_job(number)) for number in range(11)]
    run(make_batch(), asked)
    for adapter in (-1, 0, 1):
        of_one = [one for one in asked if one.ticket.job.adapter == adapter]
        want = naive([one.ticket.job for one in of_one], *of_adapter(adapter))
        assert [(one.ids, one.finish) for one in of_one] == want
    assert {one.finish for one in asked} == {Finish.STOP, Finish.LENGTH}


def test_slots_know_sliding_windows() -> None:
    model, params = small_model(config=MIXED)
    asked = [Asked(make_job(number, adapter=-1, temperature=0.9)) for number in range(6)]
    run(make_batch(weights=Weights(model, {"params": params})), asked)
    want = naive([one.ticket.job for one in asked], model, {"params": params})
    assert [(one.ids, one.finish) for one in asked] == want


def test_a_job_does_not_depend_on_the_others_in_the_batch() -> None:
    together = [Asked(make_job(number)) for number in range(9)]
    run(make_batch(), together)
    alone = [Asked(make_job(number)) for number in reversed(range(9))]
    for one in alone:
        run(make_batch(), [one])
    assert [one.ids for one in together] == [one.ids for one in reversed(alone)]


def test_a_cancelled_job_leaves_its_slot_to_the_next() -> None:
    batch = make_batch(slots=1)
    endless = Asked(make_job(0, max_tokens=1000, temperature=1.5, path=(8,)))
    queued, last = Asked(make_job(1)), Asked(make_job(2))
    waiting = deque(one.ticket for one in (endless, queued, last))
    batch.advance(waiting)
    assert batch.tickets == [endless.ticket] and len(endless.ids) == 3
    endless.ticket.cancelled = queued.ticket.cancelled = True
    while waiting or batch.tickets:
        batch.advance(waiting)
    assert len(endless.ids) == 3 and queued.ids == []
    again = Asked(make_job(2))
    run(make_batch(), [again])
    assert (last.ids, last.finish) == (again.ids, again.finish)


def test_room_grows_with_the_longest_job_and_shrinks_after_it() -> None:
    batch, waiting, sizes = Batch(WEIGHTS, KEY, (), 2, 40), deque[Ticket](), []
    long = Asked(make_job(0, max_tokens=400, path=(8,), temperature=1.5, top_k=0, top_p=1.0))
    waiting.append(long.ticket)
    while waiting or batch.tickets:
        batch.advance(waiting)
        sizes.append(batch.size)
    assert sizes == sorted(sizes) and {128, 256, 512} <= set(sizes)
    assert len(long.ids) == 400
    short = Asked(make_job(1))
    run(batch, [short])
    assert batch.size == 128
    again = Asked(make_job(1))
    run(Batch(WEIGHTS, KEY, (), 2, 40), [again])
    assert short.ids == again.ids


def test_the_key_of_a_path_is_that_of_a_node_of_a_tree() -> None:
    key = node_keys(jax.random.fold_in(KEY, 2), np.array([9]), (1, 1, 1), first_branch=4)
    path = jnp.asarray(np.array([2, 9, 4, 0, 0], np.uint32))
    assert job_key(KEY, path) == key[0, 0, 0, 0]


@pytest.mark.parametrize("adapters", [0, 2])
def test_programs_do_not_depend_on_jobs(adapters: int) -> None:
    """Adapters, parameters and slots are traced: other jobs compile nothing."""
    weights = WEIGHTS
    if adapters == 0:
        model = dataclasses.replace(MODEL, lora=None)
        weights = Weights(model, {"params": init_params(model, jax.random.key(1))})
    batch = make_batch(weights=weights)
    batch.warm_up([make_job(0, adapter=-1, max_tokens=1)])
    before = decode_slots._cache_size()
    run(batch, [Asked(make_job(number, adapter=-1 if not adapters else 0)) for number in range(3)])
    assert decode_slots._cache_size() == before
