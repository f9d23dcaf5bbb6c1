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
