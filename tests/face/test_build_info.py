"""Facts of the installation: each capability is present or missing, and its command names an extra that exists."""

import re
import tomllib

import fastdc
from fastdc.build_info import CAPABILITIES
from helpers.paths import ROOT


def test_every_capability_is_present_or_missing() -> None:
    config = fastdc.build_config()
    assert set(config["present"]) | set(config["missing"]) == set(CAPABILITIES)
    assert not set(config["present"]) & set(config["missing"])
    for found in config["present"].values():
        assert re.fullmatch(r"\S+ [0-9]\S*", found)


def test_each_extra_exists_and_brings_the_capability() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for capability, (distributions, extra) in CAPABILITIES.items():
        brought = {re.match(r"[\w-]+", requirement)[0] for requirement in extras[extra]}  # type: ignore[index]
        assert set(distributions) & brought, capability
