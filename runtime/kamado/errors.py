"""Every error Kamado raises on purpose.

KamadoError
├── ModelNotFound            no such model, or nothing there that is one        exit status 4
│   └── HubUnreachable       the network is needed and cannot be had            exit status 4
├── UnsupportedCheckpoint    a checkpoint, but not one Kamado can run           exit status 4
├── UnsafeCheckpoint         would run code, is a pickle, or leaves its folder  exit status 5
├── DoesNotFit               needs more memory than there is                    exit status 3
├── InvalidRequest           a value that cannot be used                        exit status 2
│   └── ContextOverflow      the prompt is longer than the model's context      exit status 2
├── Cancelled                the caller, or a deadline, ended the request       exit status 130
│   └── DeadlineExceeded                                                        exit status 1
└── GenerationFailed         the request failed while it ran                    exit status 1
"""

from __future__ import annotations

from collections.abc import Sequence


class KamadoError(Exception):
    """Base of all errors that Kamado raises on purpose. The message says what, which value, and what to do."""

    exit_status = 1


class ModelNotFound(KamadoError):
    """The reference names nothing that can be found, here or on the hub."""

    exit_status = 4


class HubUnreachable(ModelNotFound):
    """The model is not here and the network that could bring it cannot be reached."""


class UnsupportedCheckpoint(KamadoError):
    """The files are there, but are damaged, incomplete or of a kind that no installed family can run."""

    exit_status = 4


class UnsafeCheckpoint(KamadoError):
    """Loading would unpickle, run the checkpoint's own code, or touch files outside its folder."""

    exit_status = 5


class DoesNotFit(KamadoError):
    """The plan needs more memory than the budget holds.

    Attributes: `needed_bytes`, `available_bytes`, `options`: what would make it fit, as sentences; and `place`: of
    which memory there is too little, as `cpu`, `cuda:0`, `ram` (beside a GPU's own) or `disk`; "" where none was said.
    """

    exit_status = 3

    def __init__(
        self, message: str, *, needed_bytes: int, available_bytes: int, options: Sequence[str] = (), place: str = ""
    ) -> None:
        super().__init__(message)
        self.place = place
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.options = tuple(options)


class InvalidRequest(KamadoError):
    """A value in the request is impossible or is one that this model cannot use."""

    exit_status = 2


class ContextOverflow(InvalidRequest):
    """Prompt and requested tokens are more than the model's context. Carries `prompt_tokens`, `context_tokens`."""

    def __init__(self, message: str, *, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class Cancelled(KamadoError):
    """The request was cancelled before it finished."""

    exit_status = 130


class DeadlineExceeded(Cancelled):
    """The request's deadline passed before it finished."""

    exit_status = 1


class GenerationFailed(KamadoError):
    """The request failed while it ran; other requests are untouched. The cause is in `__cause__`."""
