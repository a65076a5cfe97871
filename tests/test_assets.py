"""The checkpoint inside the package, and the texts that it was made from."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from malt_jax.llama.checkpoint import Checkpoint, load_checkpoint
from malt_jax.llama.model import Llama
from malt_jax.tasks.arithmetic import ArithmeticTask

ROOT = Path(__file__).parent.parent
TINY = ROOT / "malt_jax" / "assets" / "tiny"


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return load_checkpoint("tiny", dtype=jnp.float32, key=jax.random.key(0))


@pytest.fixture(scope="module")
def make_tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tiny", ROOT / "scripts" / "make_tiny.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_tiny"] = module
    spec.loader.exec_module(module)
    return module


def test_fits_into_8_megabytes() -> None:
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 8_000_000


def test_same_logits_as_in_transformers(tiny: Checkpoint) -> None:
    tokens = np.random.default_rng(0).integers(tiny.config.vocab_size, size=(2, 60))
    reference = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    model = Llama(tiny.config)
    variables = {"params": tiny.params}
    lengths = jnp.full(2, 60, jnp.int32)
    hidden, _ = model.apply(variables, jnp.asarray(tokens, jnp.int32), lengths)
    actual = model.apply(variables, hidden, method=Llama.logits)
    np.testing.assert_allclose(actual, expected, atol=2e-4)


def test_tokenizer_is_that_of_transformers(tiny: Checkpoint) -> None:
    reference = AutoTokenizer.from_pretrained(TINY)
    for question in ArithmeticTask().questions("test")[:50]:
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": question.text}]
        text = tiny.tokenizer.render(messages)
        expected = reference.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert text == expected
        ids = tiny.tokenizer.encode(text, special=True)
        assert ids == reference(text, add_special_tokens=False)["input_ids"]
        assert len(ids) < 60


def test_any_text_can_be_written(tiny: Checkpoint) -> None:
    for text in ("Zoë owns 1234 ¥ – 好\n\t🙂", "  <|end|> {question}", "\x00\x7f"):
        ids = tiny.tokenizer.encode(text)
        assert not set(ids) & tiny.tokenizer.special_ids
        assert tiny.tokenizer.decode(ids) == text


def test_digits_stand_alone(tiny: Checkpoint) -> None:
    ids = tiny.tokenizer.encode("1234+5=1239")
    assert [tiny.tokenizer.decode([index]) for index in ids] == list("1234+5=1239")


def test_turns_end_with_the_stop_token(tiny: Checkpoint) -> None:
    (stop,) = tiny.tokenizer.stop_ids
    assert tiny.tokenizer.encode("<|end|>", special=True) == [stop]


def test_greedy_answers_are_well_formed_and_often_right(tiny: Checkpoint) -> None:
    """Far above chance (1 in 99) and below perfection, which is what learning needs."""
    task = ArithmeticTask()
    reference = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    right = formed = 0
    questions = task.questions("test")[:60]
    for question in questions:
        messages = [
            {"role": "system", "content": "Solve the problem step by step."},
            {"role": "user", "content": question.text},
        ]
        ids = tiny.tokenizer.encode(tiny.tokenizer.render(messages), special=True)
        output = reference.generate(torch.tensor([ids]), max_new_tokens=48, do_sample=False)
        text = tiny.tokenizer.decode(output[0, len(ids) :].tolist())
        formed += "Final Answer: " in text
        right += task.extract(text) == question.answer
    assert formed >= 0.95 * len(questions)
    assert 0.4 * len(questions) <= right < len(questions)


def test_no_held_out_calculation_was_learned_from(make_tiny: ModuleType) -> None:
    task = ArithmeticTask()
    first = make_tiny.TRAIN_QUESTIONS
    learned = {task.problem("train", first + index) for index in range(3000)}
    assert not learned & {task.problem("test", index) for index in range(3000)}


def test_what_the_model_learned_to_write_is_correct(make_tiny: ModuleType) -> None:
    task = ArithmeticTask()
    dialogues = make_tiny.Dialogues(task, seed=0)
    wrong = {"verifier": 0, "refiner": 0}
    first = make_tiny.GENERATOR_FIRST
    for index in range(first, first + 500):
        role, question, context, completion = dialogues.texts(index)
        expected = task.question("train", make_tiny.TRAIN_QUESTIONS + index)
        assert question == expected.text
        if role != "verifier":
            assert completion == expected.metadata["solution"]
        if role == "generator":
            assert context == []
            continue
        mistaken = task.extract(context[0]) != expected.answer
        wrong[role] += mistaken
        check = completion if role == "verifier" else context[1]
        if check:
            assert check.endswith("wrong" if mistaken else "right")
            assert check.count("wrong") == mistaken
    assert min(wrong.values()) > 30


def test_verification_stops_at_the_first_wrong_line(make_tiny: ModuleType) -> None:
    problem = make_tiny.Problem(14, (make_tiny.Step("+", 9), make_tiny.Step("-", 6)))
    right = "14+9=23\n23-6=17\nFinal Answer: 17"
    assert make_tiny.verification(problem, right) == (
        "14+9=23 given 23 right\n23-6=17 given 17 right"
    )
    slip = "14+9=22\n22-6=16\nFinal Answer: 16"
    assert make_tiny.verification(problem, slip) == "14+9=23 given 22 wrong"
    copied = "14+9=23\n23-6=17\nFinal Answer: 71"
    assert make_tiny.verification(problem, copied) == (
        "14+9=23 given 23 right\n23-6=17 given 17 right\nFinal Answer: 17 given 71 wrong"
    )
