"""The vectorised engine: clients with the same model train and are scored together, on stacked block vectors."""

from blossom_ray.clients.stacked.engine import ClientTask, VectorizedEngine
from blossom_ray.clients.stacked.support import can_vectorize, training_obstacle

__all__ = ["ClientTask", "VectorizedEngine", "can_vectorize", "training_obstacle"]
