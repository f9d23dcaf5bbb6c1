"""Options of EDM networks: those of published models are accepted, those of hostile files are refused."""

from typing import Any

import pytest

from fastdc.support.exceptions import BundleError

pytest.importorskip("torch")

from fastdc.sources.edm_options import DhariwalOptions, SongOptions, options_from

SHAPE = {"img_resolution": 32, "in_channels": 3, "out_channels": 3}


def test_defaults_are_those_of_the_original_classes() -> None:
    song = options_from("SongUNet", SHAPE)
    assert song == SongOptions(32, 3, 3)
    assert isinstance(song, SongOptions)
    assert (song.model_channels, song.channel_mult, song.num_blocks) == (128, (1, 2, 2, 2), 4)
    assert (song.attn_resolutions, song.resample_filter) == ((16,), (1, 1))
    adm = options_from("DhariwalUNet", {**SHAPE, "img_resolution": 64})
    assert adm == DhariwalOptions(64, 3, 3)
    assert adm.levels == ((64, 192), (32, 384), (16, 576), (8, 768))


def test_lists_of_a_file_become_tuples() -> None:
    got = options_from("SongUNet", {**SHAPE, "channel_mult": [2, 2, 2], "resample_filter": [1, 3, 3, 1]})
    assert got == SongOptions(32, 3, 3, channel_mult=(2, 2, 2), resample_filter=(1, 3, 3, 1))
    assert options_from("SongUNet", {**SHAPE, "attn_resolutions": []}).attn_resolutions == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("img_resolution", 30),
        ("img_resolution", 10**9),
        ("img_resolution", True),
        ("img_resolution", 32.0),
        ("model_channels", 10**6),
        ("model_channels", 15),
        ("model_channels", None),
        ("channel_mult", []),
        ("channel_mult", [1] * 17),
        ("channel_mult", [0]),
        ("channel_mult", 2),
        ("channel_mult", [[1]]),
        ("num_blocks", 0),
        ("num_blocks", 10**9),
        ("label_dim", -1),
        ("label_dropout", 2.0),
        ("label_dropout", float("nan")),
        ("label_dropout", True),
        ("encoder_type", "other"),
        ("encoder_type", ["standard"]),
        ("resample_filter", [1, 2, 1]),
        ("resample_filter", "11"),
        ("unknown", 1),
    ],
)
def test_other_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(BundleError, match=name) as caught:
        options_from("SongUNet", {**SHAPE, name: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_other_networks_and_missing_options_are_refused() -> None:
    with pytest.raises(BundleError, match="one of SongUNet, DhariwalUNet, got 'UNet'"):
        options_from("UNet", SHAPE)
    with pytest.raises(BundleError, match="needs the options in_channels, out_channels"):
        options_from("SongUNet", {"img_resolution": 32})
    with pytest.raises(BundleError, match="DhariwalUNet has no option 'encoder_type'"):
        options_from("DhariwalUNet", {**SHAPE, "encoder_type": "skip"})
