"""The entry point of the command line: `retouch`, and `python -m retouch` for launchers."""

import sys


def main() -> None:
    """Run the command line; during the imports, too, Ctrl-C and a lack of memory are one line."""
    try:
        from retouch.core.interrupts import note_interrupts

        note_interrupts()
        from retouch.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)
    except MemoryError:
        sys.stderr.write("Error: The memory is exhausted.\n")
        sys.exit(4)


if __name__ == "__main__":
    main()
