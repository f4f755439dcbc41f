"""``python -m tangentcl``, which launchers of several processes need."""

from tangentcl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
