"""`python -m retouch`, the entry point for launchers of several processes."""

from retouch.cli.app import main

if __name__ == "__main__":
    main()
