"""The transformers backend: exact in any batch, on any causal language model with rotary positions.

    load.py       names, folders and weights; what is refused, and why
    chat.py       chats to tokens
    attention.py  masks from true positions, and the face of a memory towards transformers
    sampling.py   counter-based Gumbel-max
    rollout.py    one batch of programs of one shape, from first Read to last Write
    backend.py    jobs in, outcomes out: grouping, context limit, out of memory
    session.py    the same verbs, interactively

This package is the only one that imports transformers (besides the training script of the embedded model).
"""
