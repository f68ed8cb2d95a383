"""Which token id stands for a thought: one that the model knows and nobody means.

The embedding has to have a row for the id, because vLLM looks every token up; what the row holds is never used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Final

from latentmas.errors import CapabilityError

_UNUSED: Final = re.compile(
    r"reserved|unused|extra_id|placeholder|<SPECIAL_\d+>|\[control_\d+\]|image|video|audio|vision|fim_|repo_name|file_sep|pad"
)
"""Names that model makers give to tokens a text model does not use."""


def choose_placeholder(
    tokenizer: Any, *, vocabulary: int, stop_tokens: Collection[int], with_text: bool = False
) -> int:
    """Return the id.

    An id above the tokenizer and below the embedding comes first, because no text can hold it; then a special token
    whose name says that it is not used; then the padding token. Asked for one `with_text`, the first comes last.

    Args:
        tokenizer: A transformers tokenizer.
        vocabulary: Rows of the input embedding.
        stop_tokens: Ids that end a text.
        with_text: Prefer one that can be written in a prompt, for people who send prompts as text.

    Raises:
        CapabilityError: The model has no such token.
    """
    if vocabulary > len(tokenizer) and not with_text:
        return vocabulary - 1
    template = str(tokenizer.chat_template or "")
    taken = {*stop_tokens, *_ids(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)}
    added = {
        number: str(token)
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if number < vocabulary and number not in taken
    }
    for number, text in added.items():
        if _UNUSED.search(text) and text not in template and number != tokenizer.pad_token_id:
            return number
    if tokenizer.pad_token_id in added:
        return int(tokenizer.pad_token_id)
    if vocabulary > len(tokenizer):
        return vocabulary - 1
    raise CapabilityError(
        f"the tokenizer has no token to stand for a thought: none of its {len(tokenizer)} ids is unused or reserved, "
        f"and the embedding has {vocabulary} rows. Leave --use_vllm out: the transformers backend needs none"
    )


def _ids(*groups: int | Sequence[int] | None) -> set[int]:
    found: set[int] = set()
    for group in groups:
        if group is not None:
            found |= {group} if isinstance(group, int) else set(group)
    return found
