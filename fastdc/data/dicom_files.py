"""DICOM files, read with pydicom: each frame is an image, in the grey values or colours that a viewer shows.

A grey value passes through these steps, as in part 3 of the standard, C.11; pydicom applies the first two:

    stored value -> modality:  rescale slope and intercept, or a table; for CT to Hounsfield units
                 -> window:    the user's (low, high); or the file's, linear or sigmoid or a table; or all of the range
                 -> [0, 1]     turned if the file means "white is the smallest" (MONOCHROME1)

Padding around a picture that is not rectangular (C.7.5.1.1.2: stored values from Pixel Padding Value to Pixel Padding
Range Limit, of grey files) is background: it is black for any window and either photometric
interpretation, and is not among the values that are judged or reported.

Colour is RGB, YBR or a palette, of 8 or 16 bits. A file of 8 bits without a window stays exact; others become float32.
The range that was used is noted.

Nothing is decoded before the size in the header was compared with the budget. Deflated files, which can expand a
thousandfold before their header can be read, are refused.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.data.budget import Budget
from fastdc.data.guards import SizedFile, pillow_limit
from fastdc.data.levels import Levels
from fastdc.data.notes import Notes, reading, show
from fastdc.support import Float32, InputError, Mask, require

SUFFIXES = (".dcm", ".dicom")

_DEFLATED = "1.2.840.10008.1.2.1.99"
_COLOURS = ("Red", "Green", "Blue")
_PADDINGS = ("", "Float", "DoubleFloat")  # of whole numbers, and of numbers of 32 and 64 bits
_SIZE = ("SOPClassUID", "Rows", "Columns", "NumberOfFrames")
_MEANING = (
    *("PhotometricInterpretation", "SamplesPerPixel", "BitsStored", "PixelRepresentation", "ICCProfile"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _COLOURS),
    *(f"{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{kind}PixelPadding{end}" for kind in _PADDINGS for end in ("Value", "RangeLimit")),
)
_OF_FRAMES = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_FAR = 1e12  # beyond every window


def starts_as_dicom(path: Path) -> bool:
    """Whether a file has the letters DICM behind its preamble, and is not the index of a medium."""
    try:
        if path.name.upper() == "DICOMDIR" or not path.is_file():
            return False
        with path.open("rb") as file:
            return has_preamble(file.read(132))
    except OSError:
        return False


def has_preamble(start: bytes) -> bool:
    """Whether a file that starts with these bytes is DICOM."""
    return start[128:132] == b"DICM"


def count_frames(path: Path) -> int:
    """The number of frames of a file, by its header.

    Raises:
        InputError: The file is damaged, or has no pixels.
        MissingDependencyError: pydicom is not installed.
    """
    return _frames(_header(path, _SIZE), show(path))


def read_frames(
    path: Path, name: str, budget: Budget, levels: Levels, notes: Callable[[], Notes]
) -> Iterator[NDArray[Any]]:
    """Yields the frames of a file, (1, c, h, w): uint8 levels, or float32 in [0, 1].

    Args:
        path: The file.
        name: Its name in an error.
        budget: Counts the pixels of all frames before they are decoded.
        levels: Has the user's window.
        notes: Gives the notes that are told how the values of the next frame were read.

    Raises:
        InputError: The file is damaged or too large, is compressed in a way that needs a package, or has no pixels.
        MissingDependencyError: pydicom is not installed.
    """
    header = _header(path, (*_SIZE, *_MEANING))
    count = _frames(header, name)
    budget.take(int(header.Columns), int(header.Rows), name, count)
    _check_decoder(header, name)
    from pydicom.pixels import iter_pixels

    with SizedFile(path) as file, closing(iter_pixels(file)) as frames:
        for k in range(count):
            with _decoding(name, budget.max_pixels):
                frame = next(frames, None)
                if frame is None:
                    raise InputError(f"{name}: has {k} frames, and its header says {count}")
                image = _image(frame, _of_frame(header, k), name, levels, notes())
            yield image


def _header(path: Path, tags: tuple[str, ...]) -> Any:
    name = show(path)
    pydicom = require("pydicom", extra="medical")
    with _decoding(name), SizedFile(path) as file:
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            raise InputError(f"{name}: is a deflated DICOM file, which is not read: convert it, as with dcmconv")
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))


def _frames(header: Any, name: str) -> int:
    if "Rows" not in header or "Columns" not in header:
        kind = getattr(header.get("SOPClassUID"), "name", "something else")
        raise InputError(f"{name}: is a DICOM file without an image, of the kind {show(kind)!r:.80}")
    with reading(name, "a DICOM image"):
        count = int(header.get("NumberOfFrames") or 1)
    if count < 1 or min(header.Rows, header.Columns) < 1:
        raise InputError(f"{name}: is a DICOM image without pixels, {header.Columns}x{header.Rows}, {count} frames")
    return count


def _check_decoder(header: Any, name: str) -> None:
    """Refuses a compression that no installed package decodes."""
    from pydicom.pixels import get_decoder

    syntax = header.file_meta.get("TransferSyntaxUID", "")
    with reading(name, "a DICOM image"):
        try:
            decoder = get_decoder(syntax)
        except RuntimeError:  # it does not know this compression
            kind = getattr(syntax, "name", syntax)
            raise InputError(f"{name}: is compressed as {show(kind)!r:.80}, which pydicom does not decode") from None
    if not decoder.is_available:
        missing = "; or ".join(text.split(" - requires ")[-1] for text in decoder.missing_dependencies)
        raise InputError(f"{name}: is compressed as {syntax.name}: install {show(missing)}")


@contextmanager
def _decoding(name: str, max_pixels: int | None = None) -> Iterator[None]:
    """Around pydicom's work: its exceptions become one error, and its warnings, and those of NumPy, are not shown."""
    with reading(name, "a DICOM image"), warnings.catch_warnings(), np.errstate(all="ignore"), pillow_limit(max_pixels):
        warnings.simplefilter("ignore")
        yield


