"""``python -m hwnas`` is ``hwnas``."""

from hwnas.cli import main

if __name__ == "__main__":
    main(prog_name="hwnas")
