"""The program of a process apart: it opens pictures, one at a time, under limits of memory and time.

It can write no file and leaves no core dump. Its memory is limited by the size of the picture that it decodes. Its
processor time is limited too, so that it ends even if nobody is left to stop it.
"""

from __future__ import annotations

import io
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import AvifImagePlugin, Image, PngImagePlugin
from pillow_heif import register_heif_opener

from batchnst.errors import InputError
from batchnst.pictures import decode, messages, opening, png, raw
from batchnst.pictures.decode import DecodeOptions
from batchnst.pictures.metadata import Metadata
from batchnst.sizes import fit
from batchnst.storage.seekable import Seekable

PROCESSOR_SECONDS = 600
"""Processor time of one request, of all its threads together, in seconds."""

THREADS = 2
"""Threads that decode one picture, in formats whose decoders have several."""

OVERHEAD_BYTES = 256 << 20
"""Memory for any request, beside three times its file."""

CANVAS_BYTES = 10
"""Memory for each pixel that a picture may have, until its size is known: WebP's decoder begins with a canvas."""

PIXEL_BYTES = 64
"""Memory for each pixel that is decoded, resized or encoded; measured: 24 for AVIF and 16 bits, others less."""

BLOCK = 1 << 14
"""Bytes of a file that are requested at once while its header is read."""

EDGE, MOST_PADDED = 1 << 16, 1 << 26
"""A format that reads whole files gets EDGE bytes of both ends, zeros between, of a file up to MOST_PADDED bytes."""

Answer = tuple[dict[str, Any], list[bytes]]
"""The header and the parts of an answer."""


@dataclass(frozen=True)
class Request:
    """A request: its `header`, and `parts`, which are bytes, the file first.

    `read` returns the part of the file, at an offset and of a length, if the file was not sent. The picture's address,
    which may have secrets, is not told.
    """

    header: dict[str, Any]
    parts: list[bytes]
    read: Callable[[int, int], bytes]

    @property
    def name(self) -> str:
        """The name of the file to write, or of the picture in messages."""
        return str(self.header.get("name", "picture"))

    @property
    def data(self) -> bytes:
        """The picture's file."""
        return self.parts[0]


def main() -> None:
    """Answer requests from stdin on stdout until the input ends."""
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    register_heif_opener(decode_threads=THREADS)
    with suppress(ImportError):  # an extra of the package
        import pillow_jxl.JpegXLImagePlugin

        pillow_jxl.JpegXLImagePlugin.DECODE_THREADS = THREADS
    AvifImagePlugin.DEFAULT_MAX_THREADS = THREADS
    PngImagePlugin.MAX_TEXT_CHUNK = png.MOST_TEXT_BYTES
    Image.MAX_IMAGE_PIXELS = None  # replaced by max_megapixels, which the user can change
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    with Path(os.devnull).open("r+b", buffering=0) as nothing:  # a library that prints must not write into an answer
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)
    messages.put(target, {"ready": True})
    with suppress(EOFError, BrokenPipeError):
        while True:
            header, parts = messages.get(source, sys.maxsize)
            messages.put(target, *answer(Request(header, parts, partial(_read, source, target))))


def _read(source: IO[bytes], target: IO[bytes], offset: int, count: int) -> bytes:
    """Let the other process read a part of the file; fewer bytes if there are no more, or no more are given."""
    messages.put(target, {"read": [offset, count]})
    _, (data,) = messages.get(source, count)
    return data


def answer(request: Request) -> Answer:
    """Answer one request; any error becomes the answer."""
    _limit_processor_time()
    try:
        return ACTIONS[request.header["do"]](request)
    except InputError as error:
        return {"error": str(error).removeprefix(f"{request.name}: ")}, []
    except MemoryError:
        # Under a limit of the user's the same picture may be decoded elsewhere.
        return {"error": "takes more memory to decode than its size explains", "transient": _is_limited_by_user()}, []
    except Exception as error:  # a decoder can raise anything for a damaged file
        return {"error": f"cannot be decoded: {str(error) or repr(error)}"}, []


def _load(request: Request) -> Answer:
    """Decode a picture at its working size."""
    options = DecodeOptions(**request.header["options"])
    picture = decode.fitted(_open(request, options), options)
    alpha = b"" if picture.alpha is None else picture.alpha.tobytes()
    parts = [picture.pixels.tobytes(), alpha, picture.icc, *astuple(picture.metadata)]
    return {"shape": picture.pixels.shape[:2], "notes": picture.notes}, parts


def _open(request: Request, options: DecodeOptions) -> decode.Decoded:
    """Decode a picture; the limit of memory follows from its size, once that is known."""
    file_bytes = 3 * len(request.data)

    def limit(width: int, height: int) -> None:
        size = fit(width, height, options.size or max(width, height))
        _limit_memory(file_bytes + PIXEL_BYTES * (width * height + size[0] * size[1]))

    _limit_memory(file_bytes + CANVAS_BYTES * options.max_pixels)
    return decode.open_picture(request.data, request.name, options, before_decoding=limit)


