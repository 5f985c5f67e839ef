"""Protocols, one file each. Importing this package fills the registry."""

from idsds.protocols import single_deletion
from idsds.protocols.base import PROTOCOLS, Batch, ProtocolEntry, list_protocols, register_protocol

__all__ = ["PROTOCOLS", "Batch", "ProtocolEntry", "list_protocols", "register_protocol", "single_deletion"]
