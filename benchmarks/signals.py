"""What it costs to look: decoding with a policy that watches, against one that doesn't.

The LLaVA of `decode.py`, 8 layers x 512 wide, 1,024 vision tokens, one sequence, greedy, one
thread. Each policy watches and never withdraws, so the tokens are the same; `pulse` attends to
less, and its tokens are its own. CPU time of the process is taken, not the clock's: other work on
the machine counts for less. The prefill and the first tokens are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

import click
import torch
from decode import IMAGE, M, build, tpot_ms
from measuring import interleaved, paired_ratio, say_ratio, summarise, write_result

from mvw_cli import LoadedModel, ModelSpec, VisionLayout, WithdrawalPolicy
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.types import GenerationSettings, Request, Token
from mvw_cli.policies.anneal import Anneal
from mvw_cli.policies.look_back import LookBack
from mvw_cli.policies.mass import Mass
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.pulse import Pulse
from mvw_cli.policies.stack import stacked

NEVER = 100_000
VISION = 1024


@click.command()
@click.option("--tokens", default=64, show_default=True, help="New tokens in each run.")
@click.option("--pairs", default=12, show_default=True)
def main(tokens: int, pairs: int) -> None:
    """Measure what watching adds to a decode step."""
    torch.set_num_threads(1)
    model = build(8, 512)
    ids = torch.tensor([[1, 3] + [IMAGE] * VISION + list(range(4, 30))])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 448, 448),
    }
    loaded = LoadedModel("bench", "llava", model, None, ModelSpec())
    settings = GenerationSettings(max_new_tokens=tokens, temperature=0, ignore_eos=True)
    outputs: dict[str, list[int]] = {}

    def watching(name: str, policy: WithdrawalPolicy) -> Callable[[], float]:
        def arm() -> float:
            request = Request(name, inputs, VisionLayout(ids[0] == IMAGE), policy, settings)
            stamps, outputs[name] = [], []
            for event in Engine(loaded).run([request]):
                if isinstance(event, Token):
                    stamps.append(process_time())
                    outputs[name].append(event.id)
            return tpot_ms(stamps, M)

        return arm

    arms = {
        "none": watching("none", NoWithdrawal()),
        "mass": watching("mass", Mass(threshold=1e-9)),
        "entropy": watching("entropy", stacked([Mvw(m=NEVER), LookBack(entropy=1e9)])),
        "weights": watching("weights", Anneal(end=NEVER, start=NEVER - 1)),
        "pulse": watching("pulse", Pulse()),
    }
    samples = interleaved(arms, pairs=pairs)
    for name in ("mass", "entropy", "weights"):
        assert outputs[name] == outputs["none"], f"{name}: watching must not change the tokens"
    ratios = {name: paired_ratio(samples[name], samples["none"]) for name in arms if name != "none"}
    for name, ratio in ratios.items():
        click.echo(say_ratio(f"CPU time per token, {name} / none", ratio))
    write_result(
        "signals",
        {
            "layers": 8,
            "width": 512,
            "vision_tokens": VISION,
            "tokens": tokens,
            "cpu_ms_per_token": {name: summarise(times) for name, times in samples.items()},
            "ratio_to_none": ratios,
        },
    )


if __name__ == "__main__":
    main()
