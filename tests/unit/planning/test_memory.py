"""The memory of a rank against sums written out by hand, a case a stage."""

from __future__ import annotations

import pytest

from rankdrift.planning.memory import BOOKKEEPING, Machine, RankMemory, Zero, rank_memory
from rankdrift.planning.parameters import ModelSize

T, F, LARGEST, KEPT = 1000, 600, 300, 4800
SIZE = ModelSize(trained=T, frozen=F, largest=LARGEST, aliases=0)
CPUS, GPUS = Machine(2, is_gpu=False), Machine(2, is_gpu=True)


def memory(zero: Zero, machine: Machine = CPUS, weight: int = 4, accumulates: bool = False) -> RankMemory:
    return rank_memory(SIZE, zero, machine, weight, KEPT, accumulates)


def parts(found: RankMemory) -> dict[str, int]:
    return {part.name: part.size for part in found.parts}


@pytest.mark.parametrize(
    ("stage", "always", "backward", "update"),
    [
        # weights, moments, gradients; the largest gradient; all of them as one vector to be exchanged
        (0, 4 * (T + F) + 8 * T + 4 * T, 4 * LARGEST, 4 * T),
        # masters and moments halved, all gradients; the largest, this rank's, a bucket of 200; this rank's as
        # one vector, gloo's copy of the weights
        (
            1,
            4 * (T + F) + (4 + 8) * T // 2 + 4 * T,
            4 * LARGEST + 4 * T // 2 + 4 * 200,
            4 * T // 2 + 4 * T,
        ),
        # the same without all gradients
        (2, 4 * (T + F) + (4 + 8) * T // 2, 4 * LARGEST + 4 * T // 2 + 4 * 200, 4 * T // 2 + 4 * T),
        # weights halved, and gathered; this rank's gradients; a bucket, and two that are exchanged
        (
            3,
            4 * (T + F) // 2 + 4 * (T + F) + (4 + 8) * T // 2 + 4 * T // 2,
            4 * LARGEST + 3 * 4 * 200,
            4 * T // 2 + 4 * (T + F),
        ),
    ],
)
def test_a_cpu_rank_holds_the_fuller_moment_and_half_of_the_other(
    stage: int, always: int, backward: int, update: int
) -> None:
    found = memory(Zero(stage, bucket=200))
    less, more = sorted((backward + KEPT, update))
    assert found.at_once == always + BOOKKEEPING + more
    assert found.peak == found.at_once + less // 2


def test_what_is_in_use_at_once_is_that_of_the_fullest_moment() -> None:
    always = 4 * (T + F) + (4 + 8) * T // 2 + BOOKKEEPING
    backward = KEPT + 4 * LARGEST + 4 * T // 2 + 4 * 200
    update = 4 * T // 2 + 4 * T  # this rank's gradients as one vector, and gloo's copy of the weights
    assert memory(Zero(2, bucket=200)).at_once == always + max(backward, update)
    without = rank_memory(SIZE, Zero(2, bucket=200), CPUS, 4, 0, accumulates=False)
    assert without.at_once == always + update


def test_a_gpu_rank_holds_what_a_moment_holds() -> None:
    found = memory(Zero(2, bucket=200), GPUS, weight=2)
    always = 2 * (T + F) + (4 + 8) * T // 2
    backward = KEPT + 2 * LARGEST + 4 * T // 2 + 2 * 200
    assert found.peak == always + backward  # the update holds less: 4 T / 2
    assert found.host == 0


def test_what_is_offloaded_is_the_hosts() -> None:
    device, host = (
        memory(Zero(2, bucket=200), GPUS),
        memory(Zero(2, bucket=200, optimizer_on_host=True), GPUS),
    )
    states = (4 + 8) * T // 2
    assert device.peak - host.peak == states
    assert host.host == states + 4 * T // 2  # and the gradients that they are updated by
    everything = memory(Zero(3, optimizer_on_host=True, weights_on_host=True), GPUS)
    assert everything.host == host.host + 4 * (T + F) // 2
    assert memory(Zero(2, optimizer_on_host=True)).host == 0  # a CPU rank is on the host already


def test_a_bucket_is_no_larger_than_what_it_is_filled_with() -> None:
    for machine in (CPUS, GPUS):
        assert parts(memory(Zero(2, bucket=10**9), machine))["reduce bucket"] == 4 * T
    assert parts(memory(Zero(2, bucket=200, overlap=True)))["reduce bucket"] == 2 * 4 * 200


def test_accumulated_gradients_are_there_beside_new_ones() -> None:
    one, several = (parts(memory(Zero(2), accumulates=each))["gradient partition"] for each in (False, True))
    assert (one, several) == (4 * T // 2, 4 * T)


def test_a_single_rank_gathers_nothing() -> None:
    alone = rank_memory(SIZE, Zero(2, bucket=200), Machine(1, is_gpu=False), 4, KEPT, accumulates=False)
    assert "gathering by gloo" not in parts(alone)
