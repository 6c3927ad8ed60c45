"""The module as a Space: a form to try it in."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

here = Path(__file__).parent
(script,) = (path for path in here.glob("*.py") if path.name != "app.py")
launch_gradio_widget(evaluate.load(str(script)))
