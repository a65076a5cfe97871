from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.training.batches import MAX_SHAPES, Batches, Example
from malt_jax.training.loop import rows_that_fit


def rows_of(lengths: list[tuple[int, int]], completions: int = 1) -> list[Example]:
    return [
        Example([i] * prompt, tuple([i + 1] * completion for _ in range(completions)))
        for i, (prompt, completion) in enumerate(lengths)
    ]


lengths = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 100)), min_size=1, max_size=60)


@given(lengths, st.integers(1, 9), st.integers(0, 3))
def test_every_row_once_an_epoch(lengths: list[tuple[int, int]], size: int, epoch: int) -> None:
    examples = rows_of(lengths)
    batches = Batches(examples, size, seed=3)
    seen: Counter[int] = Counter()
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(epoch, step)
        assert batch.rows.shape == (size,)
        np.testing.assert_array_equal(batch.weights, batch.rows >= 0)
        np.testing.assert_array_equal(batch.lengths[batch.rows < 0], 0)
        seen.update(int(row) for row in batch.rows if row >= 0)
    assert seen == Counter(range(len(examples)))
    assert batches.steps_per_epoch == -(-len(examples) // size)
    assert len(batches.shapes) <= MAX_SHAPES


def test_a_batch_is_a_function_of_seed_epoch_and_step() -> None:
    examples = rows_of([(i % 40 + 1, i % 13 + 1) for i in range(50)])
    in_order = Batches(examples, 4, seed=1)
    backwards = Batches(examples, 4, seed=1)
    steps = [(epoch, step) for epoch in range(3) for step in range(in_order.steps_per_epoch)]
    later = {key: backwards.batch(*key).rows for key in reversed(steps)}
    for key in steps:
        np.testing.assert_array_equal(in_order.batch(*key).rows, later[key])

    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(examples, 4, seed)
        return [
            int(r) for s in range(batches.steps_per_epoch) for r in batches.batch(epoch, s).rows
        ]

    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_padding_and_the_prompts_last_token() -> None:
    examples = [Example([5, 6, 7], ([8, 9], [10])), Example([4], ([3], [2, 1, 0]))]
    batch = Batches(examples, 3, seed=0).batch(0, 0)
    for slot, row in enumerate(batch.rows):
        if row < 0:
            continue
        prompt, completions = examples[row].prompt, examples[row].completions
        length = batch.prompt_lengths[slot]
        assert list(batch.prompts[slot, :length]) == list(prompt[:-1])
        for branch, completion in enumerate(completions):
            count = batch.lengths[slot, branch]
            assert count == len(completion)
            inputs = [prompt[-1], *completion[:-1]]
            assert list(batch.inputs[slot, branch, :count]) == inputs
            assert list(batch.targets[slot, branch, :count]) == list(completion)


def test_rows_of_different_lengths_get_shapes_of_their_own() -> None:
    short, long = [(20, 10)] * 400, [(500, 100)] * 400
    batches = Batches(rows_of(short + long), 4, seed=0)
    assert batches.shapes == [(32, 16), (512, 112)]
    widths = {int(batches.batch(0, step).prompts.shape[1]) for step in range(20)}
    assert widths == {32, 512}


def test_a_shape_that_would_save_little_is_not_made() -> None:
    assert len(Batches(rows_of([(20, 10), (60, 10)] * 8), 4, seed=0).shapes) == 1


def test_reference_log_probabilities_follow_their_rows() -> None:
    examples = rows_of([(i + 1, 3) for i in range(7)], completions=2)
    reference = np.arange(14, dtype=np.float32).reshape(7, 2)
    batches = Batches(examples, 4, seed=5, reference_logps=reference)
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(0, step)
        assert batch.reference_logps is not None
        for slot, row in enumerate(batch.rows):
            expected = reference[row] if row >= 0 else np.zeros(2)
            np.testing.assert_array_equal(batch.reference_logps[slot], expected)


def test_the_limit_counts_prompt_and_longest_completion() -> None:
    examples = [Example([1] * 5, ([1] * 3, [1] * 5)), Example([1] * 5, ([1] * 6, [1]))]
    assert rows_that_fit(examples, 10, "rows") == (examples[:1], 1)


@pytest.mark.parametrize("bad", [Example([], ([1],)), Example([1], ([],))])
def test_empty_prompts_and_completions_are_refused(bad: Example) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Batches([bad], 2, seed=0)


def test_a_short_common_beginning_is_no_level_of_its_own() -> None:
    for common, wanted in ((63, 0), (64, 64), (95, 80)):
        rows = [Example([7] * common + [row], ([1],)) for row in (1, 2)]
        assert Batches(rows, 2, seed=0).batch(0, 0).prefix.size == wanted
