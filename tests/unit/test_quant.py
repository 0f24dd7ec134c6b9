"""Names of forms, and which tensor gets which, for the names that libraries and files really have."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import tiny
from kamado.errors import InvalidRequest
from kamado.quant import SCHEMES, Quant, Role, parse_quant, recorded, role_of

LARGE = (4096, 4096)

ROLES: dict[Role, tuple[str, ...]] = {
    "linear": (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.output_gate.weight",
        "model.layers.11.mlp.gate_proj.weight",
        "model.layers.3.mlp.shared_experts.down_proj.weight",
        "model.layers.0.mamba.x_proj.weight",
        "transformer.h.0.attn.c_attn.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        "bert.encoder.layer.0.attention.output.dense.weight",
        "rwkv.blocks.0.attention.receptance.weight",
        "blk.0.attn_output.weight",
        "blk.0.ffn_gate.weight",
        "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "unet/down_blocks.0.resnets.0.time_emb_proj.weight",
        "transformer/single_transformer_blocks.0.proj_out.weight",
        "transformer/transformer_blocks.0.ff_context.net.0.proj.weight",
        "text_encoder/text_projection.weight",
        "double_blocks.0.img_attn.qkv.weight",
    ),
    "modulation": (
        "transformer/transformer_blocks.0.norm1.linear.weight",
        "transformer/transformer_blocks.0.norm1_context.linear.weight",
        "transformer/single_transformer_blocks.0.norm.linear.weight",
        "transformer/transformer_blocks.0.img_mod.1.weight",
        "transformer/layers.0.adaLN_modulation.1.weight",
        "transformer/adaln_single.linear.weight",
        "transformer/double_stream_modulation_img.linear.weight",
        "transformer/norm_out.linear.weight",
        "double_blocks.0.img_mod.lin.weight",
        "single_blocks.0.modulation.lin.weight",
    ),
    "embedding": (
        "model.embed_tokens.weight",
        "model.embed_tokens_per_layer.weight",
        "transformer.wte.weight",
        "transformer.word_embeddings.weight",
        "backbone.embeddings.weight",
        "shared.weight",
        "lm_head.weight",
        "output.weight",
        "token_embd.weight",
        "per_layer_token_embd.weight",
        "text_encoder/text_model.embeddings.token_embedding.weight",
        "text_encoder/shared.weight",
    ),
    "other": (
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.router.weight",
        "model.layers.0.mlp.shared_expert_gate.weight",
        "transformer.wpe.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "bert.embeddings.position_embeddings.weight",
        "bert.embeddings.token_type_embeddings.weight",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.ffn_gate_inp_shexp.weight",
        "blk.0.ssm_conv1d.weight",
        "output_norm.weight",
        "rope_freqs",
        "rwkv.blocks.0.attention.output.weight",
        "rwkv.blocks.0.feed_forward.value.weight",
        "unet/time_embedding.linear_1.weight",
        "unet/add_embedding.linear_1.weight",
        "transformer/time_text_embed.timestep_embedder.linear_1.weight",
        "transformer/condition_embedder.time_proj.weight",
        "transformer/x_embedder.weight",
        "transformer/proj_out.weight",
        "transformer/scale_shift_table",
        "vae/decoder.mid_block.attentions.0.to_q.weight",
        "prior_image_encoder/vision_model.encoder.layers.0.mlp.fc1.weight",
        "safety_checker/visual_projection.weight",
    ),
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in ROLES.items() for name in names])
def test_roles(role: Role, name: str) -> None:
    assert role_of(name, LARGE) == role


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("unet/down_blocks.0.resnets.0.conv1.weight", "convolution"),
        ("unet/down_blocks.0.attentions.0.proj_out.weight", "convolution"),
        ("unet/conv_in.weight", "other"),
        ("unet/conv_out.weight", "other"),
        ("transformer/pos_embed.proj.weight", "other"),
        ("vae/decoder.conv_in.weight", "other"),
    ],
)
def test_roles_of_convolutions(name: str, role: Role) -> None:
    assert role_of(name, (128, 64, 3, 3)) == role


@pytest.mark.parametrize("shape", [(4095,), (4096,), (63, 64), (8, 8, 1, 1), (64, 64, 4), (2, 64, 3, 3, 3)])
def test_small_tensors_and_those_of_other_ranks_are_left(shape: tuple[int, ...]) -> None:
    assert role_of("model.layers.0.mlp.up_proj.weight", shape) == "other"


def test_overrides_are_for_weights_alone() -> None:
    quant = Quant(scheme="int8", overrides=(("*", "int4"),))
    for name, shape in {"l.0.norm.weight": (4096,), "l.0.q.bias": (4096,), "l.0.conv1d.weight": (512, 1, 32)}.items():
        assert quant.scheme_for(name, shape) is None
    for name, shape in {"l.0.gate.weight": (8, 4096), "l.0.mlp.experts.down_proj": (4, 64, 64)}.items():
        assert quant.scheme_for(name, shape) == SCHEMES["int4"]


def names_of(architecture: str) -> set[str]:
    """The matrices of a tiny model, with the names that transformers has for them."""
    spec = tiny.ARCHITECTURES[architecture]
    auto = AutoModelForSeq2SeqLM if spec.encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(spec.model_type, **spec.config))
    return {name for name, weight in model.named_parameters() if weight.ndim == 2}


@pytest.mark.parametrize(
    "architecture",
    [
        "llama",
        "qwen2",
        "qwen3_moe",
        "gemma3",
        "gpt2",
        "falcon",
        "phi3",
        "starcoder2",
        "mamba",
        "deepseek_v2",
        "t5",
        "bloom",
    ],
)
def test_a_tensor_has_one_role_under_the_names_of_both_formats(architecture: str) -> None:
    spec = tiny.ARCHITECTURES[architecture]
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    other_names = {"qwen3_moe": "qwen3moe", "gemma3_text": "gemma3", "deepseek_v2": "deepseek2"}
    names = gguf.get_tensor_name_map(known[other_names.get(spec.model_type, spec.model_type)], 8)
    compared = 0
    for name in names_of(architecture):
        other = names.get_name(name, try_suffixes=(".weight",))
        if other is not None:
            assert role_of(other, LARGE) == role_of(name, LARGE), (other, name)
            compared += 1
    assert compared >= 5


ROLE_PATTERNS: list[tuple[str, Role]] = [
    (r"router|(mlp|feed_forward|mixer)\.gate\.weight|norm\w*\.weight$|embed_positions|wpe|relative", "other"),
    (r"(lm_head|embed_tokens|wte|word_embeddings)\.weight$", "embedding"),
    (r"(q_proj|o_proj|c_attn|query_key_value|up_proj|down_proj|fc1|fc2|out_proj)\.weight$", "linear"),
]


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_roles_in_every_architecture(architecture: str) -> None:
    """No router, norm or position is rounded; what makes up the size is."""
    for name in names_of(architecture):
        role = role_of(name, LARGE)
        wanted = next((wanted for pattern, wanted in ROLE_PATTERNS if re.search(pattern, name)), None)
        assert wanted is None or role == wanted, (name, role)


def test_which_scheme_a_tensor_gets() -> None:
    quant = Quant(
        scheme="nf4",
        embeddings=None,
        skip=("*.down_proj.*",),
        overrides=(("*.v_proj.*", "int8"), ("*.v_proj.*", "fp8")),
    )

    def name(tensor: str, shape: tuple[int, ...] = LARGE) -> str | None:
        scheme = quant.scheme_for(tensor, shape)
        return None if scheme is None else scheme.name

    assert name("layers.0.q_proj.weight") == "nf4"
    assert name("layers.0.down_proj.weight") is None
    assert name("layers.0.v_proj.weight") == "int8-weight-only"
    assert name("lm_head.weight") is None
    assert name("t/blocks.0.norm1.linear.weight") == "int8-weight-only"
    assert name("layers.0.q_proj.weight", (512, 100)) == "int8-weight-only", "rows that are no whole groups"
    assert name("unet/mid_block.resnets.0.conv1.weight", (64, 64, 3, 3)) == "int8-weight-only"
    assert Quant(scheme="fp8").scheme_for("t/blocks.0.norm1.linear.weight", LARGE) == SCHEMES["fp8"]
    assert (
        Quant(scheme="int8-dynamic").scheme_for("t/blocks.0.norm1.linear.weight", LARGE) == SCHEMES["int8-weight-only"]
    )
    assert (
        Quant(scheme="int4", embeddings="int8-dynamic").scheme_for("lm_head.weight", LARGE)
        == SCHEMES["int8-weight-only"]
    )


def test_dynamic_integers_are_in_groups_on_a_cpu() -> None:
    """As its kernels know them; token tables too, unless something else was said."""
    quant = Quant(scheme="int8-dynamic")
    assert quant.on("cuda") is quant and quant.on("cpu").on("cpu") == quant.on("cpu")
    grouped = quant.on("cpu")
    for name in ("l.0.q_proj.weight", "lm_head.weight"):
        scheme = grouped.scheme_for(name, LARGE)
        assert scheme is not None and scheme.dynamic and (scheme.group_size, scheme.scale_bytes) == (32, 2)
        assert scheme.num_bytes(LARGE) == SCHEMES["int8-weight-only"].num_bytes(LARGE)
    assert grouped.scheme_for("t/blocks.0.norm1.linear.weight", LARGE) == SCHEMES["int8-weight-only"]
    assert grouped.scheme_for("l.0.q_proj.weight", (512, 100)) == replace(SCHEMES["int8-weight-only"], group_size=0)
    assert parse_quant(grouped.as_json()) == grouped
    kept = Quant(scheme="int8-dynamic", embeddings=None).on("cpu")
    assert kept.group_size == 32 and kept.scheme_for("lm_head.weight", LARGE) is None
    assert Quant(scheme="int4").on("cpu").group_size is None


def test_int8_is_the_quickest_form_of_the_device() -> None:
    """Of those within a KL divergence of 0.005. The exact form has a name of its own, everywhere."""
    quant, exact = Quant(scheme="int8"), Quant(scheme="int8-weight-only")
    assert quant.on("cpu") == Quant(scheme="int8-dynamic").on("cpu") == Quant(scheme="int8", group_size=32).on("cpu")
    for kind in ("cuda", "mps", "xpu"):
        assert quant.on(kind) == exact
    for kind in ("cpu", "cuda"):
        assert exact.on(kind) is exact and exact.as_json() == "int8-weight-only"
        assert quant.on(kind).on(kind) == quant.on(kind)
    assert Quant(scheme="int8", group_size=64).on("cpu") == Quant(scheme="int8-weight-only", group_size=64)
    for name in ("l.0.q_proj.weight", "lm_head.weight", "t/blocks.0.norm1.linear.weight"):
        assert quant.scheme_for(name, LARGE) == exact.scheme_for(name, LARGE) == SCHEMES["int8-weight-only"]


def test_parts_that_int8_leaves_exact_on_a_cpu() -> None:
    quant = parse_quant({"scheme": "int8", "overrides": {"*.o_proj.*": "int8-weight-only", "*.v_proj.*": "int8"}})
    assert quant is not None
    for name in ("l.0.o_proj.weight", "l.0.v_proj.weight", "t/blocks.0.norm1.linear.weight"):
        assert quant.on("cpu").scheme_for(name, LARGE) == SCHEMES["int8-weight-only"]
    convolution = quant.on("cpu").scheme_for("unet/mid_block.resnets.0.conv1.weight", (64, 64, 3, 3))
    assert convolution == SCHEMES["int8-weight-only"]
    exact = Quant(scheme="int8", embeddings="int8-weight-only").on("cpu")
    assert exact.scheme_for("lm_head.weight", LARGE) == SCHEMES["int8-weight-only"]
    assert Quant(scheme="int4").on("cpu").scheme_for("lm_head.weight", LARGE) == SCHEMES["int8-weight-only"]


@given(
    scheme=st.sampled_from(["int8", "stored", *sorted(SCHEMES)]),
    part=st.sampled_from([None, "int8", *sorted(SCHEMES)]),
    size=st.sampled_from([None, 16, 32, 64]),
    kind=st.sampled_from(["cpu", "cuda"]),
)
def test_what_is_put_in_its_place_says_so(scheme: str, part: str | None, size: int | None, kind: str) -> None:
    """Records of what ran hold what it was, on any device."""
    try:
        quant = Quant(scheme=scheme, embeddings=part, group_size=size).on(kind)
    except InvalidRequest:
        return
    assert quant.scheme != "int8" and quant.on(kind) == quant
    assert parse_quant(recorded(quant.as_json())) == quant
    for name in ("l.0.q_proj.weight", "lm_head.weight"):
        form = quant.scheme_for(name, LARGE)
        assert form is None or (form.name in SCHEMES and form.fits(LARGE))


def test_records_of_before_mean_what_ran() -> None:
    """When `int8` was the exact form, everywhere."""
    assert recorded("int8") == "int8-weight-only"
    table = {"scheme": "int8", "group_size": 64, "embeddings": "int8", "overrides": [["*.a.*", "int8"]]}
    assert parse_quant(recorded(table)) == Quant(
        scheme="int8-weight-only", group_size=64, overrides=(("*.a.*", "int8"),)
    )
    for other in ("none", "int4", None, 5, ["int8"], {"scheme": "nf4"}, {"group_size": 32}, {}):
        assert recorded(other) == other


def test_group_size_is_that_of_the_scheme_alone() -> None:
    quant = Quant(scheme="int4", group_size=128)
    linear, table = quant.scheme_for("l.0.q_proj.weight", LARGE), quant.scheme_for("lm_head.weight", LARGE)
    assert linear is not None and linear.group_size == 128
    assert table is not None and table.group_size == 32


@given(
    st.sampled_from(sorted(SCHEMES)),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def test_bytes(name: str, rows: int, columns: int) -> None:
    scheme = Quant(scheme=name).scheme_for("l.0.q_proj.weight", (rows, columns))
    if rows * columns < 4096:
        assert scheme is None
        return
    assert scheme is not None and scheme.fits((rows, columns))
    assert rows * columns / 2 < scheme.num_bytes((rows, columns)) <= rows * columns * 9 // 8 + 4 * rows


BAD: list[tuple[Any, str]] = [
    ("int3", "int8-dynamic"),
    (5, "a name or a table"),
    (["int8"], "a name or a table"),
    ({}, "has a scheme"),
    ({"group_size": 32}, "has a scheme"),
    ({"scheme": "int9"}, "one of none, int8"),
    ({"scheme": ["int8"]}, "one of none, int8"),
    ({"scheme": None}, "one of none, int8"),
    ({"scheme": "int8", "colour": "red"}, "not colour"),
    ({"scheme": "int8", 3: 4}, "not 3"),
    ({"scheme": "int8", "group_size": "x"}, "power of two"),
    ({"scheme": "int8", "group_size": 32.0}, "power of two"),
    ({"scheme": "int8", "group_size": True}, "power of two"),
    ({"scheme": "int8", "group_size": -32}, "power of two"),
    ({"scheme": "int8", "group_size": 33}, "power of two"),
    ({"scheme": "fp8", "group_size": 32}, "cannot be chosen"),
    ({"scheme": "int8", "embeddings": "int9"}, "one of none, int8"),
    ({"scheme": "int8", "convolutions": 4}, "one of none, int8"),
    ({"scheme": "int8", "skip": 5}, "list of patterns"),
    ({"scheme": "int8", "skip": "*.q_proj.*"}, "list of patterns"),
    ({"scheme": "int8", "skip": [5]}, "list of patterns"),
    ({"scheme": "int8", "overrides": 5}, "pairs"),
    ({"scheme": "int8", "overrides": ["ab"]}, "pairs"),
    ({"scheme": "int8", "overrides": [["*.a.*"]]}, "pairs"),
    ({"scheme": "int8", "overrides": [[1, "int8"]]}, "pairs"),
    ({"scheme": "int8", "overrides": {"*.a.*": "int9"}}, "one of none, int8"),
    ({"scheme": "int8", "overrides": {"*.a.*": {}}}, "one of none, int8"),
]


@pytest.mark.parametrize(("value", "says"), BAD, ids=[str(value) for value, _ in BAD])
def test_what_cannot_be_is_refused_in_words(value: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(says)):
        parse_quant(value)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(SCHEMES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    json_values
    | st.fixed_dictionaries(
        {"scheme": st.sampled_from(sorted(SCHEMES))},
        optional=dict.fromkeys(("group_size", "embeddings", "convolutions", "skip", "overrides"), json_values),
    )
)
def test_anything_that_json_can_say_is_read_or_refused(value: Any) -> None:
    try:
        quant = parse_quant(value)
    except InvalidRequest:
        return
    assert quant is None or parse_quant(quant.as_json()) == quant


@pytest.mark.parametrize(
    "value", ["int8", {"scheme": "nf4", "group_size": 128, "skip": ["a*"], "overrides": {"b*": "int8"}}]
)
def test_what_was_read_is_written_the_same(value: Any) -> None:
    quant = parse_quant(value)
    assert quant is not None and parse_quant(quant.as_json()) == quant
    assert parse_quant(quant) is quant


def test_none_is_nothing() -> None:
    assert parse_quant(None) is None and parse_quant("none") is None
    left = parse_quant({"scheme": "int8", "embeddings": "none", "convolutions": None})
    assert left == Quant(scheme="int8", embeddings=None, convolutions=None)


@pytest.mark.parametrize("quant", ["fp8-dynamic", {"scheme": "int8", "overrides": {"*.q_proj.*": "fp8-dynamic"}}])
def test_what_the_device_cannot_do_is_refused(quant: Any) -> None:
    read = parse_quant(quant)
    assert read is not None
    with pytest.raises(InvalidRequest, match=r"fp8-dynamic needs a GPU .* which cuda:0 does not; take fp8"):
        read.check_device("cuda:0", ("fp16", "bf16"))


def test_devices_that_can() -> None:
    Quant(scheme="fp8-dynamic").check_device("cuda:0", ("fp16", "bf16", "fp8"))
    Quant(scheme="fp8").check_device("cpu", ())
