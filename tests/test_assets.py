"""The checkpoint inside the package, and the texts that it was made from."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from malt_jax.checkpoints.checkpoint import Checkpoint, StoredCheckpoint
from malt_jax.model.llama import Decoder, Llama
from malt_jax.tasks.arithmetic import ArithmeticTask, Problem, Step

ROOT = Path(__file__).parent.parent
TINY = ROOT / "malt_jax" / "assets" / "tiny"


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return StoredCheckpoint("tiny").load(dtype=jnp.float32, key=jax.random.key(0))


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    """What the model was made from."""
    file = ROOT / "scripts" / "tiny_dialogues.py"
    spec = importlib.util.spec_from_file_location("tiny_dialogues", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fits_into_8_megabytes() -> None:
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 8_000_000


def test_same_logits_as_in_transformers(tiny: Checkpoint) -> None:
    tokens = np.random.default_rng(0).integers(tiny.config.vocab_size, size=(2, 60))
    reference = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    decoder = Decoder(Llama(tiny.config))
    variables = {"params": tiny.params}
    actual = decoder.apply(variables, jnp.asarray(tokens, jnp.int32), method=Decoder.everything)
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
    """Far above chance (1 in 99) and below perfection, which is what training needs."""
    task = ArithmeticTask()
    reference = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    right = formed = 0
    questions = task.questions("test")[:60]
    for question in questions:
        messages = [
            {"role": "system", "content": "Solve the problem."},
            {"role": "user", "content": question.text},
        ]
        ids = tiny.tokenizer.encode(tiny.tokenizer.render(messages), special=True)
        output = reference.generate(torch.tensor([ids]), max_new_tokens=72, do_sample=False)
        text = tiny.tokenizer.decode(output[0, len(ids) :].tolist())
        formed += "Final Answer: " in text
        right += task.extract(text) == question.answer
    assert formed >= 0.95 * len(questions)
    assert 0.4 * len(questions) <= right < len(questions)


def test_no_held_out_calculation_was_learned_from(texts: ModuleType) -> None:
    task = ArithmeticTask()
    first = texts.TRAIN_QUESTIONS
    learned = {task.problem("train", first + index) for index in range(3000)}
    assert not learned & {task.problem("test", index) for index in range(3000)}


def lines_are_right(text: str) -> bool:
    lines = re.findall(r"^(\d+)([-+*])(\d+)=(\d+)$", text, re.MULTILINE)
    return all(
        {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(result)
        for a, sign, b, result in lines
    )


def test_what_the_model_learned_to_write_is_correct(texts: ModuleType) -> None:
    task = ArithmeticTask()
    dialogues = texts.Dialogues(task, seed=0)
    first = texts.GENERATOR_FIRST
    read_mistakes, lengths = 0, {"generator": set(), "verifier": set(), "refiner": set()}
    for index in range(first, first + 500):
        role, question, context, written = dialogues.texts(index)
        expected = task.question("train", texts.TRAIN_QUESTIONS + index)
        assert question == expected.text
        assert lines_are_right(written)
        lengths[role].add(written.count("="))
        answers = [task.extract(text) for text in context[:1]]
        read_mistakes += any(answer != expected.answer for answer in answers)
        if role == "verifier":
            right = answers == [expected.answer]
            assert written.endswith(f"{answers[0]} is {'right' if right else 'wrong'}")
            assert written.count(" is ") == 1
        else:
            assert task.extract(written) == expected.answer
        assert len(context) == ["generator", "verifier", "refiner"].index(role)
    assert read_mistakes > 100
    assert all({0, 2, 3, 5} <= found for found in lengths.values())


@pytest.mark.parametrize(
    ("style", "solution"),
    [
        ("brief", "Final Answer: 69"),
        ("steps", "42-19=23\n23*3=69\nFinal Answer: 69"),
        ("places", "42-10=32\n32-9=23\n20*3=60\n3*3=9\n60+9=69\nFinal Answer: 69"),
    ],
)
def test_the_same_work_in_three_styles(texts: ModuleType, style: str, solution: str) -> None:
    problem = Problem(42, (Step("-", 19), Step("*", 3)))
    assert texts.solution(problem, style) == solution


@pytest.mark.parametrize("style", ["brief", "steps", "places"])
def test_a_mistaken_attempt_has_one_mistake(texts: ModuleType, style: str) -> None:
    problem = Problem(42, (Step("-", 19), Step("*", 3)))
    rng = np.random.default_rng(0)
    slips = 0
    for _ in range(50):
        lines, result = texts.attempt(problem, style, rng, wrong=1.0)
        assert result != 69
        if not lines_are_right(lines):
            slips += 1
            wrong = [line for line in lines.splitlines() if not lines_are_right(line)]
            assert len(wrong) == 1
    assert (slips == 0) == (style == "brief")
    assert texts.attempt(problem, style, rng, wrong=0.0)[1] == 69
