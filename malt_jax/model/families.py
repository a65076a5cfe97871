"""The families of models, and the config.json of each as fields of one `LlamaConfig`.

A config.json leaves out what its family shares, and newer files spell some fields in other ways
than older ones. `read_fields` makes it explicit, under the aliases of `LlamaConfig`'s fields; the
values are not trusted, and `LlamaConfig` checks them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from malt_jax.errors import UserError

LOCAL, GLOBAL = "sliding_attention", "full_attention"
MOST_LAYERS = 10_000

_Fields = dict[str, Any]
_WINDOW = ("sliding_window", "layer_types", "use_sliding_window")


@dataclass(frozen=True)
class Family:
    """The models of one `model_type`."""

    architecture: str
    """Their class in transformers."""
    fixed: Mapping[str, bool] = field(default_factory=dict)
    """Fields of `LlamaConfig` that are true for all of them, and that no config.json states."""
    optional: tuple[str, ...] = ()
    """Fields of a config.json that not all families have."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a config.json may leave out, where they are not those of `_DEFAULTS`."""
    stated: Mapping[str, bool | None] = field(default_factory=dict)
    """Fields that a config.json states although they are the same for all of them."""
    unsupported: tuple[str, ...] = ("attention_bias", "mlp_bias")
    """Switches that have to be off: no published model needs them."""


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        stated={"attention_bias": False, "mlp_bias": False},
        unsupported=("attention_bias", "mlp_bias", "use_sliding_window"),
    ),
    "mistral": Family(
        "MistralForCausalLM", optional=("sliding_window",), defaults={"sliding_window": 4096}
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        fixed={"attention_bias": True},
        optional=_WINDOW,
        unsupported=("mlp_bias",),
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM", fixed={"qk_norm": True}, optional=_WINDOW, defaults={"head_dim": 128}
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        optional=(*_WINDOW, "no_rope_layers"),
        defaults={"rope_theta": 2_000_000.0, "tie_word_embeddings": True},
        # Otherwise transformers takes an id of the published vocabulary.
        stated={"pad_token_id": None},
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        fixed=dict.fromkeys(
            ("qk_norm", "post_norms", "zero_centered_norms", "scale_embeddings"), True
        ),
        optional=(
            *("sliding_window", "layer_types", "rope_local_base_freq", "query_pre_attn_scalar"),
            *("attn_logit_softcapping", "final_logit_softcapping"),
        ),
        defaults={
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 131_072,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        unsupported=("attention_bias", "use_bidirectional_attention"),
    ),
}

# Models that see images too: the model_type of their language model, and the field that holds it.
_NESTED = {"gemma3": ("gemma3_text", "text_config")}

_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}


def read_fields(stored: Mapping[str, Any]) -> _Fields:
    """The fields of a config.json together with those that it leaves out.

    `layer_types` and `no_rope_layers` are tuples, or () where all layers are alike.

    Raises UserError, naming the field, for a family or an option that is not supported.
    """
    fields = _language_model(stored)
    model_type = fields.get("model_type")
    if model_type not in [*FAMILIES]:
        raise UserError(
            f"model_type {model_type!r:.80} is not supported; supported are"
            f" {', '.join([*FAMILIES, *_NESTED])}"
        )
    family = FAMILIES[model_type]
    for switch in family.unsupported:
        if fields.get(switch):
            raise UserError(f"{switch}=true is not supported for {model_type!r}")
    for name in _some_have() - {*family.optional}:
        fields.pop(name, None)
    for name, value in {**_DEFAULTS, **_derived(fields), **family.defaults}.items():
        # null stands for the default, as in transformers, except that it switches a window off.
        if name not in fields or (fields[name] is None and name != "sliding_window"):
            fields[name] = value
    if "hidden_activation" in family.defaults:
        fields["hidden_act"] = fields["hidden_activation"]
    if fields.get("query_pre_attn_scalar") == fields.get("head_dim"):
        fields["query_pre_attn_scalar"] = None
    _flatten_rope(fields)
    _list_layers(fields, family)
    return fields | dict.fromkeys(_some_fix(), False) | dict(family.fixed)


