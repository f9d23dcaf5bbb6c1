"""--prompts says what the text encoder does not read, and refuses classes that it cannot tell apart."""

from pathlib import Path

import numpy as np
import pytest

from helpers.cli_runs import Cli

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

HEADER = "prompt,classname,classidx\n"
LONG = "a photo of a red cube and of nothing else"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def test_what_is_lost_of_prompts_is_said_on_stderr(cli: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.zeros((1, 3, 32, 32), np.uint8))
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(f"{HEADER}{LONG},red,0\na blue cone,blue,1\n", encoding="utf-8")
    run = ("classify", "--model", "shapes", "--prompts", prompts, "--rule", "full", "--draws", "1")
    result = cli(*run, tmp_path / "image.npy")
    assert result.code == 0
    note = f"note: the text encoder reads at most 16 tokens: prompt 0 ('{LONG}') loses "
    assert result.err.splitlines()[0].startswith(note), result.err
    assert cli(*run, "--quiet", tmp_path / "image.npy").err == ""


def test_classes_that_the_text_encoder_reads_alike_are_refused(cli: Cli, tmp_path: Path) -> None:
    image, prompts = tmp_path / "image.npy", tmp_path / "prompts.csv"
    np.save(image, np.zeros((1, 3, 32, 32), np.uint8))
    prompts.write_text(f"{HEADER}{LONG} at all,x,0\na cone,y,1\n{LONG} whatsoever,z,2\n", encoding="utf-8")
    same = "of the classes 'x' and 'z' are the same to the text encoder, cut to 16 tokens"
    cli.refuses("classify", "--model", "shapes", "--prompts", prompts, image, naming=same)
    certify = ("--sigma", "0.25", "--out", tmp_path / "out.tsv")
    cli.refuses("certify", "--model", "shapes", "--prompts", prompts, "--data", image, *certify, naming=same)
