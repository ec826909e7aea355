"""Where a rank is told that it is, and the limits."""

from __future__ import annotations

import math

import pytest

from rankdrift.errors import UserError
from rankdrift.heartbeat.place import Limits, Place

HERE = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_a_rank_knows_its_place() -> None:
    place = Place.here(HERE)
    assert (place.rank, place.local_rank, place.world_size, place.address) == (3, 0, 8, "10.0.0.1")
    assert list(place.ports) == [20500, 20501, 20502, 20503]


@pytest.mark.parametrize("port", ["1024", "29499", "48500", "65535"])
def test_ports_are_none_that_a_system_gives_away(port: str) -> None:
    ports = Place.here(HERE | {"MASTER_PORT": port}).ports
    assert all(1024 < each < 32768 and each != int(port) for each in ports)


def test_limits_follow_the_environment() -> None:
    assert Limits.here({}) == Limits(20.0, 540.0)
    assert Limits.here({"DEEPSPEED_TIMEOUT": "30"}).hang == 1620.0
    given = {"RANKDRIFT_SILENCE": "inf", "RANKDRIFT_HANG": "7.5", "DEEPSPEED_TIMEOUT": "30"}
    assert Limits.here(given) == Limits(math.inf, 7.5)
    assert Limits.here(given).beat == 1.0
    assert Limits(2.0).beat == 0.4


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan"])
@pytest.mark.parametrize("name", ["RANKDRIFT_SILENCE", "RANKDRIFT_HANG"])
def test_a_limit_that_is_none_is_refused(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name}={value}: not a number above 0"):
        Limits.here({name: value})
