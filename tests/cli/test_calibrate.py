"""``fastdc calibrate``, calibrations in files, and what the other commands make of a calibrated model."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc.bundle.folder import load_bundle, with_calibration
from fastdc.bundle.format import MANIFEST
from fastdc.bundle.shipped import find_model
from fastdc.cli import calibrate_choice
from fastdc.data import digits_test
from fastdc.support.exceptions import InputError
from fastdc.testing import GaussianWorld
from helpers.cli_runs import Cli, place_digits, provenance_of
from helpers.worlds import CALIBRATION, CURVE

# A small calibration: 70 images allow a delta of 1 / 71.
QUICK = ("--delta", "0.05", "--draws", "8", "--seeds", "2")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with digits and "m", the shipped MLP without any calibration."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(find_model("digits-mlp"), tmp_path / "m")
    _edit(tmp_path / "m" / MANIFEST, calibration=None, noised_calibrations=[], level_weights=None, first=[])
    return place_digits(tmp_path)


def _edit(manifest: Path, *, first: list[float], **fields: Any) -> None:
    whole = json.loads(manifest.read_text())
    defaults = {**whole["defaults"], "levels": [0.2, 2.0], "first": first}
    manifest.write_text(json.dumps({**whole, **fields, "defaults": defaults}))


def _states(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- calibrating -----------------------------------------------------------------------------------------------------


def test_a_calibration_written_into_the_model_is_that_of_the_library(cli: Cli, folder: Path) -> None:
    images = digits_test().images[:70]
    expected = fastdc.load("m").calibrate(images, delta=0.05, seeds=2, draws=8, first=[0.8])
    result = cli("calibrate", "m", "b.npz", *QUICK, "--first", "0.8", "--write")
    assert result.code == 0
    model = load_bundle("m").model
    assert model.calibration == expected
    assert model.defaults.first == (0.8,)
    assert model.level_weights is None
    rows = result.rows
    assert rows["limit"] == f"{expected.limit:.6g}"
    assert rows["delta"] == "0.05: at most 5 % of answers differ from the full run"
    assert rows["risk"] == f"seen    {expected.risk:.4g} on 70 images, 2 noise seeds"
    assert rows["saved"].startswith(f"in m, whose sha256 is now {model.identity[:12]}")
    assert "(--first here: 0.8)" in rows["levels"]
    raced = fastdc.load("m").classify(images, seed=2)
    assert rows["evaluations"] == f"{raced.evaluations.mean():.1f} per image on these images (full run: 80)"
    assert result.err == "next         fastdc classify IMAGE... --model m\n"
    assert sorted(item.name for item in (folder / "m").iterdir()) == ["denoiser.onnx", MANIFEST, "weights.safetensors"]


def test_the_model_then_races_by_default(cli: Cli, folder: Path) -> None:
    assert "paired tests, as there is no calibration" in cli("info", "m").out
    assert cli("calibrate", "m", "b.npz", *QUICK, "--write", "--quiet").err == ""
    calibration = load_bundle("m").model.calibration
    assert calibration is not None
    shown = f"calibrated, limit {calibration.limit:.4g}"
    promised = f"{shown}: at most 5 % of answers differ from the full run"
    rows = cli("demo", "--model", "m").rows
    assert rows["rule"] == promised
    assert "(full run: 80)" in rows["evaluations"]
    assert float(rows["accuracy"].split()[0]) > 95
    assert cli("demo", "--model", "m", "--draws", "4").rows["rule"] == shown  # decides among the classes left
    assert cli("demo", "--model", "m", "--levels", "0.3", "3").rows["rule"].startswith("paired, ")
    smaller = ("--rule", "calibrated", "-o", f"limit={calibration.limit / 2}")
    assert cli("demo", "--model", "m", *smaller).rows["rule"] == f"calibrated, limit {calibration.limit / 2:.4g}"
    told = provenance_of(cli, "digits/0.png", "--model", "m")
    assert told["rule"] == {"name": "calibrated", "limit": calibration.limit, "draws": 8}
    info = json.loads(cli("info", "m", "--json").out)
    assert info["calibration"] == calibration.to_dict()
    assert info["race"] == "calibrated: at most 5 % of answers differ from the full run"
    text = cli("info", "m").out
    assert f"limit {calibration.limit:.6g}, delta 0.05, risk" in text
    assert "draws 8, images 70, seeds 2" in text


def test_info_says_when_a_calibration_is_not_used(cli: Cli, folder: Path) -> None:
    with_calibration(
        "m", dataclasses.replace(CALIBRATION, plan={"levels": [5, 6]}), level_weights=CURVE, defaults={"first": [0.5]}
    )
    out = cli("info", "m").out
    assert "paired tests, as the calibration is of other levels" in out
    assert "first 0.5" in out
    assert "2 knots, 0.1 to 1" in out


def test_a_calibration_in_a_file_leaves_the_model_as_it_is(cli: Cli, folder: Path) -> None:
    before = _states(folder / "m")
    result = cli("calibrate", "m", "b.npz", *QUICK, "--first", "0.8,0.5", "--out", "cal.json")
    assert result.code == 0
    assert result.err == "next         fastdc classify IMAGE... --model m --calibration cal.json\n"
    assert _states(folder / "m") == before
    line = ("b.npz", "--model", "m", "--json", "--quiet")
    with_file = cli("classify", *line, "--calibration", "cal.json").out
    entry = provenance_of(cli, *line, "--calibration", "cal.json")
    assert entry["rule"]["name"] == "calibrated"
    assert entry["plan"]["first"] == [0.8, 0.5]
    cli("calibrate", "m", "b.npz", *QUICK, "--first", "0.8,0.5", "--write")
    written, told = cli("classify", *line).out, provenance_of(cli, *line)
    assert told == {**entry, "run": told["run"], "sha256": told["sha256"]}
    assert with_file.replace(entry["run"], told["run"]) == written


def test_a_limit_that_was_not_saved_can_be_given(cli: Cli, folder: Path) -> None:
    result = cli("calibrate", "m", "b.npz", *QUICK, "--levels", "0.3", "3", "--first", "0.8")
    used = "--rule calibrated -o limit={} --levels 0.3 3 --first 0.8".format(result.rows["limit"].strip())
    assert result.err == f"next         fastdc classify IMAGE... --model m {used}\n"
    assert cli("classify", "a.npy", "--model", "m", *used.split()).code == 0


def test_level_weights_are_fitted_to_labels_and_used_when_asked_for(cli: Cli, folder: Path) -> None:
    from fastdc.calibration.levels import fit_level_weights

    result = cli("calibrate", "m", "b.npz", *QUICK, "--level-weights", "--write")
    assert result.code == 0
    curve = load_bundle("m").model.level_weights
    tables = [fastdc.load("m").errors(digits_test().images[:70], seed=seed, draws=8) for seed in range(2)]
    errors = np.concatenate([table.errors for table in tables])
    assert curve == fit_level_weights(errors, tables[0].sigma, np.tile(digits_test().labels[:70], 2))
    assert result.rows["weights"].startswith(f"{len(curve.ratio)} knots, largest at ")
    plain, weighted = (
        provenance_of(cli, "digits/0.png", "--model", "m", *extra)["plan"]["level_weights"]
        for extra in ((), ("--level-weights",))
    )
    assert (plain, weighted) == (None, curve.to_dict())


def test_level_weights_take_a_folder_of_classes(cli: Cli, folder: Path) -> None:
    from PIL import Image

    test = digits_test()
    for i in range(40):
        place = folder / "sorted" / str(test.labels[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.images[i, 0]).save(place / f"{i}.png")
    result = cli("calibrate", "m", "sorted", *QUICK, "--level-weights")
    assert result.code == 0, result.err
    assert "weights" in result.rows
    (folder / "sorted" / "0").rename(folder / "sorted" / "zero")
    cli.refuses(
        "calibrate",
        "m",
        "sorted",
        *QUICK,
        "--level-weights",
        naming="sorted: has a class 'zero' that the model does not have",
    )


def test_a_calibration_for_noisy_images_is_used_by_certify(cli: Cli, folder: Path) -> None:
    noisy = ("--sigma", "0.25", "--method", "apndc")
    before = load_bundle("m").model.defaults
    result = cli("calibrate", "m", "b.npz", *QUICK, *noisy, "--levels", "0.6", "2", "--first", "0.8", "--write")
    assert result.code == 0, result.err
    command = "fastdc certify --data DATA --out RUN.tsv --model m --sigma 0.25 --method apndc"
    assert result.err == f"next         {command}\n"
    model = load_bundle("m").model
    (made,) = model.noised_calibrations
    images = digits_test().images[:70]
    assert made == fastdc.load("m").calibrate(
        images, delta=0.05, seeds=2, draws=8, sigma=0.25, method="apndc", levels=(0.6, 2.0), first=(0.8,)
    )
    assert made.noised == ("apndc", 0.5)
    assert (model.calibration, model.defaults) == (None, before)
    assert 11 < float(result.rows["evaluations"].split()[0]) < 80  # one to denoise, one a class and more
    assert "calibrated: --method apndc, --sigma 0.25 (sigma / alpha 0.5, 5 %)" in cli("info", "m").out
    few = ("--n0", "3", "--n", "10", "--max", "2", "--draws", "8")
    assert cli("certify", "--data", "b.npz", "--model", "m", *noisy, *few, "--out", "run.tsv").code == 0
    assert '"calibrated"' in Path("run.tsv.json").read_text()
    assert cli("certify", "--data", "b.npz", "--model", "m", "--sigma", "0.2", *few, "--out", "other.tsv").code == 0
    assert '"paired"' in Path("other.tsv.json").read_text()


def test_weighting_loss_and_denoiser_are_part_of_a_calibration(cli: Cli, folder: Path) -> None:
    pytest.importorskip("onnx")
    _edit(folder / "m" / MANIFEST, null_class=None, first=[])
    GaussianWorld.random(1, (1, 8, 8)).write("bare")
    noisy = ("--sigma", "0.25", "--method", "apndc", "--denoiser", "bare")
    chosen = ("--weighting", "uniform", "--loss", "huber")
    result = cli("calibrate", "m", "b.npz", *QUICK, *noisy, *chosen, "--levels", "0.6", "2", "--write")
    assert result.code == 0, result.err
    assert result.err.endswith("--model m --sigma 0.25 --method apndc --denoiser bare\n")
    (made,) = load_bundle("m").model.noised_calibrations
    identity = load_bundle("bare").model.identity
    assert (made.plan["weighting"], made.plan["loss"], made.plan["denoiser"]) == ("uniform", "huber", identity)
    certify = ("certify", "--data", "b.npz", "--model", "m", "--n0", "3", "--n", "10", "--max", "2", "--draws", "8")
    assert cli(*certify, *noisy, "--out", "run.tsv").code == 0
    assert '"calibrated"' in Path("run.tsv.json").read_text()
    base = json.loads(Path("run.tsv.json").read_text())["base"]
    assert (base["denoiser"]["sha256"], base["plan"]["loss"]) == (identity, "huber")
    # A race that was calibrated with one denoiser does not fit another, nor is a run resumed with it.
    noisy = (*noisy[:-1], "mean")
    assert cli(*certify, *noisy, "--levels", "0.6", "2", "--out", "other.tsv").code == 0
    assert '"paired"' in Path("other.tsv.json").read_text()
    cli.refuses(*certify, *noisy, "--out", "run.tsv", naming="run.tsv belongs to another certification")
    cli.refuses(*certify, *noisy[:-2], "--out", "new.tsv", naming="digits-mlp has no null class")
    cli.refuses(*certify, *noisy[:-1], "no-such", "--out", "new.tsv", naming="no-such")
    cli.refuses(*certify, *noisy[:-1], "digits", "--compat", "ndc", "--out", "new.tsv", naming="no --draws")
    # For clean images, a file holds the race and the command repeats the choice.
    result = cli("calibrate", "m", "b.npz", *QUICK, *chosen, "--out", "cal.json")
    assert result.code == 0, result.err
    assert result.err.endswith("--model m --calibration cal.json --weighting uniform --loss huber\n")
    told = provenance_of(cli, "a.npy", "--model", "m", "--calibration", "cal.json", *chosen)
    assert (told["rule"]["name"], told["plan"]["weighting"], told["plan"]["loss"]) == ("calibrated", "uniform", "huber")


# --- choosing --------------------------------------------------------------------------------------------------------


def _world(folder: Path) -> None:
    """Makes "w", a world whose default levels are far below those that tell its classes apart, and w.npz of 130."""
    pytest.importorskip("onnx")
    world = dataclasses.replace(GaussianWorld.random(6, (1, 8, 8), scale=0.3), spread=0.5)
    world.write("w")
    whole = json.loads((folder / "w" / MANIFEST).read_text())
    whole["defaults"] |= {"levels": [0.05, 0.1]}
    (folder / "w" / MANIFEST).write_text(json.dumps(whole))
    labels = np.arange(130) % 6
    np.savez(folder / "w.npz", images=((world.sample(labels) + 1) / 2).astype(np.float32), labels=labels)


def test_a_chosen_plan_is_written_with_its_calibration(cli: Cli, folder: Path) -> None:
    """The levels give way to better ones, and the race is of the other half and of these levels."""
    _world(folder)
    result = cli("calibrate", "w", "w.npz", *QUICK, "--choose", "--write")
    assert result.code == 0, result.err
    model, rows = load_bundle("w").model, result.rows
    levels, draws = model.defaults.levels, model.defaults.draws
    assert levels is not None
    assert levels[0] >= 0.2
    assert rows["chosen"].startswith(f"levels {levels[0]:g} to {levels[1]:g}, weighting {model.defaults.weighting}")
    assert f"{draws} draws, chosen on 65 images: 9" in rows["chosen"]
    assert rows["chosen"].endswith("% there instead of 72.3 % with levels 0.05 to 0.1, weighting edm, loss l2")
    assert model.calibration is not None
    assert model.calibration.images == 65
    assert model.calibration.draws == 8  # as --draws says, whatever the default number that was chosen
    assert model.calibration_for(fastdc.load("w").settings().job.plan.config) == model.calibration
    assert rows["accuracy"].endswith(f"% of the 65 images that nothing was chosen on ({draws} draws of every class)")
    assert model.defaults.temperature != 1.0
    assert result.err == "next         fastdc classify IMAGE... --model w\n"


def test_images_that_chose_the_plan_do_not_calibrate_it_again(cli: Cli, folder: Path) -> None:
    """Whatever their order; the next choice may use them, and the calibration takes the others."""
    _world(folder)
    half = cli("calibrate", "w", "w.npz", *QUICK, "--choose", "--write", "--quiet")
    assert half.code == 0, half.err
    data = dict(np.load("w.npz"))
    order = np.random.default_rng(0).permutation(130)
    np.savez("mixed.npz", images=data["images"][order], labels=data["labels"][order])
    result = cli("calibrate", "w", "mixed.npz", *QUICK, "--write")
    assert result.code == 0, result.err
    assert "note: 65 of 130 images chose the model's checkpoint or plan and do not calibrate" in result.err
    calibration = load_bundle("w").model.calibration
    assert calibration is not None
    assert calibration.images == 65
    chose = load_bundle("w").seen.chose(data["images"])
    np.savez("chose.npz", images=data["images"][chose], labels=data["labels"][chose])
    cli.refuses("calibrate", "w", "chose.npz", *QUICK, naming="got 0: 65 of 65 images chose the model's")
    cli.refuses("calibrate", "w", "chose.npz", *QUICK, "--choose", naming="65 of which have chosen the model's")
    again = cli("calibrate", "w", "w.npz", *QUICK, "--choose", "--out", "cal.json")
    assert again.code == 0, again.err
    assert "% of the 65 images that nothing was chosen on" in again.rows["accuracy"]


def test_without_a_level_the_images_decide(cli: Cli, folder: Path) -> None:
    data = digits_test().part(slice(0, 60))
    np.savez("few.npz", images=data.images, labels=data.labels)
    few = ("calibrate", "m", "few.npz", "--seeds", "1", "--draws", "8", "--out")
    assert cli(*few, "a.json").rows["delta"].startswith("0.02: ")
    cli.refuses(
        *few, "b.json", "--delta", "0.01", naming="needs at least 99 validation images, got 60: these support 0.017"
    )


def test_a_slow_network_is_calibrated_with_fewer_draws(cli: Cli, folder: Path) -> None:
    np.savez("few.npz", images=digits_test().images[:60], labels=digits_test().labels[:60])
    whole = json.loads(Path("m", MANIFEST).read_text())
    Path("m", MANIFEST).write_text(json.dumps({**whole, "cost": {"parameters": 1, "flops": 10**9}}))
    result = cli("calibrate", "m", "few.npz", "--write")
    assert result.code == 0, result.err
    assert "note: full runs of 32 draws and 1 noise seed, because more evaluations of this network" in result.err
    assert "(full run: 320)" in result.rows["evaluations"]
    calibration = load_bundle("m").model.calibration
    assert calibration is not None
    assert calibration.seeds == 1
    result = cli("calibrate", "m", "few.npz", "--draws", "8", "--seeds", "2", "--out", "cal.json")
    assert "full runs of" not in result.err
    assert "(full run: 80)" in result.rows["evaluations"]
    assert "on 60 images, 2 noise seeds" in result.out


def test_a_chosen_plan_in_a_file_is_used_with_it(cli: Cli, folder: Path) -> None:
    _world(folder)
    before = _states(folder / "w")
    result = cli("calibrate", "w", "w.npz", *QUICK, "--choose", "--first", "0.8", "--out", "cal.json")
    assert result.code == 0, result.err
    assert result.err.endswith("--model w --calibration cal.json\n")
    kept = json.loads(Path("cal.json").read_text())["defaults"]
    assert kept["first"] == [0.8]
    assert set(kept) == {"levels", "weighting", "loss", "first", "draws", "temperature"}
    told = provenance_of(cli, "a.npy", "--model", "w", "--calibration", "cal.json")
    assert told["rule"]["name"] == "calibrated"
    assert (told["plan"]["levels"], told["plan"]["first"]) == (kept["levels"], [0.8])
    assert _states(folder / "w") == before


def test_a_band_that_is_far_from_the_best_is_pointed_out(cli: Cli, folder: Path) -> None:
    _world(folder)
    note, last = cli("calibrate", "w", "w.npz", *QUICK, "--draws", "64").err.splitlines()
    assert re.fullmatch(r"note: levels \S+ to \S+ would give 90.8 % instead of 63.1 % on 65 of .*: --choose", note)
    assert last.startswith("next ")
    assert cli("calibrate", "w", "w.npz", *QUICK, "--draws", "64", "--quiet").err == ""
    assert "note" not in cli("calibrate", "w", "w.npz", *QUICK, "--levels", "0.05", "0.1").err


def test_bands_are_not_compared_where_that_takes_too_long(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdc.inference.choosing_images._MOST_CELLS", 50)
    _world(folder)
    note, _ = cli("calibrate", "w", "w.npz", *QUICK).err.splitlines()
    assert note.startswith("note: no plan is chosen: on 50 images at 64 draws")
    assert "note: the plan is chosen on 50 of " in cli("calibrate", "w", "w.npz", *QUICK, "--choose").err


def test_the_band_is_judged_by_all_classes_where_these_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    model, labels = fastdc.load("digits-mlp"), np.arange(40) % 2
    asked: list[Any] = []

    def stop(_: Any, known: Any, **__: Any) -> Any:
        asked.append(known)
        raise InputError("enough")

    monkeypatch.setattr(calibrate_choice, "choose_plan", stop)
    bundle = load_bundle(find_model("digits-mlp"))
    with pytest.raises(InputError, match="enough"):
        calibrate_choice.better_levels(model, bundle, digits_test().images[:40], labels, most=10**9, quiet=True)
    assert np.bincount(asked[0]).tolist() == [10, 10]


def test_without_labels_the_first_draw_is_chosen(cli: Cli, folder: Path) -> None:
    np.save("unknown.npy", digits_test().images[:70])
    result = cli("calibrate", "m", "unknown.npy", *QUICK, "--choose", "--write")
    assert result.code == 0, result.err
    assert "without labels, only the first draw" in result.out
    assert "accuracy " not in result.out
    model = load_bundle("m").model
    assert (model.defaults.levels, model.defaults.draws) == ((0.2, 2.0), 16)
    assert model.calibration is not None
    assert model.calibration.images == 35


# --- refusing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "naming"),
    [
        (("m",), "DATA"),
        (("no-such-model", "b.npz"), "no-such-model"),
        (("m", "missing.npz"), "missing.npz"),
        (("m", "b.npz", "--delta", "0.01"), "delta = 0.01 needs at least 99 validation images, got 70"),
        (("m", "a.npy", "--delta", "0.1"), "at least 9"),
        (("m", "b.npz", "--delta", "0"), "delta"),
        (("m", "b.npz", "--delta", "1"), "delta"),
        (("m", "b.npz", "--delta", "nan"), "delta"),
        (("m", "b.npz", *QUICK, "--seeds", "0"), "seeds"),
        (("m", "b.npz", *QUICK, "--seeds", "-2"), "seeds"),
        (("m", "b.npz", *QUICK, "--draws", "0"), "draws"),
        (("m", "b.npz", *QUICK, "--first", "1e6"), "first"),
        (("m", "b.npz", *QUICK, "--levels", "2", "1"), "levels"),
        (("m", "b.npz", *QUICK, "--levels", "0.3", "2", "--write"), "--levels"),
        (("m", "b.npz", *QUICK, "--weighting", "vlb", "--write"), "--weighting"),
        (("m", "b.npz", *QUICK, "--loss", "l1", "--write"), "--loss"),
        (("m", "b.npz", *QUICK, "--denoiser", "mean"), "method dc does not denoise"),
        (("m", "a.npy", "--delta", "0.2", "--level-weights"), ".npz"),
        (("m", "b.npz", "b.npz", "--level-weights"), "one labelled folder"),
        (("m", "b.npz", *QUICK, "--out", "b.npz"), "b.npz"),
        (("m", "b.npz", *QUICK, "--out", "no/such/cal.json"), "no/such"),
        (("m", "b.npz", *QUICK, "--out", "digits"), "digits"),
        (("digits-mlp", "b.npz", *QUICK, "--write"), "comes with fastdc"),
        (("m", "b.npz", *QUICK, "--choose", "--sigma", "0.1"), "without noise: expected no --sigma"),
        (
            ("m", "b.npz", "--choose", "--delta", "0.01"),
            "--choose needs 10 images beside those of --delta 0.01, got 70",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_the_work(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], naming: str
) -> None:
    monkeypatch.setattr("fastdc.inference.job.Job.run", None)  # work would fail with a traceback
    before = _states(folder)
    cli.refuses("calibrate", *args, naming=naming)
    assert _states(folder) == before


def test_level_weights_that_are_not_there_are_refused(cli: Cli, folder: Path) -> None:
    cli.refuses("classify", "a.npy", "--model", "m", "--level-weights", naming="level weights")
