"""The on-device runtime: sessions, sampling, constraints, generation, chat, bench. No torch."""

from .chat import Conversation
from .constraints import json_schema, regex
from .device_file import load
from .generation import Event, GenerationOptions
from .language_model import LanguageModel
from .sampling import GREEDY, Sampling
from .tokenizer import Tokenizer, read_chat_template, read_tokenizer

__all__ = [
    "GREEDY",
    "Conversation",
    "Event",
    "GenerationOptions",
    "LanguageModel",
    "Sampling",
    "Tokenizer",
    "json_schema",
    "load",
    "read_chat_template",
    "read_tokenizer",
    "regex",
]
