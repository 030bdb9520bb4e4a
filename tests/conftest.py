from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the hub; read by it when it is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lightning  # noqa: F401  # sets an environment variable when it is first imported
import pytest
import torch

from tests.helpers.tiny import save_tiny_model

LIGHTNING_SEED = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama with a chat template."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(autouse=True)
def _own_reference_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another one stored."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("lit_align.reference.logps.cache_dir", lambda: folder)


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    """Fails a test that leaks environment variables; seeds and restores torch's generator.

    Lightning's global seed is forgotten: strategies of several devices seed themselves with it, those of one do not.
    """
    for key in LIGHTNING_SEED:
        os.environ.pop(key, None)
    before = dict(os.environ)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    allowed = {
        *LIGHTNING_SEED,
        "PYTEST_CURRENT_TEST",
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
        "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
        "KMP_DUPLICATE_LIB_OK",
        "KMP_INIT_AT_FORK",
        "TORCHINDUCTOR_CACHE_DIR",
    }  # our CLI's, Lightning's, pytest's, torch.compile's and, where it is installed, scikit-learn's own
    leaked = {k for k in before.keys() | os.environ.keys() if before.get(k) != os.environ.get(k)} - allowed
    for key in leaked:
        os.environ.pop(key, None) if key not in before else os.environ.__setitem__(key, before[key])
    assert not leaked, f"the test leaked environment variables: {sorted(leaked)}"


@pytest.fixture(autouse=True)
def _forgets_modules_of_a_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module that a test wrote is not the one of the same name that the next test writes."""
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in sys.modules.keys() - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]
