"""Flower's side of a client on W1: the bare PyTorch loop in a ClientApp. A module, since Ray's workers import it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from workload import NUM_SAMPLES, TwoModalityMlp, Workload, train_client

client_app = ClientApp()


@cache
def opened(folder: str) -> tuple[Workload, TwoModalityMlp]:
    """Samples and a model, once per process, so that no time goes into loading a client's shard."""
    torch.set_num_threads(1)
    return Workload.open(Path(folder)), TwoModalityMlp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Ten steps from the parameters received; the new ones back."""
    config = message.content["config"]
    workload, model = opened(str(config["folder"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    loss = train_client(model, workload, int(context.node_config["partition-id"]), int(config["server-round"]))
    metrics = MetricRecord({"num-examples": NUM_SAMPLES, "loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
