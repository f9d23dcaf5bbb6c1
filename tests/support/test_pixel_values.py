"""What white may be. Types and ranges of images are tested where they enter, in tests/inference/test_images.py."""

from typing import Any

import numpy as np
import pytest

from fastdc import InputError
from fastdc.support import as_pixels, full_scale
from helpers.worlds import fails_with


def test_full_scale() -> None:
    assert [full_scale(high) for high in (0, 1, 255, 256, 4095, 4096, 65535, 1e300)] == [
        *(255, 255, 255, 511, 4095, 8191, 65535, 1e300)
    ]


@pytest.mark.parametrize("kind", [np.bool_, np.longdouble, np.uint16])
def test_numbers_from_0_to_1_of_another_type_are_to_be_converted_and_not_scaled(kind: Any) -> None:
    fails_with(lambda: as_pixels(np.ones((1, 2, 2), kind)), "images.astype('float32')", kind=InputError)
