"""Stored log-probabilities of pairs under the reference model.

They depend on the reference's weights, the pairs' tokens, and the tokenizer with its chat template.
Each has a fingerprint, so that a message can name the one that changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ixjax import io
from ixjax.dialogue.chat import RenderedPair
from ixjax.models import Transformer
from ixjax.training.saved_models import model_fingerprint

SCHEMA = "ixjax.reference"


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """Stored reference log-probabilities."""

    strict: bool = False
    """Stop if stored log-probabilities are damaged or do not fit, instead of recomputing them."""


@dataclasses.dataclass(frozen=True)
class ReferenceIdentity:
    """Fingerprints of everything that reference log-probabilities depend on.

    weights: of the reference model.
    tokens: of the pairs, in their order.
    tokenizer: of the tokenizer and its chat template.
    """

    weights: str
    tokens: str
    tokenizer: str

    @classmethod
    def of(
        cls, model: Transformer, pairs: Sequence[RenderedPair], *, tokenizer: str
    ) -> ReferenceIdentity:
        """Return the fingerprints of a reference model and rendered pairs.

        Args:
            model: the reference.
            pairs: in the order of their log-probabilities.
            tokenizer: `ChatTemplate.fingerprint` of the template that rendered them.
        """
        tokens = [[pair.prompt, pair.chosen, pair.rejected] for pair in pairs]
        return cls(model_fingerprint(model), io.fingerprint(tokens), tokenizer)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return the names of the fingerprints that differ in `other`."""
        return [name for name, value in dataclasses.asdict(self).items() if other[name] != value]


def save_reference(path: str | Path, reference: np.ndarray, identity: ReferenceIdentity) -> None:
    """Write reference log-probabilities `[P, 2]` and their fingerprints.

    Args:
        path: the file (JSON).
        reference: of chosen and rejected responses, in the order of the pairs.
        identity: of model, pairs and tokenizer.
    """
    head = {"schema": SCHEMA, "version": io.SCHEMA_VERSION}
    fingerprints = {"fingerprints": dataclasses.asdict(identity)}
    io.write_json(path, head | fingerprints | {"logprobs": reference.tolist()})


def load_reference(
    path: str | Path, identity: ReferenceIdentity, *, strict: bool = False
) -> tuple[np.ndarray | None, str]:
    """Read the file of `save_reference`.

    Args:
        path: the file.
        identity: the fingerprints that it must have.
        strict: refuse a file that can't be used.

    Returns:
        The log-probabilities and "stored", or None and the reason to recompute them.

    Raises:
        InputError: strict, and the file is damaged or has other fingerprints.
    """
    if not Path(path).exists():
        return None, "none are stored"
    try:
        record = io.read_json(path)
        reference = np.array(record["logprobs"], np.float32).reshape(-1, 2)
        if (record["schema"], record["version"]) != (SCHEMA, io.SCHEMA_VERSION):
            raise ValueError("another schema")
        changed = identity.differences(record["fingerprints"])
    except (io.InputError, KeyError, TypeError, ValueError):
        reason = "the stored ones are damaged or of an older version"
    else:
        if not changed:
            return reference, "stored"
        reason = f"{_listed(changed)} changed since they were stored"
    if strict:
        raise io.InputError(
            f"{path}: reference log-probabilities: {reason}, and --reference.strict is set. Remove "
            "the file to recompute them, or omit --reference.strict."
        )
    return None, reason


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
