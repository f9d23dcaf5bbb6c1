"""What a command line may name: patterns, standard input, and pictures that the default model knows nothing of."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fastdc.cli.digit_pictures import could_be_a_digit, refuse_bright, unlike_a_digit
from fastdc.cli.sources import expanded
from fastdc.data import digits_test, load_images
from fastdc.support import InputError
from helpers.cli_runs import MLP, Cli, place_digits
from helpers.pictures import write_png

FEW = ("--draws", "2", "--quiet")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    return place_digits(tmp_path)


def photo(side: int = 300) -> Image.Image:
    """A colour picture of a lamp in front of a wall."""
    y, x = np.mgrid[:side, :side] / side
    wall = np.stack([0.3 + 0.4 * x, 0.5 + 0.2 * y, 0.4 * np.ones_like(x)], axis=-1)
    lamp = np.exp(-20 * ((x - 0.5) ** 2 + (y - 0.4) ** 2))[..., None] * [1.0, 0.8, 0.3]
    noise = np.random.default_rng(0).normal(0, 0.03, wall.shape)
    return Image.fromarray((255 * np.clip(wall + lamp + noise, 0, 1)).astype(np.uint8))


def could_be(image: Image.Image, tmp_path: Path) -> bool:
    """What a command says of an image file."""
    said: list[bool] = []
    image.save(tmp_path / "x.png")
    load_images([tmp_path / "x.png"], (1, 8, 8), look=lambda _, size, small: said.append(could_be_a_digit(size, small)))
    return said == [] or said[0]


# --- patterns --------------------------------------------------------------------------------------------------------


def test_patterns_are_expanded_and_files_of_that_name_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "[ab].png", "in/c.png", "a.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert expanded(["*.png"]) == ["[ab].png", "a.png", "b.png"]
    assert expanded(["[ab].png"]) == ["[ab].png"]
    assert expanded(["[ab].txt", "in", "-"]) == ["a.txt", "in", "-"]
    assert expanded(["**/*.png"]) == ["[ab].png", "a.png", "b.png", "in/c.png"]
    for wrong, said in ((["*.jpg"], "no file matches"), (["no"], "does not exist"), (["-", "-"], "once"), ([""], "''")):
        with pytest.raises(InputError, match=said):
            expanded(wrong)


def test_every_command_expands_patterns(cli: Cli, digits: Path) -> None:
    lines = cli("classify", "digits/[01].png", *MLP, *FEW).out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["digits/0.png", "digits/1.png"]
    certify = ("--sigma", "0.25", "--n0", "2", "--n", "10", "--out", "run.tsv")
    assert cli("certify", "--data", "digits/[01].png", *MLP, *certify, *FEW).code == 0
    assert len(Path("run.tsv").read_text().splitlines()) == 3
    assert cli("evaluate", "r?n.tsv", "--quiet").out == cli("evaluate", "run.tsv", "--quiet").out


# --- standard input --------------------------------------------------------------------------------------------------


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(("name", "shown"), [("digits/0.png", ["-"]), ("a.npy", [f"-[{i}]" for i in range(5)])])
def test_standard_input_is_read(
    cli: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch, name: str, shown: list[str]
) -> None:
    give(monkeypatch, Path(name).read_bytes())
    lines = [line.split("\t") for line in cli("classify", "-", *MLP, *FEW).out.splitlines()]
    there = [line.split("\t") for line in cli("classify", name, *MLP, *FEW).out.splitlines()]
    assert [line[0] for line in lines] == shown
    assert [line[1:] for line in lines] == [line[1:] for line in there]


def test_labels_of_standard_input_count(cli: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, Path("b.npz").read_bytes())
    assert ", accuracy " in cli("classify", "-", *MLP, "--draws", "2").err
    give(monkeypatch, Path("b.npz").read_bytes())
    wanted = ("--draws", "2", "--seeds", "1", "--delta", "0.2", "--level-weights", "--out", "c.json")
    assert cli("calibrate", MLP[1], "-", *wanted, "--quiet").code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "standard input is empty"),
        (b"no image", "standard input: is not an image"),
        (b"\x93NUMPY\x01\x00", "standard input: cannot be read as a .npy file"),
        (b"PK\x03\x04 and no archive", "standard input: cannot be read as an .npz file"),
        (bytes(7000), "standard input has more than 6,400 bytes: raise --max-pixels"),
    ],
)
def test_bad_standard_input_is_one_line(
    cli: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    give(monkeypatch, content)
    cli.refuses("classify", "-", *MLP, "--max-pixels", "100", naming=said)


def test_the_keyboard_is_no_image(cli: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin.buffer, "isatty", lambda: True, raising=False)
    cli.refuses("classify", "-", *MLP, naming="the keyboard: use a pipe or <")


# --- the default model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 28, 64])
def test_every_test_digit_could_be_a_digit(side: int, tmp_path: Path) -> None:
    for index, levels in enumerate(digits_test().images[:, 0]):
        image = Image.fromarray(levels if index % 2 else 255 - levels).resize((side, side), index % 4)
        if index % 3 == 0:
            framed = Image.new("L", (side + 8, side + 8), image.getpixel((0, 0)))
            framed.paste(image, (4, 4))
            image = framed
        assert could_be(image.convert(("L", "RGB")[index % 5 == 0]), tmp_path), index


def shown_of(path: Path) -> list[tuple[tuple[int, int], list[Any]]]:
    """What is shown of a picture that is read for a model of 8x8 grey pixels."""
    shown: list[tuple[tuple[int, int], list[Any]]] = []
    loaded = load_images([path], (1, 8, 8), look=lambda _, size, small: shown.append((size, small.tolist())))
    assert [line[:8] for line in loaded.notes if "16 bits" in line] == ["1 image "] * ("16" in path.name)
    return shown


@pytest.mark.parametrize("side", [8, 9, 28, 64])
def test_pictures_of_8_and_16_bits_are_judged_alike(side: int, tmp_path: Path) -> None:
    """The same thumbnail is shown of both, or neither, and the picture is noted once."""
    paths = [tmp_path / name for name in ("8.png", "16.png", "8-rgb.png", "16-rgb.png")]
    for levels in digits_test().images[:3, 0]:
        grey = np.asarray(Image.fromarray(levels).resize((side, side + side % 2)))
        grey = np.where(grey == grey.max(), np.uint8(255), grey)
        rgb = np.stack([grey, grey // 2, 255 - grey], axis=-1)
        Image.fromarray(grey).save(paths[0])
        Image.fromarray(grey.astype(np.uint16) * 257).save(paths[1])
        Image.fromarray(rgb).save(paths[2])
        write_png(paths[3], rgb.astype(np.uint16) * 257, 2)
        shown = [shown_of(path) for path in paths]
        assert shown[0] == shown[1]
        assert shown[2] == shown[3]
        assert len(shown[0]) == (side != 8)


def test_other_pictures_could_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rings = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(rings).ellipse((12, 12, 52, 52), outline=(200, 0, 0), width=8)
    page = Image.new("L", (400, 400), 255)
    ImageDraw.Draw(page).line((60, 60, 300, 300), fill=0, width=40)
    others = {
        "photo": photo(),
        "grey photo": photo().convert("L"),
        "thumbnail": photo(32),
        "grey thumbnail": photo(32).convert("L"),
        "noise": Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)),
        "gradient": Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))),
        "white": Image.new("L", (64, 64), 255),
        "coloured": rings,
        "large": page,
    }
    assert [name for name, image in others.items() if could_be(image, tmp_path)] == []
    assert could_be(page.resize((100, 100)), tmp_path)


def test_crops_of_photos_could_not(tmp_path: Path) -> None:
    photos = pytest.importorskip("sklearn.datasets").load_sample_images().images
    rng, passed = np.random.default_rng(0), 0
    for count in range(100):
        image = Image.fromarray(photos[count % 2])
        side = int(rng.integers(32, 300))
        x, y = (int(rng.integers(0, most - side)) for most in image.size)
        crop = image.crop((x, y, x + side, y + side))
        passed += sum(could_be(one, tmp_path) for one in (crop, crop.convert("L")))
    assert passed <= 1


def test_the_reason_against_a_digit_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    black = np.zeros((3, 28, 28), np.uint8)
    drawn = black.copy()
    drawn[:, 8:20, 12:15] = 255
    red, full, grey, uneven = drawn.copy(), drawn.copy(), np.full_like(black, 120), drawn.copy()
    red[1:] = 0
    red[0, :, 4:24] = 200
    full[:, :, 3:25] = 255
    uneven[:, :14, -2:] = 255
    for picture, size, reason in (
        (drawn, (28, 28), None),
        (drawn, (300, 200), "both sides are above 128 pixels"),
        (red, (28, 28), "it has colours"),
        (grey, (28, 28), "its left and right edges are neither black nor white"),
        (uneven, (28, 28), "its left and right edges are not even"),
        (black, (28, 28), "too little of it is strokes"),
        (full, (28, 28), "too little of it is background"),
    ):
        assert unlike_a_digit(size, picture) == reason
    Image.fromarray(black[0]).save("black.png")
    cli.refuses("classify", "black.png", naming="like a digit, as too little of it is strokes, and the default model")


def test_a_photo_needs_a_model(cli: Cli, digits: Path) -> None:
    photo().save("photo.png")
    np.save("photos.npy", np.asarray(photo())[None])
    Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257).save("deep.png")
    before = sorted(digits.rglob("*"))
    for name in ("photo.png", "photos.npy", "deep.png", "*o.png"):
        cli.refuses("classify", "digits", name, naming="does not look like a digit, as ")
        cli.refuses("certify", "--data", name, "--sigma", "0.25", "--out", "run.tsv", naming="give --model, one of dig")
    assert sorted(digits.rglob("*")) == before
    chosen = cli("classify", "photo.png", "--model", "digits", "--draws", "2")
    assert chosen.code == 0
    assert "note: 1 image shrunk by more than a factor of 4 per side: small details are lost" in chosen.err.splitlines()
    assert cli("classify", "digits", "a.npy", *FEW).code == 0
    Image.fromarray(digits_test().images[0, 0]).resize((32, 32)).save("large.png")
    assert "shrunk" not in cli("classify", "large.png", "--draws", "2").err


def test_a_bright_background_needs_a_model(cli: Cli, digits: Path) -> None:
    test, inverted = digits_test(), digits / "inverted"
    inverted.mkdir()
    for side in (8, 9, 28, 64):
        Image.fromarray(255 - test.images[3, 0]).resize((side, side)).save(inverted / f"{side}.png")
    np.save("inverted.npy", 255 - test.images[:5])
    np.save("floats.npy", 1 - test.images[:5] / np.float32(255))
    np.save("one.npy", np.concatenate([test.images[:2], 255 - test.images[2:3]]))
    said = "has a bright background, and the default model knows white strokes on black: invert the image, or give --mo"
    names = {f"inverted/{side}.png": f"inverted/{side}.png" for side in (8, 9, 28, 64)}
    for source, name in {**names, "inverted.npy": "inverted.npy[0]", "floats.npy": "floats.npy[0]"}.items():
        cli.refuses("classify", "digits", source, naming=f"error: {name} {said}")
    cli.refuses(
        "certify", "--data", "one.npy", "--sigma", "0.25", "--out", "run.tsv", naming=f"error: one.npy[2] {said}"
    )
    assert cli("classify", "inverted", "inverted.npy", "--model", "digits", *FEW).code == 0


def test_no_digit_has_a_bright_background_and_every_inverted_one_has() -> None:
    for images in (digits_test().images, digits_test().images / np.float32(255)):
        names = [str(i) for i in range(len(images))]
        refuse_bright(names, images)
        for i, image in enumerate(255 - images if images.dtype == np.uint8 else 1 - images):
            with pytest.raises(InputError, match=f"^{i} has a bright"):
                refuse_bright([str(i)], image[None])
