"""Latents, prompts and denoisers in parts on the ONNX backend, against the same world in NumPy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import Bundle, DiffusionClassifier, InputError
from fastdc.backends import FunctionNetwork, NetworkOptions, OnnxNetwork
from fastdc.backends.onnx.text_encoder import OnnxTextEncoder
from fastdc.bundle import CLASSES, ENCODER, PREFIX, REST, TABLES, TEXT, TOKENIZERS, Prompts
from fastdc.certification import Fixed, certify_table
from fastdc.support import PromptWarning
from helpers.latent_world import CLASS_OF, MODEL, PROMPTS, Encoder, graph, network, parts, table, write
from helpers.worlds import fails_with, unit_images

onnxruntime: Any = pytest.importorskip("onnxruntime")
IMAGES = unit_images(5, MODEL.image_shape)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write(tmp_path_factory.mktemp("latent") / "world")


def oracle() -> DiffusionClassifier:
    return DiffusionClassifier(MODEL, FunctionNetwork(network, MODEL.sample_shape), Encoder())


def test_a_bundle_of_version_2_holds_the_whole_model(bundle: Bundle) -> None:
    assert bundle.manifest["version"] == 2
    assert replace(bundle.model, identity="") == MODEL


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 128])
def test_errors_are_those_of_the_world_in_numpy(bundle: Bundle, split: bool, batch: int) -> None:
    options = NetworkOptions(batch=batch, threads=2)
    opened = fastdc.load(bundle)
    clf = DiffusionClassifier(bundle.model, OnnxNetwork(bundle, options, split=split), opened.encoder)
    got, want = clf.errors(IMAGES, seed=3).errors, oracle().errors(IMAGES, seed=3).errors
    assert got.shape == (5, len(PROMPTS), MODEL.defaults.draws)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)


def test_a_race_in_parts_is_the_race_of_the_whole(bundle: Bundle) -> None:
    opened = fastdc.load(bundle, batch=16, threads=1)
    assert isinstance(opened.network, OnnxNetwork)
    assert opened.network.split
    whole = DiffusionClassifier(bundle.model, OnnxNetwork(bundle, split=False), opened.encoder)
    one, other = (clf.classify(IMAGES, rule="paired", draws=32) for clf in (opened, whole))
    np.testing.assert_array_equal(one.evaluations, other.evaluations)
    np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("without", [(PREFIX,), (CLASSES,)])
def test_one_part_may_be_missing(tmp_path: Path, without: tuple[str, ...]) -> None:
    """The rest then takes the inputs of the missing part."""
    lines = [("Gather", "class.1 class_labels", "added"), ("Gather", "class.0 class_labels", "scale")]
    lines += [("Reshape", "timestep column", "tau"), ("Add", "sample tau", "noisy"), ("Tanh", "noisy", "shared")]
    taken = "sample timestep class_labels class.0 class.1"
    constants: dict[str, Any] = {"column": np.array([-1, 1, 1, 1])}
    if without == (CLASSES,):
        lines = [("Gather", "pair.0 pair", "shared"), ("Gather", "tenths class_labels", "factors")]
        lines += [("Reshape", "factors column", "scale"), ("Gather", "context class_labels", "rows")]
        lines += [("Add", "rows rows", "twice"), ("Reshape", "twice latent", "added")]
        taken = "pair class_labels pair.0 context"
        constants |= {"tenths": (1 + np.arange(99) / 10).astype(np.float32), "latent": np.array([-1, 1, 2, 2])}
    lines += [("Mul", "shared scale", "scaled"), ("Add", "scaled added", "output")]
    bundle = write(tmp_path / "b", without=without, changes={REST: graph(taken, "output", lines, constants)})
    got = fastdc.load(bundle, batch=7).errors(IMAGES).errors
    np.testing.assert_allclose(got, oracle().errors(IMAGES).errors, rtol=2e-6, atol=1e-7)


def test_shared_parts_run_once_for_all_classes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a full run whose steps hold whole pairs, the prefix evaluates every pair of image and draw once."""
    rows: list[int] = []

    class Recorded(onnxruntime.InferenceSession):  # type: ignore[misc]
        """Notes how many rows the prefix is bound to; it alone has another output than "output"."""

        def io_binding(self) -> Any:
            binding = super().io_binding()
            bind = binding.bind_input

            def noted(name: str, device: str, index: int, dtype: Any, shape: tuple[int, ...], pointer: int) -> None:
                if name == "sample":
                    rows.append(shape[0])
                bind(name, device, index, dtype, shape, pointer)

            if [node.name for node in self.get_outputs()] != ["output"]:
                binding.bind_input = noted
            return binding

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    net = OnnxNetwork(bundle, NetworkOptions(batch=len(PROMPTS) * 4, threads=1))
    DiffusionClassifier(bundle.model, net, Encoder()).errors(IMAGES)
    assert sum(rows) == len(IMAGES) * MODEL.defaults.draws


# --- classes and prompts ---------------------------------------------------------------------------------------------