def _of_frame(header: Any, k: int) -> Any:
    """The header of one frame: enhanced files state rescaling and windows in groups, for all frames or for each."""
    shared = header.get("SharedFunctionalGroupsSequence") or ()
    each = header.get("PerFrameFunctionalGroupsSequence") or ()
    groups = [*shared[:1], *each[k : k + 1]]
    if not groups:
        return header
    from pydicom import Dataset

    frame = Dataset()
    frame.update(header)
    frame.file_meta = header.file_meta
    for item in (item for group in groups for name in _OF_FRAMES for item in group.get(name) or ()):
        frame.update(item)
    return frame


def _image(frame: NDArray[Any], header: Any, name: str, levels: Levels, notes: Notes) -> NDArray[Any]:
    """One frame (1, c, h, w), uint8 or float32 in [0, 1]."""
    kind = str(header.get("PhotometricInterpretation", ""))
    if "ICCProfile" in header:
        notes.add("read as sRGB, without their colour profile")
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        padding = _padding(frame, header)
        grey = _unpadded(frame, padding, header, name, levels, notes)
        if kind == "MONOCHROME1":
            notes.add("turned from MONOCHROME1, in which white is the smallest value")
            grey = 255 - grey if grey.dtype == np.uint8 else 1 - grey
        if padding is not None:
            notes.add("with padding, which is shown as black")
            grey = np.where(padding, grey.dtype.type(0), grey)
        return grey[None, None]
    white = 2 ** int(header.BitsStored) - 1
    if kind == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        frame = apply_color_lut(frame, header)[..., :3]
        white = int(np.iinfo(frame.dtype).max)
        notes.add("converted from palette to RGB")
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"{name}: is a DICOM image of kind {show(kind)!r:.40}, which is not read")
    colour = np.ascontiguousarray(np.moveaxis(frame, 2, 0))[None]
    if white == 255:
        return colour.astype(np.uint8, copy=False)
    notes.add(f"of colour read with {white} as white")
    unit: Float32 = np.clip(colour / np.float32(white), 0, 1, dtype=np.float32)
    return unit


def _padding(frame: NDArray[Any], header: Any) -> Mask | None:
    """Which pixels of a grey frame pad it, bool (h, w); None if none do."""
    for kind in _PADDINGS:
        ends = [header.get(f"{kind}PixelPadding{end}") for end in ("Value", "RangeLimit")]
        known = [end for end in ends if isinstance(end, int | float)]
        if ends[0] in known and (kind == "") == (frame.dtype.kind != "f"):
            # Of signed pixels it may be stated as if it were unsigned, and the other way round: the bits are the same.
            bounds = np.array(known).astype(frame.dtype)
            found = (frame >= bounds.min()) & (frame <= bounds.max())
            return found if found.any() else None
    return None


def _unpadded(
    frame: NDArray[Any], padding: Mask | None, header: Any, name: str, levels: Levels, notes: Notes
) -> NDArray[Any]:
    """As :func:`_grey`, where padding has the value of a pixel of the picture."""
    if padding is not None:
        if padding.all():
            return np.zeros(frame.shape, np.uint8 if frame.dtype == np.uint8 else np.float32)
        frame = np.where(padding, frame[~padding][0], frame)
    return _grey(frame, header, name, levels, notes)


def _grey(frame: NDArray[Any], header: Any, name: str, levels: Levels, notes: Notes) -> NDArray[Any]:
    """Grey values (h, w), uint8 or float32 in [0, 1]; white is the largest."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(frame, header)
    if levels.window is not None:
        return levels.unit(values, 1.0, name)
    if header.get("VOILUTSequence"):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        notes.add("read through the table that the file states (VOI LUT)")
        return _unit(apply_voi_lut(values, header), 0, 2**bits - 1)
    if all(tag in header and not header[tag].is_empty for tag in _WINDOW):
        elements = [header[tag] for tag in _WINDOW]
        several = any(element.VM > 1 for element in elements)
        center, width = (float(element.value[0] if element.VM > 1 else element.value) for element in elements)
        text = f"{center - width / 2:g} to {center + width / 2:g}"
        notes.add("read through the window that the file states ({})" + ", the first of several" * several, text)
        low, high = apply_voi_lut(np.array([-_FAR, _FAR]), header)
        return _unit(apply_voi_lut(values, header), low, high)
    if frame.dtype.kind == "f":
        return levels.unit(values, 1.0, name)
    bits = int(header.BitsStored)
    if bits == 8 and frame.dtype == np.uint8 and values.dtype == np.uint8:
        return frame
    least, most = _stored_range(header, bits)
    levels.see(values, least, most, name)
    return _unit(values, least, most)


_WINDOW = ("WindowCenter", "WindowWidth")


def _stored_range(header: Any, bits: int) -> tuple[float, float]:
    """The values that a file can hold, after the modality's rescaling."""
    from pydicom.pixels import apply_modality_lut

    if header.get("ModalityLUTSequence"):
        return 0, 2 ** int(header.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if header.PixelRepresentation else (0, 2**bits - 1)
    least, most = sorted(float(end) for end in apply_modality_lut(np.array(ends), header))
    return least, most


def _unit(values: NDArray[Any], low: float, high: float) -> Float32:
    if low == high:
        raise InputError(f"all values that the file can hold mean {low:g}")
    unit: Float32 = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1).astype(np.float32)
    return unit
