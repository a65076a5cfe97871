"""The tokenizer in a GGUF file's metadata, as llama.cpp's converter writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import gguf
import tokenizers
from gguf import TokenType
from tokenizers import pre_tokenizers

from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.checkpoints.vocabularies import (
    PRE_TOKENIZERS,
    Piece,
    byte_level_tokenizer,
    sentencepiece_tokenizer,
)
from malt_jax.errors import UserError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

# A text that each kind of pre-tokenizer splits in another way: runs of digits, contractions in both
# cases, blanks, line breaks after signs, and several scripts.
_PROBE = (
    "He's here, SHE'S there; we'LL see, they'Re off.  7 70 701 7012 70123 700,000.5 x2y34z\n"
    "\n  indented\n\n\n\ttabbed \t end?!\r\n...\n ½ ¾ ٤٢ Ⅷ ９ naïve cafe\u0301 Straße  \n"
    "русский текст 日本語の文 한국어 हिन्दी 🦊🧪 snake_case CamelCase --- === ((( \"'` a+b=c\r\n  "
)


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, size: int) -> None:
    """Adds a tokenizer to the metadata, with ids up to the `size` of the model's embedding.

    Chat templates write every control token that a prompt has, so llama.cpp is told to add none.

    Raises UserError for a tokenizer that llama.cpp has no equivalent of.
    """
    state = json.loads(tokenizer.vocabulary.to_str())
    model = state["model"]
    pieces = _pieces(tokenizer, model, size)
    if model["type"] != "BPE":
        raise _unsupported(f"its model is {model['type']}, not BPE")
    if model.get("byte_fallback"):
        prefix = _add_prefix(tokenizer.vocabulary, pieces)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([piece.score for piece in pieces])
        writer.add_add_space_prefix(prefix)
    else:
        merges = [_pair(merge) for merge in model["merges"]]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_kind(tokenizer.vocabulary, pieces, merges))
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_list([piece.text for piece in pieces])
    writer.add_token_types([piece.type for piece in pieces])
    _add_special(writer, tokenizer)


def _add_special(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    ends = list(tokenizer.stop_ids)
    if tokenizer.eos_token is not None:
        eos = tokenizer.vocabulary.token_to_id(tokenizer.eos_token)
        # Other ids may end a completion, but this one is called the end of the sequence.
        ends.sort(key=lambda index: index != eos)
    names = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    if len(ends) > len(names):
        raise _unsupported(f"{len(ends)} ids end a completion, and a file has {len(names)}")
    for add, index in zip(names, ends, strict=False):
        add(index)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _pieces(tokenizer: Tokenizer, model: dict[str, Any], size: int) -> list[Piece]:
    """The vocabulary in order of id, padded to the model's size."""
    added = tokenizer.vocabulary.get_added_tokens_decoder()
    # Sentencepiece merges the pair whose result has the highest score.
    ranks: dict[str, int] = {}
    if model.get("byte_fallback"):
        for rank, merge in enumerate(map(_pair, model["merges"])):
            ranks.setdefault("".join(merge), rank)
    pieces = []
    for index in range(size):
        text = tokenizer.vocabulary.id_to_token(index)
        if text is None:
            kind, text = TokenType.UNUSED, f"[PAD{index}]"
        elif index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
        elif text == model.get("unk_token"):
            kind = TokenType.UNKNOWN
        elif model.get("byte_fallback") and _BYTE.fullmatch(text):
            kind = TokenType.BYTE
        else:
            kind = TokenType.NORMAL
        # The same scale as sentencepiece's: 0, -1, -2, ...
        pieces.append(Piece(text, -float(ranks.get(text, len(ranks))), kind))
    unknown = tokenizer.vocabulary.token_to_id(model.get("unk_token") or "")
    if unknown is not None:
        pieces[unknown] = pieces[unknown]._replace(type=TokenType.UNKNOWN)
    return pieces


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """A merge of a tokenizer.json: a pair, or "a b" in older files."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _kind(
    vocabulary: tokenizers.Tokenizer, pieces: Sequence[Piece], merges: Sequence[tuple[str, str]]
) -> str:
    """llama.cpp's name of a pre-tokenizer, by the splits and the ids that it gives to a text."""
    wanted = _splits(vocabulary.pre_tokenizer)
    for kind, parts in PRE_TOKENIZERS.items():
        if _splits(pre_tokenizers.Sequence(parts)) == wanted:
            rebuilt = byte_level_tokenizer(pieces, merges, kind, "tokenizer")
            if _ids(rebuilt) == _ids(vocabulary):
                return kind
    raise _unsupported("it splits text in a way that is none of " + ", ".join(PRE_TOKENIZERS))


def _add_prefix(vocabulary: tokenizers.Tokenizer, pieces: Sequence[Piece]) -> bool:
    """Whether a space is put before a text, as sentencepiece does."""
    for prefix in (True, False):
        rebuilt = sentencepiece_tokenizer(pieces, add_dummy_prefix=prefix)
        if _ids(rebuilt) == _ids(vocabulary):
            return prefix
    raise _unsupported("it gives other ids than sentencepiece's BPE")


def _splits(pre_tokenizer: Any) -> list[str] | None:
    if pre_tokenizer is None:
        return None
    return [text for text, _ in pre_tokenizer.pre_tokenize_str(_PROBE)]


def _ids(vocabulary: tokenizers.Tokenizer) -> list[int]:
    return list(vocabulary.encode(_PROBE, add_special_tokens=False).ids)


def _unsupported(problem: str) -> UserError:
    return UserError(
        f"llama.cpp has no equivalent of this model's tokenizer: {problem}; leave --gguf out"
    )
