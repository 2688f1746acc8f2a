"""The packages of the checkout, found and put under one name; everything else is in setup.cfg."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOUND = find_packages(include=["circuit*", "commands*", "metrics*", "models*", "persona*"])
DATA = ["benchmarks.peers", "datasets"]  # folders without an __init__.py that go into the wheel too


class Build(build_py):
    """The checkout is the package, but this file is no part of it."""

    def find_package_modules(self, package, package_dir):
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


setup(
    packages=["persona_circuits", *(f"persona_circuits.{name}" for name in [*FOUND, *DATA])],
    package_dir={"persona_circuits": "."},
    cmdclass={"build_py": Build},
)
