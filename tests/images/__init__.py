"""Real images, made by buildah, podman, umoci and skopeo."""
