"""Whether an exported graph computes what its torch module computes.

Exporters have been seen to write a graph that is right only at the batch it was traced with. So the graph is compared
with torch at batches of 1, 3 and 65 before anything is written.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from fastdc.exceptions import BackendError
from fastdc.extras import require

if TYPE_CHECKING:
    from torch import nn

CHECKED_BATCHES = (1, 3, 65)

# Of EDM (arXiv:2206.00364, table 1): the noise levels that a sampler would use; a classifier's are in the defaults.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


def verify_onnx(
    model: bytes,
    network: "nn.Module",
    shape: tuple[int, int, int],
    num_class_embeds: int,
    *,
    timestep_scale: float,
) -> float:
    """Compares an exported graph with its network at several batches, noise levels and classes.

    Args:
        model: Bytes of the ONNX file.
        network: The torch module it was made from, in evaluation mode, on the CPU.
        shape: Image shape (c, h, w).
        num_class_embeds: Number of class labels, the null class included.
        timestep_scale: The network reads timestep_scale * ln sigma.

    Returns:
        The largest absolute difference of any output.

    Raises:
        BackendError: It is above :func:`tolerance`, or ONNX Runtime cannot run the graph.
    """
    torch = require("torch", extra="train")
    runtime = require("onnxruntime", extra="cpu")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    worst = 0.0
    rng = np.random.default_rng(0)
    try:
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for batch in CHECKED_BATCHES:
            sample = rng.standard_normal((batch, *shape)).astype(np.float32)
            sigma = np.exp(rng.uniform(math.log(SIGMA_MIN), math.log(SIGMA_MAX), batch))
            timestep = (timestep_scale * np.log(sigma)).astype(np.float32)
            labels = rng.integers(0, num_class_embeds, batch)
            feed = {"sample": sample, "timestep": timestep, "class_labels": labels}
            (got,) = session.run(["output"], feed)
            with torch.no_grad():
                want = network(*(torch.from_numpy(array) for array in feed.values())).numpy()
            if got.shape != want.shape:
                raise BackendError(f"the exported network returns {got.shape} at batch {batch}, torch {want.shape}")
            difference = float(np.abs(got - want).max())
            allowed = tolerance(network) * max(1.0, float(np.abs(want).max()))
            if not difference <= allowed:
                found = f"{difference:.2g} at batch {batch}, allowed {allowed:.2g}"
                raise BackendError(f"the exported network differs from torch by {found}")
            worst = max(worst, difference)
    except BackendError:
        raise
    except Exception as error:  # ONNX Runtime raises plain RuntimeErrors and types of its own
        raise BackendError(f"ONNX Runtime cannot run the exported network: {one_line(error)}") from error
    return worst


def tolerance(network: "nn.Module") -> float:
    """Difference, relative to the largest output, that rounding alone may cause between two float32 engines.

    A sum of K products in another order moves by about sqrt(K) roundings (2^-24 each) of its size. Layers add up, each
    with K inputs; a factor of 8 covers the tails of that random walk and the gain of a layer above one.
    """
    fan_in = [math.prod(weight.shape[1:]) for weight in network.parameters() if weight.ndim > 1]
    return 8 * 2.0**-24 * sum(math.sqrt(k) for k in fan_in)


def one_line(error: Exception) -> str:
    """An exception's text as one line of at most 160 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."
