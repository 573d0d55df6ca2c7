from __future__ import annotations

from batchnst.pages import short_names


def test_names_are_as_long_as_tells_them_apart() -> None:
    found = short_names(["/x/a.jpg", "/x/b.jpg", "/y/b.jpg", "s3://z/c.jpg"])
    assert found == {"/x/a.jpg": "a.jpg", "/x/b.jpg": "x/b.jpg", "/y/b.jpg": "y/b.jpg", "s3://z/c.jpg": "c.jpg"}
