"""Two users of one hospital's machine, as the runbook has them: one with the data, one that runs what runs bring along.

They need no names, only numbers, and root to become them.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

NODE, FLOWER, SOCKET_GROUP = 64001, 64002, 64000
_ROOT = Path(__file__).parent.parent.parent


def as_user(user: int, command: Sequence[str]) -> list[str]:
    """Return a command that runs another as a user who may reach this Python, its packages and this code."""
    drop = ["setpriv", f"--reuid={user}", f"--regid={SOCKET_GROUP}", "--clear-groups", "--no-new-privs", *command]
    needed = {path.resolve() for path in (Path(sys.base_prefix), Path(sys.prefix), _ROOT)}
    closed = {path: folder for path in needed for folder in path.parents if not _is_passable(folder)}  # the outermost
    if not closed:
        return drop
    # A Python in root's home, say. In the command's own view an open, else empty folder takes that home's place.
    script = ["mount -t tmpfs tmpfs /mnt"]
    script += [f"mkdir /mnt/{n} && mount --bind '{path}' /mnt/{n}" for n, path in enumerate(closed)]
    script += [f"mount -t tmpfs -o mode=711 tmpfs '{folder}'" for folder in set(closed.values())]
    script += [f"mkdir -p '{path}' && mount --bind /mnt/{n} '{path}'" for n, path in enumerate(closed)]
    return ["unshare", "--mount", "sh", "-c", " && ".join([*script, 'exec "$0" "$@"']), *drop]


def give(folder: Path, user: int, mode: int) -> None:
    """Make a folder and all in it a user's, with a mode for the folder itself."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, SOCKET_GROUP)
    folder.chmod(mode)


def mode(path: Path) -> str:
    """Return a file's kind and rights, as ``ls -l`` shows them."""
    return stat.filemode(path.stat().st_mode)


def _is_passable(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IXOTH)
