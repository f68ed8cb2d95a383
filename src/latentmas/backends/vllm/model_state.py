"""V2 model runner: tells the model, before each step, which rows are thoughts and which come before one."""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from latentmas.backends.vllm.chunks import thought_positions
from latentmas.backends.vllm.settings import LatentSettings
from latentmas.backends.vllm.thoughts import Chunks, check_chunk


class LatentModelState(DefaultModelState):
    """State of the requests of one worker. A request's index in the runner is its slot."""

    supports_prompt_embeds = False

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: Any) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self._placeholder = LatentSettings.of(vllm_config).placeholder
        self._thoughts = model.open_thoughts()
        # One more column than there are positions: what follows a full context is no thought.
        self._names = [""] * self.max_num_reqs
        self._marked = np.zeros((self.max_num_reqs, self.max_model_len + 1), dtype=np.bool_)

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        self._names[req_index] = new_req_data.req_id
        marked = self._marked[req_index]
        marked[:] = False
        marked[list(thought_positions(new_req_data.prompt_token_ids or (), self._placeholder))] = True

    def preprocess_state(self, input_batch: Any, *rest: Any, **more: Any) -> None:
        super().preprocess_state(input_batch, *rest, **more)
        count = input_batch.num_reqs
        slot = input_batch.idx_mapping_np[:count].astype(np.int64)
        # Of a request that decodes, the runner knows only a bound of the position; it lies behind the prompt anyhow.
        start = input_batch.num_computed_tokens_np[:count].astype(np.int64)
        end = np.minimum(start + input_batch.num_scheduled_tokens[:count], self._marked.shape[1] - 1)
        for row in np.flatnonzero(input_batch.num_scheduled_tokens[:count] > 1):
            check_chunk(self._marked[slot[row]], start[row], end[row])
        self._thoughts.begin(
            Chunks(
                slot=slot,
                row=input_batch.query_start_loc_np[:count].astype(np.int64),
                last=input_batch.cu_num_logits_np[1 : count + 1].astype(np.int64) - 1,
                begins=self._marked[slot, start],
                ends=self._marked[slot, end],
                position=end,
                names=[self._names[index] for index in slot],
            )
        )
