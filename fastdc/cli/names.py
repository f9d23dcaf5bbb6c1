"""The words that options take, written out, so that ``--help``, completion and typing errors need none of the library.

``tests/cli/test_quick.py`` compares them with the library's own.
"""

BACKENDS = ("onnx", "torch", "tensorrt")
PRECISIONS = ("float32", "float16", "bfloat16")
EXPORT_PRECISIONS = (*PRECISIONS, "int8")
METHODS = ("dc", "denoised", "epndc", "apndc", "apndc-x")
WEIGHTINGS = ("uniform", "edm", "vlb", "exp", "min_snr", "velocity")
LOSSES = ("l2", "l1", "huber")
ORDERS = ("van_der_corput", "random")
DECISIONS = ("mean", "vote")
RULES = ("race", "full", "staged", "ttest", "paired", "betting", "calibrated", "sift", "votes")
CALIBRATION_DRAWS = 128
COPIES, TARGET_COPIES = 1000, 10_000
"""Default of ``certify --n``, without and with ``--radius``."""
SELECTION_COPIES = 100
ALPHA = 0.001
ESTIMATIONS = ("fixed", "pilot", "anytime")
TOLERANCE = 0.05
MODELS = ("unet", "mlp", "unet-cross", "dit")
NAMED_RECIPES = ("medical-unet", "medical-dit")
SHIFTS = ("none", "size", "medical")
LOSS_WEIGHTINGS = ("none", "min_snr", "medical")
LAYOUTS = ("auto", "chexpert", "isic", "table")
AUGMENTATIONS = ("none", "flip", "shift", "photo", "medical")
SPLITS = ("train", "id-val", "id-test", "val", "test")
