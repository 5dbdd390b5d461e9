# The dashboard and its command line. BASE pins the base image: give it with its digest (see the manual, "Deployment").
ARG BASE=python:3.12-slim
FROM ${BASE}
WORKDIR /src
# What changes rarely comes first: packages are fetched again only when their list changes.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY engine engine
COPY static static
COPY templates templates
ARG PIP_ARGS=""
RUN pip install --no-cache-dir -c constraints.txt ${PIP_ARGS} . && rm -rf /src
RUN useradd --create-home --uid 10001 seedscope && install -d -o seedscope -g seedscope /data
USER seedscope
WORKDIR /home/seedscope
ENV SEEDSCOPE_ROOT=/data PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 8765
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/healthz', timeout=4)"]
ENTRYPOINT ["seedscope"]
CMD ["serve"]
