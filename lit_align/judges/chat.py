"""The judge that is a chat model behind an OpenAI-compatible API."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_align.checks import require_at_least_1
from lit_align.console import note, show_activity
from lit_align.judges.base import Comparison, PairwiseJudge
from lit_align.judges.chat_prompt import TEMPLATE, VERDICT, Question, Verdict, behind_thoughts
from lit_align.judges.vote_arrays import ABSTAINED
from lit_align.remote import Reply, RequestRefused, Server, ServerError, ServerUnreachable

_CUT = ("length", "content_filter")
"""Why a server ends an answer before the model does, as `finish_reason`."""
_EVERY = 60.0  # seconds from one line about the progress to the next


class TooManyAbstentions(RuntimeError):
    """The judge fails too often for its verdicts to stand for anything."""


@dataclass
class Usage:
    """The requests of a chat judge in this process so far, with their cost.

    Args:
        answers: requests that were answered.
        retries: requests that were repeated.
        failed: comparisons without an answer; each is an abstention.
        unparsed: comparisons whose answer has no clear verdict; each is an abstention.
        unfinished: comparisons whose answer was cut or stops within a thought; each is an abstention.
        prompt_tokens: as the server counts them.
        completion_tokens: as the server counts them.
        seconds: spent waiting.
    """

    answers: int = 0
    retries: int = 0
    failed: int = 0
    unparsed: int = 0
    unfinished: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def add(self, reply: Reply) -> None:
        """Counts an answer and the tokens that it says it took."""
        self.answers += 1
        self.retries += reply.retries
        used = reply.payload.get("usage")
        counts: Mapping[str, Any] = used if isinstance(used, dict) else {}
        for name in ("prompt_tokens", "completion_tokens"):
            if isinstance(counts.get(name), int):
                setattr(self, name, getattr(self, name) + counts[name])


class ChatJudge(PairwiseJudge):
    """Asks a chat model which of two answers is better, each pair in both orders.

    A comparison that gets no answer, an unfinished one, or one without exactly one verdict is an abstention: it is
    counted and left out. Too many of them stop the run, as do a refused key and a server that cannot be reached.

    Args:
        model: the name that the server knows the model by.
        base_url: with the version, without the route: `http://localhost:8000/v1`; or several that serve the same model
            and share the comparisons.
        api_key_env: name of the environment variable that holds the key; where it is not set, none is sent. The key
            itself is kept nowhere.
        template: what to ask: a text with `{prompt}`, `{first}`, `{second}` and, for delimiters that an answer cannot
            forge, `{mark}`; or a file with it. null takes one that asks for [[A]], [[B]] or [[C]].
        verdict: regular expression that must match the answer exactly once, behind the thoughts that it shows
            (`<think>...</think>` and the like); its groups `first`, `second` and `tie` tell who won.
        temperature: of the chat model; null leaves it to the server, for models that refuse the setting.
        max_tokens: longest answer in tokens; null leaves it to the server.
        extra_body: more fields of the request, such as `{max_completion_tokens: 2000}`.
        concurrency: requests under way at once for each server, in each process.
        retries: how often a request is repeated that met a busy or broken server.
        connect_timeout: seconds for a connection.
        timeout: seconds for a whole answer.
        max_abstentions: largest share of abstentions among the last `abstention_window` comparisons, in [0, 1].
        abstention_window: comparisons to look back on; nothing is stopped before as many were made.
        prompt_price: of a million prompt tokens, in any currency.
        completion_price: of a million completion tokens.

    Attributes:
        usage: what was done so far, see :class:`Usage`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        model: str,
        base_url: str | list[str] = "https://api.openai.com/v1",
        api_key_env: str | None = "OPENAI_API_KEY",
        template: str | None = None,
        verdict: str = VERDICT,
        temperature: float | None = 0.0,
        max_tokens: int | None = 1024,
        extra_body: dict[str, Any] | None = None,
        concurrency: int = 8,
        retries: int = 6,
        connect_timeout: float = 10.0,
        timeout: float = 120.0,
        max_abstentions: float = 0.2,
        abstention_window: int = 50,
        prompt_price: float | None = None,
        completion_price: float | None = None,
    ) -> None:
        if not 0 <= max_abstentions <= 1:
            raise ValueError(f"max_abstentions must be a share in [0, 1], got {max_abstentions}")
        require_at_least_1(abstention_window=abstention_window)
        self._server = Server(base_url, api_key_env, concurrency, retries, connect_timeout, timeout)
        self._question = Question(TEMPLATE if template is None else template)
        self._verdict = Verdict(verdict)
        settings = {"temperature": temperature, "max_tokens": max_tokens, **(extra_body or {})}
        self._settings = {"model": model, **{name: value for name, value in settings.items() if value is not None}}
        self._price = (prompt_price, completion_price)
        self._max_abstentions = max_abstentions
        self._lately: deque[str | None] = deque(maxlen=abstention_window)  # why each abstained; None: it did not
        self.usage = Usage()
        self._shown = time.monotonic()
        question = json.dumps([self._settings, self._question.template, verdict], sort_keys=True).encode()
        digest = hashlib.blake2b(question, digest_size=6).hexdigest()
        self.identity = f"chat:{model}@{','.join(self._server.pool.urls)}#{digest}"

    @property
    def cost(self) -> float | None:
        """The price of what was used so far; None without prices."""
        if self._price == (None, None):
            return None
        prompt, completion = (price or 0.0 for price in self._price)
        return (self.usage.prompt_tokens * prompt + self.usage.completion_tokens * completion) / 1e6

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """See :meth:`PairwiseJudge.compare` and :meth:`compare_each`."""
        verdicts = [ABSTAINED] * len(comparisons)
        for place, verdict in self.compare_each(comparisons):
            verdicts[place] = verdict
        return verdicts

    def compare_each(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, float]]:
        """One request for each comparison, in the order in which they are answered.

        Raises:
            TooManyAbstentions: more of the last comparisons failed than `max_abstentions` allows.
            ServerError: the server cannot be reached, or refuses every request.
        """
        equal = [comparison.first == comparison.second for comparison in comparisons]
        yield from ((n, 0.5) for n, same in enumerate(equal) if same)  # a tie, without a request
        unequal = [n for n, same in enumerate(equal) if not same]
        bodies = [self._body(comparisons[n]) for n in unequal]
        started = time.monotonic()
        bar = show_activity(len(bodies), "asking the judge", "comparisons")
        try:
            with bar, self._server.answers("/chat/completions", bodies) as answers:
                for index, outcome in answers:
                    started = self._count_wait(started)
                    verdict = self._read_verdict(outcome)
                    bar.update()
                    self._show_progress()
                    yield unequal[index], verdict
            self._require_verdicts()
        finally:
            self._count_wait(started)

    def _body(self, comparison: Comparison) -> dict[str, Any]:
        return {**self._settings, "messages": [{"role": "user", "content": self._question(comparison)}]}

    def _count_wait(self, since: float) -> float:
        now = time.monotonic()
        self.usage.seconds += now - since
        return now

    def _show_progress(self) -> None:
        now = time.monotonic()
        if now - self._shown >= _EVERY:
            self._shown = now
            note(self.report() or "")

    def report(self) -> str | None:
        """One line: how much was asked, what failed, and what it took; None before anything was asked."""
        used = self.usage
        if not used.answers + used.failed:
            return None
        abstained = used.failed + used.unparsed + used.unfinished
        why = f"{used.unparsed} without a verdict, {used.unfinished} unfinished, {used.failed} failed"
        parts = [
            f"judge {self._settings['model']}: {used.answers + used.failed:,} comparisons so far",
            f"{abstained} abstentions ({why})" if abstained else "no abstentions",
            f"{used.prompt_tokens:,} + {used.completion_tokens:,} tokens",
        ]
        parts += [f"{used.retries:,} retries"] if used.retries else []
        parts += [f"cost {self.cost:.4f}"] if self.cost is not None else []
        return ", ".join([*parts, f"{used.seconds:.1f} s"])

    def _read_verdict(self, outcome: Reply | ServerError) -> float:
        """The verdict in an outcome, which is counted."""
        if isinstance(outcome, ServerError):
            self.usage.failed += 1
            self.usage.retries += outcome.retries
            if isinstance(outcome, ServerUnreachable) or (isinstance(outcome, RequestRefused) and outcome.for_all):
                raise outcome
            return self._abstain(str(outcome))
        self.usage.add(outcome)
        text, cut = _answer(outcome.payload)
        conclusion = behind_thoughts(text)
        if conclusion is None or (cut and not self._verdict.leads):
            self.usage.unfinished += 1
            how = f"was cut (finish_reason {cut!r}, `max_tokens`)" if cut else "stops within a thought"
            return self._abstain(f"an answer that {how}: {text[-200:]!r}")
        verdict = self._verdict(conclusion)
        if verdict is None:
            self.usage.unparsed += 1
            return self._abstain(f"an answer without exactly one verdict (`verdict`): {text[-200:]!r}")
        self._lately.append(None)
        return verdict

    def _abstain(self, why: str) -> float:
        self._lately.append(why)
        failures = [reason for reason in self._lately if reason is not None]
        if len(self._lately) == self._lately.maxlen and len(failures) > self._max_abstentions * len(self._lately):
            raise self._too_many(failures)
        return ABSTAINED

    def _require_verdicts(self) -> None:
        """After a batch: a judge that never gave a verdict is set up wrongly, however few it was asked for."""
        without = self.usage.unparsed + self.usage.unfinished
        if self._max_abstentions < 1 and self._lately and self.usage.answers == without:
            raise self._too_many([reason for reason in self._lately if reason is not None])

    def _too_many(self, failures: Sequence[str]) -> TooManyAbstentions:
        return TooManyAbstentions(
            f"{self.identity} abstained in {len(failures)} of its last {len(self._lately)} comparisons, and "
            f"max_abstentions is {self._max_abstentions}. The last one: {failures[-1]}"
        )


def _answer(payload: Mapping[str, Any]) -> tuple[str, str | None]:
    """The answer's text, empty where there is none, and why the server cut it, if it did."""
    try:
        choice = payload["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return "", None
    reason = choice.get("finish_reason")
    return text if isinstance(text, str) else "", reason if reason in _CUT else None
