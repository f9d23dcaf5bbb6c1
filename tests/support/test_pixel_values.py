"""What white may be. Types and ranges of images are tested where they enter, in tests/inference/test_images.py."""

from fastdc.support import full_scale


def test_full_scale() -> None:
    assert [full_scale(high) for high in (0, 1, 255, 256, 4095, 4096, 65535, 1e300)] == [
        *(255, 255, 255, 511, 4095, 8191, 65535, 1e300)
    ]
