"""What every adapter has to hold, checked on its tiny model.

The engine's checks measure against the masked-attention oracle, `model.generate` and the engine
itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mvw_cli.adapter import Adapter, AdapterInfo, Answer, LoadedModel, ModelSpec
from mvw_cli.cost.flops import flops_of
from mvw_cli.engine.types import Finished, Request, Withdrawn
from mvw_cli.errors import MvwError
from mvw_cli.oracle.equivalence import (
    QUESTION,
    TOLERANCE,
    equivalence,
    noise,
    question_of,
    run,
    writing_text_only,
)
from mvw_cli.plugins import find_adapter, load_adapter
from mvw_cli.testing.probes import (
    count_crossed,
    entry_changes,
    heavy_imports,
    misplaced,
    prefilled,
    vision_bytes,
    without_network,
)
from mvw_cli.text import error_line

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt*")
MOST_PARAMETERS = 5_000_000
"""A tiny model is for tests: it is built and run hundreds of times."""
SIZES = ((64, 48), (48, 64), (64, 64))  # of the images, in pixels
TEXTS = (
    "Two cats.",
    "<SUMMARY> I count. </SUMMARY> <CAPTION> Two cats. </CAPTION> <CONCLUSION> 2 </CONCLUSION>",
    "<think>One and one.</think> 2",
    "◁think▷One and one.◁/think▷ 2",
    "",
)


class AdapterContract:
    """Subclass it, name the adapter, and let pytest collect it."""

    adapter: ClassVar[str | type[Adapter]]
    """The registered name, or the class of an adapter that is not registered."""
    texts: ClassVar[tuple[str, ...]] = TEXTS
    """Outputs to be parsed, whole and cut anywhere. Add what your model writes."""

    @pytest.fixture(autouse=True)
    def _offline(self) -> Iterator[None]:
        with without_network():
            yield

    def made(self) -> Adapter:
        return _made(self.adapter)

    def loaded(self) -> LoadedModel:
        return tiny_of(self.adapter)

    def info(self) -> AdapterInfo:
        if not isinstance(self.adapter, str):
            pytest.skip("the adapter is not registered: it is given as a class")
        return find_adapter(self.adapter).info

    def write_checkpoint(self, folder: Path) -> None:
        """Write a small checkpoint as the adapter reads them.

        Override it where that is not what `save_pretrained` of the tiny model and its processor
        write.
        """
        loaded = self.loaded()
        if not hasattr(loaded.processor, "save_pretrained"):
            pytest.skip("the processor does not save itself: override write_checkpoint()")
        loaded.model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)

    def encoded(self, *, images: tuple[int, ...], question: str = QUESTION) -> dict[str, Tensor]:
        """Encode a question about pictures of noise, each named by its seed."""
        pictures = [noise(64, 48, seed=seed) for seed in images]
        return self.made().encode(self.loaded(), pictures, question)

    def request(self, number: int, m: int | None, **settings: Any) -> Request:
        """Ask about a picture of noise; picture, its size and the question go with the number."""
        picture = noise(*SIZES[number % len(SIZES)], seed=number)
        question = " ".join([QUESTION] * (1 + number % 2))
        options = {"name": str(number), "question": question, **settings}
        return question_of(self.made(), self.loaded(), [picture], m=m, **options)

    def test_importing_it_is_light(self) -> None:
        """Listing adapters must stay fast: torch and the like are imported with the class."""
        package = type(self.made()).__module__.partition(".")[0]
        if isinstance(self.adapter, type) and package in ("tests", "__main__"):
            pytest.skip("the adapter is no package of its own")
        heavy = heavy_imports(package)
        assert not heavy, (
            f"importing `{package}` imports {', '.join(heavy)}: keep its __init__ to the hook that "
            "registers AdapterInfo, and import the rest in the module of the class"
        )

    def test_its_info_is_complete(self) -> None:
        """`mvw list adapters` shows the info, and the engine's reports carry the name."""
        info = self.info()
        assert info.summary.strip(), "AdapterInfo.summary is empty"
        assert "\n" not in info.summary, "AdapterInfo.summary is longer than a line"
        assert isinstance(info.checkpoints, tuple), "AdapterInfo.checkpoints must be a tuple"
        written = self.loaded().adapter
        assert written == info.name, f"LoadedModel.adapter is {written!r}, not {info.name!r}"

    def test_its_tiny_model_is_tiny_and_always_the_same(self) -> None:
        state = torch.random.get_rng_state()
        first, second = _fresh(self.made()), _fresh(self.made())
        assert torch.equal(torch.random.get_rng_state(), state), (
            "tiny() uses up torch's global random numbers: save and restore their state"
        )
        count = sum(parameter.numel() for parameter in first.model.parameters())
        assert count <= MOST_PARAMETERS, f"tiny() has {count:,} parameters"
        assert first.model.dtype == torch.float32, "tiny() must be float32: 1e-5 is compared"
        assert not first.model.training, "tiny() must be in eval mode"
        pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), (
            "tiny() makes other weights each time: seed torch inside it"
        )

    def test_it_encodes_question_and_images(self) -> None:
        """Both must reach the model."""
        inputs = self.encoded(images=(0,), question="How many?")
        assert inputs["input_ids"].ndim == 2, "input_ids must be (1, P)"
        assert inputs["input_ids"].shape[0] == 1, "input_ids must hold one sequence"
        other = self.encoded(images=(1,), question="How many?")
        assert _differ(inputs, other), "another image gives the same inputs: it is not encoded"
        longer = self.encoded(images=(0,), question="How many? " * 3)
        assert _differ(inputs, longer, "input_ids"), "another question gives the same input_ids"

    def test_the_template_and_the_system_prompt_reach_the_model(self) -> None:
        loaded = self.loaded()
        plain = self.encoded(images=(0,), question="How many?")
        spec = replace(loaded.spec, template="{question} {question} {question}")
        told = self.made().encode(replace(loaded, spec=spec), [noise(64, 48)], "How many?")
        assert _differ(plain, told, "input_ids"), "spec.template is ignored by encode()"

    def test_the_vision_layout_is_right(self) -> None:
        """The entries that change with the image are the vision tokens, all and only they."""
        adapter, loaded = self.made(), self.loaded()
        first, second = (self.encoded(images=(seed,)) for seed in (0, 1))
        layout = adapter.vision(loaded, first)
        entries = layout.entries.cpu()
        assert entries.shape == (first["input_ids"].shape[1],), "entries must be (P,)"
        assert str(entries.dtype) == "torch.bool", "entries must be bool"
        assert layout.vision_tokens > 0, "vision() finds no vision token in a prompt with an image"
        assert torch.equal(first["input_ids"], second["input_ids"]), (
            "two images of one size give different input_ids"
        )
        moved = entry_changes(loaded.model, first, second) > 0
        assert not (entries & ~moved).any(), (
            f"vision() marks {int((entries & ~moved).sum())} entries that hold no vision: "
            "withdrawal would take text away"
        )
        assert not (moved & ~entries).any(), (
            f"vision() leaves out {int((moved & ~entries).sum())} entries that hold vision: "
            "they would stay after withdrawal"
        )
        crossed = count_crossed(loaded.model, first)
        told = 0 if layout.cross_entries is None else len(layout.cross_entries)
        assert told == crossed, (
            f"the cross-attention layers hold {crossed} vision states, vision() tells of {told}"
        )

    def test_its_counts_and_grids_add_up(self) -> None:
        adapter, loaded = self.made(), self.loaded()
        layout = adapter.vision(loaded, self.encoded(images=(0,)))
        told = f"VisionLayout: images {layout.images}, grids {layout.grids}"
        if layout.images is not None:
            assert sum(layout.images) == layout.vision_tokens, f"{told}: {layout.vision_tokens} are"
        if layout.grids is not None:
            assert tuple(rows * columns for rows, columns in layout.grids) == layout.images, told

    def test_its_patches_are_where_it_says(self) -> None:
        """Change a patch of the picture: the vision token made from it changes most."""
        for size in ((64, 48), (40, 96)):
            try:
                wrong = misplaced(self.made(), self.loaded(), [size])
            except LookupError as error:
                pytest.skip(str(error))
            assert wrong is None, wrong

    def test_parse_copes_with_text_that_was_cut(self) -> None:
        """Any prefix of an output may be all that there is; nothing may be made up."""
        for text in self.texts:
            for end in range(len(text) + 1):
                cut = text[:end]
                answer = self.made().parse(cut)
                assert isinstance(answer, Answer), f"parse({cut!r}) gives no Answer"
                assert answer.answer in cut, f"parse({cut!r}) makes up {answer.answer!r}"
                assert all(part in cut for part in answer.stages.values()), cut

    def test_its_remarks_are_lines(self) -> None:
        remarks = self.made().remarks(self.loaded(), [noise(64, 48)], "How many?")
        assert all(isinstance(line, str) and "\n" not in line for line in remarks)

    def test_it_builds_the_model_of_a_configuration(self) -> None:
        """For `--random-weights` and `--cost`: the same parameters, without any weights."""
        adapter, model = self.made(), self.loaded().model
        if type(adapter).build is Adapter.build:
            pytest.skip("the adapter does not build models without a checkpoint")
        with torch.device("meta"):
            built = adapter.build(model.config)
        assert _shapes(built) == _shapes(model)

    def test_random_weights_are_made_and_none_are_read(self, tmp_path: Path) -> None:
        """`mvw infer --random-weights`: the true shape, from a checkpoint that has no weights."""
        adapter = self.made()
        if type(adapter).build is Adapter.build or type(adapter).shape is Adapter.shape:
            pytest.skip("the adapter does not build models without a checkpoint")
        self.write_checkpoint(tmp_path)
        for pattern in WEIGHT_FILES:
            for file in tmp_path.glob(pattern):
                file.unlink()
        spec = ModelSpec(str(tmp_path), dtype="bfloat16", device="cpu", random_weights=True)
        with torch.device("meta"):
            expected = adapter.build(adapter.shape(spec))
        try:
            model = adapter.load(spec).model
        except (MvwError, OSError) as error:
            pytest.fail(f"load() with spec.random_weights wants weights: {error}")
        assert _shapes(model) == _shapes(expected)
        assert model.dtype == torch.bfloat16, f"random weights ignore spec.dtype: {model.dtype}"
        assert not model.training, "load() must leave the model in eval mode"

    def test_it_tells_its_shape_without_weights(self) -> None:
        """The first checkpoint's configuration, known by heart; `mvw show --cost` counts by it."""
        adapter, info = self.made(), self.info()
        if type(adapter).shape is Adapter.shape or not info.checkpoints:
            pytest.skip("the adapter has no checkpoint of its own, or does not tell its shape")
        name, config = info.checkpoints[0], None
        with suppress(MvwError, OSError):
            config = adapter.shape(ModelSpec(model=name))
        if config is None:
            pytest.fail(
                f"shape() does not know {name} without a network: put its config.json into your "
                f"package as published/{name}.json and name the folder in the class, as "
                '`published = Path(__file__).parent / "published"`, or override shape()',
                pytrace=False,
            )
        try:
            assert config.get_text_config().num_hidden_layers > 0
            if type(adapter).build is not Adapter.build:
                flops_of(adapter, config)
            if type(adapter).image_tokens is not Adapter.image_tokens:
                with suppress(MvwError):
                    adapter.image_tokens(config, 64, 48)
        except Exception as error:
            pytest.fail(f"shape() tells of a {name} that can't be: {error_line(error)}")

    # -- what the engine does with the model ------------------------------------------------

    def test_the_engine_equals_the_oracle(self) -> None:
        """Masked attention over the whole sequence, without a cache: to 1e-5 in float32."""
        self.loaded()
        for m in (1, 2, 7):
            result = equivalence(self.made(), m=m)
            assert result.telling, (
                f"with m = {m} withdrawal changes no logit by more than {result.effect:.1e}, so a "
                "mistake could not be seen: give the tiny model larger weights "
                "(initializer_range=0.3)"
            )
            assert result.passed, (
                f"with m = {m} engine and oracle differ by {result.difference:.1e}: the layout is "
                "wrong, or the model keeps a state that withdrawal does not reach"
            )

    def test_late_withdrawal_equals_generate(self) -> None:
        """With m beyond the output nothing is withdrawn, and `generate` says what comes out."""
        loaded, request = self.loaded(), self.request(0, 1000)
        length = request.settings.max_new_tokens
        with writing_text_only(loaded.model):
            written = loaded.model.generate(
                **request.inputs, max_new_tokens=length, min_new_tokens=length, do_sample=False
            )
        expected = written[0, request.inputs["input_ids"].shape[1] :].tolist()
        [trial], _ = run(loaded, [request])
        assert list(trial.token_ids) == expected, "the engine writes what generate does not"

    def test_withdrawal_frees_exactly_the_vision(self) -> None:
        """Entries and bytes, counted on a cache that transformers made."""
        loaded, request = self.loaded(), self.request(0, 3)
        [trial], _ = run(loaded, [request])
        withdrawn = [event for event in trial.events if isinstance(event, Withdrawn)]
        assert len(withdrawn) == 1, f"{len(withdrawn)} withdrawals, expected one"
        event = withdrawn[0]
        assert event.vision_tokens == request.layout.vision_tokens
        freed = event.kv_bytes_before - event.kv_bytes_after
        expected = vision_bytes(loaded.model, request.inputs, request.layout)
        assert freed == expected, f"{freed:,} bytes freed, {expected:,} hold vision"
        [kept], _ = run(loaded, [self.request(0, None)])
        ends = [
            next(event.kv_bytes for event in one.events if isinstance(event, Finished))
            for one in (kept, trial)
        ]
        assert ends[0] - ends[1] == expected, "the freed bytes come back by the end"

    def test_one_slot_equals_many(self) -> None:
        """Requests with other images, questions and m must not change each other."""
        plan = [(0, 3, 12), (1, None, 5), (2, 1, 9), (3, 8, 12)]
        requests = [self.request(number, m, new_tokens=length) for number, m, length in plan]
        together, _ = run(self.loaded(), requests, slots=3)
        by_name = {trial.events[0].request: trial for trial in together}
        for request in requests:
            [alone], _ = run(self.loaded(), [request])
            other = by_name[request.id]
            assert other.token_ids == alone.token_ids, f"request {request.id} differs in company"
            difference = float((other.logits - alone.logits).abs().max())
            assert difference <= TOLERANCE, f"logits differ by {difference:.1e} in company"

    def test_the_model_is_restored_after_an_error(self) -> None:
        """Attention kernels, patched functions, hooks and weights, as they were."""
        loaded = _fresh(self.made())  # one that nothing has been done to
        prefilled(loaded.model, self.request(0, 2).inputs)  # transformers hooks into it once
        before = _state(loaded.model)

        def failing() -> Iterator[Request]:
            yield self.request(0, 2)
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="the disk is gone"):
            run(loaded, failing(), slots=2)
        after = _state(loaded.model)
        changed = sorted(
            name for name in before.keys() | after if before.get(name) != after.get(name)
        )
        assert not changed, f"left changed after an error: {', '.join(changed[:5])}"

    def test_a_seed_decides_the_samples(self) -> None:
        def sampled(seed: int) -> tuple[int, ...]:
            request = self.request(0, 3, temperature=1.5, seed=seed, new_tokens=24)
            [trial], _ = run(self.loaded(), [request])
            return trial.token_ids

        assert sampled(1) == sampled(1), "the same seed gives other tokens"
        assert len({sampled(seed) for seed in range(4)}) > 1, "the seed makes no difference"


