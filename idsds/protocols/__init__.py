"""Protocols, one file each. Importing this package fills the registry."""

from idsds.protocols import incremental_deletion, single_deletion
from idsds.protocols.base import PROTOCOLS, Batch, MeanOverImages, ProtocolEntry, list_protocols, register_protocol

__all__ = [
    "PROTOCOLS",
    "Batch",
    "MeanOverImages",
    "ProtocolEntry",
    "incremental_deletion",
    "list_protocols",
    "register_protocol",
    "single_deletion",
]
