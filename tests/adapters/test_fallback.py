"""`--random-weights` where a model's processor can't be had: a fallback, with its counts of tokens.

The models have their published vocabulary, token ids and images, in fewer and narrower layers.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from broken import set_config, write_checkpoint
from mvw_hf.fallback import FallbackProcessor, FallbackTokenizer, fallback_tokenizer
from mvw_hf.model import HuggingFace
from mvw_kimi_vl.model import CHECKPOINT as KIMI
from mvw_kimi_vl.model import KimiVL
from mvw_llava_cot.model import CHECKPOINT as COT
from mvw_llava_cot.model import LlavaCot
from narrowed import KINDS as FAMILIES
from narrowed import narrow, published
from packaging.version import Version
from PIL import Image
from processes import Ran
from releases import RELEASE

from mvw_cli import BadImage, LoadedModel, ModelProblem, ModelSpec, NotFetched
from mvw_cli.errors import ExitCode
from mvw_cli.testing.probes import misplaced

SIZES = [(40, 30), (560, 560), (561, 560), (1200, 300), (300, 1700), (1003, 997)]
PUBLISHED: dict[str, tuple[type[HuggingFace], str]] = {
    "llava-cot": (LlavaCot, COT),
    "kimi-vl": (KimiVL, KIMI),
    "qwen2.5-vl-7b": (HuggingFace, "Qwen/Qwen2.5-VL-7B-Instruct"),
    "gemma-3-12b": (HuggingFace, "google/gemma-3-12b-it"),
}
OF_THEIR_OWN = ["llava-cot", "kimi-vl"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Cut the network, empty the hub's cache, and list the hosts that were asked for."""
    from huggingface_hub import constants

    hosts: list[str] = []

    def refuse(host: Any, *args: Any, **options: Any) -> Any:
        hosts.append(str(host))
        raise socket.gaierror(socket.EAI_NONAME, "the network is cut")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub is asked again and again
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    # `--offline` sets these for the rest of the process.
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield hosts


@pytest.fixture
def narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for adapter in (LlavaCot, KimiVL, HuggingFace):  # the base class last: they call it
        whole = adapter.shape
        monkeypatch.setattr(
            adapter, "shape", lambda self, spec, whole=whole: narrow(whole(self, spec))
        )


@cache
def fallback_for(name: str) -> tuple[Any, LoadedModel]:
    """Make an adapter, and what its `tokenize` and `vision` need of a loaded model."""
    adapter, checkpoint = PUBLISHED[name][0](), PUBLISHED[name][1]
    spec = ModelSpec(model=checkpoint, random_weights=True)
    config = adapter.shape(spec)
    model = SimpleNamespace(config=config)
    return adapter, LoadedModel(name, checkpoint, model, adapter.fallback_processor(config), spec)


@pytest.mark.usefixtures("narrowed")
@pytest.mark.parametrize(
    ("name", "size", "offline"),
    [
        ("llava-cot", (640, 480), True),
        ("kimi-vl", (700, 300), False),
        ("qwen2.5-vl-7b", (300, 200), True),
        ("gemma-3-12b", (300, 200), False),
    ],
)
def test_by_the_command_without_a_network(
    name: str,
    offline: bool,
    size: tuple[int, int],
    asked: list[str],
    mvw: Callable[..., Ran],
    tmp_path: Path,
) -> None:
    picture = tmp_path / "picture.png"
    Image.effect_noise(size, 80).save(picture)
    command = ["infer", str(picture), "How many?", "--profile", name, "--device", "cpu", "--json"]
    command += ["--max-new-tokens", "6", "-m", "3", *(["--offline"] if offline else [])]
    ran = mvw(*command, "--random-weights")
    assert ran.code == ExitCode.OK, ran.err
    assert bool(asked) != offline
    document = json.loads(ran.out)
    adapter, checkpoint = PUBLISHED[name][0](), PUBLISHED[name][1]
    wanted = adapter.image_tokens(adapter.shape(ModelSpec(model=checkpoint)), *size)
    assert document["vision_tokens"] == wanted
    assert document["withdrawal"]["vision_tokens"] == wanted
    assert document["generated_tokens"] == 6
    assert sum("fallback" in remark for remark in document["remarks"]) == 1
    assert "fallback" in ran.err and "this answer is noise" in ran.err
    ran = mvw(*command)
    assert ran.code == ExitCode.MODEL  # real weights have no use for it


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_vision_tokens_are_the_published_ones(name: str, size: tuple[int, int]) -> None:
    adapter, loaded = fallback_for(name)
    inputs = adapter.tokenize(loaded, [Image.new("RGB", size), Image.new("RGB", (90, 60))], "How?")
    config = loaded.model.config
    counted = [adapter.image_tokens(config, *one) for one in (size, (90, 60))]
    assert adapter.vision(loaded, inputs).vision_tokens == sum(counted)
    ids = inputs["input_ids"]
    assert int((ids == config.image_token_id).sum()) == (2 if name == "llava-cot" else sum(counted))


