"""Fuzzing: every target for a moment, and every kind of fault found where it is planted."""

import sys
from pathlib import Path

import pytest

import fuzz
from fuzzing.targets import TARGETS
from helpers.paths import ROOT

FAULTS = "helpers.fuzz_faults"
# Inputs of targets that take long to read one.
INPUTS = {"parts": 10, "run-folder": 20, "model-folder": 10, "lora": 10, "weights": 50, "edm": 100, "tokenizer": 100}
INPUTS |= {"operators": 100, "image-text": 10}


@pytest.fixture(autouse=True)
def _children_find_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(ROOT / "tools"), str(ROOT / "tests"), *sys.path]
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in paths if path))


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_are_read_or_refused(name: str) -> None:
    assert fuzz.run(name, inputs=INPUTS.get(name, 300), seed=1) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lines", "message of"),
        ("foreign", "KeyError: 'seed'"),
        ("crash", "the process ended with -6"),
        ("memory", "MemoryError"),
        ("hang", "hangs"),
    ],
)
def test_a_planted_fault_is_found(name: str, said: str) -> None:
    inputs = 1 if name == "hang" else 3
    found = fuzz.run(name, inputs=inputs, module=FAULTS)
    assert [finding.number for finding in found] == list(range(inputs))
    assert all(said in finding.what for finding in found)


def test_a_refusal_in_one_line_is_no_finding() -> None:
    assert fuzz.run("fine", inputs=3, module=FAULTS) == []


def test_a_target_that_refuses_its_own_seed_is_an_error() -> None:
    with pytest.raises(SystemExit, match="a valid input fails: KeyError"):
        fuzz.run("wrong-seed", inputs=3, module=FAULTS)


def test_an_input_depends_on_target_seed_and_number_alone(tmp_path: Path) -> None:
    target = TARGETS["prompts"](tmp_path)
    made = {
        fuzz.input_of(target, name, seed, number)
        for name in ("prompts", "images")
        for seed in range(2)
        for number in range(2)
    }
    assert len(made) == 8
    assert fuzz.input_of(target, "prompts", 1, 1) in made
