"""From tensors on disk to a transformers model in memory, without a second copy.

    model_class(config) on the meta device -> transformers' own loader asks for one tensor after the other
                                           -> each is read straight into its own memory, converted, put in place

transformers applies its own weight conversions on the way (fused experts, renamed keys, tied weights), so a checkpoint
of any age loads as `from_pretrained(folder)` would load it, but nothing is looked up on disk or on a hub.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kamado.errors import UnsupportedCheckpoint
from kamado.memory.shortage import is_shortage
from kamado.weights.quantized.tensor import held_bytes
from kamado.weights.stream import ReadableTensor, ReadProgress
from kamado.weights.turns import give_back

from .own_draws import OwnDraws

MAX_NAMED = 5
"""Keys that an error message names."""

RAISED_BY_MODELS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What model classes raise for sizes that contradict each other."""
_TALKATIVE = (
    "bitsandbytes.backends.cpu.ops",
    "transformers.configuration_utils",
    "transformers.core_model_loading",
    "transformers.dynamic_module_utils",
    "transformers.modeling_utils",
    "transformers.utils.import_utils",
)
"""Loggers that report what is no concern of whoever loads a model."""

# transformers' switches for its progress bar, and torch's default dtype during construction, are process-wide.
_LOADING = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What was loaded."""

    tensors: int
    stored_bytes: int
    """Bytes as they lie in the files."""
    weight_bytes: int
    """Bytes of parameters and buffers in memory; tied ones count once."""


class _Reads:
    """The reads of one load, by the threads of transformers' loader, which outlive a load that fails."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        """In the order in which they happened."""
        self._running = 0
        self._over = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Around each read. Remembers its failure, which transformers would bury."""
        with self._changed:
            if self._over:
                raise RuntimeError("the load that wanted this tensor has ended")
            self._running += 1
        try:
            yield
        except Exception as error:
            self.failures.append(error)
            raise
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """No read begins any more; waits for those that run, whose memory nobody counts after the load."""
        with self._changed:
            self._over = True
            self._changed.wait_for(lambda: self._running == 0)


class _Watched:
    """Hands out a tensor to transformers' loader."""

    def __init__(self, tensor: ReadableTensor, reads: _Reads, progress: ReadProgress | None) -> None:
        self._tensor = tensor
        self._reads = reads
        self._progress = progress

    def __getitem__(self, index: object) -> torch.Tensor:
        with self._reads.one():
            result = self._tensor[index]
        if self._progress is not None:
            self._progress.add(self._tensor.nbytes)
        return result

    def __getattr__(self, name: str) -> Any:
        # `shape`, `dtype`, `get_shape` and `get_dtype`, where the tensor has them.
        return getattr(self._tensor, name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no load report from transformers in this thread, while inside; other threads keep theirs."""
    from transformers.utils import logging as transformers_logging

    own_thread = threading.get_ident()

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() == own_thread:
            return args[0] if args else kwargs.get("iterable")
        return previous(factory, args, kwargs) if previous is not None else factory(*args, **kwargs)

    class OtherThreads(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return record.thread != own_thread

    keep = OtherThreads()
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    previous = transformers_logging.set_tqdm_hook(hook)
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
        transformers_logging.set_tqdm_hook(previous)


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - MAX_NAMED} more" if len(ordered) > MAX_NAMED else ""
    return ", ".join(ordered[:MAX_NAMED]) + more


def _check(info: Mapping[str, Any], class_name: str) -> None:
    """Raise UnsupportedCheckpoint unless the model's weights and the checkpoint's are the same."""
    problems: list[str] = []
    if mismatched := info["mismatched_keys"]:
        shapes = [f"{name} ({list(stored)}, the model has {list(wanted)})" for name, stored, wanted in mismatched]
        problems.append(f"{len(shapes)} of another shape: {_listed(shapes)}")
    if missing := info["missing_keys"]:
        problems.append(f"{len(missing)} missing: {_listed(missing)}")
    if unexpected := info["unexpected_keys"]:
        problems.append(f"{len(unexpected)} that the model has no place for: {_listed(unexpected)}")
    if problems:
        raise UnsupportedCheckpoint(f"the weights do not fit {class_name}: {'; '.join(problems)}")


@contextlib.contextmanager
def library_call() -> Iterator[None]:
    """While inside, one thread at a time: the library may neither print nor spend the host program's random numbers."""
    with _LOADING, _quiet(), OwnDraws():
        yield


def _from_pretrained(
    model_class: Any, state_dict: Mapping[str, Any], arguments: dict[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """`from_pretrained` in the present thread."""
    with library_call():
        return model_class.from_pretrained(  # type: ignore[no-any-return]
            None,
            state_dict=dict(state_dict),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # not ignored: they are judged with the missing ones
            local_files_only=True,
            use_kernels=False,
            **arguments,
        )


def materialize(
    model_class: Any,
    config: Any,
    tensors: Mapping[str, ReadableTensor],
    *,
    dtype: torch.dtype,
    device: str,
    attn_implementation: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, LoadReport]:
    """Build `model_class(config)` and load `tensors` into it, in `dtype`, on `device` (`cpu`, `cuda:0`).

    The model comes back in evaluation mode, no parameter requires a gradient. Floating-point weights are in `dtype`,
    but for those that the class keeps in float32. `config` is not changed. Peak memory is the weights and a few of the
    largest tensors. `progress(done_bytes, total_bytes)` counts stored bytes and is called from reading threads.

    Loads run one at a time. During one, torch's default dtype and transformers' progress-bar hook are changed, and put
    back before this returns, also when it fails; the random state of torch is untouched.

    Raises UnsupportedCheckpoint for tensors that are missing, have no place in the model or another shape there, and
    for files that cannot be read.
    """
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    meter = ReadProgress(total_bytes, progress) if progress is not None else None
    reads = _Reads()
    watched = {name: _Watched(tensor, reads, meter) for name, tensor in tensors.items()}
    arguments: dict[str, Any] = {"config": config, "dtype": dtype}
    if device != "cpu":
        arguments["device_map"] = {"": device}
    if attn_implementation is not None:
        arguments["attn_implementation"] = attn_implementation
    try:
        model, info = _from_pretrained(model_class, watched, arguments)
    except RAISED_BY_MODELS as error:
        if reads.failures:
            raise reads.failures[0] from None
        if is_shortage(error):
            raise
        last_line = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise UnsupportedCheckpoint(
            f"{model_class.__name__} cannot be loaded from this checkpoint: {last_line[0]}"
        ) from error
    finally:
        reads.end()
    if reads.failures:
        raise reads.failures[0]
    _check(info, model_class.__name__)
    give_back()  # what transformers put together left free
    model.eval()
    model.requires_grad_(False)
    held = held_bytes((*model.parameters(), *model.buffers()))
    return model, LoadReport(tensors=len(tensors), stored_bytes=total_bytes, weight_bytes=held)
