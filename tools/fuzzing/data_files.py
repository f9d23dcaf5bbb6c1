"""Targets that read images, arrays, prompts and class names."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdc.bundle import read_class_names, read_prompts
from fastdc.data import load_images, load_labelled, prepare
from fastdc.matching import pairs_table, read_pairs, read_rankings, read_trials
from fastdc.support import installed
from fuzzing.mutations import change_bytes, change_npy, change_table, change_zip
from fuzzing.target import Target

_SHAPE = (1, 8, 8)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8))
    grey = colour.convert("L")
    deep = Image.fromarray(rng.integers(0, 65536, (12, 10)).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    made = [_encoded(colour, kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")]
    made += [_encoded(grey, kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")]
    made += [_encoded(deep, kind) for kind in ("PNG", "TIFF", "PPM")]
    made += [_encoded(colour.convert("P"), "PNG"), _encoded(colour.convert("RGBA"), "PNG")]
    made += [_encoded(colour.convert("CMYK"), "TIFF"), _encoded(grey.convert("F"), "TIFF")]
    made += [_encoded(colour, "JPEG", exif=turned), _encoded(colour, "JPEG", progressive=True)]
    made += [
        _encoded(grey.convert("1"), "TIFF", compression="group4"),
        _encoded(colour, "TIFF", compression="tiff_lzw"),
    ]
    made += [_encoded(colour, "GIF", save_all=True, append_images=[colour.rotate(90)])]
    if "JPEG2000" in Image.SAVE:
        made.append(_encoded(colour, "JPEG2000"))
    return made


def images(scratch: Path) -> Target:
    """Image files of every format that is read."""
    file = scratch / "picture.png"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return load_images([file], _SHAPE)

    return Target(_pictures(), read, change_bytes)


def given(scratch: Path) -> Target:
    """The content of image files as a server gets it, by itself and opened with Pillow."""

    def read(data: bytes) -> object:
        try:
            opened = [Image.open(io.BytesIO(data))]
        except Exception:  # Pillow's own, before anything is given to fastdc
            opened = []
        alone = prepare(data, _SHAPE)
        return alone, prepare(opened, _SHAPE)

    return Target(_pictures(), read, change_bytes)


def _arrays() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 8, 8), np.uint8)
    labels = np.array([0, 1, 2, 1])
    names = np.array(["zero", "one", "two"])
    out: dict[str, bytes] = {}
    contents: tuple[tuple[str, dict[str, Any]], ...] = (
        ("plain", {"images": pixels, "labels": labels}),
        ("named", {"images": pixels[:, None] / np.float32(255), "labels": labels, "class_names": names}),
    )
    for name, content in contents:
        file = io.BytesIO()
        np.savez(file, **content)
        out[name] = file.getvalue()
    file = io.BytesIO()
    np.save(file, pixels)
    out["npy"] = file.getvalue()
    return out


def npz(scratch: Path) -> Target:
    """Archives of images and labels, .npz."""
    file = scratch / "data.npz"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        load_images([file], _SHAPE)
        return load_labelled(file)

    made = _arrays()
    return Target([made["plain"], made["named"]], read, change_zip)


def npy(scratch: Path) -> Target:
    """Arrays of images, .npy."""
    file = scratch / "data.npy"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return load_images([file], _SHAPE)

    return Target([_arrays()["npy"]], read, change_npy)


def prompts(scratch: Path) -> Target:
    """Tables of prompts, .csv."""
    file = scratch / "prompts.csv"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return read_prompts(file)

    seeds = [
        b"prompt,classname,classidx\na photo of a cat,cat,0\na photo of a dog,dog,1\nmy dog,dog,1\n",
        b'prompt,classname,classidx\r\n"a, b",cat,0\r\n"say ""dog""",dog,1\r\n',
    ]
    return Target(seeds, read, change_table)


def class_names(scratch: Path) -> Target:
    """Lists of class names."""
    file = scratch / "names.txt"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return read_class_names(file)

    return Target([b"cat\ndog\nbird\n", "Käfer\nHund\n".encode()], read, change_table)


def _tables(suffix: str, content: bytes) -> Callable[[Path], Target]:
    def target(scratch: Path) -> Target:
        """Manifests of this kind."""
        file = scratch / f"set{suffix}"
        for k in range(3):
            Image.new("L", (8, 8), 40 * k).save(scratch / f"{k}.png")

        def read(data: bytes) -> object:
            file.write_bytes(data)
            return load_images([file], _SHAPE, skip_bad=True), load_labelled(file, natural="train")

        return Target([content], read, change_table)

    return target


def questions(scratch: Path) -> Target:
    """Tables of images and texts, .csv and .jsonl."""
    for k in range(3):
        Image.new("L", (8, 8), 40 * k).save(scratch / f"{k}.png")

    def read(data: bytes) -> object:
        file = scratch / ("asked.jsonl" if data.lstrip()[:1] == b"{" else "asked.csv")
        file.write_bytes(data)
        return read_pairs(file) if pairs_table(file) else (read_rankings(file), read_trials(file))

    pairs = {"image_0": "0", "image_1": "1.png", "caption_0": "a cat", "caption_1": "a dog", "id": 3, "tag": "t"}
    seeds = [
        b"image,prompt,truth,kind\n0.png,a cat,1,\n0.png,a dog,0,animal\n1.png,a dog,yes,\n2,a cat,,\n",
        (json.dumps(pairs) + "\n" + json.dumps({**pairs, "id": "x", "tag": ""})).encode(),
    ]
    return Target(seeds, read, change_table)


def dicom(scratch: Path) -> Target:
    """DICOM files of several transfer syntaxes."""
    from pydicom.data import get_testdata_file

    names = ("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "CT_small.dcm", "SC_rgb_small_odd.dcm", "image_dfl.dcm")
    file = scratch / "image.dcm"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return load_images([file], _SHAPE, window=(0, 1000))

    made = [Path(str(get_testdata_file(name, download=False))).read_bytes() for name in names]
    return Target(made, read, change_bytes)


_CSV = b"path,label,split,site\n0.png,a,train,x\n1.png,b,train,y\n2.png,a,test,\n"
_JSON = b'{"file_name": "0.png", "label": 1}\n{"file_name": "1.png", "label": 0}\n'

TARGETS: dict[str, Callable[[Path], Target]] = {
    "images": images,
    "given": given,
    "npz": npz,
    "npy": npy,
    "prompts": prompts,
    "class-names": class_names,
    "questions": questions,
    "manifest": _tables(".csv", _CSV),
    "manifest-json": _tables(".jsonl", _JSON),
    **({"dicom": dicom} if installed("pydicom") else {}),
}
