"""Stop strings, found in tokens on the device.

A stop string may begin and end inside tokens, and many token sequences spell it, so the search is
over bytes. The state of an Aho-Corasick automaton is the longest beginning of a stop string at the
end of the text. The state after each token, from each state, is computed once for the whole
vocabulary, so a step of decoding takes one look-up per row.

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

START = 0  # the text ends with no beginning of a string
FOUND = 1  # the text contains one of the strings; every token keeps this state
MOST_BYTES = 1 << 12  # of all strings of a set: each byte adds a row of V states


@dataclasses.dataclass(frozen=True, eq=False)
class StopTable:
    """One set of stop strings over one vocabulary. Build it with `compile_stops`.

    table: `[Q, V]` uint16 state after each token, from each state; row 0 is `START`'s, row 1
        `FOUND`'s.
    """

    table: np.ndarray  # [Q, V]


def compile_stops(strings: Sequence[str], texts: Sequence[bytes], *, vocab_size: int) -> StopTable:
    """Return the automaton that finds any of `strings` in a sequence of tokens.

    Args:
        strings: the stop strings, none of them empty; there may be none.
        texts: the bytes of each token (see `ixjax.dialogue.token_bytes`). A token without bytes
            changes no state.
        vocab_size: V, at least `len(texts)`; tokens after those have no bytes.

    Raises:
        ValueError: a string is empty, there are more tokens than `vocab_size`, or the strings have
            more than `MOST_BYTES` bytes.
    """
    if "" in strings:
        raise ValueError(f"stop strings are {list(strings)}; expected a character in each")
    if len(texts) > vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size}; expected {len(texts)} or more, one per token. Take "
            "vocab_size from the model, which has at least as many as its tokenizer"
        )
    wanted = {text.encode() for text in strings}
    if (size := sum(map(len, wanted))) > MOST_BYTES:
        raise ValueError(f"stop strings have {size} bytes; expected {MOST_BYTES} at most")
    return StopTable(_lift(_automaton(wanted), texts, vocab_size))


def _automaton(strings: set[bytes]) -> np.ndarray:
    """Return `[Q, 256]` uint16 state after each byte, from each state."""
    # A string that contains another is never found first, so it is left out.
    strings = {text for text in strings if not any(other in text for other in strings - {text})}
    begun = {text[:length] for text in strings for length in range(1, len(text))}
    # Shortest first: a row is filled from the row of a shorter prefix.
    prefixes = sorted(begun, key=lambda prefix: (len(prefix), prefix))
    states = {b"": START} | dict.fromkeys(strings, FOUND)
    states |= {prefix: state for state, prefix in enumerate(prefixes, FOUND + 1)}
    after = np.full((FOUND + 1 + len(begun), 256), START, np.uint16)
    after[FOUND] = FOUND
    for prefix in (b"", *prefixes):
        # A byte that continues no string leads to its state from the longest suffix in `states`.
        row = after[states[prefix]]
        row[:] = after[_walk(after, prefix[1:], START)]
        for byte in range(256):
            row[byte] = states.get(prefix + bytes([byte]), row[byte])
    return after


def _lift(after: np.ndarray, texts: Sequence[bytes], vocab_size: int) -> np.ndarray:
    """Return `[Q, V]` state after all bytes of each token, from that after each byte."""
    lengths = np.zeros(vocab_size, np.int64)
    lengths[: len(texts)] = np.fromiter(map(len, texts), np.int64, len(texts))
    text = np.frombuffer(b"".join(texts), np.uint8)
    starts = np.cumsum(lengths) - lengths
    # Longest first, so that the tokens with a byte at a place are one slice.
    order = np.argsort(-lengths, kind="stable")
    states = np.repeat(np.arange(len(after), dtype=np.uint16)[:, None], vocab_size, axis=1)
    for place in range(lengths.max(initial=0)):
        some = order[: np.count_nonzero(lengths > place)]
        states[:, : len(some)] = after[states[:, : len(some)], text[starts[some] + place]]
    table = np.empty_like(states)
    table[:, order] = states
    return table


def stack_stops(tables: Sequence[StopTable], *, vocab_size: int) -> np.ndarray:
    """Stack several sets in one array, from which rows choose by index.

    Args:
        tables: the sets; may be none.
        vocab_size: V of all of them.

    Returns:
        `[A, Q, V]` uint16, A = 1 + len(tables). Set 0 never stops, set 1 + i is `tables[i]`;
        `START` and `FOUND` are the same in all; states that a set lacks are never reached.

    Raises:
        ValueError: a table is for another vocabulary.
    """
    for i, stops in enumerate(tables):
        if stops.table.shape[1] != vocab_size:
            raise ValueError(
                f"table {i} is for a vocabulary of {stops.table.shape[1]}; expected {vocab_size}"
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
    """Return the state of each row after one more token.

    Args:
        tables: `[A, Q, V]` (see `stack_stops`).
        which: `[S]` the set of each row; 0 never stops.
        state: `[S]` integers, `START` where a turn begins.
        token: `[S]` in [0, V).

    Returns:
        `[S]` of the type of `state`; `FOUND` from the token that completes a string on.
    """
    return jnp.asarray(tables)[which, state, token].astype(state.dtype)


def state_after(stops: StopTable, tokens: Iterable[int], *, state: int = START) -> int:
    """Return the state after `tokens`, on the host, to continue a turn that is decoded in parts."""
    return _walk(stops.table, tokens, state)


def _walk(table: np.ndarray, symbols: Iterable[int], state: int) -> int:
    for symbol in symbols:
        state = int(table[state, symbol])
    return state


def cut(
    tokens: Sequence[int], strings: Sequence[str], texts: Sequence[bytes]
) -> tuple[int, bytes] | None:
    """Cut a turn before its first stop string; return None if it has none.

    Args:
        tokens: the turn.
        strings: the stop strings.
        texts: the bytes of each token.

    Returns:
        The number of whole tokens before the stop string, and the text before it.
    """
    # A model may have more tokens than its tokenizer; those have no text.
    said = [texts[token] if token < len(texts) else b"" for token in tokens]
    text = b"".join(said)
    places = [place for string in strings if (place := text.find(string.encode())) >= 0]
    if not places:
        return None
    whole = np.searchsorted(np.cumsum([len(part) for part in said]), min(places), side="right")
    return int(whole), text[: min(places)]
