"""libtpu on a machine without a TPU, where it is for its compiler alone."""

import os


def expect_no_tpu() -> None:
    """Tells libtpu, before it is loaded, that there is no TPU.

    It asks no metadata server, does not complain of what it does not find out about its host, and
    does not wait for other processes that have loaded it. What the user has set stays.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
