"""The reference in its forms: what it computes, that it never trains, and its refresh."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lit_align.batch import Padded
from lit_align.policy import (
    AdapterCopy,
    AdapterOff,
    LoraSpec,
    ModelReference,
    PolicySpec,
    Reference,
    sequence_logps,
)
from lit_align.policy.load import load_model
from lit_align.policy.reference import default_reference
from tests.helpers.tiny import save_tiny_model

PROMPT, COMPLETION = Padded.from_sequences([[4, 5, 6]], 0), Padded.from_sequences([[7, 8, 9]], 0)


def logps(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return sequence_logps(model, PROMPT, COMPLETION).sum()


def reference_logps(reference: Reference, policy: nn.Module) -> Tensor:
    with reference.active(policy) as model:
        assert not any(".reference." in name for name in trained(model))
        return logps(model)


def shake(policy: nn.Module) -> None:
    """Moves everything that is trained."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 2)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def sft_adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A saved adapter that does something, with dropout as SFT uses it."""
    policy = load_model(PolicySpec(str(tiny_model), lora=LoraSpec(r=4, dropout=0.5)))
    shake(policy)
    policy.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def attached(reference: Reference, spec: PolicySpec) -> nn.Module:
    policy = load_model(spec)
    reference.attach(policy, spec)
    return policy


FORMS = ["adapter_off", "adapter_copy", "own_copy", "second_model"]


def form(name: str, tiny_model: Path, sft_adapter: Path) -> tuple[Reference, PolicySpec]:
    model = str(tiny_model)
    if name == "adapter_off":
        return AdapterOff(), PolicySpec(model, lora=LoraSpec(r=4, dropout=0.5))
    if name == "adapter_copy":
        return AdapterCopy(), PolicySpec(model, adapter=str(sft_adapter))
    if name == "own_copy":
        return ModelReference(), PolicySpec(model)
    return ModelReference(PolicySpec(model)), PolicySpec(model, lora=LoraSpec(r=4))


@pytest.mark.parametrize("name", FORMS)
def test_equals_the_policy_at_the_start_and_stays_when_it_trains(
    name: str, tiny_model: Path, sft_adapter: Path
) -> None:
    reference, spec = form(name, tiny_model, sft_adapter)
    policy = attached(reference, spec)
    names, start = trained(policy), logps(policy)
    torch.testing.assert_close(reference_logps(reference, policy), start, rtol=0, atol=1e-6)
    shake(policy)
    assert (logps(policy) - start).abs() > 1e-3
    torch.testing.assert_close(reference_logps(reference, policy), start, rtol=0, atol=1e-6)
    assert trained(policy) == names and names  # running the reference left the policy trainable as it was
    assert not trained(reference)


def test_a_copied_adapter_has_no_dropout_even_where_the_policy_has(tiny_model: Path) -> None:
    reference = AdapterCopy()
    policy = attached(reference, PolicySpec(str(tiny_model), lora=LoraSpec(r=4, dropout=0.5)))
    shake(policy)
    reference.refresh(policy)
    assert logps(policy) != logps(policy)
    torch.testing.assert_close(reference_logps(reference, policy), reference_logps(reference, policy), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adapter_copy", "own_copy"])
def test_refresh_takes_the_policys_weights(name: str, tiny_model: Path, sft_adapter: Path) -> None:
    reference, spec = form(name, tiny_model, sft_adapter)
    policy = attached(reference, spec)
    shake(policy)
    names = trained(policy)
    reference.refresh(policy)
    refreshed = logps(policy)
    torch.testing.assert_close(reference_logps(reference, policy), refreshed, rtol=0, atol=1e-6)
    shake(policy)
    torch.testing.assert_close(reference_logps(reference, policy), refreshed, rtol=0, atol=1e-6)
    assert reference.refreshes == 1 and trained(policy) == names


@pytest.mark.parametrize("name", ["adapter_off", "second_model"])
def test_forms_that_stay_refuse_a_refresh(name: str, tiny_model: Path, sft_adapter: Path) -> None:
    reference, spec = form(name, tiny_model, sft_adapter)
    policy = attached(reference, spec)
    with pytest.raises(RuntimeError, match="Take `AdapterCopy`"):
        reference.refresh(policy)
    assert reference.refreshes == 0


def test_a_second_model_stays_in_eval_mode(tiny_model: Path) -> None:
    reference = ModelReference(PolicySpec(str(tiny_model)))
    attached(reference, PolicySpec(str(tiny_model)))
    reference.train()
    assert not any(module.training for module in reference.modules())


@pytest.mark.parametrize("lora", [None, LoraSpec(r=4)])
def test_a_copy_is_loaded_when_first_used_and_can_be_given_back(lora: LoraSpec | None, tiny_model: Path) -> None:
    reference = ModelReference()
    policy = attached(reference, PolicySpec(str(tiny_model), lora=lora))
    start, state = logps(policy), torch.get_rng_state()
    assert reference.model is None
    shake(policy)
    torch.set_rng_state(state)
    with torch.inference_mode():  # as in a validation
        torch.testing.assert_close(reference_logps(reference, policy), start, rtol=0, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    reference.release()
    assert reference.model is None
    with torch.inference_mode():
        reference_logps(reference, policy)
    reference.refresh(policy)
    reference.release()  # could not be loaded anew
    torch.testing.assert_close(reference_logps(reference, policy), logps(policy), rtol=0, atol=1e-6)


def test_a_copy_follows_the_precision_of_the_policy(tiny_model: Path) -> None:
    reference = ModelReference()
    policy = attached(reference, PolicySpec(str(tiny_model))).to(torch.bfloat16)
    with reference.active(policy) as model:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    kept = ModelReference(PolicySpec(str(tiny_model), dtype="bfloat16"))  # of its own dtype where the policy kept its
    with kept.active(attached(kept, PolicySpec(str(tiny_model)))) as model:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_policy_is_itself_again_after_an_error(tiny_model: Path, sft_adapter: Path) -> None:
    for name in FORMS:
        reference, spec = form(name, tiny_model, sft_adapter)
        policy = attached(reference, spec)
        shake(policy)
        policy.eval()
        names, before = trained(policy), logps(policy)
        with pytest.raises(KeyError), reference.active(policy):
            raise KeyError
        torch.testing.assert_close(logps(policy), before, rtol=0, atol=0)
        assert trained(policy) == names


def test_adapter_forms_need_an_adapter(tiny_model: Path) -> None:
    for reference in (AdapterOff(), AdapterCopy()):
        with pytest.raises(ValueError, match="set `lora` or `adapter`"):
            attached(reference, PolicySpec(str(tiny_model)))


def test_another_vocabulary_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other")
    vocabulary = other / "tokenizer.json"
    text = vocabulary.read_text()
    assert '"<|im_start|>"' in text
    vocabulary.write_text(text.replace('"<|im_start|>"', '"<|begin|>"'))
    with pytest.raises(ValueError, match="different vocabularies"):
        attached(ModelReference(PolicySpec(str(other))), PolicySpec(str(tiny_model)))


def test_the_default_equals_the_policys_start(tiny_model: Path, sft_adapter: Path) -> None:
    model = str(tiny_model)
    assert isinstance(default_reference(PolicySpec(model, lora=LoraSpec())), AdapterOff)
    assert isinstance(default_reference(PolicySpec(model, adapter=str(sft_adapter))), AdapterCopy)
    assert isinstance(default_reference(PolicySpec(model)), ModelReference)
