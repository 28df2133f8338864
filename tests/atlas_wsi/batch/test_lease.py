"""Only one works on a slide, and nothing stays with the dead."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from atlas_wsi.batch.lease import read_attempts, take

TAKE_AND_DIE = """
import os, pathlib, sys
from atlas_wsi.batch.lease import take
assert take(pathlib.Path(sys.argv[1]), "slide")
os._exit(9)
"""


def age(path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_of_many_who_ask_at_once_one_takes_the_lease(tmp_path):
    with ThreadPoolExecutor(16) as threads:
        got = list(threads.map(lambda _: take(tmp_path, "slide"), range(64)))
    assert sum(lease is not None for lease in got) == 1


@pytest.mark.parametrize("rounds", [5])
def test_of_many_who_see_it_expired_one_takes_it_over(tmp_path, rounds):
    assert take(tmp_path, "slide")
    for number in range(1, rounds):
        age(tmp_path / f"slide.{number}", 1000)
        with ThreadPoolExecutor(16) as threads:
            got = list(threads.map(lambda _: take(tmp_path, "slide"), range(32)))
        assert sum(lease is not None for lease in got) == 1
    assert len(read_attempts(tmp_path)["slide"]) == rounds


def test_the_lease_of_a_process_that_died_here_is_free_at_once(tmp_path):
    died = subprocess.run([sys.executable, "-c", TAKE_AND_DIE, str(tmp_path)], check=False)
    assert died.returncode == 9
    lease = take(tmp_path, "slide")
    assert lease is not None
    assert [one.failed for one in lease.past] == [True]


def test_a_lease_whose_maker_died_before_it_could_say_who_it_is_expires(tmp_path):
    (tmp_path / "slide.1").touch()
    assert take(tmp_path, "slide") is None
    age(tmp_path / "slide.1", 1000)
    assert take(tmp_path, "slide") is not None


def test_signs_of_life_keep_a_lease_and_its_loss_is_noticed(tmp_path):
    lease = take(tmp_path, "slide", heartbeat_timeout_s=0.2)
    assert lease is not None
    lost = threading.Event()
    age(lease.path, 1000)
    begun = lease.path.stat().st_mtime
    with lease.held(lost.set):
        while lease.path.stat().st_mtime == begun:
            assert not lost.is_set()
        assert take(tmp_path, "slide") is None
        (tmp_path / "slide.2").touch()
        assert lost.wait(timeout=30)
    assert not lease.is_mine


def test_a_lease_given_back_counts_only_if_the_slide_may_be_at_fault(tmp_path):
    for number, counts in enumerate([True, False, True], start=1):
        lease = take(tmp_path, "slide")
        assert lease is not None
        assert lease.number == number
        lease.give_back(error="OSError", reason="it failed", counts=counts)
    assert [one.failed for one in read_attempts(tmp_path)["slide"]] == [True, False, True]
    last = take(tmp_path, "slide")
    assert last is not None
    last.settle()
    assert not list(tmp_path.iterdir())


def test_names_that_look_like_other_names_do_not_meet(tmp_path):
    for name in ("slide", "slide.1", "slide.svs", "[slide]"):
        assert take(tmp_path, name) is not None
    assert set(read_attempts(tmp_path)) == {"slide", "slide.1", "slide.svs", "[slide]"}
