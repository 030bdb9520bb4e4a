"""A small client for servers that speak OpenAI's JSON over HTTP; judges and samplers share it."""

from lit_align.remote.client import Server
from lit_align.remote.errors import RequestFailed, RequestRefused, ServerError, ServerUnreachable
from lit_align.remote.exchange import Reply

__all__ = ["Reply", "RequestFailed", "RequestRefused", "Server", "ServerError", "ServerUnreachable"]
