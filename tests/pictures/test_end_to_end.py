"""From a photo of any kind to the file that is asked for, by the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from batchnst import Recipe, stylize
from tests.helpers import as_bytes, batchnst, scene
from tests.pictures.profiles import rgb_profile
from tests.pictures.runs import UNCHANGED, ledger, run


def reopened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def test_formats_are_those_asked_for_and_audit_agrees(folder: Path) -> None:
    rows = [{"content": "clear.png", "format": ending} for ending in ("png", "jpg", "webp", "avif", "tif")]
    rows.append({"content": "clear.png", "format": "png", "output": "deep/er/x.TIFF"})
    assert run(folder, *rows).exit_code == 0
    outputs = ["n0.png", "n1.jpg", "n2.webp", "n3.avif", "n4.tif", "deep/er/x.TIFF"]
    assert [row["output"] for _, row in sorted(ledger(folder).items())] == outputs
    kinds = []
    for output in outputs:
        with Image.open(folder / "out" / "images" / output) as image:
            kinds.append(image.format)
    assert kinds == ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "TIFF"]
    audit = batchnst("audit", folder / "out", "--deep")
    assert audit.exit_code == 0, audit.stdout
    traced = batchnst("audit", "--picture", folder / "out/images/n4.tif")
    assert traced.stdout.startswith("pair_id      n4\n")


def test_a_tiff_holds_more_than_eight_bits_of_what_was_painted(folder: Path) -> None:
    painted = {"style_weight": 100, "steps": 3}
    assert run(folder, {"content": "clear.png", "format": "tif", **painted}).exit_code == 0
    pixels = tifffile.imread(folder / "out" / "images" / "n0.tif")
    assert pixels.dtype == np.uint16
    assert (pixels % 257 != 0).mean() > 0.5
    pair = [folder / "clear.png", folder / "style.png"]
    alone = batchnst("stylize", *pair, "--out", folder / "x.tif", "--size", 48, "--steps", 3)
    assert alone.exit_code == 0, alone.output
    assert (tifffile.imread(folder / "x.tif") % 257 != 0).mean() > 0.5


def test_opacity_is_kept_where_it_is_asked_for(folder: Path) -> None:
    rows = [{"content": "clear.png", "alpha": "keep"}, {"content": "clear.png", "alpha": "black"}]
    rows.append({"content": "photo.jpg", "alpha": "keep"})
    assert run(folder, *rows).exit_code == 0
    kept, black, opaque = (reopened(folder / "out" / "images" / f"n{i}.png") for i in range(3))
    assert kept.mode == "RGBA"
    assert (np.asarray(kept.getchannel("A")) == np.asarray(Image.open(folder / "clear.png").getchannel("A"))).all()
    assert np.asarray(kept)[0, 0, :3].tolist() == [255, 255, 255]
    assert (black.mode, np.asarray(black)[0, 0].tolist()) == ("RGB", [0, 0, 0])
    assert opaque.mode == "RGB"
    refused = run(folder, {"content": "clear.png", "alpha": "keep", "format": "jpg"})
    assert refused.exit_code == 2
    assert "line 1, output: 'n0.jpg' holds no transparency, but alpha is keep" in refused.stderr


def test_exif_and_colours_are_kept_where_it_is_asked_for(folder: Path) -> None:
    rows = [{"content": "photo.jpg", "metadata": metadata, "format": "jpg"} for metadata in ("keep", "none")]
    assert run(folder, *rows).exit_code == 0
    with Image.open(folder / "out" / "images" / "n0.jpg") as kept, Image.open(folder / "photo.jpg") as photo:
        assert kept.size == (48, 32)
        assert kept.getexif()[ExifTags.Base.Make] == "Camera Works"
        assert ExifTags.Base.Orientation not in kept.getexif()
        assert kept.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        assert kept.info["icc_profile"] == rgb_profile()
        # In the photo's own colours it is what the photo was.
        before = np.asarray(photo.transpose(Image.Transpose.ROTATE_270)).astype(int)
        assert np.abs(np.asarray(kept) - before).mean() < 3
    with Image.open(folder / "out" / "images" / "n1.jpg") as plain:
        assert ExifTags.Base.Make not in plain.getexif()
        assert plain.info["icc_profile"] != rgb_profile()


def test_what_is_worth_knowing_is_in_the_row(folder: Path) -> None:
    others = [Image.new("RGB", (48, 32), "blue")]
    scene(48, 32).save(folder / "moving.gif", save_all=True, append_images=others)
    scene(48, 32).save(folder / "odd.png", icc_profile=b"nonsense")
    two_styles = {"content": "odd.png", "style": ["style.png", "moving.gif"]}
    rows: list[dict[str, Any]] = [{"content": "moving.gif"}, two_styles, {"content": "clear.png"}]
    assert run(folder, *rows).exit_code == 0
    assert [row["notes"] for _, row in sorted(ledger(folder).items())] == [
        ["content: the first of 2 frames"],
        ["content: its colour profile cannot be read; taken as sRGB", "style 2: the first of 2 frames"],
        [],
    ]


def test_a_photo_whose_exif_is_broken_is_painted_with_its_batch(folder: Path) -> None:
    broken = as_bytes(scene(48, 32), "JPEG", exif=b"Exif\0\0nonsense")
    (folder / "broken.jpg").write_bytes(broken)
    rows: list[dict[str, Any]] = [{"content": name, "metadata": "keep"} for name in ("photo.jpg", "broken.jpg")]
    assert run(folder, *rows).exit_code == 0
    assert ledger(folder)["n0"]["notes"] == []
    assert ledger(folder)["n1"]["notes"] == ["content: its EXIF is broken and was left out"]


def test_pictures_are_opened_in_processes_apart_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a picture was opened in this process")

    monkeypatch.setattr(Image, "open", refuse)
    assert run(folder, {"content": "photo.jpg", "metadata": "keep"}, {"content": "clear.png"}).exit_code == 0
    out = folder / "out"
    commands = [
        ("plan", folder / "m.jsonl"),
        ("audit", out, "--deep"),
        ("audit", "--picture", out / "images" / "n0.png"),
        ("replay", out, "n0"),
        ("report", out),
        ("manifest", folder / "clear.png", folder / "style.png", "--out", folder / "pairs.csv"),
    ]
    assert {command[0]: result.output for command in commands if (result := batchnst(*command)).exit_code} == {}
    assert "cannot be read" not in (out / "report.html").read_text()


def test_a_limit_refuses_and_can_be_raised_without_painting_anything_twice(folder: Path) -> None:
    rows: list[dict[str, Any]] = [{"content": "photo.jpg"}, {"content": "clear.png"}]
    assert run(folder, *rows).exit_code == 0
    small = [row | {"max_megapixels": 0.001} for row in rows] + [{"content": "clear.png", "max_megapixels": 0.001}]
    refused = run(folder, *small)
    assert refused.exit_code == 1
    assert "2 of 3 pairs are done already" in refused.stderr
    assert "48×32 pixels, more than max_megapixels = 0.001 allows" in refused.stderr
    with (folder / "huge.tif").open("wb") as file:
        file.truncate(2 << 30)  # 2 GB, all of them holes
    huge = run(folder, {"content": "huge.tif"})
    assert huge.exit_code == 1
    assert "huge.tif: 2147 MB, more than the 1000 MB that max_megapixels = 250 allows" in huge.stderr


def test_the_python_function_takes_pictures_of_every_kind(folder: Path) -> None:
    recipe = Recipe.from_settings(UNCHANGED | {"alpha": "keep", "metadata": "keep"})
    from_memory = stylize(Image.open(folder / "clear.png"), str(folder / "style.png"), recipe)
    assert (np.asarray(from_memory.finish.alpha) == np.asarray(Image.open(folder / "clear.png").getchannel("A"))).all()
    from_file = stylize(folder / "photo.jpg", Image.open(folder / "style.png"), recipe)
    assert from_file.picture.size == (48, 32)
    assert from_file.finish.icc == rgb_profile()


@pytest.mark.parametrize("planted", ["images", "images/deep", "ledger", "ledger/pairs", "snapshots"])
def test_links_planted_in_out_do_not_lead_out_of_it(folder: Path, planted: str) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    link = folder / "out" / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    result = run(folder, {"content": "clear.png", "output": "deep/x.png", "snapshot_every": 1})
    assert list(elsewhere.iterdir()) == []
    assert result.exit_code != 0
    assert f"{link}: is a link; expected a real folder" in result.stderr
    os.unlink(link)
    assert run(folder, {"content": "clear.png", "output": "deep/x.png", "snapshot_every": 1}).exit_code == 0


@pytest.mark.parametrize("colour", ["black", "white", "#808080"])
def test_a_style_of_one_colour_is_painted_like_any_other(folder: Path, colour: str) -> None:
    Image.new("RGB", (60, 60), colour).save(folder / "plain.png")
    painted = {"content": "photo.jpg", "style": "plain.png", "style_weight": 100, "steps": 12}
    assert run(folder, painted).exit_code == 0
    row = ledger(folder)["n0"]
    assert row["stopped"] in ("steps", "plateau")
    assert 0 < row["total_loss"] < row["initial_total"]


def test_a_file_that_may_not_be_read_is_named(folder: Path) -> None:
    (folder / "photo.jpg").chmod(0)
    if os.access(folder / "photo.jpg", os.R_OK):
        pytest.skip("whoever runs these tests may read everything")
    assert run(folder, {"content": "photo.jpg"}).exit_code == 1
    assert ledger(folder)["n0"]["error_message"] == f"{folder}/photo.jpg: cannot be read: Permission denied"


def test_the_format_has_an_option_of_its_own(folder: Path) -> None:
    (folder / "m.csv").write_text("content,style,id\nclear.png,style.png,a\n")
    options = ["--engine", "inline", "--format", "jpg", "--size", 48, "--steps", 1]
    assert batchnst("run", folder / "m.csv", "--out", folder / "out", *options).exit_code == 0
    assert [path.name for path in (folder / "out" / "images").iterdir()] == ["a.jpg"]


def test_what_cannot_be_written_is_told_before_anything_is_painted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchnst.painting.single.stylize", None)
    result = batchnst("stylize", folder / "clear.png", folder / "style.png", "--out", "http://127.0.0.1:9/x.png")
    assert result.exit_code == 2
    assert result.stderr.startswith("batchnst: http://127.0.0.1:9/x.png: cannot be written: ")
