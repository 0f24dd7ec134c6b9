"""Denoisers compiled region by region: one program for all blocks of a class, by torch's compiler, for GPUs.

A denoiser is mostly some dozens of equal blocks, of classes that diffusers names. Compiling one of them takes seconds,
the whole model minutes, and what is gained lies within blocks. The blocks themselves stay as they are: only during a
forward of this lane do they run the program, so adapters, hooks and other users of the modules see nothing.
"""

from __future__ import annotations

import copy
import time
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _get_current_dispatch_mode

from kamado.memory.shortage import is_shortage
from kamado.weights.quantized.floats import DynamicFloats, can_scale_rows, dynamic_product
from kamado.weights.quantized.tensor import is_quantized

from ..environment import environment_kept

MAX_FORMS = 6
"""Sizes of pictures and batches that a class of blocks is compiled for, each for itself; others run as ever. torch
gives up beyond eight."""
MAX_ERROR = {torch.float32: 1e-3}
MAX_ERROR_HALF = 3e-2
"""Of a block's results, relative."""
BACKEND = "inductor"


class CompiledBlocks:
    """The repeated blocks of one model. Not thread safe: the loop's thread owns it."""

    def __init__(self, model: nn.Module) -> None:
        # What diffusers says can be compiled; what it says must not be torn apart, where it says nothing of that.
        names = getattr(model, "_repeated_blocks", None) or getattr(model, "_no_split_modules", None) or ()
        blocks = [block for block in model.modules() if type(block).__name__ in names]
        self._classes = {kind: _Class(kind) for kind in map(type, blocks)}
        self._regions = [(block, self._classes[type(block)].region(block)) for block in blocks if _is_known(block)]

    def __len__(self) -> int:
        return len(self._regions)

    @property
    def seconds(self) -> float:
        """What compiling took, in all."""
        return sum(each.seconds for each in self._classes.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Why blocks of a class are not compiled any more."""
        return tuple(each.note for each in self._classes.values() if each.note)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While inside, the blocks run their program, but for those that somebody has put something else into."""
        changed = [(block, region) for block, region in self._regions if "forward" not in vars(block)]
        for block, region in changed:
            vars(block)["forward"] = region
        try:
            yield
        finally:
            for block, _ in changed:
                del vars(block)["forward"]


class _Class:
    """What is compiled of the blocks of one class."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self.note = ""
        self.seconds = 0.0
        self._forms: set[Any] = set()
        # torch keeps what it compiled with the code, and a limit of it: no other model is to use it up.
        code = _call.__code__.replace(co_name=f"call_{kind.__name__}_{id(self):x}")
        self._compiled: Callable[..., Any] = types.FunctionType(code, globals())
        try:
            with environment_kept():  # the compiler is imported here
                self._compiled = torch.compile(self._compiled, backend=BACKEND, dynamic=False)
        except RuntimeError as error:  # not for this Python, or this system
            self.note = _said(error)

    def region(self, block: nn.Module) -> Callable[..., Any]:
        """What `block` runs in place of its forward."""
        usual = types.MethodType(type(block).forward, block)
        inside = _without_subclasses(block)

        def run(*args: Any, **kwargs: Any) -> Any:
            # A mode that watches operations (measuring) is to see them.
            if self.note or _get_current_dispatch_mode() is not None:
                return usual(*args, **kwargs)
            form = _form((args, kwargs))
            if form not in self._forms:
                return self._first(form, inside, usual, args, kwargs)
            try:
                return self._compiled(inside, *args, **kwargs)
            except Exception as error:  # a size that is known may still be compiled anew, for another block
                if is_shortage(error):
                    raise
                self.note = _said(error)
                return usual(*args, **kwargs)

        return run

    def _first(self, form: Any, inside: nn.Module, usual: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The results without the program; beside that it is made, and compared."""
        wanted = usual(*args, **kwargs)
        if len(self._forms) >= MAX_FORMS:
            return wanted
        begin = time.perf_counter()
        try:
            with environment_kept():  # the compiler tells itself things through it
                found = self._compiled(inside, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever compilers raise; blocks run as ever
            self.note = _said(error)
            return wanted
        if not _alike(found, wanted):
            self.note = "compiled blocks give other results"
            return wanted
        self.seconds += time.perf_counter() - begin
        self._forms.add(form)
        return wanted


class _Float8Linear(nn.Module):
    """A layer with weights and activations in 8-bit floats, of plain tensors."""

    def __init__(self, packed: DynamicFloats, bias: Tensor | None) -> None:
        super().__init__()
        self.values, self.scale = packed.parts["values"], packed.parts["scale"]
        self.bias = bias
        self.in_floats = packed.computes_in_floats(packed.device)
        self.by_rows = can_scale_rows(packed.device)

    def forward(self, x: Tensor) -> Tensor:
        """As `DynamicFloats.linear`."""
        return dynamic_product(x, self.values, self.scale, self.bias, in_floats=self.in_floats, by_rows=self.by_rows)


def running_around(
    around: Callable[[Any], AbstractContextManager[None]],
    running: Callable[[], AbstractContextManager[None]],
    plain: Callable[[Any], bool],
) -> Callable[[Any], AbstractContextManager[None]]:
    """`around` of a lane, inside of `running` too where the setting is `plain`: no adapter counts."""

    @contextmanager
    def both(setting: Any) -> Iterator[None]:
        with around(setting):
            if not plain(setting):
                yield
                return
            with running():
                yield

    return both


def in_channels_last(model: nn.Module) -> None:
    """Lay out the filters of convolutions as GPUs read them in half precision; pictures follow. Values are the same."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Conv2d) and weight is not None and not is_quantized(weight):
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _said(error: Exception) -> str:
    """Its first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _call(block: Any, *args: Any, **kwargs: Any) -> Any:
    return type(block).forward(block, *args, **kwargs)


def _is_known(block: nn.Module) -> bool:
    """Whether torch's compiler can look into all of its weights."""
    return all(
        isinstance(module, nn.Linear) and isinstance(weight.packed, DynamicFloats) and not weight.turned
        for module in block.modules()
        for weight in map(_as_any, module._parameters.values())
        if is_quantized(weight)
    )


def _without_subclasses(module: nn.Module) -> nn.Module:
    """The module; where it has quantized layers, one beside it, over the same tensors, with layers of plain ones."""
    if not any(is_quantized(parameter) for parameter in module.parameters()):
        return module
    weight: Any = module._parameters.get("weight")
    if isinstance(module, nn.Linear) and is_quantized(weight):
        return _Float8Linear(weight.packed, module.bias)
    made = copy.copy(module)
    made._modules = {
        name: None if child is None else _without_subclasses(child) for name, child in module._modules.items()
    }
    return made


def _form(tree: Any) -> Any:
    """What a program is made for: sizes and kinds of tensors, and everything else that may be compared."""
    leaves, structure = pytree.tree_flatten(tree)
    said = tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf if _is_plain(leaf) else None)
        for leaf in leaves
    )
    return said, str(structure)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _alike(found: Any, wanted: Any) -> bool:
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True)
    return all(_close(one, other) for one, other in pairs if isinstance(other, Tensor))


def _close(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if not wanted.is_floating_point():
        return True
    exact = wanted.float()
    error = (found.float() - exact).norm() / exact.norm().clamp(min=1e-6)
    return bool(error <= MAX_ERROR.get(wanted.dtype, MAX_ERROR_HALF))


def _as_any(weight: Any) -> Any:
    return weight
