"""Names of systems and what they stand for."""

import pytest

from malt_jax.errors import UserError
from malt_jax.evaluation.systems import STANDARD, all_names, run_names, system

ROLES = ("generator", "verifier", "refiner")


@pytest.mark.parametrize(
    ("name", "chain", "passes", "voted", "calls"),
    [
        ("sa", ("base",), 3, False, 1),
        ("sa+mv@9", ("base",), 9, True, 9),
        ("star-ma+mv", ("star", "star", "star"), 3, True, 9),
        ("malt", ("malt", "malt", "malt"), 3, False, 3),
        ("malt-untrained-verifier+mv", ("malt", "base", "malt"), 3, True, 9),
        ("malt-until-verifier", ("malt", "malt"), 3, False, 2),
        ("malt-without-verifier+mv", ("malt", "silent", "malt"), 3, True, 6),
        ("debate", ("base", "debater", "debater"), 3, True, 9),
    ],
)
def test_a_name_says_who_answers(
    name: str, chain: tuple, passes: int, voted: bool, calls: int
) -> None:
    found = system(name, ROLES, votes=3)
    assert (found.chain, found.passes, found.voted, found.calls) == (chain, passes, voted, calls)


@pytest.mark.parametrize("name", ["so", "sa+mv@0", "malt-until-refiner", "sa+mv@", "+mv", "", "MA"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match="malt-without-verifier"):
        system(name, ROLES, votes=3)


def test_the_debate_has_its_own_vote() -> None:
    with pytest.raises(UserError, match="3 agents"):
        system("debate+mv", ROLES, votes=3)


def test_a_training_run_compares_equal_calls_and_untrained_roles() -> None:
    names = run_names(ROLES, 3)
    assert names[:3] == ["sa", "sa+mv", "sa+mv@9"]
    assert names[-2:] == ["malt-untrained-verifier+mv", "malt-untrained-refiner+mv"]
    assert set(names) - set(STANDARD) == {names[2], *names[-2:]}
    assert run_names(("solver",), 3).count("sa+mv") == 1


def test_all_names_of_a_run_and_of_a_bare_model() -> None:
    names = all_names(ROLES, 3, trained=True)
    assert set(STANDARD) < set(names) and len(names) == len(set(names)) == 18
    assert all_names(ROLES, 3, trained=False) == ["sa", "sa+mv", "sa+mv@9", "ma", "ma+mv", "debate"]
    for name in all_names(("solver", "critic"), 5, trained=True):
        system(name, ("solver", "critic"), votes=5)
    assert "sa+mv@10" in all_names(("solver", "critic"), 5, trained=True)
