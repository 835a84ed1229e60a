"""OpenVINO's runtime, imported without its model converter.

`import openvino` also imports its converter, and that reports the import to Google Analytics unless the user has opted
out: it forks this process to do so, and keeps a count in ~/intel (openvino 2026.4, openvino/tools/ovc/__init__.py). A
server sends nothing that it was not asked to send. OpenVINO goes on without a converter that is not installed, and None
in sys.modules is Python's way of saying that a module is not to be found (language reference, 5.3.1). The import then
takes half the time. Whoever imported openvino before has the whole of it, and openvino.tools can still be imported.
"""

import sys

_present = sys.modules.setdefault("openvino.tools", None)  # type: ignore[arg-type]
try:
    import openvino as ov
    from openvino import opset15 as op
finally:
    if _present is None:
        sys.modules.pop("openvino.tools", None)

__all__ = ["op", "ov"]
