"""The shapes pipeline: its tokenizer, its training, which repeats itself, its files, and its score.

The training here is far too short to tell texts apart. The tests are slow because importing diffusers takes seconds.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from fastdc.testing import SCENE_TASKS, scene_groups, scenes  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the scripts compute; more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The scripts of models/."""
    return {name: importlib.import_module(name) for name in ("make_scenes", "train_shapes", "score_shapes")}


@pytest.fixture(scope="module")
def data(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training images of each task, all tables, and images of two objects to ask about."""
    folder = tmp_path_factory.mktemp("scenes")
    make = scripts["make_scenes"]
    make.write_tables(folder)
    make.write_training(folder, {task: scenes(task, "train", 10) for task in SCENE_TASKS})
    for task, split in (("single", "ood_val"), ("two_object", "ood_val"), ("relational", "ID_test")):
        make.write_images(folder, task, split, scenes(task, split, 12))
    return folder


@pytest.fixture(scope="module")
def examples(scripts: dict[str, ModuleType], data: Path) -> Any:
    return scripts["train_shapes"].read_examples(data / "scenes-train.npz")


@pytest.fixture(scope="module")
def train(scripts: dict[str, ModuleType], data: Path) -> Any:
    """A function that trains up to a step and writes the pipeline to a folder."""

    def run(out: Path, stop_at: int = 6) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scripts["train_shapes"], "AUTOENCODER", (8, 2e-3))
            of = scripts["train_shapes"].Phase
            patch.setattr(
                scripts["train_shapes"],
                "PHASES",
                (of(4, 1e-3, 4, 0.0, None), of(2, 1e-3, 2, 0.5, 0.5, True, ("left",))),
            )
            arguments = [str(data), str(out), "--seed", "3", "--stop-at", str(stop_at)]
            patch.setattr("sys.argv", ["train_shapes.py", *arguments])
            scripts["train_shapes"].main()
        return out

    return run


@pytest.fixture(scope="module")
def pipeline(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return diffusers.StableDiffusionPipeline.from_pretrained(train(tmp_path_factory.mktemp("pipeline")))


def test_every_word_is_one_token(scripts: dict[str, ModuleType]) -> None:
    texts = [text for task in SCENE_TASKS for group in scene_groups(task, "train") for text in group.captions]
    tokenizer = scripts["train_shapes"].clip_tokenizer(texts, scripts["train_shapes"].LENGTH)
    unseen = [text for task in SCENE_TASKS for group in scene_groups(task, "ood_test") for text in group.captions]
    for text in {*texts, *unseen}:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
        assert tokens == ["<|startoftext|>", *(f"{word}</w>" for word in text.split()), "<|endoftext|>"]
        assert len(tokens) <= 16


def test_other_texts_have_tokens_too(scripts: dict[str, ModuleType]) -> None:
    """At worst the tokens are bytes, so that no text is unknown: the end token stands only at the end."""
    tokenizer = scripts["train_shapes"].clip_tokenizer(["a photo of a red cone"], scripts["train_shapes"].LENGTH)
    ids = tokenizer("Zwölf 7!").input_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "zwölf7!"
    table = scripts["train_shapes"].token_table(tokenizer, ["a photo of a red cone"])
    assert table.shape == (2, 16)
    assert table[-1].tolist() == [tokenizer.bos_token_id, *[tokenizer.eos_token_id] * 15]


def test_the_texts_of_an_image_are_true_and_equally_likely(examples: Any) -> None:
    for task, start in zip(SCENE_TASKS, range(0, 50, 10), strict=True):
        for row, group in enumerate(scenes(task, "train", 10, size=1).groups, start):
            options = [examples.texts[k] for k in examples.options[row].tolist()]
            expected = group.captions[:1] if task == "two_object" else group.captions
            assert set(options) == set(expected)
            assert {options.count(text) for text in options} == {len(options) // len(expected)}
            assert bool(examples.mirrored[row]) == (task != "relational")
            left = [text for text in expected if "to the left of" in text]
            assert examples.left[row] == (examples.texts.index(left[0]) if left else -1)


def test_mirroring_turns_the_chosen_images(scripts: dict[str, ModuleType]) -> None:
    batch = torch.arange(12.0).reshape(2, 1, 2, 3)
    turned = scripts["train_shapes"].mirror(batch, torch.tensor([True, False]))
    assert turned[0, 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert torch.equal(turned[1], batch[1])


def test_the_pipeline_is_small_and_complete(pipeline: Any) -> None:
    assert type(pipeline.tokenizer).__name__ == "CLIPTokenizer"
    assert pipeline.safety_checker is None
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    count = sum(p.numel() for part in ("vae", "text_encoder", "unet") for p in getattr(pipeline, part).parameters())
    assert count < 1.4e6  # parameters of 4 bytes
    assert pipeline.text_encoder.config.eos_token_id == pipeline.tokenizer.eos_token_id


def test_an_interrupted_training_gives_the_same_result(pipeline: Any, train: Any, tmp_path: Path) -> None:
    train(tmp_path, 2)
    again = diffusers.StableDiffusionPipeline.from_pretrained(train(tmp_path))
    for part in ("vae", "text_encoder", "unet"):
        one, two = getattr(pipeline, part).state_dict(), getattr(again, part).state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one | two), part
    assert again.vae.config.scaling_factor == pipeline.vae.config.scaling_factor


def test_latents_are_scaled_to_unit_variance(pipeline: Any, examples: Any) -> None:
    with torch.no_grad():
        latents = pipeline.vae.encode(examples.images).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert latents.shape == (50, 4, 8, 8)
    assert abs(latents.std().item() - 1) < 0.2  # the script measures every tenth image


def test_the_pipeline_makes_images(pipeline: Any) -> None:
    """diffusers' own sampler makes an image from a text: noise after so few steps, but of the right shape."""
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a photo of a red cone", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
    assert np.isfinite(images).all()


def test_errors_are_those_of_the_definition(pipeline: Any, scripts: dict[str, ModuleType]) -> None:
    """The same errors from diffusers' scheduler: its noisy sample and its velocity."""
    rng = torch.Generator().manual_seed(0)
    z, states = torch.randn((4, 8, 8), generator=rng), torch.randn((3, 16, 48), generator=rng)
    steps = [100, 900]
    with torch.no_grad():
        errors = scripts["score_shapes"].text_errors(pipeline, z, steps, states, 5)
        scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
        eps = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5))
        for draw, step in enumerate(steps):
            t = torch.tensor([step])
            noisy = scheduler.add_noise(z[None], eps[draw : draw + 1], t)
            velocity = scheduler.get_velocity(z[None], eps[draw : draw + 1], t)
            for text in range(3):
                v = pipeline.unet(noisy, t, states[text : text + 1]).sample
                expected = (v - velocity).square().mean().item()
                assert errors[draw, text] == pytest.approx(expected, rel=1e-4)


