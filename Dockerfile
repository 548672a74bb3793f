# vggdist with its environment, for GPUs and CPUs; docs/containers.md says how it is used.
#   docker build -t vggdist .
FROM debian:bookworm-slim

# 12: for GPUs older than Turing, or drivers older than 580.
ARG CUDA=13

# Python 3.11. A compiler and Python's headers for Triton, the libraries of InfiniBand for NCCL, ssh
# for DeepSpeed's launcher on several nodes.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates g++ ibverbs-providers \
      libibverbs1 make openssh-client pdsh procps python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*

# The libraries first: they change seldom, and take 6 GB.
WORKDIR /opt/vggdist
COPY Makefile requirements.lock requirements-cuda12.txt setup.py ./
COPY vggdist/__init__.py vggdist/
RUN PIP_NO_CACHE_DIR=1 make setup CUDA=${CUDA}

COPY . .
ENV PATH=/opt/vggdist/.venv/bin:$PATH \
    # A user whom the container does not know has no home and no name.
    HOME=/tmp \
    USER=vggdist
CMD ["vggdist", "--help"]
