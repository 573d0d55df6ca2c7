"""Open every file of some folders as a picture, such as the samples in the source archives of Pillow and pillow-heif.

    python -m tests.tools.samples FOLDER ...

A file must become a picture, or be refused in a line. Prints what was refused, by reason, and what ended otherwise.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from batchnst.errors import InputError
from batchnst.painting.inputs import load_picture
from batchnst.pictures.decode import DecodeOptions


def outcomes(files: Iterable[Path]) -> tuple[list[Path], dict[str, list[Path]], dict[str, list[Path]]]:
    """The files that are pictures; those that are refused, by reason; and those that end otherwise, by error."""
    read, refused, wrong = list[Path](), defaultdict[str, list[Path]](list), defaultdict[str, list[Path]](list)
    for file in files:
        try:
            load_picture(str(file), DecodeOptions(size=96))
        except InputError as error:
            reason = str(error).removeprefix(f"{file}: ")
            (refused if "\n" not in reason else wrong)[reason].append(file)
        except Exception as error:  # whatever it is, a person would see a traceback
            wrong[repr(error)].append(file)
        else:
            read.append(file)
    return read, refused, wrong


def main() -> None:
    """Say what comes of the files in the folders that are named."""
    files = sorted(file for folder in sys.argv[1:] for file in Path(folder).rglob("*") if file.is_file())
    read, refused, wrong = outcomes(files)
    for title, found in (("refused", refused), ("WRONG", wrong)):
        for reason, named in sorted(found.items(), key=lambda item: -len(item[1])):
            print(f"{title} {len(named):4} {reason}   {named[0].name}")
    print(f"{len(files)} files: {len(read)} read, {sum(map(len, refused.values()))} refused, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
