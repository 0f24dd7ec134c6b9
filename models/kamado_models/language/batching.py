"""How a model's requests share forwards, known before anything is loaded: `kamado show`, plans and loading ask here.

A model that is said to run over pages, or of which nothing is known, is tried on pages (`paged_probe`); all others run
by rows, whose forms are found out on the loaded model (`rows_probe`). A test holds that what is said here is what runs,
for every architecture that the tests can build.
"""

from __future__ import annotations

from .shape import TextShape

PAGED = "continuous: packed tokens over a paged KV cache"
ROWS_RAGGED = "continuous: rows of any length, padded"
ROWS_STATE = "continuous: state slots, rows of any length"
ROWS_EQUAL = "rows of equal length share a forward"
ALONE = "one at a time"
UNKNOWN = "how requests share forwards is found out when it is loaded"

_TYPES = {
    PAGED: (
        "aria_text biogpt cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5 exaone4 gemma gemma2 gemma3_text "
        "gemma4_text glm glm4 glm4_moe glm4v_moe_text glm4v_text glm_ocr_text gpt2 gpt_bigcode gpt_neox gpt_oss "
        "granite granite_docling_text granitemoe granitemoehybrid llama llama4_text minicpm3 mistral mixtral "
        "nemotron olmo olmo2 olmo3 olmoe opt paddleocr_vl paddleocr_vl_text phi phi3 phimoe qwen2 "
        "qwen2_5_omni_text qwen2_5_vl qwen2_5_vl_text qwen2_moe qwen2_vl qwen2_vl_text qwen3 qwen3_moe "
        "qwen3_omni_moe_text qwen3_vl_moe_text qwen3_vl_text smollm3 stablelm starcoder2"
    ),
    ROWS_RAGGED: (
        "bamba bloom codegen falcon falcon_h1 gemma3n_text gpt_neo gptj jamba kimi_linear lfm2 lfm2_moe mpt "
        "nemotron_h olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma t5 umt5 xglm zamba2"
    ),
    ROWS_STATE: "falcon_mamba mamba mamba2",
    ROWS_EQUAL: "bart m2m_100 marian mbart minimax pegasus",
    ALONE: "rwkv",
}
_BY_TYPE = {model_type: how for how, types in _TYPES.items() for model_type in types.split()}

_UNCUT = frozenset({"falcon_mamba", "jamba", "mamba", "minimax", "nemotron_h", "recurrent_gemma", "zamba2"})
_PAGEABLE = frozenset({"full", "sliding", "chunked"})


def batching_of(shape: TextShape) -> str:
    """A sentence for people, one of those above. Of the types that can be paged, models run by rows whose layers keep
    something else than keys and values of their own."""
    how = _BY_TYPE.get(shape.model_type, UNKNOWN)
    if how == PAGED and not _PAGEABLE.issuperset(shape.kinds):
        how = ROWS_RAGGED
    return ROWS_EQUAL if how in (PAGED, ROWS_RAGGED) and shape.shifting_positions else how


def cuts_prompts(shape: TextShape) -> bool:
    """Whether a prompt may be computed piece by piece. Of others, going on from a state with several tokens at once
    gives something else."""
    return shape.model_type not in _UNCUT and not shape.shifting_positions
