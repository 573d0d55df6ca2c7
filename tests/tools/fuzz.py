"""Feed the readers of foreign files with inputs that atheris makes, led by the code that each one reaches.

`python -m tests.tools.fuzz [READER…] [--seconds N]` says for each reader how many inputs were tried, how many new edges
of our code they reached, and what crashed. Each input must give a result or an error of ours, within SECONDS and
MEGABYTES. The seeds are made here, Parquet files also with flipped bits; inputs that crash are kept in `build/fuzz`.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

SECONDS, MEGABYTES = 20, 4096
"""Longest time and most memory for one input."""

CRASHES = Path("build/fuzz")

LONGEST = 1 << 16
"""Longest input, in bytes."""


# Seeds -------------------------------------------------------------------------------------------------------------


def picture_seeds() -> Iterator[bytes]:
    """Small pictures of every kind that the tests have."""
    from tests.pictures import zoo

    yield from (animal.data for animal in zoo.animals() if len(animal.data) < LONGEST)


MANIFESTS = [
    b"0content,style,id,size,style_layers\na.png,s.png,x,64,relu1_1=2\nb.png,s.png|t.png,y,,\n",
    b"0sep=;\r\ncontent;style;;\r\na;b;;\r\n;;;\r\n",
    b"0content\tstyle\nfile:///a%20b.png\t~/s.png\n",
    "0content,style\nété.png,s.png\n".encode("cp1252"),
    b"0" + "content,style\n写真.png,s.png\n".encode("utf-16"),
    b'1{"content": "a.png", "style": ["s.png"], "size": 64, "x": {"y": [NaN, 1e999, "\\ud83d"]}}\n\n[1]\n',
]


def manifest_seeds() -> Iterator[bytes]:
    """Manifests of every kind; the first byte tells the ending."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    yield from MANIFESTS
    theirs = {"t": pa.array([1], pa.timestamp("ns")), "m": pa.array([[("k", 1.5)]], pa.map_(pa.string(), pa.float64()))}
    for table in (
        pa.table({"content": ["a.png"], "style": [["s.png"]], "size": [64]}),
        pa.table({"content": ["a.png"], "style": ["s.png"], **theirs}),
    ):
        sink = io.BytesIO()
        pq.write_table(table, sink)
        yield b"2" + sink.getvalue()


def container_seeds() -> Iterator[bytes]:
    """Small archives, and a Parquet file of pictures; the first byte tells the kind."""
    from tests.storage.made import cells, make_parquet, make_tar, make_zip

    members = {"a/x.jpg": b"data" * 50, "é.png": b"", "b.txt": bytes(range(256))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p")
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield b"0" + make_zip(path, members, kind).read_bytes()
        for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            yield b"1" + make_tar(path, members | {"deep/" * 30 + "long": b"1"}, kind).read_bytes()
        pictures = cells(members)
        for columns in ({"image": pictures, "style": [pictures[:2]] * 3}, {"image": [b"1", None, b"3"]}):
            yield b"2" + make_parquet(path, columns, rows_in_group=2).read_bytes()


def recipe_seeds() -> Iterator[bytes]:
    """Recipes, also as a text editor saves them."""
    from batchnst.recipe import Recipe

    yield b'size = 64\ninit = "noise"\n[style_layers]\nrelu1_1 = 2\n'
    yield "\ufeffsize = 64\r\n".encode("utf-16")
    settings = Recipe().model_dump(exclude_none=True, exclude={"content_layers", "style_layers"})
    yield "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items()).encode()


def weights_seeds() -> Iterator[bytes]:
    """Small state dicts in each of the formats."""
    import safetensors.torch
    import torch

    state = {"features.0.weight": torch.ones(2, 3, 3, 3), "features.0.bias": torch.zeros(2)}
    yield safetensors.torch.save(state, {"normalisation": "caffe"})
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=new)
        yield buffer.getvalue()


def ledger_seeds() -> Iterator[bytes]:
    """A file of each table; the first byte tells which."""
    from batchnst.ledger import parquet
    from batchnst.ledger.schema import to_table
    from tests.helpers import loss, row

    yield b"0" + parquet.encode(to_table([row(), row("b", status="failed")], "pairs"), "pairs", statistics=True)
    yield b"1" + parquet.encode(to_table([loss(0), loss(1)], "losses"), "losses", statistics=False)
    yield b"2" + parquet.encode(to_table([], "runs"), "runs", statistics=False)


def with_flipped_footers(seeds: Iterator[bytes]) -> Iterator[bytes]:
    """The seeds, and each Parquet file with one bit flipped in each byte of its footer in turn."""
    for seed in seeds:
        yield seed
        if seed.endswith(b"PAR1"):
            length = int.from_bytes(seed[-8:-4], "little")
            for place in range(len(seed) - length - 8, len(seed)):
                yield seed[:place] + bytes([seed[place] ^ 1 << place % 8]) + seed[place + 1 :]


# Readers -----------------------------------------------------------------------------------------------------------


def read_picture(data: bytes, folder: Path) -> None:
    """Decode a picture. The process apart makes any exception an answer: what counts is a crash, time and memory."""
    from batchnst.pictures.decode import DecodeOptions, open_picture

    try:
        image = open_picture(data, "x", DecodeOptions(megapixels=1)).image
    except Exception:
        return
    assert image.mode == "RGB"


