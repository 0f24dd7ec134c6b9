"""Where a recipe lies in a picture file.

| file | the recipe as JSON | the `parameters` text for other programs |
|---|---|---|
| PNG | iTXt chunk `kamado` | text chunk `parameters` |
| GIF (animations) | comment, see `tags.py` | none |
| WebP, JPEG | XMP property `recipe` of the namespace `XMP_NAMESPACE` | EXIF `UserComment`, UTF-16 after `UNICODE` |

XMP keeps the caption fields that galleries show (`ImageDescription`, JPEG comments) free, and programs that do not know
a namespace are bound to carry it along. The EXIF block is big-endian, because readers differ in whether its byte order
or the usual one, big-endian, is that of the UTF-16 text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from ..errors import InvalidRequest
from ..units import format_bytes
from .parameters import parameters_text
from .recipe import recipe_json
from .tags import untagged

XMP_NAMESPACE = "urn:kamado:recipe#"
MAX_XMP_BYTES = 4 << 20
MAX_JPEG_EXIF_BYTES = 65533
MAX_JPEG_XMP_BYTES = MAX_JPEG_EXIF_BYTES - len(b"http://ns.adobe.com/xap/1.0/\0")
_CHUNK = "kamado"
_TAG = f"{{{XMP_NAMESPACE}}}recipe"
_DECLARATION = re.compile(r"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about="" xmlns:kamado="{XMP_NAMESPACE}"><kamado:recipe>%s</kamado:recipe></rdf:Description>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def metadata(recipe: Mapping[str, Any], file_format: str) -> dict[str, Any]:
    """Arguments of Pillow's `save` that put the recipe into a `PNG`, `WEBP` or `JPEG` file. Raises InvalidRequest for a
    recipe that has no JSON form, or that is too large for the format."""
    text, parameters = recipe_json(recipe), parameters_text(recipe)
    if file_format == "PNG":
        info = PngInfo()
        info.add_itxt(_CHUNK, text)
        info.add_text("parameters", parameters)
        return {"pnginfo": info}
    exif, xmp = _exif(parameters), (_XMP % escape(text)).encode()
    is_jpeg = file_format == "JPEG"
    for part, limit in ((exif, MAX_JPEG_EXIF_BYTES if is_jpeg else None), (xmp, _most_xmp(is_jpeg))):
        if limit is not None and len(part) > limit:
            raise InvalidRequest(
                f"a {file_format} file holds at most {format_bytes(limit)} of such a recipe, and this one takes "
                f"{format_bytes(len(part))}; save it as PNG"
            )
    return {"exif": exif, "xmp": xmp}


def embedded_json(info: Mapping[Any, Any]) -> str | None:
    """The JSON text of the recipe in what Pillow calls `info`; None if there is none. Nothing of it is checked yet."""
    chunk = info.get(_CHUNK)
    if isinstance(chunk, str):
        return chunk
    xmp = info.get("xmp")
    if isinstance(xmp, bytes) and len(xmp) <= MAX_XMP_BYTES:
        return _from_xmp(xmp)
    comment = info.get("comment")
    return untagged(comment.decode("ascii", "replace")) if isinstance(comment, bytes) else None


def _most_xmp(is_jpeg: bool) -> int:
    return MAX_JPEG_XMP_BYTES if is_jpeg else MAX_XMP_BYTES


def _exif(parameters: str) -> bytes:
    exif = Image.Exif()
    exif.endian = ">"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + parameters.encode("utf-16-be")
    return exif.tobytes()


def _from_xmp(data: bytes) -> str | None:
    """The property, as an element or, as other programs may write it anew, as an attribute."""
    try:
        text = data.decode("utf-8").strip("\ufeff\0 \t\r\n")
        if _DECLARATION.search(text):  # what makes XML grow when it is read; XMP has none
            return None
        root = ElementTree.fromstring(text)
    except (ValueError, ElementTree.ParseError):
        return None
    for element in root.iter():
        if element.tag == _TAG:
            return element.text or ""
        if _TAG in element.attrib:
            return element.attrib[_TAG]
    return None