def test_the_best_prompt_of_a_class_counts(bundle: Bundle) -> None:
    result = fastdc.load(bundle).classify(IMAGES, rule="full")
    of_prompts = result.table.errors.mean(axis=2, dtype=np.float64)
    best = np.stack([of_prompts[:, np.array(CLASS_OF) == k].min(axis=1) for k in range(3)], axis=1)
    np.testing.assert_allclose(result.errors, best, rtol=1e-6)
    np.testing.assert_array_equal(result.labels, best.argmin(axis=1))
    assert result.class_names == MODEL.class_names
    assert result.probabilities.shape == (5, 3)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1)


def test_votes_of_the_prompts_of_a_class_add_up(bundle: Bundle) -> None:
    result = fastdc.load(bundle).classify(IMAGES, rule="full", decision="vote", draws=9)
    winners = result.table.errors.argmin(axis=1)
    votes = np.stack([np.isin(winners, np.flatnonzero(np.array(CLASS_OF) == k)).sum(axis=1) for k in range(3)], axis=1)
    np.testing.assert_array_equal(result.votes, votes)
    np.testing.assert_array_equal(result.votes[np.arange(5), result.labels], votes.max(axis=1))


def test_candidates_are_classes_and_bring_their_prompts(bundle: Bundle) -> None:
    result = fastdc.load(bundle).classify(IMAGES, rule="full", candidates=[[0, 2]] * 5)
    np.testing.assert_array_equal(result.table.counts > 0, np.tile(np.isin(CLASS_OF, [0, 2]), (5, 1)))
    assert not np.any(result.labels == 1)


def test_a_session_takes_images_of_a_latent_model(bundle: Bundle) -> None:
    clf = fastdc.load(bundle)
    with fastdc.Session(clf) as session:
        one = session.submit(IMAGES[0]).result()
    assert one.labels[0] == clf.classify(IMAGES[:1]).labels[0]


def test_methods_that_need_images_and_classes_are_refused(bundle: Bundle) -> None:
    clf = fastdc.load(bundle)
    table = clf.errors(IMAGES)
    likelier, certified = (lambda: clf.maximize_likelihood(IMAGES)), (lambda: certify_table(table, clf.model, cap=1.0))
    for call in (clf.as_module, likelier, certified):
        fails_with(call, "needs a model of images", kind=InputError)
    several = replace(MODEL, latent_shape=None)
    fails_with(lambda: several.check_plain("this"), "this needs one prompt per class", kind=InputError)
    replace(several, prompts=("a", "b", "c"), class_of=(0, 1, 2)).check_plain("this")


def test_certificates_are_of_images_and_classes(bundle: Bundle) -> None:
    """Noisy copies of the image are encoded, and votes count classes."""
    clf, world = fastdc.load(bundle), oracle()
    estimation = Fixed(0.25, 100, 0.01)
    made = clf.certify(IMAGES[:2], estimation, n0=20, base=clf.base(sigma=0.25, rule="full"))
    want = world.certify(IMAGES[:2], estimation, n0=20, base=world.base(sigma=0.25, rule="full"))
    assert [(c.label, c.successes) for c in made] == [(c.label, c.successes) for c in want]
    fails_with(lambda: clf.base(sigma=0.25, method="epndc"), "epndc needs a model of images", kind=InputError)


# --- other prompts ---------------------------------------------------------------------------------------------------


