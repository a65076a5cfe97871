"""Systems by name: the policy of every role, and the number of passes that vote."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from malt_jax.errors import UserError

BASE, STAR, MALT = "base", "star", "malt"
"""Policies of a role: untrained; after SFT; after DPO as well, where there was any."""
SILENT = "silent"
"""Instead of a policy: the role is left out, and later ones read an empty completion."""
DEBATER = "debater"
"""Instead of a policy: the untrained model reads its own last answer and those of all others."""

DEBATE = "debate"
AGENTS = 3
ROUNDS = 3
"""Agents and rounds of the debate, the first of which is the single model's answer."""

Chain = tuple[str, ...]
"""The policy of every role in turn, down to the role whose answer is read."""

_NAME = re.compile(r"(?P<single>.+?)(?P<vote>[+]mv(@(?P<passes>[1-9][0-9]*))?)?")


@dataclasses.dataclass(frozen=True)
class System:
    """A way to answer a question."""

    name: str
    chain: Chain
    passes: int
    """Independent passes; with a vote they give one answer, without each counts by itself."""
    voted: bool

    @property
    def calls(self) -> int:
        """Completions sampled for one answer."""
        spoken = sum(policy != SILENT for policy in self.chain)
        return spoken * (self.passes if self.voted else 1)


def system(name: str, roles: Sequence[str], votes: int) -> System:
    """The system of a name: SINGLE, SINGLE+mv or SINGLE+mv@K, such as "malt+mv@9".

    roles: the pipeline's roles in turn.
    votes: passes of "+mv", and of systems without a vote.

    Raises UserError for an unknown name, naming the known ones.
    """
    chains = _chains(roles)
    match = _NAME.fullmatch(name)
    if match is None or match["single"] not in chains:
        raise UserError(
            f"there is no system {name!r}; there are {', '.join(chains)}, each but the debate also"
            " with +mv or +mv@K (K passes that vote)"
        )
    single = match["single"]
    if single == DEBATE:
        if match["vote"]:
            raise UserError(f"{name!r}: the debate ends in a vote of its {AGENTS} agents anyway")
        return System(name, chains[single], AGENTS, voted=True)
    passes = int(match["passes"] or votes)
    return System(name, chains[single], passes, voted=match["vote"] is not None)


def _chains(roles: Sequence[str]) -> dict[str, Chain]:
    count = len(roles)
    chains: dict[str, Chain] = {
        "sa": (BASE,),
        "ma": (BASE,) * count,
        "star-sa": (STAR,),
        "star-ma": (STAR,) * count,
        "malt": (MALT,) * count,
    }
    for index, role in enumerate(roles):
        untrained = [MALT] * count
        untrained[index] = BASE
        chains[f"malt-untrained-{role}"] = tuple(untrained)
        if index < count - 1:
            chains[f"malt-until-{role}"] = (MALT,) * (index + 1)
        if 0 < index < count - 1:
            without = [MALT] * count
            without[index] = SILENT
            chains[f"malt-without-{role}"] = tuple(without)
    chains[DEBATE] = (BASE, *[DEBATER] * (ROUNDS - 1))
    return chains


STANDARD = (
    *("sa", "sa+mv", "ma", "ma+mv"),
    *("star-sa", "star-sa+mv", "star-ma", "star-ma+mv"),
    *("malt", "malt+mv"),
)
"""The systems that every comparison holds."""


def run_names(roles: Sequence[str], votes: int) -> list[str]:
    """The systems that a training run compares at its end.

    With STANDARD, the single model at the calls of "malt+mv", and MALT with one of the later roles
    untrained, which tells what each of them has learned.
    """
    untrained = [f"malt-untrained-{role}+mv" for role in roles[1:]]
    return [*_with_equal_calls(STANDARD, roles, votes), *untrained]


def all_names(roles: Sequence[str], votes: int, *, trained: bool) -> list[str]:
    """The systems of a whole evaluation; without trained roles those of the base model alone.

    One of them is the single model with as many calls as MALT with a vote makes.
    """
    names = standard_names(roles, votes, trained=trained)
    if trained:
        names += [f"{single}+mv" for single in _chains(roles) if single.startswith("malt-")]
    return [*names, DEBATE]


def standard_names(roles: Sequence[str], votes: int, *, trained: bool) -> list[str]:
    """STANDARD, or its untrained systems, with the single model at the calls of "malt+mv"."""
    chains = {single: set(chain) for single, chain in _chains(roles).items()}
    names = [name for name in STANDARD if trained or chains[name.partition("+")[0]] == {BASE}]
    return _with_equal_calls(names, roles, votes)


def _with_equal_calls(names: Sequence[str], roles: Sequence[str], votes: int) -> list[str]:
    """The names with, after "sa+mv", the single model that makes as many calls as "malt+mv"."""
    index = names.index("sa+mv") + 1
    return list(dict.fromkeys([*names[:index], f"sa+mv@{votes * len(roles)}", *names[index:]]))
