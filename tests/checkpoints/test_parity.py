"""Logits, greedy continuations and gradients against transformers' torch models, in float32."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from malt_jax.checkpoints.checkpoint import Checkpoint, StoredCheckpoint
from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.checkpoints.weights import disassemble
from malt_jax.model.config import Llama3RopeScaling, LlamaConfig
from malt_jax.model.llama import Block, Decoder, Llama, Params, forward, next_logits
from malt_jax.model.rope import inverse_frequencies, rotation
from malt_jax.sampling.sampler import Request, Sampler
from malt_jax.sampling.token import SamplingParameters
from tests.checkpoints.conftest import transformers_config

TOLERANCE = 2e-4


def torch_model(config: LlamaConfig, seed: int = 0) -> Any:
    """A random model whose attention and biases matter: transformers' own start is too small."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(transformers_config(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            width = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2
            parameter.copy_(("norm" in name) + width * torch.randn_like(parameter))
    return model.eval()


def ported(model: Any, config: LlamaConfig, tokenizer: Tokenizer, directory: Path) -> Checkpoint:
    model.save_pretrained(directory)
    tokenizer.save(directory)
    checkpoint = StoredCheckpoint(str(directory)).load(dtype=jnp.float32, key=jax.random.key(0))
    assert checkpoint.config == config
    return checkpoint


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: LlamaConfig, params: Params, tokens: np.ndarray) -> jax.Array:
    decoder = Decoder(Llama(config))
    return decoder.apply({"params": params}, tokens, method=Decoder.everything)


