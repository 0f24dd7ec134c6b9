"""In which form weights are held: schemes, and which tensor gets which. Names and arithmetic only; no torch.

A scheme is a name, its bytes, and what it does to activations; `kamado.weights.quantized` has the code behind the
names. Which tensors a scheme is for is judged by name and shape, so that a plan made from headers and a load agree.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

from .errors import InvalidRequest

Role = Literal["linear", "embedding", "convolution", "other"]

_MIN_VALUES = 4096
"""Smaller matrices are not worth a form of their own."""
_EMBEDDING = re.compile(
    r"(^|[._])(embed_tokens|tok_embeddings|word_embeddings|embeddings|token_embedding|token_embd|wte|embed_in|shared|lm_head|"
    r"embed_out|output)\.weight$"
)
"""Tables of token vectors, and the matrices that make logits of a hidden state: often one and the same."""
_EXACT = re.compile(
    r"(norm|(^|\.)gate|(^|[._])(router|ffn_gate_inp|gate_inp|shared_expert_gate|wpe|position_embd|pos_embed|embed_positions|"
    r"position_embedding|position_embeddings|token_type_embeddings|relative_attention_bias|class_embedding|"
    r"time_embed\w*|time_proj|timestep_embedder|guidance_embedder|time_text_embed|context_embedder|x_embedder|"
    r"pos_embedder|proj_out|conv_in|conv_out|conv1d))(\.[\w.]*)?\.?weight$|"
    r"(^|[._])(time_text_embed|time_embedding|time_embed|adaln\w*|norm\w*)\."
)
"""Small and sensitive: routers, norms, positions, time embeddings, first and last layers of denoisers."""


_LOSSLESS = re.compile(r"^(vae|vqvae|movq|image_encoder|safety_checker|\w*vae\w*)/")
"""Components of pipelines that are small beside the denoiser, and whose errors are seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One form of a weight matrix (out, in)."""

    name: str
    bits: int
    """Of one value."""
    group_size: int
    """Values of one row with a scale of their own; 0: the whole row."""
    scale_bytes: int
    """Of one group."""
    says: str
    """One line for people."""
    dynamic: bool = False
    """Whether activations are rounded too, each row for itself."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether such a weight can be held in this form."""
        columns = prod(shape[1:])
        return columns % (self.group_size or 1) == 0 and columns * self.bits % 8 == 0

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a weight in this form."""
        rows, columns = shape[0], prod(shape[1:])
        groups = rows * (columns // self.group_size if self.group_size else 1)
        return (rows * columns * self.bits + 7) // 8 + groups * self.scale_bytes


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="int8", bits=8, group_size=32, scale_bytes=2, says="8-bit integers, a scale for 32 of them"),
        Scheme(
            name="int8-dynamic",
            bits=8,
            group_size=0,
            scale_bytes=4,
            says="8-bit integers, a scale a row; activations are rounded to 8 bits as well",
            dynamic=True,
        ),
        Scheme(name="int4", bits=4, group_size=32, scale_bytes=2, says="4-bit integers, a scale for 32 of them"),
        Scheme(name="nf4", bits=4, group_size=64, scale_bytes=4, says="bitsandbytes' 4-bit normal floats"),
        Scheme(name="fp4", bits=4, group_size=64, scale_bytes=4, says="bitsandbytes' 4-bit floats"),
        Scheme(name="bnb-int8", bits=8, group_size=0, scale_bytes=4, says="bitsandbytes' LLM.int8"),
        Scheme(name="fp8", bits=8, group_size=0, scale_bytes=4, says="8-bit floats (e4m3), a scale a row"),
        Scheme(
            name="fp8-dynamic",
            bits=8,
            group_size=0,
            scale_bytes=4,
            says="8-bit floats (e4m3), activations too; for GPUs that compute in them",
            dynamic=True,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quant:
    """How the weights of a model are held.

    `scheme`: a name in SCHEMES. `group_size`: values with one scale, in place of the scheme's own. `embeddings`: the
    scheme of token tables and output matrices, `convolutions` that of convolutions; None leaves them. `skip`: patterns
    of tensor names (as of file names: `*.down_proj.*`) that keep the compute precision. `overrides`: (pattern, scheme)
    pairs; the first that matches counts. Raises InvalidRequest.
    """

    scheme: str
    group_size: int | None = None
    embeddings: str | None = "int8"
    convolutions: str | None = "int8"
    skip: tuple[str, ...] = ()
    overrides: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        for name in (self.scheme, self.embeddings, self.convolutions, *(scheme for _, scheme in self.overrides)):
            if name is not None:
                _known(name)
        size = self.group_size
        if size is not None and (size < 8 or size & (size - 1) or not SCHEMES[self.scheme].group_size):
            raise InvalidRequest(f"group_size of {self.scheme} must be a power of two from 8 on, not {size}")

    def scheme_for(self, name: str, shape: Sequence[int]) -> Scheme | None:
        """The form of the tensor `name`, (out, in), or None where it keeps the compute precision."""
        role = role_of(name, shape)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.skip):
            return None
        chosen = next((scheme for pattern, scheme in self.overrides if fnmatch.fnmatchcase(name, pattern)), None)
        if chosen is None:
            if role == "other":
                return None
            by_role = {"linear": self.scheme, "embedding": self.embeddings, "convolution": self.convolutions}
            chosen = by_role[role]
        if chosen is None:
            return None
        scheme = SCHEMES[chosen]
        if self.group_size is not None and chosen == self.scheme:
            scheme = replace(scheme, group_size=self.group_size)
        if role != "linear" and scheme.dynamic:
            scheme = SCHEMES["int8"]
        if not scheme.fits(shape):  # rows that are no whole groups
            scheme = replace(SCHEMES["int8"], group_size=0)
        return scheme if scheme.fits(shape) else None

    def as_json(self) -> str | dict[str, Any]:
        """What `parse_quant` reads: the name alone where that says all."""
        if self == Quant(scheme=self.scheme):
            return self.scheme
        return {
            "scheme": self.scheme,
            "group_size": self.group_size,
            "embeddings": self.embeddings,
            "convolutions": self.convolutions,
            "skip": list(self.skip),
            "overrides": [list(pair) for pair in self.overrides],
        }


QuantLike = str | Mapping[str, Any] | Quant | None


def parse_quant(value: QuantLike) -> Quant | None:
    """`"int8"`, the path of a `.toml` file or a mapping with the fields of Quant, or a Quant; None and `"none"` are
    None. Raises InvalidRequest."""
    if value is None or value == "none":
        return None
    if isinstance(value, Quant):
        return value
    if isinstance(value, str):
        return parse_quant(_read(Path(value))) if value.endswith(".toml") else Quant(scheme=_known(value))
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"quant must be a name or a table, not {value!r:.80}")
    unknown = sorted(set(value) - set(Quant.__slots__))
    if unknown or "scheme" not in value:
        known = ", ".join(Quant.__slots__)
        raise InvalidRequest(f"a quant table has a scheme, and may have {known}; not {', '.join(map(str, unknown))}")
    overrides = value.get("overrides") or ()
    pairs = overrides.items() if isinstance(overrides, Mapping) else overrides
    return Quant(
        scheme=_known(value["scheme"]),
        group_size=value.get("group_size"),
        embeddings=value.get("embeddings", "int8"),
        convolutions=value.get("convolutions", "int8"),
        skip=tuple(map(str, value.get("skip") or ())),
        overrides=tuple((str(pattern), _known(scheme)) for pattern, scheme in pairs),
    )


def role_of(name: str, shape: Sequence[int]) -> Role:
    """What a tensor is, judged by its name (in transformers', diffusers' or GGUF's manner) and shape."""
    if not name.endswith("weight") or prod(shape) < _MIN_VALUES or _LOSSLESS.search(name) or len(shape) not in (2, 4):
        return "other"
    if len(shape) == 4:
        return "other" if _EXACT.search(name) else "convolution"
    if _EMBEDDING.search(name) and not re.search(r"(attn|attention|attn_output)[._]output\.weight$", name):
        return "embedding" if not re.search(r"\d\.[\w.]*output\.weight$", name) else "linear"
    return "other" if _EXACT.search(name) else "linear"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read as a table of a quantization: {error}") from error


def _known(name: Any) -> str:
    if name not in SCHEMES:
        raise InvalidRequest(f"quant must be one of none, {', '.join(SCHEMES)}, not {name!r}")
    return str(name)
