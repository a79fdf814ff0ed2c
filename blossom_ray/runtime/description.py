"""What a run's manifest says about its data: which they are, whose rows they are, what is observed of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.shards import ShardIndex
from blossom_ray.runtime.preparation import Preparation


def describe(preparation: Preparation) -> Mapping[str, object]:
    """What the run's manifest says about the data, and about what was timed."""
    shards, facts = preparation.shards, preparation.task_facts
    trained, unseen = preparation.population.trained, preparation.population.unseen
    whole = _described_task(preparation, "", trained) if "" in facts else _described_members(preparation, trained)
    members = {name: [one for one in trained if name in one.tasks] for name in facts if name}
    tasks = {name: _described_task(preparation, name, own) for name, own in members.items()}
    return {
        "seconds_per_sample": {name: dict(times) for name, times in preparation.seconds_per_sample.items()},
        "data": {
            "fingerprint": preparation.fingerprint,
            "partition": preparation.partition,
            **whole,
            "left_out": [asdict(entry) for entry in preparation.left_out],
            "client_names": list(preparation.client_names),
            **_observation(preparation),
            **({"scales": preparation.scales} if preparation.scales else {}),
            **({"unseen": _described_clients(shards, unseen)} if unseen else {}),
            **({"tasks": tasks} if tasks else {}),
        },
    }


def _described_task(preparation: Preparation, name: str, members: Sequence[ClientProfile]) -> dict[str, object]:
    """A task as the manifest has it, with its clients."""
    facts, task = preparation.task_facts[name], preparation.plan.tasks[name]
    own = {"fingerprint": facts.fingerprint, "partition": facts.partition} if name else {}
    own |= {"observation": facts.observation} if name and preparation.observation else {}
    told = {"task": task.kind, "num_classes": task.num_outputs, "class_names": list(facts.class_names)}
    held_out = {} if task.has_held_out else {"num_held_out": 0}
    return own | told | _described_members(preparation, members) | held_out


def _described_members(preparation: Preparation, members: Sequence[ClientProfile]) -> dict[str, object]:
    plan, told = preparation.plan, _described_clients(preparation.shards, members)
    data_sets = {plan.data_set(profile) for profile in members}
    if len(data_sets) == 1:
        told = {"input_shapes": {name: list(shape) for name, shape in plan.shapes(members[0]).items()}, **told}
    return {**told, "num_held_out": sum(preparation.num_held_out[name] for name in data_sets)}


def _observation(preparation: Preparation) -> dict[str, object]:
    """The part of the manifest on what is observed; nothing where all is."""
    if not preparation.observation:
        return {}
    rows = {name: {split: asdict(one) for split, one in own.items()} for name, own in preparation.observed.items()}
    return {"observation": preparation.observation, "observed": rows}


def _described_clients(shards: ShardIndex, profiles: Sequence[ClientProfile]) -> dict[str, object]:
    """What the manifest says of some clients: their samples, and how many there are of each modality set."""
    clients = [profile.index for profile in profiles]
    return {
        "num_train": int(shards.num_train[clients].sum()),
        "num_validation": int(shards.num_validation[clients].sum()),
        "num_test": int(shards.num_test[clients].sum()),
        "clients": Counter(profile.modality_set for profile in profiles),
    }
