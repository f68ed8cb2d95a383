"""How a question is answered. One file per method, named like it, with a `build` function.

compile.py    agents + prompts + question -> programs
controls.py   control arms: pure functions from programs to programs
"""
