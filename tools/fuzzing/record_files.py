"""Targets that read what fastdc writes: descriptions of bundles, calibrations, certificates, results, tables, runs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastdc
from fastdc.backends import Choice, find_choice, keep_choice
from fastdc.bundle import find_model, with_calibration_file, write_calibration_file
from fastdc.certification import Certificate, RecordWriter, read_records, summarize
from fastdc.support import installed
from fuzzing import routes
from fuzzing.mutations import change_json, change_npy, change_safetensors, change_table, change_zip
from fuzzing.target import Target


def bundle_copy(name: str, scratch: Path) -> Path:
    """A copy of a shipped bundle that may be changed; its large files are hard links."""
    copy = scratch / name
    shutil.copytree(find_model(name), copy, copy_function=lambda source, target: Path(target).hardlink_to(source))
    manifest = copy / "fastdc.json"
    content = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(content)
    return copy


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Replaces a file of a bundle, and its hash in the description."""
    target = bundle / name
    target.unlink()
    target.write_bytes(content)
    manifest = json.loads((bundle / "fastdc.json").read_bytes())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / "fastdc.json").write_text(json.dumps(manifest))


def manifest(scratch: Path) -> Target:
    """A bundle's description, fastdc.json."""
    copies = {name: bundle_copy(name, scratch) for name in ("digits-mlp", "shapes")}
    seeds = [name.encode() + b".json\0" + (copy / "fastdc.json").read_bytes() for name, copy in copies.items()]

    def read(data: bytes) -> object:
        name, content = routes.split(data)
        copy = copies[name.removesuffix(".json")]
        (copy / "fastdc.json").write_bytes(content)
        bundle = fastdc.load_bundle(copy)
        return bundle.model.calibration, bundle.flops

    return Target(seeds, read, routes.changes({".json": change_json}))


def calibration(scratch: Path) -> Target:
    """Calibration files."""
    bundle = fastdc.load_bundle(find_model("digits-mlp"))
    file = scratch / "race.json"
    assert bundle.model.calibration is not None
    write_calibration_file(file, bundle, bundle.model.calibration)

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return with_calibration_file(bundle, file)

    return Target([file.read_bytes()], read, change_json)


def choice(scratch: Path) -> Target:
    """Choices of fastdc bench."""
    os.environ["FASTDC_CACHE"] = str(scratch / "cache")
    bundle = fastdc.load_bundle(find_model("digits-mlp"))
    file = keep_choice(bundle, Choice("onnx", "cpu", "float32", 64, "2026-11-30", 900.0, 400))

    def read(data: bytes) -> object:
        file.write_bytes(data)
        found, ignored = find_choice(bundle)
        if found is None:
            raise fastdc.InputError(ignored)
        return found

    return Target([file.read_bytes()], read, change_json)


def records(scratch: Path) -> Target:
    """Files of certificates and their manifests."""
    file = scratch / "run.tsv"
    manifest_file = scratch / "run.tsv.json"
    made = Certificate(1, 0.25, 0.9, 95, 100, 20, 700, 0.5)
    with RecordWriter.open(file, {"indices": [0, 2, 1]}) as writer:
        writer.write(0, 1, made)
        writer.write(1, 0, made)
    own, described = file.read_bytes(), manifest_file.read_bytes()
    foreign = b"idx\tlabel\tpredict\tradius\tcorrect\ttime\n7\t3\t3\t0.25\t1\t0:00:02.5\n9\t3\t-1\t0.0\t0\t0:00:02\n"

    def read(data: bytes) -> object:
        name, content = routes.split(data)
        file.write_bytes(content if name == "run.tsv" else own)
        manifest_file.write_bytes(content if name == "run.json" else described)
        if name == "foreign.tsv":
            manifest_file.unlink()
            file.write_bytes(content)
        return summarize(read_records(file), (0.0, 0.25))

    seeds = [b"run.tsv\0" + own, b"run.json\0" + described, b"foreign.tsv\0" + foreign]
    return Target(seeds, read, routes.changes({".tsv": change_table, ".json": change_json}))


def error_table(scratch: Path) -> Target:
    """Error tables, .npz."""
    file = scratch / "errors.npz"
    classifier = fastdc.load("digits-mlp", threads=1)
    classifier.errors(np.zeros((2, 1, 8, 8), np.uint8), draws=2).save(file)

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return fastdc.ErrorTable.load(file).mean()

    return Target(
        [file.read_bytes()], read, lambda data, rng: change_zip(data, rng, member=rng.choice((change_npy, change_json)))
    )


def result(scratch: Path) -> Target:
    """Results of classification, .npz."""
    file = scratch / "result.npz"
    classifier = fastdc.load("digits-mlp", threads=1)
    classifier.classify(np.zeros((2, 1, 8, 8), np.uint8), draws=2, rule="full").save(file)

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return fastdc.Classification.load(file).to_dicts()

    return Target(
        [file.read_bytes()], read, lambda data, rng: change_zip(data, rng, member=rng.choice((change_npy, change_json)))
    )


def run_folder(scratch: Path) -> Target:
    """Training runs: config.json and the checkpoints."""
    from fastdc.train import RunFolder, TrainConfig, train

    rng = np.random.default_rng(0)
    np.savez(scratch / "data.npz", images=rng.integers(0, 256, (8, 4, 4), np.uint8), labels=np.arange(8) % 2)
    config = TrainConfig(data="data.npz", out="run", model="mlp", width=8, steps=2, val="0.25")
    train(config, progress=False)
    folder = scratch / "run"
    kept = {
        name: (folder / name).read_bytes() for name in ("config.json", "checkpoint.safetensors", "best.safetensors")
    }

    def read(data: bytes) -> object:
        name, content = routes.split(data)
        for other, whole in kept.items():
            (folder / other).write_bytes(content if other == name else whole)
        run = RunFolder(folder)
        return run.info(), train(config, resume=True, progress=False)

    seeds = [name.encode() + b"\0" + content for name, content in kept.items()]
    return Target(seeds, read, routes.changes({".json": change_json, ".safetensors": change_safetensors}))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "manifest": manifest,
    "calibration": calibration,
    "choice": choice,
    "records": records,
    "error-table": error_table,
    "result": result,
}
if installed("torch"):
    TARGETS["run-folder"] = run_folder
