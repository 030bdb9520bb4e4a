"""Stored reference log-probs on disk: what is found again, what is not, and what damage does."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lit_align.policy import AdapterCopy, AdapterOff, LoraSpec, ModelReference, PolicySpec, identity
from lit_align.policy.identity import model_identity
from lit_align.policy.load import load_model
from lit_align.reference.store import FORMAT, ReferenceStore, completion_key
from tests.helpers.tiny import save_tiny_model

IDENTITY = {"model": {"files": "abc"}, "dtype": "float32"}


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


ONE, TWO = completion_key(ids(1, 2), ids(3)), completion_key(ids(1), ids(2, 3))
WANTED = {ONE: 1, TWO: 2}
KEPT = {ONE: values(-1.5), TWO: values(-0.25, -3)}


def store(tmp_path: Path, **more: Any) -> ReferenceStore:
    return ReferenceStore(tmp_path, {**IDENTITY, **more})


def same(found: dict[bytes, np.ndarray], expected: dict[bytes, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.fixture
def filled(tmp_path: Path) -> tuple[ReferenceStore, Path, Path]:
    """A store with one file for each of two completions."""
    first = store(tmp_path)
    first.write({ONE: KEPT[ONE]})
    one = next(first.folder.glob("*.safetensors"))
    first.write({TWO: KEPT[TWO]})
    two = next(path for path in first.folder.glob("*.safetensors") if path != one)
    return first, one, two


def test_the_key_is_the_ids_and_where_the_prompt_ends() -> None:
    assert ONE != TWO and len(ONE) == 16  # the same row of ids, split elsewhere
    assert completion_key(ids(1, 2), ids(3)) == ONE
    expected = hashlib.blake2b((2).to_bytes(8, "little") + b"\1\0\0\0\2\0\0\0\3\0\0\0", digest_size=16).digest()
    assert expected == ONE


def test_what_was_written_is_found(tmp_path: Path) -> None:
    assert store(tmp_path).read(WANTED) == {}
    store(tmp_path).write(KEPT)
    assert same(store(tmp_path).read(WANTED), KEPT)
    assert same(store(tmp_path).read({TWO: 2, b"x" * 16: 4}), {TWO: KEPT[TWO]})
    assert store(tmp_path).read({TWO: 3}) == {}  # another length: another completion
    assert store(tmp_path, dtype="bfloat16").read(WANTED) == {}


def test_the_format_is_as_documented(tmp_path: Path) -> None:
    store(tmp_path).write(KEPT)
    folder = store(tmp_path).folder
    manifest, shard = sorted(folder.iterdir(), key=lambda path: path.suffix)
    assert json.loads(manifest.read_text()) == {"format": FORMAT, "reference": IDENTITY}
    assert shard.stem == hashlib.blake2b(shard.read_bytes(), digest_size=16).hexdigest()
    tensors = load_file(shard)
    assert tensors["keys"].tobytes() == ONE + TWO and tensors["lengths"].tolist() == [1, 2]
    assert tensors["logps"].tolist() == [-1.5, -0.25, -3] and tensors["logps"].dtype == np.float32


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    store(tmp_path).write({ONE: values(np.nan), TWO: KEPT[TWO]})
    assert same(store(tmp_path).read(WANTED), {TWO: KEPT[TWO]})
    store(tmp_path / "none").write({ONE: values(-np.inf)})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("how", ["torn", "changed", "empty"])
def test_a_damaged_file_is_noticed_and_removed(filled: tuple[ReferenceStore, Path, Path], how: str) -> None:
    kept, one, _ = filled
    content = one.read_bytes()
    one.write_bytes({"torn": content[:-2], "changed": content[:-1] + b"\0", "empty": b""}[how])
    with pytest.warns(UserWarning, match=rf"{one.name} are not used.*checksum in its name"):
        assert same(kept.read(WANTED), {TWO: KEPT[TWO]})
    assert not one.exists()
    kept.write({ONE: KEPT[ONE]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(kept.read(WANTED), KEPT)


def test_foreign_files_are_noticed_and_left_alone(filled: tuple[ReferenceStore, Path, Path]) -> None:
    kept, one, _ = filled
    other = store(kept.folder.parent, dtype="bfloat16")
    other.write({ONE: values(-99)})
    foreign = next(other.folder.glob("*.safetensors"))
    shutil.copy(foreign, kept.folder)
    one.unlink()
    with pytest.warns(UserWarning, match="belongs to another store"):
        assert same(kept.read(WANTED), {TWO: KEPT[TWO]})
    (kept.folder / foreign.name).rename(kept.folder / "model.safetensors")
    with pytest.warns(UserWarning, match="its name is none"):
        assert same(kept.read(WANTED), {TWO: KEPT[TWO]})
    assert (kept.folder / "model.safetensors").exists()


def test_a_file_without_the_tensors_is_noticed(filled: tuple[ReferenceStore, Path, Path]) -> None:
    kept, one, _ = filled
    for content in (b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", one.read_bytes().replace(b'"logps"', b'"logqs"')):
        path = kept.folder / f"{hashlib.blake2b(content, digest_size=16).hexdigest()}.safetensors"
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=path.name):
            assert same(kept.read(WANTED), KEPT)
        path.unlink()


@pytest.mark.parametrize("text", ["{", json.dumps({"format": FORMAT, "reference": {"model": "other"}})])
def test_a_wrong_manifest_is_written_anew(filled: tuple[ReferenceStore, Path, Path], text: str) -> None:
    kept = filled[0]
    manifest = kept.folder / "manifest.json"
    manifest.write_text(text)
    with pytest.warns(UserWarning, match="written anew"):
        assert same(kept.read(WANTED), KEPT)
    assert json.loads(manifest.read_text())["reference"] == IDENTITY


def test_any_number_of_writers_and_readers(tmp_path: Path) -> None:
    keys = [completion_key(ids(n), ids(n)) for n in range(40)]
    failed: list[BaseException] = []

    def work(part: int) -> None:
        try:
            for key in keys[part::2] + keys[:5]:  # some by both, with the same content
                store(tmp_path).write({key: values(-1)})
                store(tmp_path).read({})
        except BaseException as error:
            failed.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work, args=(part,)) for part in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed and len(store(tmp_path).read(dict.fromkeys(keys, 1))) == 40
    assert not list(store(tmp_path).folder.glob("*.part"))


# ---------------------------------------------------------------------- identity


def test_the_identity_is_the_content_not_the_place(tiny_model: Path, tmp_path: Path) -> None:
    known = model_identity(PolicySpec(str(tiny_model)))
    copied = shutil.copytree(tiny_model, tmp_path / "copy")
    assert model_identity(PolicySpec(str(copied))) == known and str(tiny_model) not in json.dumps(known)
    other = save_tiny_model(tmp_path / "other", seed=1)
    assert model_identity(PolicySpec(str(other))) != known
    config = copied / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert model_identity(PolicySpec(str(copied))) != known
    weights = copied / "model.safetensors"
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="expected weights"):
        model_identity(PolicySpec(str(copied)))


def test_what_changes_the_numbers_is_in_the_identity_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    spec = PolicySpec(str(tiny_model))
    known = model_identity(spec)
    assert known["dtype"] == "float32" and known["quantization"] is None and known["adapter"] is None
    for equal in (
        replace(spec, dtype="float32"),
        replace(spec, lora=LoraSpec(r=2)),
        replace(
            spec,
            gradient_checkpointing=True,
            chat_template="{{ x }}",
            chat_template_kwargs={"x": 1},
            attn_implementation="eager",
            compile=True,
        ),
    ):
        assert model_identity(equal) == known
    policy = load_model(replace(spec, lora=LoraSpec(r=2)))
    policy.save_pretrained(tmp_path / "sft")
    others = [
        model_identity(replace(spec, dtype="bfloat16")),
        model_identity(replace(spec, quantization="nf4")),
        model_identity(replace(spec, adapter=str(tmp_path / "sft"))),
        model_identity(spec, "bf16-mixed"),
    ]
    assert len({json.dumps(one) for one in [known, *others]}) == 5


def test_a_hub_model_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def cached(name: str, file: str, revision: str, local_files_only: bool) -> str:
        asked.append((name, file, revision, local_files_only))
        folder = tmp_path / "snapshots" / f"{revision}0"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text('{"torch_dtype": "bfloat16"}')
        return str(folder / file)

    monkeypatch.setattr(identity, "cached_file", cached)
    found = model_identity(PolicySpec("org/name", revision="v1", adapter="org/sft"))
    assert found["model"] == {"hub": "org/name", "commit": "v10"} and found["dtype"] == "bfloat16"
    assert found["adapter"] == {"hub": "org/sft", "commit": "main0"} and all(one[3] for one in asked)
    assert model_identity(PolicySpec("org/name", revision="v2"))["model"] != found["model"]
    monkeypatch.setattr(identity, "cached_file", lambda *_, **__: str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="commit of 'org/name' cannot be told"):
        model_identity(PolicySpec("org/name"))


def test_what_each_reference_starts_as() -> None:
    spec, other = PolicySpec("m", adapter="sft"), PolicySpec("n")
    assert AdapterOff().initial_spec(spec) == PolicySpec("m")
    assert AdapterCopy().initial_spec(spec) == ModelReference().initial_spec(spec) == spec
    assert ModelReference(other).initial_spec(spec) == other
