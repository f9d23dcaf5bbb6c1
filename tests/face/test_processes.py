"""One classifier in many processes: forked and spawned workers, and those of torch's DataLoader."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

PROGRAM = """
import multiprocessing, sys, threading, warnings
import numpy as np
import fastdc
from fastdc.data import digits_test

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: what is tested
images = digits_test().images[:6]
clf = None

def errors(i):
    global clf
    if clf is None:  # in a spawned worker
        clf = fastdc.load("digits-mlp", backend=sys.argv[1], threads=2)
    return clf.classify(images[i : i + 1], rule="full", draws=4).errors

class Data:
    def __len__(self):
        return len(images)
    def __getitem__(self, i):
        return errors(i)

if __name__ == "__main__":
    expected = [errors(i) for i in range(len(images))]
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [errors(0) for _ in iter(stop.is_set, True)])
    busy.start()  # forks come while steps and kernels run
    close = lambda found: np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), rtol=1e-4)
    for method in ("fork", "spawn") if sys.argv[1] == "onnx" else ("fork",):
        with multiprocessing.get_context(method).Pool(2) as pool:
            close(pool.map(errors, range(len(images))))
    if sys.argv[1] == "torch":
        from torch.utils.data import DataLoader
        close([batch[0].numpy() for batch in DataLoader(Data(), num_workers=2, multiprocessing_context="fork")])
    stop.set()
    busy.join()
    print("done")
"""


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_workers_give_the_errors_of_the_parent(tmp_path: Path, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(script), backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=env)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
