"""Property tests: the same examples on every machine, and no limit on the time an example takes."""

from hypothesis import settings

settings.register_profile("synod", deadline=None, derandomize=True)
settings.load_profile("synod")
