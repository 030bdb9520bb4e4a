"""Samplers on inference engines: a server process that checks what it is asked, and a stand-in for vLLM."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.judges import Judge
from lit_align.policy import LoraSpec, PolicySpec, load_model
from lit_align.records import Candidate, FinishReason
from lit_align.remote import RequestRefused, ServerError, client
from lit_align.sampling import LoraPublisher, Sampler, ServerSampler, VLLMSampler
from tests.helpers.fake_server import Fake, running
from tests.helpers.tiny import sampling_request

DOCS = (Path(__file__).parent.parent / "docs" / "servers.md").read_text()
PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7]]
STOP = 2


@pytest.fixture(scope="module")
def server() -> Iterator[Fake]:
    with running() as fake:
        yield fake


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Any:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), config)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def change(policy: Any) -> None:
    """What an optimizer step does."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B.default" in name:
                parameter.add_(torch.randn_like(parameter))


def sampler(server: Fake, **arguments: Any) -> ServerSampler:
    return ServerSampler(**{"base_url": server.base_url, "retries": 2, "timeout": 5.0, "max_new_tokens": 8,
                            **arguments})  # fmt: skip


def draw(one: Sampler, policy: Any, tokenizer: Any, **arguments: Any) -> list[tuple[Candidate, ...]]:
    return one.sample(sampling_request(policy, tokenizer, PROMPTS, **{"seed": 1, "stop_ids": (STOP,), **arguments}))


def asked(server: Fake, route: str) -> list[dict[str, Any]]:
    return [entry["body"] for entry in server.seen()["log"] if entry["path"] == f"/v1/{route}"]


# -- what is asked, and what comes back


