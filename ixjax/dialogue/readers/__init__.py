"""Corpus readers: each reads one file format (published ones, and ours) as dialogues."""

from ixjax.dialogue.readers.account import ReadingAccount
from ixjax.dialogue.readers.esconv import read_esconv
from ixjax.dialogue.readers.jsonl import read_user_jsonl
from ixjax.dialogue.readers.p4g import read_p4g

__all__ = ["ReadingAccount", "read_esconv", "read_p4g", "read_user_jsonl"]
