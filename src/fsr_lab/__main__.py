"""`python -m fsr_lab` is `fsr`."""

from fsr_lab.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
