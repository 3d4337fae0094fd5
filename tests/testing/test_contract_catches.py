"""The contract's checks fail on planted defects: each wrong adapter by the check that is for it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contract_checks import failures
from mvw_hf.model import HuggingFace
from mvw_llava_cot.model import LlavaCot
from torch import Tensor

from mvw_cli import (
    AdapterInfo,
    Answer,
    LoadedModel,
    ModelSpec,
    VisionLayout,
)
from mvw_cli.testing import AdapterContract
from mvw_cli.testing.probes import without_network


def adapter_failures(adapter: type[HuggingFace]) -> set[str]:
    return failures(type("Contract", (AdapterContract,), {"adapter": adapter})())


class Right(HuggingFace):
    pass


class RightAcross(LlavaCot):
    pass


class TakesTextAway(HuggingFace):
    """Marks the token after the image, too."""

    def vision(self, loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> VisionLayout:
        entries = super().vision(loaded, inputs).entries.clone()
        entries[int(entries.nonzero().max()) + 1] = True
        return VisionLayout(entries)


class LeavesVisionBehind(HuggingFace):
    def vision(self, loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> VisionLayout:
        entries = super().vision(loaded, inputs).entries.clone()
        entries[int(entries.nonzero().min())] = False
        return VisionLayout(entries)


class FindsNoVision(HuggingFace):
    def vision(self, loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> VisionLayout:
        return VisionLayout(torch.zeros_like(inputs["input_ids"][0], dtype=torch.bool))


class TellsNothingOfCrossAttention(LlavaCot):
    def vision(self, loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> VisionLayout:
        return VisionLayout(super().vision(loaded, inputs).entries)


class IgnoresTheImage(HuggingFace):
    def encode(self, loaded: LoadedModel, images: Sequence[Any], question: str) -> dict[str, Any]:
        from mvw_cli.oracle.equivalence import noise

        return super().encode(loaded, [noise(64, 48) for _ in images], question)


class IgnoresTheQuestion(HuggingFace):
    def encode(self, loaded: LoadedModel, images: Sequence[Any], question: str) -> dict[str, Any]:
        return super().encode(loaded, images, "w1 w2")


class IgnoresTheTemplate(HuggingFace):
    def encode(self, loaded: LoadedModel, images: Sequence[Any], question: str) -> dict[str, Any]:
        plain = replace(loaded, spec=replace(loaded.spec, template="{question}"))
        return super().encode(plain, images, question)


def tiny(change: Callable[[LoadedModel], LoadedModel | None]) -> type[HuggingFace]:
    """Make an adapter whose tiny model is changed, in place or by another."""

    class Changed(HuggingFace):
        def tiny(self) -> LoadedModel:
            loaded = super().tiny()
            return change(loaded) or loaded

    return Changed


def other_weights_each_time(loaded: LoadedModel) -> None:
    with torch.no_grad(), torch.random.fork_rng():
        torch.seed()
        weight = loaded.model.get_output_embeddings().weight
        weight.mul_(1 + 1e-3 * torch.randn_like(weight))


def use_up_random_numbers(loaded: LoadedModel) -> None:
    torch.rand(1)


def too_flat_to_tell(loaded: LoadedModel) -> None:
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.mul_(1e-6)


def in_training_mode(loaded: LoadedModel) -> None:
    loaded.model.train()


def half_precision(loaded: LoadedModel) -> None:
    loaded.model.bfloat16()


class MakesAnswersUp(HuggingFace):
    def parse(self, text: str) -> Answer:
        return Answer(answer=super().parse(text).answer or "I don't know")


class ParsesWholeTextOnly(HuggingFace):
    def parse(self, text: str) -> Answer:
        return Answer(answer=text.split("</think>")[1] if "<think>" in text else text)


class RemarksInSeveralLines(HuggingFace):
    def remarks(self, *_: Any) -> list[str]:
        return ["one\ntwo"]


class BuildsAnotherModel(HuggingFace):
    def build(self, config: Any) -> Any:
        changed = type(config).from_dict(config.to_dict())
        changed.get_text_config().num_hidden_layers += 1
        return super().build(changed)


class ReadsWeightsAllTheSame(HuggingFace):
    def load(self, spec: ModelSpec) -> LoadedModel:
        return super().load(replace(spec, random_weights=False))


class MakesRandomWeightsOfAnotherType(HuggingFace):
    def load(self, spec: ModelSpec) -> LoadedModel:
        return super().load(replace(spec, dtype="float32") if spec.random_weights else spec)


class MakesAnotherModel(HuggingFace):
    """Random weights of a shape that is not the configuration's."""

    def load(self, spec: ModelSpec) -> LoadedModel:
        if not spec.random_weights:
            return super().load(spec)
        model = LlavaCot().tiny().model
        return replace(self.tiny(), model=model.bfloat16())


