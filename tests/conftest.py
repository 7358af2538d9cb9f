"""The test run checks every shape written in a signature (jaxtyping with beartype), offline, on few threads."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

MODULES = (
    "wrappedmodels sae data names features correlation scores comparison activations quality trainer training"
)
install_import_hook(MODULES.split(), "beartype.beartype")
