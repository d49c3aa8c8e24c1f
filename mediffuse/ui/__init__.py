"""The web page. The only part of the library that imports gradio."""
