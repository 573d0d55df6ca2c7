"""Addresses of many rows: resolved, in their public form, checked, and as parts of ids.

Each is done once for each distinct address, and for those that are plain, by Arrow for all of them together. The
others go, one by one, to the function of the same purpose for one address.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.manifest.pair import ID_PART, id_part
from batchnst.manifest.row_columns import Texts, all_of, by_value, contain, join, mask, same
from batchnst.redaction import public
from batchnst.storage.addresses import address_problem
from batchnst.storage.files import is_uri, resolve

_NAME = r"[ !$&-\-0-9;-=A-\[\]-}](?:[ !$&-.0-9;-=A-\[\]-}]*[ !$&-\-0-9;-=A-\[\]-}])?"
"""A name of ASCII without a full stop at its ends, and without `"`, `#`, `%`, `/`, `:`, `?`, `@`, `\\` and `~`."""

_PATH = rf"^/?{_NAME}(?:/{_NAME})*$"
"""A path that is normal, and means the same everywhere."""

_SAMPLE = 1024
"""Number of values that tell whether most are there more than once."""

_URI = rf"^(?:s3|gs|gcs|az|abfs|abfss|hdfs|https?)://{_NAME}(?:/{_NAME})+$"
"""The same of URIs."""


class Addresses:
    """A column of addresses, or of other texts that are treated as such; null stays null."""

    def __init__(self, column: pa.Array) -> None:
        self._column, self._distinct, self._places = column, column, None
        sample = column.slice(0, _SAMPLE)
        if 2 * len(sample.unique()) < len(sample):
            coded = column.dictionary_encode()
            self._distinct, self._places = coded.dictionary, coded.indices

    @cached_property
    def _plain(self) -> pa.Array:
        """Which of the distinct addresses are plain."""
        paths = pc.match_substring_regex(self._distinct, _PATH)
        return paths if all_of(paths) else pc.or_(paths, pc.match_substring_regex(self._distinct, _URI))

    def public(self) -> pa.Array:
        """Their public forms, as by `public`."""
        return self._each(same, public)

    def public_json(self) -> pa.Array:
        """Their public forms as JSON."""
        return self._each(lambda plain: join('"', plain, '"'), lambda address: json.dumps(public(address)))

    def resolved(self, base: str) -> pa.Array:
        """Resolved against the folder `base`, as by `resolve`."""
        prefix = f"{base.rstrip('/')}/"
        if base.startswith("file://") or not (is_uri(base) or base.startswith("/")):
            return by_value(self._column, pa.repeat(False, len(self._column)), same, partial(resolve, base=base))
        return self._each(lambda plain: _absolute(plain, prefix), partial(resolve, base=base))

    def refused(self) -> NDArray[np.bool_]:
        """Those that are no name, or carry passwords, keys or options (N,)."""
        return mask(self._each(lambda plain: pa.repeat(False, len(plain)), _is_refused))

    def id_parts(self) -> pa.Array:
        """Their parts of a default id, as by `id_part`."""
        return self._each(_stems, id_part)

    def _each(self, fast: Texts, slow: Callable[[str], Any]) -> pa.Array:
        """`fast` of those that are plain, and `slow` of each other one."""
        distinct = by_value(self._distinct, self._plain, fast, slow)
        return distinct if self._places is None else distinct.take(self._places)


def _is_refused(address: str) -> bool:
    return "\0" in address or (is_uri(address) and address_problem(address) is not None)


def _absolute(plain: pa.Array, prefix: str) -> pa.Array:
    fixed = pc.or_(pc.starts_with(plain, "/"), contain(plain, "://"))
    return pc.if_else(fixed, plain, join(prefix, plain))


def _stems(plain: pa.Array) -> pa.Array:
    names = _nth(pc.split_pattern(plain, "/", max_splits=1, reverse=True), -1)
    stems = _nth(pc.split_pattern(names, ".", max_splits=1, reverse=True), 0)
    parts = pc.replace_substring_regex(stems, ID_PART, "-")
    parts = pc.ascii_trim(pc.utf8_slice_codeunits(parts, 0, 40), "-.")
    return pc.if_else(pc.equal(pc.binary_length(parts), pa.scalar(0, pa.int32())), "picture", parts)


def _nth(lists: pa.ListArray, n: int) -> pa.Array:
    """The first (0) or last (-1) value of each list; null where a list is null."""
    ends = lists.offsets.to_numpy()
    places = ends[:-1] if n == 0 else ends[1:] - 1
    return lists.values.take(pa.array(places, mask=mask(pc.is_null(lists))))
