"""An exported run: its files, what other libraries make of them, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from malt_jax import evaluate, solve, tasks
from malt_jax.checkpoints.checkpoint import Checkpoint, StoredCheckpoint, save_checkpoint
from malt_jax.checkpoints.gguf import GGUFFile
from malt_jax.checkpoints.huggingface import HuggingFaceDirectory
from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.config import load_config, to_yaml
from malt_jax.errors import UserError
from malt_jax.export import __main__ as export
from malt_jax.export import write
from malt_jax.export.card import VLLM_RANKS, vllm_rank
from malt_jax.export.pipeline import read_pipeline
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import load_roles
from malt_jax.runs.directory import RunDirectory
from tests.checkpoints.conftest import CONFIGS, TEMPLATE, random_params
from tests.checkpoints.test_gguf_writer import byte_level
from tests.export.conftest import RESULTS, STAGES, make_run

ROLES = ("generator", "verifier", "refiner")
QUESTION = "Tom has 12 eggs. He finds 7 more. How many eggs does Tom have now?"


def described(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "pipeline.json").read_text())


def spoken(source: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    """The texts of the roles that solve prints, sampled greedily."""
    solve.main([str(source), QUESTION, "sampling.temperature=0", *overrides])
    text = capsys.readouterr().out.partition("\nanswer: ")[0]
    parts = [text]
    for role in ROLES:
        *before, last = parts
        parts = [*before, *last.split(f"\n--- {role} ---\n")]
    return [part.removesuffix("\n") for part in parts[1:]]


def prompt_ids(tokenizer: Any, role: dict[str, Any], said: dict[str, str]) -> list[int]:
    """A role's prompt from the token ids in pipeline.json."""
    ids = [*role["prompt_ids"]["before"]]
    for slot, after in role["prompt_ids"]["after"].items():
        ids += tokenizer.encode(said[slot], add_special_tokens=False) + after
    return ids


def generated(model: Any, tokenizer: Any, directory: Path, role: dict[str, Any], said: dict) -> str:
    """A role's greedy answer by transformers, from the prompt in pipeline.json."""
    prompt = torch.tensor([prompt_ids(tokenizer, role, said)])
    settings = GenerationConfig.from_pretrained(directory)
    output = model.generate(
        inputs=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=40,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=settings.eos_token_id,
    )
    ids = output[0, prompt.shape[1] :].tolist()
    assert len(ids) == 40 or ids[-1] in settings.eos_token_id
    return tokenizer.decode(ids, skip_special_tokens=True)


