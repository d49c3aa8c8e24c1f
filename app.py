"""The Mediffuse Space: `python app.py`, then open the address it prints."""

from mediffuse.ui.page import build, launch_options

demo = build()

if __name__ == "__main__":
    demo.launch(**launch_options())
