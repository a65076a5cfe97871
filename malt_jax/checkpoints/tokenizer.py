"""Tokenizers: text to token ids and back, chat templates, and the ids that end a completion."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

# Only transformers' tokenizers are used, so its advice to install PyTorch would mislead.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from malt_jax.checkpoints.vocabularies import read_tokenizer_model
from malt_jax.errors import UserError, parsing
from malt_jax.files import read_json_object

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

# Templates for a vocabulary without one. They write the turns as the models were trained on them,
# without any system prompt of their own.
_TEMPLATES = Path(__file__).parent.parent / "assets" / "chat_templates"

# Some templates print the time they are rendered at; a prompt must not change overnight. They get
# the day that Llama 3.2's template falls back to, by a macro that replaces transformers' function.
_DATE = datetime.datetime(2024, 7, 26)
_CLOCK = "".join(
    [
        "{% macro strftime_now(format) %}{{ format",
        *(f" | replace('%{x}', '{_DATE.strftime('%' + x)}')" for x in "aAbBdHIjmMpSyY"),
        " }}{% endmacro %}\n",
    ]
)


# A text that tokenizers of different families split differently.
_PROBE = (
    "  Ann's 3 cafés sold 1,234.50 kg in 2024!\n\n\tWE'LL see: x=12*(7+85)=1104 — 数学 ½ 🚀🇫🇷\r\n "
    "I’d naïvely  say   'hello_world' || 007 <|end|> ١٢٣ e\u0301 \u00e9"
)


class Tokenizer:
    """Token ids of a checkpoint's vocabulary.

    Attributes:
        vocab_size: highest token id plus one; a model's embedding may have more rows.
        bos_id:     id of the beginning-of-sequence token, or None.
        stop_ids:   ids that end a completion, ascending.
        thinking:   `enable_thinking` in chat templates: the models of those that know it begin a
            reply with their reasoning in <think> tags, or leave it out.
    """

    vocab_size: int
    bos_id: int | None
    stop_ids: tuple[int, ...]
    thinking: bool = False

    def __init__(
        self,
        vocabulary: tokenizers.Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        chat_template: str | None = None,
        eos_ids: Sequence[int] = (),
        origin: str = "tokenizer",
    ) -> None:
        """vocabulary: its truncation and padding are switched off.
        chat_template:  a Jinja template; None takes the default of the vocabulary's family.
        eos_ids:        end-of-sequence ids that the model's files state; without any, eos_token.

        Raises UserError when bos_token or eos_token is not in the vocabulary.
        """
        if not isinstance(chat_template, str | None):
            raise UserError(f"{origin}: the chat template is no text: {chat_template!r:.80}")
        ids = vocabulary.get_vocab(with_added_tokens=True)
        for field, token in (("bos_token", bos_token), ("eos_token", eos_token)):
            if token is not None and token not in ids:
                raise UserError(f"{origin}: the {field} {token!r} is not in the vocabulary")
        vocabulary.no_truncation()
        vocabulary.no_padding()
        self._origin = origin
        self._fast = PreTrainedTokenizerFast(
            tokenizer_object=vocabulary,
            bos_token=bos_token,
            eos_token=eos_token,
            chat_template=chat_template or _default_template(ids),
            clean_up_tokenization_spaces=False,
        )
        self.vocab_size = max(ids.values()) + 1
        self.bos_id = None if bos_token is None else ids[bos_token]
        if not eos_ids and eos_token is not None:
            eos_ids = (ids[eos_token],)
        self.stop_ids = tuple(sorted({*eos_ids, *self._end_of_turn()}))

    def __contains__(self, token_id: int) -> bool:
        return self._fast.backend_tokenizer.id_to_token(token_id) is not None

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which `decode` leaves out and plain `encode` never gives."""
        added = self._fast.added_tokens_decoder
        return frozenset(index for index, token in added.items() if token.special)

    def token(self, token_id: int) -> str:
        """The text of one token as the vocabulary spells it."""
        return str(self._fast.backend_tokenizer.id_to_token(token_id))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids and control tokens, the chat template, the stop ids and the ids of a
        text with numbers, accents and blanks. Equal for equal tokenizers in files of any kind."""
        content = {
            "ids": self._fast.backend_tokenizer.get_vocab(with_added_tokens=True),
            "special": sorted(self.special_ids),
            "stop": self.stop_ids,
            "chat_template": self._fast.chat_template,
            "probe": self.encode(_PROBE),
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def vocabulary(self) -> tokenizers.Tokenizer:
        """The vocabulary with its rules for splitting and merging; not to be changed."""
        return self._fast.backend_tokenizer

    @property
    def chat_template(self) -> str | None:
        return self._fast.chat_template

    @property
    def eos_token(self) -> str | None:
        return self._fast.eos_token

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text. Never adds tokens for the beginning or the end.

        special: the names of control tokens stand for these tokens, as in a rendered template.
            Otherwise they are ordinary text, so that a question or an answer cannot end a turn.
        """
        backend = self._fast.backend_tokenizer
        backend.encode_special_tokens = not special
        with parsing(f"{self._origin}: the tokenizer fails for the text {text[:80]!r}"):
            return backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without control tokens and without ids outside the vocabulary."""
        return self._fast.backend_tokenizer.decode(list(ids), skip_special_tokens=True)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each id adds to the text of those before it; "" for control tokens.

        A character of several tokens comes with its last one. Together the pieces are
        `decode(ids)`, unless the ids end within a character.
        """
        stream = DecodeStream(skip_special_tokens=True)
        return [stream.step(self._fast.backend_tokenizer, id) or "" for id in ids]

    def render(self, messages: list[dict[str, str]], *, generation_prompt: bool = True) -> str:
        """A conversation as text, by the checkpoint's chat template, sandboxed.

        messages: {"role": "system" | "user" | "assistant", "content": text}, in order.
        generation_prompt: end with the header of the assistant's next turn.

        Raises UserError when there is no template, or when it refuses the messages.
        """
        template = self._fast.chat_template
        if template is None:
            raise UserError(
                f"{self._origin}: no chat template, and the vocabulary is of no family with a"
                " default; put a chat_template.jinja next to the tokenizer"
            )
        roles = ", ".join(message["role"] for message in messages)
        with parsing(f"{self._origin}: the chat template fails for turns of {roles}"):
            text = self._fast.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                chat_template=_CLOCK + template if "strftime_now" in template else template,
                date_string=_DATE.strftime("%d %b %Y"),
                enable_thinking=self.thinking,
            )
            return str(text)

    def save(self, directory: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, the chat template inside the latter."""
        self._fast.save_pretrained(directory, save_jinja_files=False)
        path = directory / TOKENIZER_CONFIG
        settings = json.loads(path.read_text(encoding="utf-8"))
        # Readable by every version of transformers, unlike the class name that version 5 writes.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")

    def _end_of_turn(self) -> set[int]:
        """The control token that the chat template puts after an assistant's answer, if any."""
        if self._fast.chat_template is None:
            return set()
        answer = "answer"
        turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": answer}]
        try:
            text = self.render(turns, generation_prompt=False)
        except UserError:
            return set()
        after = self.encode(text.rpartition(answer)[2].lstrip(), special=True)
        return set(after[:1]) & self.special_ids


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face directory, or of one of its tokenizer files.

    path: a directory with tokenizer.json or tokenizer.model (sentencepiece, or Llama 3's ranks),
        or such a file. tokenizer_config.json, chat_template.jinja and the end-of-sequence ids in
        generation_config.json or config.json next to it are read as well.

    Raises UserError, naming the file, when something is missing or broken.
    """
    file = _tokenizer_file(path)
    with parsing(f"{file}, or {TOKENIZER_CONFIG} next to it: not a readable tokenizer"):
        return _read_tokenizer(file)


def _read_tokenizer(file: Path) -> Tokenizer:
    settings = _read_optional(file.parent / TOKENIZER_CONFIG)
    tokens: dict[str, str | None] = {}
    if file.suffix == ".model":
        vocabulary = read_tokenizer_model(file)
        _add_listed_tokens(vocabulary, settings, file)
        tokens = _default_tokens(vocabulary.get_vocab(with_added_tokens=True))
    else:
        with parsing(f"{file}: not a readable tokenizer.json"):
            vocabulary = tokenizers.Tokenizer.from_file(str(file))
    for field in ("bos_token", "eos_token"):
        if field in settings:
            # A token is its text, or an object with its text and properties.
            token = settings[field]
            tokens[field] = token["content"] if isinstance(token, dict) else token
    return Tokenizer(
        vocabulary,
        **tokens,
        chat_template=_read_template(file.parent, settings),
        eos_ids=read_eos_ids(file.parent),
        origin=str(file),
    )


def read_eos_ids(directory: Path) -> tuple[int, ...]:
    """End-of-sequence ids: generation_config.json's, else config.json's, else none.

    The former is a list where a model may end in several ways; Llama 3.1 Instruct has three.
    """
    for name in (GENERATION_CONFIG, CONFIG):
        stated = _read_optional(directory / name).get("eos_token_id")
        if stated is None:
            continue
        ids = stated if isinstance(stated, list) else [stated]
        if not all(type(index) is int and 0 <= index < 2**31 for index in ids):
            problem = f"eos_token_id must be an id or a list of ids, got {stated!r:.80}"
            raise UserError(f"{directory / name}: {problem}")
        return tuple(ids)
    return ()


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _tokenizer_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path}: no tokenizer here; expected tokenizer.json or tokenizer.model. Name another"
        " checkpoint's with model.tokenizer=PATH"
    )


def _read_template(directory: Path, settings: dict[str, Any]) -> str | None:
    """chat_template.jinja, else the template (or the one named "default") in the settings."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        return named.get("default")
    return template


def _add_listed_tokens(
    vocabulary: tokenizers.Tokenizer, settings: dict[str, Any], file: Path
) -> None:
    """Adds tokens that only tokenizer_config.json lists; a tokenizer.model cannot hold them."""
    listed = settings.get("added_tokens_decoder", {})
    for index, token in sorted((int(index), token) for index, token in listed.items()):
        text, special = token["content"], bool(token.get("special"))
        vocabulary.add_tokens([tokenizers.AddedToken(text, special=special, normalized=False)])
        if vocabulary.token_to_id(text) != index:
            raise UserError(
                f"{file}: tokenizer_config.json gives {text!r} the id {index}, but the vocabulary"
                f" gives it {vocabulary.token_to_id(text)}"
            )


def _default_tokens(ids: dict[str, int]) -> dict[str, str | None]:
    """First and last token of the families that publish tokenizer.model without settings."""
    for bos, eos in (("<|begin_of_text|>", "<|end_of_text|>"), ("<s>", "</s>")):
        if bos in ids and eos in ids:
            return {"bos_token": bos, "eos_token": eos}
    return {}


def _default_template(ids: dict[str, int]) -> str | None:
    families = (
        ("<|start_header_id|>", "<|eot_id|>", "llama3"),
        ("<|im_start|>", "<|im_end|>", "chatml"),
        ("<start_of_turn>", "<end_of_turn>", "gemma"),
        ("<s>", "</s>", "llama2"),
    )
    found = (name for begin, end, name in families if begin in ids and end in ids)
    name = next(found, None)
    return name and (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