def logits(checkpoint: Checkpoint, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(_logits(checkpoint.config, checkpoint.params, tokens))


def torch_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def is_greedy(checkpoint: Checkpoint, prompt: list[int], continuation: list[int]) -> bool:
    """Whether greedy decoding would give the continuation: by induction over its prefixes, iff
    every one of its tokens is the likeliest after those before it."""
    tokens = prompt + continuation
    padded = np.array([tokens + [0] * (-len(tokens) % 128)])
    choices = logits(checkpoint, padded)[0, len(prompt) - 1 : len(tokens) - 1].argmax(-1)
    return choices.tolist() == continuation


def torch_greedy(model: Any, prompt: list[int], count: int, stop_ids: tuple[int, ...]) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=list(stop_ids),
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def cached_greedy(checkpoint: Checkpoint, levels: list[list[int]], count: int) -> list[int]:
    """What the sampler decodes for one prompt, of which each part is a level of its own."""
    stop_ids = checkpoint.tokenizer.stop_ids
    parameters = SamplingParameters.create(0.0, stop_ids=stop_ids, max_tokens=count)
    sampler = Sampler(Llama(checkpoint.config), parameters, chunk=count)
    request = Request([[part] for part in levels], (1,), np.arange(1), jax.random.key(0))
    return sampler.sample({"params": checkpoint.params}, request).ids(0, 0)


@pytest.fixture(scope="module")
def smollm2_torch(smollm2_file: Path) -> Any:
    """SmolLM2 as transformers reads it: its own configuration, names and row order."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    fields = load_gguf_checkpoint(str(smollm2_file))["config"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    tensors = load_gguf_checkpoint(str(smollm2_file), return_tensors=True, model_to_load=model)
    missing, surplus = model.load_state_dict(tensors["tensors"], strict=False)
    assert missing == ["lm_head.weight"], "tied to the embedding"
    assert not surplus
    return model.eval()


@pytest.mark.slow
def test_smollm2_weights_are_those_of_transformers(smollm2: Checkpoint, smollm2_torch: Any) -> None:
    theirs = smollm2_torch.state_dict()
    names = set()
    for name, values in disassemble(smollm2.params, smollm2.config):
        np.testing.assert_array_equal(values, theirs[name].numpy(), err_msg=name)
        names.add(name)
    assert theirs.keys() - names == {"lm_head.weight"}


@pytest.mark.slow
def test_smollm2_logits(smollm2: Checkpoint, smollm2_torch: Any, questions: list[str]) -> None:
    """500 tokens of questions and answers; logits reach 40, so the tolerance is 5e-6 of them."""
    conversation = [{"role": "user", "content": text} for text in questions[:10]]
    text = smollm2.tokenizer.render(conversation)
    tokens = np.array([smollm2.tokenizer.encode(text, special=True)[:500]])
    ours, theirs = logits(smollm2, tokens), torch_logits(smollm2_torch, tokens)
    assert np.abs(ours - theirs).max() <= TOLERANCE
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.slow
def test_smollm2_greedy_text(smollm2: Checkpoint, smollm2_torch: Any) -> None:
    for question in (
        "A shop has 17 pears and sells 9 of them. How many are left?",
        "What is the capital of France?",
        "Write one sentence about the sea.",
    ):
        text = smollm2.tokenizer.render([{"role": "user", "content": question}])
        prompt = smollm2.tokenizer.encode(text, special=True)
        theirs = torch_greedy(smollm2_torch, prompt, 40, smollm2.tokenizer.stop_ids)
        assert is_greedy(smollm2, prompt, theirs), smollm2.tokenizer.decode(theirs)


PROMPTS = (
    "A shop has 17 pears and sells 9 of them. How many are left?",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three colours.",
    "How many days are there in two weeks?",
    "Explain what a telescope does.",
    "Who wrote Romeo and Juliet?",
    "Is 21 a prime number? Say why.",
    "Translate 'good morning' into Spanish.",
    "Give a recipe for pancakes in three steps.",
    "A train travels 60 miles an hour for 3 hours. How far does it go?",
    "What is the opposite of 'cold'?",
    "List the planets from the sun outwards.",
    "Why do leaves fall in autumn?",
    "Finish the proverb: a stitch in time",
    "What is 12 times 8?",
    "Describe a cat to somebody who has never seen one.",
    "Which is heavier, a kilogram of feathers or a kilogram of iron?",
    "Write a Python function that adds two numbers.",
    "How does a bicycle stay upright?",
)


@pytest.mark.slow
def test_the_sampler_decodes_smollm2_greedily_as_transformers_does(
    smollm2: Checkpoint, smollm2_torch: Any
) -> None:
    tokenizer = smollm2.tokenizer
    chats = [tokenizer.render([{"role": "user", "content": text}]) for text in PROMPTS]
    prompts = [tokenizer.encode(chat, special=True) for chat in chats]
    parameters = SamplingParameters.create(0.0, stop_ids=tokenizer.stop_ids, max_tokens=24)
    sampler = Sampler(Llama(smollm2.config), parameters, chunk=24)
    variables, ids = {"params": smollm2.params}, np.arange(len(prompts))
    ours = sampler.sample(variables, Request([[()], prompts], (1,), ids, jax.random.key(0)))
    for row, prompt in enumerate(prompts):
        # By induction over its prefixes: each token is transformers' choice after those before it.
        text = ours.ids(row, 0)
        scores = torch_logits(smollm2_torch, np.array([prompt + text]))[0, len(prompt) - 1 : -1]
        assert scores.argmax(-1).tolist() == text, PROMPTS[row]
        assert len(text) == 24 or text[-1] in tokenizer.stop_ids
        assert not {*text[:-1]} & {*tokenizer.stop_ids}


@pytest.mark.slow
def test_llama31_rope_beyond_the_original_context(
    byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Llama 3.1's exact rope settings and head width at positions up to 9,216, computed in three
    levels of which each is the ancestor of the next."""
    config = LlamaConfig(
        vocab_size=264,
        d_model=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=128,
        d_ff=96,
        rope_theta=500_000.0,
        rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 8192),
        max_positions=131_072,
    )
    model = torch_model(config)
    checkpoint = ported(model, config, byte_tokenizer, tmp_path)
    tokens = np.random.default_rng(0).integers(0, 264, (1, 9216))
    theirs = torch_logits(model, tokens)
    llama, variables = Llama(config), {"params": checkpoint.params}
    run = jax.jit(forward, static_argnums=0)
    ancestors: list = []
    for start in range(0, 9216, 3072):
        chunk = tokens[:, start : start + 3072]
        hidden, level = run(llama, variables, chunk, jnp.array([3072]), ancestors)
        ours = np.asarray(next_logits(llama, variables, hidden))
        reference = theirs[:, start : start + 3072]
        assert np.abs(ours - reference).max() <= TOLERANCE
        np.testing.assert_array_equal(ours.argmax(-1), reference.argmax(-1))
        ancestors.append(level)

    without = dataclasses.replace(checkpoint, config=dataclasses.replace(config, rope_scaling=None))
    plain = logits(without, tokens[:, :512])
    assert np.abs(plain - theirs[:, :512]).max() > 10 * TOLERANCE, "the scaling must matter"


