"""The recipe: all settings of one pair. Their defaults are defined only here."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from datetime import date, time
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from batchnst.backbones import BACKBONES, cut, layer_names, smallest_side
from batchnst.encodings import decode
from batchnst.errors import RecipeError
from batchnst.sizes import fit

SMALLEST_TILE = 64
"""Smallest side of a tile, in pixels."""

NOT_IN_FINGERPRINT = {"damaged", "max_megapixels", "tile", "weights"}
"""Keys that do not change the picture, or that the fingerprint covers otherwise: it includes the weights' hash."""

ADDED = {"enlarge": True, "octaves": False}
"""Keys that came later, with values for which the picture is what it was: so older OUTs stay done."""

ORIGINAL: Final = "original"
"""Value of `size` that keeps each photo's own."""

_PIXELS = TypeAdapter(Annotated[int, Field(ge=16, le=65536)])

MOST_SHOWN = 80
"""Letters of a value that are shown in a message."""

STARTS = ["content", "noise", "style"]
"""Values of `init` other than a picture's path or URI."""


def is_start_picture(init: str) -> bool:
    """True if `init` is the path or URI of a picture, which has a file name ending."""
    return init not in STARTS and "." in init


SOURCES = ["bundled", "torchvision", "random"]
"""Values of `weights` other than the path or URI of a file and the names of imported weights."""


def is_weights_file(weights: str) -> bool:
    """True if `weights` is the path or URI of a file, not a name."""
    return "." in weights or "/" in weights


ADDRESSES: dict[str, Callable[[str], bool]] = {"init": is_start_picture, "weights": is_weights_file}
"""Keys whose values may be addresses, with the functions that tell."""


def _parse_layers(value: Any) -> Any:
    """Convert the layers in a TOML, JSON, Parquet or CSV value or an option to a dict from layer to weight.

    Accepted: `{"relu4_2": 1}`, `["relu4_2"]`, `[("relu4_2", 1)]`, these as text, and the text `relu1_1, relu2_1=0.5`.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = value.strip().strip("{}[]").split(",")
    if isinstance(value, list | tuple):
        items = (item if isinstance(item, tuple) else str(item).partition("=")[::2] for item in value)
        value = {str(name).strip(): 1 if weight == "" else weight for name, weight in items}
    if isinstance(value, dict):
        value = {name: weight for name, weight in value.items() if name and weight is not None}
    return value


Layers = Annotated[dict[str, Annotated[float, Field(ge=0)]], BeforeValidator(_parse_layers)]
"""Weights of layers, each at least 0, by the layer's name."""


def _default_layers(kind: Literal["content_layers", "style_layers"]) -> Any:
    """Field whose default is the backbone's layers of this `kind`, each with weight 1."""
    return Field(default_factory=lambda settings: dict.fromkeys(getattr(BACKBONES[settings["backbone"]], kind), 1.0))


LOSSES = {
    "balanced": {"content_weight": 1.0, "style_weight": 10.0, "tv_weight": 0.0},
    "neural-style": {"content_weight": 5.0, "style_weight": 100.0, "tv_weight": 1e-3},
    "gatys2016": {"content_weight": 5.0, "style_weight": 100.0, "tv_weight": 1e-3},
}
"""The default weights of each loss."""


def _default_weight(key: str) -> Any:
    """Field, at least 0, whose default depends on the loss."""
    return Field(default_factory=lambda settings: LOSSES[settings["loss"]][key], ge=0)


