"""Attribution methods by family. Importing this package fills the registry."""

from idsds.methods import cam, controls, gradient, guided, intrinsic, libraries, relevance, rise, transformer
from idsds.methods.base import (
    FAMILIES,
    METHODS,
    Method,
    MethodEntry,
    Passes,
    create_method,
    list_methods,
    register_method,
    shared_maps,
    shared_passes,
    split_name,
)
from idsds.methods.maps import as_map
from idsds.methods.own import OwnMethod, as_method