def test_peft_gives_the_text_of_every_role(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = spoken(exported, capsys)
    tokenizer = AutoTokenizer.from_pretrained(exported / "base")
    said = {"question": QUESTION}
    for role, text in zip(described(exported)["roles"], ours, strict=True):
        base = AutoModelForCausalLM.from_pretrained(exported / "base", dtype=torch.float32)
        model = PeftModel.from_pretrained(base, exported / role["directory"]).eval()
        assert generated(model, tokenizer, exported / "base", role, said) == text
        said[role["name"]] = text
    assert len({*ours}) == 3 and all(ours)
    assert described(exported)["stop_ids"] == [1]


def test_transformers_reads_merged_checkpoints(exported: Path) -> None:
    tokens = torch.tensor([[5, 9, 200, 31, 77, 8]])
    for role in ROLES:
        base = AutoModelForCausalLM.from_pretrained(exported / "base", dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, exported / role).eval()
        whole = AutoModelForCausalLM.from_pretrained(
            exported / "merged" / role, dtype=torch.float32
        )
        with torch.no_grad():
            difference = (adapted(tokens).logits - whole.eval()(tokens).logits).abs().max()
        assert difference <= 2e-4
        settings = GenerationConfig.from_pretrained(exported / "merged" / role)
        assert settings.eos_token_id == [*described(exported)["stop_ids"]]


def test_solve_gives_the_run_s_text(
    run: RunDirectory, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spoken(exported, capsys) == spoken(Path(str(run.path)), capsys)


def test_evaluate_gives_the_run_s_figures(
    run: RunDirectory, exported: Path, tmp_path: Path
) -> None:
    options = ["--systems", "sa,malt,malt+mv", "task.test_questions=3"]
    evaluate.main(["--run-dir", str(run.path), "--out", str(tmp_path / "of-run"), *options])
    again = ["--adapters", str(exported), "--out", str(tmp_path / "of-export")]
    evaluate.main([*again, *options])
    contents = []
    for name in ("of-run", "of-export"):
        content = json.loads((tmp_path / name / "evaluation/results.json").read_text())
        for system in content["systems"].values():
            del system["seconds"]
        contents.append({key: content[key] for key in ("model", "task", "systems", "turns")})
    assert contents[0] == contents[1]
    assert contents[0]["systems"]["malt"] != contents[0]["systems"]["sa"]

    other = Path(shutil.copytree(exported, tmp_path / "other"))
    shutil.copytree(other / "refiner", other / "verifier", dirs_exist_ok=True)
    content = described(other)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        content["files"][f"verifier/{name}"] = content["files"][f"refiner/{name}"]
    (other / "pipeline.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="samples of other weights"):
        evaluate.main(["--adapters", str(other), *again[2:], *options])


def test_an_export_lacks_the_weights_after_sft(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="star-ma: these systems need the weights after SFT"):
        evaluate.main(
            ["--adapters", str(exported), "--out", str(tmp_path / "out"), "--systems", "sa,star-ma"]
        )


def test_pipeline_json_describes_the_run(run: RunDirectory, exported: Path) -> None:
    content = described(exported)
    assert content["seed"] == 3 and content["task"] == "riddles" and content["method"] == "lora"
    assert content["sampling"] == {
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 0,
        "max_tokens": 40,
    }
    assert content["stop_tokens"] == ["<|end|>"] and content["chat_template_kwargs"] == {}
    assert content["scores"]["malt"] == {"accuracy": 0.5, "ci95": [0.25, 0.75], "questions": 3}
    assert [role["name"] for role in content["roles"]] == [*ROLES]
    card = (exported / "README.md").read_text()
    assert "| malt | 3 | 50.0 [25.0, 75.0] |" in card
    assert "--max-lora-rank 8" in card and "DIR/base" in card


def test_prompts_are_the_run_s(run: RunDirectory, exported: Path) -> None:
    """As messages for a chat template, and as token ids."""
    roles = load_roles(run.config.pipeline.roles, tasks.create(run.config.task).prompts)
    assert read_pipeline(exported / "pipeline.json").malt_roles((3, 3, 3)) == roles
    prompts = Pipeline.of(roles, StoredCheckpoint("tiny").tokenizer).prompts
    tokenizer = AutoTokenizer.from_pretrained(exported / "base")
    said = {"question": QUESTION, "generator": "12+7=19", "verifier": "correct"}
    for depth, (role, prompt) in enumerate(zip(described(exported)["roles"], prompts, strict=True)):
        user = role["user"]
        for name, text in said.items():
            user = user.replace(f"{{{name}}}", text)
        messages = [{"role": "system", "content": role["system"]}]
        messages.append({"role": "user", "content": user})
        texts = [*said.values()][1 : depth + 1]
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        assert rendered == prompt.text(QUESTION, texts)
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        assert role["prompt_ids"]["before"] == [*prompt.root]
        assert [*prompt.ids(QUESTION, ids)] == prompt_ids(tokenizer, role, said)


def test_vllm_s_rules_for_adapters(exported: Path) -> None:
    """The checks of vLLM's PEFTHelper and of its reading of tensor names."""
    names = set()
    for role in ROLES:
        fields = json.loads((exported / role / "adapter_config.json").read_text())
        assert {"r", "lora_alpha", "target_modules"} <= fields.keys()
        assert not fields["modules_to_save"] and not fields["use_dora"]
        assert fields["bias"] == "none"
        assert fields["r"] <= vllm_rank(fields["r"]) in VLLM_RANKS
        tensors = safetensors.numpy.load_file(exported / role / "adapter_model.safetensors")
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition("base_model.model.")
            module, matrix, weight = rest.rsplit(".", 2)
            assert prefix == "" and matrix in ("lora_A", "lora_B") and weight == "weight"
            assert module.rpartition(".")[2] in fields["target_modules"]
            assert tensor.shape[matrix == "lora_B"] == fields["r"]
            assert tensor.dtype == np.float32
        assert len(tensors) == 4 * 7 * 2
        names.add(frozenset(tensors))
    assert len(names) == 1
    assert vllm_rank(513) is None and vllm_rank(16) == 16 and vllm_rank(17) == 32


def test_a_role_without_training_rows_stays_the_base_model(tmp_path: Path) -> None:
    stages = tuple(name for name in STAGES if "verifier" not in name)
    make_run(tmp_path / "run", stages=stages)
    export.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert [role["directory"] for role in described(tmp_path / "out")["roles"]] == [
        "generator",
        None,
        "refiner",
    ]
    assert not (tmp_path / "out/verifier").exists()
    assert "the base model's" in (tmp_path / "out/README.md").read_text()


def test_full_fine_tuning_exports_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "training.method=full", results=None)
    out = tmp_path / "out"
    export.main([str(run.path), "--out", str(out), "--merged"])
    ours = spoken(out, capsys)
    assert ours == spoken(tmp_path / "run", capsys)
    role = described(out)["roles"][0]
    model = AutoModelForCausalLM.from_pretrained(out / "generator", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "generator")
    said = {"question": QUESTION}
    assert generated(model, tokenizer, out / "generator", role, said) == ours[0]
    assert "before its evaluation" in (out / "README.md").read_text()
    export.main([str(run.path), "--out", str(out), "--force", "--dtype", "bfloat16"])
    assert json.loads((out / "refiner/config.json").read_text())["dtype"] == "bfloat16"
    half = AutoModelForCausalLM.from_pretrained(out / "generator").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(half[name], tensor.to(torch.bfloat16)), name


def test_gguf_files_hold_the_same_weights(tmp_path: Path) -> None:
    """Of a small model, because llama.cpp knows no tokenizer like that of the embedded one."""
    config = dataclasses.replace(CONFIGS["llama"], vocab_size=272)
    vocabulary = byte_level("qwen2").vocabulary
    template = TEMPLATE + "{% if not enable_thinking %}no thoughts{% endif %}"
    tokenizer = Tokenizer(vocabulary, eos_token="<|end|>", chat_template=template)
    base = Checkpoint("small", config, random_params(config), tokenizer)
    save_checkpoint(tmp_path / "base", base)
    run = make_run(tmp_path / "run", f"model.name={tmp_path / 'base'}", "model.thinking=true")
    out = tmp_path / "out"
    export.main([str(run.path), "--out", str(out), "--gguf", "--merged"])
    names = ("base.gguf", *(f"{role}{end}.gguf" for role in ROLES for end in ("", "-lora")))
    assert {file.name for file in (out / "gguf").iterdir()} == {*names}
    for file, directory in (("base", tmp_path / "base"), ("refiner", out / "merged/refiner")):
        ours = GGUFFile(out / f"gguf/{file}.gguf").tensors()
        theirs = HuggingFaceDirectory(directory).tensors()
        assert ours.shapes == theirs.shapes
        for name in ours.shapes:
            np.testing.assert_array_equal(ours.read(name), theirs.read(name))
    assert described(out)["chat_template_kwargs"] == {"enable_thinking": True}
    before = described(out)["roles"][0]["prompt_ids"]["after"]["question"]
    assert "no thoughts" not in vocabulary.decode(before)
    assert GGUFFile(out / "gguf/base.gguf").tokenizer().chat_template == template
    assert "| `gguf/refiner-lora.gguf` |" in (out / "README.md").read_text()


def test_a_tokenizer_that_llama_cpp_lacks_is_refused_at_once(
    run: RunDirectory, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"llama\.cpp has no equivalent of this model"):
        export.main([str(run.path), "--out", str(tmp_path / "out"), "--gguf"])
    assert not list(tmp_path.iterdir())


def test_runs_without_trained_roles_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "untrained", stages=("round-0/trees",))
    with pytest.raises(UserError, match="no trained role: it has round-0/trees"):
        export.main([str(tmp_path / "untrained"), "--out", str(tmp_path / "out")])
    make_run(tmp_path / "unfinished", stages=STAGES[:2], results=None)
    with pytest.raises(UserError, match=r"round-0/verifier/dpo is missing; it has round-0/gen"):
        export.main([str(tmp_path / "unfinished"), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"is no run directory: it has no config\.yaml"):
        export.main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_export_is_on_a_disk(
    run: RunDirectory, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="name a directory on a disk"):
        export.main([str(run.path), "--out", "gs://bucket/out"])
    with pytest.raises(UserError, match="name a directory on a disk"):
        evaluate.main(["--adapters", "gs://bucket/out", "--out", str(tmp_path / "results")])
    assert not list(tmp_path.iterdir())


def test_only_an_export_is_replaced(run: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export.main([str(run.path), "--out", str(out)])
    (out / "note").touch()
    with pytest.raises(UserError, match=r"exists already.*--force"):
        export.main([str(run.path), "--out", str(out)])
    export.main([str(run.path), "--out", str(out), "--force"])
    assert not (out / "note").exists() and (out / "pipeline.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").touch()
    with pytest.raises(UserError, match="is no export and is not replaced"):
        export.main([str(run.path), "--out", str(tmp_path / "mine"), "--force"])
    assert (tmp_path / "mine/letter").exists()


@pytest.mark.parametrize("interrupted", ["save_adapter", "model_card", "to_json"])
def test_an_interrupted_export_leaves_nothing_that_looks_whole(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, interrupted, stop)
    with pytest.raises(KeyboardInterrupt):
        export.main([str(run.path), "--out", str(tmp_path / "below/out")])
    assert not list((tmp_path / "below").iterdir())


def test_another_base_model_or_tokenizer_is_refused(exported: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(exported / "base", tmp_path / "base"))
    file = base / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["model.norm.weight"][0] += 1e-3
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(UserError, match=f"the weights of {base} are not those"):
        solve.main([str(exported), QUESTION, f"model.name={base}"])
    text = (base / "tokenizer_config.json").read_text()
    (base / "tokenizer_config.json").write_text(text.replace("<|' + message", "<| ' + message"))
    with pytest.raises(UserError, match="is not the one that the roles were trained with"):
        solve.main([str(exported), QUESTION, f"model.name={base}"])


def test_the_same_base_model_in_other_files_is_accepted(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = spoken(exported, capsys)
    assert ours == spoken(exported, capsys, f"model.name={exported / 'base'}")


@pytest.mark.parametrize(
    "override",
    ["lora.alpha=3.0", "training.method=full", "pipeline.roles.0.branching=2"],
)
def test_options_that_an_export_fixes(exported: Path, override: str) -> None:
    with pytest.raises(UserError, match="has fixed prompts and weights"):
        solve.main([str(exported), QUESTION, override])


def damage(directory: Path, what: str) -> str:
    """Damages an export; returns a part of the message that names it."""
    file = directory / "verifier/adapter_model.safetensors"
    match what:
        case "cut":
            file.write_bytes(file.read_bytes()[:-100])
            return r"adapter_model\.safetensors is damaged: it has \d+ bytes, not"
        case "changed":
            data = bytearray(file.read_bytes())
            data[-5] ^= 1
            file.write_bytes(data)
            return "is damaged: its checksum is not that of pipeline.json"
        case "missing":
            file.unlink()
            return "is damaged: it is missing"
        case "roles":
            config = load_config(
                directory / "run.yaml",
                ["pipeline.roles=[{name: generator}]", "training.dpo_roles=[]"],
            )
            (directory / "run.yaml").write_text(to_yaml(config))
            return "run.yaml and pipeline.json are of different exports"
    path, value = json.loads(what)
    content = described(directory)
    at = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    (directory / "pipeline.json").write_text(json.dumps(content))
    return r"pipeline\.json: "


@pytest.mark.parametrize(
    "what",
    [
        "cut",
        "changed",
        "missing",
        "roles",
        '[["version"], 2]',
        '[["format"], "other"]',
        '[["stop_ids"], [-1]]',
        '[["roles"], []]',
        '[["roles", 0, "directory"], "../outside"]',
        '[["roles", 0, "directory"], ".."]',
        '[["roles", 1, "user"], "{question} {refiner}"]',
        '[["roles", 1, "name"], "generator"]',
        '[["base", "weights_sha256"], 5]',
    ],
)
def test_damaged_exports_are_named(exported: Path, tmp_path: Path, what: str) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    message = damage(copy, what)
    with pytest.raises(UserError, match=message):
        solve.main([str(copy), QUESTION])


def test_a_run_on_random_weights_has_nothing_to_export(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "model.name=smollm2-135m", stages=(), results=RESULTS)
    with pytest.raises(UserError, match="RANDOM weights"):
        export.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
