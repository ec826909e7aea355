"""A rank that answers requests with the others, each way of sharing them, and writes what it saw."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from rankdrift.data.general_text import TextWindow
from rankdrift.models.tiny import tiny_config
from rankdrift.scoring.answers import answer
from rankdrift.scoring.detokenizer import Detokenizer
from rankdrift.scoring.retention import GeneralText, Reference, measure_windows
from rankdrift.scoring.shares import Shares
from rankdrift.tasks.kinds import Classes, Completion, Continuation, Request

CODEC = Detokenizer(0, frozenset({1}), lambda tokens: "".join(f"<{token}>" for token in tokens))
BUDGET = 60


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = tiny_config()
    config.update({"initializer_range": 0.3, "num_labels": 3})
    return (LlamaForSequenceClassification if kind == "classes" else LlamaForCausalLM)(config).eval()


def requests_of(kind: str) -> list[Request]:
    """Requests that are easily shared, that one rank has to work at for long, and fewer than ranks."""
    draw = random.Random(3)
    prompts = [tuple(draw.randrange(2, 31) for _ in range(draw.randrange(1, 30))) for _ in range(9)]
    if kind == "classes":
        return [Classes(prompt, 1, 2) for prompt in prompts]
    if kind == "one":
        return [Completion(prompts[0], 5)]
    choices = ((5,), (5, 9), (20, 3, 4), (8, 8, 8, 8))
    made: list[Request] = [Continuation(prompt, choice) for prompt in prompts for choice in choices]
    return made + [Completion(prompt, 1 + 3 * number) for number, prompt in enumerate(prompts)]


KINDS = ("texts", "one", "classes")
WINDOWS = (1, 9)


class PassCounter:
    """A hook that counts."""

    count = 0

    def __call__(self, *_: object) -> None:
        self.count += 1


def answers(kind: str, shares: Shares | None, meet: bool = False) -> dict[str, Any]:
    """Answer; ``meet`` makes every pass one in which all ranks have to meet."""
    model, passes = model_of(kind), PassCounter()

    def met(*_: object) -> None:
        present = torch.ones(1)
        dist.all_reduce(present)
        assert int(present) == dist.get_world_size(), "what was met is no pass of the others"

    if meet:
        model.register_forward_pre_hook(met)
    model.register_forward_pre_hook(passes)
    return {"answers": answer(model, requests_of(kind), CODEC, BUDGET, shares), "passes": passes.count}


def text_of(windows: int) -> GeneralText:
    """Windows of 2 to 20 tokens, in no order of length."""
    draw = random.Random(5)
    ids = [tuple(draw.randrange(2, 31) for _ in range(2 + 7 * number % 19)) for number in range(windows)]
    return GeneralText(tuple(TextWindow(own, 10 + n, n // 2, 4) for n, own in enumerate(ids)), 0, BUDGET)


def compared(windows: int, shares: Shares | None) -> dict[str, Any]:
    """Compare a model with another as its base; say over how many tokens this rank passed the model."""
    base, model, tokens = model_of("texts"), model_of("texts"), []
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    reference = Reference.of(base, text_of(windows), shares)

    def count(_module: object, _given: object, named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        if mask is not None:  # the head's check passes none
            tokens.append(int(mask.sum()))

    model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    table = measure_windows(model, text_of(windows), reference, shares)
    return {"rows": table.to_dict("list"), "tokens": sum(tokens)}


def partitioned_answers(kind: str, shares: Shares) -> dict[str, Any]:
    """Answer with a model that ZeRO-3 partitions, and then go on training it."""
    stage = {"stage": 3, "stage3_param_persistence_threshold": 100}  # norms stay whole
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": stage,
        "zero_allow_untested_optimizer": True,
    }
    model = model_of(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    assert sum(parameter.numel() == 0 for parameter in engine.module.parameters()) > 10
    passes = PassCounter()
    hook = engine.module.register_forward_pre_hook(passes)
    found = answer(engine.module, requests_of(kind), CODEC, BUDGET, shares)
    hook.remove()
    engine.train()
    tokens = torch.arange(2, 9)[None]
    labels = tokens if kind != "classes" else torch.tensor([1])
    for _ in range(2):
        engine.backward(engine(input_ids=tokens, labels=labels).loss)
        engine.step()
    return {"answers": found, "passes": passes.count}


def main(folder: Path) -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # needs a compiler
    deepspeed.init_distributed("gloo")
    seen = {f"{windows} windows": compared(windows, Shares.of_group()) for windows in WINDOWS}
    for kind in KINDS:
        seen[f"{kind} independent"] = answers(kind, Shares.of_group())
        lockstep = Shares.of_group(lockstep=True)
        seen[f"{kind} lockstep"] = answers(kind, lockstep, meet=True)
        seen[f"{kind} partitioned"] = partitioned_answers(kind, lockstep)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
