from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest

from batchnst.ledger import merkle

LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""The roots over the first 0, 1, 2 … leaves: test vectors of the reference implementation of RFC 6962."""


def defined(leaves: list[bytes]) -> bytes:
    """The root as section 2.1 of RFC 6962 defines it."""
    if len(leaves) < 2:
        return hashlib.sha256(b"\0" + leaves[0] if leaves else b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + defined(leaves[:split]) + defined(leaves[split:])).digest()


def hashes(leaves: list[bytes]) -> bytes:
    return merkle.leaf_hashes(pa.array(leaves, pa.large_binary()))


@pytest.mark.parametrize("count", range(len(ROOTS)))
def test_roots_are_those_of_the_reference(count: int) -> None:
    assert merkle.root(hashes(LEAVES[:count])).hex() == ROOTS[count]


@pytest.mark.parametrize("count", [*range(34), 127, 128, 129, 1000])
def test_roots_and_proofs_are_those_of_the_definition(count: int) -> None:
    leaves = [str(number).encode() for number in range(count)]
    expected = defined(leaves)
    assert merkle.root(hashes(leaves)) == expected
    for index in range(count):
        node = hashlib.sha256(b"\0" + leaves[index]).digest()
        for side, other in merkle.path(hashes(leaves), index):
            node = hashlib.sha256(b"\1" + (other + node if side == "left" else node + other)).digest()
        assert node == expected
        if count > 129 and index > 40:
            break
