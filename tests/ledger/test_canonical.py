"""The canonical form depends on values alone: it is compared with one written from its definition."""

from __future__ import annotations

import io
import math
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnst.ledger.canonical import encode_rows
from batchnst.ledger.schema import SCHEMAS, to_table
from tests.helpers import NOON, loss, row

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def text(value: str) -> bytes:
    data = value.encode()
    return b"s" + struct.pack(">I", len(data)) + data


def defined(value: Any) -> bytes:
    """The canonical form of a value, one after another, as the manual defines it."""
    match value:
        case None:
            return b"n"
        case bool():
            return b"b" + bytes([value])
        case int():
            return b"i" + struct.pack(">q", value)
        case float():
            return b"f" + struct.pack(">d", value)
        case str():
            return text(value)
        case bytes():
            return b"y" + struct.pack(">I", len(value)) + value
        case datetime():
            return b"t" + struct.pack(">q", (value - EPOCH) // timedelta(microseconds=1))
        case [(_, _), *_]:
            return b"m" + b"".join(text(key) + defined(item) for key, item in sorted(value)) + b"e"
        case list():
            return b"l" + b"".join(map(defined, value)) + b"e"
    fields = sorted((name, item) for name, item in value.items() if item is not None)
    return b"r" + b"".join(text(name) + defined(item) for name, item in fields) + b"e"


def check(table: pa.Table) -> None:
    encoded = encode_rows(table).to_pylist()
    assert encoded == [defined(row) for row in table.to_pylist()]
    for start in range(len(table)):
        assert encode_rows(table.slice(start, 2)).to_pylist() == encoded[start : start + 2]


def test_values_of_every_type_with_nulls_everywhere() -> None:
    columns = {
        "integer": pa.array([1, -(2**62), None, 0, 7], pa.int64()),
        "small": pa.array([1, -3, None, 0, 7], pa.int8()),
        "number": pa.array([1.5, -0.0, None, float("inf"), 1e-310]),
        "truth": [True, False, None, True, None],
        "text": ["ä", "", None, "x" * 300, "\0"],
        "binary": pa.array([b"\xff", b"", None, b"e", b"n"], pa.binary()),
        "time": pa.array([NOON, None, EPOCH, NOON, NOON], pa.timestamp("us", "UTC")),
        "list": pa.array([["a", None], [], None, [None], ["b", "c"]], pa.list_(pa.string())),
        "lists": pa.array([[[1], []], None, [], [None, [2, None]], [[3]]], pa.list_(pa.list_(pa.int64()))),
        "struct": pa.array([{"z": 1, "a": None}, None, {"z": None, "a": "q"}, {"z": 2, "a": "w"}, None]),
        "map": pa.array(
            [[("b", 2.0), ("a", None)], [("a", 1.0)], None, [("é", 1.0), ("z", 1.0), ("", 0.0)], [("c", 3.0)]],
            pa.map_(pa.string(), pa.float64()),
        ),
        "nothing": pa.nulls(5),
    }
    check(pa.table(columns))


def test_rows_of_the_ledger() -> None:
    check(to_table([row(), row(error_type="x", notes=["a", "b"]), row("b", peak_memory_bytes=5)], "pairs"))
    check(to_table([loss(0), loss(1, "b")], "losses"))


def test_no_rows_and_an_empty_map() -> None:
    assert encode_rows(SCHEMAS["pairs"].empty_table()).to_pylist() == []
    assert encode_rows(SCHEMAS["losses"].empty_table()).to_pylist() == []
    empty = pa.table({"m": pa.array([[]], pa.map_(pa.string(), pa.int64())), "l": pa.array([[]], pa.list_(pa.int8()))})
    assert encode_rows(empty).to_pylist() == [b"r" + text("l") + b"le" + text("m") + b"mee"]


def test_a_number_that_is_none_keeps_its_bits() -> None:
    nan = np.frombuffer(struct.pack("<Q", 0x7FF8000000000123), np.float64)
    assert math.isnan(nan[0])
    assert encode_rows(pa.table({"x": nan})).to_pylist() == [b"r" + text("x") + b"f\x7f\xf8\0\0\0\0\x01\x23e"]


def test_columns_that_a_later_version_adds_change_no_earlier_row() -> None:
    table = to_table([row(), row("b")], "pairs")
    added = table.append_column("anew", pa.nulls(2, pa.list_(pa.float64()))).select(["anew", *table.column_names[::-1]])
    assert encode_rows(added) == encode_rows(table)
    filled = table.append_column("anew", pa.array([None, "x"]))
    assert [a == b for a, b in zip(encode_rows(filled), encode_rows(table), strict=True)] == [True, False]


@pytest.mark.parametrize("table", ["pairs", "losses"])
def test_the_same_rows_by_other_programs(table: str) -> None:
    rows = to_table([row(), row("b", notes=["n"])] if table == "pairs" else [loss(0), loss(1)], table)
    expected = encode_rows(rows)
    written = io.BytesIO()
    pq.write_table(rows, written, row_group_size=1, use_dictionary=False, coerce_timestamps="us")
    assert encode_rows(pq.read_table(written)) == expected
    if table == "pairs":
        frame = rows.to_pandas(types_mapper=pd.ArrowDtype)
        assert encode_rows(pa.Table.from_pandas(frame, preserve_index=False)) == expected
    large = pa.schema([pa.field(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in rows.schema])
    assert encode_rows(rows.cast(large)) == expected
    encoded = rows.set_column(0, rows.column_names[0], rows.column(0).dictionary_encode())
    assert encode_rows(encoded) == expected


def test_a_type_without_a_canonical_form_is_refused() -> None:
    with pytest.raises(pa.ArrowException):
        encode_rows(pa.table({"x": pa.array([NOON.date()])}))
