"""`python -m serve`: settings, model, server. Imports nothing at the top: spawned workers import this module too."""


def main(arguments: list[str]) -> int:
    """Exit code: 0 after a stop, 2 if the server cannot start (one line says why)."""
    import sys

    from serve.errors import StartupError
    from serve.launch import launch

    try:
        launch(arguments)
    except StartupError as error:
        print(f"phiserve: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
