"""Our Dice beside nnU-Net's: `python tests/benchmarks/nnunet_evaluation.py [FOLDER]`.

nnU-Net asks for timm, and thereby for torchvision, which must fit torch to the build; its evaluation needs neither. So
its packages go into a folder without what they depend on, and the test that compares finds them there.
"""

import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ["nnunetv2==2.8.1", "batchgenerators==0.25.5", "acvl-utils==0.2.6", "dynamic-network-architectures==0.4.4"]
PACKAGES += ["blosc2==4.14.1", "numexpr", "ndindex", "msgpack", "httpx", "httpcore", "h11"]
"""What `import nnunetv2.evaluation.evaluate_predictions` reaches beyond our own environment."""


def main(folder: Path) -> int:
    """Install them unless they are there, and run the test."""
    if not (folder / "nnunetv2").is_dir():
        subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, *PACKAGES], check=True)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    test = Path(__file__).parents[1] / "test_evaluation_peers.py"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", test], check=False, env=os.environ | {"PYTHONPATH": path}
    ).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/nnunet").absolute()))
