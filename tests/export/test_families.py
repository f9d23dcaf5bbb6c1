"""Every family from its own format to a bundle: the same errors and classes as torch, in a process without torch."""

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from fastdc.classifier import DiffusionClassifier
from fastdc.loading import load
from helpers.paths import ROOT

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx

from fastdc.backends import NetworkOptions, OnnxNetwork
from fastdc.bundle import CLASSES, DENOISER, ENCODER, PREFIX, REST, TABLES, TEXT, Bundle, load_bundle, prompts_of
from fastdc.export import compare_errors, torch_classifier
from fastdc.sources import Source
from helpers.exported import FAMILIES, HIDDEN, exported, random_images, run_without

TEXTS = ("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3")
LATENTS = ("dit", *TEXTS)


@pytest.fixture(params=FAMILIES)
def made(request: pytest.FixtureRequest, shared: Path) -> tuple[Source, Bundle]:
    """A family's source and its bundle."""
    return exported(request.param, shared)


def test_the_bundle_has_the_errors_of_torch(made: tuple[Source, Bundle]) -> None:
    source, bundle = made
    found = compare_errors(source, bundle, random_images(source, 5))
    assert found.images == 5
    assert found.cells == 5 * len(source.model.conditions) * 4
    assert 0 < found.relative < 1e-4  # equal errors would mean that torch was compared with itself
    assert found.differing == 0
    assert found.same + found.ties >= 5


def test_classes_draws_and_the_null_class_are_told_apart(made: tuple[Source, Bundle]) -> None:
    """Errors of two classes, two draws or two images are never equal: each reaches the graph."""
    source, bundle = made
    errors = load(bundle, backend="onnx", device="cpu").errors(random_images(source, 2), draws=3).errors
    assert errors.shape == (2, len(source.model.conditions), 3)
    assert len(np.unique(errors)) == errors.size
    null = source.model.null_class
    assert null == len(source.model.conditions)  # each of these models knows "no class"
    network = OnnxNetwork(bundle, NetworkOptions(batch=2, threads=1))
    slot = network.slots[0]
    for count, label in ((2, null), (2, 0)):
        slot.sample[:] = 0.5
        slot.timestep[:] = 0.25
        slot.class_labels[:] = label
        slot.cells[:, :] = 0
        slot.run(count)
        if label == null:
            empty = slot.output.copy()
    assert np.abs(empty - slot.output).max() > 1e-4


def test_the_parts_compute_what_the_whole_does(made: tuple[Source, Bundle]) -> None:
    source, bundle = made
    assert REST in bundle.files
    images = random_images(source, 3)
    tables = []
    for split, batch in ((False, 64), (True, 64), (True, 7)):  # at 7, pairs end in the middle of a step
        opened = load(bundle, backend="onnx", device="cpu")
        network = OnnxNetwork(bundle, NetworkOptions(batch=batch), split=split)
        assert network.split is split
        tables.append(DiffusionClassifier(bundle.model, network, opened.encoder).errors(images, draws=3).errors)
    for table in tables[1:]:
        np.testing.assert_allclose(table, tables[0], rtol=1e-5)


def test_a_full_classification_is_that_of_torch(made: tuple[Source, Bundle]) -> None:
    source, bundle = made
    images = random_images(source, 4)
    want = torch_classifier(source).classify(images, rule="full", draws=5)
    got = load(bundle, backend="onnx", device="cpu").classify(images, rule="full", draws=5)
    assert np.array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.errors, want.errors, rtol=1e-4)


def test_the_manifest_describes_the_source(made: tuple[Source, Bundle]) -> None:
    source, bundle = made
    bundle.verify()
    model, want = bundle.model, source.model
    for field in ("name", "image_shape", "latent_shape", "class_names", "prompts", "class_of", "null_class"):
        assert getattr(model, field) == getattr(want, field)
    assert model.schedule == want.schedule
    assert model.parameterization == want.parameterization
    assert model.value_range == want.value_range
    provenance, cost = bundle.manifest["provenance"], bundle.manifest["cost"]
    assert provenance["family"] == source.family
    assert {key: provenance[key] for key in source.provenance} == source.provenance
    assert {"torch", "onnx", "onnxscript"} <= set(provenance)
    graphs = {"denoiser": True, "encoder": source.family in LATENTS, "text": source.family in TEXTS}
    for part, expected in graphs.items():
        assert (f"{part}_max_difference" in provenance) is expected
    assert 0 < provenance["denoiser_max_difference"] < 1e-3
    assert 0 <= provenance["parts_max_difference"] < 1e-3
    assert provenance["denoiser_checked_at_batches"] == "1, 3, 65"
    assert cost["parameters"] > 0
    assert cost["pair_flops"] + cost["class_flops"] + cost["cell_flops"] == pytest.approx(cost["flops"], rel=0.01)
    assert cost["pair_flops"] > 0
    files = set(bundle.files)
    assert {DENOISER, REST} <= files
    assert (ENCODER in files) is (source.family in LATENTS)
    assert ({TABLES, TEXT, "tokenizer.json"} <= files) is (source.family in TEXTS)
    assert {PREFIX, CLASSES} & files


