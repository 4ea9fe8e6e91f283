"""What a release is made of: the names of its files inside `NAME-VERSION.zip`, below its one folder `NAME/`."""

CONFIGS = "configs"
METADATA = "configs/metadata.json"
WORKFLOWS = {"training": "train.json", "evaluating": "evaluate.json", "predicting": "inference.json"}
"""The workflows of a bundle, and the config of a release that defines each."""

LOGGING = "configs/logging.conf"
STATE = "models/model.pt"
"""The plain `state_dict`, for MONAI's own loaders."""

WEIGHTS = "models/model.safetensors"
"""The same numbers in a format that holds nothing else."""

CARD = "docs/README.md"
LICENCE = "LICENSE"
RECIPE = "recipe.yaml"
"""How the dataset of the training was indexed."""

WHEELS = "wheels"
BILL = "sbom.cdx.json"
"""Bill of materials, in the format of CycloneDX."""

REFERENCE = "reference"
"""A synthetic case, what the network makes of it, and how closely that must be reproduced."""

REFERENCE_ABOUT = "reference/reference.json"
REFERENCE_EXPECTED = "reference/expected.npz"

SUMS = "SHA256SUMS"
"""Digests of all other files, in the format of `sha256sum`."""

SIGNATURE = "SHA256SUMS.sig"
"""Ed25519 over the bytes of `SUMS`."""
