# The reference lane: TensorFlow 2.15.1 and TFX 1.15.1, from requirements.lock. From the checkout:
#   docker build -f docker/reference.Dockerfile -t tfrz:reference .
#   docker run --rm -v "$PWD/runs:/home/tfrz/runs" tfrz:reference train dcn_v2 --out runs/dcn
# The whole image has the compiler that pyfarmhash, which comes as source, needs.
FROM python:3.11-bookworm AS build

COPY requirements.lock /src/
# The lock is whole. TFX's own metadata refuse Python 3.11, on which it runs.
RUN python -m venv /opt/tfrz \
 && /opt/tfrz/bin/pip install --no-cache-dir --no-deps --ignore-requires-python \
    -r /src/requirements.lock
COPY . /src/
RUN /opt/tfrz/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src

FROM python:3.11-slim-bookworm

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
