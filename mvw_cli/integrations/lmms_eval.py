"""mvw as a chat model of lmms-eval, which finds it by the entry point `lmms_eval.models`.

`--model mvw --model_args profile=NAME,m=16`: each argument is an option of `mvw infer` without its
dashes, or a dotted key of a profile. lmms-eval's `--batch_size` is the number of slots.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from PIL.Image import Image, Resampling
from tqdm import tqdm

from mvw_cli import console
from mvw_cli.cli.options import KEYS
from mvw_cli.engine.types import Completion, Event, Finished, GenerationSettings, Request, summarise
from mvw_cli.errors import UsageProblem
from mvw_cli.images.reading import fit, open_image, to_rgb
from mvw_cli.profiles.resolution import resolve
from mvw_cli.session import open_session

_SAMPLING: dict[str, type[int] | type[float]] = {
    "max_new_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "repetition_penalty": float,
}
"""What a task may say of how tokens are chosen; the command line makes 5 of 5.0."""


def manifest() -> ModelManifest:
    """Tell lmms-eval which class the model `mvw` is."""
    return ModelManifest("mvw", chat_class_path=f"{__name__}.Mvw")


class Mvw(lmms):
    """Answers with a profile; the text is the answer proper, without the reasoning.

    A task's `generation_kwargs` go over what the profile says, and `until` cuts the answer, not the
    reasoning before it.

    Args:
        profile: name or file; without it `MVW_PROFILE`, or what the arguments name.
        batch_size: answers that decode at the same time.
        options: options of `mvw infer`, with `_` for `-`, or dotted keys.

    Raises:
        MvwError: as `mvw infer`.
    """

    is_simple = False

    def __init__(
        self,
        profile: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        named = {KEYS.get(f"--{key.replace('_', '-')}", key): v for key, v in options.items()}
        resolved = resolve(profile, named)
        self._images = resolved.profile.images
        slots = int(batch_size) if str(batch_size).isdecimal() else 1  # it may be `auto`
        self._session = open_session(resolved.profile, policy=resolved.policy, slots=slots)

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer; the results are in the order of the requests."""
        heard: dict[str, list[Event]] = defaultdict(list)
        results: dict[str, GenerationResult] = {}
        bar = tqdm(total=len(requests), desc="mvw", disable=self.rank != 0)
        for event in self._session.run(self._encoded(requests)):
            heard[event.request].append(event)
            if isinstance(event, Finished):
                request = requests[int(event.request)]
                result = self._result(request, summarise(heard.pop(event.request)))
                self.cache_hook.add_partial("generate_until", _key(request), result.text)
                results[event.request] = result
                bar.update()
        bar.close()
        cut = sum(not result.text for result in results.values())
        if cut:
            console.warn(
                f"{cut} of {len(requests)} texts hold no answer: --gen_kwargs max_new_tokens=2048 "
                "lets a model that reasons come to one."
            )
        return [results[str(number)] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse: a prompt here asks one question."""
        raise NotImplementedError("mvw answers one question at a time")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse: mvw generates."""
        raise NotImplementedError("mvw generates, and gives no likelihoods")

    def _encoded(self, requests: Sequence[Instance]) -> Iterator[Request]:
        """Encode one request after the other, as slots become free."""
        asked_before: Counter[int] = Counter()
        for number, instance in enumerate(requests):
            _, doc_to_messages, asked, doc_id, task, split = instance.args
            doc = self.task_dict[task][split][doc_id]
            system, images, question = self._asked(ChatMessages(messages=doc_to_messages(doc)))
            session = self._session if system is None else self._session.with_system(system)
            settings = _settings(session.settings, asked)
            # Repeats of one question are one instance: each has a seed of its own.
            settings = replace(settings, seed=settings.seed + asked_before[id(instance)])
            asked_before[id(instance)] += 1
            yield replace(session, settings=settings).request(images, question, id=str(number))

    def _asked(self, chat: ChatMessages) -> tuple[str | None, list[Image], str]:
        """Take a conversation apart: system prompt, images, question.

        Raises:
            UsageProblem: it has several turns, or something else than images and text.
        """
        *before, last = chat.messages
        if last.role != "user" or any(one.role != "system" for one in before):
            roles = ", ".join(message.role for message in chat.messages)
            raise _refused("has several turns", f"its messages are of: {roles}")
        parts = last.content
        kinds = {part.type for message in chat.messages for part in message.content}
        if kinds - {"text", "image"}:
            raise _refused("has no image", f"it has: {', '.join(sorted(kinds))}")
        system = "\n".join(part.text for message in before for part in message.content)
        images = [self._image(part.url) for part in parts if part.type == "image"]
        question = "\n".join(part.text for part in parts if part.type == "text")
        return system or None, images, question

    def _image(self, given: Any) -> Image:
        """Read an image as `mvw infer` does; a task gives a path, or the image itself."""
        most = self._images.max_pixels
        if isinstance(given, str):
            limit = self._images.max_decoded_pixels
            return open_image(given, max_pixels=most, max_decoded_pixels=limit).image
        image = to_rgb(given)
        size = fit(image.size, most)
        return image if size == image.size else image.resize(size, Resampling.LANCZOS)

    def _result(self, instance: Instance, completion: Completion) -> GenerationResult:
        text = self._session.parse(completion.text).answer
        until = instance.args[2].get("until") or ()
        for end in [until] if isinstance(until, str) else until:
            text = text.partition(end)[0] if end else text
        counts = TokenCounts(completion.prompt_tokens, completion.generated_tokens)
        return GenerationResult(text, counts)


def _key(instance: Instance) -> tuple[str, Mapping[str, Any]]:
    """Return what lmms-eval's cache knows an answer by."""
    return instance.args[0], instance.args[2]


def _settings(base: GenerationSettings, asked: Mapping[str, Any]) -> GenerationSettings:
    """Return how tokens are chosen: as a task says, else as the profile does.

    Raises:
        UsageProblem: the task wants a beam search.
    """
    if (asked.get("num_beams") or 1) > 1:
        raise _refused("wants a beam search", "mvw chooses one token at a time")
    given: dict[str, Any] = {
        name: kind(asked[name]) for name, kind in _SAMPLING.items() if asked.get(name) is not None
    }
    if asked.get("do_sample") is False:
        given["temperature"] = 0.0
    return replace(base, **given)


def _refused(what: str, cause: str) -> UsageProblem:
    return UsageProblem(f"A question of this task {what}", cause=cause, hint="mvw eval --help")
