"""A bare Debian 12 tree: what an operator finds on a freshly installed node.

Made once with debootstrap from the archive that this machine's own apt uses, and kept in the
build cache. Tests never change it: each works on an overlay. `python -m tests.node.debian` makes
it before the tests begin.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import BUILD_CACHE

PACKAGES = "systemd,systemd-sysv,dbus,python3,iproute2"
RELEASE = "bookworm"
TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}


def require_tools() -> None:
    """Skip the test, with the reason, where a node cannot be booted."""
    if os.geteuid() != 0:
        pytest.skip("booting a node needs root")
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing and subprocess.run(["apt-get", "install", "-y", "-qq", *missing]).returncode:
        pytest.skip(f"apt could not install {' '.join(missing)}")


def base_tree(cache: Path) -> Path:
    """The tree in `cache`, made on the first call."""
    cache.mkdir(exist_ok=True)
    tree, partial = cache / "node-rootfs", cache / "node-rootfs.partial"
    with (cache / "node-rootfs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            if partial.exists():
                unmount_below(partial)
                shutil.rmtree(partial)
            _debootstrap(partial)
            partial.rename(tree)
    return tree


def unmount_below(tree: Path) -> None:
    """What an older run, killed in the middle of it, left mounted there: last mounted goes first.

    Raises CalledProcessError where something is in use: then nothing below it may be removed.
    """
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [os.fsdecode(_unescaped(line.split()[4])) for line in lines]
    for mount in reversed(mounts):
        if Path(mount).is_relative_to(tree.resolve()):
            subprocess.run(["umount", mount], check=True)


def _unescaped(path: str) -> bytes:
    """A path of mountinfo, which has spaces and the like as octal numbers."""
    return path.encode().decode("unicode_escape").encode("latin-1")


def apart(command: list[str]) -> list[str]:
    """`command` with mounts and processes of its own, all of which end with it, however it ends.

    debootstrap mounts /proc in its tree. Killed, it would leave that to whoever removes the tree.
    """
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *command]


def _debootstrap(tree: Path) -> None:
    options = ["--variant=minbase", f"--include={PACKAGES}"]
    command = apart(["debootstrap", *options, RELEASE, str(tree), mirror()])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"debootstrap failed: {done.stdout[-500:]}{done.stderr[-500:]}")


def mirror() -> str:
    """The archive that apt on this machine reads the release from."""
    done = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--no-release-info",
            "--format",
            "$(SITE) $(RELEASE) $(REPO_URI)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = (line.split() for line in done.stdout.splitlines())
    found = [uri for *_, release, uri in rows if release == RELEASE]
    if not found:
        pytest.skip(f"this machine's apt has no archive with {RELEASE}")
    return found[0]


if __name__ == "__main__":
    require_tools()
    base_tree(BUILD_CACHE)
