"""Finds pairs that a run paints again as they were before: since then, another request has painted them otherwise."""

from __future__ import annotations

from batchnst.engine.plan import Plan
from batchnst.ledger.out import Out
from batchnst.redaction import stored
from batchnst.storage.files import resolve


def describe_back_again(plan: Plan, out: Out) -> str:
    """One line about the pairs of `plan` that go back to what they were, and how to keep them; "" if there are none."""
    if not (count := plan.otherwise.total()):
        return ""
    ((number, _),) = plan.otherwise.most_common(1)
    run = next((run for run in out.runs() if run["run_number"] == number), None)
    pairs = "1 pair was" if count == 1 else f"{count} pairs were"
    if run is None or run["manifest"] == stored(resolve(plan.manifest.address, ".")):
        by = f"by run {run['run_id'] if run else number}"
        keep = "use the options and rows of that run"
    else:
        by = f"as {run['manifest']} asks"
        keep = f"first put the rows of {run['manifest']} in place of theirs in {plan.manifest.address}"
    return f"{pairs} painted otherwise since, {by}; `run` paints as before again. To keep what is there, {keep}"
