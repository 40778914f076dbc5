"""The reward server that comes with OpenRLHF, as it is in the release, for a processor.

After openrlhf 0.11.2, `openrlhf/cli/serve_rm.py` (RewardModelProxy and its handler) and
`openrlhf/models/model.py` (RewardModel.forward). The package itself can't run here: it imports flash-attn
and DeepSpeed, which want a GPU. What it does is kept: padding on the left in the order of arrival, a value
for each position of which the last is taken, and the forward inside the `async` handler, so that the server
answers nothing else meanwhile. What differs: PyTorch's attention for flash-attn, the benchmark's data type
for bf16, and a port that the system picks.

    python -m benchmarks.openrlhf_server --model FOLDER [--batch-size 16] [--dtype float32] [--threads 2]

Ends when its standard input does, and so with whoever started it.
"""

import logging
import os
import socket
import sys
import threading
from typing import Annotated

import torch
import typer
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from lm.loading import load_tokenizer
from lm.placement import parse_dtype

MAX_LENGTH = 2048

logger = logging.getLogger("openrlhf")


class RewardModelProxy:
    """The model and how lists of texts are put through it."""

    def __init__(self, model_id: str, dtype: str, batch_size: int | None) -> None:
        """Without `batch_size` each list is one batch."""
        self._model = AutoModelForSequenceClassification.from_pretrained(model_id, dtype=parse_dtype(dtype))
        self._model.eval()
        self._tokenizer = load_tokenizer(model_id)
        self._tokenizer.padding_side = "left"
        self._batch_size = batch_size

    @torch.no_grad()
    def get_reward(self, queries: list[str]) -> list[float]:
        """A raw score per text."""
        size = self._batch_size or len(queries)
        logger.info("queries[0]: %s", queries[0])
        scores: list[float] = []
        for begin in range(0, len(queries), size):
            inputs = self._tokenizer(
                queries[begin : begin + size],
                return_tensors="pt",
                add_special_tokens=False,
                max_length=MAX_LENGTH,
                padding=True,
                truncation=True,
            )
            scores += self._forward(inputs["input_ids"], inputs["attention_mask"]).tolist()
        return scores

    def _forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        positions_BL = mask_BL.long().cumsum(-1) - 1
        positions_BL.masked_fill_(mask_BL == 0, 1)
        hidden_BLH = self._model.base_model(ids_BL, attention_mask=mask_BL, position_ids=positions_BL)[0]
        values_BL = self._model.score(hidden_BLH).squeeze(-1)
        last_B1 = mask_BL.size(1) - 1 - mask_BL.long().fliplr().argmax(dim=1, keepdim=True)
        scores_B: Tensor = values_BL.gather(dim=1, index=last_B1).squeeze(1)
        return scores_B


def build_app(proxy: RewardModelProxy) -> FastAPI:
    """POST /get_reward {"query": [text]} → rewards."""
    app = FastAPI()

    @app.post("/get_reward")
    async def get_reward(request: Request) -> JSONResponse:
        queries = (await request.json())["query"]
        rewards = proxy.get_reward(queries)
        result = {"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}}
        logger.info("Sent JSON: %s", result)
        return JSONResponse(result)

    return app


def main(
    model: Annotated[str, typer.Option(help="Folder or hub id.")],
    batch_size: Annotated[
        int | None, typer.Option(help="Texts a batch; a call's whole list without.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
) -> None:
    """Serves a reward model as OpenRLHF does; prints `listening on HOST:PORT` when it is ready."""
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(threads)
    app = build_app(RewardModelProxy(model, dtype, batch_size))
    threading.Thread(target=_end_with_input, daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listener])


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    typer.run(main)
