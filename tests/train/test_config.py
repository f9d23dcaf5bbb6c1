"""The recipe of a training run as plain values."""

import dataclasses
import json

import pytest

from fastdc.support import InputError
from fastdc.train import TrainConfig


def test_the_config_survives_json() -> None:
    config = TrainConfig(data="a", out="b", model="mlp", val="0.1", flip=True)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(InputError, match="unknown fields: colour"):
        TrainConfig.from_dict(config.to_dict() | {"colour": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0  # type: ignore[misc]


def test_a_window_survives_json() -> None:
    config = TrainConfig(data="x", out="r", window=(0, 4095), max_pixels=100)
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.window == (0.0, 4095.0)
    with pytest.raises(InputError, match="window must"):
        TrainConfig(data="x", out="r", window=(2, 1))
    with pytest.raises(InputError, match="max_pixels must"):
        TrainConfig(data="x", out="r", max_pixels=0)
