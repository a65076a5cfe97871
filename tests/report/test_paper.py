"""The paper's figures are found for its models on its tasks, and for no others."""

from typing import Any

import pytest

from malt_jax.checkpoints.checkpoint import PRESETS
from malt_jax.report.paper import PaperResults, paper_results


def results(model: str, task: str, **fields: Any) -> PaperResults | None:
    options = fields.pop("options", {})
    return paper_results(
        {"model": model, "task": task, "config": {"task": {"options": options}}, **fields}
    )


@pytest.mark.parametrize(
    "model",
    [
        "models/Llama-3.1-8B-Instruct",
        "/data/Meta-Llama-3.1-8B-Instruct/",
        "cache/models--meta-llama--Llama-3.1-8B-Instruct/snapshots/0e9e39f249a16976918f6564b8830bc8",
        "Meta-Llama-3.1-8B-Instruct-BF16.gguf",
        "llama3.1-8b-instruct",
    ],
)
def test_llama_by_the_names_that_it_has_on_disks(model: str):
    found = results(model, "gsm8k")
    assert found is not None
    assert found.systems["malt+mv"] == "90.50 ± 2.06"
    assert found.systems["sa"] == "84.25 ± 2.28"


@pytest.mark.parametrize(
    "model",
    [
        *PRESETS,  # random weights
        "models/Llama-3.1-8B",
        "models/Llama-3.1-70B-Instruct",
        "models/Llama-3.1-8B-Instruct-finetuned",
        "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf",
        "tiny",
    ],
)
def test_other_models_have_no_figures(model: str):
    assert results(model, "gsm8k") is None


def test_qwen_is_the_base_model_on_gsm8k_alone():
    found = results("models/Qwen2.5-1.5B", "gsm8k")
    assert found is not None and found.systems["malt+mv"] == "74.50 ± 2.65"
    assert found.systems["malt"] == "71.00"
    assert results("models/Qwen2.5-1.5B", "math") is None
    assert results("models/Qwen2.5-1.5B-Instruct", "gsm8k") is None


def test_every_benchmark_has_its_own_figures():
    model = "Llama-3.1-8B-Instruct"
    for task, malt, debate, gained in (
        ("gsm8k", "90.50 ± 2.06", "86.75", ("9.50", "3.75")),
        ("commonsense_qa", "81.50 ± 2.29", "71.25", ("11.25", "4.25")),
        ("math", "57.25 ± 1.48", "52.00", ("14.25", "6.50")),
    ):
        found = results(model, task)
        assert found is not None and len(found.systems) == 17
        assert found.systems["malt+mv"] == malt
        assert found.systems["debate"] == debate
        assert found.transitions == {"sa -> malt+mv": gained}
        # The generator alone is the paper's STaR baseline of one agent, so ablations have votes.
        generator, star = found.systems["malt-until-generator+mv"], found.systems["star-sa+mv"]
        assert star.startswith(f"{generator} ± ")
    assert results(model, "arithmetic") is None


def test_transfer_to_gsm_symbolic_p1():
    model = "Llama-3.1-8B-Instruct"
    p1 = results(model, "gsm_symbolic", options={"variant": "p1"}, trained_on="gsm8k")
    assert p1 is not None and p1.systems["malt+mv"] == "84.75 ± 3.30"
    assert results(model, "gsm_symbolic", options={"variant": "p2"}, trained_on="gsm8k") is None
    assert results(model, "gsm_symbolic", trained_on="gsm8k") is None


def test_models_trained_on_other_questions_are_not_compared():
    found = results("Llama-3.1-8B-Instruct", "gsm8k", trained_on="math")
    assert found is not None
    assert set(found.systems) == {"sa", "sa+mv", "ma", "ma+mv", "debate"}
    assert found.transitions == {} and found.turns == {}
