"""Images that cannot be used: one error names them, or they are left out and everything else stays aligned."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdc.data import load_images, load_labelled, prepare
from fastdc.support import InputError

SHAPE = (1, 4, 4)


def grey(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)
    return path


def truncated(path: Path) -> Path:
    grey(path, 9)
    path.write_bytes(path.read_bytes()[:-30])
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two classes of three images each; the first of "a" is empty, and the second of "b" is truncated."""
    for place, name in enumerate(("a/0", "a/1", "a/2", "b/0", "b/1", "b/2")):
        grey(tmp_path / f"{name}.png", 10 * place)
    (tmp_path / "a/0.png").write_bytes(b"")
    truncated(tmp_path / "b/1.png")
    return tmp_path


def test_one_error_names_all(mixed: Path) -> None:
    said = "2 of 6 images cannot be used: {0}/a/0.png: is not an image in .*; "
    said += r"{0}/b/1.png: cannot be read as an image: .*truncated.*; --skip-bad \(skip_bad\) leaves them out"
    with pytest.raises(InputError, match=said.format(mixed)):
        load_images([mixed], SHAPE)
    with pytest.raises(InputError, match=said.format(mixed)):
        load_labelled(mixed)
    with pytest.raises(InputError, match=said.format(mixed)):
        load_images(sorted(mixed.rglob("*.png")), SHAPE)
    with pytest.raises(InputError, match=r"1 of 2 images cannot be used: .* leaves it out"):
        prepare([mixed / "a/0.png", mixed / "a/1.png"], SHAPE)
    with pytest.raises(InputError, match=r"2 of 6 images cannot be used: .* leaves them out"):
        prepare([np.zeros((4, 4), np.uint8), mixed], SHAPE)  # a mixed list


def test_many_are_counted(tmp_path: Path) -> None:
    for i in range(30):
        truncated(tmp_path / f"{i:02}.png")
    grey(tmp_path / "good.png", 1)
    said = r"^30 of 31 images cannot be used: .*00\.png: .*01\.png: .*02\.png: .*; \.\.\. and 27 more; --skip-bad"
    with pytest.raises(InputError, match=said) as caught:
        load_images([tmp_path], SHAPE)
    assert "03.png" not in str(caught.value)
    loaded = load_images([tmp_path], SHAPE, skip_bad=True)
    assert len(loaded.left_out) == 30
    assert loaded.notes[0].startswith(f"left out: {tmp_path / '00.png'}: cannot be read as an image: ")
    assert len(loaded.notes) == 21
    assert loaded.notes[20] == "left out: 10 more images, 30 of 31 in all"


def test_the_formats_are_named_once(tmp_path: Path) -> None:
    for name in ("0.png", "1.png", "2.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    grey(tmp_path / "3.png", 1)
    no_image = "is not an image in a format that fastdc reads"
    with pytest.raises(InputError) as caught:
        load_images([tmp_path], SHAPE)
    said = str(caught.value)
    assert said.count(f"{no_image}; ") == 3
    assert said.partition("leaves them out; ")[2].startswith("fastdc reads AVIF, BMP, ")
    assert said.count("BMP") == 1
    notes = load_images([tmp_path], SHAPE, skip_bad=True).notes
    assert notes[:3] == tuple(f"left out: {tmp_path / name}: {no_image}" for name in ("0.png", "1.png", "2.jpg"))
    assert notes[3].startswith("fastdc reads AVIF, BMP, ")
    (tmp_path / "1.png").unlink()
    truncated(tmp_path / "2.jpg")
    with pytest.raises(InputError, match=rf"0\.png: {no_image} \(AVIF, BMP, "):  # one file has its reason in full
        load_images([tmp_path], SHAPE)


def test_the_rest_stays_aligned(mixed: Path) -> None:
    loaded = load_images([mixed], SHAPE, classes=["b", "a"], skip_bad=True)
    assert loaded.images[:, 0, 0, 0].tolist() == [10, 20, 30, 50]
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [1, 1, 0, 0]
    assert [name.removeprefix(f"{mixed}/") for name in loaded.ids] == ["a/1.png", "a/2.png", "b/0.png", "b/2.png"]
    assert [Path(name).name for name, _ in loaded.left_out] == ["0.png", "1.png"]
    assert loaded.left_out[0][1].startswith("is not an image in a format that fastdc reads")
    labelled = load_labelled(mixed, skip_bad=True)
    assert labelled.images.shape == (4, *SHAPE)
    assert labelled.labels.tolist() == [0, 0, 1, 1]
    assert labelled.left_out == loaded.left_out
    half = labelled.part(slice(0, None, 2))
    assert (len(half.ids), len(half.labels)) == (2, 2)


def test_a_class_without_any_usable_image_is_said(mixed: Path) -> None:
    truncated(mixed / "c/0.png")
    loaded = load_labelled(mixed, skip_bad=True)
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.notes[-1] == "no image can be used of the class 'c'"


def test_nothing_is_left(tmp_path: Path) -> None:
    bad = [truncated(tmp_path / "0.png"), truncated(tmp_path / "1.png")]
    for skip in (False, True):
        with pytest.raises(InputError, match=r"^none of 2 images can be used: ") as caught:
            load_images(bad, SHAPE, skip_bad=skip)
        assert "--skip-bad" not in str(caught.value)
        with pytest.raises(InputError, match=r"^.*0\.png: cannot be read as an image: [^;]*$"):  # as ever
            load_images(bad[0], SHAPE, skip_bad=skip)


def test_a_bad_image_leaves_no_other_trace(tmp_path: Path) -> None:
    """Not in the notes, and not in the values that decide whether pictures of 16 bits are dark."""
    grey(tmp_path / "0.png", 5)
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "1.tiff")
    cut = tmp_path / "2.png"
    Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-40])
    loaded = load_images([tmp_path], SHAPE, skip_bad=True)
    assert [line.startswith("left out: ") for line in loaded.notes] == [True, True]
    assert loaded.images.dtype == np.uint8


