"""Tokenizers from vocabularies in other formats than tokenizer.json.

There are three: sentencepiece models (Llama 2), tiktoken ranks (Llama 3's tokenizer.model) and the
metadata of a GGUF file, which hold the vocabulary of one or the other kind. transformers converts
them too, but its sentencepiece differs at leading spaces, its GGUF loses the split of digits, and
its tiktoken keeps a cache by path.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import bytes_to_unicode

from malt_jax.errors import UserError

# Llama 3's special tokens in order of id, which its tokenizer.model does not hold.
_LLAMA3_SPECIAL_TOKENS = (
    *("begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"),
    *("finetune_right_pad_id", "reserved_special_token_2", "start_header_id", "end_header_id"),
    *("eom_id", "eot_id", "python_tag"),
    *(f"reserved_special_token_{number}" for number in range(3, 248)),
)
_LONGEST = 1024  # characters of a piece; the ways to cut it take quadratic time

# The expressions that split text before byte-pair merging, as the models' own tokenizer.json files
# state them. They are part of the vocabulary's definition: other splits give other ids.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_LLAMA3, _QWEN2 = ("llama-bpe", "llama3", "llama-v3"), ("qwen2", "deepseek-r1-qwen")

_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # GPT-2's expression
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE_TOKENIZERS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [_WORDS],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _WORDS],
    **{kind: [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"), _BYTES] for kind in _LLAMA3},
    **{kind: [pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"), _BYTES] for kind in _QWEN2},
}


class Piece(NamedTuple):
    """A vocabulary entry of a sentencepiece model or a GGUF file; both number the types alike."""

    text: str
    score: float = 0.0
    type: int = TokenType.NORMAL


def byte_level_tokenizer(
    pieces: Sequence[Piece], merges: Iterable[tuple[str, str]], kind: str, origin: str
) -> Tokenizer:
    """Byte-pair encoding over bytes, as GPT-2, Llama 3, SmolLM2 and Qwen use it.

    pieces: in order of id, spelled in GPT-2's printable characters for bytes.
    merges: pairs in order of priority.
    kind:   llama.cpp's name of the pre-tokenizer (`tokenizer.ggml.pre`).

    Raises UserError for an unknown kind; a guess would silently give wrong ids.
    """
    if kind not in PRE_TOKENIZERS:
        raise UserError(
            f"{origin}: the pre-tokenizer {kind!r} (tokenizer.ggml.pre) is not supported; supported"
            f" are {', '.join(PRE_TOKENIZERS)}. Name a tokenizer.json of the same model with"
            " model.tokenizer=PATH instead"
        )
    model = BPE(
        vocab={piece.text: index for index, piece in enumerate(pieces)},
        merges=list(merges),
        fuse_unk=False,
        ignore_merges=kind in _LLAMA3,
    )
    tokenizer = Tokenizer(model)
    if kind in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[kind])
    tokenizer.decoder = decoders.ByteLevel()
    _add_whole_tokens(tokenizer, pieces)
    return tokenizer


def sentencepiece_tokenizer(
    pieces: Sequence[Piece], *, add_dummy_prefix: bool, squeeze_spaces: bool = False
) -> Tokenizer:
    """Sentencepiece's byte-pair encoding with byte fallback, as Llama 2 uses it.

    pieces: in order of id; a higher score merges earlier.
    """
    mergeable = {piece.text: -piece.score for piece in pieces if piece.type == TokenType.NORMAL}
    model = BPE(
        vocab={piece.text: index for index, piece in enumerate(pieces)},
        merges=_derive_merges(mergeable),
        unk_token=next((p.text for p in pieces if p.type == TokenType.UNKNOWN), None),
        fuse_unk=True,
        byte_fallback=any(piece.type == TokenType.BYTE for piece in pieces),
    )
    tokenizer = Tokenizer(model)
    steps: list[normalizers.Normalizer] = []
    if squeeze_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" +"), " ")]
    if add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if add_dummy_prefix:
        undo.append(decoders.Strip(" ", left=1))
    tokenizer.decoder = decoders.Sequence(undo)
    _add_whole_tokens(tokenizer, pieces)
    return tokenizer


def read_tokenizer_model(path: Path) -> Tokenizer:
    """Reads a `tokenizer.model`: tiktoken ranks (Llama 3) or a sentencepiece model (Llama 2).

    Raises UserError when the file is neither.
    """
    data = path.read_bytes()
    ranks = _parse_tiktoken_ranks(data)
    return _llama3_tokenizer(ranks) if ranks is not None else _read_sentencepiece(data, path)


def _parse_tiktoken_ranks(data: bytes) -> dict[bytes, int] | None:
    """Lines of base64(token) and rank; None for a file of another format."""
    ranks = {}
    try:
        for line in data.splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError:
        return None
    return ranks or None


def _llama3_tokenizer(ranks: Mapping[bytes, int]) -> Tokenizer:
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("the ranks are not 0, 1, 2, ...")
    spelling = bytes_to_unicode()
    spelled = {"".join(spelling[byte] for byte in token): rank for token, rank in ranks.items()}
    pieces = [Piece(text) for text in sorted(spelled, key=spelled.__getitem__)]
    pieces += [Piece(f"<|{name}|>", type=TokenType.CONTROL) for name in _LLAMA3_SPECIAL_TOKENS]
    return byte_level_tokenizer(pieces, _derive_merges(spelled), "llama-bpe", "tokenizer.model")


def _read_sentencepiece(data: bytes, path: Path) -> Tokenizer:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(data)
    except DecodeError:
        model.Clear()
    if not model.pieces:
        raise UserError(
            f"{path}: neither a sentencepiece model nor a list of tiktoken ranks; the file may be"
            " truncated, or a pointer left by git-lfs"
        )
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise UserError(f"{path}: only sentencepiece models of type BPE are supported")
    if model.normalizer_spec.precompiled_charsmap:
        raise UserError(
            f"{path}: sentencepiece models that normalise characters are not supported; convert the"
            " tokenizer to a tokenizer.json with transformers"
        )
    return sentencepiece_tokenizer(
        [Piece(piece.piece, piece.score, piece.type) for piece in model.pieces],
        add_dummy_prefix=model.normalizer_spec.add_dummy_prefix,
        squeeze_spaces=model.normalizer_spec.remove_extra_whitespaces,
    )


def _derive_merges(priorities: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, smallest priority first.

    Sentencepiece and tiktoken merge the adjacent pair whose result comes first; a list of pairs in
    that order makes `tokenizers` do the same.
    """
    merges = []
    for whole, priority in priorities.items():
        if len(whole) > _LONGEST:
            raise ValueError(f"a piece of {len(whole)} characters: {whole[:40]!r}...")
        for cut in range(1, len(whole)):
            left, right = whole[:cut], whole[cut:]
            if left in priorities and right in priorities:
                merges.append((priority, priorities[left], priorities[right], left, right))
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in merges]


def _add_whole_tokens(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> None:
    """Control and user-defined pieces match whole and never take part in merges."""
    whole = (TokenType.CONTROL, TokenType.USER_DEFINED)
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.type == TokenType.CONTROL)
            for piece in pieces
            if piece.type in whole
        ]
    )
