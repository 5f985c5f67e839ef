"""Protocols, one file each. Importing this package fills the registry."""

from idsds.protocols import (
    f_fidelity,
    funnybirds,
    hyperparameters,
    imputation,
    incremental_deletion,
    infidelity,
    libraries,
    localisation,
    parts,
    roar,
    robustness,
    sanity,
    similarity,
    single_deletion,
    subsets,
)
from idsds.protocols.base import PROTOCOLS, Batch, MeanOverImages, ProtocolEntry, list_protocols, register_protocol
