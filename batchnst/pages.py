"""Make HTML pages from templates: values are escaped, a missing value is an error, only the page's own scripts run.

`templates/base.css` and `templates/base.js` hold what all pages share: colours, type, and functions to show values;
`marks.js` and `view.js` what pages share that let one mark and enlarge pictures.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from batchnst.chains import path_of


def templates(package: str) -> Environment:
    """Load the templates in the folder `templates` of `package`."""
    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters.update(count=_count, figure=figure, duration=duration, clock=clock)
    return environment


def joined(package: str, names: Sequence[str], shared: Sequence[str] = ()) -> str:
    """The shared file with the ending of `names`, `base.css` or `base.js`, then these files of `package`, as one text.

    `shared` are more files that pages share, which come before those of `package`. All are in folders `templates`.
    """
    common = [f"base.{names[0].rpartition('.')[2]}", *shared]
    parts = [files("batchnst") / "templates" / name for name in common]
    parts += [files(package) / "templates" / name for name in names]
    return "\n".join(part.read_text("utf-8") for part in parts)


def script_source(script: str) -> str:
    """Source expression for `script` in a page's Content Security Policy: only scripts with one run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def short_names(addresses: Iterable[str]) -> dict[str, str]:
    """File name of each address, with up to three folders if needed to tell equal names apart."""
    names, depth = {address: os.path.basename(path_of(address)) or address for address in addresses}, 1
    while depth < 4 and len(set(names.values())) < len(names):
        depth += 1
        repeated = {name for name, count in Counter(names.values()).items() if count > 1}
        names |= {
            address: "/".join(path_of(address).split("/")[-depth:]) for address in names if names[address] in repeated
        }
    return names


def _count(number: int) -> str:
    return f"{number:,}"


def figure(value: float | None) -> str:
    """A number with four digits, in millions (M) or billions (bn) if it is large; a dash for None."""
    if value is None:
        return "–"
    for unit, name in ((1e9, " bn"), (1e6, " M")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60:02} min"


def clock(time: datetime) -> str:
    """Day and minute of a time."""
    return f"{time:%Y-%m-%d %H:%M}"
