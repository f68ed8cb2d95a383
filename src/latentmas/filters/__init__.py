"""KV filters: which slots a hand-over passes on. One file per filter; none exists yet.

What depends on the agent or kind of a slot only (``full``, ``thoughts``, ``last_agent``) needs no file here.
"""
