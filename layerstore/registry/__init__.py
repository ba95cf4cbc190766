"""Images from and to registries: the OCI distribution API on httpx and trio.

    references       REF as skopeo and podman spell it
    platforms        os/arch[/variant], and which image of an index is meant
    credentials      --creds, podman's and docker's files, credential helpers
    configuration    mirrors and locations from containers-registries.conf(5)
    trust            whom TLS trusts, and where plain http is allowed
    challenges       what WWW-Authenticate asks for
    authentication   the answer to that: basic, or a token
    transport        HTTP without policy
    patience         time limits and retries
    client           one registry: requests with authentication, redirects, retries
    manifests        by tag or digest, through indexes
    blobs, partials  downloads, and what is left of them for the next pull
    multipart, ranges, parts  a layer without the files that the store has
    uploads          the other direction
    background       trio in a thread beside the importer
    pull, push       one image
    images           `pull` and `push` for a store: what commands and other programs call

Names and credentials are plain functions; everything that speaks to a registry is async, but for
`images`, which blocks. Source: https://github.com/opencontainers/distribution-spec.
"""
