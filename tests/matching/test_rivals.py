"""CLIP, SigLIP and ViLT score as transformers' own classes do, on files and arrays; what is none is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402

import fastdc  # noqa: E402
from fastdc.matching import ClipMatcher, Trials, ViltMatcher  # noqa: E402
from fastdc.sources import open_image_text  # noqa: E402
from fastdc.support import Interrupted, PromptWarning  # noqa: E402
from fastdc.testing import tiny_image_text  # noqa: E402

KINDS = ("clip", "siglip", "siglip2", "vilt")
NETWORKS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
NETWORKS |= {"vilt": "ViltForImageAndTextRetrieval"}
PROCESSORS = {"clip": "CLIPImageProcessorPil", "siglip": "SiglipImageProcessorPil"}
PROCESSORS |= {"siglip2": "Siglip2ImageProcessorPil", "vilt": "ViltImageProcessorPil"}
TEXTS = ("a photo of a red cube", "a photo of a blue cube", "a cone", "the red cone of a blue cube", "a cube")
OWN = ((0, 1), (2, 0, 3, 1), (4, 3), (1, 0, 2))  # the candidates of four images, with lists of different lengths
SIZES = ((20, 30), (20, 30), (40, 24), (16, 16))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_image_text(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four pictures: of two sizes, upright and on its side, one of them with a palette."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    paths = []
    for i, size in enumerate(SIZES):
        picture = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        if i == 3:
            picture = picture.quantize(16)
        picture.save(folder / f"{i}.png")
        paths.append(str(folder / f"{i}.png"))
    return paths


def trials_of(images: Any) -> Trials:
    return Trials.of(images, [[TEXTS[p] for p in own] for own in OWN[: len(images)]])


def matcher_of(folder: Path, kind: str, **options: Any) -> ClipMatcher | ViltMatcher:
    return (ViltMatcher if kind == "vilt" else ClipMatcher)(folder, device="cpu", threads=1, **options)


def oracle(folder: Path, kind: str) -> Callable[[Image.Image, list[str]], list[float]]:
    """Scores of one image and some texts as transformers' own processor, tokenizer and network make them."""
    processor = getattr(transformers, PROCESSORS[kind]).from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = getattr(transformers, NETWORKS[kind]).from_pretrained(folder)
    how = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": 12}

    def scores(picture: Image.Image, texts: list[str]) -> list[float]:
        pixels = processor(images=picture.convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            if kind == "vilt":
                return [float(network(**tokenizer(text, return_tensors="pt"), **pixels).logits) for text in texts]
            found = network(**tokenizer(texts, return_tensors="pt", **how), **pixels)
            return [float(value) for value in found.logits_per_image[0]]

    return scores


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers(kind: str, folders: dict[str, Path], files: list[str]) -> None:
    trials = trials_of(files)
    told: list[tuple[int, int]] = []
    matched = matcher_of(folders[kind], kind, batch=3).match(trials, lambda *done: told.append(done))
    scores_of = oracle(folders[kind], kind)
    for i, path in enumerate(files):
        with Image.open(path) as picture:
            wanted = scores_of(picture, list(trials.texts_of(i)))
        np.testing.assert_allclose(matched.scores[i], wanted, rtol=0, atol=2e-5 * max(1.0, np.abs(wanted).max()))
        assert matched.answers[i] == np.argmax(wanted)
        assert np.ptp(wanted) > 1e-3  # or nothing was compared
    assert matched.evaluations.tolist() == [len(own) for own in OWN]
    assert (matched.name, matched.facts["kind"], told[-1]) == (kind, kind, (4, 4))
    assert matched.facts["fastdc"] == fastdc.__version__


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_score_as_their_files(kind: str, folders: dict[str, Path], files: list[str]) -> None:
    matcher = matcher_of(folders[kind], kind)
    levels = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in files[:2]])
    known = matcher.match(trials_of(files[:2]))
    for images in (levels, levels.astype(np.float32) / 255):
        found = matcher.match(trials_of(images))
        for one, other in zip(found.scores, known.scores, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["clip", "vilt"])
