"""Completions: those of transformers' greedy search over one unpadded prompt; batches change nothing."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from families import DECODERS, RECURRENT
from transformers import GenerationConfig

from rankdrift.scoring.completions import completion_texts
from rankdrift.scoring.detokenizer import Detokenizer
from rankdrift.tasks.kinds import Completion

PAD, STEPS = 0, 12
BUDGETS = (1, 60, 10_000)


def spelt(tokens):
    """A text in which a token is <number>: stops may be part of a token, or span several."""
    return "".join(f"<{token}>" for token in tokens)


def detokenizer(*ends):
    return Detokenizer(PAD, frozenset(ends), spelt)


def reference(model, prompt, steps=STEPS):
    """The tokens of ``generate`` with nothing but greedy settings and no end."""
    settings = GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=-1, pad_token_id=PAD)
    ids = torch.tensor([prompt])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return tokens[0, len(prompt) :].tolist()


def before(tokens, ends):
    """The tokens before the first end."""
    places = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: min(places)] if places else tokens


def asked(prompts, stop=(), steps=STEPS):
    return [Completion(prompt, steps, stop) for prompt in prompts]


@pytest.fixture(scope="module")
def plain(model, prompts):
    return [reference(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("budget", BUDGETS)
def test_texts_are_those_of_transformers(model, prompts, plain, budget):
    assert completion_texts(model, asked(prompts), detokenizer(), budget) == [
        spelt(tokens) for tokens in plain
    ]


@pytest.mark.parametrize("budget", BUDGETS)
def test_any_of_several_ends_ends_a_text(model, prompts, plain, budget):
    ends = {plain[0][4], plain[1][2], plain[3][0]}
    expected = [spelt(before(tokens, ends)) for tokens in plain]
    assert len(set(map(len, expected))) > 2, "some must end early for this test to say anything"
    assert "" in expected, "an immediate end is an empty answer"
    assert completion_texts(model, asked(prompts), detokenizer(*ends), budget) == expected
    of_requests = [Completion(prompt, STEPS, ends=tuple(ends)) for prompt in prompts]
    assert completion_texts(model, of_requests, detokenizer(), budget) == expected


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_text_ends_before_the_first_stop(model, prompts, plain, budget):
    within, across = f"{plain[0][3]}>", f"{plain[1][5]}><{plain[1][6]}"
    expected = [spelt(tokens).split(within)[0].split(across)[0] for tokens in plain]
    assert expected[0] != spelt(plain[0])
    assert expected[1] != spelt(plain[1])
    assert completion_texts(model, asked(prompts, (within, across)), detokenizer(), budget) == expected


def test_of_two_stops_in_one_token_the_first_counts(model, prompts, plain):
    token = plain[0][0]
    assert completion_texts(model, asked(prompts[:1], (f"{token}>", f"<{token}")), detokenizer(), 100) == [""]
    assert completion_texts(model, asked(prompts[:1], (">", f"{token}>")), detokenizer(), 100) == ["<"]


def test_a_text_is_written_no_further_than_its_stop(model, prompts, plain):
    passes = count_passes(model, asked(prompts[:1], (f"<{plain[0][3]}>",)))
    assert passes == 1 + plain[0].index(plain[0][3]) + 1  # one asks which cache the model has


def count_passes(model, requests):
    shapes = []
    hook = model.register_forward_pre_hook(lambda *_: shapes.append(None))
    completion_texts(model, requests, detokenizer(), 10_000)
    hook.remove()
    return len(shapes)


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_request_has_its_own_length(model, prompts, plain, budget):
    lengths = [1, 12, 3, 7, 2, 5, 9, 4]
    requests = [Completion(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
    expected = [spelt(tokens[:length]) for tokens, length in zip(plain, lengths, strict=True)]
    assert completion_texts(model, requests, detokenizer(), budget) == expected


def test_finished_rows_leave_the_batch(model, prompts):
    rows = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    lengths = [1, 1, 1, 2, 2, 6, 6, 6]
    requests = [Completion(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
    completion_texts(model, requests, detokenizer(), 10_000)
    hook.remove()
    assert rows[1:] == [8, 8, 3, 3, 3, 3]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0},
        {"do_sample": True, "temperature": 9.0},
        {"forced_bos_token_id": 3, "forced_eos_token_id": 4, "suppress_tokens": [5, 6, 7]},
        {"min_new_tokens": 5, "no_repeat_ngram_size": 1},
    ],
    ids=str,
)
def test_settings_saved_with_a_model_do_not_change_the_answer(build, prompts, plain, settings):
    model = build(1)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    ids = torch.tensor([prompts[1]])
    torch.manual_seed(0)
    obeyed = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS)
    assert obeyed[0, len(prompts[1]) :].tolist() != plain[1], "generate obeys them"
    assert completion_texts(model, asked(prompts), detokenizer(), 10_000) == [
        spelt(tokens) for tokens in plain
    ]


@pytest.mark.parametrize("family", [*DECODERS, *RECURRENT])
def test_every_family_writes_as_one_prompt_at_a_time(family):
    """Absolute and rotary positions, ALiBi, windows that are shorter than the prompts, states."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config((DECODERS | RECURRENT)[family]()).eval()
    numbers = torch.Generator().manual_seed(1)
    prompts = [tuple(torch.randint(2, 250, (n,), generator=numbers).tolist()) for n in (3, 40, 21, 21)]
    requests = [Completion(prompt, steps) for prompt, steps in zip(prompts, (8, 3, 8, 2), strict=True)]
    expected = [spelt(one_at_a_time(model, request)) for request in requests]
    assert completion_texts(model, requests, detokenizer(), 130) == expected


@torch.no_grad()
def one_at_a_time(model, request):
    tokens = []
    for _ in range(request.max_new_tokens):
        logits = model(input_ids=torch.tensor([[*request.prompt, *tokens]]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens
