"""Names for files that are no pictures, such as the page of a web server, by their beginnings."""

from __future__ import annotations

import codecs

from batchnst.pictures import jpeg

_BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches the picture",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"PK\3\4": "a zip",
    b"\x1f\x8b": "compressed by gzip",
    b"\x1aE\xdf\xa3": "a video",
    b"\x89PNG": "a PNG that is damaged, or ends early",
    b"GIF8": "a GIF that is damaged, or ends early",
    b"8BPS": "a Photoshop file of a kind that is not read; save it as TIFF or PNG",
    b"RIFF": "a video or sound",
    b"PF\n": "a PFM in colour; save it as TIFF",
    b"ID3": "sound",
}
_IN_LOWER_CASE = {b"<!doctype html": "a web page", b"<html": "a web page", b"<svg": "an SVG; export it as PNG"}
_INSIDE = {
    4: ((b"ftypisom", b"ftypmp4", b"ftypiso", b"ftypM4V", b"ftypqt  ", b"ftypavc1"), "a video"),
    8: ((b"heic", b"heix", b"mif1", b"avif", b"WEBP"), "a HEIC, AVIF or WebP that is damaged, or of a rare kind"),
}
"""Beginnings by their place in the file."""

_SHOWN = 40
"""Letters of a text that are shown."""


def looks_like(data: bytes) -> str:
    """A name for the file `data`, which no decoder knows; empty if there is none."""
    if data.startswith(b"\xff\xd8"):
        return jpeg.refusal(data) or "a JPEG that is damaged, or ends early"
    for at, (beginnings, kind) in _INSIDE.items():
        if data.startswith(beginnings, at):
            return kind
    if data and not data.strip(b"\0"):
        return "only zeros; fetch it again"
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kinds = [kind for beginning, kind in _BEGINNINGS.items() if data.startswith(beginning)]
    kinds += [kind for beginning, kind in _IN_LOWER_CASE.items() if head.startswith(beginning)]
    kinds += ["an SVG; export it as PNG"] if head.startswith(b"<?xml") and b"<svg" in head else []
    return next(iter([*kinds, *_text(data)]), "")


def _text(data: bytes) -> list[str]:
    """A few words of `data` if it is text."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data[: 4 * _SHOWN])  # its last letter may be cut
    except UnicodeDecodeError:
        return []
    words = " ".join(text.split())
    return [f"text that begins with {words[:_SHOWN]!r}"] if words.isprintable() and words else []
