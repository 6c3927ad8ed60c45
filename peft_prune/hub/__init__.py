"""The Hub: adapters and second moments are published, named and fetched (floor 4)."""

from .errors import HubError
from .measured import write_measured
from .moments import load_moments, push_moments
from .names import HubName, adapter_folder
from .objects import push_model, push_session, write_edits
from .push import Destination, push_folder

__all__ = [
    "Destination",
    "HubError",
    "HubName",
    "adapter_folder",
    "load_moments",
    "push_folder",
    "push_model",
    "push_moments",
    "push_session",
    "write_edits",
    "write_measured",
]
