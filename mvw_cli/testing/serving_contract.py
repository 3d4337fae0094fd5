"""What the engine must be able to do with an adapter's tiny model, exactly.

The base of `AdapterContract`. It measures against the masked-attention oracle, `model.generate` and
the engine itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mvw_cli.engine import Finished, Withdrawn
from mvw_cli.oracle.equivalence import (
    QUESTION,
    TOLERANCE,
    equivalence,
    noise,
    question_of,
    run,
    writing_text_only,
)
from mvw_cli.testing.vision_probe import prefilled, vision_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from mvw_cli.adapter import Adapter, LoadedModel
    from mvw_cli.engine import Request

SIZES = ((64, 48), (48, 64), (64, 64))  # of the images, in pixels


class ServingContract:
    """The half of `AdapterContract` that runs the engine."""

    def made(self) -> Adapter:
        raise NotImplementedError

    def loaded(self) -> LoadedModel:
        raise NotImplementedError

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

    def test_the_engine_equals_the_oracle(self) -> None:
        """Masked attention over the whole sequence, without a cache: to 1e-5 in float32."""
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
        loaded = self.made().tiny()  # one that nothing has been done to
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
