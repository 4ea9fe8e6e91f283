"""What a benchmark ran on: processor, memory, accelerator, versions, and which peers are there."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PEERS = {
    "MONAI": "monai.inferers",
    "TorchIO": "torchio",
    "batchgeneratorsv2": "batchgeneratorsv2.transforms.spatial.spatial",
    "nnU-Net": "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
}
"""Name -> the module that a benchmark needs of it."""

PACKAGES = ["torch", "monai", "numpy", "scipy", "pydicom", "mlflow", "openvino", "onnxruntime", "torchio"]
PACKAGES += ["nnunetv2", "batchgeneratorsv2"]
"""Whose versions are told."""


@cache
def missing_peer(module: str) -> str:
    """Why a peer's module cannot be imported, in a sentence; empty where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"cannot be imported: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


def machine() -> dict[str, Any]:
    """The machine in words and figures; no name, no address, no path."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "gpu_memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if gpu else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }


def _processor() -> str:
    """The processor's name as the system tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """What was measured, with a + where files had been changed since; None outside of a checkout."""
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