def _damaged(path: Path, how: str) -> Path:
    """An .npz file of three images whose damage shows at another moment of the reading."""
    images = np.zeros((3, 1, 4, 4), np.float32)
    if how == "values":
        images[2] = 7
    np.savez(path, images=images, labels=[0, 1, 0])
    if how in ("cut", "header"):
        path.write_bytes(path.read_bytes()[: {"cut": -30, "header": 20}[how]])
    if how == "bits":  # found by the checksum alone, behind the last image
        content = bytearray(path.read_bytes())
        content[content.index(b"\n") + 8] ^= 1
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("how", ["cut", "header", "bits", "values"])
def test_a_damaged_array_among_others_is_left_out_as_a_whole(tmp_path: Path, how: str) -> None:
    bad = _damaged(tmp_path / "bad.npz", how)
    good, picture = tmp_path / "good.npz", tmp_path / "1.png"
    np.savez(good, images=np.full((2, 1, 4, 4), 9, np.uint8), labels=[1, 0])
    loaded = load_images([bad, good], SHAPE, skip_bad=True)
    assert loaded.images.dtype == np.uint8
    assert loaded.ids == (f"{good}[0]", f"{good}[1]")
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [1, 0]
    assert [name for name, _ in loaded.left_out] == [str(bad)]
    assert loaded.notes == (f"left out: {bad}: {loaded.left_out[0][1]}",)
    grey(picture, 5)
    assert load_images([picture, bad, good], SHAPE, skip_bad=True).images[:, 0, 0, 0].tolist() == [5, 9, 9]
    with pytest.raises(InputError, match=r"bad\.npz"):
        load_images([bad, good], SHAPE)
    with pytest.raises(InputError, match=r"^none of 2 images can be used: .*bad\.npz: "):
        load_images([bad, bad], SHAPE, skip_bad=True)
    with pytest.raises(InputError, match=r"bad\.npz: ") as alone:
        load_images([bad], SHAPE, skip_bad=True)
    assert "of 1 images" not in str(alone.value)


def test_a_split_that_is_not_there_is_no_damage(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=[0, 1])
    np.savez(tmp_path / "b.npz", test_images=images, test_labels=[0, 1])
    with pytest.raises(InputError, match=r"a\.npz: has no split 'test'"):
        load_images([tmp_path / "a.npz", tmp_path / "b.npz"], SHAPE, skip_bad=True, split="test")


def test_what_is_no_fault_of_a_file_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey(tmp_path / "0.png", 5)
    Image.new("L", (5, 5)).save(tmp_path / "1.png")
    grey(tmp_path / "2.png", 6)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/one").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InputError, match=r"1\.png is 5x5 and .*0\.png is 4x4: give size=4"):
        load_labelled(tmp_path / "set", skip_bad=True)

    def refused(*_: object) -> None:
        raise InputError("not a digit")

    with pytest.raises(InputError, match=r"^not a digit$"):
        load_images([tmp_path], SHAPE, look=refused, skip_bad=True)

    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", exhausted)
    with pytest.raises(InputError, match=r"0\.png: not enough memory to read an image"):
        load_images([tmp_path], SHAPE, skip_bad=True)
