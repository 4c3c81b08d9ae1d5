# The standalone worker: one static configuration file in, an ordinary user, nothing writable but its volumes.
#   docker build -t lakemirror/cdc-worker:0.1.0 .

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Only the worker: it needs neither Postgres's headers nor DuckDB.
RUN cargo build --release --locked --package cdc-worker \
    && strip --strip-debug -o /cdc-worker target/release/cdc-worker

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 lakemirror \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin lakemirror \
    && install -d -o lakemirror -g lakemirror /var/lib/lakemirror /var/cache/lakemirror
COPY --from=build /cdc-worker /usr/local/bin/cdc-worker
USER 65532:65532
EXPOSE 9187
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/cdc-worker"]
CMD ["run", "--config", "/etc/lakemirror/lakemirror.toml"]
