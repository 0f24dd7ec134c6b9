"""How the models of each type share forwards, as `kamado show` says it before anything is loaded.

What is really done is found out on the loaded model (`paged_probe`, `rows_probe`); a test holds that this table says
the same for every architecture that the tests can build.
"""

from __future__ import annotations

PAGED = "continuous: packed tokens over a paged KV cache"
ROWS_RAGGED = "continuous: rows of any length, padded"
ROWS_STATE = "continuous: state slots, rows of any length"
ROWS_EQUAL = "rows of equal length share a forward"
ALONE = "one at a time"
UNKNOWN = "how requests share forwards is found out when it is loaded"

_TYPES = {
    PAGED: (
        "biogpt cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5 exaone4 gemma gemma2 gemma3_text gemma4_text glm glm4 "
        "glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss granite granitemoe llama llama4_text minicpm3 mistral mixtral "
        "nemotron olmo olmo2 olmo3 olmoe opt phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe smollm3 stablelm "
        "starcoder2"
    ),
    ROWS_RAGGED: (
        "bamba bloom codegen falcon falcon_h1 gemma3n_text gpt_neo gptj granitemoehybrid jamba kimi_linear "
        "lfm2 lfm2_moe "
        "mpt nemotron_h olmo_hybrid qwen3_5_text qwen3_next recurrent_gemma t5 umt5 xglm zamba2"
    ),
    ROWS_STATE: "falcon_mamba mamba mamba2",
    ROWS_EQUAL: "bart m2m_100 marian mbart minimax pegasus",
    ALONE: "rwkv",
}
_BY_TYPE = {model_type: how for how, types in _TYPES.items() for model_type in types.split()}


def batching_of(model_type: str) -> str:
    """A sentence for people."""
    return _BY_TYPE.get(model_type, UNKNOWN)
