"""What all commands have in common: the log, and errors that are for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from malt_jax.errors import UserError


def command(main: Callable[[], None]) -> None:
    """Runs a command; a UserError becomes its message on standard error and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; start the command again to go on", file=sys.stderr)
        sys.exit(130)
