"""The request of a pair as a row of a manifest: the page puts a change into it and asks for the pair again.

Values are JSON texts, which the page passes on as they are: JavaScript would round long integers, such as seeds.
"""

from __future__ import annotations

import json
from typing import Any

Row = dict[str, Any]

NOT_ASKED = frozenset(["tile"])
"""Keys of a row's recipe that the next attempt chooses for itself: they do not change the picture."""


def request(row: Row, base: Row) -> dict[str, str]:
    """The row of a manifest that asks for the same as the row `row` of `pairs`.

    Its addresses are absolute. Recipe keys that are as in the recipe `base` are left out.
    """
    extra, recipe = json.loads(row["extra"]), json.loads(row["recipe"])
    values = {
        **(extra if isinstance(extra, dict) else {}),
        "id": row["pair_id"],
        "content": row["content"],
        "style": row["styles"],
        "style_weights": row["style_weights"] if len(row["styles"]) > 1 else None,
        "content_mask": row["content_masks"],
        "style_mask": row["style_masks"],
        "output": row["output"],
    }
    differing = {key: recipe.get(key) for key in {**base, **recipe} if recipe.get(key) != base.get(key)}
    return as_texts(values | differing)


def as_texts(values: Row) -> dict[str, str]:
    """The values as JSON texts, without those that the next attempt chooses for itself."""
    return {key: json.dumps(value) for key, value in values.items() if key not in NOT_ASKED}
