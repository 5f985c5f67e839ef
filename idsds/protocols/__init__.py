"""Protocols, one file each. Importing this package fills the registry."""

from idsds.protocols import (
    hyperparameters,
    incremental_deletion,
    infidelity,
    roar,
    robustness,
    sanity,
    similarity,
    single_deletion,
)
from idsds.protocols.base import PROTOCOLS, Batch, MeanOverImages, ProtocolEntry, list_protocols, register_protocol

__all__ = [
    "PROTOCOLS",
    "Batch",
    "MeanOverImages",
    "ProtocolEntry",
    "hyperparameters",
    "incremental_deletion",
    "infidelity",
    "list_protocols",
    "register_protocol",
    "roar",
    "robustness",
    "sanity",
    "similarity",
    "single_deletion",
]
