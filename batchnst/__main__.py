"""`python -m batchnst`: the same as the command `batchnst`."""

from batchnst.cli.main import main

if __name__ == "__main__":
    main()
