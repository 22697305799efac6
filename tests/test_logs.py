"""Logging is set up in the threads of one process, as Flower's simulation loads both apps."""

from __future__ import annotations

import subprocess
import sys

import pytest

WHILE_IMPORTING = """
import sys, threading, time
from pdss_fl.logs import configure_logging
other = threading.Thread(target=lambda: __import__(sys.argv[1]))
other.start()
while "transformers" not in sys.modules:
    time.sleep(0)
configure_logging()
other.join()
print(sys.modules["transformers.utils.logging"].is_progress_bar_enabled())
"""


@pytest.mark.parametrize("module", ["transformers", "transformers.utils", "transformers.cache_utils"])
def test_the_model_libraries_may_be_imported_by_another_thread_meanwhile(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", WHILE_IMPORTING, module], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr
