"""bitsandbytes' layouts: 4-bit codes and LLM.int8, as transformers and diffusers store them (`BitsAndBytesConfig`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedCheckpoint
from ...quant import Scheme
from .codebook import Codebook
from .dynamic import OUTLIER
from .integers import Integers
from .packed import Packed
from .saving_layout import Layout, Used
from .stored.bitsandbytes import BLOCKS, STATE

_EIGHT = "bnb-int8"


def _parts(packed: Packed, scheme: Scheme, weight: Tensor) -> Mapping[str, Tensor]:
    if scheme.name == _EIGHT:
        assert isinstance(packed, Integers)
        # The scale times 127 would not be the number that the scale was made of.
        return {
            ".weight": packed.parts["values"],
            ".SCB": weight.float().abs().amax(-1),
            ".weight_format": torch.tensor(0, dtype=torch.uint8),
        }
    assert isinstance(packed, Codebook)
    if scheme.group_size not in BLOCKS:
        raise UnsupportedCheckpoint(
            f"bitsandbytes has no blocks of {scheme.group_size} values; it has those of {', '.join(map(str, BLOCKS))}"
        )
    state = {
        "quant_type": scheme.name,
        "blocksize": scheme.group_size,
        "dtype": _name(weight.dtype),
        "shape": list(packed.shape),
    }
    return {
        ".weight": packed.parts["values"].view(-1, 1),
        ".weight.absmax": packed.parts["scale"].view(-1),
        ".weight.quant_map": packed.parts["table"],
        f".weight{STATE}{scheme.name}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def _config(used: Mapping[str, Used], plain: Sequence[str]) -> dict[str, Any]:
    (most, _), *_ = Counter((each.scheme.name, _name(each.dtype)) for each in used.values()).most_common()
    name, dtype = most
    four = name != _EIGHT
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "llm_int8_threshold": OUTLIER,
        "llm_int8_skip_modules": list(plain),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_quant_type": name if four else "fp4",
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_use_double_quant": False,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _layout(bits: int, *schemes: str) -> Layout:
    return Layout(
        name=f"bitsandbytes, {bits} bits",
        schemes=schemes,
        most_parts=4,
        longest_ending=len(".weight") + len(STATE) + len("nf4"),
        parts=_parts,
        config=_config,
    )


LAYOUTS = (_layout(4, "nf4", "fp4"), _layout(8, _EIGHT))
