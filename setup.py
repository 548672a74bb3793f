"""Packages the library `vggdist`; `requirements.lock` holds the exact versions that are tested.

For GPUs older than Turing, or drivers older than 580: VGGDIST_CUDA=12 pip install .
"""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

INIT = Path(__file__).parent / "vggdist" / "__init__.py"

NEEDS_CUDA = {
    "12": ["torch>=2.14,<2.15", "torchvision>=0.29,<0.30", "nvidia-dali-cuda120>=2.4"],
    "13": ["torch>=2.14", "torchvision>=0.29", "nvidia-dali-cuda130>=2.4"],
}

# What only one room needs: pip install 'vggdist[convert]'; `errors.EXTRAS` has the same names.
ROOMS = {
    "convert": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"],
    "doctor": ["packaging>=24"],
    "monitoring": ["jinja2>=3.1", "matplotlib>=3.9"],
    "planning": ["matplotlib>=3.9"],
    "prepare": ["pebble>=5.2", "scikit-learn>=1.5", "scipy>=1.11"],
    "reports": ["jinja2>=3.1", "matplotlib>=3.9"],
    "slurm": ["submitit>=1.5.4"],
    "transfer": ["scikit-learn>=1.5"],
}
ROOMS["experiments"] = ROOMS["reports"] + ROOMS["slurm"]
ROOMS["profiling"] = ROOMS["planning"] + ROOMS["prepare"]

setup(
    name="vggdist",
    version=re.search(r'__version__ = "(.+)"', INIT.read_text(encoding="utf-8"))[1],
    description="Train VGG networks A to E on ImageNet, from one CPU to hundreds of GPUs",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vggdist", "vggdist.*"]),
    package_data={
        "vggdist": ["py.typed"],
        "vggdist.reports": ["*.jinja"],
        "vggdist.monitoring": ["*.jinja"],
    },
    install_requires=[
        *NEEDS_CUDA[os.environ.get("VGGDIST_CUDA", "13")],
        "deepspeed>=0.19.8",
        "tensorboard>=2.20",
        "nvidia-ml-py>=12.560",
        "pyyaml>=6.0",
        "pydantic>=2.11",
        "safetensors>=0.5",
        "rich>=13.0",
        "pillow>=11.0",
    ],
    extras_require={
        **ROOMS,
        "all": sorted({library for libraries in ROOMS.values() for library in libraries}),
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3",
            "pytest-timeout>=2",
            "ruff>=0.9",
            "mypy>=1.15",
            "pre-commit>=4",
            "types-PyYAML",
            "timm>=1.0",
            "sphinx>=8.2",
            "myst-parser>=4.0",
            "furo>=2024.8.6",
            "sphinxcontrib-mermaid>=1.0",
        ],
    },
    entry_points={"console_scripts": ["vggdist=vggdist.cli:main"]},
)