def test_batches_change_nothing(kind: str, folders: dict[str, Path], files: list[str]) -> None:
    one, many = (matcher_of(folders[kind], kind, batch=batch).match(trials_of(files)) for batch in (1, 100))
    for a, b in zip(one.scores, many.scores, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_vilt_leaves_torch_its_random_numbers_and_repeats_itself(tmp_path: Path, files: list[str]) -> None:
    folder = tiny_image_text(tmp_path / "vilt", "vilt", max_image_length=3)  # which drops patches at random
    matcher = matcher_of(folder, "vilt", name="mine")
    state = torch.random.get_rng_state()
    first = matcher.match(trials_of(files))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    again = matcher.match(trials_of(files))
    assert [one.tolist() for one in first.scores] == [one.tolist() for one in again.scores]
    assert first.name == "mine"


def test_no_bars_are_drawn(folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    open_image_text(folders["clip"], ["clip"]).save(tmp_path / "saved")
    assert capfd.readouterr() == ("", "")
    transformers.CLIPModel.from_pretrained(tmp_path / "saved")
    assert "Loading weights" in capfd.readouterr().err  # where others ask for them


def test_a_grey_image_is_a_coloured_one_without_colour(folders: dict[str, Path]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (1, 1, 20, 20), dtype=np.uint8)
    matcher = matcher_of(folders["clip"], "clip")
    one, other = (matcher.match(trials_of(images)) for images in (grey, np.repeat(grey, 3, axis=1)))
    np.testing.assert_array_equal(one.scores[0], other.scores[0])


@pytest.mark.parametrize("kind", ["clip", "vilt"])
def test_ctrl_c_keeps_what_is_finished(kind: str, folders: dict[str, Path], files: list[str]) -> None:
    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    matcher = matcher_of(folders[kind], kind, batch=1)
    with pytest.raises(Interrupted, match="interrupted: 2 of 4 images") as caught:
        matcher.match(trials_of(files), stop)
    assert caught.value.result.rows.tolist() == [0, 1]
    assert [len(one) for one in caught.value.result.scores] == [2, 4]


@pytest.mark.parametrize("kind", ["clip", "siglip", "vilt"])
def test_what_the_network_does_not_read_is_told(kind: str, folders: dict[str, Path], files: list[str]) -> None:
    long = "a photo of the red cube to the right of a blue cone"
    trials = Trials.of(files[:1], [[long, "a cone", "A  Cone"]])
    with pytest.warns(PromptWarning) as told:
        matcher_of(folders[kind], kind).match(trials)
    lines = [str(one.message) for one in told]
    assert any(f"{kind} reads at most 12 tokens: {long!r} loses" in line for line in lines)
    assert any("the same: 'a cone' and 'A  Cone'" in line for line in lines)


@pytest.mark.parametrize("kind", ["clip", "vilt"])
def test_texts_that_are_the_same_to_the_network_tie(kind: str, folders: dict[str, Path]) -> None:
    """Rounding differs with a pair's place in a batch, and with the texts beside it: it must not answer for the model.

    The right text comes first, and the last of the tied answers.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 3, 40, 40), dtype=np.uint8)
    others = [f"cube {'cone ' * (k % 5)}{k}" for k in range(70)]  # of other lengths, for more than one batch of texts
    lists = [["a red cube", *others[i : i + 1 + i % 4], "a RED cube"] for i in range(30)]
    lists.append(["a cube", *others, "a red cube", "a Red cube"])
    with pytest.warns(PromptWarning, match="the same"):
        found = matcher_of(folders[kind], kind).match(Trials.of(np.concatenate([images, images[:1]]), lists))
    assert all(scores[0] == scores[-1] for scores in found.scores[:-1])
    assert found.scores[-1][-2] == found.scores[-1][-1] == pytest.approx(found.scores[0][0], rel=1e-5)
    assert 0 not in found.answers[:-1]


def test_images_are_checked_before_any_work(folders: dict[str, Path], files: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(Path(files[0]).read_bytes()[:200])
    matcher = matcher_of(folders["clip"], "clip")
    told: list[int] = []
    for path, line in ((tmp_path / "broken.png", "broken.png"), (tmp_path / "no.png", "no.png: does not exist")):
        with pytest.raises(fastdc.InputError, match=line):
            matcher.match(Trials.of([files[0], str(path)], [["a"], ["a"]]), lambda done, _: told.append(done))
    with pytest.raises(fastdc.InputError, match=r"must be in \[0, 1\]"):
        matcher.match(trials_of(np.full((1, 3, 8, 8), 2.0)))
    assert told == []


def damaged(folder: Path, place: Path, **config: Any) -> Path:
    """A copy of a model's folder, with another config."""
    shutil.copytree(folder, place)
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return place


def test_another_model_is_refused_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(fastdc.InputError, match=r"nowhere does not exist: expected a folder with config\.json"):
        ClipMatcher("nowhere")
    with pytest.raises(fastdc.BundleError, match="expected a model_type of clip, siglip, siglip2, got 'vilt'"):
        ClipMatcher(folders["vilt"])
    with pytest.raises(fastdc.BundleError, match="expected a model_type of vilt, got 'clip'"):
        ViltMatcher(folders["clip"])
    other = damaged(folders["vilt"], tmp_path / "qa", architectures=["ViltForQuestionAnswering"])
    with pytest.raises(fastdc.BundleError, match="expected a ViltForImageAndTextRetrieval, got 'ViltForQuestion"):
        ViltMatcher(other)
    with pytest.raises(fastdc.BundleError, match="auto_map is not supported"):
        ClipMatcher(damaged(folders["clip"], tmp_path / "code", auto_map={"AutoModel": "mine.Model"}))
    with pytest.raises(fastdc.InputError, match="device must be auto, cpu, cuda or cuda:N, got 'tpu'"):
        ClipMatcher(folders["clip"], device="tpu")
    with pytest.raises(fastdc.InputError, match="batch must be"):
        ClipMatcher(folders["clip"], batch=0)


@pytest.mark.parametrize("key", ["auto_map", "attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("kind", ["clip", "vilt"])
def test_code_that_a_config_names_is_never_fetched(
    key: str, kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers takes "attn_implementation": "org/kernel" for a repository whose code it fetches and runs."""

    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("code was asked for")

    kernels = pytest.importorskip("transformers.integrations.hub_kernels")
    for name in ("load_and_register_attn_kernel", "get_kernel"):
        for place in (kernels, transformers.modeling_utils):
            monkeypatch.setattr(place, name, fetched, raising=False)
    value: Any = {"AutoModel": "mine.Model"} if key == "auto_map" else "kernels-community/flash-attn"
    with pytest.raises(fastdc.BundleError, match=f"{key} is not supported"):
        matcher_of(damaged(folders[kind], tmp_path / "whole", **{key: value}), kind)
    if kind == "clip":
        inner = json.loads((folders[kind] / "config.json").read_text())["text_config"] | {key: value}
        with pytest.raises(fastdc.BundleError, match=f"{key} is not supported"):
            matcher_of(damaged(folders[kind], tmp_path / "inner", text_config=inner), kind)


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "found no model.safetensors"),
        ("tokenizer.json", "has no tokenizer"),
        ("preprocessor_config.json", "has no image processor"),
    ],
)
def test_an_incomplete_folder_is_refused(folders: dict[str, Path], tmp_path: Path, lost: str, told: str) -> None:
    place = damaged(folders["clip"], tmp_path / "part")
    (place / lost).unlink()
    with pytest.raises(fastdc.BundleError, match=told):
        ClipMatcher(place)


def test_weights_must_be_complete_and_no_pickle(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    headless = damaged(folders["vilt"], tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    save_file({name: one for name, one in weights.items() if "rank" not in name}, headless / "model.safetensors")
    with pytest.raises(fastdc.BundleError, match="vilt"):
        ViltMatcher(headless)
    renamed = {name.replace("rank_output", "rank_other"): one for name, one in weights.items()}
    save_file(renamed, headless / "model.safetensors")
    with pytest.raises(fastdc.BundleError, match=r"missing keys: rank_output\.bias"):
        ViltMatcher(headless)
    pickled = damaged(folders["clip"], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(fastdc.BundleError, match=r"pytorch_model\.bin is a pickle, which is not read"):
        ClipMatcher(pickled)


def test_a_network_that_gives_nan_is_refused(folders: dict[str, Path], files: list[str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    place = damaged(folders["clip"], tmp_path / "nan")
    weights = load_file(place / "model.safetensors")
    weights["text_projection.weight"][0, 0] = float("nan")
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(fastdc.BackendError, match="gives NaN"):
        ClipMatcher(place).match(trials_of(files))
