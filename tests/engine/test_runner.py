"""The runner as the source of requests: what is read when, in which order, and from which threads."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from fastdc import DiffusionClassifier
from fastdc.engine import Finished, Request
from fastdc.inference import Images, Job
from helpers.worlds import ManySlots, classifier, denoiser, gaussian, unit_images

WORLD = gaussian(3)
READY = Images.of(unit_images(9), WORLD.model)


def job(*, batch: int = 128, slots: int = 1) -> Job:
    return classifier(WORLD, batch=batch, slots=slots).settings(rule="full", draws=4).job


def request(i: int, key: int | None = None) -> Request:
    return Request(i if key is None else key, READY.x[i], int(READY.streams[i]))


def test_requests_are_read_as_there_is_room_and_leave_at_once() -> None:
    read: list[int] = []

    def source() -> Iterator[Request]:
        for i in range(9):
            read.append(i)
            yield request(i)

    runner = job(batch=12).runner(source(), total=9, capacity=2)
    assert read == []
    keys: list[int] = []
    for _ in runner.evaluate():
        keys += [one.key for one in runner.finished()]
        assert len(read) <= len(keys) + 2
        assert runner.admitted == len(read)
    assert keys == read == list(range(9))
    assert runner.evaluated == runner.at_most == 9 * 3 * 4


def test_submitted_requests_go_before_those_of_the_source_and_may_come_after_it_ended() -> None:
    runner = job(batch=12).runner((request(i) for i in range(2)), total=2, capacity=1)
    runner.submit(request(2))
    assert sum(runner.evaluate()) == 3 * 12
    assert [one.key for one in runner.finished()] == [2, 0, 1]
    runner.submit(request(3))
    assert sum(runner.evaluate()) == 12
    assert [one.key for one in runner.finished()] == [3]
    assert list(runner.evaluate()) == []


@pytest.mark.parametrize("slots", [1, 2])
def test_requests_may_be_submitted_from_other_threads(slots: int) -> None:
    n, threads = 200, 4
    runner = job(batch=5, slots=slots).runner(capacity=7)
    whole = classifier(WORLD).errors(unit_images(9), draws=4).errors

    def submit(start: int) -> None:
        for key in range(start, n, threads):
            runner.submit(request(key % 9, key))

    workers = [threading.Thread(target=submit, args=(start,)) for start in range(threads)]
    for worker in workers:
        worker.start()
    done: list[Finished] = []
    while any(worker.is_alive() for worker in workers) or len(done) < n:
        for _ in runner.evaluate():
            done += runner.finished()
        done += runner.finished()
    for worker in workers:
        worker.join()
    assert sorted(one.key for one in done) == list(range(n))
    for one in done:
        np.testing.assert_array_equal(one.values, whole[one.key % 9].ravel())


def test_a_source_that_fails_ends_the_run_with_its_own_error() -> None:
    def source() -> Iterator[Request]:
        yield request(0)
        raise ZeroDivisionError("from the encoder")

    runner = job().runner(source(), total=2)
    with pytest.raises(ZeroDivisionError, match="from the encoder"):
        list(runner.evaluate())


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("slots", [1, 2])
def test_every_cell_is_told_once(devices: int, slots: int) -> None:
    """Cells are told as steps end, on the caller's thread or through those of the devices; none is left out."""
    networks = [ManySlots(denoiser(WORLD), batch=7, slots=slots) for _ in range(devices)]
    clf = DiffusionClassifier(WORLD.model, networks[0], replicas=tuple(networks[1:]))
    runner = clf.settings(rule="full", draws=4).job.runner((request(i) for i in range(9)), total=9)
    told = list(runner.evaluate())
    assert all(cells > 0 for cells in told)
    assert sum(told) == runner.evaluated == 9 * 3 * 4
    assert len(runner.finished()) == 9
    runner.submit(request(0))
    assert sum(runner.evaluate()) == 12
