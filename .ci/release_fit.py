"""A fit where only the wheel is installed: a tiny model made on the spot, pairs of its own, no network.

Run by `make release-check` in a folder outside the clone, with the Python of the environment that has the wheel.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import lit_align

CONFIG = """
trainer: {accelerator: cpu, max_steps: 2, default_root_dir: run}
model: {policy: {model: tiny, lora: {r: 2}}}
data: {train: rows.jsonl, val_fraction: 0.25, batch_size: 2}
"""
WRONG = "from lit_align import AlignmentTrainer\nAlignmentTrainer(accumulate_grad_batches='two')\n"


def save_model(folder: str) -> None:
    """A random Llama with a byte-level tokenizer, which encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<pad>", "<end>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["a few words"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    size = tokenizer.get_vocab_size()
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def main(mypy: str) -> None:
    """Fits, loads what the fit left, and lets mypy find a wrong argument by the types in the wheel."""
    assert "site-packages" in str(lit_align.__file__), f"not the wheel but {lit_align.__file__}"
    save_model("tiny")
    rows = [{"prompt": f"Fact {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(12)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("run.yaml").write_text(CONFIG, encoding="utf-8")
    command = Path(sys.executable).with_name("lit-align")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([command, "fit", "--config", "run.yaml"], check=True, env=offline)
    peft.AutoPeftModelForCausalLM.from_pretrained("run/model")
    Path("wrong.py").write_text(WRONG, encoding="utf-8")
    checked = subprocess.run(
        [mypy, "--python-executable", sys.executable, "wrong.py"], capture_output=True, text=True, check=False
    )
    assert "[arg-type]" in checked.stdout and "Found 1 error" in checked.stdout, checked.stdout + checked.stderr


if __name__ == "__main__":
    main(sys.argv[1])