def _probe(request: Request) -> Answer:
    """Read the upright size of a picture of which only the beginning was sent."""
    size = request.header["size"]
    _limit_memory(4 * MOST_PADDED + CANVAS_BYTES * DecodeOptions().max_pixels)
    file = io.BufferedReader(_Distant(request.data, size, request.read), BLOCK)
    return {"size": opening.upright_size(file)}, []


class _Distant(Seekable):
    """A file of `size` bytes, or None, that begins with `head`, and of which `read` reads any part."""

    def __init__(self, head: bytes, size: int | None, read: Callable[[int, int], bytes]) -> None:
        self._head, self._read_part, self._position = head, read, 0
        self._size, self._has_size = size or sys.maxsize, size is not None

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def _take(self, count: int) -> bytes:
        data = self._part(self._position, count)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """The rest of the file for a format that reads whole files: of a long one the ends, and zeros between."""
        start, left = self._position, self._size - self._position
        if left > MOST_PADDED:
            raise OSError("too long to look for its header")
        self._position = self._size
        if left <= 2 * EDGE:
            return self._part(start, left)
        return b"".join([self._part(start, EDGE), bytes(left - 2 * EDGE), self._part(self._size - EDGE, EDGE)])

    def _part(self, start: int, count: int) -> bytes:
        count = max(0, min(count, self._size - start))
        if start + count <= len(self._head):
            return self._head[start : start + count]
        data = self._read_part(start, count)
        if len(data) < count and self._has_size:
            raise OSError("no more of the file is given")
        return data


def _preview(request: Request) -> Answer:
    """Make a WebP of a picture, its longest side at most `side` pixels, and its brightness, at most `gray` pixels."""
    side = request.header["side"]
    options = DecodeOptions(size=2 * side / decode.DRAFT, damaged="accept")  # of a JPEG, twice the side is decoded
    picture = _open(request, options).image
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=request.header["quality"], method=2)
    gray = picture.convert("L")
    gray.thumbnail((request.header["gray"], request.header["gray"]), Image.Resampling.BOX)
    return {"size": picture.size, "gray": gray.size}, [buffer.getvalue(), gray.tobytes()]


def _examine(request: Request) -> Answer:
    """Read the format and size of a picture, which is decoded only if it has the expected size."""
    width, height = request.header["size"]
    file_bytes = 3 * len(request.data)
    _limit_memory(file_bytes + CANVAS_BYTES * width * height)
    with Image.open(io.BytesIO(request.data), formats=opening.formats()) as image:
        if image.size == (width, height):
            _limit_memory(file_bytes + PIXEL_BYTES * width * height)
            image.load()
        return {"format": image.format, "size": image.size}, []


def _provenance(request: Request) -> Answer:
    """Read the provenance in a picture's metadata."""
    from batchnst.pictures.encode import read_provenance

    _limit_memory(3 * len(request.data) + CANVAS_BYTES * DecodeOptions().max_pixels)
    return {"provenance": asdict(read_provenance(request.data, request.name))}, []


def _encode(request: Request) -> Answer:
    """Encode a painted picture with metadata from outside."""
    from batchnst.pictures import encode

    header, (pixels, alpha, icc, *kept) = request.header, request.parts
    height, width = header["shape"]
    _limit_memory(PIXEL_BYTES * width * height)
    finish = encode.Finish(
        quality=header["quality"],
        alpha=np.frombuffer(alpha, np.uint8).reshape(height, width) if alpha else None,
        metadata=Metadata(*kept),
        icc=icc,
        provenance=encode.Provenance(**header["provenance"]) if header["provenance"] else None,
    )
    array = np.frombuffer(pixels, header["dtype"]).reshape(height, width, 3)
    return {}, [encode.encode_picture(array, request.name, finish)]


def _endings(request: Request) -> Answer:
    """List the endings of files that can be decoded."""
    formats = opening.formats()
    endings = [ending for ending, name in Image.registered_extensions().items() if name in formats]
    return {"endings": [*endings, *(raw.ENDINGS if raw.is_installed() else ())]}, []


ACTIONS: dict[str, Callable[[Request], Answer]] = {
    "load": _load,
    "probe": _probe,
    "preview": _preview,
    "examine": _examine,
    "provenance": _provenance,
    "encode": _encode,
    "endings": _endings,
}
"""Everything that can be requested."""


_STATM = Path("/proc/self/statm")
"""Linux's account of this process's memory, in pages; the sixth number is that which counts against the limit."""


def _limit_memory(more: float) -> None:
    """Limit the memory of this process to what it has now, OVERHEAD_BYTES and `more` bytes, where Linux can."""
    if not _STATM.exists():
        return
    wanted = int(_STATM.read_text().split()[5]) * resource.getpagesize() + OVERHEAD_BYTES + int(more)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _is_limited_by_user() -> bool:
    """True if this process may have less memory than a picture would get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    return soft == hard or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _limit_processor_time() -> None:
    """End this process PROCESSOR_SECONDS of processor time from now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = int(used.ru_utime + used.ru_stime) + PROCESSOR_SECONDS
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
