"""What a run takes from its working folder and environment, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lit_align.cli.errors import with_name_clash
from tests.helpers.fake_server import running

ROOT = Path(__file__).parents[1]
KEYS = {
    "OPENAI_API_KEY": "sk-planted-0123456789abcdef",
    "HF_TOKEN": "hf_plantedPLANTEDplanted",
    "WANDB_API_KEY": "0123plantedplanted4567",
    "SERVER_KEY": "planted.server.key.of.mine",
}
SHADOWS = ("numpy", "json", "torch", "yaml", "lightning")
CONFIG = """
trainer:
  accelerator: cpu
  devices: 2
  strategy: ddp
  max_steps: 2
  default_root_dir: run
  callbacks: [{class_path: WinRateCallback, init_args: {num_prompts: 2}}]
model:
  class_path: AlignmentModule
  init_args:
    policy: {model: MODEL, lora: {r: 2}}
    loss: mine.Mine
data:
  class_path: AlignmentDataModule
  init_args:
    train: rows.jsonl
    val_fraction: 0.5
    batch_size: 1
    round_prompts: 2
    judge:
      class_path: ChatJudge
      init_args: {model: judge, base_url: SERVER, api_key_env: SERVER_KEY}
    sampler: {class_path: TransformersSampler, init_args: {num_candidates: 2, max_new_tokens: 2}}
boundary: {class_path: BoundaryCallback, init_args: {every_n_steps: 1, max_prompts: 2}}
"""
COMMAND = "import sys\nfrom lit_align.cli import main\nsys.exit(main())\n"
MINE = "import mine_too\nfrom lit_align.losses import DPO\nclass Mine(DPO): pass\n"


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A working folder with a user's modules, and with files of the names of installed modules."""
    work = tmp_path / "work"
    work.mkdir()
    rows = [{"prompt": f"Fact {n}?", "chosen": f"tea {n}", "rejected": f"the sea {n}"} for n in range(12)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / "c.yaml").write_text(CONFIG.replace("MODEL", str(tiny_model)))
    (work / "mine.py").write_text(MINE)
    (work / "mine_too.py").write_text("")
    for name in SHADOWS:
        (work / f"{name}.py").write_text(f"open('ran_{name}', 'w')\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "lit-align").write_text(COMMAND)  # as pip installs it
    return work


def run(folder: Path, *words: str) -> str:
    """What the command prints, with planted keys and a umask that keeps others out."""
    home = folder.parent / "home"
    environment = {**os.environ, **KEYS, "PYTHONPATH": str(ROOT), "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    command = [sys.executable, str(folder.parent / "bin" / "lit-align"), *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, umask=0o027, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def holds(path: Path, secret: str) -> bool:
    return secret.encode() in path.read_bytes()


def test_a_file_that_an_installed_module_hides_is_named(tmp_path: Path) -> None:
    message = "cannot import 'json.Mine': module 'json' has no attribute 'Mine'"
    assert with_name_clash(message, tmp_path) == message
    (tmp_path / "json.py").write_text("class Mine: pass\n")
    assert "json.py in the working folder is not that module" in with_name_clash(message, tmp_path)
    assert with_name_clash("module 'mine' has no attribute 'x'", tmp_path).endswith("'x'")


def test_a_run_executes_no_shadow_leaves_no_key_and_respects_the_umask(folder: Path) -> None:
    with running() as server:
        server.behave({"kind": "status", "status": 500, "message": "busy, $KEY"})  # a server that repeats the key
        text = (folder / "c.yaml").read_text()
        (folder / "c.yaml").write_text(text.replace("SERVER,", f"{server.base_url},"))
        printed = run(folder, "fit", "--config", "c.yaml")
        assert any(KEYS["SERVER_KEY"] in str(request["key"]) for request in server.seen()["log"])
    assert not list(folder.glob("ran_*")), "a file of the working folder replaced an installed module"
    made = [path for root in (folder / "run", folder.parent / "home") for path in root.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in made}
    assert {".ckpt", ".yaml", ".json", ".jsonl", ".html", ".csv", ".safetensors", ".md"} <= kinds
    for secret in KEYS.values():
        assert secret not in printed
        assert not [path for path in made if holds(path, secret)]
    assert not [path for path in made if stat.S_IMODE(path.stat().st_mode) != 0o640]
