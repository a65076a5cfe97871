"""The sampler over shared levels against one prompt a row, nothing shared and nothing cached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.sampling.cache import bucket, pad_segments, prefill
from malt_jax.sampling.decode import Completions, Finish, decode_chunk, node_keys
from malt_jax.sampling.sampler import Sampler, prompt_rows
from malt_jax.sampling.token import SamplingParameters
from tests.model.small import small_model
from tests.sampling.naive import decode_naively

STOPS = (7, 11, 13, 17, 19)
BRANCHING = (2, 2, 3)
KEY = jax.random.key(5)
MODEL, PARAMS = small_model()
VARIABLES = {"params": PARAMS}


def ragged_levels(questions: int, branching: tuple[int, ...]) -> list[list[list[int]]]:
    """Segments of 3 to 30 tokens. Those of every other question fit into the smallest bucket, those
    of the others do not, so that single questions have two shapes on all levels together."""
    rng = np.random.default_rng(0)
    levels = [[rng.integers(20, 300, 24).tolist()]]
    for nodes in np.cumprod([1, *branching[:-1]]):
        lengths = rng.integers(3, [[17], [31]] * (questions // 2), (questions, nodes))
        lengths[1::2, 0] = rng.integers(17, 31, questions // 2)
        levels.append([rng.integers(20, 300, length).tolist() for length in lengths.ravel()])
    return levels


def sampler(**change: object) -> Sampler:
    settings = {
        "parameters": SamplingParameters.create(0.8),
        "stop_ids": STOPS,
        "max_tokens": 20,
        "chunk": 8,
    }
    return Sampler(MODEL, **{**settings, **change})


LEVELS = ragged_levels(8, BRANCHING)
IDS = np.arange(100, 108)


@pytest.fixture(scope="module")
def sampled() -> Completions:
    return sampler().sample(VARIABLES, LEVELS, BRANCHING, IDS, KEY)


def test_shared_levels_equal_the_naive_reference(sampled: Completions) -> None:
    rows = [row for row in prompt_rows(LEVELS) for _ in range(BRANCHING[-1])]
    keys = node_keys(KEY, IDS, BRANCHING).reshape(-1)
    naive = decode_naively(
        MODEL, VARIABLES, rows, keys, SamplingParameters.create(0.8), stop_ids=STOPS, max_tokens=20
    )
    flat = sampled.tokens.reshape(len(rows), -1)
    np.testing.assert_array_equal(flat, naive.tokens)
    np.testing.assert_array_equal(sampled.lengths.ravel(), naive.lengths)
    np.testing.assert_array_equal(sampled.finish.ravel(), naive.finish)
    ours = sampled.log_probabilities.reshape(len(rows), -1)
    np.testing.assert_allclose(ours, naive.log_probabilities, atol=1e-4)


def test_finish_reasons_and_lengths_are_true(sampled: Completions) -> None:
    reasons = set()
    for node in np.ndindex(sampled.lengths.shape):
        ids, finish = sampled.ids(*node), Finish(sampled.finish[node])
        reasons.add(finish)
        assert (ids[-1] in STOPS) == (finish is Finish.STOP)
        assert not set(ids[:-1]) & set(STOPS)
        assert finish is Finish.STOP or len(ids) == 20
    assert reasons == {Finish.STOP, Finish.LENGTH}


def test_batch_size_changes_nothing(sampled: Completions) -> None:
    for question in range(8):
        alone = [LEVELS[0]] + [
            segments[question * len(segments) // 8 : (question + 1) * len(segments) // 8]
            for segments in LEVELS[1:]
        ]
        one = sampler().sample(VARIABLES, alone, BRANCHING, IDS[question : question + 1], KEY)
        for path in np.ndindex(BRANCHING):
            assert one.ids(0, *path) == sampled.ids(question, *path)


def test_the_chunk_changes_nothing(sampled: Completions) -> None:
    other = sampler(chunk=20).sample(VARIABLES, LEVELS, BRANCHING, IDS, KEY)
    np.testing.assert_array_equal(other.tokens, sampled.tokens)


def test_draws_depend_on_key_question_and_path(sampled: Completions) -> None:
    keys = node_keys(KEY, IDS, BRANCHING)
    assert len(np.unique(jax.random.key_data(keys).reshape(-1, 2), axis=0)) == keys.size
    # One prompt for all: siblings and questions still differ, the same question does not.
    prompt = [LEVELS[1][0]] * 3
    twice = sampler().sample(VARIABLES, [LEVELS[0], prompt], (4,), np.array([1, 2, 1]), KEY)
    rows = [tuple(map(tuple, ([twice.ids(q, n) for n in range(4)]))) for q in range(3)]
    assert rows[0] == rows[2] != rows[1]
    assert len(set(rows[0])) > 1
    other = sampler().sample(
        VARIABLES, [LEVELS[0], prompt], (4,), np.array([1, 2, 1]), jax.random.key(6)
    )
    assert not np.array_equal(other.tokens, twice.tokens)


def test_programs_are_compiled_once_a_shape() -> None:
    sampler().sample(VARIABLES, LEVELS, BRANCHING, IDS, KEY)
    prefills, decodes = prefill._cache_size(), decode_chunk._cache_size()
    for parameters in (SamplingParameters.create(0.0), SamplingParameters.create(1.0, 0.9, 5)):
        sampler(parameters=parameters, max_tokens=20).sample(
            VARIABLES, LEVELS, BRANCHING, IDS + 9, KEY
        )
    assert (prefill._cache_size(), decode_chunk._cache_size()) == (prefills, decodes)


def test_every_chunk_is_reported() -> None:
    steps: list[int] = []
    lengths: list[int] = []

    def note(state: object) -> None:
        steps.append(int(state.step))
        lengths.append(int(jnp.sum(state.lengths)))

    levels = LEVELS[:2]
    out = sampler(stop_ids=(299,)).sample(VARIABLES, levels, (2,), IDS, KEY, on_chunk=note)
    assert steps == sorted(steps) and steps[-1] <= 20 and steps[0] == 8
    assert lengths[-1] == out.lengths.sum()


def test_finished_questions_leave_the_batch(sampled: Completions) -> None:
    """Stop tokens are one in twelve here, so that some questions end long before others."""
    stops = tuple(range(0, 300, 12))
    sizes: list[int] = []
    settings = sampler(stop_ids=stops, max_tokens=64, chunk=4)
    out = settings.sample(
        VARIABLES, LEVELS[:2], (2,), IDS, KEY, lambda state: sizes.append(len(state.last))
    )
    assert sizes[0] == 8 and sizes[-1] < 8 and sizes == sorted(sizes, reverse=True)
    alone = [
        settings.sample(VARIABLES, [LEVELS[0], [LEVELS[1][q]]], (2,), IDS[q : q + 1], KEY)
        for q in range(8)
    ]
    for q, n in np.ndindex(8, 2):
        assert out.ids(q, n) == alone[q].ids(0, n)
        assert out.finish[q, n] == alone[q].finish[0, n] == Finish.STOP


@pytest.mark.parametrize("size", [0, 1, 16, 17, 33, 49, 64, 65, 97, 1000, 8192])
def test_buckets_hold_their_segment_with_less_than_half_padding(size: int) -> None:
    assert bucket(size) >= size and bucket(size) % 16 == 0
    assert bucket(size) <= max(16, 1.5 * size + 16)


def test_padding_keeps_order_and_lengths() -> None:
    tokens, lengths = pad_segments([[1, 2], [], [3], [4, 5, 6]], (2, 2))
    assert tokens.shape == (2, 2, 16) and lengths.tolist() == [[2, 0], [1, 3]]
    assert tokens[1, 1, :4].tolist() == [4, 5, 6, 0]
