"""DICOM files: what the standard says of their values, on files that pydicom writes and on those that come with it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastdc.data import load_images, load_labelled, prepare
from fastdc.support import InputError, UsualWindow
from helpers.subprocesses import without

pydicom = pytest.importorskip("pydicom")

STORED = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)


def write(path: Path, pixels: NDArray[Any], kind: str = "MONOCHROME2", bits: int = 12, **elements: Any) -> Path:
    """A file of (h, w), (h, w, 3) or (n, h, w) pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, generate_uid()
    made.Rows, made.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    if pixels.ndim == 3 and not colour:
        made.NumberOfFrames = len(pixels)
    made.SamplesPerPixel, made.PhotometricInterpretation = (3 if colour else 1), kind
    if colour:
        made.PlanarConfiguration = 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8 * pixels.itemsize, bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(made, name, value)
    made.save_as(path, enforce_file_format=True)
    return path


def read(path: Path, **options: Any) -> tuple[NDArray[Any], tuple[str, ...]]:
    loaded = load_images([path], (1, 8, 8), **options)
    return loaded.images[:, 0], loaded.notes


def linear(x: NDArray[Any], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2.1, with black 0 and white 1."""
    inside = (x - (center - 0.5)) / (width - 1) + 0.5
    return np.where(x <= center - 0.5 - (width - 1) / 2, 0, np.where(x > center - 0.5 + (width - 1) / 2, 1, inside))


CURVES: dict[str, Callable[[NDArray[Any], float, float], NDArray[np.float64]]] = {
    "LINEAR": linear,
    "LINEAR_EXACT": lambda x, c, w: np.clip((x - c) / w + 0.5, 0, 1),
    "SIGMOID": lambda x, c, w: 1 / (1 + np.exp(-4 * (x - c) / w)),
}


@pytest.mark.parametrize("function", CURVES)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_the_window_of_the_file(tmp_path: Path, function: str, kind: str) -> None:
    """In Hounsfield units, after rescaling; the first of two windows."""
    more: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -1024, "VOILUTFunction": function}
    path = write(tmp_path / "ct.dcm", STORED, kind, WindowCenter=[40, 500], WindowWidth=[400, 2000], **more)
    images, notes = read(path)
    want = CURVES[function](STORED * 2.0 - 1024, 40, 400)
    np.testing.assert_allclose(images[0], 1 - want if kind == "MONOCHROME1" else want, atol=1e-6)
    assert images.dtype == np.float32
    assert "1 image read through the window that the file states (-160 to 240), the first of several" in notes
    assert ("1 image turned from MONOCHROME1, in which white is the smallest value" in notes) == (kind == "MONOCHROME1")


def test_the_window_of_the_user_is_in_units_after_rescaling(tmp_path: Path) -> None:
    path = write(tmp_path / "ct.dcm", STORED, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=9)
    images, notes = read(path, window=(-160, 240))
    np.testing.assert_allclose(images[0], np.clip((STORED - 1024.0 + 160) / 400, 0, 1), atol=1e-6)
    assert "1 image read through the window -160 to 240, values -1024 to 3008, those outside clipped" in notes


def test_the_window_of_a_model_is_that_of_the_user_unless_there_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "ct.dcm", STORED, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=9)
    images, notes = read(path, window=UsualWindow(-160, 240))
    np.testing.assert_allclose(images[0], np.clip((STORED - 1024.0 + 160) / 400, 0, 1), atol=1e-6)
    assert "1 image read through the model's window -160 to 240, values -1024 to 3008, those" in notes[0]
    air = write(tmp_path / "air.dcm", np.zeros((8, 8), np.uint16), RescaleSlope=1, RescaleIntercept=1)
    np.testing.assert_allclose(read(air, window=UsualWindow(-160, 240))[0], 161 / 400, atol=1e-6)


def test_without_a_window_all_that_can_be_stored_is_the_range(tmp_path: Path) -> None:
    images, notes = read(write(tmp_path / "a.dcm", STORED))
    np.testing.assert_allclose(images[0], STORED / 4095.0, atol=1e-6)
    assert notes == ("1 image without a window read with 0 as black and 4095 as white, values 0 to 4032",)
    signed = (STORED.astype(np.int16) - 2048) // 2
    images, _ = read(write(tmp_path / "b.dcm", signed))
    np.testing.assert_allclose(images[0], (signed + 2048) / 4095.0, atol=1e-6)
    dark = write(tmp_path / "dark.dcm", STORED // 16, bits=16, RescaleSlope=1, RescaleIntercept=-1000)
    with pytest.raises(InputError, match=r"values .* are -1000 to -748 of -1000 to 64535, nearly one grey: give"):
        read(dark)
    assert read(dark, window=(-1000, -748))[0].max() == 1


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, -1900])
def test_padding_is_background_and_not_judged(tmp_path: Path, kind: str, limit: int | None) -> None:
    """C.7.5.1.1.2: a stored value, or all from it to a limit; here around values that use little of their range."""
    picture = (STORED // 16).astype(np.int16) - 100
    pixels = picture.copy()
    pixels[0], pixels[1] = -2000, -2000 if limit is None else limit
    more: dict[str, Any] = {"PixelPaddingValue": -2000, "RescaleSlope": 2, "RescaleIntercept": -24}
    if limit is not None:
        more["PixelPaddingRangeLimit"] = limit
    path = write(tmp_path / "ct.dcm", pixels, kind, bits=16, **more)
    black, white = 2.0 * picture[2:].min() - 24, 2.0 * picture[2:].max() - 24
    with pytest.raises(InputError, match=rf"the values of this input are {black:g} to {white:g} of -65560 to 65510, "):
        read(path)
    for stated in (False, True):  # by the user, or by the file
        if stated:
            path = write(tmp_path / "w.dcm", pixels, kind, bits=16, WindowCenter=0, WindowWidth=200, **more)
        images, notes = read(path, **({} if stated else {"window": (black, white)}))
        inside = linear(2.0 * picture - 24, 0, 200) if stated else (2.0 * picture - 24 - black) / (white - black)
        np.testing.assert_array_equal(images[0, :2], 0)
        np.testing.assert_allclose(images[0, 2:], 1 - inside[2:] if kind == "MONOCHROME1" else inside[2:], atol=1e-6)
        assert "1 image with padding, which is shown as black" in notes
        assert (
            stated or f"1 image read through the window {black:g} to {white:g}, values {black:g} to {white:g}" in notes
        )


def test_padding_of_8_bits_of_floats_of_signed_values_and_of_all(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) + 100
    inside = np.where(grey < 110, 0, grey)
    padded = write(tmp_path / "8.dcm", grey, bits=8, PixelPaddingValue=109, PixelPaddingRangeLimit=0)
    np.testing.assert_array_equal(read(padded)[0][0], inside)
    none = write(tmp_path / "none.dcm", grey, bits=8, PixelPaddingValue=0)
    np.testing.assert_array_equal(read(none)[0][0], grey)
    assert read(none)[1] == ()
    colour = write(tmp_path / "rgb.dcm", np.stack([grey] * 3, 2), "RGB", bits=8, PixelPaddingValue=109)
    np.testing.assert_array_equal(read(colour)[0][0], grey)
    blank = write(tmp_path / "all.dcm", np.full((8, 8), 7, np.uint16), PixelPaddingValue=7)
    np.testing.assert_array_equal(read(blank)[0], 0)
    signed = write(tmp_path / "signed.dcm", np.where(grey < 110, -2000, grey).astype(np.int16), bits=16)
    stated = pydicom.dcmread(signed)
    stated.add_new("PixelPaddingValue", "US", 63536)  # -2000 in 16 bits
    stated.save_as(signed)
    images, _ = read(signed, window=(110, 163))
    np.testing.assert_allclose(images[0], np.clip((inside - 110.0) / 53, 0, 1), atol=1e-6)


def test_a_table_of_the_file(tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [64, 0, 8], list(range(255, 191, -1))
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    images, notes = read(write(tmp_path / "a.dcm", STORED // 64, VOILUTSequence=[table]))
    np.testing.assert_allclose(images[0], (255 - STORED // 64) / 255.0, atol=1e-6)
    assert notes == ("1 image read through the table that the file states (VOI LUT)",)


def test_8_bits_stay_exact_and_colour_is_colour(tmp_path: Path, rng: np.random.Generator) -> None:
    grey = rng.integers(0, 256, (8, 8), np.uint8)
    images, notes = read(write(tmp_path / "a.dcm", grey, bits=8))
    np.testing.assert_array_equal(images[0], grey)
    assert notes == ()
    images, _ = read(write(tmp_path / "b.dcm", grey, "MONOCHROME1", bits=8))
    np.testing.assert_array_equal(images[0], 255 - grey)
    rgb = rng.integers(0, 256, (8, 8, 3), np.uint8)
    colour = load_images([write(tmp_path / "c.dcm", rgb, "RGB", bits=8)], (3, 8, 8))
    np.testing.assert_array_equal(colour.images[0], rgb.transpose(2, 0, 1))
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    colour = load_images([write(tmp_path / "d.dcm", ybr, "YBR_FULL", bits=8)], (3, 8, 8))
    np.testing.assert_allclose(colour.images[0], rgb.transpose(2, 0, 1), atol=3)


def test_frames_are_images(tmp_path: Path) -> None:
    """Below class folders and in manifests, labels and columns are those of the file."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    stack = np.stack([STORED, STORED[::-1], STORED.T])
    write(tmp_path / "a/IM0001", stack)  # without a suffix, as media have them
    write(tmp_path / "b/one.DCM", STORED)
    (tmp_path / "b/DICOMDIR").write_bytes((tmp_path / "b/one.DCM").read_bytes())
    loaded = load_labelled(tmp_path)
    assert [name.removeprefix(f"{tmp_path}/") for name in loaded.ids] == [
        *(f"a/IM0001[{k}]" for k in range(3)),
        "b/one.DCM",
    ]
    assert loaded.labels.tolist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(loaded.images[2, 0], np.rint(STORED.T / 4095 * 255))
    (tmp_path / "set.csv").write_text("path,label,site\nb/one.DCM,x,north\na/IM0001,y,south\n")
    listed = load_labelled(tmp_path / "set.csv")
    assert (listed.labels.tolist(), listed.columns["site"]) == ([0, 1, 1, 1], ("north", *["south"] * 3))
    assert len(prepare([tmp_path / "a/IM0001", STORED.astype(np.uint8)], (1, 8, 8))) == 4


def test_frames_may_have_windows_of_their_own(tmp_path: Path) -> None:
    """Enhanced files state them in groups of all frames and of each."""

    def group(**elements: Any) -> Any:
        made, item = pydicom.Dataset(), pydicom.Dataset()
        for name, value in elements.items():
            setattr(item, name, value)
        tag = "PixelValueTransformationSequence" if "RescaleSlope" in elements else "FrameVOILUTSequence"
        setattr(made, tag, [item])
        return made

    path = write(
        tmp_path / "enhanced.dcm",
        np.stack([STORED, STORED]),
        SharedFunctionalGroupsSequence=[group(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")],
        PerFrameFunctionalGroupsSequence=[
            group(WindowCenter=40, WindowWidth=400),
            group(WindowCenter=500, WindowWidth=2000),
        ],
    )
    images, _ = read(path)
    np.testing.assert_allclose(images[0], linear(STORED - 1024.0, 40, 400), atol=1e-6)
    np.testing.assert_allclose(images[1], linear(STORED - 1024.0, 500, 2000), atol=1e-6)


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless

    whole = write(tmp_path / "0.dcm", np.stack([STORED, STORED]))
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole.read_bytes()[:-40])
    (tmp_path / "no.dcm").write_bytes(b"no DICOM")
    write(tmp_path / "large.dcm", STORED, Rows=60_000, Columns=60_000)
    report = pydicom.dcmread(whole)
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    report.save_as(tmp_path / "report.dcm")
    deflated = pydicom.dcmread(whole)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated.save_as(tmp_path / "small.dcm")
    packed = pydicom.dcmread(whole)
    packed.file_meta.TransferSyntaxUID = JPEGLSLossless
    packed.PixelData = pydicom.encaps.encapsulate([b"ab", b"cd"])
    packed["PixelData"].VR = "OB"
    packed.save_as(tmp_path / "packed.dcm")
    whys = dict(load_images([tmp_path], (1, 8, 8), skip_bad=True).left_out)
    whys = {name.removeprefix(f"{tmp_path}/"): why for name, why in whys.items()}
    assert all("\n" not in why for why in whys.values())
    assert whys.pop("cut.dcm[1]").startswith("cannot be read as a DICOM image: ")
    assert whys.pop("no.dcm").startswith("cannot be read as a DICOM image: File is missing DICOM File Meta")
    assert whys.pop("large.dcm").startswith("has 60000x60000 = 3,600,000,000 pixels, the limit of one image is")
    assert whys.pop("report.dcm") == "is a DICOM file without an image, of the kind 'CT Image Storage'"
    assert whys.pop("small.dcm") == "is a deflated DICOM file, which is not read: convert it, as with dcmconv"
    if "pylibjpeg" not in sys.modules:
        said = "is compressed as JPEG-LS Lossless Image Compression: install "
        assert all(whys.pop(f"packed.dcm[{k}]").startswith(said) for k in range(2))
        assert whys == {}
    with pytest.raises(InputError, match="images: is a DICOM file, each of whose frames is an image: pass its path"):
        prepare(whole.read_bytes(), (1, 8, 8))


def test_the_files_that_come_with_pydicom() -> None:
    """Against pydicom's own arrays, in compressed and plain transfer syntaxes."""
    from pydicom.data import get_testdata_file
    from pydicom.pixels import apply_modality_lut, apply_windowing, pixel_array

    for name in ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_jp2klossless.dcm"):
        path = Path(str(get_testdata_file(name, download=False)))
        header = pydicom.dcmread(path)
        want = apply_windowing(apply_modality_lut(header.pixel_array, header), header)
        black, white = -(2.0**15), 2.0**15 - 1
        got = load_images([path], (1, header.Rows, header.Columns)).images[0, 0]
        np.testing.assert_allclose(got, (want - black) / (white - black), atol=1e-5)
    for name in ("SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_rle.dcm", "SC_ybr_full_422_uncompressed.dcm"):
        path = Path(str(get_testdata_file(name, download=False)))
        want = pixel_array(path)
        np.testing.assert_array_equal(load_images([path], (3, 100, 100)).images[0], want.transpose(2, 0, 1))


def test_pydicom_is_asked_for_by_its_extra(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", STORED)
    said = without(
        "pydicom",
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from fastdc.data import load_images\n"
        f"try: load_images([{str(path)!r}], (1, 8, 8), skip_bad=True)\n"
        "except Exception as error: print(type(error).__name__, error)\n",
    )
    assert said.startswith("MissingDependencyError pydicom is needed here and is not installed")
    assert "[medical]" in said


def test_an_empty_window_is_none_and_of_unequal_windows_the_first_counts(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.dcm", STORED, WindowCenter="", WindowWidth="")
    assert read(empty)[1] == ("1 image without a window read with 0 as black and 4095 as white, values 0 to 4032",)
    images, notes = read(write(tmp_path / "two.dcm", STORED, WindowCenter=[2000, 100], WindowWidth=1000))
    np.testing.assert_allclose(images[0], linear(STORED, 2000, 1000), atol=1e-6)
    assert "1 image read through the window that the file states (1500 to 2500), the first of several" in notes


def test_files_that_are_rescaled_one_by_one_get_one_note_and_are_judged_together(tmp_path: Path) -> None:
    for k in range(4):
        write(tmp_path / f"{k}.dcm", STORED if k else STORED // 64, RescaleSlope=1 + k / 4, RescaleIntercept=0)
    loaded = load_images(tmp_path, (1, 8, 8))
    assert loaded.notes == (
        "4 images without a window read each from the least to the most that it can hold, 4 different ranges "
        "(--window gives one), values 0 to 7056",
    )
    np.testing.assert_allclose(loaded.images[3, 0], STORED / 4095, atol=1e-6)
    (tmp_path / "dark").mkdir()
    for k in range(2):
        write(tmp_path / "dark" / f"{k}.dcm", STORED // 64, RescaleSlope=1 + k, RescaleIntercept=0)
    with pytest.raises(InputError, match="nearly one grey"):
        load_images(tmp_path / "dark", (1, 8, 8))
