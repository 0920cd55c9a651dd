"""Tests that end in time to report what they have found, and do not spoil the ones after them:
benchmarks/gpu/check.sh says when."""

import faulthandler
import os
import time

import pytest
import torch

UNTIL = float(os.environ.get("POLYFUSE_TEST_UNTIL", "inf"))  # seconds since 1970
LOG = os.environ.get("POLYFUSE_TEST_LOG")  # where a test that hangs leaves its traceback
AT = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if LOG else None
MOST = 60  # seconds of a test that does not hang


def pytest_runtest_setup():
    if time.time() > UNTIL:
        pytest.skip("no time is left")
    if AT is not None:
        faulthandler.dump_traceback_later(MOST, exit=True, file=AT)


def pytest_runtest_teardown(item):
    faulthandler.cancel_dump_traceback_later()
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:  # which every call after it would raise again
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(3)  # another worker goes on
        pytest.exit(f"{item.nodeid} has lost the device: {error}")
