"""`python -m duodao` is `duodao`."""

from duodao.cli.main import main

if __name__ == "__main__":
    main()