class Recipe(BaseModel):
    """All settings of one pair: immutable, validated and hashable; equal settings give the same JSON.

    Pixel values are in 0..255. `loss` defines the content, style and tv losses, and
    total = content_weight·content + style_weight·style + tv_weight·tv.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    backbone: str = "vgg19"
    weights: str = "bundled"
    pooling: Literal["max", "avg"] = "max"
    content_layers: Layers = _default_layers("content_layers")
    style_layers: Layers = _default_layers("style_layers")
    loss: Literal["balanced", "neural-style", "gatys2016"] = "balanced"
    content_weight: float = _default_weight("content_weight")
    style_weight: float = _default_weight("style_weight")
    tv_weight: float = _default_weight("tv_weight")
    optimizer: Literal["lbfgs", "adam", "sgd"] = "lbfgs"
    learning_rate: float | None = Field(None, gt=0, description="default: the optimizer's own")
    size: int | Literal["original"] = 512
    enlarge: bool = True
    steps: int = Field(110, ge=1, le=1_000_000)
    min_size: int = Field(128, ge=16)
    octaves: bool = False
    init: str = "content"
    style_scale: float = Field(1.0, gt=0, le=16)
    resample: Literal["lanczos", "bicubic", "bilinear"] = "lanczos"
    preserve_color: Literal["none", "luminance", "histogram"] = "none"
    alpha: str = Field("white", pattern=r"^(white|black|gray|keep|#[0-9a-fA-F]{6})$")
    format: Literal["png", "jpg", "webp", "avif", "tif"] = "png"
    quality: int = Field(95, ge=1, le=100)
    metadata: Literal["none", "keep"] = "none"
    max_megapixels: float = Field(250.0, gt=0, le=100_000)
    damaged: Literal["refuse", "accept"] = "refuse"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tile: Literal["auto", "off"] | int = "auto"
    tolerance: float = Field(0.002, ge=0, lt=1)
    snapshot_every: int = Field(0, ge=0)
    seed: int = Field(0, ge=0, lt=2**63)

    @field_validator("backbone")
    @classmethod
    def _check_backbone(cls, backbone: str) -> str:
        if backbone not in BACKBONES:
            raise ValueError(_not_allowed(backbone, list(BACKBONES)))
        return backbone

    @field_validator("content_layers", "style_layers")
    @classmethod
    def _check_layers(cls, layers: dict[str, float], info: Any) -> dict[str, float]:
        if (backbone := info.data.get("backbone")) is None:
            return layers  # the error for the unknown backbone is enough
        known = layer_names(backbone)
        for name in layers:
            if name not in known:
                example = f"those of {backbone} are named like {BACKBONES[backbone].content_layers[0]}"
                raise ValueError(f"no layer {name!r}{did_you_mean(name, known)}; {example}")
        if not layers or not any(layers.values()):
            raise ValueError("expected at least one layer with a weight above 0")
        # In the network's order, so that equal settings are equal recipes.
        return {name: layers[name] for name in known if layers.get(name)}

    @field_validator("init")
    @classmethod
    def _check_init(cls, init: str) -> str:
        if init not in STARTS and not is_start_picture(init):
            raise ValueError(f"{init!r} is not allowed{did_you_mean(init, STARTS)}; {', '.join(STARTS)} or a picture")
        return init

    @field_validator("init", "weights")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if "\0" in name:
            raise ValueError("has a character with the code 0, which no name has")
        return name

    @field_validator("size", mode="plain")
    @classmethod
    def _check_size(cls, size: Any) -> Any:
        if size == ORIGINAL:
            return size
        try:
            return _PIXELS.validate_python(size)
        except ValidationError as error:
            why = _plainer(size, error.errors()[0]["msg"])
            raise ValueError(f"{_shown(size)} is not allowed: {why}; a number of pixels, or {ORIGINAL}") from None

    @field_validator("tile", mode="before")
    @classmethod
    def _check_tile(cls, tile: Any) -> Any:
        if tile in ("auto", "off"):
            return tile
        if not (str(tile).isdecimal() and int(tile) >= SMALLEST_TILE):
            raise ValueError(f"{tile!r} is not allowed; auto, off, or a side of at least {SMALLEST_TILE} pixels")
        return int(tile)

    @model_validator(mode="after")
    def _check_combination(self) -> Recipe:
        if self.content_weight + self.style_weight == 0:
            raise ValueError("content_weight, style_weight: both are 0; expected at least one above 0")
        if self.size != ORIGINAL and self.pixels < self.smallest_side:
            raise ValueError(
                f"size: {self.size} is not allowed: {self.deepest_layer} needs at least {self.smallest_side} pixels; "
                "raise size or leave that layer out"
            )
        return self

    def __hash__(self) -> int:
        return hash(self.json_text)

    def changed(self, settings: Mapping[str, Any], reset: Collection[str] = ()) -> Recipe:
        """This recipe with `settings`; keys in `reset` and not in `settings` get their defaults.

        Keys that were never set keep following the keys that their defaults depend on. Raises RecipeError.
        """
        kept = {key: value for key, value in self.model_dump(exclude_unset=True).items() if key not in reset}
        return Recipe.from_settings({**kept, **settings})

    def __copy__(self) -> Self:
        # `model_copy` may change keys, so texts derived from them must not be copied.
        copied = super().__copy__()
        for name in ("json_text", "picture_text"):
            copied.__dict__.pop(name, None)
        return copied

    @cached_property
    def json_text(self) -> str:
        """The recipe as canonical JSON, for the ledger."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    @cached_property
    def picture_text(self) -> str:
        """The `picture_settings` as canonical JSON, for the fingerprint."""
        return json.dumps(picture_settings(self.model_dump()), sort_keys=True, separators=(",", ":"))

    @property
    def pixels(self) -> int:
        """Longest side of the picture in pixels, where it is the same for all; raises RecipeError if it is not."""
        if self.size == ORIGINAL:
            raise RecipeError(f"size: {ORIGINAL} is not allowed here; expected a number of pixels")
        return self.size

    @property
    def has_one_size(self) -> bool:
        """True if the longest side of every picture is `pixels`."""
        return self.size != ORIGINAL and self.enlarge

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """The size (width, height) at which a photo of `width` × `height` pixels is painted."""
        if self.size == ORIGINAL:
            return width, height
        longest = max(width, height)
        return fit(width, height, self.pixels if self.enlarge else min(self.pixels, longest))

    def for_picture(self, width: int, height: int) -> Recipe:
        """The recipe of a picture whose working size is `width` × `height`: its `size` is a number."""
        return self if self.has_one_size else self.model_copy(update={"size": max(width, height), "enlarge": True})

    @property
    def tile_side(self) -> int | None:
        """Side of a tile in pixels, None if `tile` is "auto" or "off"."""
        return self.tile if isinstance(self.tile, int) else None

    @property
    def loss_definition(self) -> str:
        """Name and version of the loss, for the ledger and the fingerprint."""
        return f"{self.loss}/1"

    @property
    def network(self) -> tuple[str, str]:
        """Backbone and weights, which together identify the network to load."""
        return self.backbone, self.weights

    @property
    def layers(self) -> list[str]:
        """Names of the layers whose features are needed: the content layers, then the style layers."""
        return [*{**self.content_layers, **self.style_layers}]

    @property
    def smallest_side(self) -> int:
        """Smallest side of a picture, in pixels, for which the deepest layer has an output."""
        return smallest_side(cut(self.backbone, self.layers))

    @property
    def deepest_layer(self) -> str:
        """Name of the last layer that is needed; later ones are not run."""
        return cut(self.backbone, self.layers)[-1].name

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Recipe:
        """Make a recipe from `settings`; raises RecipeError with one line for each key or value that is not allowed."""
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            # Skip layer errors if the backbone is unknown.
            items = (item for item in error.errors() if item["type"] != "default_factory_not_called")
            raise RecipeError(*map(_explain, items)) from None


