# Two stages: the first builds what mobd is and all that it needs into /opt/mobd, the second is Python and that folder.
# A tag can move; to build on one exact image, give its digest:
#   docker build --build-arg PYTHON_IMAGE=python:3.13-slim-bookworm@sha256:… .
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# What changes seldom comes first, so that a change of the code builds only the last layers anew.
RUN python -m venv --without-pip /opt/mobd \
    && python -m venv --without-pip /opt/builder \
    && mkdir -p /volume/mobd
COPY requirements/server.txt requirements/build.txt requirements/
RUN python -m pip --python /opt/mobd/bin/python install --require-hashes -r requirements/server.txt \
    && python -m pip --python /opt/builder/bin/python install --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
COPY migrations migrations
RUN /opt/builder/bin/python -m hatchling build --target wheel --directory /dist \
    && python -m pip --python /opt/mobd/bin/python install --no-index --no-deps /dist/mobd-*.whl \
    && python -m pip --python /opt/mobd/bin/python check

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="mobd" \
      org.opencontainers.image.description="A gRPC orchestration service for durable teams of long-lived agents" \
      org.opencontainers.image.licenses="Apache-2.0"

COPY --from=build /opt/mobd /opt/mobd
# A new volume takes the owner of the folder that it covers.
COPY --from=build --chown=10001:10001 /volume/mobd /var/lib/mobd

# Inside a container, 127.0.0.1 is reached by nobody: who may come is decided by the ports that are published.
ENV PATH=/opt/mobd/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    MOBD_LISTEN=0.0.0.0:7780 \
    MOBD_HTTP_LISTEN=0.0.0.0:7781 \
    MOBD_DATA_DIR=/var/lib/mobd

USER 10001:10001
WORKDIR /var/lib/mobd
VOLUME /var/lib/mobd
EXPOSE 7780 7781
STOPSIGNAL SIGTERM
# Longer than the 5 s that `mobd healthcheck` itself waits for an answer.
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 CMD ["mobd", "healthcheck"]
ENTRYPOINT ["mobd"]
CMD ["serve"]
