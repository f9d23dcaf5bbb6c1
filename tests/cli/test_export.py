"""``fastdc export`` of other tools' models: its output and files; bad input gives one line and takes no memory."""

import csv
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.cli_runs import Cli

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import torch

import fastdc.cli.export as cli_export
from fastdc.bundle.folder import load_bundle
from fastdc.bundle.format import MANIFEST
from fastdc.testing import edm_files, tiny_pipelines
from helpers.exported import PROMPTS, exported, shared_folder, small_source

MAIN = "from fastdc.cli.main import main\nmain()"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def _prompts_file(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "classname", "classidx"])
        writer.writerows(
            (text, PROMPTS.class_names[k], k) for text, k in zip(PROMPTS.texts, PROMPTS.class_of, strict=True)
        )
    return path


def _process(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


@pytest.mark.slow
def test_another_process_exports_the_same_bytes_and_reports_its_steps(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The command against the function, with another hash seed, another folder, and prompts from a file."""
    _, bundle = exported("stable-diffusion", shared_folder(tmp_path_factory))
    folder = tiny_pipelines.tiny_sd(tmp_path / "tiny-stable-diffusion")
    prompts = _prompts_file(tmp_path / "prompts.csv")
    out = tmp_path / "out"
    done = _process("export", folder, out, "--prompts", prompts, "--verify", PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stderr
    made = load_bundle(out)
    assert made.files == bundle.files
    for name in (*bundle.files, MANIFEST):
        assert (out / name).read_bytes() == (bundle.path / name).read_bytes(), name
    first, *notes, last = done.stdout.splitlines()
    assert first.startswith(f"exported {out}: tiny-stable-diffusion, 2 classes, ")
    assert first.endswith(" of torch")
    assert any("M parameters" in note and "GFLOP per evaluation" in note for note in notes)
    assert any("in parts: " in note and "saved with 10 classes" in note for note in notes)
    (verified,) = [note for note in notes if "errors within" in note]
    assert "4 of 4 images have the same class" in verified
    assert float(verified.split("within ")[1].split()[0]) < 1e-4
    assert last == f"next: fastdc classify --model {out} IMAGE..."
    steps = [line for line in done.stderr.splitlines() if line.endswith(" ...")]
    assert steps[:2] == [f"reading {folder} ...", "exporting the denoiser ..."]
    assert steps[-1] == "comparing with torch ..."


@pytest.mark.slow
def test_quiet_is_quiet_and_the_bundle_is_calibrated(tmp_path: Path) -> None:
    """An EDM pickle, none of which is executed, in int8, calibrated on images."""
    path = edm_files.write_edm(tmp_path / "tiny.pkl", "ddpmpp", channel_mult=[1], attn_resolutions=[])
    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "d"]
    np.savez(
        tmp_path / "val.npz",
        images=rng.integers(0, 256, (20, 3, 8, 8)).astype(np.uint8),
        labels=rng.integers(0, 4, 20),
        class_names=names,
    )
    options: list[str | Path] = [
        "--classes",
        "a, b,c,d",
        "--precision",
        "int8",
        "--calibrate",
        tmp_path / "val.npz",
        "--draws",
        "3",
    ]
    done = _process("export", path, tmp_path / "out", "--quiet", "--name", "mine", *options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    bundle = load_bundle(tmp_path / "out")
    assert (bundle.name, list(bundle.class_names), bundle.manifest["precision"]) == ("mine", names, "int8")
    assert bundle.model.calibration is not None
    assert bundle.manifest["provenance"]["int8_images"] == "20"
    assert bundle.model.defaults.draws == 3
    assert not list(tmp_path.rglob("executed-by-fastdc"))


def test_options_reach_the_source_and_the_export(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of the command arrives at one of the two functions behind it."""
    import fastdc.export
    import fastdc.sources

    calls: dict[str, Any] = {}
    source = small_source()

    def opened(path: str, **options: Any) -> Any:
        calls["open"] = {"path": path, **options}
        return source

    def made(given: Any, out: str, **options: Any) -> Any:
        assert given is source
        calls["export"] = {"out": out, **options}
        raise KeyboardInterrupt

    monkeypatch.setattr(fastdc.sources, "open_source", opened)
    monkeypatch.setattr(fastdc.sources, "is_text_conditional", lambda _: False)
    monkeypatch.setattr(fastdc.export, "export_source", made)
    names = tmp_path / "names.txt"
    names.write_text("x\ny\nz\n")
    monkeypatch.chdir(tmp_path)
    for name in ("the-model", "a.safetensors", "b.safetensors", "s.json"):
        Path(name).touch()
    given = (
        "export the-model out --name N --description D --image-size 6 --null-class --lora a.safetensors=0.5 "
        "--lora b.safetensors --precision float16 --opset 21 --no-split --scored --delta 0.02 "
        "--draws 5 --levels 0.2 2 --first 0.5,1 --weighting vlb --loss l1 --overwrite --variant ema --scheduler s.json "
        "--calibrate names.txt --classes"
    )
    monkeypatch.setattr("fastdc.cli.export.read_labelled", lambda *_, **__: "the images")
    assert cli(*given.split(), names).code == 130
    lora = calls["open"].pop("lora")
    assert [(str(one.path), one.scale) for one in lora] == [("a.safetensors", 0.5), ("b.safetensors", 1.0)]
    assert calls["open"] == {
        "path": "the-model",
        "prompts": None,
        "class_names": ("x", "y", "z"),
        "image_size": 6,
        "null_class": True,
        "variant": "ema",
        "scheduler": "s.json",
    }
    found = {key: value for key, value in calls["export"].items() if key not in ("progress", "notify", "on_choice")}
    assert found == {
        "out": "out",
        "name": "N",
        "description": "D",
        "precision": "float16",
        "opset": 21,
        "split": False,
        "text": True,
        "scored": True,
        "decoder": None,
        "draws": 5,
        "levels": (0.2, 2.0),
        "first": (0.5, 1.0),
        "weighting": "vlb",
        "loss": "l1",
        "images": "the images",
        "choose": None,
        "delta": 0.02,
        "overwrite": True,
    }


class _Engine:
    """A double of a network with a new engine."""

    version, built, sizes = "TensorRT 1.2", True, (1, 2)
    self_test = {  # noqa: RUF012
        "allowed": 0.01,
        "checks": [{"batch": 1, "relative": 2e-5}, {"batch": 2, "relative": 4e-5}],
    }


def test_an_engine_is_built_where_backend_tensorrt_looks_for_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command checks everything that an engine needs before it exports."""
    from fastdc.backends import tensorrt
    from fastdc.support import cache_folder

    made: list[tuple[Path, Path]] = []

    def build(bundle: Any, *, cache: Any) -> _Engine:
        made.append((bundle.path, cache.folder))
        return _Engine()

    monkeypatch.setattr(tensorrt, "TensorRTNetwork", build)
    unet, out = tiny_pipelines.tiny_unet2d(tmp_path / "unet"), tmp_path / "out"
    run = ("export", unet, out, "--classes", "a,b,c,d", "--no-split", "--engine")
    (tmp_path / "file").write_text("")
    if _no_gpu():
        cli.refuses(*run, tmp_path / "engines", naming="backend tensorrt needs an NVIDIA GPU")
    monkeypatch.setattr(tensorrt, "check_usable", lambda: None)
    cli.refuses(*run, tmp_path / "file", naming="file cannot be written to: ")
    cli.refuses(*run, tmp_path / "engines", "--precision", "int8", naming="int8 is for CPUs")
    assert not out.exists()
    done = cli(*run, tmp_path / "my engines")
    assert done.code == 0, done.err
    monkeypatch.setenv("FASTDC_CACHE", str(tmp_path / "my engines"))
    assert made == [(out, cache_folder("engines"))]
    (told,) = [line for line in done.out.splitlines() if "engine of" in line]
    assert told == "note: engine of TensorRT 1.2 built, steps of 1, 2; at 1, 2 within 4.0e-05 of the CPU, limit 1.0e-02"
    assert f"use it: FASTDC_CACHE='{tmp_path / 'my engines'}' fastdc classify --backend tensorrt" in done.out


def _no_gpu() -> bool:
    from fastdc.diffusion import kernels

    return not kernels.cuda_device_count()


def test_conditions_that_do_not_fit_are_refused(cli: Cli, tmp_path: Path) -> None:
    unet = tiny_pipelines.tiny_unet2d(tmp_path / "unet")
    sd = tiny_pipelines.tiny_sd(tmp_path / "sd")
    pkl = edm_files.write_edm(tmp_path / "m.pkl", "ddpmpp")
    prompts = _prompts_file(tmp_path / "p.csv")
    out, lora = tmp_path / "out", tmp_path / "x.safetensors"
    lora.touch()
    cli.refuses("export", sd, out, naming="text-conditional: define its classes by --prompts CSV or --classes")
    cli.refuses("export", sd, out, "--prompts", prompts, "--classes", "a,b", naming="neither --classes nor --template")
    cli.refuses("export", sd, out, "--prompts", tmp_path / "no.csv", naming="no.csv cannot be read")
    cli.refuses("export", sd, out, "--classes", "a,,b", naming="is empty")
    cli.refuses("export", sd, out, "--classes", "a,b", "--template", "no place", naming="exactly one {}")
    for other in (unet, pkl):
        cli.refuses("export", other, out, "--template", "a {}", naming="--template is for text-conditional models")
        _refuses_quickly(cli, "export", other, out, "--lora", lora, naming="--lora cannot be given")
        _refuses_quickly(cli, "export", other, out, "--prompts", prompts, naming="--prompts cannot be given")
    cli.refuses("export", unet, out, "--lora", "x.safetensors", naming="--lora x.safetensors does not exist")
    cli.refuses("export", unet, out, "--lora", f"{lora}=much", naming="--lora must be FILE or FILE=SCALE")
    (tmp_path / "exists").mkdir()
    cli.refuses("export", unet, tmp_path / "exists", naming="choose another path, or replace it with --overwrite")
    cli.refuses("export", tmp_path / "none", out, naming="does not exist")
    cli.refuses("export", unet, out, "--precision", "float64", naming="float64")
    assert not out.exists()


def _refuses_quickly(cli: Cli, *args: str | Path, naming: str) -> None:
    """One line at the end; lines that report progress may precede it."""
    result = cli(*args)
    assert (result.code, result.out) == (2, "")
    *before, last = result.err.splitlines()
    assert all(line.endswith(" ...") for line in before), result.err
    assert not any("exporting" in line for line in before)
    assert last.startswith("fastdc: error: ")
    assert naming in last


def test_what_does_not_fit_the_model_is_refused_before_the_export(cli: Cli, tmp_path: Path) -> None:
    unet = tiny_pipelines.tiny_unet2d(tmp_path / "unet")
    out = tmp_path / "out"
    run = ("export", unet, out, "--classes", "a,b,c,d")
    _refuses_quickly(cli, *run[:3], "--classes", "a,b", naming="4 class rows")
    _refuses_quickly(cli, *run, "--image-size", "9", naming="divisible by 2, got 9")
    _refuses_quickly(cli, *run, "--precision", "int8", naming="int8 needs images")
    _refuses_quickly(cli, *run, "--delta", "0.05", naming="give the images to calibrate on")
    _refuses_quickly(cli, *run, "--levels", "5", "1", naming="0 < low < high")
    _refuses_quickly(cli, *run, "--opset", "3", naming="opset must be from 18")
    _refuses_quickly(cli, *run, "--calibrate", tmp_path / "none.npz", naming="none.npz")
    images = np.zeros((4, 3, 8, 8), np.uint8)
    np.savez(tmp_path / "val.npz", images=images, labels=np.arange(4), class_names=["a", "b", "c", "e"])
    _refuses_quickly(
        cli, *run, "--calibrate", tmp_path / "val.npz", naming="has a class 'e' that the model does not have"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "option",
    [
        ("--prompts", "p.csv"),
        ("--classes", "a,b"),
        ("--template", "a {}"),
        ("--image-size", "8"),
        ("--null-class",),
        ("--no-null-class",),
        ("--lora", "a.safetensors"),
        ("--variant", "fp16"),
        ("--scheduler", "s.json"),
        ("--opset", "18"),
        ("--no-split",),
        ("--no-text-encoder",),
        ("--decoder",),
        ("--scored",),
        ("--engine", "engines"),
        ("--verify",),
    ],
    ids=lambda option: option[0],
)
def test_options_of_other_tools_are_refused_for_a_run(option: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    wanted = option[0].replace("--no-null", "--null")  # named as one option
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    cli.refuses("export", tmp_path / "run", tmp_path / "out", *option, naming=f"{wanted} is for models of other")


def _header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the header of a safetensors file and keeps its data."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def _giant_header(header: dict[str, Any]) -> None:
    header["conv_in.weight"]["shape"] = [25_000_000, 1000]


def _giant_config(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "block_out_channels": [50_000, 50_000]}))


def _giant_storage() -> bytes:
    return edm_files.with_tensor(edm_files.rebuilt(torch.zeros(4), 0, (25_000_000, 1000), (0, 0)))


def _hostile() -> bytes:
    return edm_files.dumped({"ema": edm_files.Call(os.system, "touch executed-by-fastdc")})


def _folder(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        folder = tiny_pipelines.tiny_unet2d(place / "m")
        change(folder)
        return folder

    return make


def _pickle(content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        (place / "m.pkl").write_bytes(content())
        return place / "m.pkl"

    return make


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "truncated weights": _folder(lambda folder: os.truncate(folder / "unet" / WEIGHTS, 9000)),
    "100 GB in a header": _folder(lambda folder: _header(folder / "unet" / WEIGHTS, _giant_header)),
    "100 GB in a config": _folder(_giant_config),
    "a call in a pickle": _pickle(_hostile),
    "100 GB in a pickle": _pickle(_giant_storage),
    "a truncated pickle": _pickle(lambda: edm_files.dumped({"ema": edm_files.precond("ddpmpp")})[:5000]),
}

# Runs the whole command for each source in one process, and prints the peak memory of the process at the end.
LIMITED = """
import json, os, resource, sys
from fastdc.cli.main import main
os.chdir(sys.argv[1])
codes = []
for source in sys.argv[2:]:
    sys.argv = ["fastdc", "export", source, "out"]
    try:
        main()
    except SystemExit as stop:
        codes.append(stop.code)
    print("--", file=sys.stderr)
print(json.dumps([codes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.mark.slow
def test_hostile_models_cost_a_line_and_no_memory(tmp_path: Path) -> None:
    paths = []
    for index, make in enumerate(HOSTILE.values()):
        (tmp_path / str(index)).mkdir()
        paths.append(make(tmp_path / str(index)))
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-c", LIMITED, str(place), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    codes, kilobytes = json.loads(done.stdout)
    assert codes == [2] * len(HOSTILE)
    assert kilobytes < 1.7e6  # torch, diffusers and transformers are half of that
    for name, said in zip(HOSTILE, done.stderr.split("--\n"), strict=False):
        *before, last = said.splitlines()
        assert all(line.startswith("reading ") for line in before), (name, said)
        assert last.startswith("fastdc: error: "), (name, said)
        assert len(last) < 1000
        assert str(tmp_path) not in last.replace(str(paths[list(HOSTILE).index(name)]), "")
    assert list(place.iterdir()) == []
    assert not list(tmp_path.rglob("executed-by-fastdc"))


@pytest.mark.slow
def test_a_hub_id_without_a_network_is_one_line(tmp_path: Path) -> None:
    """The error names the hub, because the kind of the model cannot be determined."""
    done = _process(
        "export", "hf://no-such-org/no-such-model", tmp_path / "out", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "fastdc: error: hf://no-such-org/no-such-model cannot be fetched from the Hugging Face hub: "
    )
    assert not (tmp_path / "out").exists()


def test_findings_are_readable_lines(tmp_path_factory: pytest.TempPathFactory) -> None:
    _, bundle = exported("module", shared_folder(tmp_path_factory))
    cost = {
        "parameters": 2_500_000,
        "flops": 4_000_000_000,
        "pair_flops": 4e8,
        "class_flops": 4e7,
        "cell_flops": 3.56e9,
    }
    found = {"int8_agreement": 0.985, "int8_images": "64", "int8_accuracy": 0.5, "float32_accuracy": 0.515625}
    lines = cli_export._findings(replace(bundle, manifest={"cost": cost, "provenance": found}))
    assert lines == [
        "2.5 M parameters, 4 GFLOP per evaluation",
        # 10 classes: 3.56 + 0.4 / 10 = 3.6 of 4.
        "in parts: 10.0 % of an evaluation is shared by all classes and 1.0 % by all images; 10.0 % saved with "
        "10 classes",
        "int8 agrees with float32 on 98.5 % of 64 images; accuracy 50.0 %, in float32 51.6 %",
    ]
