"""Check that the docstrings of public names agree with their signatures.

Public are the names of `atlas_wsi.__all__` and `atlas_kernels.__all__`, with the public methods of
their classes. Parameters, return values and yields must have a section; fields of a dataclass have
a line of their own each. Other code needs a sentence.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from numpydoc.validate import validate

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = ("atlas_wsi", "atlas_kernels")
CHECKS = {"GL08", "PR01", "PR02", "PR03", "RT01", "YD01"}


def public_names() -> Iterator[str]:
    """Yield the dotted names of all public functions, classes and methods."""
    for package in PACKAGES:
        module = import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing):
                continue
            yield f"{package}.{name}"
            if inspect.isclass(thing):
                for member, value in vars(thing).items():
                    if not member.startswith("_") and inspect.isroutine(value):
                        yield f"{package}.{name}.{member}"


def faults_of(name: str) -> Iterator[str]:
    """Yield what the docstring of a public name lacks."""
    package, _, rest = name.partition(".")
    thing = getattr(import_module(package), rest, None)
    has_parameters = inspect.isroutine(thing) or "." in rest
    for code, text in validate(name)["errors"]:
        if code in CHECKS and (has_parameters or code != "PR01"):
            yield f"{name}: {code} {text}"


def main() -> int:
    """Print what is missing; return 1 if anything is."""
    faults = [fault for name in public_names() for fault in faults_of(name)]
    print("\n".join(faults), end="\n" if faults else "")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
