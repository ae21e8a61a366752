# docker build -t pixdec .                              for a CPU
# docker build -t pixdec --build-arg TORCH=cu126 .      for CUDA
FROM python:3.12-slim

ARG TORCH=cpu
WORKDIR /app
COPY constraints.txt .
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/${TORCH}
COPY pyproject.toml README.md LICENSE ./
COPY src src
# What is installed keeps its torch, of whatever kind.
RUN grep -v '^torch==' constraints.txt > /tmp/pins && pip install --no-cache-dir -c /tmp/pins '.[serve]' \
    && useradd --create-home pixdec

USER pixdec
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["pixdec", "serve", "--host", "0.0.0.0"]
