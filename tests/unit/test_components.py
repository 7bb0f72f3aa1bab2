"""A text encoder of a folder beside the miniature's autoencoder, and the length that goes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentences import encoder_folder
from tiny import ADAM, ROOT
from transformers import BertConfig, BertModel

from msd.config import Compute, load
from msd.config.text import TinyAutoencoder
from msd.errors import ConfigError
from msd.latent.autoencoder import architecture, build_autoencoder, open_autoencoder
from msd.networks.files import write_safetensors
from msd.plan import Node, Plan
from msd.store import Manifest
from msd.teachers.autoencoder import AUTOENCODER_FORMAT
from msd.teachers.components import make_components
from msd.text.captions import caption_images
from msd.text.encoder import TextEncoder, open_encoder
from msd.text.encoder_files import copy_encoder
from msd.text.tiny import make_tiny_encoder

TRAINING = {"images": 8, "batch_size": 8, "optimizer": ADAM}
AUTOENCODER: dict[str, Any] = {"channels": [4, 4], "groups": 2, "training": TRAINING}
CAPTIONS: dict[str, Any] = {"names": ["cat", "dog"], "templates": ["a {}", "one {} on grass"]}
LONG = "dog " * 40
PROMPTS = ["A dog on a beach.", "", "a cat", LONG]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the layout of all-MiniLM-L6-v2, of random weights, with files that nobody needs."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "on", "beach", "cat", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "modules.json").write_text("[]")
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def components(encoder: dict[str, Any], root: Path) -> Path:
    """The folder that the stage makes of two grey cats and dogs and an untrained autoencoder."""
    data = Node("data", "data", "data", {}, {}, root)
    captions = Node("captions", "data", "captions", CAPTIONS, {"data": data}, root)
    autoencoder = Node("autoencoder", "networks", "autoencoder", AUTOENCODER, {"data": data}, root)
    settings, inputs = {"source": "tiny", "encoder": encoder}, {"captions": captions, "autoencoder": autoencoder}
    node = Node("components", "networks", "components", settings, inputs, root)

    files = {}
    data.manifest.parent.mkdir(parents=True)
    for half in ("train", "evaluation"):
        arrays = {"images": np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), np.uint8), "labels": [0, 1, 0, 1]}
        for name, array in arrays.items():
            files[f"{half}-{name}"] = data.manifest.parent / f"{half}-{name}.npy"
            np.save(files[f"{half}-{name}"], array)
    about = {"sha256": "0", "num_classes": 2, "image_shape": [1, 8, 8], "images": {"train": 4, "evaluation": 4}}
    Manifest.write(data.manifest, kind="data", settings={}, files=files, results=about)
    caption_images(captions.manifest, CAPTIONS, captions.input_paths)
    tiny, weights = TinyAutoencoder.model_validate(AUTOENCODER), autoencoder.manifest.parent / "weights.safetensors"
    write_safetensors(weights, build_autoencoder(tiny, 1).state_dict(), AUTOENCODER_FORMAT, architecture(tiny, 1))
    Manifest.write(autoencoder.manifest, kind="autoencoder", settings={}, files={"weights": weights})

    made = make_components(node, Compute(threads=1))
    assert {name.split("/")[0] for name in made.body["files"]} == {"vae", "text_encoder", "tokenizer"}
    return made.path.parent


def check_short_states(found: TextEncoder, whole: TextEncoder) -> None:
    """Those of the whole encoder where a prompt fits, and a count where it does not."""
    assert (found.kind, found.length, found.width, whole.length) == ("bert", 12, whole.width, 77)
    cut, full = found.encode(PROMPTS), whole.encode(PROMPTS)
    assert torch.allclose(cut.hidden[:3], full.hidden[:3, :12], atol=1e-5)
    assert torch.allclose(cut.pooled[:3], full.pooled[:3], atol=1e-5)
    assert cut.truncated.tolist() == [False, False, False, True]
    assert not full.truncated.any()
    assert cut.hidden[3].any(dim=1).all()


@pytest.mark.parametrize("length", [12, None])
def test_an_encoder_is_copied_with_its_length(length: int | None, bert: Path, tmp_path: Path) -> None:
    folder = components({"source": "folder", "path": str(bert), "length": length}, tmp_path)
    found, whole = open_encoder(folder, "cpu"), open_encoder(bert, "cpu")
    names = {str(path.relative_to(folder)) for path in folder.glob("t*/*")}
    expected = {"text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/vocab.txt"}
    if length is None:
        assert names == expected
        assert torch.equal(found.encode(PROMPTS).hidden, whole.encode(PROMPTS).hidden)
    else:
        assert names == expected | {"tokenizer/tokenizer_config.json"}
        check_short_states(found, whole)
        assert found.sha256 != whole.sha256
    assert open_autoencoder(folder).encode(torch.zeros(1, 1, 8, 8)).shape == (1, 4, 4, 4)


def test_the_real_sentence_encoder_is_copied_with_its_length(tmp_path: Path) -> None:
    source = encoder_folder()
    folder = components({"source": "folder", "path": str(source), "length": 12}, tmp_path)
    found = open_encoder(folder, "cpu")
    check_short_states(found, open_encoder(source, "cpu"))
    settings = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    assert settings == json.loads((source / "tokenizer_config.json").read_text()) | {"model_max_length": 12}


def test_a_clip_encoder_keeps_its_length(tmp_path: Path) -> None:
    make_tiny_encoder(PROMPTS, tmp_path / "tiny", vocabulary=520, length=9, width=16, layers=1)
    copy_encoder(tmp_path / "tiny", tmp_path / "copy")
    found, whole = (open_encoder(tmp_path / name, "cpu") for name in ("copy", "tiny"))
    assert (found.length, found.sha256) == (9, whole.sha256)
    with pytest.raises(ConfigError, match="cannot be chosen"):
        copy_encoder(tmp_path / "tiny", tmp_path / "other", 8)


def test_the_source_of_an_encoder_changes_no_digest_of_a_tiny_one() -> None:
    recipe = ROOT / "experiments/tiny-t2i.yaml"
    plan = Plan(load(ROOT / "params.yaml", [recipe]))
    assert plan.text is not None
    tiny = {"vocabulary": 600, "length": 16, "width": 64, "layers": 2, "seed": 0}
    assert plan.text.components.settings == {"source": "tiny", "encoder": tiny}
    named = Plan(load(ROOT / "params.yaml", [recipe], ["text.components.encoder={source: tiny}"]))
    assert named.teacher.digest == plan.teacher.digest


def test_the_overlay_of_the_real_encoder_fits_the_miniature() -> None:
    overlays = [ROOT / "experiments" / name for name in ("tiny-t2i.yaml", "overlays/tiny-t2i-minilm.yaml")]
    plan = Plan(load(ROOT / "params.yaml", overlays))
    assert plan.text is not None
    encoder = plan.text.components.settings["encoder"]
    assert encoder == {"source": "folder", "path": "build/all-minilm-l6-v2", "length": 16}
    assert plan.experiment.teacher.network.text_shape == (encoder["length"], 384)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("{source: folder}", "text.components.encoder.path: Field required"),
        ("{source: folder, path: x, length: 78}", "text.components.encoder.length: Input should be less than"),
        ("{source: foldr, path: x}", "text.components.encoder: Input tag 'foldr'"),
        ("{lenght: 8}", "text.components.encoder.lenght: unknown key; did you mean 'length'?"),
    ],
)
def test_what_an_encoder_cannot_be_is_told(encoder: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(ROOT / "params.yaml", [ROOT / "experiments/tiny-t2i.yaml"], [f"text.components.encoder={encoder}"])
    assert expected in refused.value.why
