"""The reference's log-probabilities, stored beside the pairs that they belong to.

They follow from the reference's weights and the pairs' tokens, and the tokens from a tokenizer with
its chat template. Each has a fingerprint of its own, so that what is stale can say why.
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
    """Refuse stored ones that are of other weights or tokens, or damaged; else compute anew."""


@dataclasses.dataclass(frozen=True)
class ReferenceIdentity:
    """What reference log-probabilities belong to, as fingerprints.

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
        """Of a reference model and rendered pairs.

        Args:
            model: the reference.
            pairs: in the order of their log-probabilities.
            tokenizer: `ChatTemplate.fingerprint` of what rendered them.
        """
        tokens = [[pair.prompt, pair.chosen, pair.rejected] for pair in pairs]
        return cls(model_fingerprint(model), io.fingerprint(tokens), tokenizer)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Names of the fingerprints that are others in `other`."""
        return [name for name, value in dataclasses.asdict(self).items() if other[name] != value]


def save_reference(path: str | Path, reference: np.ndarray, identity: ReferenceIdentity) -> None:
    """Keep reference log-probabilities `[P, 2]` with what they belong to.

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
    """What `save_reference` kept, or None and why it is to be computed anew.

    Args:
        path: the file.
        identity: what it must belong to.
        strict: refuse a file that can't be used.

    Raises:
        InputError: strict, and the stored ones are damaged or belong to something else.
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
            f"{path}: reference log-probabilities: {reason}, and reference.strict is set; remove "
            "the file to have them computed anew, or leave --reference.strict out"
        )
    return None, reason


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
