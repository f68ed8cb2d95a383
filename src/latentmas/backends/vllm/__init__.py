"""Programs on stock vLLM: a whole latent team is one request, on one copy of the weights.

The prompt of the request holds every agent's tokens, with a reserved token id, the placeholder, wherever a thought
goes: ``P1 LLLL P2 LLLL P3``. A thought needs the hidden state of the position before it, so

- the scheduler (`scheduler`) cuts prefill chunks in front of every placeholder, and steps a prefix-cache hit back
  when it ends in front of one;
- the model (`models`) keeps the aligned last hidden state of a request whose next token is a placeholder, and puts it
  in place of the placeholder's embedding in the next step (`thoughts`);
- the V2 model runner tells the model about the batch through a model state (`model_state`), the V1 runner through a
  worker (`worker`).

`plugin` registers our model classes under names of their own; `settings` says what an engine needs to use them. An
engine that is not given these settings never meets a line of this package.

`requests`, `placeholder`, `chunks`, `settings`, `backend` and `compatibility` import no vLLM; the other modules are
imported inside an engine's processes, or by `engine` when one is started.
"""
