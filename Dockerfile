# Two images. For every role: docker run plaudit:0.1.0 python -m services.reward --model …
# For the gateway, without torch, --target gateway: docker run plaudit-gateway:0.1.0 python -m services.gateway --reward …
# Built in stages, so that neither compilers nor caches are left; they run as nobody in particular, on a read-only root.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# pip, and what writes down which packages an image has (SBOM): only for the build.
FROM ${BASE_IMAGE} AS tools
WORKDIR /app
COPY constraints.txt ./
RUN python3 -m venv /tools && /tools/bin/pip install --no-cache-dir --quiet --upgrade 'pip>=25.1' \
 && /tools/bin/pip install --no-cache-dir --quiet -c constraints.txt cyclonedx-bom

FROM tools AS build-gateway
RUN python3 -m venv --without-pip /venv
COPY pyproject.toml README.md LICENSE ./
COPY plaudit plaudit
RUN /tools/bin/pip --python /venv/bin/python install --no-cache-dir --quiet -c constraints.txt -e . --group gateway --group traces
RUN /tools/bin/cyclonedx-py environment --no-validate --output-reproducible -o sbom.cdx.json /venv/bin/python

FROM tools AS build
# Torch for processors. For NVIDIA GPUs give the index of its CUDA builds; empty takes pip's own default.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# This one keeps pip: the examples make the models that k8s/overlays/local serves, and fetch their data with it.
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir --quiet --upgrade 'pip>=25.1'
RUN /venv/bin/pip install --no-cache-dir --quiet -c constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} torch
COPY pyproject.toml README.md LICENSE ./
COPY plaudit plaudit
RUN /venv/bin/pip install --no-cache-dir --quiet -c constraints.txt -e . --group examples --group gateway --group traces
RUN /tools/bin/cyclonedx-py environment --no-validate --output-reproducible -o sbom.cdx.json /venv/bin/python

# What both have.
FROM ${BASE_IMAGE} AS runtime
ARG VERSION=0.1.0
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY pyproject.toml README.md LICENSE CHANGELOG.md constraints.txt ./

FROM runtime AS gateway
LABEL org.opencontainers.image.title="plaudit-gateway" \
      org.opencontainers.image.description="Plaudit's reward service over HTTP and JSON"
COPY --from=build-gateway /venv /venv
COPY --from=build-gateway /app/sbom.cdx.json ./
COPY plaudit plaudit
COPY services/__init__.py services/errors.py services/packages.py services/
COPY services/rpc services/rpc
COPY services/gateway services/gateway
USER 10001:10001

FROM runtime AS plaudit
LABEL org.opencontainers.image.title="plaudit" \
      org.opencontainers.image.description="RLHF as a contract: InstructGPT's three stages over versioned gRPC services"
ENV OMP_WAIT_POLICY=PASSIVE
COPY --from=build /venv /venv
COPY --from=build /app/sbom.cdx.json ./
COPY plaudit plaudit
COPY lm lm
COPY services services
COPY trainer trainer
COPY examples examples
RUN mkdir /models /runs && chown 10001:10001 /models /runs
USER 10001:10001
