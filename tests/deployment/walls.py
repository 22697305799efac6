"""The namespaces of a federation without root: ``python -m tests.deployment.walls`` shows what each party reaches.

Whoever may make a user namespace is root in it, and may make network namespaces there. No party runs in these; it is
the star itself that is shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from examples.deployment.network import Network

HOSPITALS = ["hospital-1", "hospital-2"]


def without_root() -> subprocess.CompletedProcess[str]:
    """Run this file as root of a user namespace, whose ``/run`` is its own, since ``ip`` keeps its names there."""
    enter = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    script = 'mount -t tmpfs tmpfs /run && exec "$0" "$@"'
    command = [*enter, "sh", "-c", script, sys.executable, "-m", "tests.deployment.walls"]
    return subprocess.run(command, cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True)


def main() -> None:
    """Print as JSON what each party of a star reaches."""
    network = Network()
    network.create(HOSPITALS)
    try:
        print(json.dumps({name: network.visible_from(name) for name in ("superlink", "llm", *HOSPITALS)}))
    finally:
        network.remove()


if __name__ == "__main__":
    main()