def picture_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a recipe's `settings` that the picture depends on; equal for equal pictures, also of older versions."""
    added = {key for key, value in ADDED.items() if settings.get(key, value) == value}
    return {key: value for key, value in settings.items() if key not in NOT_IN_FINGERPRINT | added}


def recipe_keys() -> list[str]:
    """All keys that a recipe file, an option or a manifest row may set."""
    return list(Recipe.model_fields)


PRESETS: dict[str, dict[str, Any]] = {
    "draft": {"steps": 27},
    "standard": {},
    "fine": {"steps": 220, "tolerance": 0, "octaves": True},
    # As near to Gatys et al. 2016 as batchnst comes: their losses and weights, white noise, average pooling, one scale.
    "paper": {
        "loss": "gatys2016",
        "content_weight": 1,
        "style_weight": 1000,
        "tv_weight": 0,
        "style_layers": dict.fromkeys(("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"), 0.2),
        "pooling": "avg",
        "init": "noise",
        "steps": 500,
        "min_size": 65536,
        "tolerance": 0,
    },
}
"""Settings that `--recipe` takes by name: the quick, the default, the best, and the paper's."""


def read_recipe(name: str | Path) -> dict[str, Any]:
    """Return the settings of a preset, or those in a TOML file; raises RecipeError if it cannot be read."""
    return dict(PRESETS[str(name)]) if str(name) in PRESETS else read_recipe_file(name)


def read_recipe_file(path: str | Path) -> dict[str, Any]:
    """Read the settings in a TOML recipe file, without validation; raises RecipeError if it cannot be read."""
    try:
        return tomllib.loads(decode(Path(path).read_bytes()))
    except OSError as error:
        presets = ", ".join(PRESETS)
        raise RecipeError(f"recipe {path}: cannot be read: {error.strerror}; a TOML file, or {presets}") from None
    except (ValueError, RecursionError) as error:  # of tomllib, of another encoding, or nested too deep
        raise RecipeError(f"recipe {path}: not valid TOML: {error}") from None


def _explain(item: Any) -> str:
    """Describe one pydantic error: the key, its value and the allowed values."""
    if not item["loc"]:
        return str(item["ctx"]["error"])
    key = str(item["loc"][0])
    value = item["input"]
    if item["type"] == "extra_forbidden":
        return f"{key}: no such recipe key{did_you_mean(key, recipe_keys())}"
    if item["type"] == "literal_error":
        allowed = list(Recipe.model_fields[key].annotation.__args__)  # type: ignore[union-attr]
        return f"{key}: {_not_allowed(value, allowed)}"
    if item["type"] == "value_error":
        return f"{key}: {item['ctx']['error']}"
    where = ".".join(str(part) for part in item["loc"])
    return f"{where}: {_shown(value)} is not allowed: {_plainer(value, item['msg'])}"


def _plainer(value: object, message: str) -> str:
    """A message of pydantic on a value in plain words, with what else is expected."""
    text = message.replace("Input s", "s").replace(", unable to interpret input", ": true or false")
    text = text.partition(", unable to parse")[0]
    has_comma = isinstance(value, str) and re.fullmatch(r"[\d.]*,\d+(E[+-]?\d+)?", value, re.IGNORECASE)
    return f"{text}, written with a point and no comma" if has_comma else text


def _shown(value: object) -> str:
    """`value` as a text of at most MOST_SHOWN letters."""
    text = value.isoformat() if isinstance(value, date | time) else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _not_allowed(value: object, allowed: list[str]) -> str:
    return f"{_shown(value)} is not allowed{did_you_mean(str(value), allowed)}; one of {', '.join(allowed)}"


def did_you_mean(word: str, known: list[str]) -> str:
    """A text `(did you mean …?)` with the closest to `word` of `known`; empty if none is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