def read_manifest(data: bytes, folder: Path) -> None:
    """Read a manifest of CSV, JSON Lines or Parquet, and all its pairs."""
    from batchnst.errors import ManifestError
    from batchnst.manifest.reading import read_manifest

    path = folder / f"m{('.csv', '.jsonl', '.parquet')[data[0] % 3 if data else 0]}"
    path.write_bytes(data[1:])
    with suppress(ManifestError):
        for pair in read_manifest(str(path), {}):
            json.loads(pair.extra, parse_constant=lambda name: sys.exit(f"{name} is no JSON"))


def read_container(data: bytes, folder: Path) -> None:
    """List an archive or a data set as `batchnst manifest` does, and read what is in it."""
    from batchnst.errors import BatchNSTError
    from batchnst.manifest.collecting import collect
    from batchnst.manifest.left_out import LeftOut
    from batchnst.storage.files import read_at_most

    path = folder / f"c{('.zip', '.tar', '.parquet')[data[0] % 3 if data else 0]}"
    path.write_bytes(data[1:])
    with suppress(BatchNSTError):
        for picture in collect(str(path), LeftOut())[:20]:
            with suppress(BatchNSTError):
                assert len(read_at_most(picture.address, LONGEST, "a test takes")) <= LONGEST


def read_recipe(data: bytes, folder: Path) -> None:
    """Read and check a recipe."""
    from batchnst.errors import RecipeError
    from batchnst.recipe import Recipe, read_recipe_file

    (folder / "r.toml").write_bytes(data)
    with suppress(RecipeError):
        recipe = Recipe.from_settings(read_recipe_file(folder / "r.toml"))
        assert Recipe.from_settings(recipe.model_dump()) == recipe


def read_weights(data: bytes, folder: Path) -> None:
    """Read a file of weights, and find its backbone."""
    from batchnst.errors import RequestError
    from batchnst.painting.weights_file import read_file

    (folder / "w.pth").write_bytes(data)
    with suppress(RequestError):
        file = read_file(str(folder / "w.pth"))
        file.weights(file.backbone())


def read_ledger(data: bytes, folder: Path) -> None:
    """Read a table of a ledger in which one file is foreign."""
    from batchnst.errors import LedgerError, StorageError
    from batchnst.ledger.out import Out

    table = ("pairs", "losses", "runs")[data[0] % 3 if data else 0]
    path = folder / "out" / "ledger" / table / "x.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[1:])
    out = Out(str(folder / "out"))
    try:
        with suppress(LedgerError, StorageError):
            out.rows(table).to_pylist()
            out.newest()
    finally:
        path.unlink()


READERS: dict[str, tuple[Callable[[bytes, Path], None], Callable[[], Iterator[bytes]]]] = {
    "picture": (read_picture, picture_seeds),
    "manifest": (read_manifest, manifest_seeds),
    "container": (read_container, container_seeds),
    "recipe": (read_recipe, recipe_seeds),
    "weights": (read_weights, weights_seeds),
    "ledger": (read_ledger, ledger_seeds),
}
"""What is fuzzed: a reader, which raises what it should not, and the seeds of its inputs."""


def fuzz_here(reader: str, folder: Path, options: list[str]) -> None:
    """Fuzz one reader in this process, which ends with it; `options` are libFuzzer's."""
    import atheris

    read, seeds = READERS[reader]
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["batchnst"], enable_loader_override=False):
        read(next(seeds()), folder)  # imports all that it needs
    atheris.Setup([sys.argv[0], *options], lambda data: read(data, folder), internal_libfuzzer=True)
    atheris.Fuzz()


def report(reader: str, seconds: int) -> int:
    """Fuzz one reader in a process of its own; print a line about it, and return the number of crashes."""
    CRASHES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(with_flipped_footers(READERS[reader][1]())):
            (corpus / f"seed-{number}").write_bytes(seed)
        options = [str(corpus), f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={SECONDS}"]
        options += [f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={CRASHES}/{reader}-", "-print_final_stats=1"]
        command = [sys.executable, "-m", "tests.tools.fuzz", "--here", reader, folder, *options]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = run.stdout + run.stderr
    tried = re.findall(r"^(?:#|stat::number_of_executed_units:\s+)(\d+)", said, re.MULTILINE)
    edges = [int(number) for number in re.findall(r"cov: (\d+)", said)] or [0]
    crashes = [] if run.returncode == 0 else re.findall(r"Test unit written to (\S+)", said) or ["an unknown input"]
    new = max(edges) - edges[0]
    print(f"{reader:9} {tried[-1] if tried else 0} inputs, {new} new edges of {max(edges)}, {len(crashes)} crashes")
    for crash in crashes:
        print(f"          {crash}\n{said[-3000:]}")
    return len(crashes)


def main() -> None:
    """Fuzz the readers that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"any of {', '.join(READERS)}; default: all")
    parser.add_argument("--seconds", type=int, default=600, help="time for each reader")
    arguments = parser.parse_args()
    sys.exit(min(1, sum([report(reader, arguments.seconds) for reader in arguments.readers or READERS])))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        fuzz_here(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        main()