@contextmanager
def forgetful(model: Any) -> Iterator[None]:
    """Patch a model and never restore it."""
    mlp = model.get_decoder().layers[0].mlp
    mlp.forward = mlp.forward
    yield


def stepping(change: Callable[[Tensor], Tensor]) -> type[HuggingFace]:
    """Make an adapter with a faster step in which the first MLP computes something else."""

    @contextmanager
    def wrong(model: Any) -> Iterator[None]:
        mlp = model.get_decoder().layers[0].mlp
        handle = mlp.register_forward_hook(lambda module, args, output: change(output))
        try:
            yield
        finally:
            handle.remove()

    return tiny(lambda loaded: replace(loaded, serving=wrong))


def halved(output: Tensor) -> Tensor:
    return output / 2 if output.shape[1] == 1 else output


def mixed(output: Tensor) -> Tensor:
    return output + output.mean(0, keepdim=True) if len(output) > 1 else output


LAYOUT, ORACLE = "the_vision_layout_is_right", "the_engine_equals_the_oracle"
TINY = "its_tiny_model_is_tiny_and_always_the_same"
RANDOM = "random_weights_are_made_and_none_are_read"
LATE, MANY = "late_withdrawal_equals_generate", "one_slot_equals_many"


@pytest.mark.parametrize("adapter", [Right, RightAcross])
def test_a_right_adapter_passes(adapter: type[HuggingFace]) -> None:
    assert adapter_failures(adapter) == set()


@pytest.mark.parametrize(
    ("adapter", "caught_by"),
    [
        (TakesTextAway, {LAYOUT}),
        (LeavesVisionBehind, {LAYOUT}),
        # Without any vision nothing can be withdrawn, and the oracle has nothing to tell apart.
        (FindsNoVision, {LAYOUT, ORACLE}),
        (
            IgnoresTheImage,
            {"it_encodes_question_and_images", LAYOUT, "its_patches_are_where_it_says"},
        ),
        (IgnoresTheQuestion, {"it_encodes_question_and_images"}),
        (IgnoresTheTemplate, {"the_template_and_the_system_prompt_reach_the_model"}),
        (tiny(other_weights_each_time), {TINY}),
        (tiny(use_up_random_numbers), {TINY}),
        (tiny(in_training_mode), {TINY}),
        (tiny(too_flat_to_tell), {ORACLE}),
        (MakesAnswersUp, {"parse_copes_with_text_that_was_cut"}),
        (ParsesWholeTextOnly, {"parse_copes_with_text_that_was_cut"}),
        (RemarksInSeveralLines, {"its_remarks_are_lines"}),
        (BuildsAnotherModel, {"it_builds_the_model_of_a_configuration"}),
        (ReadsWeightsAllTheSame, {RANDOM}),
        (MakesRandomWeightsOfAnotherType, {RANDOM}),
        (MakesAnotherModel, {RANDOM}),
        (
            tiny(lambda loaded: replace(loaded, serving=forgetful)),
            {"the_model_is_restored_after_an_error"},
        ),
        (stepping(halved), {ORACLE, LATE}),
        (stepping(mixed), {MANY}),
    ],
)
def test_a_wrong_adapter_is_caught(adapter: type[HuggingFace], caught_by: set[str]) -> None:
    assert adapter_failures(adapter) == caught_by


def test_half_precision_is_caught() -> None:
    """The comparison with the oracle makes the model float32, so it is not what tells."""
    assert TINY in adapter_failures(tiny(half_precision))


def test_cross_attention_that_nobody_tells_of_is_caught() -> None:
    assert LAYOUT in adapter_failures(TellsNothingOfCrossAttention)


