# The newest lane: TensorFlow 2.21.0 and Keras 3, from requirements-newest.lock. From the checkout:
#   docker build -f docker/newest.Dockerfile -t tfrz:newest .
#   docker run --rm -v "$PWD/runs:/home/tfrz/runs" tfrz:newest train dcn_v2 --out runs/dcn
FROM python:3.12-slim-bookworm AS build

COPY requirements-newest.lock /src/
# The lock is whole, so there is nothing to resolve.
RUN python -m venv /opt/tfrz \
 && /opt/tfrz/bin/pip install --no-cache-dir --no-deps -r /src/requirements-newest.lock
COPY . /src/
RUN /opt/tfrz/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src

FROM python:3.12-slim-bookworm

# LightGBM needs libgomp. Debian keeps one version of it in a release, so there is none to pin.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 tfrz
COPY --from=build /opt/tfrz /opt/tfrz
ENV PATH=/opt/tfrz/bin:$PATH

USER 1000
WORKDIR /home/tfrz
EXPOSE 8500 8501
ENTRYPOINT ["tfrz"]
CMD ["--help"]
