"""The Mediffuse Space: `python app.py`, then open the address it prints."""

from mediffuse.ui import faults
from mediffuse.ui.page import build, launch_options

demo = build()

if __name__ == "__main__":
    with faults.said():
        demo.launch(**launch_options())
