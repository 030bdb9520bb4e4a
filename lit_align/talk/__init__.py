"""Talking to a trained policy: a chat in the terminal, and answers to a file of prompts."""

from lit_align.talk.chat import Chat, ChatSettings
from lit_align.talk.sample import answer_rows, read_prompts_of

__all__ = ["Chat", "ChatSettings", "answer_rows", "read_prompts_of"]
