"""Small disks for the tests, of memory, where root allows them."""

import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def mounted(folder, *, size="1m"):
    """A tmpfs on the folder; gives what mounts it again with other options. Without the right the test is skipped."""
    done = _run("mount", "-t", "tmpfs", "-o", f"size={size}", "persona-circuits-test", str(folder))
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip() or done.returncode}")
    try:
        yield lambda how: _run("mount", "-o", f"remount,{how}", str(folder), check=True)
    finally:
        _run("umount", "-l", str(folder), check=True)


def _run(*command, check=False):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=check)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
