"""The packages of the checkout, found and put under one name; everything else is in setup.cfg."""

from setuptools import find_packages, setup

FOUND = find_packages(include=["circuit*", "commands*", "metrics*", "models*", "persona*"])
DATA = ["benchmarks.peers", "datasets"]  # folders without an __init__.py that go into the wheel too

setup(
    packages=["persona_circuits", *(f"persona_circuits.{name}" for name in [*FOUND, *DATA])],
    package_dir={"persona_circuits": "."},
)
