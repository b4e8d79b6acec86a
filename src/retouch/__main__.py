"""`python -m retouch`, which launchers of several processes call."""

from retouch.cli.app import main

if __name__ == "__main__":
    main()
