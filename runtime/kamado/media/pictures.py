"""Picture files: saved with their recipe, read from strangers, and 8-bit pictures out of arrays."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import InvalidRequest, KamadoError
from ..files import replacing
from .embed import embedded_json, metadata
from .opening import check_target, opened_file, opened_source
from .opening import shown as name
from .recipe import MAX_RECIPE_BYTES, parse_recipe
from .tags import MAX_TAG_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PIXELS = 1 << 26
"""Of a picture that is read. 8192 x 8192."""
MAX_FILE_BYTES = 1 << 29
"""Of a picture file that is read: MAX_PIXELS of 8 bytes."""
READ_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
WRITE_FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
_SLACK = 1e-3
"""How far a float picture may leave [0, 1] before it is taken for one of another range."""
_TURNS = {
    # EXIF orientation: what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_picture_path(path: str | os.PathLike[str]) -> str:
    """`PNG`, `WEBP` or `JPEG`, by the suffix of a path to save to. Raises InvalidRequest for another suffix, a missing
    folder, or a folder in its place: worth asking before the picture is made."""
    return WRITE_FORMATS[check_target(path, WRITE_FORMATS, "picture")]


def save_picture(
    image: Image.Image,
    path: str | os.PathLike[str],
    recipe: Mapping[str, Any] | None,
    *,
    quality: int = 95,
    lossless: bool = True,
) -> None:
    """Write `image` to `path`, whole or not at all, with the recipe inside; a file that is there is replaced.

    `quality` (1 to 100) is that of JPEG, and of WebP when `lossless` is False; PNG is always exact. Raises
    InvalidRequest for a path that cannot be written (see `check_picture_path`), for what the format cannot hold (JPEG:
    transparency, large recipes), and OSError when the disk fails.
    """
    file_format = check_picture_path(path)
    if not 1 <= quality <= 100:
        raise InvalidRequest(f"quality must be from 1 to 100, not {quality!r}")
    if image.mode.startswith(("I", "F")) and file_format != "PNG":
        raise InvalidRequest(f"{file_format} holds 8 bits a channel, and the picture has more; save it as PNG")
    how: dict[str, Any] = {} if recipe is None else metadata(recipe, file_format)
    if file_format == "JPEG":
        how |= {"quality": quality, "subsampling": "4:4:4", "optimize": True}
        image = _opaque(image, path)
    elif file_format == "WEBP":
        # A lossless file's quality is the effort spent on its size; `exact` keeps colours that cannot be seen.
        how |= {"lossless": True, "exact": True, "quality": 80} if lossless else {"quality": quality}
    encoded = io.BytesIO()
    try:
        image.save(encoded, file_format, **how)
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"a {image.width} x {image.height} picture of mode {image.mode} cannot be written as {file_format}: {error}"
        ) from error
    try:
        with replacing(Path(path)) as file:
            file.write(encoded.getbuffer())
    except (PermissionError, ValueError) as error:  # ValueError: a NUL in the path
        raise InvalidRequest(f"{name(path)} cannot be written: {error}") from error


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe in a picture file. What it says is a stranger's word. No pixels are decoded, unless a PNG file has no
    recipe before its pixels. Raises InvalidRequest."""
    shown = name(path)
    with opened_file(path, "pictures", MAX_FILE_BYTES) as file, _opened(file, shown) as image:
        text = embedded_json(image.info)
        if text is None and image.format == "PNG":
            image.load()  # reads the chunks behind the pixels too
            text = embedded_json(image.info)
    if text is None:
        raise InvalidRequest(f"{shown} carries no recipe")
    limit = MAX_TAG_BYTES if image.format == "GIF" else MAX_RECIPE_BYTES
    return parse_recipe(text, what=f"the recipe in {shown}", limit=limit)


def open_picture(source: Any) -> Image.Image:
    """A picture from a PIL image, a path, the bytes of a file, a `data:` URL, or an array `[height, width]` or
    `[height, width, 1 | 3 | 4]` (uint8, bool, or float in [0, 1]).

    It is upright, in mode `L`, `RGB` or `RGBA`, the first of several frames, the caller's own, and carries nothing else
    of the file. Raises InvalidRequest, also for more than MAX_PIXELS. Nothing is ever fetched from a network.
    """
    if isinstance(source, Image.Image):
        with _errors("the picture"):
            return _upright(source, "the picture")
    with opened_source(source, "picture", "pictures", MAX_FILE_BYTES) as opened:
        if opened is not None:
            return _decoded(*opened)
    import numpy as np

    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise InvalidRequest(
        f"a picture must be a PIL image, a path, bytes, a data URL or an array, not {type(source).__name__}"
    )


