"""The Mediffuse Space: `python app.py`, then open the address it prints; `python app.py --help`."""

from mediffuse.ui.page import build, serve

demo = build()

if __name__ == "__main__":
    serve(demo)
