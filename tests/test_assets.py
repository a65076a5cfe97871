"""The checkpoint inside the package, and the texts that it was made from."""

import importlib.util
import os
import re
import subprocess
import sys
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
from malt_jax.tasks.arithmetic import Problem, Step
from malt_jax.tasks.riddles import RiddlesTask, factor_of

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
    for question in RiddlesTask().questions("test")[:50]:
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


def test_numbers_below_100_are_one_token(tiny: Checkpoint) -> None:
    text = "(95-7)*10=4 12345"
    tokens = [tiny.tokenizer.decode([index]) for index in tiny.tokenizer.encode(text)]
    numbers = [token for token in tokens if token.isdecimal()]
    assert numbers == ["95", "7", "10", "4", "12", "34", "5"]


def test_turns_end_with_the_stop_token(tiny: Checkpoint) -> None:
    (stop,) = tiny.tokenizer.stop_ids
    assert tiny.tokenizer.encode("<|end|>", special=True) == [stop]


def test_answers_are_well_formed_and_sometimes_correct(tiny: Checkpoint) -> None:
    """Far above chance (1 in 48) and far below perfection, which is what training needs."""
    task = RiddlesTask()
    reference = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    correct = formed = 0
    questions = task.questions("test")[:60]
    for question in questions:
        messages = [
            {"role": "system", "content": "Solve the riddle."},
            {"role": "user", "content": question.text},
        ]
        ids = tiny.tokenizer.encode(tiny.tokenizer.render(messages), special=True)
        output = reference.generate(torch.tensor([ids]), max_new_tokens=48, do_sample=False)
        text = tiny.tokenizer.decode(output[0, len(ids) :].tolist())
        formed += "Final Answer: " in text
        correct += task.extract(text) == question.answer
    assert formed >= 0.95 * len(questions)
    assert 0.1 * len(questions) <= correct <= 0.7 * len(questions)


def test_no_held_out_riddle_was_learned_from(texts: ModuleType) -> None:
    dialogues = texts.Dialogues(seed=0)
    learned = {dialogues.dialogue(index).problem for index in range(3000)}
    assert not learned & {RiddlesTask().problem("test", index) for index in range(3000)}


def lines_are_correct(text: str) -> bool:
    """Whether every line of work holds, and every line that leaves the range does so."""
    operators = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for a, sign, b, result in re.findall(r"^(\d+)([-+*/])(\d+)=(\d+)", text, re.MULTILINE):
        if operators[sign](int(a), int(b)) != int(result):
            return False
    for a, sign, b, end in re.findall(r"^(\d+)([-+*])(\d+) is (over|under)", text, re.MULTILINE):
        value = operators[sign](int(a), int(b))
        if not (value > 99 if end == "over" else value < 0):
            return False
    return True


def test_what_the_model_learned_to_write_is_correct(texts: ModuleType) -> None:
    task = RiddlesTask()
    dialogues = texts.Dialogues(seed=0)
    wrong_answers = wrong_checks = 0
    ways = {role: set() for role in texts.WAYS}
    for index in range(1500):
        dialogue = dialogues.dialogue(index)
        answer = str(dialogue.problem.start)
        ways[dialogue.role].add(texts.way_of(dialogue.role, dialogue.text))
        assert dialogue.is_correct(dialogue.text)
        assert lines_are_correct(dialogue.text)
        assert len(dialogue.context) == [*texts.WAYS].index(dialogue.role)
        if dialogue.role == "verifier":
            assert dialogue.text.splitlines()[-1].startswith(f"{dialogue.guess} is ")
            assert dialogue.text.endswith("right") == (str(dialogue.guess) == answer)
        else:
            assert task.extract(dialogue.text) == answer
        if dialogue.context:
            assert task.extract(dialogue.context[0]) == str(dialogue.guess)
            wrong_answers += str(dialogue.guess) != answer
        if dialogue.role == "refiner":
            read = dialogue.context[1]
            way = texts.way_of("verifier", read)
            mistaken = read != texts.check(dialogue.problem, dialogue.guess, way)
            wrong_checks += mistaken
            assert not (mistaken and texts.way_of("refiner", dialogue.text) == "follow")
    assert wrong_answers > 500
    assert wrong_checks > 20
    assert ways == {role: set(shares) for role, shares in texts.WAYS.items()}


RIDDLE = Problem(16, (Step("+", 7), Step("*", 4), Step("-", 5)))


@pytest.mark.parametrize(
    ("way", "guess", "expected"),
    [
        ("verdict", 15, "15 is wrong"),
        ("verdict", 16, "16 is right"),
        ("value", 15, "15 gives 83\n87-83=4\n15 is too small"),
        ("full", 17, "17+7=24\n24*4=96\n96-5=91\n91-87=4\n17 is too big"),
        ("full", 16, "16+7=23\n23*4=92\n92-5=87\n87-87=0\n16 is right"),
        ("full", 20, "20+7=27\n27*4 is over 99\n20 is too big"),
        ("value", 20, "20 gives over 99\n20 is too big"),
    ],
)
def test_checks_of_a_known_riddle(texts: ModuleType, way: str, guess: int, expected: str) -> None:
    assert texts.check(RIDDLE, guess, way) == expected
    assert texts.way_of("verifier", expected) == way


@pytest.mark.parametrize(
    ("way", "guess", "expected"),
    [
        ("answer", 14, "Final Answer: 16"),
        ("undo", 14, "87+5=92\nFinal Answer: 16"),
        ("follow", 14, "8/4=2\n14+2=16\nFinal Answer: 16"),
        ("follow", 17, "4/4=1\n17-1=16\nFinal Answer: 16"),
        ("follow", 16, "Final Answer: 16"),
    ],
)
def test_refinements_of_a_known_riddle(
    texts: ModuleType, way: str, guess: int, expected: str
) -> None:
    assert factor_of(RIDDLE) == 4
    assert texts.refine(RIDDLE, guess, way) == expected


def test_drill_is_correct(texts: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        asked, lines = texts.drill(rng)
        assert lines_are_correct(lines)
        assert asked.count("\n") == lines.count("\n") == texts.DRILL_LINES - 1


@pytest.mark.slow
def test_a_few_updates_make_a_checkpoint(tmp_path: Path) -> None:
    """The script as a whole, with two updates a phase."""
    script = [sys.executable, str(ROOT / "scripts" / "make_tiny.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [*script, str(tmp_path / "made"), "--steps", "2"]
    subprocess.run(arguments, check=True, cwd=ROOT, env=environment)
    made = StoredCheckpoint(str(tmp_path / "made")).load(dtype=jnp.float32, key=jax.random.key(0))
    assert made.config == StoredCheckpoint("tiny").config
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
