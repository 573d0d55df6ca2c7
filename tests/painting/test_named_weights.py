from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from batchnst.backbones import BACKBONES
from batchnst.errors import RequestError
from batchnst.painting.named_weights import Entry, describe, entries, import_weights, load_weights
from batchnst.transfer.weights import NORMALISATIONS, SOURCES, tensor_shapes
from tests.helpers import State, as_pth, random_state, torchvision_names


def as_pickle(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


STATE = random_state()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "batchnst" / "weights"


def put(folder: Path, data: bytes, name: str = "w.pth") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def test_all_formats_of_the_same_tensors_have_one_hash(tmp_path: Path, cache: Path) -> None:
    theirs = torchvision_names(STATE)
    classifier = {"classifier.1.weight": torch.ones(3), "epoch": 90}
    files = [
        as_pth(theirs),
        as_pickle(theirs),
        as_pth({**theirs, **classifier}),
        as_pickle({name: torch.nn.Parameter(tensor) for name, tensor in theirs.items()}),
        as_pth({name: tensor.double() for name, tensor in theirs.items()}),
        as_pth({"state_dict": {f"module.{name}": tensor for name, tensor in theirs.items()}, "epoch": 90}),
        as_pth({f"_orig_mod.module.{name}": tensor for name, tensor in theirs.items()}),
        safetensors.torch.save(theirs),
        safetensors.torch.save(STATE, {"normalisation": "imagenet"}),
    ]
    hashes = {load_weights("alexnet", put(tmp_path, data, f"{i}.bin")).sha256 for i, data in enumerate(files)}
    backbone, imported = import_weights(str(tmp_path / "2.bin"), "mine")
    assert hashes == {imported.sha256, load_weights("alexnet", "mine").sha256}
    assert backbone == "alexnet"
    kept = safetensors.torch.load_file(cache / "mine.safetensors")
    assert kept.keys() == STATE.keys()
    assert all(torch.equal(kept[name], STATE[name]) for name in STATE)


def test_a_file_may_lie_in_a_store(tmp_path: Path) -> None:
    path = put(tmp_path, as_pth(torchvision_names(STATE)))
    assert load_weights("alexnet", f"file://{path}") == load_weights("alexnet", path)


def test_the_normalisation_belongs_to_the_weights(tmp_path: Path, cache: Path) -> None:
    bare, theirs = put(tmp_path, safetensors.torch.save(STATE), "bare"), put(tmp_path, as_pth(torchvision_names(STATE)))
    with pytest.raises(RequestError, match=r"NAME --normalisation imagenet\|caffe`$"):
        load_weights("alexnet", bare)
    made = {name: import_weights(bare, name, name)[1] for name in ("caffe", "imagenet")}
    assert made["imagenet"] == load_weights("alexnet", theirs) == load_weights("alexnet", "imagenet")
    assert made["caffe"] == load_weights("alexnet", "caffe") != made["imagenet"]
    assert made["caffe"].mean == (123.68, 116.779, 103.939)
    assert import_weights(theirs, "again", "caffe")[1] == made["caffe"]
    odd = put(tmp_path, safetensors.torch.save(STATE, {"normalisation": "gray"}), "odd.safetensors")
    with pytest.raises(RequestError, match="its normalisation is 'gray'; expected imagenet or caffe"):
        load_weights("alexnet", odd)


class Malice:
    """Leaves a mark if it is ever unpickled."""

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, ("touch malice",)


def changed(name: str, tensor: Tensor | None, new: str | None = None) -> State:
    """The made-up tensors, one of them replaced, left out or by another name."""
    return {
        **{key: value for key, value in STATE.items() if key != name},
        **({new or name: tensor} if tensor is not None else {}),
    }


def as_zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return buffer.getvalue()


WHOLE, SAFE = as_pth(torchvision_names(STATE)), safetensors.torch.save(STATE, {"normalisation": "imagenet"})
DAMAGED = "is truncated or damaged"

BAD = {
    "truncated zip": (WHOLE[: len(WHOLE) // 2], DAMAGED),
    "truncated pickle": (as_pickle(STATE)[:-1000], DAMAGED),
    "truncated safetensors": (SAFE[:-1000], DAMAGED),
    "truncated header": (SAFE[:100], DAMAGED),
    "nothing": (b"", "is neither safetensors nor a state dict of torch"),
    "text": (b"<html>404 Not Found</html>", "is neither safetensors nor a state dict of torch"),
    "malicious zip": (as_pth({**STATE, "x": Malice()}), "holds more than tensors, and was not run"),
    "malicious pickle": (pickle.dumps({**STATE, "x": Malice()}), "holds more than tensors, and was not run"),
    "a whole module": (as_pth(torch.nn.Linear(2, 2)), "holds more than tensors, and was not run"),
    "a list": (as_pth([torch.zeros(3)]), "holds a list; expected a state dict, or safetensors"),
    "no tensors": (as_pth({"state_dict": {"epoch": 3}}), "is not alexnet's: it has no conv1.weight, nor any tensor"),
    "other names": (
        as_pth({f"net.{name}": tensor for name, tensor in STATE.items()}),
        "is not alexnet's: it has no conv1.weight; its tensors are called net.conv1.weight, net.conv1.bias …",
    ),
    "tensors without numbers": (
        as_pth({name: tensor.to("meta") for name, tensor in STATE.items()}),
        "is not alexnet's: it has no conv1.weight, nor any tensor",
    ),
    "another zip": (as_zip("a.txt"), "is a zip, but none of torch; expected a state dict, or safetensors"),
    "TorchScript": (as_zip("x/data.pkl", "x/constants.pkl"), "is a TorchScript program; expected a state dict"),
    "a layer of zeros": (
        safetensors.torch.save(changed("conv2.weight", torch.zeros(192, 64, 5, 5)), {"normalisation": "caffe"}),
        "conv2.weight is all zero; expected a trained network",
    ),
    "numbers too large to square": (
        safetensors.torch.save(changed("conv2.weight", STATE["conv2.weight"] * 1e25), {"normalisation": "caffe"}),
        "relu2 is all zero, or not finite, on a random picture",
    ),
    "renamed": (
        as_pth(changed("conv3.bias", STATE["conv3.bias"], "conv3.b")),
        "is not alexnet's: it has no conv3.bias",
    ),
    "sparse": (as_pth(changed("conv1.bias", torch.ones(64).to_sparse())), "is not alexnet's: it has no conv1.bias"),
    "too many": (as_pth({**STATE, "conv6.bias": torch.ones(3)}), "is not alexnet's: it has conv6.bias as well"),
    "shape": (
        as_pth(changed("conv2.weight", torch.ones(192, 48, 5, 5))),
        "is not alexnet's: its conv2.weight is float32 192×48×5×5, not float 192×64×5×5",
    ),
    "integers": (
        as_pth(changed("conv1.bias", torch.ones(64).int())),
        "is not alexnet's: its conv1.bias is int32 64, not",
    ),
    "NaN": (
        safetensors.torch.save(changed("conv4.bias", torch.full((256,), torch.nan)), {"normalisation": "caffe"}),
        "conv4.bias holds NaN or infinity",
    ),
    "overflow": (
        safetensors.torch.save(
            changed("conv1.bias", torch.full((64,), 1e300, dtype=torch.float64)), {"normalisation": "caffe"}
        ),
        "conv1.bias holds NaN or infinity",
    ),
    "zeros": (
        safetensors.torch.save(
            {key: torch.zeros_like(value) for key, value in STATE.items()}, {"normalisation": "caffe"}
        ),
        "conv1.weight is all zero; expected a trained network",
    ),
    "dead": (
        safetensors.torch.save(changed("conv3.bias", torch.full((384,), -1e9)), {"normalisation": "caffe"}),
        "relu3 is all zero, or not finite, on a random picture",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_a_line(
    kind: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, said = BAD[kind]
    path = put(tmp_path, data)
    with pytest.raises(RequestError) as caught:
        load_weights("alexnet", path)
    assert str(caught.value).startswith(f"weights {path}: {said}")
    with pytest.raises(RequestError) as caught:
        import_weights(path, "bad", "imagenet")
    assert str(caught.value).startswith(f"weights {path}: ")
    assert "\n" not in str(caught.value)
    assert not cache.exists()
    assert not (tmp_path / "malice").exists()


def test_what_is_not_there_is_said(tmp_path: Path, cache: Path) -> None:
    import_weights(put(tmp_path, WHOLE), "mine")
    for source, said in (
        (f"{tmp_path}/none.pth", f"weights {tmp_path}/none.pth: no such file"),
        (str(tmp_path) + "/", f"weights {tmp_path}/: "),
        ("nope://x/y.pth", "weights nope://x: no storage can be opened by this URI"),
        (
            "minne",
            "weights: none are called 'minne' (did you mean 'mine'?); expected bundled, torchvision, random, a file",
        ),
        ("bundeld", "weights: none are called 'bundeld' (did you mean 'bundled'?)"),
    ):
        with pytest.raises(RequestError) as caught:
            load_weights("alexnet", source)
        assert str(caught.value).startswith(said)


def test_the_wrong_network_is_named(tmp_path: Path, cache: Path) -> None:
    for names in (lambda state, _: state, torchvision_names):
        path = put(tmp_path, safetensors.torch.save(names(random_state("vgg16"), "vgg16"), {"normalisation": "caffe"}))
        for asked in ("vgg19", "alexnet"):
            with pytest.raises(RequestError) as caught:
                load_weights(asked, path)
            said = f"is not {asked}'s: it looks like vgg16's; say --backbone vgg16"
            assert str(caught.value) == f"weights {path}: {said}"
    state = torchvision_names(random_state("vgg16"), "vgg16")
    del state["features.28.bias"]
    with pytest.raises(
        RequestError, match="is none of vgg19, vgg16, alexnet; the nearest is vgg16, but it has no conv5_3"
    ):
        import_weights(put(tmp_path, as_pth(state)), "mine")


@pytest.mark.parametrize("name", ["random", "a.b", "a/b", "", "../x"])
def test_names_are_plain_and_ones_own(name: str, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(RequestError, match="cannot be a name; expected letters, digits"):
        import_weights(put(tmp_path, WHOLE), name)


def test_what_is_at_hand_is_listed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = put(tmp_path, WHOLE)
    import_weights(path, "mine")
    found = {(entry.name, entry.backbone): entry for entry in entries(None)}
    assert list(found) == [("bundled", "vgg19"), *(("random", name) for name in BACKBONES), ("mine", "alexnet")]
    mine = found["mine", "alexnet"]
    size = 4 * sum(tensor.numel() for tensor in STATE.values())
    assert mine == Entry("mine", "alexnet", size, load_weights("alexnet", path).sha256, mine.origin, None)
    assert mine.origin == f"{path}; licence not recorded"
    assert found["bundled", "vgg19"].sha256 == SOURCES["bundled"]("vgg19").sha256
    assert describe(mine) == f"mine           alexnet    9.9 MB  {mine.sha256}  {path}; licence not recorded"


def originals(backbone: str = "vgg19") -> State:
    """The tensors of the original VGG19, from Caffe; of VGG16, those of its layers: BGR, 0..255."""
    weights = SOURCES["bundled"]("vgg19")
    state = {name: torch.from_numpy(weights.tensors[name].copy()) for name in tensor_shapes(backbone)}
    state["conv1_1.weight"] = state["conv1_1.weight"].flip(1)
    return state


def for_imagenet(state: State) -> State:
    """The same network for the input that torchvision's networks expect."""
    expected = NORMALISATIONS["imagenet"]
    unit = sum(expected.std) / 3
    state = {name: tensor / unit if name.endswith("bias") else tensor for name, tensor in state.items()}
    scale = torch.tensor(expected.std).reshape(1, 3, 1, 1) / unit
    return {**state, "conv1_1.weight": state["conv1_1.weight"].flip(1) * scale}


@pytest.mark.parametrize(("backbone", "write"), [("vgg16", as_pth), ("vgg19", safetensors.torch.save)])
def test_caffes_networks_by_torchvisions_names_are_recognised(
    backbone: str, write: Callable[[State], bytes], tmp_path: Path, cache: Path
) -> None:
    state = {name: tensor.contiguous() for name, tensor in originals(backbone).items()}
    path = put(tmp_path, write(torchvision_names(state, backbone)))
    found = load_weights(backbone, path)
    assert found == import_weights(path, "told", "caffe")[1] == import_weights(path, "recognised")[1]
    assert found != import_weights(path, "wrong", "imagenet")[1]
    if backbone == "vgg19":
        assert found == SOURCES["bundled"]("vgg19")


@pytest.mark.parametrize(
    ("backbone", "make"),
    [
        ("vgg19", lambda: for_imagenet(originals())),
        *((name, partial(random_state, name)) for name in ("vgg19", "vgg16")),
    ],
    ids=["bundled", "vgg19", "vgg16"],
)
def test_networks_for_torchvisions_input_are_not_taken_for_caffes(
    backbone: str, make: Callable[[], State], tmp_path: Path, cache: Path
) -> None:
    state = make()
    path = put(tmp_path, as_pth(torchvision_names(state, backbone)))
    assert load_weights(backbone, path) == import_weights(path, "told", "imagenet")[1]


def test_a_network_of_which_it_cannot_be_told_is_asked_for(tmp_path: Path, cache: Path) -> None:
    state = {name: tensor * (0.015 if name.endswith("bias") else 1) for name, tensor in random_state("vgg16").items()}
    path = put(tmp_path, as_pth(torchvision_names(state, "vgg16")))
    with pytest.raises(RequestError, match=r"does not say what input it expects; .* --normalisation imagenet\|caffe`$"):
        load_weights("vgg16", path)
    assert import_weights(path, "told", "caffe")[1].mean == NORMALISATIONS["caffe"].mean
