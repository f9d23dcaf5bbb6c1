"""A scikit-learn classifier over a diffusion model that exists, or over one that ``fit`` trains.

It adds nothing to the numbers: labels, probabilities and errors are those of ``DiffusionClassifier.classify`` on the
same images, seed and options, to the bit.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Bundle
from fastdc.calibration import check_level, supported_delta
from fastdc.classifier import DiffusionClassifier
from fastdc.estimator.classes import model_classes, training_names, warn_if_renumbered
from fastdc.estimator.origin import Trained, Training, load_options, opened
from fastdc.estimator.pixels import Scale, Shape, as_rows, layout_of, levels, read_shape
from fastdc.inference import Classification, Options, fit_runs, full_runs, merged
from fastdc.support import Float64, InputError, Int64, checks, require
from fastdc.train import check_unseen

require("sklearn", extra="sklearn")

from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.utils import check_random_state  # noqa: E402
from sklearn.utils.metaestimators import available_if  # noqa: E402
from sklearn.utils.multiclass import check_classification_targets  # noqa: E402
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: E402


def _ranks(estimator: "DiffusionClassifierEstimator") -> bool:
    """Whether the classes are ranked by their errors: votes are not."""
    return _options_of(estimator).decision == "mean"


def _options_of(estimator: "DiffusionClassifierEstimator") -> Options:
    """The options of a run, without its seed."""
    given = estimator.options
    if given is not None and not isinstance(given, (Options, Mapping)):
        raise InputError(f"options must be fastdc.Options or a mapping of its fields, got {type(given).__name__}")
    if isinstance(given, Mapping) and "seed" in given:
        raise InputError("options takes no seed: give random_state")
    options = given if isinstance(given, Options) else merged(None, dict(given or {}))
    wanted = {"rule": estimator.rule, "draws": estimator.draws}
    return options.but(**{name: value for name, value in wanted.items() if value is not None})


class DiffusionClassifierEstimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A diffusion classifier with the interface of scikit-learn.

    With `model`, ``fit`` trains nothing: it opens the model, finds the model's class of each label, and fits the
    temperature of the posterior and the race to the data (`calibrate`). Without, it trains a new model on them, keeps a
    part of them aside to fit temperature and race, and exports it as a bundle.

    X is a matrix (n, features), or images (n, c, h, w), (n, h, w, c) or (n, h, w); uint8, or numbers of any range.

    Args:
        model: Name of a shipped model, a bundle's folder, a loaded bundle, or a classifier that ``fastdc.load``
            returned; None: a new one is trained.
        train: The training of a new model: "mlp" or "unet", or a mapping of fields of ``fastdc.train.TrainConfig``, of
            which `val` is the fraction that is kept aside (0.2). X and y decide `data`, and the estimator `out` and
            `seed`.
        calibrate: Whether temperature and race are fitted; a number: the level delta of the race. Of a model that
            exists, they are fitted to all of X, which it must not have been trained on; False leaves its own.
        rule: Rule that stops the evaluation of a class, see ``fastdc.Options``; None: that of `options`.
        draws: Draws per class, see ``fastdc.Options``; None: those of `options`.
        options: Further options of the run: ``fastdc.Options``, or a mapping of its fields.
        classes: Name or number of the model's class for each label, a mapping; None: labels are the names or numbers.
        image_shape: Shape of a row of X as an image, (h, w), (c, h, w) or (h, w, c); None: that of the model's images,
            or a square if one is trained, to which rows of other lengths are padded.
        value_range: Values (black, white) of X; None: (0, 255) of uint8, (0, 1) of floats that lie in it, otherwise the
            smallest and the largest value of the training data, beyond which values are clipped.
        work_dir: Folder in which trainings are kept, each in one of its own, with its bundle. ``fit`` with the same
            data and recipe goes on where it was interrupted; None: a temporary one.
        load: Keywords of ``fastdc.load``, such as {"threads": 1}, a mapping.
        random_state: Seed of the noise and of a training, as for every scikit-learn estimator.
        verbose: Whether a training shows a progress bar.

    Attributes:
        classes_: The K labels of y, sorted. Classes of the model that no label is are not considered.
        classifier_: The ``DiffusionClassifier``, calibrated.
        model_classes_: int64 (K,), the model's class of each label.
        options_: The complete ``fastdc.Options`` of a run.
        image_shape_: (c, h, w) of the images that the model sees.
        value_range_: Values (black, white) that X was mapped from.
        n_features_in_: Number of values of an image.
        folder_: The training's folder in `work_dir`, with ``run/`` and ``bundle/``; None without one.

    Example:
        >>> from fastdc.estimator import DiffusionClassifierEstimator
        >>> estimator = DiffusionClassifierEstimator("digits-mlp", calibrate=False).fit(images, labels)
        >>> estimator.score(images.reshape(20, 64), labels)
        1.0
    """

    def __init__(
        self,
        model: Any = None,
        *,
        train: str | Mapping[str, Any] = "mlp",
        calibrate: bool | float = True,
        rule: Any = None,
        draws: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
        classes: Mapping[Any, str | int] | None = None,
        image_shape: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        load: Mapping[str, Any] | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.train = train
        self.calibrate = calibrate
        self.rule = rule
        self.draws = draws
        self.options = options
        self.classes = classes
        self.image_shape = image_shape
        self.value_range = value_range
        self.work_dir = work_dir
        self.load = load
        self.random_state = random_state
        self.verbose = verbose

    # --- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> "DiffusionClassifierEstimator":
        """Opens the model and calibrates it, or trains one.

        Args:
            X: Images or rows.
            y: Labels (n,), of two classes or more.

        Raises:
            InputError: The data or a parameter cannot be used.
            BundleError: There is no such model.
            MissingDependencyError: A package is not installed.
        """
        self.__dict__.pop("classifier_", None)  # a fit that fails leaves nothing to predict with
        self._check_used()
        seed, calibrate = _seed(self.random_state), _level(self.calibrate)
        options = _options_of(self).but(seed=seed, layout="NCHW")
        stated = read_shape(self.image_shape)
        loading = load_options(self.load)
        classifier, bundle = (None, None) if self.model is None else opened(self.model, loading)
        expected = None if classifier is None else classifier.model.image_shape
        X, seen = as_rows(X, expected or (stated[0] if stated else None))
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError("y must have labels of 2 classes or more, got 1 class")
        self._layout = layout_of(self.n_features_in_, seen, stated, expected)
        self._scale = Scale.of(X, self.value_range)
        images = self._layout.images(self._scale.unit(X), flat=seen is None)
        self._trained: Trained | None = None
        if classifier is not None:
            self.model_classes_ = model_classes(self.classes_.tolist(), self.classes, classifier.model.class_names)
            classifier.settings(options)  # refuses options that cannot be used
            if calibrate is not False:
                classifier = self._calibrated(classifier, bundle, images, labels, options, calibrate)
        else:
            training = Training.of(
                self.train, seed=seed, calibrate=calibrate, work_dir=self.work_dir, verbose=self.verbose
            )
            names = training_names(self.classes_.tolist())
            training.check(self._layout.shape, labels, names, loading, options)
            self._trained = training.run(levels(images), labels, names, loading)
            self.model_classes_ = np.arange(len(names))
            classifier = self._trained.open()
        self.classifier_ = classifier
        self.options_ = options
        return self

    def _check_used(self) -> None:
        """Refuses parameters that would have no effect."""
        if self.model is None:
            unused = [] if self.classes is None else ["classes"]
        else:
            unused = ["train"] * (self.train != "mlp") + ["work_dir"] * (self.work_dir is not None)
        if unused:
            raise InputError(f"{unused[0]} has no effect {'without' if self.model is None else 'with'} a model")

    def _calibrated(
        self,
        classifier: DiffusionClassifier,
        bundle: Bundle | None,
        images: npt.NDArray[Any],
        labels: Int64,
        options: Options,
        calibrate: bool | float,
    ) -> DiffusionClassifier:
        """The classifier with a temperature and a race that are fitted to images."""
        if bundle is not None:
            check_unseen("X", levels(images), self.model_classes_[labels], bundle)
            images, labels = _not_chosen_on(images, labels, bundle)
        model, n = classifier.model, len(images)
        draws = options.draws or model.defaults.draws
        level: float | None = None
        if options.rule == "race":
            try:
                level = supported_delta(n) if isinstance(calibrate, bool) else calibrate
                check_level(level, n)
            except InputError:
                if not isinstance(calibrate, bool):
                    raise
                level = None  # too few images: the model keeps its own race
        flops = 0.0 if bundle is None else bundle.flops or 0.0
        full, seeds = full_runs(flops, n * len(model.conditions))
        plan = {**options.plan, "draws": draws if level is None else max(full, draws)}
        fits = fit_runs(
            classifier.validation_runs(images, layout="NCHW", **plan),  # type: ignore[arg-type]
            labels,
            draws=draws,
            seeds=seeds,
            full=full,
            delta=level,
            classes=self.model_classes_.tolist(),
        )
        warn_if_renumbered(fits.errors, labels, self.classes_)
        if fits.race is not None:
            model = model.raced(fits.race)
        model = replace(model, defaults=replace(model.defaults, temperature=fits.temperature))
        return replace(classifier, model=model)

    # --- answering ---------------------------------------------------------------------------------------------------

    @property
    def image_shape_(self) -> Shape:
        """(c, h, w) of the images that the model sees."""
        return self._layout.shape

    @property
    def value_range_(self) -> tuple[float, float]:
        """Values (black, white) that X is mapped from."""
        return self._scale.low, self._scale.high

    @property
    def folder_(self) -> Path | None:
        """The training's folder in `work_dir`, with ``run/`` and ``bundle/``; None without one."""
        return None if self._trained is None else self._trained.folder

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The labels (n,) of images or rows.

        Raises:
            InputError: X does not fit the training data.
        """
        result = self.classify(X)
        place = np.zeros(self.classifier_.model.num_classes, np.int64)
        place[self.model_classes_] = np.arange(len(self.classes_))
        return np.asarray(self.classes_[place[result.labels]])

    def predict_proba(self, X: Any) -> Float64:
        """The probabilities (n, K) of the labels, or their shares of votes.

        Raises:
            InputError: X does not fit the training data.
        """
        return self.classify(X).probabilities[:, self.model_classes_]

    @available_if(_ranks)  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> Float64:
        """The negative mean errors (n, K) of the labels; of two labels, how much smaller the second's error is, (n,).

        Raises:
            InputError: X does not fit the training data.
        """
        errors = self.classify(X).errors[:, self.model_classes_]
        # A class that shares no draw with the winner has no error: it is no better than the worst that has one.
        errors = np.where(np.isnan(errors), np.nanmax(errors, axis=1, keepdims=True), errors)
        return errors[:, 0] - errors[:, 1] if len(self.classes_) == 2 else -errors

    def classify(self, X: Any) -> Classification:
        """The whole result of ``DiffusionClassifier.classify``: evaluations, votes, errors, provenance.

        Its classes are the model's, of which `model_classes_` are those of the labels.

        Args:
            X: Images or rows.

        Raises:
            InputError: X does not fit the training data.
        """
        check_is_fitted(self, "classifier_")
        rows, seen = as_rows(X, self._layout.shape)
        if seen is not None and seen != self._layout.shape:
            raise InputError(f"X must have images of {self._layout.shape} as in fit, got {seen}")
        rows = validate_data(self, rows, reset=False)
        images = self._layout.images(self._scale.unit(rows), flat=seen is None)
        every = len(self.classes_) == self.classifier_.model.num_classes
        candidates = None if every else [self.model_classes_.tolist()] * len(images)
        return self.classifier_.classify(images, self.options_, candidates=candidates)

    # --- copies ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if self.__dict__.get("_trained") is not None:  # which cannot be opened from its place: it may have none
            state.pop("classifier_", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        trained: Trained | None = self.__dict__.get("_trained")
        if trained is not None:
            self.classifier_ = trained.open()


def _seed(random_state: Any) -> int:
    """The seed that a ``random_state`` stands for: itself, or a number that it draws."""
    if checks.is_whole(random_state):
        return checks.seed(random_state, "random_state")
    return int(check_random_state(random_state).randint(2**31 - 1))


def _not_chosen_on(images: npt.NDArray[Any], labels: Int64, bundle: Bundle) -> tuple[npt.NDArray[Any], Int64]:
    """The images and labels without those that chose the bundle's checkpoint or plan: no race keeps a promise on them.

    Raises:
        InputError: None is left.
    """
    left = ~bundle.seen.chose(levels(images))
    if not left.any():
        raise InputError(f"all {len(left)} images of X chose the checkpoint or the plan of {bundle.name}: give others")
    return images[left], labels[left]


def _level(calibrate: Any) -> bool | float:
    """True, False or a level.

    Raises:
        InputError: It is something else.
    """
    if isinstance(calibrate, (bool, np.bool_)):
        return bool(calibrate)
    return checks.fraction("calibrate", calibrate)
