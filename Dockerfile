# The service on a CPU. The model is mounted, and nothing of it is in the image:
#
#   docker build --tag bundle-mllm .
#   docker run --publish 8000:8000 --volume /srv/models:/models --env BUNDLE_MLLM_API_KEY bundle-mllm
#
# serves /srv/models/current, a model folder or a link to one. The folder above it is mounted because changed items are
# a new folder in its place; the user 10001 must be able to write it, or mount it with `:ro` where items do not change.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 HF_HOME=/tmp/huggingface

RUN useradd --uid 10001 --create-home service

WORKDIR /opt/bundle-mllm
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" ".[serve]"

USER 10001

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["bundle-mllm", "serve", "--model", "/models/current", "--host", "0.0.0.0", "--port", "8000"]