def test_a_heavy_package_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mvw_heavy_one"
    package.mkdir()
    (package / "__init__.py").write_text("import numpy\n")
    (package / "model.py").write_text(
        "from mvw_hf.model import HuggingFace\n\n\nclass Heavy(HuggingFace):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from importlib import import_module

    heavy = import_module("mvw_heavy_one.model").Heavy
    contract = type("Contract", (AdapterContract,), {"adapter": heavy})()
    with pytest.raises(AssertionError, match="imports numpy"):
        contract.test_importing_it_is_light()
    for name in [name for name in sys.modules if name.startswith("mvw_heavy_one")]:
        del sys.modules[name]


# The network, which the kit never touches, and a shape that can't be


def shape_check(
    monkeypatch: pytest.MonkeyPatch, adapter: type[HuggingFace], checkpoint: str
) -> Callable[[], None]:
    info = AdapterInfo("x", "x:X", "for tests", checkpoints=(checkpoint,))
    contract: Any = type("Contract", (AdapterContract,), {"adapter": adapter})()
    monkeypatch.setattr(contract, "info", lambda: info, raising=False)
    check: Callable[[], None] = contract.test_it_tells_its_shape_without_weights
    return check


def test_a_shape_that_is_not_known_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = shape_check(monkeypatch, HuggingFace, "nobody/nothing-of-the-kind")
    with without_network(), pytest.raises(pytest.fail.Exception) as caught:
        check()
    told = str(caught.value)
    assert told.startswith("shape() does not know nobody/nothing-of-the-kind without a network")
    assert "published/nobody/nothing-of-the-kind.json" in told


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("text_config", {"hidden_size": 3585}),
        ("text_config", {"num_key_value_heads": 5}),
    ],
)
def test_a_shape_that_can_not_be_is_caught(
    part: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impossible(HuggingFace):
        def published_config(self, spec: ModelSpec) -> dict[str, Any] | None:
            told = super().published_config(spec)
            assert told is not None
            return told | {part: told[part] | changes}

    name = "Qwen/Qwen2.5-VL-7B-Instruct"
    shape_check(monkeypatch, HuggingFace, name)()
    with pytest.raises(pytest.fail.Exception, match=f"shape.. tells of a {name} that can't be"):
        shape_check(monkeypatch, Impossible, name)()


ASKING = """
import socket
import urllib.request
from mvw_hf.model import HuggingFace
from mvw_cli import ModelSpec
from mvw_cli.testing import AdapterContract

class Asking(HuggingFace):
    def remarks(self, *_):
        try:
            {ask}
        except Exception:  # as who tries again
            pass
        return []

class TestContract(AdapterContract):
    adapter = Asking
"""


ASKING_POLICY = """
import socket
from dataclasses import dataclass
from contract_checks import Simple
from mvw_cli.testing import PolicyContract

@dataclass(frozen=True)
class Asking(Simple):
    def describe(self):
        {ask}
        return "as it was told"

class TestContract(PolicyContract):
    policies = (Asking(),)
"""


@pytest.mark.parametrize(
    ("source", "ask"),
    [
        (ASKING, "urllib.request.urlopen('http://127.0.0.1:{port}/')"),
        (ASKING, "socket.create_connection(('127.0.0.1', {port}))"),
        (ASKING, "socket.socket().connect(('127.0.0.1', {port}))"),
        (ASKING, "super().load_processor(ModelSpec('nobody/nothing'))"),
        (ASKING_POLICY, "socket.create_connection(('127.0.0.1', {port}))"),
    ],
)
def test_no_socket_is_opened(
    source: str, ask: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check is collected and run as an author's pytest does it; the server is a real one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        file = tmp_path / f"test_asking_{len(source)}_{len(ask)}.py"
        file.write_text(source.format(ask=ask.format(port=server.getsockname()[1])))
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "remarks or describes"]
        code = pytest.main([*options, "-c", os.devnull, "--rootdir", str(tmp_path), str(file)])
        with pytest.raises(BlockingIOError):
            server.accept()
    told = capsys.readouterr().out
    if "load_processor" in ask:  # the hub's library knows that it is offline
        assert code == 0, told
    else:
        assert code == 1 and "the network is asked for" in told


def test_info_that_does_not_fit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from mvw_cli.testing import adapter_contract

    contract = type("Contract", (AdapterContract,), {"adapter": "hf"})()
    for info, said in [
        (AdapterInfo("hf", "mvw_hf.model:HuggingFace", " "), "summary is empty"),
        (AdapterInfo("hf", "mvw_hf.model:HuggingFace", "a\nb"), "longer than a line"),
        (AdapterInfo("hf", "mvw_hf.model:HuggingFace", "a", checkpoints="a/b"), "be a tuple"),
        (AdapterInfo("other", "mvw_hf.model:HuggingFace", "a"), "not 'other'"),
    ]:
        entry = SimpleNamespace(info=info)
        monkeypatch.setattr(adapter_contract, "find_adapter", lambda name, entry=entry: entry)
        with pytest.raises(AssertionError, match=said):
            contract.test_its_info_is_complete()
