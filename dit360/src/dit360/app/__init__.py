"""The demo in the browser: text to panorama, holes painted away, panoramas around a photo."""

try:
    import gradio as gradio
except ImportError as error:
    raise ImportError("the demo in the browser needs gradio: pip install 'dit360[app]'") from error

from dit360.app.page import build_interface
from dit360.app.studio import Studio

__all__ = ["Studio", "build_interface"]
