"""Texts that end a turn, found in tokens on the device.

A stop string may begin and end inside of tokens, and a model may spell it in many ways, so it is
looked for in bytes. An Aho-Corasick automaton reads text byte by byte and knows, in one state, how
much of any of the strings stands at its end. A token is a few bytes, so where it leads from each
state is computed once, for the whole vocabulary; a step of decoding is then one look-up per row.

References: Aho & Corasick 1975, "Efficient String Matching"; Willard & Louf 2023, "Efficient Guided
Generation for Large Language Models" (automata over bytes as tables over tokens).

Axes: A sets of stop strings, Q states, S rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

START = 0  # nothing of any string stands at the end of the text
FOUND = 1  # the text contains one of the strings; no token leads out
MOST_BYTES = 1 << 12  # of all strings of a set: each is a row of V states


@dataclasses.dataclass(frozen=True, eq=False)
class StopTable:
    """One set of stop strings over one vocabulary. Build it with `compile_stops`.

    table: `[Q, V]` uint16 state after each token, from each state; row 0 is `START`'s, row 1
        `FOUND`'s.
    """

    table: np.ndarray  # [Q, V]


def compile_stops(strings: Sequence[str], pieces: Sequence[bytes], *, vocab_size: int) -> StopTable:
    """The automaton that finds any of `strings` in a text of tokens.

    Args:
        strings: none of them empty; with no strings at all, nothing is ever found.
        pieces: the bytes of each token (see `ixjax.dialogue.token_bytes`). A token without bytes
            changes nothing.
        vocab_size: V, at least `len(pieces)`; tokens behind them have no bytes.

    Raises:
        ValueError: a string is empty, there are more tokens than `vocab_size`, or the strings have
            more than `MOST_BYTES` bytes.
    """
    if "" in strings:
        raise ValueError(f"stop strings are {list(strings)}; each must have at least one character")
    if len(pieces) > vocab_size:
        raise ValueError(
            f"{len(pieces)} tokens were given for a vocabulary of {vocab_size}; take vocab_size "
            "from the model, which has at least as many as its tokenizer"
        )
    texts = {text.encode() for text in strings}
    if (size := sum(map(len, texts))) > MOST_BYTES:
        raise ValueError(f"stop strings have {size} bytes; a set may have {MOST_BYTES}")
    return StopTable(_lift(_automaton(texts), pieces, vocab_size))


def _automaton(texts: set[bytes]) -> np.ndarray:
    """`[Q, 256]` uint16 state after each byte, from each state."""
    # A text that contains another is never found before it.
    texts = {text for text in texts if not any(other in text for other in texts - {text})}
    begun = {text[:length] for text in texts for length in range(1, len(text))}
    # The shortest first: what a row is filled from has its row then.
    prefixes = sorted(begun, key=lambda prefix: (len(prefix), prefix))
    states = {b"": START} | dict.fromkeys(texts, FOUND)
    states |= {prefix: state for state, prefix in enumerate(prefixes, FOUND + 1)}
    after = np.full((FOUND + 1 + len(begun), 256), START, np.uint16)
    after[FOUND] = FOUND
    for prefix in (b"", *prefixes):
        # A byte that no text goes on with leads where it leads from the longest suffix in `states`.
        row = after[states[prefix]]
        row[:] = after[_walk(after, prefix[1:], START)]
        for byte in range(256):
            row[byte] = states.get(prefix + bytes([byte]), row[byte])
    return after


def _lift(after: np.ndarray, pieces: Sequence[bytes], vocab_size: int) -> np.ndarray:
    """`[Q, V]` state after all bytes of each token, given that after each byte."""
    lengths = np.zeros(vocab_size, np.int64)
    lengths[: len(pieces)] = np.fromiter(map(len, pieces), np.int64, len(pieces))
    text = np.frombuffer(b"".join(pieces), np.uint8)
    starts = np.cumsum(lengths) - lengths
    # The longest first, so that those with a byte at a place are one slice.
    order = np.argsort(-lengths, kind="stable")
    states = np.repeat(np.arange(len(after), dtype=np.uint16)[:, None], vocab_size, axis=1)
    for place in range(lengths.max(initial=0)):
        some = order[: np.count_nonzero(lengths > place)]
        states[:, : len(some)] = after[states[:, : len(some)], text[starts[some] + place]]
    table = np.empty_like(states)
    table[:, order] = states
    return table


def stack_stops(tables: Sequence[StopTable], *, vocab_size: int) -> np.ndarray:
    """Several sets in one array, for rows that choose theirs by index.

    Args:
        tables: the sets; may be none.
        vocab_size: V of all of them.

    Returns:
        `[A, Q, V]` uint16, A = 1 + len(tables). Set 0 never stops, set 1 + i is `tables[i]`;
        `START` and `FOUND` are the same in all, and states that a set lacks are never reached.

    Raises:
        ValueError: a table is for another vocabulary.
    """
    for i, stops in enumerate(tables):
        if stops.table.shape[1] != vocab_size:
            raise ValueError(
                f"table {i} is for a vocabulary of {stops.table.shape[1]}, not of {vocab_size}"
            )
    most = max((len(stops.table) for stops in tables), default=FOUND + 1)
    stacked = np.full((1 + len(tables), most, vocab_size), START, np.uint16)
    stacked[:, FOUND] = FOUND
    for i, stops in enumerate(tables, 1):
        stacked[i, : len(stops.table)] = stops.table
    return stacked


def advance(
    tables: jax.Array | np.ndarray, which: jax.Array, state: jax.Array, token: jax.Array
) -> jax.Array:
    """The state of each row after one more token.

    Args:
        tables: `[A, Q, V]` (see `stack_stops`).
        which: `[S]` the set of each row; 0 never stops.
        state: `[S]` integers, `START` where a turn begins.
        token: `[S]` in [0, V).

    Returns:
        `[S]` of `state`'s type; `FOUND` from the token on that completes a string.
    """
    return jnp.asarray(tables)[which, state, token].astype(state.dtype)


def state_after(stops: StopTable, tokens: Iterable[int], *, state: int = START) -> int:
    """The state after `tokens`, on the host: where a turn that is decoded in parts goes on."""
    return _walk(stops.table, tokens, state)


def _walk(table: np.ndarray, symbols: Iterable[int], state: int) -> int:
    for symbol in symbols:
        state = int(table[state, symbol])
    return state


def cut(
    tokens: Sequence[int], strings: Sequence[str], pieces: Sequence[bytes]
) -> tuple[int, bytes] | None:
    """Where the first stop string of a turn begins; None where there is none.

    Args:
        tokens: the turn.
        strings: what ends it.
        pieces: the bytes of each token.

    Returns:
        How many whole tokens stand before it, and what of their text and of the token it begins in.
    """
    # A model may have more tokens than its tokenizer: they have no text.
    said = [pieces[token] if token < len(pieces) else b"" for token in tokens]
    text = b"".join(said)
    places = [place for string in strings if (place := text.find(string.encode())) >= 0]
    if not places:
        return None
    whole = np.searchsorted(np.cumsum([len(piece) for piece in said]), min(places), side="right")
    return int(whole), text[: min(places)]