def test_images_are_prepared_as_published() -> None:
    """Figures of `preprocessor_config.json`; Mllama's class has others as defaults."""
    _, loaded = fallback_for("llava-cot")
    images = loaded.processor.image_processor
    assert (images.size["height"], images.size["width"], images.max_image_tiles) == (560, 560, 4)
    pixels = loaded.processor(images=[Image.new("RGB", (560, 560), "white")], text="<|image|>")
    white = torch.as_tensor(pixels["pixel_values"][0][0][0])[:, 0, 0]
    wanted = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(white, wanted, rtol=1e-5, atol=1e-5, check_dtype=False)
    _, loaded = fallback_for("kimi-vl")
    assert loaded.processor.image_processor.in_token_limit == 16384


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("llava-cot", {"<|begin_of_text|>": 128000, "<|eot_id|>": 128009, "<|image|>": 128256}),
        ("kimi-vl", {"[BOS]": 163584, "[EOS]": 163585, "<|media_pad|>": 163605, "[PAD]": 163839}),
    ],
)
def test_ids_are_those_of_the_model(name: str, known: dict[str, int]) -> None:
    _, loaded = fallback_for(name)
    tokenizer, text = loaded.processor.tokenizer, loaded.model.config.get_text_config()
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in known} == known
    assert tokenizer.bos_token_id == text.bos_token_id
    assert tokenizer.pad_token_id == text.pad_token_id
    stops = text.eos_token_id
    assert tokenizer.eos_token_id in (stops if isinstance(stops, list) else [stops])
    some = [*range(0, text.vocab_size, 997), text.vocab_size - 1, *known.values()]
    assert all(tokenizer.batch_decode([[number] for number in some]))
    assert tokenizer.decode([text.vocab_size + 1000]) == ""  # padding of an output layer
    question = "Wie groß ist 木 🎄 of\n\n this?"
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    assert len(ids) == -(-len(question) // 4)
    assert 0 <= min(ids) <= max(ids) < text.vocab_size


def test_the_prompt_has_the_published_frame() -> None:
    adapter, loaded = fallback_for("llava-cot")
    ids = adapter.tokenize(loaded, [Image.new("RGB", (9, 9))], "How many?")["input_ids"][0].tolist()
    header, image, end = (128006, 128007), 128256, 128009
    assert ids[0] == 128000
    assert [n for n in ids if n > 128000] == [*header, image, end, *header]
    adapter, loaded = fallback_for("kimi-vl")
    ids = adapter.tokenize(loaded, [Image.new("RGB", (9, 9))], "How?")["input_ids"][0].tolist()
    assert [number for number in ids if number > 163585] == [
        *(163594, 163601, 163586),  # the default system prompt
        *(163587, 163601, 163602, 163603, 163605, 163604, 163586),
        *(163588, 163601),
    ]


def test_a_small_vocabulary_with_special_tokens_within_and_beyond() -> None:
    tokenizer = fallback_tokenizer(5, {"<a>": 0, "<b>": 3, "<c>": 9}, eos_token="<b>")
    assert tokenizer.decode(list(range(5)), skip_special_tokens=True) == " 001 002 004"
    assert tokenizer("<c>x<a>")["input_ids"] == [9, 1, 0]
    assert tokenizer.eos_token_id == 3


def spec_of(folder: Path) -> ModelSpec:
    return ModelSpec(model=str(folder), device="cpu", random_weights=True)


@pytest.mark.parametrize("adapter", [HuggingFace, LlavaCot])
def test_a_processor_that_is_there_is_taken(adapter: type[HuggingFace], tmp_path: Path) -> None:
    tiny = adapter().tiny()
    tiny.model.config.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    loaded = adapter().load(spec_of(tmp_path))
    assert not isinstance(loaded.processor.tokenizer, FallbackTokenizer)
    assert adapter().remarks(loaded, [], "w1") == []


def test_a_damaged_processor_is_said_to_be(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "processor_config.json").write_text("{")
    with pytest.raises(ModelProblem, match="is damaged") as refusal:
        HuggingFace().load(spec_of(folder))
    assert "processor_config.json" in (refusal.value.cause or "")


def only_config(folder: Path) -> Path:
    for file in write_checkpoint(folder).iterdir():
        if file.name != "config.json":
            file.unlink()
    return folder


def test_another_architecture_is_refused_without_a_processor_too(tmp_path: Path) -> None:
    folder = only_config(tmp_path / "model")
    with pytest.raises(ModelProblem, match="not of an architecture"):
        LlavaCot().load(spec_of(folder))


def test_a_fallback_for_the_folder_of_a_configuration(tmp_path: Path) -> None:
    """The tiles are those of its own configuration."""
    config = narrow(LlavaCot().shape(ModelSpec(model=COT)))
    config.vision_config.image_size = 280
    config.save_pretrained(tmp_path)
    adapter = LlavaCot()
    loaded = adapter.load(spec_of(tmp_path))
    assert isinstance(loaded.processor.tokenizer, FallbackTokenizer)
    assert len(adapter.remarks(loaded, [], "w1")) == 1
    inputs = adapter.encode(loaded, [Image.new("RGB", (500, 200))], "How?")
    assert adapter.vision(loaded, inputs).vision_tokens == 2 * (20 * 20 + 1)


def test_a_model_that_is_nowhere(asked: list[str]) -> None:
    with pytest.raises(NotFetched):
        HuggingFace().load(ModelSpec(model="a/b", device="cpu", random_weights=True))
    assert asked


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A folder with nothing but a configuration."""
    folder = tmp_path_factory.mktemp("folder")
    narrow(published(request.param)).save_pretrained(folder)
    loaded = HuggingFace().load(replace(spec_of(folder), dtype="float32"))
    for parameter in loaded.model.parameters():
        if not parameter.any():  # Gemma's projector is made as zeros, which would hide the image
            torch.nn.init.normal_(parameter)
    return loaded


def test_the_model_reads_what_it_is_given(loaded: LoadedModel) -> None:
    """Two images of unlike sizes: transformers compares the tokens with the features."""
    adapter = HuggingFace()
    assert isinstance(loaded.processor, FallbackProcessor)
    assert len(adapter.remarks(loaded, [], "How many?")) == 1
    if loaded.model.config.model_type == "minicpmv4_6" and Version("5.19") > RELEASE:
        pytest.skip("the model of this transformers fails on images of unlike sizes")
    sizes = [(100, 100), (300, 100)]
    images = [Image.effect_noise(size, 90).convert("RGB") for size in sizes]
    inputs = adapter.encode(loaded, images, "How many?")
    counted = sum(adapter.image_tokens(loaded.model.config, *size) for size in sizes)
    assert adapter.vision(loaded, inputs).vision_tokens == counted
    marks = [inputs[name] for name in inputs if name.endswith("token_type_ids")]
    marking = loaded.model.config.model_type.startswith(("gemma", "glm", "molmo", "qwen"))
    assert [int(mark.sum()) for mark in marks] == [counted] * marking
    other = adapter.encode(loaded, [images[0].rotate(180), images[1]], "How many?")
    with torch.inference_mode():
        first, second = (loaded.model(**given).logits[0, -1] for given in (inputs, other))
    assert first.isfinite().all()
    assert not first.equal(second)
    if loaded.model.config.model_type.startswith(("qwen", "glm")):  # others take any shape
        with pytest.raises(BadImage):
            adapter.encode(loaded, [Image.new("RGB", (9000, 10))], "How many?")
    text_only = adapter.encode(loaded, [], "How many?")
    assert adapter.vision(loaded, text_only).vision_tokens == 0
    assert text_only["input_ids"].shape == (1, 3)


@pytest.mark.parametrize("sizes", [[(200, 120)], [(90, 170), (130, 60)]])
def test_vision_tokens_lie_where_it_says(loaded: LoadedModel, sizes: list[tuple[int, int]]) -> None:
    """Of most families; those that cut tiles of their own do not tell."""
    try:
        assert misplaced(HuggingFace(), loaded, sizes) is None
    except LookupError:
        own = ("internvl", "llava_onevision", "minicpmv4_6", "molmo2", "smolvlm")
        assert loaded.model.config.model_type in own


def test_an_adapter_with_a_prompt_of_its_own_gets_no_fallback_that_it_did_not_make(
    tmp_path: Path,
) -> None:
    class Own(HuggingFace):
        def tokenize(self, loaded: LoadedModel, images: Any, text: str) -> dict[str, Any]:
            return dict(loaded.processor.of_its_own_kind(images, text))

    narrow(published("Qwen/Qwen2.5-VL-7B-Instruct")).save_pretrained(tmp_path)
    with pytest.raises(ModelProblem, match="can't be loaded"):
        Own().load(spec_of(tmp_path))


def test_what_is_missing_is_named_where_no_fallback_is_known(tmp_path: Path) -> None:
    folder = only_config(tmp_path / "model")
    set_config(folder, model_type="vipllava")  # of the same keys
    with pytest.raises(ModelProblem, match="can't be loaded") as refusal:
        HuggingFace().load(spec_of(folder))
    assert refusal.value.cause == (
        "There is no preprocessor_config.json or processor_config.json, and no tokenizer.json or "
        "tokenizer.model or tiktoken.model or vocab.json."
    )
