"""The canonical form of a table's rows: bytes that depend on their values alone.

A row is the same bytes whatever file, row group, order, encoding or program it comes from. Each value begins with a
tag:

    i  integer: 8 bytes, two's complement             s  text: length, UTF-8
    f  number: 8 bytes, IEEE 754 binary64             y  binary: length, bytes
    t  time: 8 bytes, microseconds since 1970, UTC    l  list: its values, e
    b  truth: 1 byte, 0 or 1                          m  map: its keys and values in turn, sorted by key, e
    n  null, in a list or as a map's value            r  row or struct: its names and values in turn, sorted by name, e

All numbers are big-endian; a length has 4 bytes; names and keys are texts. A column that is null is left out of its
row, so a column that a later version adds changes no earlier row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BINARY = pa.large_binary()


def encode_rows(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """The canonical form of each of `rows`, a binary array (N,).

    Raises ArrowException for columns of another type than those above.
    """
    columns = {name: _whole(rows[name]) for name in rows.schema.names}
    return _struct(columns, len(rows))


def slices(encoded: pa.Array) -> tuple[memoryview, NDArray[np.int64]]:
    """The bytes of all values of a binary array, end to end, and the positions where they begin and the last ends."""
    if not len(encoded):
        return memoryview(b""), np.zeros(1, np.int64)
    _, offsets, data = encoded.buffers()
    ends = np.frombuffer(offsets, np.int64)[encoded.offset : encoded.offset + len(encoded) + 1]
    return memoryview(data) if data else memoryview(b""), ends


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _scalar(value: bytes) -> pa.Scalar:
    return pa.scalar(value, BINARY)


def _join(*parts: Any, skip_nulls: bool = False) -> pa.Array:
    """The parts of each value end to end; null if one is null, unless those are skipped."""
    handling = "replace" if skip_nulls else "emit_null"
    return pc.binary_join_element_wise(*parts, _scalar(b""), null_handling=handling)


def _encode(values: pa.Array) -> pa.Array:
    """The canonical form of each value, a binary array; null for null."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _encode(values.dictionary_decode())
    if pa.types.is_integer(kind):
        return _fixed(b"i", values.cast(pa.int64()))
    if pa.types.is_floating(kind):
        return _fixed(b"f", values.cast(pa.float64()))
    if pa.types.is_timestamp(kind):
        return _fixed(b"t", values.cast(pa.timestamp("us", "UTC")).cast(pa.int64()))
    if pa.types.is_boolean(kind):
        return pc.if_else(values, _scalar(b"b\1"), _scalar(b"b\0"))
    if pa.types.is_struct(kind):
        fields = dict(zip((field.name for field in kind), values.flatten(), strict=True))
        return _where_valid(values, _struct(fields, len(values)))
    if pa.types.is_map(kind):
        return _map(values)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = values.offsets.to_numpy()
        inside = _encode(values.values[offsets[0] : offsets[-1]]) if len(values) else pa.array([], BINARY)
        return _where_valid(values, _group(b"l", _or_null(inside), offsets))
    return _sized(b"s" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else b"y", values.cast(BINARY))


def _fixed(tag: bytes, values: pa.Array) -> pa.Array:
    """Numbers of 8 bytes after a tag."""
    numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
    return _where_valid(values, _tagged(tag, numbers.astype(numbers.dtype.newbyteorder(">"))))


def _sized(tag: bytes, values: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy()
    return _join(_tagged(tag, lengths.astype(">u4")), values)


def _tagged(tag: bytes, numbers: NDArray[Any]) -> pa.Array:
    """The bytes of each number after a tag."""
    width, count = numbers.itemsize + 1, len(numbers)
    data = np.empty((count, width), np.uint8)
    data[:, 0] = tag[0]
    data[:, 1:] = numbers.view(np.uint8).reshape(count, width - 1)
    return _binary(np.arange(count + 1, dtype=np.int64) * width, pa.py_buffer(data))


def _struct(columns: dict[str, pa.Array], count: int) -> pa.Array:
    parts: list[Any] = [pa.array([b"r"], BINARY).take(pa.array(np.zeros(count, np.int64)))]
    for name in sorted(columns, key=str.encode):
        if columns[name].null_count == len(columns[name]):
            continue
        text, values = _scalar(_text(name)), _encode(columns[name])
        parts += [_join(text, values)] if values.null_count else [text, values]
    return _join(*parts, _scalar(b"e"), skip_nulls=True)


def _text(text: str) -> bytes:
    data = text.encode()
    return b"s" + len(data).to_bytes(4, "big") + data


def _map(values: pa.Array) -> pa.Array:
    offsets = values.offsets.to_numpy()
    begin, end = (offsets[0], offsets[-1]) if len(values) else (0, 0)
    keys = values.keys[begin:end].dictionary_encode()
    names = _encode(keys.dictionary)
    codes = keys.indices.to_numpy()
    order = _sorted_entries(keys.dictionary, codes, np.diff(offsets))
    items = values.items[begin:end]
    if order is not None:
        codes, items = codes[order], items.take(pa.array(order))
    entries = _join(names.take(pa.array(codes)), _or_null(_encode(items)))
    return _where_valid(values, _group(b"m", entries, offsets))


def _sorted_entries(names: pa.Array, codes: NDArray[Any], sizes: NDArray[Any]) -> NDArray[np.int64] | None:
    """Positions of all maps' entries, each map's sorted by key; None if they are so already."""
    ranks = np.argsort(np.argsort(np.array(names.cast(BINARY).to_pylist(), object), kind="stable"))
    place = np.repeat(np.arange(len(sizes)), sizes) * len(names) + ranks[codes]
    return None if np.all(place[1:] >= place[:-1]) else np.argsort(place, kind="stable")


def _group(tag: bytes, inside: pa.Array, offsets: NDArray[Any]) -> pa.Array:
    """The values `inside` of each list or map, between `tag` and e; `offsets` are the lists' own."""
    data, ends = slices(inside)
    begins = ends[np.asarray(offsets, np.int64) - offsets[0]] if len(offsets) else np.zeros(1, np.int64)
    return _join(_scalar(tag), _binary(begins, pa.py_buffer(data)), _scalar(b"e"))


def _binary(offsets: NDArray[np.int64], data: pa.Buffer) -> pa.Array:
    buffers: Sequence[Any] = [None, pa.py_buffer(np.ascontiguousarray(offsets)), data]
    return pa.Array.from_buffers(BINARY, len(offsets) - 1, buffers)


def _or_null(encoded: pa.Array) -> pa.Array:
    """The values, with null in its canonical form."""
    return pc.fill_null(encoded, _scalar(b"n")) if encoded.null_count else encoded


def _where_valid(values: pa.Array, encoded: pa.Array) -> pa.Array:
    """The encoded values, null where `values` are null."""
    return pc.if_else(values.is_valid(), encoded, pa.scalar(None, BINARY)) if values.null_count else encoded
