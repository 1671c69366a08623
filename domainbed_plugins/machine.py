"""What this machine has to give: memory, cores, GPUs, and how many processes suit them."""

from __future__ import annotations

import ctypes
import os
import platform
import sys


def free_memory() -> int:
    """Bytes of memory that the machine has to spare; 8 GiB where it does not tell."""
    try:
        with open("/proc/meminfo") as file:
            entries = dict(line.split(":") for line in file)
        return int(entries["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 8 * 2**30


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees, and say whether it does.

    Else large tensors are handed back and faulted in again, or not, by what ran before: that alone moves a pass of
    a small network on the CPU by up to 30 %.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_max = -1, -4
    library = ctypes.CDLL(None)
    return bool(library.mallopt(trim_threshold, 2**31 - 1) and library.mallopt(mmap_max, 0))


def loader_workers(wanted: int | str | None, stock: int, loaders: int) -> int:
    """Choose the number of workers of each loader, and say so where they will be far too many.

    Parameters
    ----------
    wanted : int or "auto", optional
        None: `stock`.
    stock : int
        The data set's number.
    loaders : int
        How many loaders there are.
    """
    if wanted == "auto":
        # a training loader and an evaluation loader are busy at a time; a loader of one core works in-process
        return 0 if cores() <= 2 else min(stock, cores() // 2)
    count = stock if wanted is None else int(wanted)
    if count * loaders > 4 * cores():
        print(
            f"{count} workers for each of {loaders} loaders are {count * loaders} processes on {cores()} cores; "
            "--n_workers auto starts fewer (the count decides which augmentations are drawn)",
            file=sys.stderr,
        )
    return count


def default_processes() -> int:
    """How many runs at a time suit this machine: one for each GPU, else one for each core."""
    return len(gpus()) or cores()


def threads_each(processes: int) -> int:
    """How many threads each process gets: its share of the cores, unless the user said otherwise."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() else max(1, cores() // max(1, processes))


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def default_workers() -> int:
    """Half of the cores that this process may use, 8 at most; on one or two, none."""
    return 0 if cores() <= 2 else min(8, cores() // 2)