def open_stored(path: str | os.PathLike[str]) -> Image.Image:
    """As `open_picture`, but a grey picture of 16 bits keeps them (mode `I;16`). Raises InvalidRequest."""
    shown = name(path)
    with opened_file(path, "pictures", MAX_FILE_BYTES) as file, _opened(file, shown) as image:
        if not image.mode.startswith("I;16"):
            return _upright(image, shown)
        image.load()
        return image.copy()


def flattened(image: Image.Image, mode: str, ground: str = "white") -> Image.Image:
    """A picture of `open_picture` in mode `L`, `RGB` or `RGBA`: what is transparent lies over the colour `ground`,
    unless `mode` has transparency too. The same picture where its mode is the one."""
    if image.mode == mode:
        return image
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert(mode)


def pictures_from_float(array: NDArray[Any]) -> list[Image.Image]:
    """8-bit pictures from floats `[pictures, height, width, 1 | 3 | 4]` in [0, 1], rounded as diffusers' `numpy_to_pil`
    does; what is a little outside of the range is brought into it. Raises ValueError for other shapes and for NaN."""
    import numpy as np

    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"pictures must be [pictures, height, width, 1, 3 or 4], not {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError("the pictures hold NaN or infinity")
    wide = array.astype(np.float32) if array.dtype == np.float16 else array
    eight = (wide.clip(0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(picture[..., 0] if array.shape[-1] == 1 else picture) for picture in eight]


def picture_digest(image: Image.Image) -> str:
    """SHA-256 of mode, size and pixels as 64 hexadecimal digits: the same however the picture was stored."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


@contextmanager
def _errors(shown: str) -> Iterator[None]:
    try:
        yield
    except KamadoError:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidRequest(f"{shown} has too many pixels; pictures up to {MAX_PIXELS} pixels are read") from error
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"{shown} is no picture of a kind that is read: {', '.join(READ_FORMATS)}") from error
    except Exception as error:  # whatever decoders make of damaged files
        reason = f"{type(error).__name__}: {error}"[:160]
        raise InvalidRequest(f"{shown} is damaged, or no picture: {reason}") from error


@contextmanager
def _opened(file: BinaryIO, shown: str) -> Iterator[Image.Image]:
    """The picture with its header read. Errors while it is used become InvalidRequest too."""
    with _errors(shown), Image.open(file, formats=READ_FORMATS) as image:
        _check_size(image.size, shown)
        yield image


def _decoded(file: BinaryIO, shown: str) -> Image.Image:
    with _opened(file, shown) as image:
        return _upright(image, shown)


def _check_size(size: tuple[int, int], shown: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise InvalidRequest(f"{shown} is {width} x {height}; pictures up to {MAX_PIXELS} pixels are read")
    if width * height == 0:
        raise InvalidRequest(f"{shown} has no pixels")


def _upright(image: Image.Image, shown: str) -> Image.Image:
    _check_size(image.size, shown)
    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    plain = _plain(image if turn is None else image.transpose(turn), shown)
    plain.info.clear()
    return plain


def _plain(image: Image.Image, shown: str) -> Image.Image:
    """A copy in mode L, RGB or RGBA."""
    if image.mode.startswith("I;16"):
        import numpy as np

        return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InvalidRequest(f"{shown} has 32-bit pixels, whose range nobody knows; save it with 8 or 16 bits")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _opaque(image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")
    image = image.convert("RGBA")
    low, _ = image.getchannel("A").getextrema()
    if low != 255:
        raise InvalidRequest(f"{path}: JPEG cannot hold the picture's transparency; save it as PNG or WebP")
    return image.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    import numpy as np

    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4))):
        raise InvalidRequest(
            f"a picture array must be [height, width] or [height, width, 1, 3 or 4], not {array.shape}"
        )
    _check_size((array.shape[1], array.shape[0]), "the picture array")
    deep = array[..., None] if array.ndim == 2 else array
    if array.dtype.kind == "f":
        if not ((deep >= -_SLACK) & (deep <= 1 + _SLACK)).all():  # also False for NaN
            raise InvalidRequest(f"a float picture must lie in [0, 1]; this one has {deep.min():g} to {deep.max():g}")
        return pictures_from_float(deep[None])[0]
    if array.dtype != np.uint8 and array.dtype != np.bool_:
        raise InvalidRequest(f"a picture array must be uint8, bool or float in [0, 1], not {array.dtype}")
    eight = deep.astype(np.uint8) * np.uint8(255 if array.dtype == np.bool_ else 1)
    return Image.fromarray(eight[..., 0] if deep.shape[-1] == 1 else eight)
