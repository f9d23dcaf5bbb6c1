"""Writes the bundle of a diffusion model of any family.

A bundle is written only after each of its graphs was found to compute what torch computes. The manifest states how
close they are, what an evaluation costs, and which versions of which packages made the bundle.
"""

from pathlib import Path
from typing import Any, Unpack

from fastdc.bundle import PRECISIONS, Bundle, bundle_place, write_bundle
from fastdc.data import LabelledImages
from fastdc.export.calibrate import calibrate_manifest, check_calibration
from fastdc.export.denoiser import DenoiserFiles, denoiser_files
from fastdc.export.encoders import check_decoder, decoder_files, encoder_files, table_files, text_files
from fastdc.export.graph import DEFAULT_OPSET, LEAST_OPSET_BFLOAT16
from fastdc.export.int8_files import quantized_files
from fastdc.export.manifest import add_findings, check_manifest, source_manifest
from fastdc.export.options import ExportKeywords, ExportOptions, Files, check_place
from fastdc.export.verify import GraphCheck
from fastdc.sources import Source
from fastdc.support import InputError, checks, temporary_folder

# Below 18, torch writes other operators than those that were tested; above 23, its exporter knows no operators.
_LEAST_OPSET, _LARGEST_OPSET = 18, 23


def export_source(
    source: Source,
    out: str | Path,
    *,
    precision: str = "float32",
    opset: int = DEFAULT_OPSET,
    split: bool = True,
    text: bool = True,
    scored: bool = False,
    decoder: Any = None,
    images: LabelledImages | None = None,
    calibrate: bool = True,
    **options: Unpack[ExportKeywords],
) -> Bundle:
    """Writes the bundle of a diffusion model.

    Args:
        source: The model, from ``fastdc.sources.open_source`` or made by hand.
        out: Folder of the bundle.
        precision: "float32", "float16", "bfloat16", or "int8" (weights and activations of 8 bits, for CPUs, with
            ranges taken from `images`).
        opset: Version of the ONNX operator set, 18 to 23; at least 22 for bfloat16.
        split: Whether to write the denoiser also in parts, if that saves work.
        text: Whether to write the text encoder, so that the bundle can be asked about other prompts.
        scored: Whether to write one graph from images and noise to errors, for other runtimes.
        decoder: Module from latents to images, as ``fastdc.sources.open_decoder`` opens, for pictures of samples.
        images: Validation images, for the ranges of int8 and for the calibration. Their classes are the model's, by
            name or number.
        calibrate: Whether to fit temperature and race to the images.
        **options: Options of every export, described by ``ExportOptions``; omitted ones are the model's own.

    Raises:
        InputError: An option cannot be used, the images do not fit, or another process is writing to ``out``.
        BundleError: A default is out of range, or ``out`` exists and may not be replaced.
        BackendError: A graph does not compute what torch computes, or leaves the range of float16.
        MissingDependencyError: A package of the extra export is not installed.

    Example:
        >>> from fastdc import export, sources
        >>> module = fastdc.load("digits-mlp", backend="torch").network.module
        >>> export.export_source(sources.Source("module", clf.model, module), folder / "mine", draws=8).class_names[:3]
        ('0', '1', '2')
    """
    given = ExportOptions(**options)
    if images is not None:
        images = images.with_classes(source.model.class_names)
    used = images if calibrate else None
    with bundle_place(out), temporary_folder() as folder:
        check_decoder(source, decoder)
        manifest = _checked_manifest(source, Path(out), precision, opset, images, used, given)
        made, files, found = _graphs(source, folder, precision, opset, given, split, text, scored, decoder)
        add_findings(manifest, source, made, found, describe=given.description is None)
        if precision == "int8" and images is not None:
            given.say("quantising the denoiser")
            files, compared = quantized_files(source, manifest, files, images)
            manifest["provenance"] |= compared
        if used is not None:
            given.say(f"calibrating on {len(used)} images")
            calibrate_manifest(manifest, files, used, given)
        return write_bundle(out, manifest, files, overwrite=given.overwrite)


def _checked_manifest(
    source: Source,
    out: Path,
    precision: str,
    opset: int,
    images: LabelledImages | None,
    used: LabelledImages | None,
    given: ExportOptions,
) -> dict[str, Any]:
    """What the manifest says before the work, in which everything that would be refused after it is refused.

    Args:
        source: The model.
        out: Folder of the bundle.
        precision: Precision of the network.
        opset: Version of the ONNX operator set.
        images: Images that were given.
        used: Images to calibrate on.
        given: Options of every export.
    """
    check_place(out, overwrite=given.overwrite)
    checks.one_of("precision", precision, PRECISIONS)
    least = LEAST_OPSET_BFLOAT16 if precision == "bfloat16" else _LEAST_OPSET
    if not least <= opset <= _LARGEST_OPSET:
        raise InputError(f"opset must be from {least} to {_LARGEST_OPSET} in {precision}, got {opset}")
    if precision == "int8" and images is None:
        raise InputError("int8 needs images to take the ranges of activations from (--calibrate)")
    if precision == "bfloat16" and used is not None:
        raise InputError("a bundle in bfloat16 does not run on the CPU: calibrate it where it runs (fastdc calibrate)")
    if images is not None and images.images.shape[1:] != source.model.image_shape:
        raise InputError(f"images must have shape {source.model.image_shape}, got {images.images.shape[1:]}")
    if len(source.tables) and source.model.null_class not in (None, len(source.model.conditions)):
        raise InputError("tables must have the row of the null class after those of all conditions")
    check_calibration(given, used, source.seen)
    manifest = source_manifest(source, precision, given)
    check_manifest(out, manifest)
    return manifest


def _graphs(
    source: Source,
    folder: Path,
    precision: str,
    opset: int,
    given: ExportOptions,
    split: bool,
    text: bool,
    scored: bool,
    decoder: Any,
) -> tuple[DenoiserFiles, Files, dict[str, GraphCheck]]:
    """The denoiser, all files of the bundle in float precision, and the comparisons with torch by part."""
    made = denoiser_files(
        source,
        folder,
        precision="float32" if precision == "int8" else precision,
        opset=opset,
        split=split and precision != "int8",
        scored=scored,
        notify=given.say,
    )
    encoder, of_encoder = encoder_files(source, opset, given.say)
    decoding, of_decoder = decoder_files(source, decoder, opset, given.say)
    texts, of_texts = text_files(source, opset, given.say) if text else ({}, {})
    files = {**made.files, **encoder, **decoding, **table_files(source), **texts}
    return made, files, {"denoiser": made.check, **of_encoder, **of_decoder, **of_texts}