def test_each_prompt_is_asked_for_once_with_nothing_left_to_defaults(server: Fake, policy: Any, tokenizer: Any) -> None:
    server.behave()
    one = sampler(server, num_candidates=3, temperature=0.7, top_p=0.9, top_k=40, min_new_tokens=2)
    draw(one, policy, tokenizer)
    bodies = sorted(asked(server, "completions"), key=lambda body: len(body["prompt"]))
    assert [body["prompt"] for body in bodies] == [[8, 9], [5, 6, 7], [5, 6, 7]]
    (name,) = server.seen()["adapters"]
    rest = {key: value for key, value in bodies[0].items() if key not in ("prompt", "seed")}
    assert rest == {
        "model": name, "n": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 2, "max_tokens": 8, "stop_token_ids": [STOP],
        "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    assert len({body["seed"] for body in bodies}) == 3, "the same prompt twice is drawn apart"
    assert all(0 <= body["seed"] < 2**31 for body in bodies)


def test_ids_text_and_reasons(server: Fake, policy: Any, tokenizer: Any) -> None:
    server.behave()
    done: list[int] = []
    found = draw(sampler(server, num_candidates=2), policy, tokenizer, progress=done.append)
    seeds = {tuple(body["prompt"]): body["seed"] for body in asked(server, "completions")}
    assert [len(candidates) for candidates in found] == [2, 2, 2] and done == [2, 2, 2]
    for index, candidate in enumerate(found[1]):
        ids = [10 + (seeds[8, 9] + index + step) % 200 for step in range(3)]
        assert candidate.token_ids == (*ids, STOP) and candidate.finish_reason is FinishReason.STOP
        assert candidate.text == tokenizer.decode(ids)
    cut = draw(sampler(server, max_new_tokens=2), policy, tokenizer)[0][0]
    assert cut.finish_reason is FinishReason.LENGTH and cut.token_ids is not None and len(cut.token_ids) == 2


def test_the_same_seed_asks_the_same_and_another_does_not(server: Fake, policy: Any, tokenizer: Any) -> None:
    server.behave()
    one = sampler(server)
    first = draw(one, policy, tokenizer, seed=3)
    state = torch.get_rng_state()
    assert draw(one, policy, tokenizer, seed=3) == first
    assert draw(one, policy, tokenizer, seed=4) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_greedy_is_drawn_once(server: Fake, policy: Any, tokenizer: Any) -> None:
    server.behave()
    found = draw(sampler(server, temperature=0.0), policy, tokenizer, num_candidates=3)
    assert {body["n"] for body in asked(server, "completions")} == {1}
    assert [len(candidates) for candidates in found] == [3, 3, 3] and len(set(found[0])) == 1


@pytest.mark.parametrize("behaviour", [{"ids": False}, {"choice": {"token_ids": [11, 12]}}], ids=["none", "no stop"])
def test_text_alone_is_said(server: Fake, policy: Any, tokenizer: Any, behaviour: dict[str, Any]) -> None:
    server.behave(always={"kind": "ok", **behaviour})
    server_sampler = sampler(server, num_candidates=1)
    with pytest.warns(UserWarning, match="tokenised again"):
        found = draw(server_sampler, policy, tokenizer)
    assert found[0] == (Candidate("text 0", finish_reason=FinishReason.STOP),)


# -- the weights


def test_the_weights_are_the_policy_s_whenever_it_samples(server: Fake, policy: Any, tokenizer: Any) -> None:
    server.behave()
    one = sampler(server)
    draw(one, policy, tokenizer)
    draw(one, policy, tokenizer)
    (first,) = asked(server, "load_lora_adapter")
    assert len(asked(server, "completions")) == 6, "the same weights are not sent again"
    change(policy)
    draw(one, policy, tokenizer)
    _, second = asked(server, "load_lora_adapter")
    assert second["lora_name"] != first["lora_name"]
    assert [body["model"] for body in asked(server, "completions")][6:] == [second["lora_name"]] * 3
    assert server.seen()["adapters"].keys() == {second["lora_name"]}, "the older one is unloaded"
    assert not Path(first["lora_path"]).exists()
    saved = load_file(Path(second["lora_path"], "adapter_model.safetensors"))
    own = {key.replace(".default.", "."): weight for key, weight in policy.named_parameters() if "lora_" in key}
    assert saved.keys() == own.keys() and all(torch.equal(saved[key], own[key]) for key in own)


def test_an_adapter_of_another_name_beside_a_reference(
    server: Fake, tiny_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = PeftModel(base, config, adapter_name="policy")
    policy.add_adapter("reference", config)
    server.behave()
    draw(sampler(server, publisher=LoraPublisher(str(tmp_path))), policy, tokenizer)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_the_folder_as_the_server_sees_it(server: Fake, policy: Any, tmp_path: Path) -> None:
    server.behave({"kind": "text", "text": "Success"})
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    one = sampler(server)
    name = LoraPublisher(str(mine), str(theirs)).publish(policy, one._server)
    assert asked(server, "load_lora_adapter")[0] == {"lora_name": name, "lora_path": str(theirs / name)}
    assert (mine / name / "adapter_config.json").is_file()
    with pytest.raises(ValueError, match="set both"):
        LoraPublisher(server_folder="/adapters")


def test_a_server_that_takes_no_adapter(server: Fake, policy: Any, tokenizer: Any, tiny_model: Path) -> None:
    for trouble in ({"status": 404, "message": "Not Found"}, {"status": 500, "message": "rank 4 is above 2"}):
        server.behave(always={"kind": "status", **trouble})
        with pytest.raises(ServerError, match=f"(?s){trouble['message']}.*VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            draw(sampler(server), policy, tokenizer)
        assert not asked(server, "completions")
    with pytest.raises(ValueError, match="the policy has none"):
        draw(sampler(server), AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer)


def test_an_adapter_that_is_off_is_not_taken_for_the_policy(server: Fake, policy: Any, tokenizer: Any) -> None:
    server.behave()
    with policy.disable_adapter(), pytest.raises(ValueError, match="adapter is off"):
        draw(sampler(server), policy, tokenizer)
    assert not asked(server, "load_lora_adapter")
    draw(sampler(server), policy, tokenizer)
    assert asked(server, "load_lora_adapter")


def test_an_outdated_adapter_that_stays_is_said_and_never_asked(server: Fake, policy: Any, tokenizer: Any) -> None:
    server.behave()
    one = sampler(server)
    draw(one, policy, tokenizer)
    (first,) = asked(server, "load_lora_adapter")
    change(policy)
    server.behave({"kind": "status", "status": 500})
    with pytest.warns(UserWarning, match="keeps the outdated adapter"):
        draw(one, policy, tokenizer)
    assert first["lora_name"] not in {body["model"] for body in asked(server, "completions")}


@pytest.mark.parametrize(
    ("behaviour", "error", "says"),
    [
        ({"model": "the base"}, ServerError, "answered from 'the base'.*not the policy's"),
        ({"choice": {"finish_reason": "abort"}}, ServerError, "ended an answer for the reason 'abort'"),
        ({"kind": "text", "text": '{"choices": []}'}, ServerError, "asked for 4 texts .* answered 'choices': \\[\\]"),
        ({"choice": {"index": "first"}}, ServerError, "asked for 4 texts .* answered 'choices': "),
        ({"choice": {"text": None, "token_ids": None}}, ServerError, "asked for 4 texts"),
        ({"kind": "status", "status": 400, "message": "too long"}, RequestRefused, "400: too long"),
        ({"kind": "status", "status": 500}, ServerError, "tried 3 times"),
    ],
)
def test_an_answer_that_cannot_be_used_stops_the_run(
    server: Fake, policy: Any, tokenizer: Any, behaviour: dict[str, Any], error: type[Exception], says: str
) -> None:
    one = sampler(server, concurrency=1)
    server.behave({"kind": "ok"}, {"kind": "ok"}, always={"kind": "ok", **behaviour})
    with pytest.raises(error, match=says):
        draw(one, policy, tokenizer)
    assert len(asked(server, "completions")) <= 5


def test_what_passes_is_tried_again(server: Fake, policy: Any, tokenizer: Any) -> None:
    server.behave()
    expected = draw(sampler(server), policy, tokenizer)
    server.behave({"kind": "ok"}, {"kind": "status", "status": 503}, {"kind": "half"})  # the first is the adapter
    assert draw(sampler(server), policy, tokenizer) == expected
    assert len(asked(server, "completions")) == 5


def test_arguments_out_of_their_range(server: Fake) -> None:
    for wrong in ({"num_candidates": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_new_tokens": 0},
                  {"min_new_tokens": 9}, {"base_url": "nowhere"}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            sampler(server, **wrong)


# -- several servers


@pytest.fixture
def pool() -> Iterator[tuple[Fake, Fake]]:
    with running() as one, running() as other:
        one.behave()
        yield one, other


def test_servers_share_the_prompts(pool: tuple[Fake, Fake], policy: Any, tokenizer: Any) -> None:
    alone = draw(sampler(pool[0]), policy, tokenizer)
    one = sampler(pool[0], base_url=[fake.base_url for fake in pool], concurrency=2)
    pool[0].behave()
    assert draw(one, policy, tokenizer) == alone
    change(policy)
    draw(one, policy, tokenizer)
    for fake in pool:
        assert asked(fake, "completions") and len(asked(fake, "load_lora_adapter")) == 2, "each has the weights"
        assert len(fake.seen()["adapters"]) == 1, "and of the older ones none"
    assert sum(len(asked(fake, "completions")) for fake in pool) == 2 * len(PROMPTS)


def test_a_lost_server_leaves_its_prompts_to_the_others(pool: tuple[Fake, Fake], policy: Any, tokenizer: Any) -> None:
    one = sampler(pool[0], base_url=[fake.base_url for fake in pool], concurrency=1)
    expected = draw(one, policy, tokenizer)
    pool[1].process.kill()
    pool[1].process.wait()
    with pytest.warns(UserWarning, match=f"{pool[1].base_url} is lost .*: 1 of 2 servers take its requests") as said:
        assert draw(one, policy, tokenizer) == expected
    assert sum("is lost" in str(warning.message) for warning in said) == 1 and one._server.pool.moved == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*is lost")
        assert draw(one, policy, tokenizer) == expected, "said once"
        change(policy)
        draw(one, policy, tokenizer)
    assert len(asked(pool[0], "load_lora_adapter")) == 2


def test_a_server_without_the_adapter_is_lost_too(pool: tuple[Fake, Fake], policy: Any, tokenizer: Any) -> None:
    one = sampler(pool[0], base_url=[fake.base_url for fake in pool], concurrency=1)
    expected = draw(one, policy, tokenizer)
    pool[1].behave()  # as after a new start
    with pytest.warns(UserWarning, match="is lost .*does not exist"):
        assert draw(one, policy, tokenizer) == expected


def test_no_server_is_left(pool: tuple[Fake, Fake], policy: Any, tokenizer: Any) -> None:
    one = sampler(pool[0], base_url=["http://127.0.0.1:9/v1", "http://127.0.0.1:19/v1"], retries=0)
    with (
        pytest.warns(UserWarning, match="is lost"),
        pytest.raises(ServerError, match="127.0.0.1:19.* cannot be reached"),
    ):
        draw(one, policy, tokenizer)
    one = sampler(pool[0], base_url=[fake.base_url for fake in pool], retries=0)
    draw(one, policy, tokenizer)
    for fake in pool:
        fake.process.kill()
        fake.process.wait()
    urls = ", ".join(fake.base_url for fake in pool)
    with pytest.warns(UserWarning, match="is lost"), pytest.raises(ServerError, match=f"none of {urls} can be reached"):
        draw(one, policy, tokenizer)


def test_addresses_that_make_no_pool(server: Fake) -> None:
    for urls in ([], [server.base_url, server.base_url + "/"]):
        with pytest.raises(ValueError, match="one address or several different ones"):
            sampler(server, base_url=urls)


# -- vLLM in the process


class StandIn:
    """What of vLLM the sampler touches, recording every call."""

    def __init__(self, stop: bool = True) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.stop = stop
        self.llm_engine = SimpleNamespace(remove_lora=lambda number: self.calls.append(("remove_lora", number)))

    def LLM(self, **arguments: Any) -> StandIn:
        self.calls.append(("LLM", arguments))
        torch.manual_seed(12345)  # as an engine inside the process does
        return self

    def generate(self, prompts: Any, parameters: Any, lora_request: Any, use_tqdm: bool) -> list[Any]:
        folder = Path(lora_request.lora_path)
        assert (folder / "adapter_model.safetensors").is_file() and (folder / "adapter_config.json").is_file()
        self.calls.append(("generate", (prompts, [vars(one) for one in parameters], vars(lora_request))))
        outputs = []
        for one in parameters:
            ids = [[10 + one.seed % 200, 20 + n, *one.stop_token_ids[: self.stop]] for n in range(one.n)]
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=row) for row in ids]))
        return outputs

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self) -> None:
        self.calls.append(("wake_up", None))


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    module, requests = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams = stand_in.LLM, lambda **given: SimpleNamespace(**given)  # type: ignore[attr-defined]
    requests.LoRARequest = lambda name, number, path: SimpleNamespace(  # type: ignore[attr-defined]
        lora_name=name, lora_int_id=number, lora_path=path
    )
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.lora.request", requests)
    return stand_in