def write_fields(fields: Mapping[str, Any]) -> _Fields:
    """The fields of a config.json from those of a `LlamaConfig`, by their aliases."""
    family, layers = FAMILIES[fields["model_type"]], fields["num_hidden_layers"]
    left_out = _some_fix() | (_some_have() - {*family.optional})
    written = {name: value for name, value in fields.items() if name not in left_out}
    if "use_sliding_window" in family.optional and fields["sliding_window"] is None:
        del written["sliding_window"], written["layer_types"]
    elif "use_sliding_window" in family.optional:
        written["use_sliding_window"] = True
    if "layer_types" in written:
        written["layer_types"] = list(fields["layer_types"]) or [GLOBAL] * layers
    if "no_rope_layers" in written:
        written["no_rope_layers"] = [int(x) for x in fields["no_rope_layers"]] or [1] * layers
    if "query_pre_attn_scalar" in written and fields["query_pre_attn_scalar"] is None:
        written["query_pre_attn_scalar"] = fields["head_dim"]
    if "hidden_activation" in family.defaults:
        written["hidden_activation"] = written.pop("hidden_act")
    return written | {"architectures": [family.architecture], **family.stated}


def _some_have() -> set[str]:
    """Fields of a config.json that not all families have."""
    return {name for family in FAMILIES.values() for name in family.optional}


def _some_fix() -> set[str]:
    return {name for family in FAMILIES.values() for name in family.fixed}


def _language_model(stored: Mapping[str, Any]) -> _Fields:
    model_type = stored.get("model_type")
    if model_type not in [*_NESTED]:
        return dict(stored)
    model_type, name = _NESTED[model_type]
    if not isinstance(stored.get(name), dict):
        raise UserError(f"{name} is of the wrong kind: {stored.get(name)!r:.80} is not an object")
    return stored[name] | {"model_type": model_type}


def _derived(fields: Mapping[str, Any]) -> _Fields:
    """Defaults that depend on other fields."""
    found = {"num_key_value_heads": fields.get("num_attention_heads")}
    with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
        found["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]
    return found


def _flatten_rope(fields: _Fields) -> None:
    """`rope_parameters` of the two kinds of layers, as newer files have them, in older spelling."""
    rope = fields.get("rope_parameters")
    if not isinstance(rope, dict) or not {LOCAL, GLOBAL} & rope.keys():
        return
    fields["rope_parameters"] = rope.get(GLOBAL)
    local = rope.get(LOCAL)
    if isinstance(local, dict):
        if (kind := local.get("rope_type", "default")) != "default":
            raise UserError(f"rope type {kind!r:.80} is not supported for {LOCAL}")
        fields["rope_local_base_freq"] = local.get("rope_theta", fields["rope_local_base_freq"])


def _list_layers(fields: _Fields, family: Family) -> None:
    """Makes `layer_types`, `sliding_window` and `no_rope_layers` explicit."""
    layers = fields.get("num_hidden_layers")
    if type(layers) is not int or not 0 < layers <= MOST_LAYERS:
        return
    if "no_rope_layers" in family.optional:
        fields["no_rope_layers"] = _rope_layers(fields, layers)
    window = fields.get("sliding_window")
    if "use_sliding_window" in family.optional and not fields.get("use_sliding_window"):
        window = None
    types = fields.get("layer_types")
    if types is None:
        types = [LOCAL if x else GLOBAL for x in _local_layers(fields, layers)]
    if not isinstance(types, list):
        return
    if window is None or LOCAL not in types:
        types = [GLOBAL if x == LOCAL else x for x in types]
        window = None
    fields["sliding_window"] = window
    fields["layer_types"] = () if types == [GLOBAL] * layers else tuple(types)


def _local_layers(fields: _Fields, layers: int) -> list[bool]:
    """The layers with a sliding window, in a file that does not list them."""
    match fields["model_type"]:
        case "qwen2" | "qwen3":
            first = _count(fields, "max_window_layers", 28)
            return [layer >= first for layer in range(layers)]
        case "smollm3":
            rope = fields["no_rope_layers"] or [True] * layers
            return [not turns for turns in rope]
        case "gemma3_text":
            pattern = _count(fields, "sliding_window_pattern", 6)
            return [(layer + 1) % pattern != 0 for layer in range(layers)]
        case _:
            return [True] * layers


def _rope_layers(fields: _Fields, layers: int) -> tuple[bool, ...]:
    """Which layers have rotary positions; the field's name says the opposite of its values."""
    rope = fields.get("no_rope_layers")
    if rope is None:
        interval = _count(fields, "no_rope_layer_interval", 4)
        rope = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(rope, list) or len(rope) < layers or not all(x in (0, 1) for x in rope):
        raise UserError(f"no_rope_layers must list a 0 or 1 for every layer, got {rope!r:.80}")
    return () if all(rope[:layers]) else tuple(bool(x) for x in rope[:layers])


def _count(fields: _Fields, name: str, default: int) -> int:
    value = fields.get(name)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= MOST_LAYERS:
        raise UserError(f"{name} must be a number of layers, got {value!r:.80}")
    return value
