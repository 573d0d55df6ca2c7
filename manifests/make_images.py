"""Make the demo's pictures: photographs out of the scikit-image wheel, styles painted here, stroke by stroke.

python make_images.py WHEEL_FOLDER IMAGES_FOLDER
"""

from __future__ import annotations

import math
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps

PHOTOS = {
    "astronaut.png": "astronaut.png",
    "chelsea.png": "chelsea.png",
    "coffee.png": "coffee.png",
    "rocket.jpg": "rocket.jpg",
    "ihc.png": "ihc.png",
    "hubble.jpg": "hubble_deep_field.jpg",
    "retina.jpg": "retina.jpg",
}
SIZE = 640
SUNS = [(150.0, 130.0, 85.0), (470.0, 220.0, 110.0), (250.0, 430.0, 70.0), (540.0, 530.0, 60.0)]  # x, y, radius

Colour = tuple[int, int, int]


def take_photos(wheels: Path, images: Path) -> None:
    """Copy the photographs out of the wheel."""
    (wheel,) = wheels.glob("scikit_image-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name, inside in PHOTOS.items():
            (images / name).write_bytes(archive.read(f"skimage/data/{inside}"))


def smooth_noise(random: np.random.Generator, cell: int) -> NDArray[np.float64]:
    """Noise in 0..1 that varies over about `cell` pixels, (SIZE, SIZE)."""
    coarse = random.random((SIZE // cell + 3, SIZE // cell + 3)).astype(np.float32)
    smooth = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float64).clip(0, 1)


def stroke(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    field: NDArray[np.float64],
    steps: int,
    colour: Colour,
    width: int,
) -> None:
    """A brush stroke that follows the field of angles (SIZE, SIZE) from `start`."""
    x, y = start
    points = [start]
    for _ in range(steps):
        angle = field[min(SIZE - 1, max(0, int(y))), min(SIZE - 1, max(0, int(x)))]
        x, y = x + 3 * math.cos(angle), y + 3 * math.sin(angle)
        points.append((x, y))
    draw.line(points, fill=colour, width=width, joint="curve")


def shade(random: np.random.Generator, colour: Colour, spread: int) -> Colour:
    """The colour, a little lighter or darker, as paint never is twice the same."""
    by = int(random.integers(-spread, spread + 1))
    r, g, b = (int(np.clip(channel + by + random.integers(-8, 9), 0, 255)) for channel in colour)
    return r, g, b


def swirls() -> Image.Image:
    """Thick strokes that turn about a few bright suns in a night of blues."""
    random = np.random.default_rng(1)
    blues: list[Colour] = [(16, 32, 88), (28, 62, 140), (52, 110, 180), (110, 165, 205), (20, 84, 110)]
    golds: list[Colour] = [(250, 205, 70), (255, 228, 130), (232, 150, 40), (250, 240, 190)]
    ys, xs = np.mgrid[:SIZE, :SIZE].astype(float)
    field = 2.2 * math.pi * smooth_noise(random, 210)
    for sun_x, sun_y, radius in SUNS:
        nearness = np.exp(-(((xs - sun_x) ** 2 + (ys - sun_y) ** 2) / (1.9 * radius) ** 2))
        around = np.arctan2(ys - sun_y, xs - sun_x) + math.pi / 2
        field = np.where(nearness > 0.25, around, field)
    picture = Image.new("RGB", (SIZE, SIZE), blues[0])
    draw = ImageDraw.Draw(picture)
    for width, count, steps in ((11, 2600, 14), (7, 3800, 11), (4, 4200, 9)):
        for _ in range(count):
            x, y = random.uniform(-10, SIZE + 10, 2)
            ring = min(math.hypot(x - sx, y - sy) / radius for sx, sy, radius in SUNS)
            golden = ring < 0.55 or (ring < 1.25 and random.random() < 0.35)
            palette = golds if golden else blues
            stroke(draw, (x, y), field, steps, shade(random, palette[random.integers(len(palette))], 22), width)
    return picture.filter(ImageFilter.GaussianBlur(0.6))


def woodcut() -> Image.Image:
    """Carved black lines over flat warm colours, as a printed woodcut."""
    random = np.random.default_rng(7)
    warm: list[Colour] = [(238, 222, 190), (222, 160, 70), (196, 74, 46), (120, 44, 40), (58, 94, 92)]
    land = smooth_noise(random, 150)
    bands = np.clip((land * 1.35 - 0.15) * len(warm), 0, len(warm) - 1).astype(int)
    picture = Image.fromarray(np.asarray(warm, dtype=np.uint8)[bands])
    draw = ImageDraw.Draw(picture)
    gradient_y, gradient_x = np.gradient(land)
    along = np.arctan2(gradient_y, gradient_x) + math.pi / 2
    for _ in range(3400):
        x, y = random.uniform(0, SIZE, 2)
        dark = land[int(y), int(x)]
        if random.random() < 0.25 + 0.75 * dark:
            stroke(draw, (x, y), along, int(random.integers(8, 26)), (28, 20, 22), int(random.integers(2, 5)))
    for _ in range(500):
        stroke(draw, tuple(random.uniform(0, SIZE, 2)), along, 14, (245, 234, 208), 2)
    return picture.filter(ImageFilter.GaussianBlur(0.5))


def cup() -> Image.Image:
    """Where the cup and saucer of coffee.png are: white, with a soft edge."""
    mask = Image.new("L", (600, 400))
    draw = ImageDraw.Draw(mask)
    draw.ellipse((78, 60, 476, 390), fill=255)
    draw.ellipse((172, 15, 412, 240), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(6))


def suns() -> Image.Image:
    """Where the suns of the swirls are."""
    mask = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(mask)
    for x, y, radius in SUNS:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(4))


def main() -> None:
    """Make what is not there yet."""
    wheels, images = (Path(argument) for argument in sys.argv[1:])
    images.mkdir(parents=True, exist_ok=True)
    take_photos(wheels, images)
    swirls().save(images / "swirls.png")
    woodcut().save(images / "woodcut.png")
    for name, mask in (("cup", cup()), ("suns", suns())):
        mask.save(images / f"{name}-mask.png")
        ImageOps.invert(mask).save(images / f"{name}-mask-around.png")


if __name__ == "__main__":
    main()
