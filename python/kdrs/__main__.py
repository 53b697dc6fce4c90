"""The command ``kdrs``, and ``python -m kdrs``."""

import sys

from kdrs._libraries import missing


def main() -> None:
    try:
        from kdrs.cli import main as run
    except ModuleNotFoundError as error:  # a slim installation
        problem = missing(error, "the command line")
        if problem is None:
            raise
        print(f"error: {problem.cause}\n  try: {problem.remedy}", file=sys.stderr)
        sys.exit(problem.exit_code)
    run()


if __name__ == "__main__":
    main()
