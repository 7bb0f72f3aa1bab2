"""Text encoders say what transformers says, count what they cut, and refuse what is not whole or would be run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, CLIPTextModel, CLIPTokenizer

from msd.download import cache_folder
from msd.errors import ConfigError, DamagedFileError, MissingFileError, MsdError, UnsafeFileError
from msd.store import sha256_file
from msd.text import read_prompts
from msd.text.encoder import TextEncoder, open_encoder
from msd.text.tiny import BASE, END, START, make_tiny_encoder

CAPTIONS = [
    "A dog on a beach.",
    "Two red motor bikes parked next to each other",
    "A person's dog on a red bike, 2 dogs",
    "A cat next to a dog",
] * 3
LONG = "dog " * 100
HELD_OUT = ["a bike on a beach", "", "naïve 日本語 ☃ <b>", LONG, "A  DOG on\ta beach."]
WIDTH = 16


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_encoder(CAPTIONS, folder, vocabulary=600, width=WIDTH, layers=1, seed=3)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder in the layout of all-MiniLM-L6-v2, of random weights."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "on", "beach", "cat", "##s", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(scope="module")
def clip(tiny: Path) -> TextEncoder:
    return open_encoder(tiny, "cpu")


# --- CLIP ---


def test_states_are_those_that_diffusers_conditions_on(tiny: Path, clip: TextEncoder) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny / "tokenizer")
    model = CLIPTextModel.from_pretrained(tiny / "text_encoder").eval()
    tokens = tokenizer(HELD_OUT, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(tokens.input_ids).last_hidden_state
    encoded = clip.encode(HELD_OUT)
    assert torch.equal(encoded.hidden, expected)
    assert encoded.hidden.shape == (5, 77, WIDTH)
    for i, length in enumerate(tokens.attention_mask.sum(dim=1).tolist()):
        assert torch.allclose(encoded.pooled[i], expected[i, 1:length].mean(dim=0), atol=1e-6)
    assert encoded.hidden.dtype == encoded.pooled.dtype == torch.float32
    assert not encoded.hidden.requires_grad


def test_what_does_not_fit_is_counted(clip: TextEncoder) -> None:
    exact, one_more = "dog " * 75, "dog " * 76
    encoded = clip.encode([exact, one_more, LONG, "dog", ""])
    assert encoded.truncated.tolist() == [False, True, True, False, False]
    assert torch.equal(encoded.hidden[0], encoded.hidden[1])
    assert torch.equal(encoded.hidden[0], encoded.hidden[2])


def test_case_and_white_space_do_not_count(clip: TextEncoder) -> None:
    hidden = clip.encode(["A  DOG on\ta beach.", "a dog on a beach.", "a dog on a beach"]).hidden
    assert torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[1], hidden[2])


def test_other_poolings(tiny: Path, clip: TextEncoder) -> None:
    hidden = clip.encode(["a dog"]).hidden[0]
    ids = clip._tokens(["a dog"])[0][0].tolist()
    end = ids.index(ids[-1])
    assert torch.allclose(open_encoder(tiny, "cpu", "end").encode(["a dog"]).pooled[0], hidden[end])
    assert torch.allclose(open_encoder(tiny, "cpu", "all").encode(["a dog"]).pooled[0], hidden.mean(dim=0), atol=1e-6)
    with pytest.raises(ConfigError):
        open_encoder(tiny, "cpu", "none")  # type: ignore[arg-type]


# --- BERT ---


def test_sentence_encoder_pools_the_tokens_of_the_prompt(bert: Path) -> None:
    encoder = open_encoder(bert, "cpu")
    prompts = ["A dog on a beach.", "cats", LONG, ""]
    encoded = encoder.encode(prompts)
    assert (encoder.kind, encoder.length, encoded.hidden.shape) == ("bert", 77, (4, 77, WIDTH))
    assert encoded.truncated.tolist() == [False, False, True, False]
    model = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    with torch.no_grad():
        alone = model(torch.tensor([[2, 5, 6, 7, 5, 8, 11, 3]])).last_hidden_state[0]
    assert torch.allclose(encoded.hidden[0, :8], alone, atol=1e-5)
    assert not encoded.hidden[0, 8:].any()
    mean = alone.mean(dim=0)
    assert torch.allclose(encoded.pooled[0], mean / mean.norm(), atol=1e-5)
    assert torch.allclose(encoded.pooled.norm(dim=1), torch.ones(4))
    with pytest.raises(ConfigError):
        open_encoder(bert, "cpu", "end")


def test_real_sentence_encoder_knows_what_is_alike() -> None:
    folder = cache_folder() / "all-minilm-l6-v2"
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"needs all-MiniLM-L6-v2 in {folder}")
    encoder = open_encoder(folder, "cpu")
    pooled = encoder.encode(["A dog runs on the beach.", "A puppy runs along the shore.", "Stocks fell today."]).pooled
    alike = pooled @ pooled.T
    assert alike[0, 1] > 0.6
    assert alike[0, 2] < 0.2


# --- what is loaded ---


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickle_instead(folder: Path) -> None:
    weights = folder / "text_encoder/model.safetensors"
    torch.save(load_file(weights), folder / "text_encoder/pytorch_model.bin")
    weights.unlink()


def cut_weights(folder: Path) -> None:
    weights = folder / "text_encoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


def index_nothing(folder: Path) -> None:
    (folder / "text_encoder/model.safetensors").unlink()
    (folder / "text_encoder/model.safetensors.index.json").write_text('{"weight_map": {}}')


def spoil_merges(folder: Path) -> None:
    with open(folder / "tokenizer/merges.txt", "a") as f:
        f.write("not in the vocabulary")


def lose_a_tensor(folder: Path) -> None:
    weights = folder / "text_encoder/model.safetensors"
    tensors = load_file(weights)
    tensors.pop("text_model.final_layer_norm.weight")
    save_file(tensors, weights, metadata={"format": "pt"})


def set_config(**values: object) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / "text_encoder/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return act


SPOILT: dict[str, tuple[Callable[[Path], None], type[MsdError]]] = {
    "no configuration": (remove("text_encoder/config.json"), MissingFileError),
    "no vocabulary": (remove("tokenizer/merges.txt"), MissingFileError),
    "no weights": (remove("text_encoder/model.safetensors"), MissingFileError),
    "a pickle": (pickle_instead, UnsafeFileError),
    "an index of nothing": (index_nothing, DamagedFileError),
    "cut weights": (cut_weights, DamagedFileError),
    "a missing tensor": (lose_a_tensor, DamagedFileError),
    "other sizes": (set_config(hidden_size=32), DamagedFileError),
    "fewer tokens": (set_config(vocab_size=100), DamagedFileError),
    "a vocabulary that is none": (spoil_merges, DamagedFileError),
    "another model": (set_config(model_type="t5"), ConfigError),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_folder_is_one_error(case: str, copy: Path) -> None:
    spoil, error = SPOILT[case]
    spoil(copy)
    with pytest.raises(error) as refused:
        open_encoder(copy, "cpu")
    assert str(copy) in str(refused.value)


def test_digest_is_of_all_files_and_of_no_path(clip: TextEncoder, copy: Path) -> None:
    assert open_encoder(copy, "cpu").sha256 == clip.sha256
    (copy / "text_encoder/flax_model.msgpack").write_bytes(b"not used")
    assert open_encoder(copy, "cpu").sha256 == clip.sha256
    path = copy / "tokenizer/merges.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert open_encoder(copy, "cpu").sha256 != clip.sha256


# --- tiny encoders ---


def test_tiny_encoder_is_a_function_of_captions_and_seed(tiny: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for seed in (3, 4):
        make_tiny_encoder(iter(CAPTIONS), tmp_path / str(seed), vocabulary=600, width=WIDTH, layers=1, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    files = {p.relative_to(tiny): sha256_file(p) for p in tiny.rglob("*.*")}
    assert {p.relative_to(tmp_path / "3"): sha256_file(p) for p in (tmp_path / "3").rglob("*.*")} == files
    other = {p.relative_to(tmp_path / "4"): sha256_file(p) for p in (tmp_path / "4").rglob("*.*")}
    assert {str(name) for name in files if other[name] != files[name]} == {"text_encoder/model.safetensors"}


def test_tiny_tokenizer_learns_words_and_knows_every_byte(tiny: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny / "tokenizer")
    words = tokenizer.convert_ids_to_tokens(tokenizer("A dog, on 2 bikes's")["input_ids"])
    assert words == [START, "a</w>", "dog</w>", ",</w>", "on</w>", "2</w>", "bikes</w>", "'s</w>", END]
    assert len(tokenizer) <= 600
    text = "ĳŸ日本語☃ zq🙂"
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1, "nothing is unknown"
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


@pytest.mark.parametrize("length", [16, 77])
@pytest.mark.parametrize("width", [20, 64])
def test_sizes_of_tiny_encoders(length: int, width: int, tmp_path: Path) -> None:
    make_tiny_encoder(CAPTIONS, tmp_path, vocabulary=BASE, length=length, width=width, layers=1)
    assert open_encoder(tmp_path, "cpu").encode(["a dog"]).hidden.shape == (1, length, width)


def test_tiny_encoder_that_is_too_small(tmp_path: Path) -> None:
    for wrong in ({"vocabulary": 100}, {"length": 1}, {"width": 0}, {"layers": 0}):
        with pytest.raises(ConfigError):
            make_tiny_encoder(CAPTIONS, tmp_path, **wrong)


def test_real_captions_fit_a_vocabulary_that_is_learnt_from_them(shared: Path, tmp_path: Path) -> None:
    captions = [p.text for p in read_prompts(shared / "data/prompts/coco-captions-train.txt")][::5]
    make_tiny_encoder(captions, tmp_path, vocabulary=1000)
    encoder = open_encoder(tmp_path, "cpu")
    _, mask, truncated = encoder._tokens(captions)
    assert truncated.float().mean() < 1e-3
    assert mask.sum(dim=1).float().median() < 25
