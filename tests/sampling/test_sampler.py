"""The sampler over shared levels against one prompt a row, nothing shared and nothing cached."""

from typing import Any

import jax
import numpy as np
import pytest

from malt_jax.sampling.cache import bucket, pad_segments, prefill
from malt_jax.sampling.completions import Completions, Finish
from malt_jax.sampling.decode import ROOM, decode_chunk, node_keys
from malt_jax.sampling.sampler import Request, Sampler
from malt_jax.sampling.token import SamplingParameters
from tests.model.small import MIXED, small_model
from tests.sampling.naive import decode_naively, prompt_rows

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


def sampler(
    temperature: float = 0.8,
    *settings: float,
    stop_ids: tuple[int, ...] = STOPS,
    max_tokens: int = 20,
    chunk: int = 8,
    batch: int = 1,
) -> Sampler:
    parameters = SamplingParameters.create(
        temperature, *settings, stop_ids=stop_ids, max_tokens=max_tokens
    )
    return Sampler(MODEL, parameters, chunk, batch)


LEVELS = ragged_levels(8, BRANCHING)
IDS = np.arange(100, 108)
REQUEST = Request(LEVELS, BRANCHING, IDS, KEY)


@pytest.fixture(scope="module")
def sampled() -> Completions:
    return sampler().sample(VARIABLES, REQUEST)


def test_shared_levels_equal_the_naive_reference(sampled: Completions) -> None:
    rows = [row for row in prompt_rows(LEVELS) for _ in range(BRANCHING[-1])]
    keys = node_keys(KEY, IDS, BRANCHING).reshape(-1)
    naive = decode_naively(MODEL, VARIABLES, rows, keys, sampler().parameters)
    flat = sampled.tokens.reshape(len(rows), -1)
    np.testing.assert_array_equal(flat, naive.tokens)
    np.testing.assert_array_equal(sampled.lengths.ravel(), naive.lengths)
    np.testing.assert_array_equal(sampled.finish.ravel(), naive.finish)
    ours = sampled.log_probabilities.reshape(len(rows), -1)
    np.testing.assert_allclose(ours, naive.log_probabilities, atol=1e-4)


def test_windows_reach_across_levels() -> None:
    """The window ends in a completion, in one of the prompt's segments or in the root."""
    levels, branching, ids = ragged_levels(2, (2, 2)), (2, 2), np.arange(2)
    model, params = small_model(config=MIXED)
    parameters = sampler(max_tokens=16).parameters
    ours = Sampler(model, parameters, chunk=8).sample(
        {"params": params}, Request(levels, branching, ids, KEY)
    )
    rows = [row for row in prompt_rows(levels) for _ in range(2)]
    keys = node_keys(KEY, ids, branching).reshape(-1)
    naive = decode_naively(model, {"params": params}, rows, keys, parameters)
    np.testing.assert_array_equal(ours.tokens.reshape(len(rows), -1), naive.tokens)
    np.testing.assert_array_equal(ours.lengths.ravel(), naive.lengths)
    assert naive.lengths.max() > MIXED.sliding_window


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
        one = sampler().sample(
            VARIABLES, Request(alone, BRANCHING, IDS[question : question + 1], KEY)
        )
        for path in np.ndindex(BRANCHING):
            assert one.ids(0, *path) == sampled.ids(question, *path)


def test_the_chunk_changes_nothing(sampled: Completions) -> None:
    other = sampler(chunk=20).sample(VARIABLES, REQUEST)
    np.testing.assert_array_equal(other.tokens, sampled.tokens)


def test_draws_depend_on_key_question_and_path(sampled: Completions) -> None:
    keys = node_keys(KEY, IDS, BRANCHING)
    assert len(np.unique(jax.random.key_data(keys).reshape(-1, 2), axis=0)) == keys.size
    # One prompt for all: siblings and questions still differ, the same question does not.
    prompt = [LEVELS[1][0]] * 3
    request = Request([LEVELS[0], prompt], (4,), np.array([1, 2, 1]), KEY)
    twice = sampler().sample(VARIABLES, request)
    rows = [tuple(map(tuple, ([twice.ids(q, n) for n in range(4)]))) for q in range(3)]
    assert rows[0] == rows[2] != rows[1]
    assert len(set(rows[0])) > 1
    other = sampler().sample(VARIABLES, request._replace(key=jax.random.key(6)))
    assert not np.array_equal(other.tokens, twice.tokens)


