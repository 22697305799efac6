"""Logging is set up in the threads of one process, as Flower's simulation loads both apps."""

from __future__ import annotations

import subprocess
import sys

WHILE_IMPORTING = """
import sys, threading, time
from pdss_fl.logs import configure_logging
other = threading.Thread(target=lambda: __import__("transformers.utils"))
other.start()
while "transformers" not in sys.modules:
    time.sleep(0.0001)
configure_logging()
other.join()
print(sys.modules["transformers.utils.logging"].is_progress_bar_enabled())
"""


def test_the_model_libraries_may_be_imported_by_another_thread_meanwhile() -> None:
    done = subprocess.run([sys.executable, "-c", WHILE_IMPORTING], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr
