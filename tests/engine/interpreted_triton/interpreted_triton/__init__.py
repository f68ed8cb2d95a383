"""A Triton back end that compiles nothing, so that vLLM's V2 model runner can be tested without a GPU.

With ``TRITON_INTERPRET=1`` Triton runs kernels as Python and needs no back end; vLLM only asks whether there is one
called ``cpu``. Put the folder above this one on ``PYTHONPATH``.
"""
