"""Where the command ``nacme`` begins: what lies in the working directory is no code, then the command line."""

from nacme.children import leave_working_directory


def main() -> None:
    """Enter the command line."""
    leave_working_directory()

    from nacme.cli import main as enter

    enter()


if __name__ == "__main__":
    main()
