"""What is here: versions, extras, devices, and the ways to attend that run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any

import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from torch.nn.attention import SDPBackend, sdpa_kernel

PACKAGES = ("lit-align", "torch", "lightning", "transformers", "peft", "bitsandbytes", "datasets")
OF_DEVELOPERS = ("dev", "docs", "experiments")
"""Extras that no run needs."""
GIB = 1 << 30


def describe(device: torch.device) -> dict[str, Any]:
    """Describes this machine, without names of hosts, people and folders."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: installed_version(name) for name in PACKAGES},
        "extras": dict(missing_of_extras()),
        "device": describe_device(device),
        "attention": attention_ways(device),
        "sdpa": sdpa_kernels(device),
    }


def installed_version(package: str) -> str | None:
    """The installed version of a package; None without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing_of_extras() -> Iterator[tuple[str, list[str]]]:
    """Yields each extra of lit-align that a run may want, with its packages that are not installed in its version."""
    try:
        names = metadata("lit-align").get_all("Provides-Extra") or []
        wanted = [Requirement(line) for line in requires("lit-align") or []]
    except PackageNotFoundError:  # run from a clone
        return
    for extra in names:
        if extra not in OF_DEVELOPERS:
            packages = [one for one in wanted if one.marker and one.marker.evaluate({"extra": extra})]
            yield extra, [str(one).split(";")[0] for one in packages if not _is_met(one)]


def _is_met(requirement: Requirement) -> bool:
    found = installed_version(requirement.name)
    return found is not None and (found in requirement.specifier or not requirement.specifier)


def describe_device(device: torch.device) -> dict[str, Any]:
    """The device's name, memory in bytes and dtypes, and what its products are rounded to."""
    if device.type != "cuda":
        return {
            "type": device.type,
            "name": _processor(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
            "threads": torch.get_num_threads(),
            "dtypes": ["float32", "bfloat16"],
        }
    card = torch.cuda.get_device_properties(device)
    bfloat16 = ["bfloat16"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
    return {
        "type": "cuda",
        "name": card.name,
        "memory": card.total_memory,
        "free": torch.cuda.mem_get_info(device)[0],
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "devices": torch.cuda.device_count(),
        "dtypes": ["float32", "float16", *bfloat16],
        "tf32": torch.get_float32_matmul_precision() != "highest",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def attention_ways(device: torch.device) -> list[str]:
    """The values of `attn_implementation` that can be set here."""
    from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

    ways = ["sdpa", "eager"]
    if is_torch_flex_attn_available():
        ways.append("flex_attention")
    if device.type == "cuda" and is_flash_attn_2_available():
        ways.append("flash_attention_2")
    return ways


def sdpa_kernels(device: torch.device) -> list[str]:
    """The kernels of torch's scaled dot product attention that run here in bfloat16."""
    return [backend.name.lower() for backend in _BACKENDS if _runs(backend, device)]


_BACKENDS = (
    SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH,
)  # fmt: skip


def _runs(backend: SDPBackend, device: torch.device) -> bool:
    tensor = torch.zeros(1, 2, 16, 64, dtype=torch.bfloat16, device=device)
    try:
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(tensor, tensor, tensor, is_causal=True)
    except RuntimeError:
        return False
    return True


def environment_lines(environment: dict[str, Any]) -> list[str]:
    """The description of a machine, for people."""
    versions = ", ".join(f"{name} {number or 'missing'}" for name, number in environment["versions"].items())
    device = environment["device"]
    memory = f", {device['memory'] / GIB:.0f} GiB" if device["memory"] else ""
    threads = f", {device['threads']} threads" if "threads" in device else f", CUDA {device['cuda']}"
    missing = [name for name, packages in environment["extras"].items() if packages]
    lines = [
        f"versions   Python {environment['python']}, {versions}",
        f"device     {device['type']}: {device['name']}{memory}{threads}; {', '.join(device['dtypes'])}",
        f"attention  {', '.join(environment['attention'])}; kernels of sdpa: {', '.join(environment['sdpa'])}",
    ]
    if missing:
        lines.append(f"not here   {', '.join(missing)}: pip install 'lit-align[{','.join(missing)}]'")
    return lines


def bench_device(name: str | None) -> torch.device:
    """The device to check: the named one, by default a GPU if there is one.

    Raises:
        ValueError: the named one is not here.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here. `nvidia-smi` and torch's CUDA build tell why.")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
