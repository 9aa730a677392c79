"""Which packages there are; everything else about the project stands in pyproject.toml."""

from setuptools import find_packages, setup

SHIPPED = ("recipes", "ds_configs", "slurm")

setup(
    packages=[*find_packages(include=["launcher*"]), *(f"launcher._shipped.{name}" for name in SHIPPED)],
    package_dir={f"launcher._shipped.{name}": name for name in SHIPPED},
)
