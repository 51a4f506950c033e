"""Import every module of the installed client, and carry a request through its three formats."""

import importlib
import pkgutil

import synod
from synod.codec import CODECS
from synod.contracts import ScoreItem, ScoreRequest

for module in pkgutil.walk_packages(synod.__path__, "synod."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

request = ScoreRequest((ScoreItem(image=b"bytes", prompt="a red ball"),), ("ber",), weights={"ber": 0.5})
for kind, codec in CODECS.items():
    assert codec.decode_request(codec.encode_request(request)) == request, kind
print(f"synod {synod.__version__} at {synod.__path__[0]}: {', '.join(CODECS)}")
