"""MALT (arXiv 2412.01928) in JAX: a generator, a verifier and a refiner that learn together."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("malt_jax")
except PackageNotFoundError:  # imported from a source tree that is not installed
    __version__ = "unknown"
