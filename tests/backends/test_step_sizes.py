"""Default sizes of steps, against numbers worked out by hand."""

from itertools import pairwise

import pytest

from fastdc.backends.step_sizes import device_batch, halves


def test_the_rule_for_steps_on_a_device() -> None:
    def batch(flops: float | None, *, side: int = 32, channels: int = 3, gigabytes: float = 140) -> int:
        memory = int(gigabytes * 1e9)
        return device_batch(flops, sample_bytes=4 * channels * side * side, memory=memory)

    assert [batch(flops) for flops in (1e6, 1e11, 1.1e11, 6.8e11, 1e14)] == [512, 128, 128, 16, 1]
    assert batch(None) == 128  # as for 0.12 TFLOP
    assert batch(None, side=8, channels=1) == 512
    assert batch(None, side=64, channels=4) == 16
    assert [batch(1e9, gigabytes=size) for size in (140, 24, 8, 0.1)] == [512, 64, 32, 1]
    enough = 2 * 2 * 48 * 4096 * 64  # half of the memory holds two steps of 64 samples, 4096 times as large
    assert [device_batch(1e9, sample_bytes=48, memory=memory) for memory in (enough, enough - 1)] == [64, 32]


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 24, 100, 512, 1000])
def test_no_step_is_padded_to_twice_its_cells(batch: int) -> None:
    sizes = halves(batch)
    assert (sizes[0], sizes[-1]) == (1, batch)
    for size, larger in pairwise(sizes):
        assert size < larger < 2 * (size + 1)
