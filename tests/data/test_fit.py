"""How pictures come to a height and width: stretched as torchvision does, in every way in, or as a model says."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastdc
from fastdc import BundleError, InputError
from fastdc.bundle import find_model
from fastdc.data import load_images, load_labelled, prepare
from helpers.pictures import write_png
from helpers.worlds import classifier, fails_with, gaussian, tiny_bundle


def picture(height: int, width: int, channels: int = 3, *, seed: int = 0) -> np.ndarray:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return levels[:, :, 0] if channels == 1 else levels


def stretched(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    """What torchvision's Resize((height, width)) makes of a Pillow image, (c, h, w)."""
    made = np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR))
    return np.atleast_3d(made).transpose(2, 0, 1)


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (7, 300), (64, 64), (5, 6), (16, 24)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_resized_as_a_whole(tmp_path: Path, height: int, width: int, channels: int) -> None:
    levels = picture(height, width, channels)
    Image.fromarray(levels).save(tmp_path / "a.png")
    loaded = load_images(tmp_path / "a.png", (channels, 16, 24), fit="stretch")
    np.testing.assert_array_equal(loaded.images[0], stretched(levels, 16, 24))
    given = prepare([Image.fromarray(levels)], (channels, 16, 24), fit="stretch")
    np.testing.assert_array_equal(given, loaded.images)
    np.testing.assert_array_equal(prepare(levels, (channels, 16, 24), fit="stretch"), loaded.images)


def test_the_corners_are_kept_which_a_crop_would_cut_off(tmp_path: Path) -> None:
    levels = np.zeros((8, 32), np.uint8)
    levels[:, :4] = 255
    Image.fromarray(levels).save(tmp_path / "a.png")
    cropped, whole = (load_images(tmp_path / "a.png", (1, 8, 8), fit=how) for how in (None, "stretch"))
    assert cropped.images.max() == 0
    assert (whole.images[0, 0, :, 0] > 200).all()
    assert whole.notes == ("1 image stretched to 8x8 from 32x8",)
    assert "centre-cropped to 8x8" in cropped.notes[0]


def test_more_than_8_bits_are_stretched_channel_by_channel(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (20, 50, 3)).astype(np.uint16)
    made = load_images(write_png(tmp_path / "a.png", values, 2), (3, 8, 8), fit="stretch").images
    for k in range(3):
        channel = Image.fromarray((values[:, :, k] / 65535).astype(np.float32))
        wanted = np.asarray(channel.resize((8, 8), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(made[0, k], wanted, atol=1e-6)


def test_arrays_and_labelled_sets_are_stretched(tmp_path: Path) -> None:
    images = np.stack([picture(12, 20, 1, seed=k) for k in range(3)])
    np.savez(tmp_path / "a.npz", images=images, labels=[0, 1, 1])
    wanted = np.stack([stretched(one, 6, 6) for one in images])
    np.testing.assert_array_equal(load_labelled(tmp_path / "a.npz", size=6, fit="stretch").images, wanted)
    np.testing.assert_array_equal(load_images(tmp_path / "a.npz", (1, 6, 6), fit="stretch").images, wanted)


def test_another_fit_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", picture(4, 4, 1)[None])
    for call in (
        lambda: load_images(tmp_path / "a.npy", (1, 4, 4), fit="pad"),
        lambda: replace(gaussian(2).model, fit="pad"),
    ):
        fails_with(call, "fit must be one of crop, stretch, got 'pad'", kind=InputError)


def test_a_model_stretches_what_is_not_of_its_shape(tmp_path: Path) -> None:
    clf = classifier(gaussian(3))
    stretching = replace(clf, model=replace(clf.model, fit="stretch"))
    levels = picture(9, 30, 1)
    Image.fromarray(levels).save(tmp_path / "a.png")
    options: dict[str, Any] = {"draws": 4, "rule": "full"}
    wanted = clf.errors(stretched(levels, 4, 4)[None], draws=4).errors
    cropped = clf.classify(tmp_path / "a.png", **options).errors
    for made in (
        stretching.classify(tmp_path / "a.png", **options),
        stretching.classify([Image.fromarray(levels)], **options),
        clf.classify(tmp_path / "a.png", fit="stretch", **options),
    ):
        np.testing.assert_array_equal(made.table.errors, wanted)
    np.testing.assert_array_equal(stretching.classify(tmp_path / "a.png", fit="crop", **options).errors, cropped)
    with fastdc.Session(stretching, draws=4) as session:
        np.testing.assert_array_equal(
            session.submit(tmp_path / "a.png").result(20).errors,
            stretching.classify(tmp_path / "a.png", draws=4).errors,
        )


def test_a_bundle_says_that_its_images_are_stretched(tmp_path: Path) -> None:
    image: dict[str, Any] = {"shape": [1, 2, 3], "range": [-1.0, 1.0]}
    assert tiny_bundle(tmp_path / "crop", image=image).manifest["version"] == 1
    assert tiny_bundle(tmp_path / "same", image={**image, "fit": "crop"}).manifest["version"] == 1
    made = tiny_bundle(tmp_path / "stretch", image={**image, "fit": "stretch"})
    assert made.manifest["version"] == 3  # an older reader would crop
    assert (made.model.fit, fastdc.load_bundle(tmp_path / "crop").model.fit) == ("stretch", "crop")
    for wrong in ("pad", 1):
        changed = {**image, "fit": wrong}
        fails_with(partial(tiny_bundle, tmp_path / "b", image=changed), "fit", kind=BundleError)


@pytest.mark.parametrize("given", [(), ("--fit", "crop"), ("--fit", "stretch")])
def test_commands_read_as_the_model_or_the_option_says(
    tmp_path: Path, given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    from click.testing import CliRunner

    from fastdc.cli.main import cli

    monkeypatch.chdir(tmp_path)
    shutil.copytree(find_model("digits-mlp"), "m")
    manifest = json.loads(Path("m/fastdc.json").read_text())
    manifest["version"] = 3
    manifest["image"]["fit"] = "stretch"
    Path("m/fastdc.json").write_text(json.dumps(manifest))
    Image.fromarray(picture(16, 40, 1)).save("a.png")
    result = CliRunner().invoke(cli, ["classify", "--model", "m", "a.png", "--draws", "2", *given])
    assert result.exit_code == 0, result.output
    assert ("stretched to 8x8 from 40x16" in result.output) == (given != ("--fit", "crop"))
