"""Serves the report as a live page, from the ledger alone; nothing is written."""

import warnings

with warnings.catch_warnings():  # aiohttp.web adds a filter of warnings to those of this process
    import aiohttp.web as _web  # noqa: F401
