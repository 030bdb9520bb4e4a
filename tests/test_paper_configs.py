"""Each of the paper's runs is read by the command line's own parser."""

from __future__ import annotations

from itertools import cycle, product
from pathlib import Path

import pytest
import yaml
from jinja2 import Template

from lit_align.cli import main

ROOT = Path(__file__).parents[1]
MODELS = ("llama3", "phi2", "pythia", "qwen", "zephyr")
LOSSES = {"dpo": "lit_align.losses.DPO", "slic_hf": "lit_align.losses.SLiCHF"}
SCHEDULES = {
    "off_off": "callbacks.AlwaysOffPolicy",
    "off_on": "callbacks.FixedSwitch",
    "on_off": "callbacks.FixedSwitch",
    "on_on": "callbacks.AlwaysOnPolicy",
    "boundary": "lit_align.BoundaryCallback",
}
RUNS = list(zip(product(MODELS, LOSSES), cycle(SCHEDULES), strict=False))
"""Each model with each loss, and each schedule in turn: the three kinds of files set different keys."""


def files_of(kind: str) -> set[str]:
    return {path.stem for path in (ROOT / "configs/paper" / kind).glob("*.yaml")}


def test_there_is_a_file_for_each_model_loss_and_schedule() -> None:
    assert files_of("models") == set(MODELS)
    assert files_of("losses") == set(LOSSES)
    assert files_of("schedules") == set(SCHEDULES)


@pytest.mark.parametrize(
    ("pair", "schedule"), RUNS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_a_run_of_the_paper_is_read(
    pair: tuple[str, str], schedule: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    model, loss = pair
    names = (f"models/{model}", f"losses/{loss}", f"schedules/{schedule}")
    files = ["configs/evidence_8_gpus.yaml", *(f"configs/paper/{name}.yaml" for name in names)]
    with pytest.raises(SystemExit) as done:
        main(["fit", *(word for file in files for word in ("--config", file)), "--print_config"])
    printed = capsys.readouterr()
    assert done.value.code == 0, printed.err
    shown = yaml.safe_load(printed.out)
    arguments = shown["model"]["init_args"]
    own = yaml.safe_load((ROOT / files[1]).read_text())["model"]["init_args"]["policy"]
    assert own.items() <= arguments["policy"].items()
    assert arguments["policy"]["lora"]["r"] == 64  # of the shared file, which the model's does not repeat
    assert arguments["loss"]["class_path"] == LOSSES[loss]
    assert shown["boundary"]["class_path"] == SCHEDULES[schedule]
    assert shown["boundary"]["init_args"]["every_n_steps"] * 2 == shown["trainer"]["max_steps"] == 954
    assert shown["data"]["init_args"]["judge"]["class_path"] == "lit_align.judges.PairRM"
    assert shown["data"]["init_args"]["train"] == "HuggingFaceH4/ultrafeedback_binarized"


def test_the_plain_template_of_base_models_writes_a_prompt_that_the_whole_chat_begins_with() -> None:
    template = Template((ROOT / "configs/paper/models/plain.jinja").read_text())
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    prompt = template.render(messages=chat[:1], add_generation_prompt=True, eos_token="<end>")
    whole = template.render(messages=chat, add_generation_prompt=False, eos_token="<end>")
    assert whole.startswith(prompt)
    assert whole.removeprefix(prompt).strip() == "So.<end>"
