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

Role = Literal["linear", "modulation", "embedding", "convolution", "other"]

_MIN_VALUES = 4096
"""Smaller matrices are not worth a form of their own."""
_EMBEDDING = re.compile(
    r"(^|[./])(embed_tokens|embed_tokens_per_layer|tok_embeddings|word_embeddings|embeddings|token_embedding|token_embd|"
    r"per_layer_token_embd|wte|embed_in|shared|lm_head|embed_out)\.weight$|(^|/|^rwkv\.)(output|head)\.weight$"
)
"""Tables of token vectors, and the matrices that make logits of a hidden state: often one and the same."""
_MODULATION = re.compile(
    r"(^|[./])(norm\w*\.linear\w*|ada[lL][nN]\w*(\.linear|\.\d+)?|(img|txt)_mod\.(\d+|lin)|\w*modulation\w*\.lin(ear)?)\.weight$"
)
"""What makes scales and shifts of a time step, in each block of a denoiser: up to a third of its weights. What it makes
is multiplied with everything, so it is never held in 4 bits, and its input never rounded."""
_EXACT = re.compile(
    # Routers, positions, and what else decides for a whole token or layer.
    r"((norm|(^|[./])gate|(^|[._])(router|shared_expert_gate|ffn_gate_inp(_shexp)?|wpe|position_embd|pos_embed|token_types|"
    r"embed_positions|position_embeddings?|token_type_embeddings|relative_attention_bias|attn_rel_b|ssm_conv1d\w*|"
    r"shortconv\.conv|conv1d))(\.[\w.]*)?\.?weight$)|"
    # First and last layers of denoisers and of vision encoders, and what reads time steps and sizes.
    r"(^|[./])(conv_in|conv_out|proj_out|proj_out_\d|img_in|txt_in|patch_conv|patch_embed\w*|pos_embed)(\.proj)?\.weight$|"
    r"(^|[./])(\w*_embedder|time_\w*embed\w*|time_\w*emb|(time|vector|guidance)_in|add_embedding|caption_projection|class_embed\w*|all_final_layer|"
    r"final_layer)\.|"
    # What RWKV's code divides in place.
    r"(^|\.)rwkv\.blocks\.\d+\.(attention\.output|feed_forward\.value)\.weight$"
)
_INNER_OUTPUT = re.compile(r"(^|[./])(attentions|\w*blocks|layers)\.\d+\.([\w.]+\.)?proj_out\.weight$")
"""Not the last layer, but that of a block."""
_STACK = re.compile(r"(^|\.)(experts\.|block_sparse_moe\.(in|out)put_linear\.weight$)|(_exps|attn_[kv]_b)\.weight$")
"""The experts of a layer, or its heads, as one tensor of three dimensions."""
_WEIGHT_ONLY, _DYNAMIC = "int8-weight-only", "int8-dynamic"
_CPU_GROUP = 32
"""Values with one scale that the kernels for CPUs know; rows of GPUs' products of integers have one scale."""
_LOSSLESS = re.compile(r"^(prior_)?(vae|vqvae|movq|image_encoder|safety_checker|\w*vae\w*)/")
"""Components of pipelines that are small beside the denoiser, and whose errors are seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One form of a weight: a matrix (out, in), a stack (experts, out, in), or a kernel (out, in, height, width)."""

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
    needs: str = ""
    """What a device must have (`DeviceFacts.features`)."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether such a weight can be held in this form."""
        _, columns = _matrix(shape)
        return columns % (self.group_size or 1) == 0 and columns * self.bits % 8 == 0

    def grouped(self, group_size: int) -> Scheme:
        """The same with a scale for so many values."""
        return replace(self, group_size=group_size, scale_bytes=self.scale_bytes if self.group_size else 2)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a weight in this form."""
        rows, columns = _matrix(shape)
        groups = rows * (columns // self.group_size if self.group_size else 1)
        return (rows * columns * self.bits + 7) // 8 + groups * self.scale_bytes


INT8 = "int8"
"""In place of a scheme: the 8-bit form that is quickest on the device within a KL divergence of 0.005 (ADR 0024), which
`Quant.on` puts in its place. For a part of a model, and where no device is known, it is `int8-weight-only`."""
STORED = "stored"
"""In place of a scheme: weights stay as the file has them. For checkpoints that were quantized with one of the usual
methods that is so anyway; the blocks of GGUF files are decoded unless this is asked for."""
SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="int8-weight-only", bits=8, group_size=32, scale_bytes=2, says="8-bit integers, a scale for 32 of them"
        ),
        Scheme(
            name="int8-dynamic",
            bits=8,
            group_size=0,
            scale_bytes=4,
            says="8-bit integers, a scale a row (on a CPU: for 32 of them); activations are rounded to 8 bits as well",
            dynamic=True,
        ),
        Scheme(name="int4", bits=4, group_size=32, scale_bytes=2, says="4-bit integers, a scale for 32 of them"),
        Scheme(name="nf4", bits=4, group_size=64, scale_bytes=4, says="bitsandbytes' 4-bit normal floats"),
        Scheme(name="fp4", bits=4, group_size=64, scale_bytes=4, says="bitsandbytes' 4-bit floats"),
        Scheme(
            name="bnb-int8",
            bits=8,
            group_size=0,
            scale_bytes=4,
            says="as LLM.int8: int8-dynamic, but activations from 6 on keep their precision",
            dynamic=True,
        ),
        Scheme(name="fp8", bits=8, group_size=0, scale_bytes=4, says="8-bit floats (e4m3), a scale a row"),
        Scheme(
            name="fp8-dynamic",
            bits=8,
            group_size=0,
            scale_bytes=4,
            says="8-bit floats (e4m3), activations too; for GPUs that compute in them",
            dynamic=True,
            needs="fp8",
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quant:
    """How the weights of a model are held.

    `scheme`: a name in SCHEMES, INT8 or STORED. `group_size`: values with one scale, in place of the scheme's own.
    `embeddings`: the scheme of token tables and output matrices, `convolutions` that of convolutions; None leaves them.
    `skip`: patterns of tensor names (as of file names: `*.down_proj.*`) that keep the compute precision. `overrides`:
    (pattern, scheme) pairs; the first that matches counts. Raises InvalidRequest.
    """

    scheme: str
    group_size: int | None = None
    embeddings: str | None = INT8
    convolutions: str | None = INT8
    skip: tuple[str, ...] = ()
    overrides: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        for name in (self.embeddings, self.convolutions):
            if name is not None:
                _known(name)
        scheme, size = scheme_named(_known(self.scheme)), self.group_size
        grouped = scheme is not None and (scheme.group_size > 0 or scheme.name == "int8-dynamic")
        if size is not None and (type(size) is not int or size < 8 or size & (size - 1) or not grouped):
            may = "must be a power of two from 8 on" if grouped else "cannot be chosen"
            raise InvalidRequest(f"group_size of {self.scheme} {may}, not {size!r:.40}")
        if not _is_tuple(self.skip) or not all(isinstance(each, str) for each in self.skip):
            raise InvalidRequest(f"skip must be a list of patterns of names, not {self.skip!r:.80}")
        if not _is_tuple(self.overrides) or not all(_is_pair(each) for each in self.overrides):
            raise InvalidRequest(f"overrides must be pairs of a pattern and a scheme, not {self.overrides!r:.80}")
        for _, name in self.overrides:
            _known(name)

    def check_device(self, name: str, features: Sequence[str]) -> None:
        """Raise InvalidRequest for a scheme that the device called `name`, with these `features`, cannot do."""
        for chosen in (self.scheme, self.embeddings, self.convolutions, *(scheme for _, scheme in self.overrides)):
            needs = SCHEMES[chosen].needs if chosen is not None and chosen in SCHEMES else ""
            if needs and needs not in features:
                raise InvalidRequest(
                    f"{chosen} needs a GPU that computes in {needs} (NVIDIA, from capability 8.9 on), which {name} "
                    f"does not; take {needs}, which computes in full precision, or int8-dynamic"
                )

    def on(self, device: str) -> Quant:
        """What it means on devices of the kind `device`, with a `scheme` that is not INT8: that is int8-dynamic on a
        CPU, int8-weight-only elsewhere. On a CPU int8-dynamic is in groups, token tables too, unless something else
        was said."""
        # For groups of other sizes there are no kernels, so the exact form is the quicker one.
        sizes = {"int8-dynamic": (None,), INT8: (None, _CPU_GROUP)}.get(self.scheme, ())
        if device == "cpu" and self.group_size in sizes:
            embeddings = _DYNAMIC if self.embeddings == INT8 else self.embeddings
            return replace(self, scheme=_DYNAMIC, group_size=_CPU_GROUP, embeddings=embeddings)
        return replace(self, scheme=_WEIGHT_ONLY) if self.scheme == INT8 else self

    def scheme_for(self, name: str, shape: Sequence[int]) -> Scheme | None:
        """The form of the tensor `name`, or None where it keeps the compute precision. `shape`: see Scheme."""
        role = role_of(name, shape)
        if not _is_weight(name, shape) or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.skip):
            return None
        chosen = next((scheme for pattern, scheme in self.overrides if fnmatch.fnmatchcase(name, pattern)), None)
        if chosen is None:
            if role == "other":
                return None
            by_role = {"linear": self.scheme, "embedding": self.embeddings, "convolution": self.convolutions}
            chosen = by_role[role] if role != "modulation" else self._modulation()
        if chosen is None or chosen == STORED:
            return None
        scheme = scheme_named(chosen)
        assert scheme is not None
        if self.group_size is not None and scheme is scheme_named(self.scheme):
            scheme = scheme.grouped(self.group_size)
        takes_dynamic = role == "linear" or (role == "embedding" and scheme.group_size)
        if scheme.dynamic and not takes_dynamic:
            scheme = SCHEMES[_WEIGHT_ONLY]
        if not scheme.fits(shape):  # rows that are no whole groups
            scheme = replace(SCHEMES[_WEIGHT_ONLY], group_size=0)
        return scheme if scheme.fits(shape) else None

    def _modulation(self) -> str:
        scheme = scheme_named(self.scheme)
        if scheme is None:
            return STORED
        return scheme.name if scheme.bits == 8 and not scheme.dynamic else _WEIGHT_ONLY

    def as_json(self) -> str | dict[str, Any]:
        """What `parse_quant` reads: the name alone where that says all."""
        if self == parse_quant(self.scheme):
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
        return parse_quant(_read(Path(value)) if value.endswith(".toml") else {"scheme": _known(value)})
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"quant must be a name or a table, not {value!r:.80}")
    unknown = sorted(map(str, set(value) - set(Quant.__slots__)))
    if unknown or "scheme" not in value:
        known = ", ".join(Quant.__slots__)
        wrong = f"; not {', '.join(unknown)}" if unknown else ""
        raise InvalidRequest(f"a quant table has a scheme, and may have {known}{wrong}")
    skip, overrides = value.get("skip") or (), value.get("overrides") or ()
    if isinstance(overrides, Mapping):
        overrides = tuple(overrides.items())
    others = None if value["scheme"] == STORED else INT8
    return Quant(
        scheme=value["scheme"],
        group_size=value.get("group_size"),
        embeddings=_or_none(value.get("embeddings", others)),
        convolutions=_or_none(value.get("convolutions", others)),
        skip=tuple(skip) if isinstance(skip, (list, tuple)) else skip,
        overrides=tuple(map(_paired, overrides)) if isinstance(overrides, (list, tuple)) else overrides,
    )


def scheme_named(name: str) -> Scheme | None:
    """What the name stands for where no device is known; None for STORED."""
    return SCHEMES.get(_WEIGHT_ONLY if name == INT8 else name)


def recorded(value: Any) -> Any:
    """What a record says (`Quant.as_json` in a recipe, in figures of quality), in the names of today: INT8 was
    int8-weight-only on every device when records still held it. Anything else is left."""
    if isinstance(value, Mapping):
        return {**value, "scheme": _WEIGHT_ONLY} if value.get("scheme") == INT8 else value
    return _WEIGHT_ONLY if value == INT8 else value


def role_of(name: str, shape: Sequence[int]) -> Role:
    """What a tensor is, judged by its name (in transformers', diffusers' or GGUF's manner) and shape."""
    if not _is_weight(name, shape):
        return "other"
    if len(shape) == 3:
        return "linear" if prod(shape[1:]) >= _MIN_VALUES else "other"
    if prod(shape) < _MIN_VALUES or _LOSSLESS.search(name):
        return "other"
    if len(shape) == 2:
        if _EMBEDDING.search(name):
            return "embedding"
        if _MODULATION.search(name):
            return "modulation"
    if _EXACT.search(name) and not _INNER_OUTPUT.search(name):
        return "other"
    return "linear" if len(shape) == 2 else "convolution"


def stack_shape(shape: Sequence[int], *, turned: bool) -> tuple[int, ...]:
    """(experts, out, in) of a tensor's shape. `turned`: stacks are (experts, in, out)."""
    return (shape[0], shape[2], shape[1]) if turned and len(shape) == 3 else tuple(shape)


def _is_weight(name: str, shape: Sequence[int]) -> bool:
    """Whether it is of a shape that a Scheme can have: no norm, bias, or kernel of another dimension."""
    return _STACK.search(name) is not None if len(shape) == 3 else len(shape) in (2, 4) and name.endswith("weight")


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows that have scales of their own, and values of each."""
    return (shape[0] * shape[1], shape[2]) if len(shape) == 3 else (shape[0], prod(shape[1:]))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read as a table of a quantization: {error}") from error


def _known(name: Any) -> str:
    if not isinstance(name, str) or name not in (INT8, *SCHEMES, STORED):
        raise InvalidRequest(f"quant must be one of none, {INT8}, {', '.join(SCHEMES)}, {STORED}, not {name!r:.80}")
    return name


def _or_none(name: Any) -> Any:
    return None if name == "none" else name


def _is_tuple(value: object) -> bool:
    return isinstance(value, tuple)


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)


def _paired(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