def test_vllm_is_asked_with_ids_adapter_and_seeds(vllm: StandIn, policy: Any, tokenizer: Any) -> None:
    one = VLLMSampler(num_candidates=2, max_new_tokens=8, engine={"max_model_len": 64})
    state = torch.get_rng_state()
    found = draw(one, policy, tokenizer)
    assert torch.equal(torch.get_rng_state(), state), "the engine's seeding does not reach the run"
    (_, built), (_, (prompts, parameters, adapter)), slept = vllm.calls
    assert built == {
        "model": policy.peft_config["default"].base_model_name_or_path, "enable_lora": True, "max_lora_rank": 8,
        "enable_sleep_mode": True, "gpu_memory_utilization": 0.4, "max_model_len": 64,
    }  # fmt: skip
    assert prompts == [{"prompt_token_ids": ids} for ids in PROMPTS] and slept == ("sleep", 1)
    assert parameters[0]["n"] == 2 and parameters[0]["stop_token_ids"] == [STOP] and parameters[0]["ignore_eos"]
    assert adapter["lora_int_id"] == 1 and len({one["seed"] for one in parameters}) == 3
    assert found[0][1].token_ids == (10 + parameters[0]["seed"] % 200, 21, STOP)
    assert found[0][1].finish_reason is FinishReason.STOP