def test_questions_are_those_of_the_tables(scripts: dict[str, ModuleType], data: Path) -> None:
    read = scripts["score_shapes"].read_questions
    single = read(data, "single", "ood_val", False, 4)
    assert [(one.path.parent.name, one.right, len(one.texts)) for one in single] == [
        ("brown sphere", 7, 32),
        ("cyan cone", 8, 32),
        ("gray cylinder", 14, 32),
        ("yellow cube", 29, 32),
    ]
    for zsl, count in ((False, 31), (True, 14)):
        two = read(data, "two_object", "ood_val", zsl, 12)
        assert len(two) == 12
        assert {(one.texts[0], one.right, len(one.texts)) for one in two} == {
            (f"a photo of a {name}", 0, count) for name in ("brown sphere", "cyan cone", "gray cylinder", "yellow cube")
        }


def test_the_score_counts_right_answers(scripts: dict[str, ModuleType], data: Path, pipeline: Any) -> None:
    """A network that denoises perfectly for one text alone is right exactly where that text is."""
    score = scripts["score_shapes"]
    questions = score.read_questions(data, "relational", "ID_test", True, 12)
    favourite = questions[0].texts[0]
    scorer = score.Scorer(pipeline)

    def errors(_: Any, z: Any, steps: list[int], states: Any, seed: int) -> Any:
        target = scorer.states((favourite,))
        return np.array([[0.0 if torch.equal(s, target[0]) else 1.0 for s in states]] * len(steps))

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(score, "text_errors", errors)
        expected = np.mean([one.texts[0] == favourite for one in questions])
        assert scorer.right(questions, [1, 2], 0) == pytest.approx(100 * expected)


def test_phases_follow_each_other(scripts: dict[str, ModuleType]) -> None:
    train = scripts["train_shapes"]
    one, two = train.Phase(1000, 2.0, 2000, 0.0, None), train.Phase(400, 1.0, 400, 1.0, 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "PHASES", (one, two))
        assert [train.phase_of(step) for step in (0, 999, 1000, 1399)] == [(0, one), (999, one), (0, two), (399, two)]
        with pytest.raises(ValueError, match="over"):
            train.phase_of(1400)
    found = [train.falling(step, 400, 1.0) for step in (0, 99, 200, 400)]
    assert found == pytest.approx([0.01, 0.5 + 0.5 * np.cos(np.pi * 99 / 400), 0.5, 0.0])


def test_renewed_words_get_other_embeddings(scripts: dict[str, ModuleType], examples: Any) -> None:
    """In the text encoder and in its average, and only theirs."""
    train = scripts["train_shapes"]
    denoiser = train.Denoiser(train.clip_tokenizer(examples.texts, train.LENGTH), examples.texts)
    both = [text.get_input_embeddings().weight for text in (denoiser.text, denoiser.average[0])]
    before = both[0].detach().clone()
    denoiser.renew([3, 500], torch.Generator().manual_seed(0))
    assert torch.equal(*both)
    assert (both[0] != before).any(dim=1).nonzero().ravel().tolist() == [3, 500]
    assert both[0][[3, 500]].std().item() == pytest.approx(0.2, rel=0.25)


def test_relations_have_their_share(scripts: dict[str, ModuleType], examples: Any) -> None:
    """A fifth of the images are of relations; three quarters of the drawn ones are to be."""
    rng = torch.Generator().manual_seed(0)
    for wanted, expected in ((None, 0.2), (0.75, 0.75)):
        found = torch.cat([scripts["train_shapes"].drawn(examples, wanted, rng) for _ in range(20)])
        share = (~examples.mirrored)[found].double().mean().item()
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(found))
        assert len(found.unique()) == 50


def test_levels_find_their_steps(scripts: dict[str, ModuleType]) -> None:
    bars = scripts["train_shapes"].make_scheduler().alphas_cumprod
    ratios = np.sqrt((1 - bars.double().numpy()) / bars.double().numpy())
    assert scripts["score_shapes"].level_steps(bars, ratios[[0, 17, 500, 999]]) == [0, 17, 500, 999]
    assert scripts["score_shapes"].level_steps(bars, np.array([1e-9, 1e9])) == [0, 999]
