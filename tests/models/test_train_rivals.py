"""The scripts that train CLIP and ViLT from scratch: no true text stands against an image; small models open again."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image  # noqa: E402

import train_clip  # noqa: E402
import train_vilt  # noqa: E402
from fastdc.matching import ClipMatcher, ViltMatcher  # noqa: E402
from fastdc.testing import SCENE_CLASSES  # noqa: E402
from scene_captions import clip_tokenizer, read_captions, shifted, validation  # noqa: E402

SCENES = (  # caption, further true texts, task
    ("a photo of a red cube", "", "single"),
    ("a photo of a blue cone", "", "single"),
    ("a photo of a red cube", "a photo of a blue cone", "two_object"),
    ("a photo of a red cone", "", "single"),
    ("a photo of a cube to the left of a cone", "a photo of a cone to the right of a cube", "relational"),
    ("a photo of a cone to the right of a cube", "a photo of a cube to the left of a cone", "relational"),
    ("a photo of a cone to the left of a cube", "a photo of a cube to the right of a cone", "relational"),
    ("a photo of a cube that is not red", "a photo of a cube that is not gray", "negation"),
    ("a photo of a cube that is not blue", "a photo of a cube that is not gray", "negation"),
    ("a photo of one cone", "", "counting"),
    ("a photo of two cones", "", "counting"),
)

STATEMENTS = ("cube left cone", "cube right cone", "cone left cube", "cone left sphere", "sphere left cone")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder like that of make_scenes.py, with noise for images."""
    rng = np.random.default_rng(0)
    captions, others, tasks = zip(*SCENES, strict=True)
    images = rng.integers(0, 256, (len(SCENES), 3, 32, 32), dtype=np.uint8)
    np.savez(
        tmp_path / "scenes-train.npz",
        images=images,
        captions=captions,
        other_captions=others,
        tasks=tasks,
        groups=tasks,
    )
    layout = {"single_object": ("red cube", "blue cone"), "relational": ("cube_left_cone/cube left cone",)}
    for task, groups in layout.items():
        for group in groups:
            place = tmp_path / task / "ID_val" / group
            place.mkdir(parents=True)
            Image.fromarray(images[0].transpose(1, 2, 0)).save(place / "0.png")
    tables = {"single_prompts.csv": SCENE_CLASSES, "rel_prompts/rel_train/cube_left_cone.csv": STATEMENTS}
    for name, rows in tables.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("w", newline="") as file:
            lines = [(i, f"a photo of a {row}", row, i) for i, row in enumerate(rows)]
            csv.writer(file).writerows([("", "prompt", "class_name", "classidx"), *lines])
    return tmp_path


def test_a_text_is_wrong_only_if_it_is_known_to_be(data: Path) -> None:
    found = read_captions(data / "scenes-train.npz")
    wrong = [{found.texts[j].removeprefix("a photo of ") for j in np.flatnonzero(row)} for row in found.wrong]
    assert wrong[0] == {"a blue cone", "a red cone"}
    assert wrong[2] == {"a red cone"}  # the other object is there as well
    assert wrong[4] == wrong[5] == {"a cone to the left of a cube"}
    assert wrong[6] == {"a cube to the left of a cone", "a cone to the right of a cube"}
    assert wrong[7] == {"a cube that is not blue"}
    assert wrong[9] == {"two cones"}


def test_negatives_are_wrong_and_half_of_them_near(data: Path, rng: np.random.Generator) -> None:
    found = read_captions(data / "scenes-train.npz")
    negatives, place = train_vilt.Negatives(found), {text: i for i, text in enumerate(found.texts)}
    drawn = np.concatenate([negatives.draw(np.arange(len(SCENES)), rng)[:, None] for _ in range(50)], axis=1)
    for i in range(len(SCENES)):
        assert found.wrong[i, drawn[i]].all()
    red, blue, cone = (place[f"a photo of a {name}"] for name in ("red cube", "blue cone", "red cone"))
    assert set(drawn[0, :, 0].tolist()) == {cone}  # which differs in a word; a blue cone differs in two
    assert set(drawn[0, :, 1].tolist()) == {cone, blue}
    assert train_vilt.distances(found.texts)[red, [red, blue, cone]].tolist() == [0, 2, 1]


