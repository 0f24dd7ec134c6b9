"""What of a Sampling can only be checked once the model is known. No torch."""

from __future__ import annotations

from ..errors import InvalidRequest
from ..requests import Sampling


def check_sampling(sampling: Sampling, vocab_size: int) -> None:
    """Raises InvalidRequest when `sampling` names a token id that is not in `[0, vocab_size)`."""
    for token_id in sampling.logit_bias:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"logit_bias names token {token_id}, but this model's tokens are 0 to {vocab_size - 1}; remove it"
            )