def _searched(file: Path) -> bytes:
    """The content of a file without its weights, which may hold any sequence of bytes."""
    content = file.read_bytes()
    if file.suffix == ".data":
        return b""
    if file.suffix == ".safetensors":
        return content[: 8 + struct.unpack("<Q", content[:8])[0]]
    if file.suffix == ".onnx":
        model = onnx.load_from_string(content)
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
        return bytes(model.SerializeToString())
    return content


def test_nothing_of_this_machine_is_in_a_file(made: tuple[Source, Bundle], shared: Path) -> None:
    _, bundle = made
    here = [str(shared), str(ROOT), str(Path.home())]
    forms = [re.escape(path).encode() for path in here if len(path) > 1]
    forms += [rb"site-packages", rb"\.py\b", rb'File "', rb"stack_trace", rb"/tmp/", rb"/work"]
    for name in (*bundle.files, "fastdc.json"):
        content = _searched(bundle.path / name)
        assert [form for form in forms if re.search(form, content)] == [], name


CLASSIFY = """
import json, sys
import numpy as np
from fastdc import load
images = np.load(sys.argv[2])
found = load(sys.argv[1]).classify(images, rule="full", draws=5)
print(json.dumps({"labels": found.labels.tolist(), "errors": found.errors.tolist()}))
"""


def test_it_classifies_without_the_packages_of_its_maker(made: tuple[Source, Bundle], tmp_path: Path) -> None:
    source, bundle = made
    images = random_images(source, 4)
    np.save(tmp_path / "images.npy", images)
    shutil.copytree(bundle.path, tmp_path / "moved")
    found = json.loads(run_without(CLASSIFY, tmp_path / "moved", tmp_path / "images.npy"))
    want = load(bundle, backend="onnx", device="cpu").classify(images, rule="full", draws=5)
    assert found["labels"] == want.labels.tolist()
    assert found["errors"] == want.errors.tolist()


def test_the_packages_are_hidden() -> None:
    program = """
import importlib, sys
for name in sys.argv[1].split(","):
    try:
        importlib.import_module(name)
    except ImportError:
        print(name)
"""
    assert run_without(program, HIDDEN).split() == HIDDEN.split(",")


ASK = """
import json, sys
import numpy as np
from fastdc import load
from fastdc.backends import with_prompts
from fastdc.bundle import load_bundle, prompts_of
asked = with_prompts(load_bundle(sys.argv[1]), prompts_of(("blue", "red cube", "zebra"), ("a photo of {}", "the {}")))
found = load(asked).classify(np.load(sys.argv[2]), rule="full", draws=5)
print(json.dumps({"labels": found.labels.tolist(), "errors": found.errors.tolist()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXTS)
def test_other_prompts_give_the_errors_of_torch_without_its_packages(family: str, tmp_path: Path, shared: Path) -> None:
    """Tokenizers and text encoder of the bundle against those of transformers, through to the errors."""
    from dataclasses import replace

    source, bundle = exported(family, shared)
    images = random_images(source, 3)
    np.save(tmp_path / "images.npy", images)
    found = json.loads(run_without(ASK, bundle.path, tmp_path / "images.npy"))
    prompts = prompts_of(("blue", "red cube", "zebra"), ("a photo of {}", "the {}"))
    assert source.text is not None
    model = replace(
        source.model,
        class_names=prompts.class_names,
        prompts=prompts.texts,
        class_of=prompts.class_of,
        null_class=len(prompts),
    )
    other = replace(source, model=model, tables=source.text.tables(prompts.texts))
    want = torch_classifier(other).classify(images, rule="full", draws=5)
    assert found["labels"] == want.labels.tolist()
    np.testing.assert_allclose(found["errors"], want.errors, rtol=1e-4)


def test_a_changed_weight_is_noticed(tmp_path: Path, shared: Path) -> None:
    source, bundle = exported("module", shared)
    shutil.copytree(bundle.path, tmp_path / "changed")
    data = bytearray((tmp_path / "changed" / "denoiser.data").read_bytes())
    data[1] ^= 1
    (tmp_path / "changed" / "denoiser.data").write_bytes(data)
    with pytest.raises(Exception, match=r"denoiser\.data is corrupt"):
        compare_errors(source, load_bundle(tmp_path / "changed"))
