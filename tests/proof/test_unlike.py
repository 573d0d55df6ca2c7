from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchnst.errors import InputError, RequestError
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.reading import read_manifest
from batchnst.proof import unlike
from batchnst.proof.unlike import choose, farthest, look, named


def manifest(folder: Path, contents: list[str], style: str = "style.png") -> Manifest:
    lines = [f"{name},{style},{name.split('.')[0]}" for name in contents]
    (folder / "m.csv").write_text("\n".join(["content,style,id", *lines]) + "\n")
    return read_manifest(str(folder / "m.csv"), {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten nearly equal red photos, a blue one, a noisy one, and a style."""
    for i in range(10):
        Image.new("RGB", (40, 30), (200 + i, 30, 30)).save(tmp_path / f"red{i}.png")
    Image.new("RGB", (40, 30), (20, 30, 220)).save(tmp_path / "blue.png")
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.new("RGB", (30, 30), "gold").save(tmp_path / "style.png")
    return tmp_path


REDS = [f"red{i}.png" for i in range(10)]


def test_unlike_pairs_are_chosen_the_same_ones_every_time(folder: Path) -> None:
    rows = manifest(folder, [*REDS[:5], "blue.png", *REDS[5:], "noise.png"])
    chosen = [pair.id for pair in choose(rows, 3, pytest.fail)]
    assert chosen[0].startswith("red")
    assert chosen[1:] == ["blue", "noise"]
    assert chosen == [pair.id for pair in choose(rows, 3, pytest.fail)]
    fewer = {pair.id for pair in choose(rows, 2, pytest.fail)}
    assert fewer < set(chosen)
    assert len(choose(rows, 99, pytest.fail)) == len(rows)


def test_pairs_that_cannot_be_read_are_passed_over_with_a_line(folder: Path) -> None:
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n")
    rows = manifest(folder, ["torn.png", "red1.png", "gone.png", "blue.png"])
    said: list[str] = []
    assert [pair.id for pair in choose(rows, 6, said.append)] == ["red1", "blue"]
    torn = "not a picture that Pillow can read: a PNG that is damaged, or ends early"
    assert sorted(said) == [
        f"passed over 1 pair: {folder}/gone.png: no such file",
        f"passed over 1 pair: {folder}/torn.png: {torn}",
    ]
    with pytest.raises(InputError, match=r"m\.csv: none of 2 pairs has pictures that can be read"):
        choose(manifest(folder, ["red1.png", "red2.png"], "gone.png"), 6, said.append)
    assert said[-1] == f"passed over 2 pairs: {folder}/gone.png: no such file"


def test_of_many_pairs_a_sample_is_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlike, "CANDIDATES", 4)
    counts: list[float] = []
    chosen = choose(manifest(folder, REDS), 2, pytest.fail, lambda _text, _done, total: counts.append(total))
    assert len(chosen) == 2
    assert set(counts) == {5}, "four contents and a style"


def test_named_pairs_are_taken_as_they_are(folder: Path) -> None:
    rows = manifest(folder, ["red1.png", "gone.png", "blue.png"])
    assert [pair.id for pair in named(rows, ["blue", "gone", "blue"])] == ["gone", "blue"]
    with pytest.raises(RequestError, match=r"--pair bleu: no such id in .*m\.csv \(did you mean 'blue'\?\)"):
        named(rows, ["bleu"])


def test_the_farthest_are_chosen_each_feature_counting_the_same() -> None:
    points, pictures = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.001], [1.0, 0.0]]), [["s"]] * 5
    assert farthest(points, pictures, 2)[1] == 3
    assert sorted(farthest(points, pictures, 9)) == [0, 1, 2, 3, 4]
    assert sorted(farthest(np.zeros((3, 2)), pictures, 3)) == [0, 1, 2]


def test_a_photo_comes_again_only_when_all_have_been_there() -> None:
    contents, styles = np.array([0.0, 1.0, 1.1, 9.0]), np.array([0.0, 5.0])
    points = np.array([[content, style] for content in contents for style in styles])
    pictures = [[f"c{content}", f"s{style}"] for content in contents for style in styles]
    chosen = [pictures[i] for i in farthest(points, pictures, 8)]
    assert len({content for content, _ in chosen[:4]}) == 4
    assert sorted(style for _, style in chosen[:4]) == ["s0.0", "s0.0", "s5.0", "s5.0"]
    assert sorted(chosen) == sorted(pictures)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 64, 3), (64, 1, 3)])
def test_a_picture_of_any_shape_has_a_look(shape: tuple[int, ...]) -> None:
    assert np.isfinite(look(np.full(shape, 128, np.uint8))).all()


def test_fine_and_coarse_upright_and_level_stripes_differ() -> None:
    looks = []
    for width in (2, 16):
        stripes = np.tile(np.repeat([0, 255], width), 64 // (2 * width)).astype(np.uint8)
        level = np.broadcast_to(stripes[None, :, None], (64, 64, 3))
        looks += [look(level), look(level.transpose(1, 0, 2))]
    assert min(np.abs(a - b).max() for i, a in enumerate(looks) for b in looks[:i]) > 1
    np.testing.assert_allclose(looks[0][:6], looks[3][:6])