def test_branches_of_two_requests_are_those_of_one(sampled: Completions) -> None:
    first = REQUEST._replace(branching=(1, 2, 3), levels=_first_branches(LEVELS))
    one = sampler().sample(VARIABLES, first)
    np.testing.assert_array_equal(one.lengths[:, 0], sampled.lengths[:, 0])
    prompt = Request(LEVELS[:2], (3,), IDS, KEY)
    all_at_once = sampler().sample(VARIABLES, prompt)
    later = sampler().sample(VARIABLES, prompt._replace(branching=(2,), first_branch=1))
    for q, n in np.ndindex(8, 2):
        assert later.ids(q, n) == all_at_once.ids(q, n + 1)


def _first_branches(levels: list[list[list[int]]]) -> list[list[list[int]]]:
    """The levels of the trees whose first role has its first completion alone."""
    root, questions, first, second = levels
    return [root, questions, first[::2], [x for i in range(0, 32, 4) for x in second[i : i + 2]]]


def test_padding_a_batch_changes_nothing(sampled: Completions) -> None:
    part = Request(
        [LEVELS[0], *[x[: 3 * len(x) // 8] for x in LEVELS[1:]]], BRANCHING, IDS[:3], KEY
    )
    padded = sampler(batch=8).sample(VARIABLES, part)
    assert padded.lengths.shape == (3, *BRANCHING)
    for node in np.ndindex(padded.lengths.shape):
        assert padded.ids(*node) == sampled.ids(*node)


def test_programs_are_compiled_once_a_shape() -> None:
    sampler().sample(VARIABLES, REQUEST)
    prefills, decodes = prefill._cache_size(), decode_chunk._cache_size()
    for settings in ((0.0,), (1.0, 0.9, 5)):
        sampler(*settings).sample(VARIABLES, REQUEST._replace(questions=IDS + 9))
    assert (prefill._cache_size(), decode_chunk._cache_size()) == (prefills, decodes)


def test_a_stream_yields_every_chunk() -> None:
    request = Request(LEVELS[:2], (2,), IDS, KEY)
    settings = sampler(stop_ids=(299,))
    longest, parts = [], []
    for part in settings.stream(VARIABLES, request):
        longest.append(int(part.lengths.max()))
        parts.append(part.tokens.copy())
    assert longest == [8, 16, 20]
    whole = settings.sample(VARIABLES, request)
    np.testing.assert_array_equal(parts[-1], whole.tokens)
    for part in parts:
        np.testing.assert_array_equal(part, whole.tokens[..., : part.shape[-1]])


def test_finished_questions_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop tokens are one in twelve here, so that some questions end long before others."""
    stops = tuple(range(0, 300, 12))
    sizes: list[int] = []

    def noted(model: object, variables: object, ancestors: object, state: Any, *rest: Any) -> Any:
        sizes.append(len(state.last))
        return decode_chunk(model, variables, ancestors, state, *rest)

    monkeypatch.setattr("malt_jax.sampling.decode.decode_chunk", noted)
    settings = sampler(stop_ids=stops, max_tokens=64, chunk=4)
    out = settings.sample(VARIABLES, Request(LEVELS[:2], (2,), IDS, KEY))
    assert sizes[0] == 8 and sizes[-1] < 8 and sizes == sorted(sizes, reverse=True)
    alone = [
        settings.sample(VARIABLES, Request([LEVELS[0], [LEVELS[1][q]]], (2,), IDS[q : q + 1], KEY))
        for q in range(8)
    ]
    for q, n in np.ndindex(8, 2):
        assert out.ids(q, n) == alone[q].ids(0, n)
        assert out.finish[q, n] == alone[q].finish[0, n] == Finish.STOP


def test_the_cache_grows() -> None:
    """More tokens than the first size of the cache holds, against the reference."""
    request = Request(LEVELS[:2], (1,), IDS, KEY)
    settings = sampler(stop_ids=(299,), max_tokens=ROOM + 20, chunk=16)
    grown = settings.sample(VARIABLES, request)
    assert grown.lengths.max() > ROOM
    keys = node_keys(KEY, IDS, (1,)).reshape(-1)
    naive = decode_naively(MODEL, VARIABLES, prompt_rows(LEVELS[:2]), keys, settings.parameters)
    np.testing.assert_array_equal(grown.tokens.reshape(8, -1), naive.tokens)


@pytest.mark.parametrize("size", [0, 1, 16, 17, 33, 49, 64, 65, 97, 1000, 8192])
def test_buckets_hold_their_segment_with_less_than_half_padding(size: int) -> None:
    assert bucket(size) >= size and bucket(size) % 16 == 0
    assert bucket(size) <= max(16, 1.5 * size + 16)


def test_padding_keeps_order_and_lengths() -> None:
    tokens, lengths = pad_segments([[1, 2], [], [3], [4, 5, 6]], (2, 2))
    assert tokens.shape == (2, 2, 16) and lengths.tolist() == [[2, 0], [1, 3]]
    assert tokens[1, 1, :4].tolist() == [4, 5, 6, 0]