def test_other_prompts_take_the_place_of_the_bundles_own(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    texts = ("green", "a green one", "purple haze")
    csv = tmp_path / "prompts.csv"
    csv.write_text("prompt,classname,classidx\ngreen,g,0\na green one,g,0\npurple haze,p,1\n", encoding="utf-8")
    clf = fastdc.load(bundle, prompts=csv)
    assert clf.class_names == ("g", "p")
    assert clf.model.prompts == texts
    assert clf.model.null_class == 3
    assert clf.model.identity not in ("", bundle.model.identity)
    rows = table(texts)
    model = replace(clf.model, identity="")
    world = DiffusionClassifier(
        model, FunctionNetwork(lambda u, t, k: network(u, t, k, rows), model.sample_shape), Encoder()
    )
    np.testing.assert_allclose(clf.errors(IMAGES).errors, world.errors(IMAGES).errors, rtol=2e-6, atol=1e-7)


def test_what_is_lost_of_other_prompts_is_said(bundle: Bundle) -> None:
    pytest.importorskip("tokenizers")
    with pytest.warns(PromptWarning, match=r"at most 4 tokens: prompt 1 \('a a a a one'\) loses 1 token$"):
        fastdc.load(bundle, prompts=Prompts(("red", "a a a a one"), (0, 1), ("x", "y")))
    for texts in (("a a a a one", "a a a a blue"), ("red", " red ")):
        with pytest.raises(InputError, match="of the classes 'x' and 'y' are the same to the text encoder"):
            fastdc.load(bundle, prompts=Prompts(texts, (0, 1), ("x", "y")))


def test_the_text_encoder_gives_each_text_its_row(bundle: Bundle) -> None:
    pytest.importorskip("tokenizers")
    texts = ["blue", "red", "blue", "a a a a a a a", ""]
    (name, rows), *_ = OnnxTextEncoder(bundle).encode(texts).items()
    assert name == "context"
    np.testing.assert_allclose(rows, table(tuple(texts))[:-1], rtol=1e-6)


def test_a_bundle_without_a_text_encoder_says_so(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", without=(TEXT, TOKENIZERS[0]))
    prompts = Prompts(("x",), (0,), ("x",))
    fails_with(lambda: fastdc.load(bundle, prompts=prompts), "has no text encoder", kind=InputError)


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (TABLES, b"", "conditions.safetensors cannot be read"),
        (TABLES, b"\xff" * 200, "conditions.safetensors cannot be read"),
        (TABLES, (8).to_bytes(8, "little") + b"{}      ", "must map"),
        (TOKENIZERS[0], b"{}", "tokenizer.json: truncation must be an object"),
        (TEXT, b"nothing", "text.onnx cannot be loaded"),
        (ENCODER, b"nothing", "encoder.onnx cannot be loaded"),
        (REST, b"nothing", "rest.onnx cannot be loaded"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path: Path, file: str, content: bytes, says: str) -> None:
    bundle = write(tmp_path / "b", {file: content})
    prompts = Prompts(("red",), (0,), ("red",)) if file in (TEXT, *TOKENIZERS) else None
    fails_with(lambda: fastdc.load(bundle, prompts=prompts), says)


def test_tables_need_a_row_for_each_condition(tmp_path: Path) -> None:
    from safetensors.numpy import save

    for wrong in (table()[:-1], table().astype(np.float64), table()[:, 0]):
        bundle = write(tmp_path / str(wrong.shape) / str(wrong.dtype), {TABLES: save({"context": wrong})})
        fails_with(lambda b=bundle: fastdc.load(b), "'context' must be float32 with 6 rows")  # type: ignore[misc]


def test_a_header_of_a_hundred_gigabytes_is_refused(tmp_path: Path) -> None:
    header = b'{"context":{"dtype":"F32","shape":[6,4294967296],"data_offsets":[0,103079215104]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0" * 64
    fails_with(lambda: fastdc.load(write(tmp_path / "b", {TABLES: content})), "cannot be read")


def test_parts_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    other = graph(
        "pair class_labels pair.0", "output", [("Gather", "pair.0 pair", "output")], {}, **{"pair.0": "context"}
    )
    fails_with(lambda: fastdc.load(write(tmp_path / "b", {REST: other})), "rest.onnx must map")
    fails_with(lambda: write(tmp_path / "c", without=(REST,)), "rest.onnx is missing")
    fails_with(lambda: write(tmp_path / "d", without=(ENCODER,)), "has no encoder.onnx")


def test_shared_weights_are_of_the_bundle_and_no_other_file(tmp_path: Path) -> None:
    """denoiser.data is read once with its digest; any other name, or a second value, is refused."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(parts()[CLASSES])
    (tenths,) = (tensor for tensor in model.graph.initializer if tensor.name == "tenths")
    data = bytes(tenths.raw_data)
    tenths.ClearField("raw_data")
    tenths.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": "denoiser.data", "offset": "0", "length": str(len(data))}
    for key, value in entries.items():
        tenths.external_data.add(key=key, value=value)
    good = model.SerializeToString()
    bundle = write(tmp_path / "good", {CLASSES: good, "denoiser.data": data})
    got = fastdc.load(bundle).errors(IMAGES).errors
    np.testing.assert_allclose(got, oracle().errors(IMAGES).errors, rtol=2e-6, atol=1e-7)
    (tmp_path / "good" / "denoiser.data").write_bytes(bytes(len(data)))
    fails_with(lambda: fastdc.load(bundle), "denoiser.data is corrupt")
    refused = "which may only be denoiser.data"
    fails_with(lambda: fastdc.load(write(tmp_path / "no", {CLASSES: good})), refused)
    for name, wrong in (("up", "../denoiser.data"), ("other", "fastdc.jsonxxx"[:13])):
        changed = good.replace(b"\x0ddenoiser.data", bytes([len(wrong)]) + wrong.encode())
        fails_with(lambda n=name, c=changed: fastdc.load(write(tmp_path / n, {CLASSES: c})), "classes.onnx")  # type: ignore[misc]
    double = b"\x6a\x19\x0a\x08location\x12\x0ddenoiser.data"
    twice = b"\x6a\x22" + double[2:] + b"\x12\x07../fast"
    changed = good.replace(double, twice)
    fails_with(lambda: fastdc.load(write(tmp_path / "twice", {CLASSES: changed, "denoiser.data": data})), "twice")


def test_a_manifest_of_latents_without_an_encoder_object_is_refused() -> None:
    fails_with(
        lambda: DiffusionClassifier(MODEL, FunctionNetwork(network, MODEL.sample_shape)),
        "works on latents",
        kind=InputError,
    )
