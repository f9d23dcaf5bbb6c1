"""The thread pool of the CPU kernels: its threads work, callers do not disturb each other, and it survives a fork."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc import InputError
from fastdc.diffusion import kernels

STREAMS, DRAWS = np.arange(200, dtype=np.int64), np.zeros(200, np.int32)


def work(seed: int = 1) -> npt.NDArray[np.float32]:
    return np.asarray(kernels.philox_normal(STREAMS, DRAWS, 2000, seed=seed))


def run(code: str) -> str:
    """The output of a fresh process."""
    script = "import numpy as np\nfrom fastdc.diffusion import kernels\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_default_is_the_cpus_this_process_may_use() -> None:
    kernels.set_num_threads(0)
    assert kernels.num_threads() == len(os.sched_getaffinity(0))
    kernels.set_num_threads(3)
    assert kernels.num_threads() == 3
    kernels.set_num_threads(0)
    assert kernels.num_threads() == len(os.sched_getaffinity(0))


def test_the_default_follows_the_affinity() -> None:
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}})\nprint(kernels.num_threads())"
    assert run(code).strip() == "1"


@pytest.mark.parametrize("threads", [-1, 1025, 2.0, "2", None, True])
def test_bad_counts_are_refused(threads: Any) -> None:
    with pytest.raises(InputError, match=r"^threads must be a whole number from 0 to 1024, got "):
        kernels.set_num_threads(threads)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    kernels.set_num_threads(1)
    expected = work()
    for threads in (2, 5, 64, 1024, 3, 1, 2):
        kernels.set_num_threads(threads)
        np.testing.assert_array_equal(work(), expected)


def test_a_pool_that_gets_fewer_threads_than_it_wants_still_works() -> None:
    """With room for only a few more tasks, as in a container with a small limit."""
    out = run("""
        import resource
        def work():
            return kernels.philox_normal(np.arange(200), np.zeros(200, np.int32), 2000, seed=1)
        kernels.set_num_threads(1)
        expected = work()
        used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), used + (100 << 20)))
        kernels.set_num_threads(1000)
        same = all((work() == expected).all() for _ in range(3))
        threads = len(__import__("os").listdir("/proc/self/task"))
        print(same, threads < 1000)
    """)
    assert out.split() == ["True", "True"]


def cpu_time_by_thread() -> dict[str, int]:
    """The nanoseconds that each thread of this process has run."""
    tasks = Path("/proc/self/task")
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()}


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs the kernel's scheduler statistics")
def test_the_workers_get_work() -> None:
    """No thread stays idle while the caller does all the work. A thread may miss a job, but not a second of jobs."""
    kernels.set_num_threads(3)
    work()
    before = cpu_time_by_thread()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        work()
        after = cpu_time_by_thread()
        busy = [name for name in after if after[name] - before.get(name, 0) > 5_000_000]
        if len(busy) >= 3:
            break
    assert len(busy) >= 3


def test_many_callers_at_once_get_their_own_numbers() -> None:
    kernels.set_num_threads(1)
    expected = {seed: work(seed) for seed in range(8)}
    kernels.set_num_threads(4)
    barrier = threading.Barrier(8)

    def caller(seed: int) -> bool:
        barrier.wait()
        return all(np.array_equal(work(seed), expected[seed]) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(caller, range(8)))


def test_the_thread_count_may_change_while_others_work() -> None:
    kernels.set_num_threads(1)
    expected = work()
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for threads in (1, 2, 3, 7):
                kernels.set_num_threads(threads)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(50):
            np.testing.assert_array_equal(work(), expected)
    finally:
        stop.set()
        changer.join()


FORK = """
    import os, sys, threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is what is tested
    kernels.set_num_threads(3)
    def work():
        return kernels.philox_normal(np.arange(200), np.zeros(200, np.int32), 2000, seed=1)
    expected = work()
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [work() for _ in iter(stop.is_set, True)])
    if {busy}:
        busy.start()
    for _ in range({forks}):
        child = os.fork()
        if child == 0:
            os._exit(0 if all((work() == expected).all() for _ in range(3)) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert (work() == expected).all()
    stop.set()
    print("done")
"""


@pytest.mark.parametrize(("busy", "forks"), [(False, 3), (True, 20)])
def test_a_child_of_a_fork_works(busy: bool, forks: int) -> None:
    """After the pool was used, and while another thread uses it."""
    assert run(FORK.format(busy=busy, forks=forks)).strip() == "done"


def test_a_forked_multiprocessing_pool_works() -> None:
    out = run("""
        import multiprocessing, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        def work(seed):
            return kernels.philox_normal(np.arange(200), np.zeros(200, np.int32), 2000, seed=seed).sum()
        here = [work(seed) for seed in range(4)]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, range(4)) == here)
    """)
    assert out.strip() == "True"


def test_a_process_ends_with_its_pool_alive() -> None:
    assert (
        run("kernels.set_num_threads(8); kernels.philox_normal(np.arange(99), np.zeros(99, np.int32), 9999, seed=1)")
        == ""
    )
