"""A bucket of gradients has room for all there are, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from rankdrift.training.engine import with_fitting_bucket


@pytest.mark.parametrize(
    ("zero", "bucket"),
    [
        ({"stage": 2, "reduce_bucket_size": 5e7}, 1000),
        ({"stage": 2, "reduce_bucket_size": 300}, 300),
        ({"stage": 3}, 1000),  # DeepSpeed's own is 500 million
    ],
)
def test_a_bucket_is_no_larger_than_all_gradients(zero: dict[str, Any], bucket: int) -> None:
    config = {"train_batch_size": 8, "zero_optimization": zero}
    fitting = with_fitting_bucket(config, trained=1000)
    assert fitting == {"train_batch_size": 8, "zero_optimization": zero | {"reduce_bucket_size": bucket}}
    assert config["zero_optimization"] == zero  # the run's own stays as it is stored
