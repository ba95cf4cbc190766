"""A family of real images that share layers as those on a build host do; as root.

Two Debian bases, then Python, Django, Node and GCC on the first of them, each layer made by the packager
that makes it everywhere: apt, pip, npm. Python comes twice, the second built anew with one more package.
What comes from PyPI and npm has fixed versions, the rest is Debian's of the day: two machines have nearly
the same family, one machine always the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from image_recipes.cache import cached, register
from image_recipes.debian import SUITE, add_layer, archive, mirror, proxy_settings
from image_recipes.engines import storage
from image_recipes.programs import run

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
CERTIFICATES_INSIDE = "/run/certificates.crt"


def family_debian_a(place: Path, made: Path) -> None:
    """Debian minbase."""
    base(place, made, [])


def family_debian_b(place: Path, made: Path) -> None:
    """Debian minbase with curl, git, less, procps and vim, bootstrapped apart."""
    base(place, made, ["ca-certificates", "curl", "git", "less", "procps", "vim-tiny"])


def family_python_a(place: Path, made: Path) -> None:
    """family-debian-a with python3 and pip."""
    built(place, made, "family-debian-a", [apt("python3 python3-pip")])


def family_python_b(place: Path, made: Path) -> None:
    """The same built anew, with PyYAML."""
    built(place, made, "family-debian-a", [apt("python3 python3-pip python3-yaml")])


def family_django(place: Path, made: Path) -> None:
    """family-python-a with Django, NumPy and Requests from PyPI."""
    pip = "pip install --no-cache-dir --break-system-packages --root-user-action=ignore"
    packages = "django==5.2.8 numpy==2.3.4 requests==2.32.5"
    built(place, made, "family-python-a", [f"{pip} {packages}"])


def family_node(place: Path, made: Path) -> None:
    """family-debian-a with Node and npm, and packages of a web server from npm."""
    packages = "express@4.21.2 typescript@5.6.3 webpack@5.97.1 eslint@9.17.0 react@18.3.1"
    npm = f"mkdir /app && cd /app && npm install --no-audit --no-fund {packages}"
    built(place, made, "family-debian-a", [apt("nodejs npm"), f"{npm} && rm -rf /root/.npm"])


def family_gcc(place: Path, made: Path) -> None:
    """family-debian-a with GCC, G++ and make."""
    built(place, made, "family-debian-a", [apt("gcc g++ make libc6-dev")])


def base(place: Path, made: Path, packages: Sequence[str]) -> None:
    """An image of one layer from mmdebstrap."""
    tree = place / "base.tar"
    words = ["--variant=minbase", "--quiet", *(f"--aptopt={line}" for line in proxy_settings())]
    words += [f"--include={name}" for name in packages]
    run(["mmdebstrap", *words, SUITE, tree, mirror()], f"bootstrapping Debian {SUITE}")
    layout = place / "layout"
    run(["umoci", "init", "--layout", layout])
    run(["umoci", "new", "--image", f"{layout}:latest"])
    add_layer(f"{layout}:latest", tree, "compressing the base layer")
    archive(layout, made)


def apt(packages: str) -> str:
    """The command that installs Debian packages and leaves no more behind than they are."""
    install = "apt-get install -y --no-install-recommends"
    return (
        f"apt-get update && DEBIAN_FRONTEND=noninteractive {install} {packages}"
        " && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*"
    )


def built(place: Path, made: Path, parent: str, commands: Sequence[str]) -> None:
    """An image with a layer for each command, run in a chroot that has this machine's network."""
    below = cached(parent)
    with storage(place) as options:
        image = f"oci-archive:{below}"
        for number, command in enumerate(commands):
            container = run(["buildah", *options, "from", "-q", image]).strip().splitlines()[-1]
            inside = [*isolation(), container, "--", "sh", "-ec", command]
            run(["buildah", *options, "run", *inside], f"{parent} + layer {number + 1}")
            image = f"localhost/family:{number}"
            run(["buildah", *options, "commit", "-q", container, image], f"committing {image}")
            run(["buildah", *options, "rm", container])
        run(["buildah", *options, "push", "-q", image, f"oci-archive:{made}:family"])


def isolation() -> list[str | Path]:
    """Options of `buildah run`: no container runtime in between, this machine's network, and its
    certificates, as a proxy may have one of its own."""
    words: list[str | Path] = ["--isolation=chroot", "--network=host"]
    if os.path.exists(CERTIFICATES):
        words.append(f"--volume={CERTIFICATES}:{CERTIFICATES_INSIDE}:ro")
        for variable in ("PIP_CERT", "npm_config_cafile"):
            words.append(f"--env={variable}={CERTIFICATES_INSIDE}")
    return words


_UNDER = (family_debian_a, base)
_BUILT = (built, apt, isolation, *_UNDER)
_PYTHON = (family_python_a, *_BUILT)
register("family-debian-a", *_UNDER)
register("family-debian-b", family_debian_b, base)
register("family-python-a", *_PYTHON)
register("family-python-b", family_python_b, *_BUILT)
register("family-django", family_django, *_PYTHON)
register("family-node", family_node, *_BUILT)
register("family-gcc", family_gcc, *_BUILT)

FAMILY = [
    *("family-debian-a", "family-debian-b", "family-python-a", "family-python-b"),
    *("family-django", "family-node", "family-gcc"),
]
"""In the order in which they are built."""
