# The commands are the README's.
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 mediffuse
WORKDIR /app
COPY requirements.txt .
RUN PIP_NO_CACHE_DIR=1 pip install -r requirements.txt
COPY . .

USER mediffuse
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD python tools/healthy.py
CMD ["python", "app.py"]