@cache
def tiny_of(adapter: Hashable) -> LoadedModel:
    """Build the tiny model of an adapter, given by name or class, once."""
    assert isinstance(adapter, (str, type))
    return _fresh(_made(adapter))


def _fresh(adapter: Adapter) -> LoadedModel:
    """Build a tiny model; what the adapter lacks for one is told in a line."""
    try:
        return adapter.tiny()
    except MvwError as error:
        told = f"tiny(): {error} {error.cause}"
    pytest.fail(told, pytrace=False)


def _made(adapter: str | type[Adapter]) -> Adapter:
    return load_adapter(adapter) if isinstance(adapter, str) else adapter()


def _differ(one: dict[str, Tensor], other: dict[str, Tensor], *names: str) -> bool:
    return any(
        one[name].shape != other[name].shape or bool((one[name] != other[name]).any())
        for name in names or one
    )


def _shapes(model: Any) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _state(model: Any) -> dict[str, Any]:
    """Describe what serving may change of a model: by module, kernels, own attributes, hooks."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        state[f"{name}: attention"] = getattr(config, "_attn_implementation", None)
        state[f"{name}: hooks"] = (len(module._forward_hooks), len(module._forward_pre_hooks))
        own = {key for key, value in vars(module).items() if callable(value)}
        state[f"{name}: functions of its own"] = tuple(sorted(own))
    for name, parameter in model.named_parameters():
        state[f"{name}: weights"] = parameter._version
    return state
