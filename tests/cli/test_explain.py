"""``fastdc explain``: lines, files, and refusals before any work."""

import json
from pathlib import Path

import numpy as np
import pytest

import fastdc
from helpers.cli_runs import Cli, place_digits

pytest.importorskip("onnxruntime")

FEW = ("--model", "digits-mlp", "--draws", "8")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.chdir(place_digits(tmp_path))
    return Cli(monkeypatch, capsys)


def test_a_line_tells_what_python_finds(cli: Cli) -> None:
    result = cli("explain", "a.npy", *FEW, "--against", "1", "--map-draws", "32")
    assert result.code == 0
    clf = fastdc.load("digits-mlp")
    made = clf.explain(np.load("a.npy"), against="1", draws=8, map_draws=32)
    for line, one in zip(result.out.splitlines(), made, strict=True):
        name, answer, pair, own, other, cost = line.split("\t")
        assert name == f"a.npy[{one.index}]"
        assert answer == f"{one.name} {one.probability:.3f}"
        said = ", its runner-up" * one.turned + ", undecided" * bool(one.undecided)
        assert pair == " against ".join(one.names) + said
        assert (own, other) == (f"for: {one.region_for}", f"against: {one.region_against}")
        assert cost == f"{one.evaluations} evaluations"
    assert "runner-up" not in result.err
    assert result.err.splitlines()[-1].startswith(f"5 images, {made.evaluations.sum()} evaluations")


def test_a_note_counts_images_that_are_answered_the_class_against(cli: Cli) -> None:
    result = cli("explain", "a.npy", *FEW, "--against", "7", "--map-draws", "4", "--json")
    turned = [one["turned"] for one in map(json.loads, result.out.splitlines())]
    assert turned == [one["name"] == "7" for one in map(json.loads, result.out.splitlines())]
    assert any(turned)
    assert f"note: {sum(turned)} of 5 images {'is' if sum(turned) == 1 else 'are'} answered 7, and " in result.err


def test_json_and_files(cli: Cli) -> None:
    files = ("--html", "e.html", "--save", "e.npz")
    result = cli("explain", "b.npz", *FEW, *files, "--json", "--class", "3", "--rule", "full", "--map-draws", "4")
    told = [json.loads(line) for line in result.out.splitlines()]
    assert len(told) == 70
    assert {one["explained"] for one in told} == {"3"}
    assert len({one["run"] for one in told}) == 1
    assert [line.split()[-1] for line in result.err.splitlines()[-3:-1]] == ["e.html", "e.npz"]
    assert "of 70 answers right" in result.err
    assert "<h1>Explanation of 70 answers of digits-mlp</h1>" in Path("e.html").read_text()
    with np.load("e.npz") as file:
        assert file["maps"].shape == (70, 8, 8)


def test_counterfactuals_stand_on_the_page(cli: Cli) -> None:
    edit = ("--counterfactual", "--against", "1", "--map-draws", "4", "--html", "e.html", "--json")
    result = cli("explain", "digits", *FEW, *edit)
    assert result.code == 0, result.err
    told = [json.loads(line) for line in result.out.splitlines()]
    assert [(one["counterfactual"]["own"], one["counterfactual"]["target"]) for one in told] == [
        (one["explained"], one["against"]) for one in told
    ]
    flipped = sum(one["counterfactual"]["flipped"] for one in told)
    assert f"counterfactuals: {flipped} of 3 are taken for the class against" in result.err
    assert Path("e.html").read_text().count("What would change the answer") == 3


def test_plots(cli: Cli) -> None:
    pytest.importorskip("matplotlib")
    assert cli("explain", "digits", *FEW, "--plot", "e.svg", "--quiet").err == ""
    assert "probability" in Path("e.svg").read_text()


def test_counterfactuals(cli: Cli) -> None:
    pytest.importorskip("matplotlib")
    np.save("few.npy", np.load("a.npy")[:2])
    options = ("--against", "1", "--map-draws", "4", "--counterfactual-plot", "c.svg", "--edit", "flowedit")
    result = cli("explain", "few.npy", *FEW, *options)
    assert result.code == 0
    clf, images = fastdc.load("digits-mlp"), np.load("few.npy")
    target = clf.explain(images, against="1", draws=8, map_draws=4).against
    made = clf.counterfactuals(images, to=target, edit="flowedit", draws=8)
    told = [line.split("\t")[-1] for line in result.out.splitlines()]
    for text, one in zip(told, made, strict=True):
        assert text.startswith(f"as {one.target}: {'flipped' if one.flipped else 'not flipped'}")
    assert "digits-mlp, flowedit" in Path("c.svg").read_text()
    lines = cli("explain", "few.npy", *FEW, *options[:4], "--counterfactual", "--json").out.splitlines()
    assert [json.loads(line)["counterfactual"]["target"] for line in lines] == [one.target for one in made]


@pytest.mark.parametrize(
    ("args", "naming"),
    [
        (("--counterfactual-plot", "c.gif"), "c.gif"),
        (("--model", "shapes", "--counterfactual"), "has no decoder"),
    ],
)
def test_counterfactuals_that_cannot_be_made_are_refused(args: tuple[str, ...], naming: str, cli: Cli) -> None:
    pytest.importorskip("matplotlib")
    cli.refuses("explain", "a.npy", *args, naming=naming)


def test_what_cannot_be_explained_is_refused(cli: Cli) -> None:
    for args, naming in [
        (("--against", "eleven"), "--against must be classes"),
        (("--against", "11"), "--against must be in"),
        (("--against", "3", "--class", "3"), "--against and --class are both '3'"),
        (("--alpha", "0.5"), "--alpha must be in"),
        (("--map-draws", "0"), "--map-draws must be"),
        (("--smooth", "-1"), "--smooth must be"),
        (("--html", "a.htm"), "--html needs a name that ends in .html"),
        (("--save", "a.npy"), "--save needs a name that ends in .npz"),
        (("--html", "a.html", "--save", "missing/a.npz"), "missing"),
    ]:
        cli.refuses("explain", "a.npy", *FEW, *args, naming=naming)
