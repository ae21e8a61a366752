"""What an image file says beside its pixels: what is carried over to another image, and the settings that made one.

EXIF, XMP, IPTC, the resolution and the texts of a PNG are carried over as far as the format of the output holds them.
What describes the old pixels is left out or corrected: orientation, sides, thumbnail, color profile
(`pixdec.io.images` converts to sRGB).
"""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

_ASCII_COMMENT = b"ASCII\0\0\0"  # EXIF's UserComment begins with its character code
_COMMENT = ExifTags.Base.UserComment
_SIDES = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
_IPTC_OF_TIFF, _IPTC_OF_PHOTOSHOP = 0x83BB, 0x0404
# Tags of a TIFF that say how its pixels are stored, and those that are carried on their own.
_STORAGE = frozenset(
    {0x112, 0x2BC, _IPTC_OF_TIFF, 0x8649, 0x8773, 0xFE, 0xFF, 0x100, 0x101, 0x102, 0x103, 0x106, 0x10A, 0x111, 0x115}
    | {0x116, 0x117, 0x11A, 0x11B, 0x11C, 0x128, 0x13D, 0x13E, 0x13F, 0x140, 0x142, 0x143, 0x144, 0x145, 0x14A, 0x152}
    | {0x153, 0x15B, 0x201, 0x202, 0x211, 0x212, 0x213, 0x214}
)
_SEGMENT = 65533  # bytes that a segment of a JPEG holds
_MAKER_NOTE = 0x927C
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:=["\']|>))\d')


@dataclass(frozen=True)
class Metadata:
    """What an image is said to be.

    Attributes:
        exif: EXIF as a file holds it, without what describes the pixels of the file it comes from.
        xmp: an XMP packet.
        iptc: IPTC records.
        dpi: pixels per inch, across and down.
        text: texts of a PNG by keyword ("Author", "parameters", ...); "Comment" is also the comment of a JPEG.
    """

    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    dpi: tuple[float, float] | None = None
    text: Mapping[str, str] = field(default_factory=dict[str, str])


NOTHING = Metadata()


def metadata_of(image: Image.Image) -> Metadata:
    """What to carry over from an image that Pillow opened and loaded. Damaged parts are left out, with a note."""
    info = cast("dict[str, Any]", image.info)
    xmp: object = info.get("xmp", b"")
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    dpi: object = info.get("dpi")
    texts = {key: str(value) for key, value in cast("dict[str, Any]", getattr(image, "text", {})).items()}
    kept = {key: text for key, text in texts.items() if key not in ("pixdec", "XML:com.adobe.xmp")}
    if isinstance(comment := info.get("comment"), bytes):
        kept["Comment"] = comment.decode("utf-8", "replace")
    return Metadata(
        exif=_carried_exif(image),
        xmp=_XMP_ORIENTATION.sub(rb"\g<1>1", xmp) if isinstance(xmp, bytes) else b"",
        iptc=_iptc_of(image),
        dpi=_dpi(dpi),
        text=kept,
    )


def exif_of(image: Image.Image) -> Image.Exif:
    """The EXIF of an image; empty where it is damaged, which is no reason to refuse the pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's, of corrupt EXIF data
            return image.getexif()
    except Exception:  # Pillow's parsers raise many kinds on damaged data
        return Image.Exif()


def settings_in(image: Image.Image) -> dict[str, object]:
    """The settings that `save_options` put into the file of an image; empty if there are none."""
    if image.format == "PNG":
        return _json_object(image.info.get("pixdec"))
    return _json_object(_json_object(_comment_of(exif_of(image))).get("pixdec"))


def save_options(
    metadata: Metadata, settings: Mapping[str, object], kind: str, size: tuple[int, int]
) -> tuple[dict[str, Any], list[str]]:
    """The arguments of Pillow's `save` that write metadata and settings, and the names of what the format cannot hold.

    Args:
        metadata: what is carried over.
        settings: a JSON object, for `settings_in`: a PNG text "pixdec", or in EXIF's UserComment as {"pixdec": ...}.
        kind: "PNG", "WEBP" or "JPEG".
        size: (width, height) of the image that is saved.
    """
    exif, options = _exif_for(metadata.exif, size), dict[str, Any]()
    texts, lost = dict(metadata.text), list[str]()
    if kind == "PNG":
        chunks = PngInfo()
        chunks.add_text("pixdec", json.dumps(settings))
        for key, text in texts.items():
            chunks.add_itxt(key, text) if not text.isascii() else chunks.add_text(key, text)
        if metadata.xmp:
            chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
        options["pnginfo"], texts = chunks, {}
    else:
        said: dict[str, object] = {"pixdec": settings}
        if own := _foreign_comment(exif):
            said["comment"] = own
        exif.get_ifd(ExifTags.IFD.Exif)[_COMMENT] = _ASCII_COMMENT + json.dumps(said).encode("ascii")
        if metadata.xmp and (kind != "JPEG" or len(metadata.xmp) < _SEGMENT - 29):
            options["xmp"] = metadata.xmp
        elif metadata.xmp:
            lost.append("XMP of more than 64 KB")
    if kind == "JPEG":
        if comment := texts.pop("Comment", ""):
            options["comment"] = comment.encode()[:_SEGMENT]
        if metadata.iptc:
            options["extra"] = _photoshop_segment(metadata.iptc)
        if len(exif.tobytes()) > _SEGMENT:
            exif.get_ifd(ExifTags.IFD.Exif).pop(_MAKER_NOTE, None)
            lost.append("the camera maker's note in EXIF")
    elif metadata.iptc:
        lost.append("IPTC")
    if metadata.dpi is not None:
        if kind == "WEBP":
            for tag, value in ((0x11A, metadata.dpi[0]), (0x11B, metadata.dpi[1]), (0x128, 2)):
                exif[tag] = value
        else:
            options["dpi"] = metadata.dpi
    if texts:
        lost.append(f"texts ({', '.join(texts)})")
    if len(dict(exif)) or kind != "PNG":
        options["exif"] = exif
    return options, lost


def _carried_exif(image: Image.Image) -> bytes:
    try:
        exif = Image.Exif()  # a copy: the image's own is still looked at
        exif.load(exif_of(image).tobytes())
        for tag in _STORAGE.intersection(exif):
            del exif[tag]
        _read_parts(exif)
        return exif.tobytes() if len(dict(exif)) else b""
    except Exception:  # as in `exif_of`; values of the wrong kind are found only when they are written again
        warnings.warn("its EXIF data is damaged and is left out", UserWarning, stacklevel=2)
        return b""


def _exif_for(data: bytes, size: tuple[int, int]) -> Image.Exif:
    exif = Image.Exif()
    if data:
        exif.load(data)
        _read_parts(exif)
        if ExifTags.IFD.Exif in exif:
            inner = exif.get_ifd(ExifTags.IFD.Exif)
            inner.update({tag: side for tag, side in zip(_SIDES, size, strict=True) if tag in inner})
    return exif


def _read_parts(exif: Image.Exif) -> None:
    """Read the parts that EXIF points to, so that they are written again; to ask for one that is not there adds it."""
    for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if part in exif:
            exif.get_ifd(part)


def _iptc_of(image: Image.Image) -> bytes:
    resources: object = image.info.get("photoshop")
    found: object = b""
    if isinstance(resources, dict):
        found = cast("dict[int, object]", resources).get(_IPTC_OF_PHOTOSHOP, b"")
    elif image.format == "TIFF":
        found = cast("Any", image).tag_v2.get(_IPTC_OF_TIFF, b"")
    return found if isinstance(found, bytes) else b""


def _photoshop_segment(iptc: bytes) -> bytes:
    """IPTC records as the segment of a JPEG that holds them."""
    resource = b"8BIM" + struct.pack(">HHI", _IPTC_OF_PHOTOSHOP, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    content = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content if len(content) <= _SEGMENT else b""


def _dpi(value: object) -> tuple[float, float] | None:
    try:
        across, down = (float(each) for each in cast("Any", value))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


def _comment_of(exif: Image.Exif) -> str:
    """EXIF's UserComment as text."""
    try:
        raw: object = exif.get_ifd(ExifTags.IFD.Exif).get(_COMMENT)
    except Exception:  # as in `exif_of`
        return ""
    if not isinstance(raw, bytes):
        return raw if isinstance(raw, str) else ""
    code, text = raw[:8], raw[8:]
    return text.decode("utf-16-be" if code.startswith(b"UNICODE") else "utf-8", "replace").strip("\0 ")


def _foreign_comment(exif: Image.Exif) -> str:
    """A UserComment that is not of ours."""
    text = _comment_of(exif)
    ours = _json_object(text)
    return str(ours.get("comment", "")) if "pixdec" in ours else text


def _json_object(text: object) -> dict[str, object]:
    """A JSON object, given as such or as text; empty if it is none."""
    if isinstance(text, str | bytes):
        try:
            text = json.loads(text)
        except (ValueError, RecursionError):
            return {}
    return cast("dict[str, object]", text) if isinstance(text, dict) else {}
