"""``fastdc match``: lines and files for images, tables, pairs and rankings, and refusals in one line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastdc
from fastdc.cli.match import _text_line
from fastdc.data import digits_test
from fastdc.matching import DiffusionMatcher, Matched, Trials, read_pairs, read_trials
from helpers.cli_runs import Cli

pytest.importorskip("onnxruntime")

TEST = digits_test()
MODEL = ("--model", "digits-mlp", "--threads", "1")
FEW = (*MODEL, "--draws", "8", "--rule", "full")
N = 12


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Test digits as PNG files, a table with three texts for each, and Winoground's layout of six pairs."""
    (tmp_path / "images").mkdir()
    rows = ["image,prompt,truth,kind"]
    for i in range(N):
        Image.fromarray(TEST.images[i, 0]).save(tmp_path / "images" / f"{i}.png")
        label = int(TEST.labels[i])
        for step in (1, 0, 5):
            rows.append(f"images/{i}.png,{(label + step) % 10},{int(step == 0)},{'' if step == 0 else f'by {step}'}")
    (tmp_path / "asked.csv").write_text("\n".join(rows) + "\n")
    pairs = [
        {"id": e, "image_0": str(2 * e), "image_1": str(2 * e + 1), "tag": "odd" if e % 2 else "even",
         "caption_0": str(TEST.labels[2 * e]), "caption_1": str(TEST.labels[2 * e + 1])}
        for e in range(N // 2) if TEST.labels[2 * e] != TEST.labels[2 * e + 1]
    ]  # fmt: skip
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    known = [f"images/{i}.png,{TEST.labels[i]}" for i in range(N)]
    (tmp_path / "known.csv").write_text("Image,Caption\n" + "\n".join(known))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_with_prompts_get_a_line_each(cli: Cli, folder: Path) -> None:
    result = cli("match", "images/0.png", "images/1.png", "-p", "7", "-p", "9", "-p", "1", "-p", "0", *FEW)
    lines = [line.split("\t") for line in result.out.splitlines()]
    assert result.code == 0
    assert [line[:2] for line in lines] == [[f"images/{i}.png", str(TEST.labels[i])] for i in range(2)]
    assert lines[0][2].count(", ") == 2
    assert "2 images, 64 evaluations" in result.err


def test_the_scores_of_a_line_begin_with_the_answer() -> None:
    trials = Trials.of(np.zeros((2, 1, 2, 2)), [["a", "b", "c", "d"]] * 2, truth=-1)
    scores = (np.array([-1.0, -2.0, -1.0, -3.0]), np.array([-1.0, -2.0, -3.0, -4.0]))
    answers = np.array([2, 3])  # the last of two that tie, and one that votes chose
    matched = Matched("x", np.arange(2), scores, answers, np.full(2, 4), 0.0)
    lines = [_text_line(trials, matched, row).split("\t")[1:] for row in range(2)]
    assert lines == [["c", "c -1, a -1, b -2"], ["d", "d -4, a -1, b -2"]]


def test_a_table_gives_each_image_its_own_texts(cli: Cli, folder: Path) -> None:
    result = cli("match", "asked.csv", *FEW, "--json", "--csv", "out.csv")
    trials = read_trials("asked.csv")
    want = DiffusionMatcher("digits-mlp", draws=8, rule="full").match(trials)
    entries = [json.loads(line) for line in result.out.splitlines()]
    for i, entry in enumerate(entries):
        assert list(entry["scores"]) == list(trials.texts_of(i))
        assert list(entry["scores"].values()) == pytest.approx(want.scores[i].tolist())
        assert entry["truth"] == str(TEST.labels[i])
        assert entry["kind"] == ("right" if entry["right"] else trials.kinds[i][want.answers[i]])
        assert entry["evaluations"] == 24
    share = np.mean([entry["right"] for entry in entries])
    assert f"accuracy {100 * share:.2f} %" in result.err
    with open("out.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 3 * N
    assert [row["answer"] for row in written[:3]].count("1") == 1
    assert written[1]["truth"] == "1"


def test_a_race_is_calibrated_on_another_table(cli: Cli, folder: Path) -> None:
    result = cli("match", "asked.csv", *MODEL, "--draws", "8", "--calibrate", "asked.csv", "--delta", "0.1")
    assert "calibrated on 12 images: at most 10 % of answers differ from the full run" in result.err
    assert int(result.err.split("12 images, ")[1].split()[0]) < 24 * N
    assert "note: " not in result.err
    naming = "5 %, the largest by default, takes 19, and 1 % takes 99; --delta 0.1 would work"
    cli.refuses("match", "asked.csv", *MODEL, "--calibrate", "asked.csv", naming=naming)


def test_paired_tests_in_place_of_the_calibrated_race_are_noted(cli: Cli, folder: Path) -> None:
    asked = ("match", "asked.csv", *MODEL, "--draws", "8")
    assert "note: digits-mlp: paired tests instead of the calibrated race" in (told := cli(*asked).err)
    assert "--calibrate TABLE" in told
    for args in (["--rule", "full"], ["--rule", "paired"], ["--quiet"]):
        assert "note: " not in cli(*asked, *args).err


def test_pairs_in_winogrounds_layout(cli: Cli, folder: Path) -> None:
    result = cli("match", "examples.jsonl", *FEW, "--json", "--csv", "pairs.csv")
    found = json.loads(result.out)
    n = len(read_pairs("examples.jsonl")) // 2
    assert (found["examples"], found["evaluations_per_example"]) == (n, 2 * 3 * 8)
    assert set(found["tags"]) == {"even", "odd"}
    assert found["text"]["value"] >= found["group"]["value"]
    with open("pairs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert np.mean([int(row["group"]) for row in rows]) == pytest.approx(found["group"]["value"])
    assert rows[0]["example"] == "0"
    assert "chance 16.7%" in cli("match", "examples.jsonl", *FEW).out


def test_images_are_ranked(cli: Cli, folder: Path) -> None:
    found = json.loads(cli("match", "known.csv", "--rank", *FEW, "--json", "--csv", "ranks.csv").out)
    texts = sorted(set(map(str, TEST.labels[:N])))
    assert sorted(found["ranks"]) == texts
    assert found["evaluations"] == N * (len(texts) + 1) * 8
    with open("ranks.csv", newline="") as file:
        assert {row["prompt"]: int(row["rank"]) for row in csv.DictReader(file)} == found["ranks"]
    assert "mean reciprocal rank" in cli("match", "known.csv", "--rank", *FEW).out


def test_noise_levels_are_told_and_drawn(cli: Cli, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    result = cli("match", "asked.csv", *FEW, "--level-plot", "levels.svg")
    assert result.out.splitlines()[0].split() == ["sigma", "/", "alpha", "by", "1", "by", "5", "any", "wrong", "text"]
    assert "by 5 (12 images)" in Path("levels.svg").read_text()


def test_columns_that_are_not_read_are_named_and_misspelt_ones_refused(cli: Cli, folder: Path) -> None:
    text = Path("asked.csv").read_text()
    for name, meant in (("correct", "truth"), ("thruth", "truth"), ("True", "truth")):
        Path("bad.csv").write_text(text.replace("truth", name))
        cli.refuses("match", "bad.csv", *FEW, naming=f"unknown column '{name.lower()}'; did you mean '{meant}'?")
    lines = text.splitlines()
    more = [f"{lines[0]},Split,correct", *(f"{line},a,1" for line in lines[1:])]
    Path("more.csv").write_text("\n".join(more))
    noted = "note: more.csv: not read: columns Split, correct"
    assert noted in cli("match", "more.csv", *FEW).err
    assert noted in cli("match", "asked.csv", *MODEL, "--draws", "8", "--calibrate", "more.csv", "--delta", "0.1").err
    assert "note" not in cli("match", "more.csv", *FEW, "--quiet").err + cli("match", "known.csv", "--rank", *FEW).err
    Path("tags.jsonl").write_text(Path("examples.jsonl").read_text().replace('"tag"', '"tags"'))
    cli.refuses("match", "tags.jsonl", *FEW, naming="unknown column 'tags'; did you mean 'tag'?")


def test_what_cannot_be_matched_is_refused(cli: Cli, folder: Path) -> None:
    def table(name: str, text: str) -> str:
        Path(name).write_text(text)
        return name

    bad = {
        "image,prompt\nimages/0.png,\n": "line 2: the prompt is empty",
        "image,prompt\nimages/0.png,7\nimages/0.png,7\n": "line 3: 'images/0.png' has the prompt '7' twice",
        "image,prompt\nnone.png,7\n": "line 2: there is no image 'none.png'",
        "image,prompt,truth\nimages/0.png,7,maybe\n": "line 2: truth must be 1 or 0",
        "image,prompt,truth\nimages/0.png,7,1\nimages/0.png,8,1\n": "has two right prompts",
        "image,prompt,kind\nimages/0.png,7,right\n": "line 2: expected a kind of wrong prompt, as truth is not 1",
        "image,words\nimages/0.png,7\n": "expected a column prompt",
        "image,prompt\n": "holds no rows",
        "image,prompt\nimages/0.png,a seven\n": "has no text encoder",
        "image_0,image_1,caption_0,caption_1\nimages/0.png,images/1.png,a,a\n": "line 2: expected two different",
    }
    for text, naming in bad.items():
        cli.refuses("match", table("bad.csv", text), *FEW, naming=naming)
    cli.refuses("match", "asked.csv", naming="expected one model to ask")
    cli.refuses("match", "asked.csv", *FEW, "--clip", "x", naming="--model and --clip")
    cli.refuses("match", "images/0.png", *FEW, naming="expected the texts of the images")
    cli.refuses("match", "images", "-p", "7", *FEW, naming="images is not a file")
    cli.refuses("match", "asked.csv", "-p", "7", *FEW, naming="--prompt is for IMAGES")
    cli.refuses("match", "examples.jsonl", "--rank", *FEW, naming="--rank is for a table")
    cli.refuses("match", "asked.csv", *MODEL, "--delta", "0.1", naming="--calibrate, which is missing")
    cli.refuses("match", "asked.csv", *FEW, "--calibrate", "asked.csv", naming="no other --rule")
    for option in (("--draws", "8"), ("--rule", "full"), ("--seed", "1"), ("--precision", "float16"), ("--compile",)):
        cli.refuses("match", "asked.csv", "--clip", "x", *option, naming=f"{option[0]} is for --model")
    cli.refuses("match", "asked.csv", "--siglip", "x", "--clip", "y", naming="got --clip or --siglip 2 times")
    cli.refuses("match", "asked.csv", "--siglip", "x", "--draws", "8", naming="--draws is for --model")
    cli.refuses("match", "asked.csv", "--clip", "x", "--device", "cuda:0,1", naming="runs on one device")
    cli.refuses("match", "asked.csv", *FEW, "--csv", "out.txt", naming="ends in .csv")
    pytest.importorskip("matplotlib")
    for how in (("examples.jsonl",), ("known.csv", "--rank"), ("asked.csv", "--level-plot", "levels.png")):
        cli.refuses("match", *how, *MODEL, "--rule", "paired", naming="every draw: expected no --rule")
        cli.refuses("match", *how, *MODEL, "--decision", "vote", naming="every draw: expected no --rule")
    for option in (("--csv", "out.csv"), ("--calibrate", "asked.csv")):
        cli.refuses("match", "asked.csv", *MODEL, "--level-plot", "levels.png", *option, naming="expected no --c")
    assert fastdc.load_bundle(fastdc.bundle.find_model("digits-mlp")).model.null_class == 10
