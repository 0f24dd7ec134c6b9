"""Files of strangers and files to be written: what every kind of media asks of them."""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InvalidRequest
from ..units import format_bytes

_SHOWN_CHARACTERS = 120


def library(name: str, what: str, install: str) -> Any:
    """A library that is imported only where it is used. Raises InvalidRequest that says how to `install` it, where
    `what` ("an MP4 file", "writing sound") cannot be had without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidRequest(
            f"{what} needs the Python package {name}, which cannot be imported ({error}); install it: {install}"
        ) from error


def shown(name: str | os.PathLike[str]) -> str:
    """A path, or a stranger's text, for one line of an error."""
    text = os.fspath(name)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def check_target(path: str | os.PathLike[str], suffixes: Collection[str], what: str) -> str:
    """The suffix, in lower case, of a path to save to: one of `suffixes`. `what` ("picture") is for the error.

    Raises InvalidRequest for another suffix, a missing folder, or a folder in its place: worth asking before anything
    is made.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise InvalidRequest(f"{shown(path)} is no {what} file that can be written; use {', '.join(suffixes)}")
    try:
        if path.is_dir():
            raise InvalidRequest(f"{shown(path)} is a folder; name a file")
        if not path.parent.is_dir():
            raise InvalidRequest(f"the folder {shown(path.parent)} does not exist; make it first")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{shown(path)} cannot be written: {reason}") from error
    return suffix


@contextmanager
def opened_file(path: str | os.PathLike[str], kind: str, limit: int) -> Iterator[BinaryIO]:
    """An ordinary file of at most `limit` bytes, to read. `kind` ("pictures") is for the error. Raises InvalidRequest;
    errors of the body are left alone."""
    name = shown(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidRequest(f"{name} is no file")
        if status.st_size > limit:
            raise InvalidRequest(
                f"{name} has {format_bytes(status.st_size)}; {kind} up to {format_bytes(limit)} are read"
            )
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; errors of the body are not errors of opening
    except FileNotFoundError as error:
        raise InvalidRequest(f"{name} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with file:
        yield file


@contextmanager
def opened_source(source: Any, what: str, kind: str, limit: int) -> Iterator[tuple[BinaryIO, str] | None]:
    """(what is in it, its name for errors) of a path, the bytes of a file, or a `data:` URL; None for anything else.

    `what` ("picture") and `kind` ("pictures") are for errors. Raises InvalidRequest. Nothing is ever fetched.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) > limit:
            size = format_bytes(len(source))
            raise InvalidRequest(f"the {what} has {size}; {kind} up to {format_bytes(limit)} are read")
        yield io.BytesIO(source), f"the {what} of {format_bytes(len(source))}"
    elif isinstance(source, str) and source[:5].lower() == "data:":
        yield io.BytesIO(_data_url(source, what, limit)), f"the {what} in the data URL"
    elif isinstance(source, str) and "://" in source[:16]:
        raise InvalidRequest(f"{shown(source)} is an address, and no {what} is ever fetched; save it and give its path")
    elif isinstance(source, (str, os.PathLike)):
        with opened_file(source, kind, limit) as file:
            yield file, shown(source)
    else:
        yield None


def _data_url(text: str, what: str, limit: int) -> bytes:
    header, comma, body = text.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        example = {"picture": "image/png", "sound": "audio/wav", "video": "video/mp4"}.get(what, "")
        raise InvalidRequest(f"{shown(text)} is no data URL of a {what}; it must start like data:{example};base64,")
    if len(body) > limit // 3 * 4:
        raise InvalidRequest(f"the data URL is longer than that of {format_bytes(limit)}")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"the data URL holds no valid base64: {error}") from error
