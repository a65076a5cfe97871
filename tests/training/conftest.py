import jax
import pytest

from malt_jax.config import LoraConfig
from malt_jax.model.llama import Llama, Params, init_params
from malt_jax.training.policy import Policy
from tests.training.small import LLAMA


@pytest.fixture(scope="session")
def lora() -> Policy:
    return Policy(Llama(LLAMA, LoraConfig(rank=4, alpha=8.0, dropout=0.0)), "lora")


@pytest.fixture(scope="session")
def full() -> Policy:
    return Policy(Llama(LLAMA), "full")


@pytest.fixture(scope="session")
def base() -> Params:
    params = init_params(Llama(LLAMA), jax.random.key(0))
    # Larger than the usual 0.02: tokens differ, and logits reach far enough for any certainty.
    params["embed"]["embedding"] *= 10
    params["head"]["kernel"] *= 50
    return params
