"""`python -m blossom_ray` is `blossom-ray`."""

from blossom_ray.cli import main

if __name__ == "__main__":
    main()