def test_vllm_gets_the_adapter_when_it_has_changed(vllm: StandIn, policy: Any, tokenizer: Any) -> None:
    one = VLLMSampler(max_new_tokens=8)
    draw(one, policy, tokenizer)
    draw(one, policy, tokenizer)
    change(policy)
    draw(one, policy, tokenizer)
    assert [name for name, _ in vllm.calls] == [
        "LLM", "generate", "sleep", "wake_up", "generate", "sleep", "wake_up", "remove_lora", "generate", "sleep"
    ]  # fmt: skip
    adapters = [call[2] for name, call in vllm.calls if name == "generate"]
    assert [one["lora_int_id"] for one in adapters] == [1, 1, 2] and not Path(adapters[0]["lora_path"]).exists()


def test_vllm_sleeps_also_after_an_error(vllm: StandIn, policy: Any, tokenizer: Any) -> None:
    vllm.generate = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        draw(VLLMSampler(), policy, tokenizer)
    assert vllm.calls[-1] == ("sleep", 1)


def test_vllm_stays_awake_if_it_is_told_so(vllm: StandIn, policy: Any, tokenizer: Any) -> None:
    one = VLLMSampler(max_new_tokens=8, sleep=False)
    first, second = draw(one, policy, tokenizer), draw(one, policy, tokenizer)
    assert [name for name, _ in vllm.calls] == ["LLM", "generate", "generate"] and first == second
    assert vllm.calls[0][1]["enable_sleep_mode"] is False


@pytest.mark.parametrize("options", [{"dora": True}, {"modules_to_save": ["q_proj"], "target_modules": ["v_proj"]}])
def test_vllm_takes_plain_adapters_only(
    vllm: StandIn, tiny_model: Path, tokenizer: Any, options: dict[str, Any]
) -> None:
    policy = load_model(PolicySpec(str(tiny_model), lora=LoraSpec(r=2, **options)))
    with pytest.raises(ValueError, match="plain LoRA adapters"):
        draw(VLLMSampler(), policy, tokenizer)
    assert not vllm.calls


def test_without_vllm_the_extra_is_named(policy: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install 'lit-align\[vllm\]'"):
        draw(VLLMSampler(), policy, tokenizer)


# -- docs/servers.md


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL))
def test_every_yaml_of_the_docs_builds(text: str) -> None:
    config = yaml.safe_load(text)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments((Judge, Sampler), "part")
    part = parser.instantiate(parser.parse_object({"part": config})).part
    assert type(part).__name__ == config["class_path"].rpartition(".")[2]
