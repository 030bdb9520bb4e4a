"""On a CPU the memory of a step is kept for the next one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from lit_align.policy.cpu.host_memory import keep_freed_memory

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (2**26, 2**23, 2**21) * 5:  # bytes: 64, 8 and 2 MiB
        torch.ones(size // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
done = keep_freed_memory()
faults()
print(done, before, faults())
"""
PAGES = 5 * 2**26 // 4096
"""Of the largest blocks that the script makes in one count."""


def counted(**variables: str) -> tuple[bool, int, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", FAULTS], env={**environment, **variables}, capture_output=True, text=True, check=True
    )
    done, before, after = ran.stdout.split()
    return done == "True", int(before), int(after)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells glibc's allocator")
def test_freed_memory_is_kept() -> None:
    done, before, after = counted()
    assert done and before > PAGES / 2 and after < PAGES / 100  # the blocks themselves may come as huge pages


def test_what_a_user_has_set_stays() -> None:
    done, _, after = counted(MALLOC_ARENA_MAX="4")
    assert not done and after > PAGES / 2
