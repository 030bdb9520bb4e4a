"""A chat with a trained policy, with its history and a few commands; knows nothing of terminals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from lit_align.policy.load import load_position_limit
from lit_align.records import Message
from lit_align.sampling import TransformersSampler
from lit_align.seeding import derive_seed
from lit_align.talk.stream import stream_answer
from lit_align.trained import TrainedPolicy

TRAINED = "trained"
START = "start"
COMMANDS = {
    "/base": "switch to the model that the run started from, and back",
    "/again": "answer the last question anew, with the model that is on",
    "/reset": "forget the chat",
    "/help": "show this",
    "/exit": "end; so does Ctrl-D",
}


@dataclass(frozen=True)
class ChatSettings:
    """How answers are sampled.

    Args:
        system: the system turn; None for none.
        temperature: divides the logits; 0 is greedy.
        top_p: keep the most likely tokens that hold this share of the probability, in (0, 1].
        max_new_tokens: an answer is cut at this many tokens.
        seed: with the number of the answer, decides what is drawn.
    """

    system: str | None = None
    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 0


class Chat:
    """The turns so far, and which of the two models answers.

    Args:
        policy: the trained policy.
        settings: how it is sampled.

    Attributes:
        speaker: "trained" or "start".
        turns: the turns so far, the system's included.
    """

    def __init__(self, policy: TrainedPolicy, settings: ChatSettings) -> None:
        self._policy = policy
        self._settings = settings
        self._answers = 0
        self.speaker = TRAINED
        self.turns: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forgets all but the system turn."""
        system = self._settings.system
        self.turns = [] if system is None else [Message("system", system)]

    def switch(self) -> str:
        """Lets the other model answer from here on. Returns its name.

        Raises:
            ValueError: it is not known what the model was trained from.
        """
        if self.speaker == START:
            self.speaker = TRAINED
        else:
            with self._policy.at_start():  # it may have to be loaded, and it may not be known
                self.speaker = START
        return self.speaker

    def ask(self, question: str, emit: Callable[[str], object]) -> str:
        """Answers a question.

        Args:
            question: the user's turn.
            emit: gets the answer's text as it comes.

        Raises:
            ValueError: the chat template refuses the chat, or the chat is longer than the model takes.
        """
        turns = [*self.turns, Message("user", question)]
        prompt_ids = self._policy.encoder.encode_prompt(tuple(turns))
        sampler = self._sampler(len(prompt_ids))
        self._answers += 1
        key = derive_seed(self._settings.seed, "chat", self._answers)
        with self._policy.at_start() if self.speaker == START else nullcontext(self._policy.model) as model:
            answer = stream_answer(model, self._policy.encoder, prompt_ids, sampler, key, emit)
        self.turns = [*turns, Message("assistant", answer)]
        return answer

    def again(self, emit: Callable[[str], object]) -> str | None:
        """Answers the last question anew; None if there is none."""
        if not self.turns or self.turns[-1].role != "assistant":
            return None
        question = self.turns[-2].content
        self.turns = self.turns[:-2]
        return self.ask(question, emit)

    def _sampler(self, prompt_tokens: int) -> TransformersSampler:
        most = self._settings.max_new_tokens
        if self._positions is not None:
            if prompt_tokens >= self._positions:
                raise ValueError(
                    f"the chat has {prompt_tokens} tokens, and the model takes {self._positions}: /reset begins anew"
                )
            most = min(most, self._positions - prompt_tokens)
        return TransformersSampler(
            num_candidates=1,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
            max_new_tokens=most,
        )

    @functools.cached_property
    def _positions(self) -> int | None:
        return load_position_limit(self._policy.spec)[0]