@pytest.mark.parametrize(
    "config", ["llama 3.1", "qwen2", "qwen3", "mistral", "smollm3", "gemma3"], indirect=True
)
def test_small_random_models(
    config: LlamaConfig, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = torch_model(config)
    checkpoint = ported(model, config, byte_tokenizer, tmp_path)
    tokens = np.random.default_rng(1).integers(0, 264, (3, 200))
    ours, theirs = logits(checkpoint, tokens), torch_logits(model, tokens)
    assert np.abs(ours - theirs).max() <= TOLERANCE
    prompt = tokens[0, :20].tolist()
    stop_ids = checkpoint.tokenizer.stop_ids
    theirs = torch_greedy(model, prompt, 40, stop_ids)
    assert is_greedy(checkpoint, prompt, theirs)
    assert cached_greedy(checkpoint, [prompt[:7], prompt[7:]], 40) == theirs


@pytest.mark.parametrize("config", ["gemma3"], indirect=True)
def test_logits_can_be_divided_by_another_width(
    config: LlamaConfig, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Gemma 3 27B's query_pre_attn_scalar is not the width of its heads."""
    config = dataclasses.replace(config, query_scalar=5, logits_softcap=None)
    model = torch_model(config)
    checkpoint = ported(model, config, byte_tokenizer, tmp_path)
    tokens = np.random.default_rng(1).integers(0, 264, (1, 40))
    assert np.abs(logits(checkpoint, tokens) - torch_logits(model, tokens)).max() <= TOLERANCE


@pytest.mark.parametrize("config", ["gemma3"], indirect=True)
def test_the_language_model_of_a_model_that_sees_images(
    config: LlamaConfig, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Gemma 3 from 4B on: config.json nests the language model's, its tensors have a prefix."""
    # transformers' class for both has no cap.
    config = dataclasses.replace(config, logits_softcap=None)
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    both = transformers.Gemma3Config(
        text_config=transformers_config(config),
        vision_config=sight | {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14},
        image_token_index=5,
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(both).eval()
    checkpoint = ported(model, config, byte_tokenizer, tmp_path)
    tokens = np.random.default_rng(1).integers(6, 264, (2, 40))
    assert np.abs(logits(checkpoint, tokens) - torch_logits(model, tokens)).max() <= TOLERANCE


@pytest.mark.parametrize("config", ["llama 3.1", "qwen2"], indirect=True)
def test_gradients_of_one_block(
    config: LlamaConfig, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Gradients for every parameter of a layer and for its input, of a random linear loss."""
    config = dataclasses.replace(config, num_layers=1)
    model = torch_model(config)
    checkpoint = ported(model, config, byte_tokenizer, tmp_path)
    rng = np.random.default_rng(2)
    x, weights = rng.standard_normal((2, 2, 50, config.d_model)).astype(np.float32)

    inputs = torch.from_numpy(x).requires_grad_()
    embeddings = model.model.rotary_emb(inputs, torch.arange(50)[None])
    output = model.model.layers[0](inputs, position_embeddings=embeddings, attention_mask=None)
    output = output[0] if isinstance(output, tuple) else output
    (output * torch.from_numpy(weights)).sum().backward()

    positions = jnp.broadcast_to(jnp.arange(50), (2, 50))
    rotations = [rotation(positions, inverse_frequencies(config))]
    lengths = [jnp.full(2, 50)]
    block = Block(Llama(config))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        output, _ = block.apply({"params": params}, x, [], [], rotations, lengths)
        return jnp.sum(output * weights)

    layer = jax.tree.map(lambda stacked: stacked[0], checkpoint.params["layers"])
    for_params, for_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(layer, x)
    stacked = jax.tree.map(lambda gradient: gradient[None], for_params)
    ours = dict(disassemble({**checkpoint.params, "layers": stacked}, config))
    for name, parameter in model.model.layers[0].named_parameters():
        _assert_close(ours[f"model.layers.0.{name}"], parameter.grad.numpy(), name)
    _assert_close(np.asarray(for_x), inputs.grad.numpy(), "input")


def _assert_close(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    scale = np.abs(theirs).max()
    assert scale > 0, name
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale, err_msg=name)
