"""Settings of the policy and the run that change its tokens: template variables, the model's stops, the date."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from lit_align import AlignmentDataModule, AlignmentModule, AlignmentTrainer, PolicySpec
from lit_align.data import Encoder, trainer_view
from lit_align.losses import DPO
from lit_align.policy.load import load_stop_ids, load_tokenizer
from lit_align.policy.template_values import fix_date, set_defaults
from lit_align.records import Chat, Message
from tests.helpers.data_fakes import pair_rows, write
from tests.helpers.tiny import CHAT_TEMPLATE, save_tiny_model, tiny_tokenizer

USER = (Message("user", "Is it warm?"),)
THINKING = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}", "assistant\n{% if not thinks %}<think>\n</think>\n{% endif %}{{ note }}{% endif %}"
)
DATED = "<|im_start|>system\n{{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHAT_TEMPLATE
FIRST, NEXT = datetime(2026, 11, 29, 23, 59), datetime(2026, 11, 30, 0, 1)


def prompt_text(tokenizer: Any, **kwargs: Any) -> str:
    chat = [{"role": "user", "content": "Is it warm?"}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **kwargs))


def test_template_settings_of_the_policy_hold_wherever_its_tokenizer_is_used(tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path / "model", chat_template=THINKING))
    note = 'it\'s "so" – ä\n😀'
    spec = PolicySpec(folder, chat_template_kwargs={"thinks": True, "note": note})
    tokenizer = load_tokenizer(spec)
    assert prompt_text(tokenizer).endswith("<|im_start|>assistant\n" + note)
    assert "<think>" in prompt_text(load_tokenizer(PolicySpec(folder)))
    tokenizer.save_pretrained(tmp_path / "saved")
    assert prompt_text(AutoTokenizer.from_pretrained(tmp_path / "saved")) == prompt_text(tokenizer)
    of_row = Chat(USER, template_kwargs='{"thinks": false}')  # goes before the policy's
    assert "<think>" in tokenizer.decode(Encoder(tokenizer).encode_prompt(of_row))


def test_settings_for_a_template_that_is_not_there_are_an_error() -> None:
    with pytest.raises(ValueError, match="variables of a chat template, and the tokenizer has none"):
        set_defaults(tiny_tokenizer(None), {"thinks": True})
    with pytest.raises(ValueError, match="to be variables of a template, got 'no thinking'"):
        set_defaults(tiny_tokenizer(), {"no thinking": True})


def test_a_setting_that_the_template_never_mentions_is_said() -> None:
    with pytest.warns(UserWarning, match="sets 'enable_thinking', which the chat template never mentions"):
        set_defaults(tiny_tokenizer(), {"enable_thinking": True})


@pytest.mark.filterwarnings("ignore:.*never mentions")
def test_the_line_break_that_a_template_begins_with_stays() -> None:
    tokenizer = tiny_tokenizer("\n" + CHAT_TEMPLATE)
    before = prompt_text(tokenizer)
    set_defaults(tokenizer, {"thinks": True})
    assert prompt_text(fix_date(tokenizer, FIRST)) == prompt_text(tokenizer) == before


def test_an_answer_ends_at_each_end_of_the_model_s_generation_config(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    ordinary = 7  # an id that is no special token cannot be meant: a config's default, of another vocabulary
    GenerationConfig(eos_token_id=[2, 0, ordinary, 10**6]).save_pretrained(folder)
    data = AlignmentDataModule(write(tmp_path / "rows.jsonl", pair_rows(4)), reference_cache=None)
    module = AlignmentModule(PolicySpec(str(folder)), DPO())
    trainer = AlignmentTrainer(default_root_dir=str(tmp_path / "run"), max_steps=1, accelerator="cpu", logger=False)
    trainer.fit(module, datamodule=data)
    assert data.encoder.stop_ids == (2, 0)
    assert load_stop_ids(PolicySpec(str(folder))) == (2, 0, ordinary, 10**6)
    (folder / "generation_config.json").unlink()
    assert load_stop_ids(PolicySpec(str(folder))) == ()


def test_a_date_is_written_in_every_form_that_a_template_asks_for() -> None:
    template = (
        "{% macro f() %}{{ strftime_now('%Y') }}{% endmacro %}{{ strftime_now('%d %B %Y, %-H:%M %% %a') }}|{{ f() }}"
    )
    written = prompt_text(fix_date(tiny_tokenizer(template), datetime(2020, 1, 2, 3, 4)))
    assert written == "02 January 2020, 3:04 % Thu|2020"


@pytest.mark.parametrize("form", ["%F", "%T", "%D", "%R", "%e", "%h", "%C", "%u"])
def test_a_date_s_less_usual_forms_are_written_as_the_system_writes_them(form: str) -> None:
    written = prompt_text(fix_date(tiny_tokenizer(f"[{{{{ strftime_now('{form}') }}}}]"), FIRST))
    assert written == f"[{FIRST.strftime(form)}]"


def fit(folder: Path, now: datetime, monkeypatch: pytest.MonkeyPatch, run: str, steps: int, **more: Any) -> Any:
    """A fit at a time of day; the data module that it leaves."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return now

    monkeypatch.setattr(trainer_view, "datetime", Clock)
    rows = write(folder / "rows.jsonl", pair_rows(6))
    data = AlignmentDataModule(rows, batch_size=2, reference_cache=str(folder / "reference"), **more)
    module = AlignmentModule(PolicySpec(str(folder / "model")), DPO())
    trainer = AlignmentTrainer(default_root_dir=str(folder / run), max_steps=steps, accelerator="cpu", logger=False)
    last = folder / run / "checkpoints" / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path="last" if last.exists() else None)
    return data


def test_a_run_keeps_the_date_it_began_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_model(tmp_path / "model", chat_template=DATED)
    began = fit(tmp_path, FIRST, monkeypatch, "run", 3)
    assert "29 Nov 2026" in began.encoder.tokenizer.decode(began.train_pairs[0].prompt)
    capsys.readouterr()
    resumed = fit(tmp_path, NEXT, monkeypatch, "run", 4)
    assert resumed.restored and resumed.start == FIRST
    assert torch.equal(*(torch.from_numpy(data.train_pairs[0].prompt) for data in (began, resumed)))
    assert "static pairs found in" in (told := capsys.readouterr().out) and "compute" not in told
    fresh = fit(tmp_path, NEXT, monkeypatch, "fresh", 1)
    assert "30 Nov 2026" in fresh.encoder.tokenizer.decode(fresh.train_pairs[0].prompt)
    assert f"`date: {NEXT}`" in capsys.readouterr().out
    again = fit(tmp_path, NEXT, monkeypatch, "again", 1, date="2026-11-29")
    assert "29 Nov 2026" in again.encoder.tokenizer.decode(again.train_pairs[0].prompt)
    told = capsys.readouterr().out
    assert "all 2 static pairs found" in told and "writes the date" not in told


def test_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="expected `date` as 2026-11-29 or 2026-11-29 08:00:00, got 'today'"):
        AlignmentDataModule("rows.jsonl", date="today")
