"""Two ranks that share requests: every rank has the answers that one rank alone would give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import HERE, run_ranks
from shares_worker import KINDS, WINDOWS, answers, compared, requests_of

from rankdrift.scoring.shares import Shares

pytestmark = pytest.mark.distributed
WAYS = ("independent", "lockstep", "partitioned")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of two ranks saw."""
    folder = tmp_path_factory.mktemp("shares")
    run_ranks(2, HERE / "shares_worker.py", str(folder), timeout=200)
    return [json.loads(Path(folder / f"{rank}.json").read_text()) for rank in range(2)]


def flat(found):
    """Numbers and texts apart."""
    pieces = [piece for one in found for piece in ([one] if isinstance(one, str) else one)]
    return [p for p in pieces if isinstance(p, float)], [p for p in pieces if not isinstance(p, float)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_has_the_answers_of_one(seen, kind, way):
    numbers, rest = flat(answers(kind, None)["answers"])
    for rank in seen:
        found = flat(rank[f"{kind} {way}"]["answers"])
        assert found[0] == pytest.approx(numbers, rel=1e-5)
        assert found[1] == rest


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_is_shared_and_in_lockstep_passes_are_as_many(seen, kind):
    alone = answers(kind, None)["passes"]
    assert all(rank[f"{kind} independent"]["passes"] <= alone for rank in seen)
    for way in ("lockstep", "partitioned"):
        of_ranks = [rank[f"{kind} {way}"]["passes"] for rank in seen]
        assert of_ranks[0] == of_ranks[1]
        assert of_ranks[0] == max(rank[f"{kind} independent"]["passes"] for rank in seen)


@pytest.mark.parametrize("windows", WINDOWS)
def test_texts_are_compared_with_the_base_by_all_ranks_together(seen, windows):
    alone = compared(windows, None)
    for rank in seen:
        found = rank[f"{windows} windows"]["rows"]
        assert list(found) == list(alone["rows"])
        for name, values in alone["rows"].items():
            assert found[name] == pytest.approx(values, rel=1e-4), name
    assert min(alone["rows"]["kl_from_base"]) > 1e-3, "the models differ"
    tokens = [rank[f"{windows} windows"]["tokens"] for rank in seen]
    assert sum(tokens) == alone["tokens"]
    assert max(tokens) - min(tokens) <= 20, "the longest window"


@pytest.mark.parametrize("world_size", [1, 2, 3, 50])
def test_every_request_has_one_rank_and_tokens_are_balanced(world_size):
    requests = requests_of("texts")
    owned = [Shares(rank, world_size, lockstep=False).own(requests) for rank in range(world_size)]
    assert sorted(number for own in owned for number in own) == list(range(len(requests)))
    contexts = [{requests[n].context for n in own if hasattr(requests[n], "context")} for own in owned]
    assert sum(map(len, contexts)) == len(set().union(*contexts)), "a context is on one rank"
    if world_size <= 3:
        tokens = [sum(tokens_of(requests[number]) for number in own) for own in owned]
        assert max(tokens) - min(tokens) <= 4 * (30 + 4), "those of the longest, a context asked four times"


def tokens_of(request):
    if hasattr(request, "context"):
        return len(request.context) + len(request.continuation)
    return len(request.prompt) + request.max_new_tokens
