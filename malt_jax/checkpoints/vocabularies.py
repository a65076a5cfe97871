"""Builds fast tokenizers from the vocabularies that checkpoints carry instead of a tokenizer.json.

Three kinds occur: sentencepiece models (Llama 2), tiktoken ranks (Llama 3's tokenizer.model) and
the vocabulary in a GGUF file's metadata, which is of the one or the other family.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from malt_jax.errors import UserError

# The expressions that split text before byte-pair merging, as the models' own tokenizer.json files
# state them. They are part of the vocabulary's definition: other splits give other ids.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

LLAMA3_NUM_SPECIAL_TOKENS = 256


class PieceKind(enum.IntEnum):
    """Kinds of vocabulary entries; sentencepiece and GGUF use the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class Piece:
    text: str
    score: float = 0.0
    kind: int = PieceKind.NORMAL


@dataclasses.dataclass(frozen=True)
class _ByteLevelKind:
    """What a byte-level vocabulary does to text before it merges bytes."""

    splits: tuple[pre_tokenizers.PreTokenizer, ...]
    byte_level_splits: bool
    ignore_merges: bool = False
    normalize: bool = False


def _byte_level_kind(name: str) -> _ByteLevelKind | None:
    """The definition behind a GGUF file's `tokenizer.ggml.pre`."""
    if name == "gpt-2":
        return _ByteLevelKind((), byte_level_splits=True)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return _ByteLevelKind((digits,), byte_level_splits=True)
    if name in ("llama-bpe", "llama3", "llama-v3"):
        split = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated")
        return _ByteLevelKind((split,), byte_level_splits=False, ignore_merges=True)
    if name in ("qwen2", "deepseek-r1-qwen"):
        split = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated")
        return _ByteLevelKind((split,), byte_level_splits=False, normalize=True)
    return None


BYTE_LEVEL_KINDS = ("gpt-2", "smollm", "llama-bpe", "llama3", "llama-v3", "qwen2")


def byte_level_tokenizer(
    pieces: Sequence[Piece], merges: Iterable[tuple[str, str]], kind: str, origin: str
) -> Tokenizer:
    """Byte-pair encoding over bytes, as GPT-2, Llama 3, SmolLM2 and Qwen use it.

    pieces: in order of id, spelled in GPT-2's printable stand-ins for bytes.
    merges: pairs in order of priority.
    kind:   how text is split before merging, by llama.cpp's name (`tokenizer.ggml.pre`).

    Raises UserError for an unknown kind; a guess would give wrong ids without any sign.
    """
    definition = _byte_level_kind(kind)
    if definition is None:
        raise UserError(
            f"{origin}: the pre-tokenizer {kind!r} (tokenizer.ggml.pre) is not supported; supported"
            f" are {', '.join(BYTE_LEVEL_KINDS)}. Name a tokenizer.json of the same model with"
            " model.tokenizer=PATH instead"
        )
    model = BPE(
        vocab={piece.text: index for index, piece in enumerate(pieces)},
        merges=list(merges),
        fuse_unk=False,
        ignore_merges=definition.ignore_merges,
    )
    tokenizer = Tokenizer(model)
    if definition.normalize:
        tokenizer.normalizer = normalizers.NFC()
    to_bytes = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=definition.byte_level_splits
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*definition.splits, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    _add_whole_tokens(tokenizer, pieces)
    return tokenizer


def sentencepiece_tokenizer(
    pieces: Sequence[Piece], *, add_dummy_prefix: bool, squeeze_spaces: bool = False
) -> Tokenizer:
    """Sentencepiece's byte-pair encoding with byte fallback, as Llama 2 uses it.

    pieces: in order of id; a higher score merges earlier.
    """
    vocabulary = {piece.text: index for index, piece in enumerate(pieces)}
    mergeable = {piece.text: -piece.score for piece in pieces if piece.kind == PieceKind.NORMAL}
    unknown = next((p.text for p in pieces if p.kind == PieceKind.UNKNOWN), None)
    has_bytes = any(piece.kind == PieceKind.BYTE for piece in pieces)
    model = BPE(
        vocab=vocabulary,
        merges=_derive_merges(mergeable),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=has_bytes,
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
    """Lines of base64(token) and rank, or None when the file is something else."""
    ranks = {}
    try:
        for line in data.splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        return None
    return ranks or None


def _llama3_tokenizer(ranks: Mapping[bytes, int]) -> Tokenizer:
    spelling = _printable_bytes()
    spelled = {"".join(spelling[byte] for byte in token): rank for token, rank in ranks.items()}
    ordered = sorted(spelled, key=spelled.__getitem__)
    pieces = [Piece(text) for text in ordered]
    pieces += [Piece(text, kind=PieceKind.CONTROL) for text in _llama3_special_tokens()]
    return byte_level_tokenizer(pieces, _derive_merges(spelled), "llama-bpe", "tokenizer.model")


def _llama3_special_tokens() -> list[str]:
    """Llama 3's special tokens, which its tokenizer.model does not hold; 128000 is the first."""
    tokens = ["begin_of_text", "end_of_text", "reserved_special_token_0"]
    tokens += ["reserved_special_token_1", "finetune_right_pad_id", "reserved_special_token_2"]
    tokens += ["start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    first_reserved = 3
    num_reserved = LLAMA3_NUM_SPECIAL_TOKENS - len(tokens)
    tokens += [f"reserved_special_token_{first_reserved + i}" for i in range(num_reserved)]
    return [f"<|{token}|>" for token in tokens]


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
        for cut in range(1, len(whole)):
            left, right = whole[:cut], whole[cut:]
            if left in priorities and right in priorities:
                merges.append((priority, priorities[left], priorities[right], left, right))
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in merges]


def _add_whole_tokens(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> None:
    """Control and user-defined pieces match whole and never take part in merges."""
    kinds = (PieceKind.CONTROL, PieceKind.USER_DEFINED)
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind == PieceKind.CONTROL)
            for piece in pieces
            if piece.kind in kinds
        ]
    )


def _printable_bytes() -> list[str]:
    """GPT-2's stand-in for each byte: itself where printable in Latin-1, else from U+0100 on."""
    stand_ins = []
    next_free = 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            stand_ins.append(chr(byte))
        else:
            stand_ins.append(chr(next_free))
            next_free += 1
    return stand_ins
