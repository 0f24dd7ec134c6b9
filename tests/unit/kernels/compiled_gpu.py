"""Compiles the kernels for GPUs for those that are named, which need not be here; see `test_gpu.py`."""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kamado.kernels.gpu import attention, layers, products

INTEGERS = frozenset(
    {"query_row", "query_head", "table_row", "key_row", "value_row", "gate_row", "up_row", "size", "columns"}
    | {"out_features", "x_row", "rows"}
)
FLOATS = frozenset({"scale", "softcap", "eps"})
ATTEND = {"PAGE": 16, "SHARED": 8, "GROUPS": 4, "ROWS": 16, "DIM": 128, "DIM_UP": 128, "WIDTH": 128, "WIDTH_UP": 128}
JOIN = {"HEADS": 32, "SPLITS": 8, "SPLITS_UP": 8, "WIDTH": 128, "WIDTH_UP": 128}
TURN = {"HEADS": 32, "SHARED": 8, "DIM": 128, "HALF_UP": 64, "DIM_UP": 128}
KERNELS: list[tuple[Any, dict[str, Any], dict[str, str]]] = [
    (attention._attend, ATTEND | {"BLOCK": 32, "SPLITS": 1, "WINDOW": 4096, "CAPPED": True, "JOINS": False}, {}),
    (
        attention._attend,
        ATTEND | {"BLOCK": 32, "SPLITS": 8, "WINDOW": 0, "CAPPED": False, "JOINS": True},
        {"parts": "*fp32", "sums": "*fp32"},
    ),
    (attention._join, JOIN | {"HAS_SINKS": True}, {"parts": "*fp32", "sums": "*fp32"}),
    (layers._add_norm, {"ADDS": True, "BLOCK": 4096}, {}),
    (layers._turn_and_write, TURN | {"NORMED": True}, {}),
    (layers._silu_times, {"BLOCK": 1024}, {}),
]
for form, number, group in (("*i8", 0, 32), ("*u8", 1, 32), ("*u8", 2, 0)):
    types = {"values": form, "scale": "*fp32" if group == 0 else "*fp16"}
    shared = {"GROUP": group, "FORM": number, "BIASED": True, "BLOCK": 16}
    KERNELS.append((products._one_row, shared | {"BLOCK": 4, "WIDE": 1024}, types))
    KERNELS.append((products._few_rows, shared | {"ROWS": 64, "WIDE": 128}, types))


def kind(name: str, numbers: str, named: dict[str, str]) -> str:
    """Type of an argument, as Triton says it."""
    if name in named:
        return named[name]
    if name in INTEGERS or name in FLOATS:
        return "i32" if name in INTEGERS else "fp32"
    return "*i64" if name in ("tables", "lengths", "slots") else numbers


def main() -> None:
    """The arguments are compute capabilities, like 90."""
    for capability in map(int, sys.argv[1:]):
        for kernel, fixed, named in KERNELS:
            if capability < 89 and fixed.get("FORM") == 2:
                continue
            names = kernel.arg_names
            types = {name: "constexpr" if name in fixed else kind(name, "*bf16", named) for name in names}
            constants = {(names.index(name),): value for name, value in fixed.items()}
            source = ASTSource(fn=kernel, signature=types, constexprs=constants)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            print(kernel.__name__, capability, len(made.asm["cubin"]))


if __name__ == "__main__":
    main()
