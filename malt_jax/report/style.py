"""How plots look: colours that colour-blind readers tell apart, and a marker for each family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from matplotlib import style

INK = "#333333"
FAINT = "#8a8a8a"
GAINED, LOST = "#0072B2", "#D55E00"
FONT_SIZE = 9

_STYLE = {
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "text.color": INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 6,
    "legend.frameon": False,
    "figure.dpi": 160,
    # Names are not ours: a dollar sign in them begins no formula.
    "text.parse_math": False,
    # The names of elements in an SVG file are made from this, and else at random.
    "svg.hashsalt": "malt_jax",
}


class Look(NamedTuple):
    """The colour and the marker of a system."""

    color: str
    marker: str


# Okabe and Ito's colours, the yellow ones darkened to be read as text.
_LOOKS = {
    "sa": Look("#555555", "o"),
    "ma": Look("#0072B2", "s"),
    "star-sa": Look("#A66F00", "v"),
    "star-ma": Look("#00835F", "D"),
    "malt": Look("#D55E00", "^"),
    "debate": Look("#A85388", "P"),
}


def family(system: str) -> str:
    """A system's name without its vote."""
    return system.partition("+")[0]


def has_vote(system: str) -> bool:
    """Whether a system's answer is that of a vote; a debate ends with one."""
    return "+mv" in system or system == "debate"


def look(system: str) -> Look:
    """The same for a system with a vote and without; MALT's for its variants."""
    return _LOOKS.get(family(system), _LOOKS["malt"])


@contextmanager
def plain_style() -> Iterator[None]:
    """Draws and saves alike whatever the reader's own settings of matplotlib are."""
    with style.context(["default", _STYLE]):
        yield
