"""`layerstore` and `python -m layerstore`."""

from layerstore.cli import main

if __name__ == "__main__":
    main()
