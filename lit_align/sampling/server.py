"""The sampler that is an OpenAI-compatible completions server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_align.records import Candidate, FinishReason
from lit_align.remote import Reply, Server, ServerError
from lit_align.sampling.base import SamplingRequest, candidate_of_ids
from lit_align.sampling.engine import EngineSampler
from lit_align.sampling.publish import LoraPublisher, Publisher

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class ServerSampler(EngineSampler):
    """Samples from a server that holds the policy's base and gets its adapter before a call if that has changed.

    Prompts go as token ids (vLLM's completions API), one request a prompt with `n` = K and a seed of its own. The
    server is asked for the sampled ids. If it gives only text, the text is tokenised again, with a warning.

    The answers are the policy's own only if the server computes the same: it must hold the same base, and if the
    policy's base is quantised (QLoRA), the server's numbers differ by the rounding. The same seed draws the same
    candidates only if the server honours seeds.

    Args:
        base_url: the server's address with the version, without the route: `http://localhost:8000/v1`; or several,
            which share the prompts. One that is lost leaves its prompts to the others.
        api_key_env: name of the environment variable that holds the key; null sends none.
        publisher: brings the policy's current weights there; by default its LoRA adapter, through a folder.
        concurrency: requests under way at once for each server, in each process; the server batches them.
        retries: how often a request is repeated if the server is busy or broken.
        connect_timeout: seconds for a connection.
        timeout: seconds for all candidates of one prompt, waiting in the server's queue included.
        kwargs: those of :class:`~lit_align.sampling.base.TokenSampler`: how many candidates, and how they are drawn.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        base_url: str | list[str],
        api_key_env: str | None = None,
        publisher: Publisher | None = None,
        *,
        concurrency: int = 64,
        retries: int = 6,
        connect_timeout: float = 10.0,
        timeout: float = 600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._server = Server(base_url, api_key_env, concurrency, retries, connect_timeout, timeout)
        self._publisher = publisher if publisher is not None else LoraPublisher()

    def sample(self, request: SamplingRequest) -> list[tuple[Candidate, ...]]:
        """See :meth:`Sampler.sample`.

        Raises:
            ServerError: a prompt got no answer, or one that cannot be used.
        """
        num_draws, copies = self.count_draws_and_copies(request)
        stop_ids = request.stop_ids
        tokenizer = request.tokenizer
        name = self._publisher.publish(request.model, self._server)
        bodies = [
            {
                "model": name,
                "prompt": list(ids),
                "return_token_ids": True,
                **self.settings(num_draws, stop_ids, seed),
            }
            for ids, seed in zip(request.prompt_ids, request.seeds, strict=True)
        ]
        candidates: list[tuple[Candidate, ...]] = [()] * len(bodies)
        with self._server.answers("/completions", bodies) as answers:
            for place, outcome in answers:
                if isinstance(outcome, ServerError):
                    raise outcome
                choices = _choices(outcome, name, num_draws)
                drawn = (_candidate(choice, outcome.url, stop_ids, tokenizer) for choice in choices)
                candidates[place] = tuple(drawn) * copies
                request.report(num_draws * copies)
        return candidates


def _choices(reply: Reply, name: str, num_draws: int) -> list[Mapping[str, Any]]:
    """The drawn texts in the order of their index.

    Raises:
        ServerError: another model answered, or there are more or fewer than `num_draws` texts.
    """
    url = reply.url
    if reply.payload.get("model", name) != name:
        raise ServerError(
            f"{url} answered from {reply.payload['model']!r}, asked for {name!r}: its weights are not the policy's"
        )
    choices = reply.payload.get("choices")
    if not isinstance(choices, list) or len(choices) != num_draws or not all(map(_is_well_formed, choices)):
        got = f"'choices': {choices}"[:300]
        raise ServerError(f"{url} was asked for {num_draws} texts of a prompt (`n`) and answered {got}")
    return sorted(choices, key=lambda choice: choice["index"])


def _candidate(
    choice: Mapping[str, Any], url: str, stop_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> Candidate:
    reason = _REASONS.get(choice.get("finish_reason", ""))
    if reason is None:
        raise ServerError(
            f"{url} ended an answer for the reason {choice.get('finish_reason')!r}, expected one of stop and length: "
            "see the server's log"
        )
    ids = choice.get("token_ids")
    if ids is not None:
        candidate = candidate_of_ids(ids, stop_ids, tokenizer)
        if candidate.finish_reason is reason:
            return candidate
    rank_zero_warn(
        f"{url} gives no ids of what it sampled that end as it says, so its text is tokenised again, which may split "
        "it differently (vLLM 0.10.2 and later give them: return_token_ids)"
    )
    return Candidate(choice["text"], finish_reason=reason)


def _is_well_formed(choice: Any) -> bool:
    if not isinstance(choice, dict) or not isinstance(choice.get("index"), int):
        return False
    ids = choice.get("token_ids")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(token, int) for token in ids)):
        return False
    return isinstance(choice.get("text"), str)
