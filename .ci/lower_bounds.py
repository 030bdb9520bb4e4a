"""Prints the lowest versions that pyproject.toml allows, as constraints for pip; `make test-oldest` installs them."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
requirements = list(project["dependencies"])
for extra in project["optional-dependencies"].values():
    requirements += extra
for requirement in requirements:
    bound = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)", requirement)
    if bound is not None:
        print(f"{bound[1]}=={bound[2]}")
