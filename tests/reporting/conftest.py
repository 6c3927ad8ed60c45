from .scene import history_file  # noqa: F401
