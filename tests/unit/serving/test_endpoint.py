"""Load on an endpoint, a stand-in that streams, hangs, fails or talks rubbish as it is told."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stand_in_endpoint import DELAY, StandIn

from rankdrift.errors import IntegrityError, UserError
from rankdrift.serving.deployed import Tuned
from rankdrift.serving.endpoint import vllm
from rankdrift.serving.endpoint.adapters import require_adapters
from rankdrift.serving.endpoint.benchmark import describe, measure
from rankdrift.serving.endpoint.load import Load, arrivals, in_its_words, put_load_on
from rankdrift.serving.endpoint.requests import Ask

ASKED = Load(1, clients=1, timeout=5)


@pytest.fixture
def server() -> Iterator[StandIn]:
    found = StandIn()
    yield found
    found.stop()


@pytest.fixture
def strict_server() -> Iterator[StandIn]:
    found = StandIn(strict=True)
    yield found
    found.stop()


def test_a_stream_is_read_part_by_part(server: StandIn) -> None:
    (reply,) = put_load_on(f"{server.url}/v1", [Ask("lora", "Once", 3)], Load(1, clients=1))
    assert (reply.problem, reply.text, len(reply.arrivals)) == ("", " lora0 lora1 lora2", 3)
    assert DELAY <= reply.arrivals[0] < reply.arrivals[1] < reply.arrivals[2] <= reply.seconds
    assert server.seen == [
        {
            "model": "lora",
            "prompt": "Once",
            "max_tokens": 3,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
        }
    ]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("fails", "HTTP 500: out of memory"),
        ("hangs", "no answer within the time that was given"),
        ("rubbish", "not a line of an event stream: '<html>proxy error</html>'"),
        ("broken", "not JSON: '{not json'"),
        ("says", "the server says: {'message': 'too long'}"),
        ("cut", "the stream ended without [DONE], or a reason to end"),
    ],
)
def test_what_goes_wrong_is_in_the_reply_and_ends_the_benchmark(
    model: str, problem: str, server: StandIn
) -> None:
    load = Load(3, clients=3, timeout=0.5)
    replies = put_load_on(server.url, [Ask(model, "Once", 4)], load)
    assert {reply.problem for reply in replies} == {problem}
    with pytest.raises(UserError, match=r"bad, unmerged: 3 of 3 requests failed"):
        measure(server.url, {("bad", "unmerged"): [model]}, ["Once"], 4, load, 1, lambda line: None)


def test_nobody_there_is_said() -> None:
    (reply,) = put_load_on("http://127.0.0.1:9", [Ask("a", "b", 1)], Load(1, clients=1))
    assert reply.problem.startswith("ClientConnectorError: ")


def test_the_closed_loop_keeps_so_many_in_flight(server: StandIn) -> None:
    replies = put_load_on(server.url, [Ask("a", "x", 3), Ask("b", "x", 3)], Load(20, clients=4))
    assert server.most_at_once == 4
    assert sorted(str(body["model"]) for body in server.seen) == ["a"] * 10 + ["b"] * 10
    assert all(reply.sent <= later.sent for reply, later in itertools.pairwise(replies))


def test_requests_of_the_open_loop_come_at_random_times_of_a_rate() -> None:
    """Gaps of a Poisson process are exponential: their mean and standard deviation are both 1 / rate."""
    gaps = np.diff([0.0, *arrivals(Load(20_000, rate=4.0))])
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.03)
    assert arrivals(Load(5, rate=4.0)) == arrivals(Load(5, rate=4.0))
    assert arrivals(Load(5, rate=4.0)) != arrivals(Load(5, rate=4.0, seed=1))


def test_the_open_loop_does_not_wait_for_answers(server: StandIn) -> None:
    replies = put_load_on(server.url, [Ask("a", "x", 20)], Load(30, rate=200.0))
    assert server.most_at_once > 4  # an answer takes 0.2 s, in which forty more are due
    assert [reply.due for reply in replies] == arrivals(Load(30, rate=200.0))
    assert all(reply.sent >= reply.due for reply in replies)


def test_a_server_is_asked_in_its_own_words(server: StandIn, strict_server: StandIn) -> None:
    """That of transformers takes nothing beyond the protocol, and ends with a reason."""
    assert in_its_words(server.url, "lora", ASKED) == ASKED
    assert in_its_words(server.url, "fails", ASKED) == ASKED  # for who asks next to find
    strict = strict_server
    load = in_its_words(strict.url, "lora", ASKED)
    assert not load.ignore_eos
    (refused,) = put_load_on(strict.url, [Ask("lora", "Once", 3)], ASKED)
    assert refused.problem.startswith("HTTP 422")
    (reply,) = put_load_on(strict.url, [Ask("lora", "Once", 3)], load)
    assert (reply.problem, reply.text, len(reply.arrivals)) == ("", " lora0 lora1 lora2", 3)


def test_a_load_is_open_or_closed() -> None:
    with pytest.raises(UserError, match="one of them"):
        put_load_on("http://x", [], Load(1))


def test_a_server_that_ignores_an_adapter_is_found_out(server: StandIn) -> None:
    require_adapters(server.url, "base", [["one", "two"], []], ["x", "y"], ASKED)
    with pytest.raises(IntegrityError, match=r"'ignored' says to all of 2 prompts what the base model"):
        require_adapters(server.url, "base", [["one", "ignored"]], ["x", "y"], ASKED)
    with pytest.raises(IntegrityError, match=r"'one' says .* what 'one' says"):
        require_adapters(server.url, "base", [["one", "one"]], ["x", "y"], ASKED)
    with pytest.raises(UserError, match=r"model 'fails': HTTP 500"):
        require_adapters(server.url, "base", [["fails"]], ["x"], ASKED)


def test_models_are_measured_in_rounds(server: StandIn) -> None:
    models = {("base", "base"): ["base"], ("all adapters", "mixed"): ["one", "two"]}
    load = Load(4, clients=2)
    samples = measure(server.url, models, ["x", "y"], 3, load, 3, lambda line: None).samples
    assert describe(load) == "closed, 2 clients"
    counts = samples.groupby(["way", "quantity"]).size().to_dict()
    for way in ("base", "mixed"):
        assert counts[way, "first_token"] == counts[way, "request"] == 12
        assert counts[way, "further_token"] == 24
        assert counts[way, "throughput"] == 3
    gaps = samples[samples["quantity"] == "further_token"]["value"]
    assert gaps.median() == pytest.approx(DELAY, rel=0.5)
    assert {str(body["model"]) for body in server.seen} == {"base", "one", "two"}


def test_vllm_is_asked_to_serve_base_and_adapters(tmp_path: Path) -> None:
    for name, rank in (("a", 8), ("b", 16)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": rank}))
    adapters = [Tuned(name, tmp_path / name) for name in ("a", "b")]
    found = vllm.command(tmp_path, adapters, 8001, ("--dtype=bfloat16",))
    assert found == [
        *("vllm", "serve", str(tmp_path), "--served-model-name", "base", "--port", "8001"),
        *("--enable-lora", "--max-loras", "2", "--max-lora-rank", "16"),
        *("--lora-modules", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "--dtype=bfloat16"),
    ]
    assert "--enable-lora" not in vllm.command(tmp_path, [], 8001)


SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_is_waited_for_and_ended(tmp_path: Path) -> None:
    from rankdrift.studies.launcher import free_port

    (tmp_path / "server.py").write_text(SERVER)
    port = free_port()
    command = [sys.executable, str(tmp_path / "server.py"), str(port)]
    with vllm.serving(command, port, tmp_path / "log", ready=30) as url:
        assert url == f"http://127.0.0.1:{port}"
        assert vllm._is_healthy(url)
    assert not vllm._is_healthy(url)


def test_a_server_that_does_not_come_up_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="no-such-vllm: no such command"),
        vllm.serving(["no-such-vllm"], 1, tmp_path / "log"),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"ended with exit code 3: see .*log"),
        vllm.serving([sys.executable, "-c", "raise SystemExit(3)"], 1, tmp_path / "log"),
    ):
        pass
    with (
        pytest.raises(UserError, match="is not ready after 0 s"),
        vllm.serving(["sleep", "60"], 1, tmp_path / "log", ready=0.1),
    ):
        pass