def test_shifted_images_are_windows_of_the_image() -> None:
    images = torch.arange(2 * 32 * 32, dtype=torch.float32).reshape(2, 1, 32, 32)
    moved = shifted(images)
    assert moved.shape == images.shape
    for one, other in zip(images, moved, strict=True):
        steps = (other[0, 10, 10] - one[0, 10, 10]).item()
        down, right = round(steps / 32), round(steps - 32 * round(steps / 32))
        assert max(abs(down), abs(right)) <= 3
        inner = one[0, 8 + down : 20 + down, 8 + right : 20 + right]
        assert torch.equal(other[0, 8:20, 8:20], inner)


def test_embeddings_of_patches_are_those_of_transformers(data: Path) -> None:
    found = read_captions(data / "scenes-train.npz")
    model = train_vilt.make_model(train_vilt.make_tokenizer(found.texts), "vilt")
    pixels, tokens = model.pixels(list(found.images[:2])), model.tokens(found.texts[:4])
    model.network.eval()
    with torch.inference_mode():
        own = train_vilt.scores(model.network, pixels["pixel_values"], tokens)
        twice = {name: values.repeat_interleave(2, dim=0) for name, values in pixels.items()}
        known = model.network(**tokens, **twice).logits.reshape(2, 2)
    torch.testing.assert_close(own, known, atol=1e-5, rtol=0)
    assert own.std() > 1e-4


def test_a_vilt_begins_with_the_tower_of_a_clip(data: Path) -> None:
    found = read_captions(data / "scenes-train.npz")
    clip = train_clip.make_model(clip_tokenizer(found.texts), "clip")
    vilt = train_vilt.make_model(train_vilt.make_tokenizer(found.texts), "vilt")
    pixels = vilt.pixels(list(found.images))["pixel_values"]
    assert torch.equal(pixels, clip.pixels(list(found.images))["pixel_values"])
    tower: Any = clip.network.vision_model
    encoder: Any = vilt.network.vilt
    with torch.inference_mode():
        for parameter in clip.network.parameters():  # fresh norms are ones and zeros, which would hide errors
            parameter.add_(0.1 * torch.randn_like(parameter))
        train_vilt.begin_with(vilt.network, clip, pixels)
        plain = tower.embeddings(pixels)
        normed, own = tower.pre_layrnorm(plain), train_vilt.patch_embeddings(vilt.network, pixels)
        std, shift = plain.std(dim=-1, correction=0, keepdim=True), tower.pre_layrnorm.bias
        torch.testing.assert_close(own - shift, (normed - shift) * std / std.mean(), atol=1e-4, rtol=1e-4)
        for layer, given in zip(encoder.encoder.layer, tower.encoder.layers, strict=True):
            made, wanted = layer(normed), given(normed, attention_mask=None)
            made, wanted = (one[0] if isinstance(one, tuple) else one for one in (made, wanted))
            torch.testing.assert_close(made, wanted, atol=1e-4, rtol=1e-4)


def test_the_scripts_write_folders_that_open(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = ("--clip", data / "clip", "--steps", "2")
    calls: Any = ((train_clip, "clip", ("--epochs", "1")), (train_vilt, "vilt", begun))
    for script, name, options in calls:
        monkeypatch.setattr(sys, "argv", ["train", str(data), str(data / name), *map(str, options)])
        script.main()
        assert "relational" in capsys.readouterr().out
        matcher = (ClipMatcher if name == "clip" else ViltMatcher)(data / name, device="cpu", threads=1)
        tasks = validation(data)
        assert list(tasks) == ["single", "relational"]
        assert [len(matcher.match(trials)) for trials in tasks.values()] == [2, 1]
