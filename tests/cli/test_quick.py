"""Help, completion, typing errors and refusals are quick: they import no library that they do not need.

Times depend on the machine, so the tests look at the modules that command lines import, many in one process.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fastdc import backends, bundle, certification, data, diffusion, inference, matching, rules, train
from fastdc.cli import names
from helpers.cli_runs import place_digits

COMMANDS = (
    "demo",
    "classify",
    "match",
    "explain",
    "score",
    "compose",
    "calibrate",
    "certify",
    "evaluate",
    "bench",
    "info",
    "manifest",
    "train",
    "export",
    "completion",
)
LIBRARIES = ("numpy", "scipy", "PIL", "tqdm", "safetensors", "fastdc._C")
HEAVY = ("torch", "onnxruntime", "onnx", "diffusers", "transformers", "tokenizers", "matplotlib")
CODE = """
import contextlib, io, json, os, sys
from fastdc.cli.main import main

libraries, lines = json.load(sys.stdin)
told = []
for args, environment in lines:
    sys.argv = ["fastdc", *args]
    os.environ.update(environment)
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    found = [name for name in libraries if name in sys.modules]
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]
    told.append([*said, code, len(sys.modules), found])
json.dump(told, sys.stdout)
"""


class Told(NamedTuple):
    out: str
    err: str
    code: int
    modules: int
    libraries: list[str]


Line = tuple[str, ...]


def tell(lines: Sequence[Line], cwd: Path | None = None, environment: Sequence[dict[str, str]] = ()) -> list[Told]:
    """What each of several command lines says in one process, and which libraries are imported after it."""
    each = [list(pair) for pair in zip(lines, environment or [{}] * len(lines), strict=True)]
    given = json.dumps([[*LIBRARIES, *HEAVY], each])
    run = [sys.executable, "-c", CODE]
    done = subprocess.run(run, input=given, capture_output=True, text=True, check=True, cwd=cwd, timeout=120)
    return [Told(*one) for one in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = place_digits(tmp_path_factory.mktemp("inputs"))
    np.savez(folder / "few.npz", images=np.zeros((3, 1, 8, 8), np.uint8), labels=[0, 1, 2])
    (folder / "net.pkl").touch()  # nothing gets as far as reading it
    return folder


def test_help_imports_no_library() -> None:
    for told in tell([(*command.split(), "--help") for command in ("", *COMMANDS)]):
        assert (told.code, told.err, told.libraries) == (0, "", [])
        assert "Usage: fastdc" in told.out
        assert told.modules < 250


MISTYPED: list[Line] = [
    ("clasify",),
    ("classify",),
    ("classify", "missing.png"),
    ("classify", "missing/*.png", "--backend", "torch"),
    ("classify", "a.npy", "--rool", "race"),
    ("classify", "a.npy", "--rule", "pared"),
    ("score", "digits", "missing"),
    ("compose", "missing", "--split", "vall"),
    ("calibrate", "digits", "missing", "--out", "c.json"),
    ("certify", "--data", "missing", "--sigma", "0.25", "--out", "run.tsv"),
    ("certify", "--data", "a.npy", "--out", "run.tsv"),
    ("evaluate", "missing.tsv"),
    ("train", "missing", "--out", "run"),
    ("export", "net.pkl", "out", "--loss", "l4"),
    ("demo", "extra"),
    ("completion", "tcsh"),
]


def test_typing_errors_and_missing_files_need_no_library(inputs: Path) -> None:
    for args, told in zip(MISTYPED, tell(MISTYPED, inputs), strict=True):
        assert told.libraries == [], args
        assert told.code == 2, args
        assert told.err.count("\n") == 1, args


TORCH = ("--backend", "torch")
CERTIFY = ("certify", "--data", "a.npy", "--out", "run.tsv", *TORCH)


REFUSED: list[Line] = [
    ("classify", "a.npy", "--model", "no-such-model", *TORCH),
    ("classify", "a.npy", "--draws", "0", *TORCH),
    ("classify", "a.npy", "--rule", "paired", "-o", "alpha=2", *TORCH),
    ("classify", "a.npy", "--levels", "3", "1", *TORCH),
    ("classify", "a.npy", "--calibration", "missing.json", *TORCH),
    ("classify", "a.npy", "--prompts", "missing.csv", *TORCH),
    ("classify", "net.pkl", *TORCH),
    ("classify", "a.npy", "--window", "2", "1", *TORCH),
    ("classify", "a.npy", "--save", "missing/e.npz", *TORCH),
    ("classify", "a.npy", "--provenance", "missing/p.json", *TORCH),
    ("demo", "--draws", "0", *TORCH),
    ("demo", "--seed", "-1", *TORCH),
    ("score", "no-such-model", "b.npz", *TORCH),
    ("score", "digits", "a.npy", *TORCH),
    ("score", "shapes", *TORCH),
    ("score", "digits", "b.npz", "--by", "site", *TORCH),
    ("compose", "missing", "--model", "shapes", *TORCH),
    ("compose", ".", "--model", "shapes", *TORCH),
    ("compose", ".", *TORCH),
    ("compose", ".", "--model", "shapes", "--csv", "t.txt", *TORCH),
    ("calibrate", "no-such-model", "a.npy", *TORCH),
    ("calibrate", "digits", "few.npz", *TORCH),
    ("calibrate", "digits", "a.npy", "--draws", "0", *TORCH),
    ("calibrate", "digits", "a.npy", "--sigma", "0.25", "--denoiser", "no-such-model", *TORCH),
    (*CERTIFY, "--sigma", "-1"),
    (*CERTIFY, "--sigma", "0.25", "--n", "3"),
    (*CERTIFY, "--sigma", "0.25", "--draws", "0"),
    (*CERTIFY, "--sigma", "0.25", "--model", "no-such-model"),
    (*CERTIFY, "--sigma", "0.25", "--method", "denoised", "--denoiser", "no-such-model"),
    ("evaluate", "a.npy"),
    ("info", "no-such-model"),
    ("train", "few.npz", "--out", "run", "--steps", "0"),
    ("train", "a.npy", "--out", "run"),
    ("train", "--out", "run", "--resume"),
    ("train", "--out", "run"),
    ("export", "missing", "out"),
    ("export", "net.pkl", "digits"),
    ("export", "net.pkl", "out", "--calibrate", "missing"),
    ("export", "net.pkl", "out", "--draws", "0"),
    ("export", "net.pkl", "out", "--delta", "0.1"),
    ("export", "net.pkl", "out", "--weighting", "auto"),
    ("export", "net.pkl", "out", "--precision", "int8"),
    ("export", "net.pkl", "out", "--lora", "missing.safetensors"),
    ("export", "net.pkl", "out", "--max-pixels", "3"),
]


def test_options_and_data_are_refused_before_torch_is_imported(inputs: Path) -> None:
    before = sorted(inputs.rglob("*"))
    for args, told in zip(REFUSED, tell(REFUSED, inputs), strict=True):
        assert not set(HEAVY).intersection(told.libraries), args
        assert told.code == 2, args
        assert told.err.count("\n") == 1, args
        assert told.modules < 1000  # 953 with the lowest versions of all dependencies
    assert sorted(inputs.rglob("*")) == before


OFFERED: list[tuple[str, set[str]]] = [
    ("fastdc cl", {"plain,classify"}),
    ("fastdc classify --ru", {"plain,--rule", "plain,--rule-option"}),
    ("fastdc classify --rule bet", {"plain,betting"}),
    ("fastdc classify --model digits-", {"plain,digits-mlp", "dir,digits-"}),
    ("fastdc classify pho", {"file,pho"}),
    ("fastdc info sha", {"plain,shapes", "dir,sha"}),
    ("fastdc export sou", {"file,sou"}),
    ("fastdc completion z", {"plain,zsh"}),
]


def test_completion_imports_no_library() -> None:
    asked = [
        {"_FASTDC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        for words, _ in OFFERED
    ]
    for (words, offered), told in zip(OFFERED, tell([()] * len(OFFERED), environment=asked), strict=True):
        assert set(told.out.splitlines()) == offered, words
        assert (told.err, told.code, told.libraries) == ("", 0, []), words


def test_completion_scripts_call_fastdc() -> None:
    shells = ("bash", "zsh", "fish")
    for shell, told in zip(shells, tell([("completion", shell) for shell in shells]), strict=True):
        assert (told.err, told.code, told.libraries) == ("", 0, [])
        assert f"_FASTDC_COMPLETE={shell}_complete" in told.out


def test_bash_offers_models_and_folders(tmp_path: Path) -> None:
    """Click's script for bash forgets what comes before a folder, so this runs it."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    command = tmp_path / "fastdc"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m fastdc "$@"\n')
    command.chmod(0o755)
    (script,) = tell([("completion", "bash")])
    for words, offered in (
        (("fastdc", "info", "digits"), ["digits", "digits-mlp"]),
        (("fastdc", "classify", "--model", "sh"), ["shapes"]),
        (("fastdc", "classify", "--model", "none"), []),
    ):
        typed = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        show = '_fastdc_completion fastdc; printf "%s\\n" "${COMPREPLY[@]}"'
        code = f'{script.out}\ncompopt() {{ echo compopt "$@"; }}\n{typed}\n{show}'
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        run = subprocess.run(
            [bash, "--norc", "-c", code], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
        )
        assert run.stdout.split("\n") == ["compopt -o dirnames", *(offered or [""]), ""]


