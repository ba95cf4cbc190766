"""Images from and to registries: the OCI distribution API on httpx and trio.

    references       REF as skopeo and podman spell it
    platforms        os/arch[/variant], and which image of an index is meant
    credentials      --creds, podman's and docker's files, credential helpers
    configuration    mirrors and locations from containers-registries.conf(5)
    trust            whom TLS trusts, and where plain http is allowed
    challenges       what WWW-Authenticate asks for
    authentication   the answer to that: basic, or a token
    client           one registry: requests with authentication, redirects, retries
    blobs, manifests content by digest, verified; manifests by tag
    background       trio in a thread beside the importer
    pull, push       whole images

Names and credentials are plain functions; everything that speaks to a registry is async, but for
`pull` and `push`, which block. Source: https://github.com/opencontainers/distribution-spec.
"""