def test_words_are_those_of_the_library() -> None:
    assert names.BACKENDS == backends.BACKENDS
    assert names.PRECISIONS == backends.PRECISIONS
    assert names.EXPORT_PRECISIONS == bundle.PRECISIONS
    assert names.METHODS == diffusion.METHODS
    assert names.WEIGHTINGS == diffusion.WEIGHTINGS
    assert names.LOSSES == diffusion.LOSSES
    assert names.ORDERS == diffusion.ORDERS
    assert names.DECISIONS == inference.DECISIONS
    assert names.RULES == rules.RULES
    assert names.LAYOUTS == data.LAYOUTS
    assert names.SPLITS == matching.SPLITS
    assert names.AUGMENTATIONS == train.AUGMENTATIONS
    assert names.MODELS == train.presets.MODELS
    assert tuple(train.presets.NAMED) == names.NAMED_RECIPES
    assert names.SHIFTS == train.config.SHIFTS
    assert names.LOSS_WEIGHTINGS == train.config.LOSS_WEIGHTINGS
    assert names.CALIBRATION_DRAWS == inference.CALIBRATION_DRAWS
    for name in ("COPIES", "TARGET_COPIES", "SELECTION_COPIES", "ALPHA", "ESTIMATIONS", "TOLERANCE"):
        assert getattr(names, name) == getattr(certification, name)


def test_the_package_imports_its_names_on_first_use() -> None:
    code = (
        "import sys, fastdc\n"
        "assert 'numpy' not in sys.modules\n"
        "assert set(fastdc.__all__) <= set(dir(fastdc))\n"
        "assert all(getattr(fastdc, name) is not None for name in fastdc.__all__)\n"
        "assert fastdc.data.digits_test is not None\n"
        "assert not hasattr(fastdc, 'nothing')\n"
        "from fastdc import *\n"
        "assert load is fastdc.load\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_module_is_the_command() -> None:
    run = [sys.executable, "-m", "fastdc", "--version"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.startswith("fastdc, version ")
